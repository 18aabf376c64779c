"""Divergence: of the distribution of a variational code from the standard normal, per pixel.

    loss = 1 / (N P) Σ_n Σ_d ½ (mean_nd² + exp(l_nd) − l_nd − 1),   l = log-variance

which is KL(N(mean, exp(l)) ‖ N(0, 1)) in nats (Kingma and Welling, "Auto-Encoding Variational Bayes", 2014,
appendix B), summed over the D numbers of the code, averaged over the N samples and divided by the P = C H W
values of an image. Divided like the pixel error, it keeps its weight at every image size: with a weight of
2 s², the sum with the mean squared error is 2 s² / P times the negative evidence bound (up to a constant) for
Gaussian pixels of standard deviation s.
"""

from __future__ import annotations

from torch import Tensor

NEEDS = ("mean", "log_variance")
PER_SAMPLE = True


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar divergence of outputs["mean"] and outputs["log_variance"], both (N, D), per pixel.

    The image batch["image"] (N, C, H, W) only gives the number of pixel values.
    """
    mean, log_variance = outputs["mean"], outputs["log_variance"]
    divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)  # (N,), nats
    return divergence.mean() / batch["image"][0].numel()
