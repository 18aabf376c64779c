"""Draws the PNG figures that commands write: an image beside its reconstructions, and a contact sheet of many images.

Pillow draws everything. Only the colour map, the perceptually uniform `inferno`, comes from matplotlib. The PNG
holds no text chunk, and neither the file's name nor its header appears in the figure.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cyclic_cli.imaging.readers import as_png

PANEL = 448  # intended longer side of a panel in pixels; images are enlarged by an integer factor
CELL = 224  # longer side of an image in a contact sheet, in pixels
NARROWEST = 320  # minimum width of a panel in pixels, so that its title fits
MARGIN = 24
TITLE = 34  # height of the line above the panels
FOOT = 40  # height of the line below
BAR = 18  # width of the colour scale
GAP = 16  # pixels between the cells of a contact sheet
LINE = 18  # height of a line of text in a contact sheet
BACKGROUND = (18, 18, 20)
INK = (232, 232, 232)
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # possible upper ends of the difference scale

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A model's reconstruction of an image, with its reconstruction metrics."""

    model: str  # name of the model
    pixels: np.ndarray  # (H, W) float in [0, 1]
    mse: float
    psnr: float | None  # dB
    ssim: float | None  # at most 1

    def figures(self) -> list[str]:
        """The available metrics as text, one per line of the figure."""
        shown = [f"MSE {self.mse:.5f}"]
        shown += [f"PSNR {self.psnr:.1f} dB"] if self.psnr is not None else []
        shown += [f"SSIM {self.ssim:.3f}"] if self.ssim is not None else []
        return shown


def comparison(original: np.ndarray, decoded: list[Decoded]) -> bytes:
    """The PNG that compares one image with its reconstructions.

    Each model has a row with the original, the reconstruction and their absolute difference. All rows share one
    difference scale.

    Args:
        original: (H, W) float in [0, 1].
        decoded: The reconstruction of each model.
    """
    end = _scale_end(np.stack([np.abs(original - one.pixels) for one in decoded]))
    return as_png(np.concatenate([_comparison_row(original, one, end) for one in decoded]))


def _comparison_row(original: np.ndarray, decoded: Decoded, end: float) -> np.ndarray:
    """One row of a comparison as (H, W, 3) uint8: original, reconstruction, difference and the difference scale.

    The scale runs from 0 to `end`.
    """
    factor = max(1, round(PANEL / max(original.shape)))
    difference = np.abs(original - decoded.pixels)
    large = [
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        for picture in (_grey(original), _grey(decoded.pixels), _coloured(difference / end))
    ]
    height, width = large[0].height, max(large[0].width, NARROWEST)
    canvas = Image.new(
        "RGB", (4 * MARGIN + 3 * width + 2 * MARGIN + BAR + 40, TITLE + height + FOOT + MARGIN), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    titles = ("original", _cut(f"reconstruction ({decoded.model})", width, _font(20)), "absolute difference")
    for number, (title, picture) in enumerate(zip(titles, large, strict=True)):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, 8), title, INK, _font(20))
        canvas.paste(picture, (left, TITLE + 4))
    _draw_scale(canvas, draw, MARGIN + 3 * (width + MARGIN), TITLE + 4, height, end)
    draw.text((MARGIN, TITLE + height + 16), "    ".join(decoded.figures()), INK, _font(20))
    return np.asarray(canvas)


def sheet(models: list[str], rows: list[np.ndarray]) -> bytes:
    """The PNG of a contact sheet: the names of the models above the rows that `sheet_row` returned."""
    head = Image.new("RGB", (rows[0].shape[1], GAP + 24), BACKGROUND)
    draw = ImageDraw.Draw(head)
    for number, title in enumerate(("original", *models)):
        draw.text((_left(number), GAP), _cut(title, CELL, _font(16)), INK, _font(16))
    return as_png(np.concatenate([np.asarray(head), *rows]))


def sheet_row(label: str, original: np.ndarray, decoded: list[Decoded]) -> np.ndarray:
    """One row of a contact sheet as (H, W, 3) uint8: an image and its reconstructions, with label and metrics below.

    Args:
        label: The text below the original.
        original: (H, W) float in [0, 1].
        decoded: The reconstruction of each model, in the order of the sheet's columns.
    """
    texts = [[label], *(one.figures() for one in decoded)]
    pictures = [
        ImageOps.contain(_grey(pixels), (CELL, CELL), Image.Resampling.BICUBIC)
        for pixels in (original, *(one.pixels for one in decoded))
    ]
    height = pictures[0].height
    canvas = Image.new("RGB", (_left(len(pictures)), height + 4 + 3 * LINE + GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        canvas.paste(picture, (_left(number), 0))
        draw.text((_left(number), height + 4), "\n".join(lines), INK, _font(14))
    return np.asarray(canvas)


def drawing(pixels: np.ndarray, remark: str) -> bytes:
    """The PNG of a generated image, (H, W) float in [0, 1], with a remark below it."""
    factor = max(1, round(PANEL / max(pixels.shape)))
    picture = _grey(pixels)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    width = max(picture.width, NARROWEST)
    canvas = Image.new("RGB", (width + 2 * MARGIN, MARGIN + picture.height + FOOT), BACKGROUND)
    canvas.paste(picture, (MARGIN + (width - picture.width) // 2, MARGIN))
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN + picture.height + 8), _cut(remark, width, _font(16)), INK, _font(16))
    return as_png(np.asarray(canvas))


def _left(column: int) -> int:
    """The x coordinate in pixels at which a column of a contact sheet begins."""
    return GAP + column * (CELL + GAP)


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _cut(text: str, width: int, font: Font) -> str:
    """The text, with its middle replaced by an ellipsis where it is wider than `width` pixels."""
    kept, shown = len(text), text
    while font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def _scale_end(difference: np.ndarray) -> float:
    """The smallest of STEPS that is at least the 99.5th percentile of the differences."""
    reach = float(np.quantile(difference, 0.995))
    return next((step for step in STEPS if reach <= step), STEPS[-1])


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _coloured(values: np.ndarray) -> Image.Image:
    from matplotlib import colormaps

    return Image.fromarray((colormaps["inferno"](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8))


def _draw_scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, height: int, end: float) -> None:
    """Draw the colour scale and its numbers, in units of the image's full range."""
    ramp = np.linspace(1, 0, height)[:, None].repeat(BAR, 1)
    canvas.paste(_coloured(ramp), (left, top))
    for share in (0.0, 0.5, 1.0):
        y = top + round((1 - share) * (height - 1))
        draw.line((left + BAR, y, left + BAR + 5, y), INK)
        draw.text((left + BAR + 9, y), f"{share * end:g}", INK, _font(16), anchor="lm")
