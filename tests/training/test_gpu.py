"""Training, embeddings, reconstructions and metrics on a GPU equal those on a processor. Run with -m gpu."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import Ran
from helpers.run_files import step_losses, weights

from cyclic_cli.config import TrainConfig
from cyclic_cli.inference.embed import embed_to_file
from cyclic_cli.inference.embed_inputs import from_dataset
from cyclic_cli.inference.embed_summary import EmbedSummary
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.registry import names
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training import run_log
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
GPU = "cuda"


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def joint(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "joint"
    settings = {"width": 4, "latent": 16}
    train(paired_dataset, folder, TrainConfig(objective="cyclic", model=settings, epochs=1, device="cpu"))
    return folder


@pytest.mark.parametrize("arch", names("models"))
@pytest.mark.parametrize(("precision", "tolerance"), [("32", 1e-3), ("bf16", 5e-2)])
def test_autoencoders_train_to_the_same_losses(
    arch: str, precision: str, tolerance: float, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = TrainConfig(arch=arch, epochs=2, batch_size=8, lr=1e-7, augment=0.2, precision=precision)
    train(tiny_dataset, tmp_path / "gpu", replace(config, device=GPU))
    train(tiny_dataset, tmp_path / "cpu", replace(config, device="cpu", precision="32"))
    losses = step_losses(tmp_path / "cpu")
    assert len(losses) == 6
    rounding = {"32": 0.0, "bf16": 2**-15}[precision]  # the square of the rounding of numbers up to 1 in bfloat16
    assert step_losses(tmp_path / "gpu") == pytest.approx(losses, rel=tolerance, abs=rounding)


@pytest.mark.parametrize("objective", ["contrastive", "cyclip", "cyclic"])
@pytest.mark.parametrize(("precision", "tolerance"), [("32", 2e-3), ("bf16", 5e-2)])
def test_image_text_models_train_to_the_same_losses(
    objective: str, precision: str, tolerance: float, paired_dataset: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        objective=objective, arch="deep", model={"width": 4, "latent": 16}, epochs=2, batch_size=32, lr=1e-6,
        paired_fraction=0.5, precision=precision,
    )  # fmt: skip
    train(paired_dataset, tmp_path / "gpu", replace(config, device=GPU))
    train(paired_dataset, tmp_path / "cpu", replace(config, device="cpu", precision="32"))
    losses = step_losses(tmp_path / "cpu")
    assert len(losses) >= 6
    assert step_losses(tmp_path / "gpu") == pytest.approx(losses, rel=tolerance)


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(tiny_dataset: Path, tmp_path: Path) -> None:
    config = TrainConfig(arch="linear", epochs=4, batch_size=8, device=GPU)

    def interrupt(event: object) -> None:
        if getattr(event, "epoch", 0) == 2:
            raise KeyboardInterrupt

    train(tiny_dataset, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_dataset, tmp_path / "stopped", config, report=interrupt)
    train(tiny_dataset, tmp_path / "stopped", config, resume="must")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.parametrize("arch", names("models"))
def test_images_are_embedded_and_reconstructed_alike(arch: str, tiny_dataset: Path, tmp_path: Path) -> None:
    train(tiny_dataset, tmp_path / "run", TrainConfig(arch=arch, epochs=1, batch_size=8, device="cpu"))
    stored = StoredDataset(tiny_dataset)
    table = stored.index(["shard", "row"])
    fitted = stored.images(table["shard"].to_numpy(), table["row"].to_numpy())
    on_gpu, on_cpu = (TorchModel(tmp_path / "run" / "model.safetensors", device) for device in (GPU, "cpu"))
    np.testing.assert_allclose(on_gpu.embed_images(fitted), on_cpu.embed_images(fitted), atol=2e-4)
    np.testing.assert_allclose(on_gpu.reconstruct(fitted), on_cpu.reconstruct(fitted), atol=1 / 255)


def test_texts_are_embedded_and_translated_alike(joint: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    found: dict[str, Any] = {}
    for device in (GPU, "cpu"):
        words = ("--model", joint, "--device", device, "--json")
        measured = cyclic("evaluate", paired_dataset, *words)
        assert measured.code == 0, measured.err
        drawn = cyclic("reconstruct", "--text", "Left disc.", "--to", "image", "--out", device, *words)
        assert drawn.code == 0, drawn.err
        found[device] = (measured.json["retrieval"]["image_to_text"], measured.json["reconstruction"])
    for mine, theirs in zip(found[GPU], found["cpu"], strict=True):
        assert _numbers(mine) == pytest.approx(_numbers(theirs), rel=0.02, abs=0.02)


def _numbers(tree: Any) -> list[float]:
    """All numbers of nested tables, in order."""
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in _numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in _numbers(value)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_a_batch_that_does_not_fit_into_gpu_memory_is_divided(joint: Path, paired_dataset: Path) -> None:
    model = TorchModel(joint / "model.safetensors", GPU)
    images = 0

    def needy(fitted: np.ndarray) -> np.ndarray:
        """The model, with an extra 40th of the GPU memory for each image."""
        nonlocal images
        total = torch.cuda.get_device_properties(0).total_memory
        taken = [torch.empty(total // 40, dtype=torch.uint8, device=GPU) for _ in fitted]
        images += len(taken)
        return TorchModel.embed_images(model, fitted)

    model.embed_images = needy  # type: ignore[method-assign]
    out = Path("e.parquet")
    summary = EmbedSummary()
    embed_to_file(from_dataset(paired_dataset, model, False, print), model, out, summary)
    assert summary.images == images == 160
