"""Which pretrained encoder a path holds, told by its content, and an encoder made again from its facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import MODALITIES, EncoderFacts, PretrainedEncoder

OUTPUTS = "#"  # between the path of an ONNX file and the names of its outputs
PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # endings of files that hold weights as a pickle
POSSIBLE = (
    "Give a folder that save_pretrained of transformers wrote, a sentence-transformers or open_clip folder, an .onnx "
    "file, or a run of cyclic."
)


def open_encoder(
    path: str, modality: str, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    """Return the encoder at a path.

    Args:
        path: A folder or file. Names of outputs may follow an ONNX file: `encoder.onnx#features,embedding`.
        modality: What it shall encode, image or text.
        image_shape: (C, S, S) of the dataset; None where none is known.
        overrides: `mean` and `std` of images by channel, a number or a list. They come before those of the encoder.

    Raises:
        UsageError: Nothing says how images are normalised, or the encoder is of the other modality.
        CyclicError: There is no encoder, it is damaged, or it cannot be used.
    """
    if modality not in MODALITIES:
        raise UsageError(f"There are no pretrained encoders of {modality}s.", f"Known are {' and '.join(MODALITIES)}.")
    file, _, names = path.partition(OUTPUTS) if not Path(path).exists() else (path, "", "")
    place = Path(file)
    if not place.exists():
        raise CyclicError(f"There is no encoder {file}.", "Check the path. Encoders are not downloaded.")
    if place.suffix == ".onnx" and place.is_file():
        from cyclic_cli.pretrained import onnx_graph

        outputs = tuple(name for name in names.split(",") if name)
        return onnx_graph.open_graph(place, outputs, modality, image_shape, overrides)
    if names:
        raise UsageError(f"{file} is not an ONNX file, so outputs cannot be chosen.", f"Leave out {OUTPUTS}{names}.")
    if place.is_file():
        return _open_file(place, modality, image_shape, overrides)
    return _open_folder(place, modality, image_shape, overrides)


def is_missing(path: str) -> bool:
    """Whether there is no file or folder at the path of an encoder, see `open_encoder`."""
    return not (Path(path).exists() or Path(path.partition(OUTPUTS)[0]).exists())


def rebuild(facts: EncoderFacts, file: Path | None = None) -> PretrainedEncoder:
    """Return an encoder without its weights, or an ONNX encoder with its graph from a file.

    Raises CyclicError when the facts are damaged, or the file is not that of the encoder.
    """
    match facts.kind:
        case "transformers":
            from cyclic_cli.pretrained import transformers_folder

            return transformers_folder.rebuild(facts)
        case "open_clip":
            from cyclic_cli.pretrained import open_clip_folder

            return open_clip_folder.rebuild(facts)
        case "cyclic":
            from cyclic_cli.pretrained import own_run

            return own_run.rebuild(facts)
        case "onnx" if file is not None:
            from cyclic_cli.pretrained import onnx_graph

            return onnx_graph.rebuild(facts, file)
    raise CyclicError(f"An encoder of kind {facts.kind!r} cannot be made again.", "Update cyclic.")


def _open_file(
    path: Path, modality: str, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    """The encoder in a single file: a checkpoint of this program."""
    if path.suffix != ".safetensors":
        raise CyclicError(f"{path} is not an encoder.", POSSIBLE)
    if (path.parent / "config.json").is_file() or (path.parent / "open_clip_config.json").is_file():
        raise UsageError(f"{path} is only the weights of an encoder.", f"Give its folder: {path.parent}")
    from cyclic_cli.pretrained import own_run

    return own_run.open_run(path, modality, image_shape, overrides)


def _open_folder(
    path: Path, modality: str, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    """The encoder in a folder. One of open_clip may hold a `config.json` beside its own settings."""
    if (path / "open_clip_config.json").is_file():
        from cyclic_cli.pretrained import open_clip_folder

        return open_clip_folder.open_folder(path, modality, image_shape, overrides)
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        from cyclic_cli.pretrained import transformers_folder

        return transformers_folder.open_folder(path, modality, image_shape, overrides)
    if (path / "model.safetensors").is_file() and (path / "config.yaml").is_file():
        from cyclic_cli.pretrained import own_run

        return own_run.open_run(path, modality, image_shape, overrides)
    if graph := min(path.glob("*.onnx"), default=None):
        raise UsageError(f"{path} is a folder of ONNX files.", f"Name one of them: --{modality}-encoder {graph}")
    if pickled := min((file for ending in PICKLES for file in path.glob(f"*{ending}")), default=None):
        raise CyclicError(
            f"{path} holds weights as a pickle ({pickled.name}), which is not read, and no config.json.",
            "Copy the whole folder of the model; then its config.json tells how to convert the weights.",
        )
    raise CyclicError(f"{path} holds no encoder.", POSSIBLE)
