"""Every architecture of the package: the contract in `cyclic_cli.models`, and the quality of the initialisation."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cyclic_cli.models
import cyclic_cli.objectives
from cyclic_cli.config import TrainConfig
from cyclic_cli.models import conv, deep, linear, residual, vae
from cyclic_cli.models._components import (
    SAMPLE,
    StreamingComponents,
    patch_components,
    take_sample,
    with_displaced,
)
from cyclic_cli.models._embedding import EmbeddingNetwork, reduced
from cyclic_cli.models._layers import Enlargement, PooledConvolution, use_fusion
from cyclic_cli.models._spectrum import covariance_roots, minimise, periodic
from cyclic_cli.models.deep import linear_maps


def names_in(package: ModuleType) -> list[str]:
    return [found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_")]


NAMES = names_in(cyclic_cli.models)
SIZE = (1, 64, 64)


def architecture(name: str) -> ModuleType:
    return import_module(f"cyclic_cli.models.{name}")


@pytest.fixture(scope="module", autouse=True)
def short_fit() -> Iterator[None]:
    """Limit the fit of the convolutional model to the spectrum, which takes seconds otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "ITERATIONS", 100)
        yield


@pytest.fixture
def very_short_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the fit further, for tests that initialise many models and do not need a good fit."""
    monkeypatch.setattr(conv, "ITERATIONS", 5)


def smooth_images(count: int, seed: int, shape: tuple[int, int, int] = SIZE) -> Tensor:
    """Noise with the falling spectrum of natural images, in [0, 1]: (count, C, H, W)."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft2(noise)
    vertical = torch.fft.fftfreq(shape[1])[:, None] * shape[1]
    horizontal = torch.fft.rfftfreq(shape[2])[None] * shape[2]
    images = torch.fft.irfft2(spectrum / (1 + vertical**2 + horizontal**2) ** 0.9, s=shape[1:])
    return (0.5 + 0.2 * images / images.std()).clamp(0, 1)


def build(name: str, shape: tuple[int, int, int] = SIZE, seed: int = 0, **settings: int) -> nn.Module:
    torch.manual_seed(seed)
    module = architecture(name)
    model: nn.Module = module.Model(module.Config(**settings), shape)
    return model


def initialised(name: str, images: Tensor, seed: int = 0, **settings: int) -> nn.Module:
    model = build(name, tuple(images.shape[1:]), seed, **settings)
    model.initialise(iter(images.split(16)))
    return model


@cache
def shared_model(name: str) -> nn.Module:
    """The model of an architecture, initialised from 96 synthetic images. Tests share it and must not change it."""
    return initialised(name, smooth_images(96, seed=1))


@pytest.fixture(params=NAMES)
def named_model(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """The name of an architecture, and its initialised model from `shared_model`."""
    return request.param, shared_model(request.param)


def error(model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float(functional.mse_loss(model(images)["reconstruction"], images))


def pca_error(images: Tensor, unseen: Tensor, number: int) -> float:
    """Mean squared error of unseen images after projection on `number` principal components of images, by numpy."""
    flat = images.flatten(1).double().numpy()
    mean = flat.mean(0)
    rows = numpy.linalg.svd(flat - mean, full_matrices=False)[2][:number]
    deviation = unseen.flatten(1).double().numpy() - mean
    return float(numpy.square(deviation - deviation @ rows.T @ rows).mean())


def block_pca_error(images: Tensor, unseen: Tensor, number: int, side: int) -> float:
    """The same for non-overlapping blocks of the images, `side` pixels wide."""
    blocks, others = (
        functional.pixel_unshuffle(values, side).transpose(0, 1).flatten(1).T for values in (images, unseen)
    )
    return pca_error(blocks, others, number)


def test_the_expected_architectures_exist() -> None:
    assert {"linear", "conv", "deep", "vae", "residual"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_meets_the_contract(name: str) -> None:
    module = architecture(name)
    assert {"reconstruction", "code"} <= set(module.OUTPUTS)
    assert set(module.OBJECTIVES) <= set(names_in(cyclic_cli.objectives))
    for objective in module.OBJECTIVES:
        assert set(import_module(f"cyclic_cli.objectives.{objective}").NEEDS) <= set(module.OUTPUTS)
    needed = {"lr", "batch_size", "weight_decay", "warmup"}
    assert needed <= set(module.RECIPE) <= needed | {"augment", "fitted_lr"}
    model = build(name)
    assert all(isinstance(getattr(model, part), nn.Module) for part in getattr(module, "FITTED", ()))
    assert ("fitted_lr" in module.RECIPE) == hasattr(module, "FITTED")
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
    ("name", "settings", "shape"),
    [
        ("linear", {}, (128,)),
        ("conv", {}, (4, 56, 56)),
        ("deep", {}, (256,)),
        ("vae", {}, (256,)),
        ("residual", {}, (256,)),
        ("residual", {"latent": 4, "reduction": 8}, (4, 28, 28)),
    ],
)
def test_code_shapes_at_224_pixels(name: str, settings: dict[str, int], shape: tuple[int, ...]) -> None:
    images = torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        outputs = build(name, (1, 224, 224), **settings)(images)
    assert outputs["code"].shape == (1, *shape)
    assert outputs["reconstruction"].shape == images.shape


@pytest.mark.parametrize("name", NAMES)
def test_impossible_image_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="height of the images is 31 pixels"):
        build(name, (1, 31, 64))
    with pytest.raises(ValueError, match="channel"):
        build(name, (0, 64, 64))


@pytest.mark.parametrize("name", ["conv", "deep", "vae", "residual"])
def test_sides_that_cannot_be_halved_often_enough_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="width of the images is 66 pixels; it must be a multiple"):
        build(name, (1, 64, 66))


@pytest.mark.parametrize("name", NAMES)
def test_a_code_without_dimensions_is_refused(name: str) -> None:
    module = architecture(name)
    with pytest.raises(ValueError, match="between 1 and"):
        module.Model(module.Config(latent=0), SIZE)


@pytest.mark.parametrize(("module", "width"), [(conv, 15), (deep, 15), (vae, 12), (residual, 12), (residual, 0)])
def test_widths_that_cannot_be_paired_or_grouped_are_refused(module: ModuleType, width: int) -> None:
    with pytest.raises(ValueError, match="width must be"):
        module.Model(module.Config(width=width), SIZE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 3}, "the reduction must be 2, 4, 8, 16 or null, not 3"),
        ({"reduction": 32}, "not 32"),
        ({"reduction": 2, "latent": 5}, "between 1 and 4 maps, not 5"),
        ({"reduction": 8, "latent": 0}, "between 1 and 64 maps, not 0"),
        ({"latent": 4097}, "between 1 and 4096 dimensions, not 4097"),
    ],
    ids=str,
)
def test_impossible_codes_of_the_residual_architecture_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("residual", **settings)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 96)], ids=str)
@pytest.mark.parametrize("reduction", [2, 4, 8, 16])
def test_a_code_of_maps_has_the_reduced_sides(reduction: int, shape: tuple[int, int, int]) -> None:
    model, images = build("residual", shape, latent=3, reduction=reduction), torch.rand(2, *shape)
    with torch.no_grad():
        outputs = model(images)
        torch.testing.assert_close(model.decode(model.encode(images)), outputs["reconstruction"])
    assert outputs["code"].shape == (2, 3, shape[1] // reduction, shape[2] // reduction)
    assert outputs["reconstruction"].shape == images.shape


def test_a_result_does_not_depend_on_the_rest_of_the_batch(named_model: tuple[str, nn.Module]) -> None:
    _, model = named_model
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    images = smooth_images(5, seed=2)
    model.train()
    with torch.no_grad():
        together = model(images)
        for index in range(len(images)):
            alone = model(images[index : index + 1])
            for output, value in alone.items():
                torch.testing.assert_close(value[0], together[output][index], rtol=1e-5, atol=1e-5)


def test_parameters_are_single_precision_and_all_have_a_gradient(named_model: tuple[str, nn.Module]) -> None:
    name, model = named_model[0], deepcopy(named_model[1])
    images = smooth_images(8, seed=3)
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


def test_the_initialisation_beats_random_weights_and_the_mean_image(named_model: tuple[str, nn.Module]) -> None:
    name, model = named_model
    unseen = smooth_images(32, seed=4)
    mean_image = smooth_images(96, seed=1).mean(0)
    assert error(model, unseen) < 0.3 * float((unseen - mean_image).square().mean())
    assert error(model, unseen) < 0.3 * error(build(name), unseen)


@pytest.mark.usefixtures("very_short_fit")
@pytest.mark.parametrize("name", NAMES)
def test_the_initialisation_is_reproducible_and_uses_the_seed(name: str) -> None:
    images = smooth_images(40, seed=5)
    first, second = initialised(name, images).state_dict(), initialised(name, images).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    other = initialised(name, images, seed=1).state_dict()
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in NAMES), ("residual", {"latent": 4, "reduction": 4})]
)
def test_no_images_are_refused_and_equal_or_single_images_give_finite_weights(
    name: str, settings: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="no images"):
        build(name, **settings).initialise(iter([]))
    for images in (torch.full((3, *SIZE), 0.5), torch.zeros(2, *SIZE), smooth_images(1, seed=6)):
        model = initialised(name, images, **settings)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert error(model, images) < 1e-3


def test_training_after_the_initialisation_lowers_the_loss(named_model: tuple[str, nn.Module]) -> None:
    name, model = named_model[0], deepcopy(named_model[1])
    module, images = architecture(name), smooth_images(64, seed=7)
    before = error(model, images)
    shares = dict.fromkeys(model.parameters(), 1.0)
    for part in getattr(module, "FITTED", ()):
        shares |= dict.fromkeys(getattr(model, part).parameters(), module.RECIPE["fitted_lr"])
    groups = [{"params": [parameter], "share": share} for parameter, share in shares.items()]
    optimiser = torch.optim.AdamW(groups, lr=module.RECIPE["lr"], weight_decay=0.0)
    for step, batch in enumerate(images.split(8) * 5):
        for group in optimiser.param_groups:
            group["lr"] = module.RECIPE["lr"] * group["share"] * (1 - step / 40)
        optimiser.zero_grad()
        functional.mse_loss(model(batch)["reconstruction"], batch).backward()
        optimiser.step()
    assert error(model, images) < before


def test_streamed_components_equal_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(8)
    vectors = torch.randn(90, 200, generator=generator) * torch.linspace(3, 0.1, 200) + 5
    centred = (vectors - vectors.mean(0)).double().numpy()
    singular, rows = numpy.linalg.svd(centred, full_matrices=False)[1:]
    exact = StreamingComponents()
    merged = StreamingComponents(capacity=40)  # merges once: there are more than 80 rows
    for batch in vectors.split(7):
        exact.update(batch)
        merged.update(batch)
    directions, variances = exact.components(20)
    torch.testing.assert_close(exact.mean, vectors.mean(0))
    numpy.testing.assert_allclose(variances, singular[:20] ** 2 / 90, rtol=1e-4)
    numpy.testing.assert_allclose(abs(directions.double().numpy() @ rows[:20].T), numpy.eye(20), atol=2e-3)
    kept = numpy.square(centred @ merged.components(20)[0].double().numpy().T).sum()
    assert kept > 0.99 * numpy.square(singular[:20]).sum()


def test_the_initialised_linear_model_is_no_worse_than_principal_components() -> None:
    images, unseen = smooth_images(300, seed=9), smooth_images(64, seed=10)
    assert error(initialised("linear", images), unseen) <= pca_error(images, unseen, 128)


@pytest.mark.parametrize("side", [64, 96], ids=["whole", "reduced"])
def test_the_initialised_residual_model_is_about_as_good_as_principal_components(side: int) -> None:
    shape = (1, side, side)
    images, unseen = smooth_images(200, seed=9, shape=shape), smooth_images(64, seed=10, shape=shape)
    model = initialised("residual", images, latent=64)
    assert model.linear.factor == side // 48
    assert error(model, unseen) < 1.05 * pca_error(images, unseen, 64)


@pytest.mark.parametrize(("latent", "reduction"), [(2, 2), (4, 4), (4, 8)])
def test_the_initialised_residual_model_of_maps_is_no_worse_than_components_of_blocks(
    latent: int, reduction: int
) -> None:
    images, unseen = smooth_images(96, seed=13), smooth_images(32, seed=14)
    model = initialised("residual", images, latent=latent, reduction=reduction)
    assert error(model, unseen) <= block_pca_error(images, unseen, latent, reduction)


@pytest.mark.parametrize("count", [8, 30])
def test_the_linear_model_initialised_from_few_images_beats_their_components(count: int) -> None:
    images, unseen = smooth_images(count, seed=11), smooth_images(64, seed=12)
    assert error(initialised("linear", images), unseen) < 0.8 * pca_error(images, unseen, count - 1)


def test_the_initialised_convolutional_model_beats_the_best_linear_code_of_blocks() -> None:
    images, unseen = smooth_images(96, seed=1), smooth_images(32, seed=14)
    model = shared_model("conv")
    assert error(model, unseen) < 0.9 * block_pca_error(images, unseen, 4, 4)
    with torch.no_grad():
        code = model.encode(unseen)
    assert (code > 0).float().mean() > 0.99  # almost no value of the code is cut off by its rectifier


def test_the_rectifiers_of_the_initialised_deep_model_pass_the_linear_maps() -> None:
    images = smooth_images(40, seed=16)
    model = build("deep")
    filters = model.fit_convolutions(images)
    with torch.no_grad():
        positive, negative = model.analysis(images).chunk(2, dim=1)
    torch.testing.assert_close(positive - negative, linear_maps(images, filters), atol=1e-3, rtol=1e-3)


def test_the_convolutional_architecture_equals_plain_torch_layers() -> None:
    def reduction(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.ReplicationPad2d(2), nn.Conv2d(inputs, outputs, 5, bias=False),
            nn.Conv2d(outputs, outputs, 2, stride=2, groups=outputs), nn.ReLU(),
        ]  # fmt: skip

    def enlargement(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ReplicationPad2d(1), nn.ConvTranspose2d(inputs, outputs, 6, stride=2, padding=4)]

    plain = nn.Sequential(*reduction(1, 16), *reduction(16, 4), *enlargement(4, 16), nn.ReLU(), *enlargement(16, 1))
    model, images = deepcopy(shared_model("conv")), smooth_images(4, seed=24)
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    with torch.no_grad():
        expected = plain(images)
        for fuse in (True, False):
            use_fusion(model, fuse)
            torch.testing.assert_close(model(images)["reconstruction"], expected, rtol=1e-4, atol=1e-5)


def pooled(inputs: int, outputs: int, kernel: int) -> tuple[PooledConvolution, nn.Sequential]:
    """A pooled convolution, and its equivalent in torch layers."""
    convolution = nn.Conv2d(inputs, outputs, kernel, bias=False)
    pooling = nn.Conv2d(outputs, outputs, 2, stride=2, groups=outputs)
    return PooledConvolution(inputs, outputs, kernel), nn.Sequential(
        nn.ReplicationPad2d(kernel // 2), convolution, pooling
    )


def enlarging(inputs: int, outputs: int) -> tuple[Enlargement, nn.Sequential]:
    """An enlargement, and its equivalent in torch layers."""
    transposed = nn.ConvTranspose2d(inputs, outputs, 6, stride=2, padding=4)
    return Enlargement(inputs, outputs), nn.Sequential(nn.ReplicationPad2d(1), transposed)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: pooled(1, 6, 5), lambda: pooled(3, 4, 3), lambda: enlarging(5, 1), lambda: enlarging(3, 4),
        lambda: enlarging(2, 7),
    ],
    ids=["pooled 5", "pooled 3", "enlarging to 1", "enlarging to 4", "enlarging to 7"],
)  # fmt: skip
def test_fused_layers_give_the_outputs_and_gradients_of_plain_ones(
    make: Callable[[], tuple[nn.Module, nn.Sequential]], form: torch.memory_format, fuse: bool
) -> None:
    torch.manual_seed(25)
    layer, plain = (part.double() for part in make())
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    plain.load_state_dict(dict(zip(plain.state_dict(), layer.state_dict().values(), strict=True)))
    use_fusion(layer, fuse)
    layer.to(memory_format=form)
    maps = torch.randn(2, next(plain[1].parameters()).shape[1 - plain[1].transposed], 10, 14, dtype=torch.float64)
    maps = maps.contiguous(memory_format=form).requires_grad_()
    result, expected = layer(maps), plain(maps)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((result * weights).sum(), [maps, *layer.parameters()])
    wanted = torch.autograd.grad((expected * weights).sum(), [maps, *plain.parameters()])
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_pooling_is_a_mean_before_it_is_trained() -> None:
    layer, maps = PooledConvolution(2, 3, 3), torch.rand(2, 2, 8, 8)
    nn.init.zeros_(layer.pooling.bias)
    with torch.no_grad():
        padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
        torch.testing.assert_close(layer(maps), functional.avg_pool2d(layer.convolution(padded), 2))


def test_components_of_patches_equal_those_of_numpy() -> None:
    maps = torch.randn(5, 2, 8, 12, generator=torch.Generator().manual_seed(26)) + torch.tensor([[[3.0]], [[-1.0]]])
    components, mean = patch_components(maps, 10)
    numpy.testing.assert_allclose(mean, maps.numpy().mean((0, 2, 3)), rtol=1e-5)
    centred = (maps - mean[:, None, None]).double().numpy()
    patches = [
        centred[image, :, row : row + 2, column : column + 2].ravel()
        for image in range(5) for row in range(0, 8, 2) for column in range(0, 12, 2)
    ]  # fmt: skip
    expected = numpy.linalg.svd(numpy.array(patches))[2]
    found = components.flatten(1).double().numpy()
    numpy.testing.assert_allclose(abs(found[:8] @ expected.T), numpy.eye(8), atol=1e-4)
    assert not found[8:].any()


def stationary_images() -> Tensor:
    """A periodic pattern (2, 32, 32) displaced to 64 places. Its products with a smooth window average exactly."""
    pattern = smooth_images(1, seed=27, shape=(2, 32, 32))[0]
    return torch.stack([pattern.roll((down, right), (1, 2)) for down in range(0, 32, 4) for right in range(0, 32, 4)])


def test_roots_of_the_covariance_have_the_power_spectrum_of_the_images() -> None:
    images, stride = stationary_images(), 4
    roots = covariance_roots(images, stride).double().numpy()
    assert roots.shape == (stride**2 * 2, 2, 32, 32)
    waves = numpy.fft.fft2(images[0].double().numpy() - images.double().numpy().mean((0, 2, 3))[:, None, None])
    power = numpy.abs(waves) ** 2 / 32**2  # (2, 32, 32)
    numpy.testing.assert_allclose(numpy.square(roots).sum(), stride**2 * power.sum() / 32**2, rtol=1e-4)
    blurred = sum(  # blurred by the transform of the Hann window
        weight * other * numpy.roll(power, (down, right), (1, 2))
        for down, weight in ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6))
        for right, other in ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6))
    )
    found = (numpy.abs(numpy.fft.fft2(roots[:2])) ** 2).sum(0)
    numpy.testing.assert_allclose(found, blurred, rtol=1e-3, atol=1e-5 * blurred.max())


@pytest.mark.parametrize("stride", [2, 4])
def test_the_error_on_the_covariance_roots_is_the_expected_error_on_images(stride: int) -> None:
    generator = torch.Generator().manual_seed(28)
    analysis = torch.randn(2, 1, 3 * stride, 3 * stride, generator=generator) / stride**2
    synthesis = torch.randn(2, 1, 3 * stride, 3 * stride, generator=generator) / stride**2

    def squares(images: Tensor) -> Tensor:
        code = functional.conv2d(periodic(images, stride), analysis, stride=stride)
        result = functional.conv_transpose2d(periodic(code, 1), synthesis, stride=stride, padding=2 * stride)
        return (result - images).square()

    noise = torch.randn(100, 1, 64, 64, generator=generator)
    images = functional.avg_pool2d(periodic(noise, 2), 5, 1)  # pixels that are 5 apart are independent
    expected = squares(covariance_roots(images, stride)).sum() / stride**2
    assert float(expected) == pytest.approx(float(squares(images - images.mean()).mean()), rel=0.05)


def test_minimise_finds_a_known_minimum() -> None:
    x, y = torch.tensor([-1.2]), torch.tensor([1.0])
    minimise(lambda: ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum(), [x, y], 200)  # the Rosenbrock function
    assert (float(x), float(y)) == pytest.approx((1, 1), abs=1e-3)
    assert not x.requires_grad


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: 0 * x.sum(),
        lambda x: x.sum() * torch.nan,
        lambda x: (x - 1.999).sqrt().sum(),  # the first step leaves the domain of the root
        lambda x: 1 + (x - x.detach()).sum(),  # constant, although its gradient is not zero
        lambda x: 1 + (x - x.detach()).sum() + (x.detach() - 2).square().sum(),
    ],
    ids=["zero", "not a number", "not a number elsewhere", "constant", "already minimal"],
)
def test_minimise_restores_the_parameters_when_nothing_improves(loss: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([2.0])
    minimise(lambda: loss(x), [x], 20)
    assert x.tolist() == [2.0]
    assert not x.requires_grad


def test_noise_changes_the_code_by_its_standard_deviation() -> None:
    model, images = initialised("vae", smooth_images(40, seed=17)), smooth_images(3, seed=18)
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
    assert log_variance.abs().max() > 0.9 * vae.LOG_VARIANCE_BOUND  # close to the bound, so the bound was active


def test_the_initialised_variational_model_is_probabilistic_pca() -> None:
    images = smooth_images(200, seed=21)
    model = initialised("vae", images)
    with torch.no_grad():
        outputs = model(images)
        spread = outputs["mean"].square() + outputs["log_variance"].exp()
    # At this optimum the posterior, averaged over the data, is the standard normal prior in every active dimension.
    active = outputs["log_variance"].mean(0) < -1
    assert active.sum() > 32
    assert 0.5 < float(spread.mean(0)[active].mean()) < 1.5


def test_the_stream_still_contains_the_sample() -> None:
    batches = [torch.full((30, 1, 224, 112), float(index)) for index in range(6)]
    sample, stream = take_sample(iter(batches))
    assert len(sample) == SAMPLE // (224 * 112) == 128
    again = torch.cat(list(stream))
    assert torch.equal(again, torch.cat(batches))
    assert torch.equal(sample, again[:128])


def test_the_linear_model_has_no_activation() -> None:
    model, images = initialised("linear", smooth_images(20, seed=22)), smooth_images(2, seed=23)
    with torch.no_grad():
        middle = model.encode(images.mean(0, keepdim=True))
        torch.testing.assert_close(middle[0], model.encode(images).mean(0), atol=1e-4, rtol=1e-4)
    assert all(isinstance(part, (nn.Linear, nn.Sequential, linear.Model)) for part in model.modules())


def test_images_are_joined_by_copies_with_opposite_shifts() -> None:
    images = torch.rand(2, 1, 64, 64)
    torch.manual_seed(3)
    result = with_displaced(images)
    assert result.shape == (6, 1, 64, 64)
    assert torch.equal(result[:2], images)
    shifts = [
        (down, right) for down in range(-16, 17) for right in range(-16, 17)
        if torch.equal(images.roll((down, right), (2, 3)), result[2:4])
    ]  # fmt: skip
    assert len(shifts) == 1
    assert shifts[0] != (0, 0)
    assert torch.equal(images.roll((-shifts[0][0], -shifts[0][1]), (2, 3)), result[4:])


def test_the_default_architecture_is_the_recommended_one() -> None:
    files = {name: import_module(f"cyclic_cli.models.{name}") for name in NAMES}
    assert [name for name, file in files.items() if "(recommended)" in (file.__doc__ or "")] == [TrainConfig.arch]


@pytest.mark.parametrize("features", [torch.zeros(5, 6), torch.ones(5, 6), torch.eye(6)[:1]], ids=str)
def test_whitening_of_features_that_do_not_vary_is_finite(features: Tensor) -> None:
    network = EmbeddingNetwork(1, 6)
    network.whiten(features)
    assert network.whitening(features).isfinite().all()


@pytest.mark.parametrize("side", [32, 64, 224, 228])
def test_the_embedding_network_averages_large_images_first(side: int) -> None:
    torch.manual_seed(0)
    network = EmbeddingNetwork(1, 6)
    image = torch.rand(2, 1, side, side)
    small = image.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5)) if side == 224 else image
    torch.testing.assert_close(reduced(image), small)
    assert network(image).shape == (2, 6)
    torch.testing.assert_close(network(image), network(small))
