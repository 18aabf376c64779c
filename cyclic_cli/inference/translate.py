"""From one modality to another by a joint model: `cyclic reconstruct --to text`, and `--text … --to image`.

What comes out illustrates what the model has learned to associate. It is no report, no radiograph and no diagnosis, and
everything written says so.
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
from cyclic_cli.prepare.sources import expand, printable
from cyclic_cli.storage.files import write_bytes

REMARK = "illustration by a model, not a diagnosis"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote for a scan."""

    source: str
    text: str
    remark: str = REMARK


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a model drew for a text."""

    output: str
    remark: str = REMARK


def write_texts(
    sources: list[Path],
    model: TorchModel,
    summary: ReconstructSummary,
    beams: int = 1,
    length: int | None = None,
    paths: bool = True,
    report: Report = silent,
) -> Iterator[Written]:
    """The texts that a model's decoder writes from the embeddings of scans.

    Args:
        sources: Files, folders and patterns, as `prepare` takes them.
        model: A joint one with a text encoder that writes.
        summary: Counts up as scans are done.
        beams: Candidates kept at each token; 1 takes the likeliest token every time.
        length: Tokens, at most; None: as many as training texts had.
        paths: Name scans by their path; else by a running number.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: the model has no text side, no decoders, or an encoder that cannot write.
    """
    import torch

    model.require("image", "text", decoders=True)
    encoder = model.module.encoders["text"]
    if not encoder.generates:
        raise CyclicError(
            f"The text encoder of {model.path} knows words, not sentences.",
            "Train with --set modalities.text.encoder=transformer.",
        )
    report(Note(f"what is written is an {REMARK}"))
    inputs = expand(sources, Path("reconstructions"))
    for first in range(0, len(inputs), BATCH):
        chosen = range(first, min(first + BATCH, len(inputs)))
        names = {number: inputs[number].given if paths else str(number + 1) for number in chosen}
        read = dict(read_scans(inputs, names, model.preprocessing, summary, report))
        if read:
            with torch.inference_mode():
                image = model.images(np.stack([pixels for pixels, _ in read.values()]))
                code = model.module.code("text", model.module.embed("image", image))
                texts = encoder.write(code, beams, length)
            for number, text in zip(read, texts, strict=True):
                summary.used += 1
                yield Written(source=names[number], text=text)
        report(Progress(chosen.stop, len(inputs), "scans"))


def draw_texts(
    texts: list[str], model: TorchModel, out: Path, overwrite: bool = False, report: Report = silent
) -> Iterator[Drawn]:
    """Draw the images that a model's decoder makes of the embeddings of texts, as numbered pictures in a folder.

    Args:
        texts: At least one word each.
        model: A joint one.
        out: The folder; the pictures are `drawing-1.png` and so on, without a word of the text.
        overwrite: Whether pictures of that name may be replaced.
        report: Gets Note events.

    Raises:
        UsageError: a text is empty.
        CyclicError: the model has no text side or no decoders; a picture exists, or cannot be written.
    """
    import torch

    if not all(text.strip() for text in texts):
        raise UsageError("A text is empty.", "Write what the picture is to show.")
    model.require("image", "text", decoders=True)
    outputs = [out / f"drawing-{number}.png" for number in range(1, len(texts) + 1)]
    taken = [path for path in outputs if path.exists()]
    if taken and not overwrite:
        raise CyclicError(f"{taken[0]} exists.", "Add --overwrite, or name another --out.")
    report(Note(f"what is drawn is an {REMARK}"))
    for first in range(0, len(texts), BATCH):
        with torch.inference_mode():
            embeddings = model.module.embed("text", model.texts(texts[first : first + BATCH]))
            images = model.module.encoders["image"].decode(model.module.code("image", embeddings))
        for path, pixels in zip(outputs[first:], images.float().clamp(0, 1).cpu().numpy(), strict=False):
            write_bytes(path, figures.drawing(pixels[0], REMARK))
            yield Drawn(output=printable(path))
