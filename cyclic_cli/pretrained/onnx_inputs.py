"""What an ONNX file must be to serve as an encoder: its inputs, and what its metadata and its tokenizer state."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import EncoderFacts
from cyclic_cli.pretrained.folder_files import LONGEST
from cyclic_cli.pretrained.geometry import SIZES
from cyclic_cli.storage import onnx_file

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # names of ONNX Runtime
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
REQUIRED, OPTIONAL = ("input_ids", "attention_mask"), ("token_type_ids", "position_ids")  # inputs of texts
LONGEST_WINDOW = 2**16  # tokens of a window; some tokenizers state an absurd number where they know none
OWN_PARTS = ("encoder", "autoencoder", "image-encoder")  # of `cyclic export`: those that encode images
OWN_OUTPUTS = ("code", "embedding")  # their outputs that are features
AGAIN = "Export it again in evaluation mode, with a dynamic batch."


def image_input(ports: Sequence[Any], where: str) -> tuple[Any, int, int | None]:
    """Return batch (an int where it is fixed), channels, and size (None: any) of the input of an image encoder.

    Args:
        ports: The inputs of a session of ONNX Runtime, with `name`, `type` and `shape`.
        where: The file, for messages.

    Raises UsageError for an encoder of texts, and CyclicError when the input is none of images.
    """
    names = [port.name for port in ports]
    if REQUIRED[0] in names and len(names) > 1:
        raise UsageError(f"{where} takes {', '.join(names)}: it encodes texts.", f"Give it as --text-encoder {where}")
    if len(names) != 1:
        raise CyclicError(
            f"{where} has {len(names)} inputs ({', '.join(names)}); an image encoder has one.",
            "Export the image encoder alone.",
        )
    port = ports[0]
    if port.type not in FLOATS:
        raise CyclicError(
            f"The input of {where} is {port.type}; images are float32 or float16.",
            "Export the network without what comes before it.",
        )
    if len(port.shape) != 4 or port.shape[1] not in (1, 3):
        shape = " × ".join(str(side) for side in port.shape) or "of unknown shape"
        raise CyclicError(
            f"The input of {where} is {shape}; images are batch × 1 or 3 channels × height × width.",
            "Export the network again with such an input.",
        )
    batch, channels, *sides = port.shape
    if isinstance(batch, int) and batch != 1:
        raise CyclicError(f"{where} takes batches of {batch} images only.", AGAIN)
    fixed = {side for side in sides if isinstance(side, int)}
    if len(fixed) > 1 or not all(SIZES[0] <= side <= SIZES[1] for side in fixed):
        raise CyclicError(
            f"{where} takes images of {sides[0]} × {sides[1]} pixels.",
            f"Export it for square images of {SIZES[0]} to {SIZES[1]} pixels per side.",
        )
    return batch, channels, fixed.pop() if fixed else None


def own_file(path: Path, facts: EncoderFacts) -> tuple[EncoderFacts, dict[str, str], Sequence[str]]:
    """Return facts, metadata and possible outputs of a file that `cyclic export` made.

    Raises UsageError for another part than an encoder of images, and for one that includes its preprocessing.
    """
    _, described = onnx_file.read(path)
    if facts.modality != "image" or described.part not in OWN_PARTS:
        raise UsageError(
            f"{path} is the part {described.part} of a model of cyclic, and no {facts.modality} encoder.",
            "Give the run folder that it was exported from.",
        )
    if described.rendered:
        raise UsageError(f"{path} includes its preprocessing.", "Export it without --with-preprocessing.")
    facts = replace(facts, family=str(described.architecture["name"]), licence=described.licence)
    return facts, {"mean": "0", "std": "1"}, OWN_OUTPUTS


def stated_licence(metadata: Mapping[str, str]) -> str:
    """Return the licence of the metadata in one line, empty where they state none."""
    return " ".join((metadata.get("license") or metadata.get("licence") or "").split())[:LONGEST]


def stated_normalisation(metadata: Mapping[str, str], where: str) -> dict[str, list[float]]:
    """Return `mean` and `std` of the metadata, as far as they are there: JSON, or numbers with commas between them."""
    found = {}
    for name in ("mean", "std"):
        text = metadata.get(name) or metadata.get(f"image_{name}")
        if text:
            try:
                found[name] = [float(number) for number in text.strip().strip("[]()").split(",")]
            except ValueError:
                raise CyclicError(
                    f"{name} in the metadata of {where} is not a list of numbers.", "Correct it, or remove it."
                ) from None
    return found


def text_inputs(ports: Sequence[Any], where: str) -> tuple[Any, Any]:
    """Return batch and length of the inputs of a text encoder, each an int where it is fixed.

    Raises UsageError for an encoder of images, and CyclicError when they are no inputs of texts. For the arguments see
    `image_input`.
    """
    names = [port.name for port in ports]
    if len(ports) == 1 and ports[0].type in FLOATS:
        raise UsageError(f"{where} takes {names[0]}: it encodes images.", f"Give it as --image-encoder {where}")
    if not set(REQUIRED) <= set(names) or not set(names) <= {*REQUIRED, *OPTIONAL}:
        raise CyclicError(
            f"The inputs of {where} are {', '.join(names)}; a text encoder has {' and '.join(REQUIRED)}.",
            "Export the text encoder alone.",
        )
    if any(port.type not in INTEGERS or len(port.shape) != 2 for port in ports):
        raise CyclicError(f"The inputs of {where} are not batch × length integers.", "Export the text encoder again.")
    batch, length = ports[0].shape
    if isinstance(batch, int) and batch != 1:
        raise CyclicError(f"{where} takes batches of {batch} texts only.", AGAIN)
    return batch, length


def read_tokenizer(path: Path) -> str:
    """Return the content of the `tokenizer.json` beside a file. Raises CyclicError when there is none."""
    file = path.resolve().with_name("tokenizer.json")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        load = f"transformers.AutoTokenizer.from_pretrained('MODEL').save_pretrained({str(file.parent)!r})"
        raise CyclicError(
            f"There is no tokenizer.json beside {path}.", f'Run: python -c "import transformers; {load}"'
        ) from error


def stated_window(tokenizer: str, metadata: Mapping[str, str], where: str) -> int | None:
    """Return how many tokens a text has at most, from the tokenizer or the metadata; None where neither tells."""
    try:
        limit = (json.loads(tokenizer).get("truncation") or {}).get("max_length") or metadata.get("max_length")
        window = int(limit) if limit else None
    except (ValueError, TypeError, AttributeError) as error:
        raise CyclicError(
            f"The tokenizer.json or the max_length of {where} is not valid.", "Copy it from its source again."
        ) from error
    return window if window and 1 < window <= LONGEST_WINDOW else None
