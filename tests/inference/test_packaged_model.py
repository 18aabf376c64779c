"""The packaged model: its embeddings of ten synthetic radiographs stay the same, with torch and with ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.makers import fitted

from cyclic_cli.data.views import ViewConfig, view
from cyclic_cli.inference.load import PACKAGED_EXPORT, PACKAGED_MODEL
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.phantom.dataset import write_demo

GOLDEN = Path(__file__).with_name("packaged_embeddings.json")
TOLERANCE = 1e-3  # per component: a tenth of the pixels off by one grey level change it by up to 8e-4


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Ten synthetic radiographs after preprocessing: (10, 1, 224, 224)."""
    folder = tmp_path_factory.mktemp("radiographs") / "demo"
    write_demo(folder, 10, seed=7)
    preprocessing = TorchModel(PACKAGED_MODEL).preprocessing
    return np.stack([fitted(path, preprocessing) for path in sorted(folder.rglob("*.dcm"))])


@pytest.mark.parametrize(
    "model", [TorchModel(PACKAGED_MODEL, "cpu"), OnnxModel(PACKAGED_EXPORT)], ids=["torch", "onnx"]
)
def test_embeddings_are_those_of_earlier_releases(model: TorchModel | OnnxModel, radiographs: np.ndarray) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert model.fingerprint == golden["model"]
    np.testing.assert_allclose(model.embed_images(radiographs), np.array(golden["embeddings"]), atol=TOLERANCE)


def test_checkpoint_and_export_are_the_same_model(radiographs: np.ndarray) -> None:
    by_torch, by_onnx = TorchModel(PACKAGED_MODEL, "cpu"), OnnxModel(PACKAGED_EXPORT)
    assert by_torch.fingerprint == by_onnx.fingerprint
    assert by_torch.preprocessing == by_onnx.preprocessing
    np.testing.assert_allclose(by_onnx.reconstruct(radiographs), by_torch.reconstruct(radiographs), atol=1e-4)
    np.testing.assert_allclose(by_onnx.embed_images(radiographs), by_torch.embed_images(radiographs), atol=1e-4)


def test_a_view_of_a_radiograph_is_most_similar_to_another_view_of_it(radiographs: np.ndarray) -> None:
    """For half of the draws at least; by chance it would be a tenth."""
    model, keys = TorchModel(PACKAGED_MODEL, "cpu"), np.arange(len(radiographs), dtype=np.uint64)
    images = torch.from_numpy(radiographs / np.float32(255))
    found = []
    for seed in range(3):
        views = [view(images, keys, ViewConfig(crop=0.7), 1.0, seed, 0, number) for number in (0, 1)]
        first, second = (model.embed("image", one) for one in views)
        found += list((first @ second.T).argmax(1) == np.arange(len(radiographs)))
    assert np.mean(found) >= 0.5


def test_checkpoint_and_export_are_small() -> None:
    assert PACKAGED_MODEL.stat().st_size + PACKAGED_EXPORT.stat().st_size <= 3 * 2**20
