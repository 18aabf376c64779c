"""The objectives against references computed another way."""

import pytest
import torch

from cyclic_cli.objectives import divergence, reconstruction


def test_reconstruction_is_the_mean_squared_error_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]], [[[1.0, 1.0], [0.0, 0.0]]]])
    output = torch.tensor([[[[0.5, 1.0], [0.5, 0.75]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    value = reconstruction.loss({"reconstruction": output}, {"image": image})
    assert value.shape == ()
    assert value.item() == pytest.approx((0.25 + 0.25 + 1.0) / 8)


def test_reconstruction_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="shape"):
        reconstruction.loss({"reconstruction": torch.zeros(2, 1, 4, 4)}, {"image": torch.zeros(2, 2, 4, 4)})


def test_divergence_is_that_of_torch_distributions_per_pixel() -> None:
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


@pytest.mark.parametrize("objective", [reconstruction, divergence])
def test_a_loss_is_the_mean_of_the_losses_of_its_samples(objective) -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = {
        "reconstruction": torch.rand(4, 1, 8, 8, generator=generator),
        "mean": torch.randn(4, 6, generator=generator),
        "log_variance": torch.randn(4, 6, generator=generator),
    }
    outputs = {name: outputs[name] for name in objective.NEEDS}
    image = torch.rand(4, 1, 8, 8, generator=generator)
    parts, image_parts = {name: value.split(1) for name, value in outputs.items()}, image.split(1)
    each = [
        objective.loss({name: value[i] for name, value in parts.items()}, {"image": image_parts[i]}) for i in range(4)
    ]
    torch.testing.assert_close(objective.loss(outputs, {"image": image}), torch.stack(each).mean())
