"""Divergence: the distribution of a variational code should be close to the standard normal distribution.

    loss = 1 / (N P) Σ_n Σ_d ½ (mean_nd² + exp(l_nd) − l_nd − 1),   l = log-variance

This is KL(N(mean, exp(l)) ‖ N(0, 1)) in nats (Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
appendix B). It is summed over the D dimensions of the code, averaged over the N samples, and divided by the P = C H W
values of an image. The pixel error is divided by P as well, so one weight fits all image sizes. Take a weight of 2 s²,
and pixels with Gaussian noise of standard deviation s. The mean squared error plus the weighted divergence is then
2 s² / P times the negative evidence lower bound, up to a constant.
"""

from __future__ import annotations

from torch import Tensor

NEEDS = ("mean", "log_variance")
PER_SAMPLE = True


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar divergence, in nats per pixel value, of outputs["mean"] and outputs["log_variance"], (N, D).

    Of batch["image"] (N, C, H, W) only the number of values is used.
    """
    mean, log_variance = outputs["mean"], outputs["log_variance"]
    divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)  # (N,), nats
    return divergence.mean() / batch["image"][0].numel()
