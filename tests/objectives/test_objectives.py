"""The objectives of autoencoders, compared with other libraries and with values computed by hand."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.makers import Ran
from helpers.run_files import rows
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from cyclic_cli.metrics.reconstruction import ssim
from cyclic_cli.objectives import absolute, divergence, reconstruction, simclr, similarity
from cyclic_cli.registry import names

Cyclic = Callable[..., Ran]
OF_PIXELS = [reconstruction, absolute, similarity]


def images(count: int, height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Smooth images (N, 1, H, W) in [0, 1], and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 1, height + 6, width + 6, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.avg_pool2d(rough, 7, 1)
    noise = 0.1 * torch.randn(smooth.shape, generator=generator, dtype=torch.float64)
    return [smooth.to(dtype), (smooth + noise).clamp(0, 1).to(dtype)]


def test_reconstruction_is_the_mean_squared_error_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]], [[[1.0, 1.0], [0.0, 0.0]]]])
    output = torch.tensor([[[[0.5, 1.0], [0.5, 0.75]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    value = reconstruction.loss({"reconstruction": output}, {"image": image})
    assert value.shape == ()
    assert value.item() == pytest.approx((0.25 + 0.25 + 1.0) / 8)


def test_absolute_is_the_mean_absolute_error_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]], [[[1.0, 1.0], [0.0, 0.0]]]])
    output = torch.tensor([[[[0.5, 1.0], [0.5, 0.75]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    value = absolute.loss({"reconstruction": output}, {"image": image})
    assert value.shape == ()
    assert value.item() == pytest.approx((0.5 + 0.5 + 1.0) / 8)


def test_similarity_of_constant_images_by_hand() -> None:
    image = torch.full((3, 1, 32, 40), 0.5, dtype=torch.float64)
    output = image + 0.2
    value = similarity.loss({"reconstruction": output}, {"image": image})
    assert value.shape == ()
    assert value.item() == pytest.approx(1 - (2 * 0.5 * 0.7 + 0.0001) / (0.5**2 + 0.7**2 + 0.0001), abs=1e-9)


def test_similarity_of_equal_images_is_zero_and_a_minimum() -> None:
    image, _ = images(2, 32, 32, dtype=torch.float64)
    output = image.clone().requires_grad_()
    value = similarity.loss({"reconstruction": output}, {"image": image})
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert output.grad is not None
    assert output.grad.abs().max() < 1e-12


@pytest.mark.parametrize("sides", [(32, 32), (48, 37), (224, 224)], ids=str)
def test_similarity_equals_that_of_other_libraries_and_of_reconstruct(sides: tuple[int, int]) -> None:
    image, output = images(3, *sides)
    value = similarity.loss({"reconstruction": output}, {"image": image}).item()
    assert value == pytest.approx(
        1 - np.mean([ssim(*pair) for pair in zip(image.numpy(), output.numpy(), strict=True)]), abs=1e-5
    )
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    maps = [
        structural_similarity(x[0].double().numpy(), y[0].double().numpy(), **options)[1]
        for x, y in zip(image, output, strict=True)
    ]
    assert value == pytest.approx(1 - np.stack(maps)[:, 5:-5, 5:-5].mean(), abs=1e-5)
    _, full = structural_similarity_index_measure(
        image.double(), output.double(), sigma=1.5, data_range=1.0, return_full_image=True
    )
    assert value == pytest.approx(1 - float(full[..., 5:-5, 5:-5].mean()), abs=1e-5)


def test_similarity_keeps_its_precision_inside_autocast() -> None:
    image, output = images(2, 64, 64)
    # Bright images of low contrast have variances of about 1e-4 beside means of about 1.
    image, output = 0.9 + 0.1 * image, 0.9 + 0.1 * output
    exact = similarity.loss({"reconstruction": output.double()}, {"image": image.double()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = similarity.loss({"reconstruction": output}, {"image": image})
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), abs=1e-3)
    half = similarity.loss({"reconstruction": output.bfloat16()}, {"image": image})
    assert half.dtype == torch.float32


@pytest.mark.parametrize("objective", OF_PIXELS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_gradients_equal_finite_differences(objective) -> None:
    image, output = images(2, 13, 12, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda value: objective.loss({"reconstruction": value}, {"image": image}), output.requires_grad_()
    )


@pytest.mark.parametrize("objective", OF_PIXELS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_shapes_that_would_broadcast_are_refused(objective) -> None:
    with pytest.raises(ValueError, match="shape"):
        objective.loss({"reconstruction": torch.zeros(2, 1, 16, 16)}, {"image": torch.zeros(2, 2, 16, 16)})


def test_divergence_equals_that_of_torch_distributions_per_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 5, 7, generator=generator)
    image = torch.zeros(5, 2, 3, 4)
    value = divergence.loss({"mean": mean, "log_variance": log_variance}, {"image": image})
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros(5, 7), torch.ones(5, 7))
    expected = torch.distributions.kl_divergence(normal, standard).sum(1).mean() / (2 * 3 * 4)
    assert value.shape == ()
    torch.testing.assert_close(value, expected)


def test_divergence_of_the_standard_normal_is_zero_and_a_minimum() -> None:
    mean, log_variance = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    value = divergence.loss({"mean": mean, "log_variance": log_variance}, {"image": torch.zeros(3, 1, 2, 2)})
    value.backward()
    assert value.item() == 0
    for parameter in (mean, log_variance):
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("name", names("objectives"))
def test_a_per_sample_loss_is_the_weighted_mean_over_micro_batches(name: str) -> None:
    objective = import_module(f"cyclic_cli.objectives.{name}")
    assert isinstance(objective.PER_SAMPLE, bool)
    if not objective.PER_SAMPLE:
        pytest.skip("the loss depends on the whole batch")
    generator = torch.Generator().manual_seed(1)
    image, output = images(7, 16, 20, seed=1)
    outputs = {
        "reconstruction": output,
        "mean": torch.randn(7, 6, generator=generator),
        "log_variance": torch.randn(7, 6, generator=generator),
    }
    outputs = {output: outputs[output] for output in objective.NEEDS}
    total = torch.zeros(())
    for part in torch.arange(7).split(3):  # the last micro-batch is smaller
        loss = objective.loss({output: value[part] for output, value in outputs.items()}, {"image": image[part]})
        total = total + len(part) / 7 * loss
    torch.testing.assert_close(objective.loss(outputs, {"image": image}), total)


def test_a_weighted_sum_trains_and_every_term_is_in_the_metrics(tiny_dataset: Path, cyclic: Cyclic) -> None:
    mix = {"reconstruction": 1, "absolute": 0.5, "similarity": 0.1}
    ran = cyclic(
        "train", tiny_dataset, "--arch", "conv", "--epochs", 4, "--batch-size", 4, "--out", "run", "--json",
        "--set", f"objectives={json.dumps(mix)}",
    )  # fmt: skip
    assert ran.code == 0
    steps = rows(Path("run"), "step")
    for row in steps:
        terms = row["losses"]
        assert set(terms) == {*mix, "total"}
        assert terms["total"] == pytest.approx(sum(weight * terms[name] for name, weight in mix.items()), rel=1e-5)
    assert steps[-1]["losses"]["total"] < steps[0]["losses"]["total"]


def test_simclr_is_the_cross_entropy_of_the_other_view_by_a_loop() -> None:
    rows = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = functional.normalize(rows, dim=2)
    losses = []
    for image in range(4):
        for number in (0, 1):
            one, partner = views[image, number], views[image, 1 - number]
            others = [views[a, b] for a in range(4) for b in (0, 1) if (a, b) != (image, number)]
            total = sum(torch.exp(7 * one @ other) for other in others)
            losses.append(-torch.log(torch.exp(7 * one @ partner) / total))
    found = simclr.loss({"projection": rows.float()}, {}, sharpness=7.0)
    torch.testing.assert_close(found, torch.stack(losses).mean().float())


def test_simclr_counts_all_partners_alike_and_is_zero_for_a_single_image() -> None:
    rows = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1])
    losses = [simclr.loss({"projection": some}, {}) for some in (rows, rows[:, order])]
    torch.testing.assert_close(*losses)
    alone = rows[:1, :2].requires_grad_()
    loss = simclr.loss({"projection": alone}, {})
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert alone.grad is not None
    assert alone.grad.isfinite().all()


def test_the_gradient_of_simclr_equals_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", lambda value: value)  # the objective computes in float32
    rows = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: simclr.loss({"projection": value}, {}), rows)
