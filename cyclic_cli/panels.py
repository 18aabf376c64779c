"""The pictures that commands write: original, reconstruction and their difference side by side, as a PNG.

Drawn with Pillow alone but for the colour map, matplotlib's perceptually uniform `inferno`. No text chunk is
written, and nothing of the file's name or header is drawn.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cyclic_cli.images import as_png

PANEL = 448  # pixels of a panel's longer side, at least; images are enlarged by a whole factor
MARGIN = 24
TITLE = 34  # height of the line above the panels
FOOT = 40  # height of the line below
BAR = 18  # width of the colour scale
BACKGROUND = (18, 18, 20)
INK = (232, 232, 232)
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # ends of the difference scale


def comparison(original: np.ndarray, decoded: np.ndarray, mse: float, psnr: float | None, ssim: float | None) -> bytes:
    """The PNG of one reconstruction.

    Args:
        original: (H, W) float in [0, 1].
        decoded: (H, W) float in [0, 1].
        mse: Shown below, as are the others.
        psnr: dB, or None.
        ssim: Up to 1, or None.
    """
    difference = np.abs(original - decoded)
    end = _scale_end(difference)
    factor = max(1, round(PANEL / max(original.shape)))
    pictures = [_grey(original), _grey(decoded), _coloured(difference / end)]
    large = [
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        for picture in pictures
    ]
    width, height = large[0].size
    canvas = Image.new(
        "RGB", (4 * MARGIN + 3 * width + 2 * MARGIN + BAR + 40, TITLE + height + FOOT + MARGIN), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(20), ImageFont.load_default(16)
    for number, (title, picture) in enumerate(
        zip(("original", "reconstruction", "absolute difference"), large, strict=True)
    ):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, 8), title, INK, font)
        canvas.paste(picture, (left, TITLE + 4))
    _draw_scale(canvas, draw, MARGIN + 3 * (width + MARGIN), TITLE + 4, height, end, small)
    draw.text((MARGIN, TITLE + height + 16), _figures(mse, psnr, ssim), INK, font)
    return as_png(np.asarray(canvas))


def _figures(mse: float, psnr: float | None, ssim: float | None) -> str:
    shown = [f"MSE {mse:.5f}"]
    shown += [f"PSNR {psnr:.1f} dB"] if psnr is not None else []
    shown += [f"SSIM {ssim:.3f}"] if ssim is not None else []
    return "    ".join(shown)


def _scale_end(difference: np.ndarray) -> float:
    """A round number that all but a few differences lie below."""
    reach = float(np.quantile(difference, 0.995))
    return next((step for step in STEPS if reach <= step), STEPS[-1])


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _coloured(values: np.ndarray) -> Image.Image:
    from matplotlib import colormaps

    return Image.fromarray((colormaps["inferno"](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8))


def _draw_scale(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    height: int,
    end: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The colour scale with its numbers, in units of the image's full range."""
    ramp = np.linspace(1, 0, height)[:, None].repeat(BAR, 1)
    canvas.paste(_coloured(ramp), (left, top))
    for share in (0.0, 0.5, 1.0):
        y = top + round((1 - share) * (height - 1))
        draw.line((left + BAR, y, left + BAR + 5, y), INK)
        draw.text((left + BAR + 9, y), f"{share * end:g}", INK, font, anchor="lm")
