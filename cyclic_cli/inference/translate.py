"""Translate between image and text with an image–text model: `cyclic reconstruct --to text`, and `--text … --to image`.

The output illustrates which images and texts the model associates. It is neither a report nor a radiograph nor a
diagnosis, and every output carries a remark that says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.imaging import figures
from cyclic_cli.inference.reconstruct import BATCH, ReconstructSummary, read_scans
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.inference.typed_texts import checked_words
from cyclic_cli.models._aligned import AlignedModel
from cyclic_cli.prepare.sources import expand, printable
from cyclic_cli.storage.files import write_bytes

REMARK = "illustration by a model, not a diagnosis"


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """The text that a model generated for a scan."""

    source: str
    text: str
    remark: str = REMARK


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """The image that a model generated for a text."""

    output: str
    remark: str = REMARK


def generate_texts(
    sources: list[Path],
    model: TorchModel,
    summary: ReconstructSummary,
    beams: int = 1,
    length: int | None = None,
    paths: bool = True,
    report: Report = silent,
) -> Iterator[GeneratedText]:
    """Generate a text for each scan: the text decoder is applied to the embedding of the image.

    Args:
        sources: Files, folders and patterns, as `prepare` takes them.
        model: An image–text model whose text encoder has a decoder that generates.
        summary: Its totals grow with the scans.
        beams: Candidates of the beam search; 1 is greedy decoding.
        length: Tokens per text, at most; None: the limit of the training texts.
        paths: Whether scans are named by their path; else by a running number.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: the model has no text encoder or no decoders, or its text decoder does not generate texts.
    """
    import torch

    model.require("image", "text", decoders=True)
    encoder = model.module.encoders["text"]
    if not encoder.generates:
        is_fixed = isinstance(model.module, AlignedModel)
        raise CyclicError(
            f"The text encoder of {model.path} cannot generate text.",
            "Train one: cyclic train DATASET --objective captioning --init-from RUN."
            if is_fixed
            else "Train with --set modalities.text.arch=transformer.",
        )
    report(Note(f"each text is an {REMARK}"))
    inputs = expand(sources, Path("reconstructions"))
    for first in range(0, len(inputs), BATCH):
        chosen = range(first, min(first + BATCH, len(inputs)))
        names = {number: inputs[number].given if paths else str(number + 1) for number in chosen}
        scans = dict(read_scans(inputs, names, model.preprocessing, summary, report))
        if scans:
            with torch.inference_mode():
                image = model.images(np.stack([pixels for pixels, _ in scans.values()]))
                code = model.module.code("text", model.module.embed("image", image))
                texts = encoder.write(code, beams, length)
            for number, text in zip(scans, texts, strict=True):
                summary.used += 1
                yield GeneratedText(source=names[number], text=text)
        report(Progress(chosen.stop, len(inputs), "scans"))


def generate_images(
    texts: list[str], model: TorchModel, out: Path, overwrite: bool = False, report: Report = silent
) -> Iterator[GeneratedImage]:
    """Generate an image for each text, as numbered pictures: the image decoder is applied to the embedding of the text.

    Args:
        texts: Texts that are not empty.
        model: An image–text model.
        out: The folder; its pictures are `drawing-1.png` and so on, and hold no word of the texts.
        overwrite: Whether existing pictures may be replaced.
        report: Gets Note events.

    Raises:
        UsageError: a text is empty, or the model knows none of its words.
        CyclicError: the model has no text encoder or no decoders; a picture exists, or cannot be written.
    """
    import torch

    if not all(text.strip() for text in texts):
        raise UsageError("A text is empty.", "Describe what the image is to show.")
    model.require("image", "text", decoders=True)
    for number, text in enumerate(texts, 1):
        checked_words(model, text, f"text {number}", report)
    outputs = [out / f"drawing-{number}.png" for number in range(1, len(texts) + 1)]
    taken = [path for path in outputs if path.exists()]
    if taken and not overwrite:
        raise CyclicError(f"{taken[0]} exists.", "Add --overwrite, or name another --out.")
    report(Note(f"each image is an {REMARK}"))
    for first in range(0, len(texts), BATCH):
        with torch.inference_mode():
            embeddings = model.module.embed("text", model.texts(texts[first : first + BATCH]))
            images = model.module.encoders["image"].decode(model.module.code("image", embeddings))
        for path, pixels in zip(outputs[first:], images.float().clamp(0, 1).cpu().numpy(), strict=False):
            write_bytes(path, figures.drawing(pixels[0], REMARK))
            yield GeneratedImage(output=printable(path))
