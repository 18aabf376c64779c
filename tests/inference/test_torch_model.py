"""Checkpoints whose weights do not fit their architecture are refused."""

from pathlib import Path

import numpy as np
import pytest

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.models.linear import Config, Model
from cyclic_cli.storage.checkpoint import Checkpoint, write_checkpoint


@pytest.mark.parametrize("kind", [np.float64, np.int32, np.float16])
def test_weights_of_another_type_or_too_few_are_refused(kind: type, tmp_path: Path) -> None:
    weights = {name: value.numpy() for name, value in Model(Config(latent=4), (1, 32, 32)).state_dict().items()}
    architecture = {"name": "linear", "config": {"latent": 4}, "image_shape": [1, 32, 32]}

    def written(weights: dict[str, np.ndarray]) -> Path:
        parts = Checkpoint(
            weights=weights, architecture=architecture, preprocessing=Preprocessing(size=32), provenance={}
        )
        write_checkpoint(tmp_path / "m.safetensors", parts)
        return tmp_path / "m.safetensors"

    assert TorchModel(written(weights)).module is not None
    for changed in ({name: value.astype(kind) for name, value in weights.items()}, dict(list(weights.items())[1:])):
        with pytest.raises(CyclicError, match="does not fit the architecture"):
            TorchModel(written(changed))
