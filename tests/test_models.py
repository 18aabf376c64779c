"""Every architecture of the package against the contract in `cyclic_cli.models`, and above all their starts."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cyclic_cli.models
import cyclic_cli.objectives
from cyclic_cli.models import conv, deep, linear, vae
from cyclic_cli.models._layers import (
    SAMPLE,
    StreamingComponents,
    decode_linearly,
    encode_linearly,
    fit_decoding,
    take_sample,
)


def names_in(package: ModuleType) -> list[str]:
    return [found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_")]


NAMES = names_in(cyclic_cli.models)
SIZE = (1, 64, 64)


def architecture(name: str) -> ModuleType:
    return import_module(f"cyclic_cli.models.{name}")


def smooth_images(count: int, seed: int, shape: tuple[int, int, int] = SIZE) -> Tensor:
    """Noise with the falling spectrum of natural images, in [0, 1]: (count, C, H, W)."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft2(noise)
    vertical = torch.fft.fftfreq(shape[1])[:, None] * shape[1]
    horizontal = torch.fft.rfftfreq(shape[2])[None] * shape[2]
    images = torch.fft.irfft2(spectrum / (1 + vertical**2 + horizontal**2) ** 0.9, s=shape[1:])
    return (0.5 + 0.2 * images / images.std()).clamp(0, 1)


def build(name: str, shape: tuple[int, int, int] = SIZE, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = architecture(name)
    model: nn.Module = module.Model(module.Config(), shape)
    return model


def started(name: str, images: Tensor, seed: int = 0) -> nn.Module:
    model = build(name, tuple(images.shape[1:]), seed)
    model.initialise(iter(images.split(16)))
    return model


@pytest.fixture(scope="module", params=NAMES)
def trained_start(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """The name of an architecture, and its model started on 96 synthetic images."""
    return request.param, started(request.param, smooth_images(96, seed=1))


def error(model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float(functional.mse_loss(model(images)["reconstruction"], images))


def test_the_four_architectures_of_the_origin_are_there() -> None:
    assert {"linear", "conv", "deep", "vae"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_an_architecture_are_usable(name: str) -> None:
    module = architecture(name)
    assert {"reconstruction", "code"} <= set(module.OUTPUTS)
    assert set(module.OBJECTIVES) <= set(names_in(cyclic_cli.objectives))
    for objective in module.OBJECTIVES:
        assert set(import_module(f"cyclic_cli.objectives.{objective}").NEEDS) <= set(module.OUTPUTS)
    assert set(module.RECIPE) == {"lr", "batch_size", "weight_decay", "warmup"}
    takes_noise = "noise" in inspect.signature(module.Model.forward).parameters
    assert takes_noise == ("log_variance" in module.OUTPUTS)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 112, 112), (2, 64, 64), (1, 64, 96)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name: str, shape: tuple[int, int, int]) -> None:
    model, images = build(name, shape), torch.rand(2, *shape)
    with torch.no_grad():
        outputs = model(images)
        code = model.encode(images)
        reconstruction = model.decode(code)
    assert set(outputs) == set(architecture(name).OUTPUTS)
    assert outputs["reconstruction"].shape == images.shape
    torch.testing.assert_close(outputs["code"], code)
    torch.testing.assert_close(outputs["reconstruction"], reconstruction)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("linear", (128,)), ("conv", (4, 56, 56)), ("deep", (256,)), ("vae", (256,))],
)
def test_codes_at_224_pixels_are_those_of_the_origin(name: str, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert build(name, (1, 224, 224)).encode(torch.rand(1, 1, 224, 224)).shape == (1, *shape)


@pytest.mark.parametrize("name", NAMES)
def test_impossible_sizes_are_refused_in_words(name: str) -> None:
    with pytest.raises(ValueError, match="height of the images is 31 pixels"):
        build(name, (1, 31, 64))
    with pytest.raises(ValueError, match="channel"):
        build(name, (0, 64, 64))


@pytest.mark.parametrize("name", ["conv", "deep", "vae"])
def test_sides_that_cannot_be_halved_often_enough_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="width of the images is 66 pixels; it must be a multiple"):
        build(name, (1, 64, 66))


@pytest.mark.parametrize("name", NAMES)
def test_a_code_without_numbers_is_refused(name: str) -> None:
    module = architecture(name)
    with pytest.raises(ValueError, match="between 1 and"):
        module.Model(module.Config(latent=0), SIZE)


@pytest.mark.parametrize(("module", "width"), [(conv, 15), (deep, 15), (vae, 12)])
def test_widths_that_cannot_be_paired_or_grouped_are_refused(module: ModuleType, width: int) -> None:
    with pytest.raises(ValueError, match="width must be"):
        module.Model(module.Config(width=width), SIZE)


def test_a_sample_does_not_depend_on_its_batch(trained_start: tuple[str, nn.Module]) -> None:
    _, model = trained_start
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    images = smooth_images(5, seed=2)
    model.train()
    with torch.no_grad():
        together = model(images)
        for index in range(len(images)):
            alone = model(images[index : index + 1])
            for output, value in alone.items():
                torch.testing.assert_close(value[0], together[output][index], rtol=1e-5, atol=1e-5)


def test_parameters_are_single_precision_and_all_are_reached(trained_start: tuple[str, nn.Module]) -> None:
    name, model = trained_start
    images = smooth_images(8, seed=3)
    model.zero_grad()
    outputs = model(images)
    total = torch.zeros(())
    for objective, weight in architecture(name).OBJECTIVES.items():
        loss = import_module(f"cyclic_cli.objectives.{objective}").loss
        total = total + weight * loss(outputs, {"image": images})
    total.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


def test_the_start_beats_none_and_the_mean_image(trained_start: tuple[str, nn.Module]) -> None:
    name, model = trained_start
    unseen = smooth_images(32, seed=4)
    mean_image = smooth_images(96, seed=1).mean(0)
    assert error(model, unseen) < 0.3 * float((unseen - mean_image).square().mean())
    assert error(model, unseen) < 0.3 * error(build(name), unseen)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_same_twice_and_uses_the_seed(name: str) -> None:
    images = smooth_images(40, seed=5)
    first, second = started(name, images).state_dict(), started(name, images).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    other = started(name, images, seed=1).state_dict()
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", NAMES)
def test_no_images_are_refused_and_equal_or_single_images_stay_finite(name: str) -> None:
    with pytest.raises(ValueError, match="no images"):
        build(name).initialise(iter([]))
    for images in (torch.full((3, *SIZE), 0.5), torch.zeros(2, *SIZE), smooth_images(1, seed=6)):
        model = started(name, images)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert error(model, images) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_training_from_the_start_lowers_the_loss(name: str) -> None:
    module, images = architecture(name), smooth_images(64, seed=7)
    model = started(name, images)
    before = error(model, images)
    optimiser = torch.optim.AdamW(model.parameters(), lr=module.RECIPE["lr"], weight_decay=0.0)
    for step, batch in enumerate(images.split(8) * 5):
        optimiser.param_groups[0]["lr"] = module.RECIPE["lr"] * (1 - step / 40)
        optimiser.zero_grad()
        functional.mse_loss(model(batch)["reconstruction"], batch).backward()
        optimiser.step()
    assert error(model, images) < before


def test_streamed_components_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(8)
    vectors = torch.randn(90, 200, generator=generator) * torch.linspace(3, 0.1, 200) + 5
    centred = (vectors - vectors.mean(0)).double().numpy()
    singular, rows = numpy.linalg.svd(centred, full_matrices=False)[1:]
    exact = StreamingComponents()
    merged = StreamingComponents(capacity=40)  # merges once: 90 and the corrections of the mean exceed 80
    for batch in vectors.split(7):
        exact.update(batch)
        merged.update(batch)
    directions, variances = exact.components(20)
    torch.testing.assert_close(exact.mean, vectors.mean(0))
    numpy.testing.assert_allclose(variances, singular[:20] ** 2 / 90, rtol=1e-4)
    numpy.testing.assert_allclose(abs(directions.double().numpy() @ rows[:20].T), numpy.eye(20), atol=2e-3)
    kept = numpy.square(centred @ merged.components(20)[0].double().numpy().T).sum()
    assert kept > 0.99 * numpy.square(singular[:20]).sum()


def test_the_linear_start_is_no_worse_than_principal_components() -> None:
    images, unseen = smooth_images(300, seed=9), smooth_images(64, seed=10)
    model = started("linear", images)
    flat = images.flatten(1).double().numpy()
    mean = flat.mean(0)
    rows = numpy.linalg.svd(flat - mean, full_matrices=False)[2][:128]

    def residual(values: Tensor) -> float:
        deviation = values.flatten(1).double().numpy() - mean
        return float(numpy.square(deviation - deviation @ rows.T @ rows).mean())

    assert error(model, unseen) <= residual(unseen)


@pytest.mark.parametrize("count", [8, 30])
def test_the_linear_start_of_few_images_beats_their_components(count: int) -> None:
    images, unseen = smooth_images(count, seed=11), smooth_images(64, seed=12)
    flat = images.flatten(1)
    rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[: count - 1]
    deviation = unseen.flatten(1) - flat.mean(0)
    residual = float((deviation - deviation @ rows.T @ rows).square().mean())
    assert error(started("linear", images), unseen) < 0.8 * residual


def test_the_convolutional_start_is_near_the_best_linear_code_of_patches() -> None:
    images, unseen = smooth_images(96, seed=13), smooth_images(32, seed=14)
    model = started("conv", images)

    def blocks(values: Tensor) -> Tensor:
        return functional.pixel_unshuffle(values, 4).transpose(0, 1).flatten(1)

    mean = blocks(images).mean(1, keepdim=True)
    vectors = torch.linalg.svd(blocks(images) - mean, full_matrices=False).U[:, :4]
    deviation = blocks(unseen) - mean
    best = float((deviation - vectors @ (vectors.T @ deviation)).square().mean())
    assert error(model, unseen) < 1.5 * best
    with torch.no_grad():
        code = model.encode(unseen)
    assert (code > 0).float().mean() > 0.99  # the rectifier of the code lets it pass


def test_a_fitted_decoding_inverts_a_known_one() -> None:
    generator = torch.Generator().manual_seed(15)
    maps = torch.rand(8, 2, 12, 12, generator=generator) + 1
    weight, bias = torch.randn(2, 3, 6, 6, generator=generator), torch.randn(3, generator=generator)
    fitted = fit_decoding(maps, decode_linearly(maps, weight, bias))
    torch.testing.assert_close(decode_linearly(maps, *fitted), decode_linearly(maps, weight, bias), atol=2e-2, rtol=0)


def test_the_rectifiers_of_the_deep_start_are_transparent() -> None:
    images = smooth_images(40, seed=16)
    model = build("deep")
    filters = model.fit_convolutions(images)
    linear_maps = images
    for weight, bias in filters:
        linear_maps = encode_linearly(linear_maps, weight, bias)
    with torch.no_grad():
        positive, negative = model.analysis(images).chunk(2, dim=1)
    torch.testing.assert_close(positive - negative, linear_maps, atol=1e-4, rtol=1e-4)


def test_noise_moves_the_code_by_its_standard_deviation() -> None:
    model, images = started("vae", smooth_images(40, seed=17)), smooth_images(3, seed=18)
    noise = torch.randn(3, model.latent, generator=torch.Generator().manual_seed(19))
    with torch.no_grad():
        quiet, noisy = model(images), model(images, noise)
    torch.testing.assert_close(quiet["code"], quiet["mean"])
    torch.testing.assert_close(noisy["code"], noisy["mean"] + (0.5 * noisy["log_variance"]).exp() * noise)
    torch.testing.assert_close(noisy["mean"], quiet["mean"])
    assert not torch.allclose(noisy["reconstruction"], quiet["reconstruction"])


def test_the_log_variance_is_bounded_whatever_the_weights() -> None:
    model = build("vae")
    with torch.no_grad():
        model.log_variance_head.weight.mul_(1e6)
        log_variance = model(smooth_images(4, seed=20))["log_variance"]
    assert log_variance.abs().max() <= vae.LOG_VARIANCE_BOUND
    assert log_variance.abs().max() > 0.9 * vae.LOG_VARIANCE_BOUND  # the bound was what held


def test_the_variational_start_is_probabilistic_principal_components() -> None:
    images = smooth_images(200, seed=21)
    model = started("vae", images)
    with torch.no_grad():
        outputs = model(images)
        spread = outputs["mean"].square() + outputs["log_variance"].exp()
    # There the posterior, averaged over the data, is the standard normal prior in every active dimension.
    active = outputs["log_variance"].mean(0) < -1
    assert active.sum() > 32
    assert 0.5 < float(spread.mean(0)[active].mean()) < 1.5


def test_the_sample_is_given_out_again() -> None:
    batches = [torch.full((30, 1, 224, 112), float(index)) for index in range(6)]
    sample, stream = take_sample(iter(batches))
    assert len(sample) == SAMPLE // (224 * 112) == 128
    again = torch.cat(list(stream))
    assert torch.equal(again, torch.cat(batches))
    assert torch.equal(sample, again[:128])


def test_linear_has_no_activation() -> None:
    model, images = started("linear", smooth_images(20, seed=22)), smooth_images(2, seed=23)
    with torch.no_grad():
        middle = model.encode(images.mean(0, keepdim=True))
        torch.testing.assert_close(middle[0], model.encode(images).mean(0), atol=1e-4, rtol=1e-4)
    assert all(isinstance(part, (nn.Linear, nn.Sequential, linear.Model)) for part in model.modules())
