"""Draws one finished radiograph: positioning, exposure, collimation, the lead marker, and the stored values.

Two random generators are used, one for positioning and one for noise. The same exposure can therefore be drawn with and
without a finding, and nothing else differs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cyclic_cli.phantom import anatomy
from cyclic_cli.phantom import findings as pathology
from cyclic_cli.phantom.anatomy import Patient
from cyclic_cli.phantom.findings import Finding
from cyclic_cli.phantom.projection import Array, TubeProjector, View, expose, presentation


@dataclass(frozen=True)
class Finish:
    """Collimation and lead marker of an image. `borders` are fractions of its width and height."""

    borders: tuple[float, float, float, float]
    """Left, top, right, bottom."""
    letter: str
    letter_place: tuple[float, float]
    """Centre as fractions of width and height."""
    letter_turn: float
    """Degrees."""


def sample_view(name: str, patient: Patient, full_size: bool, generator: np.random.Generator) -> View:
    """Sample positioning and exposure of one image. The field of view scales with the patient's size."""
    low, high = (2000, 3000) if full_size else (400, 700)
    longer = int(generator.integers(low, high + 1))
    wide = 372 * patient.scale[0] * generator.uniform(0.97, 1.08)
    tall = 352 * patient.scale[1] * generator.uniform(0.98, 1.10)
    if name == "LL":
        wide = 300 * patient.scale[2] * (0.9 + 0.1 * patient.fat) * generator.uniform(0.98, 1.08)
    spacing = round(max(wide, tall) / longer, 4)
    shift = (float(generator.normal(0, 5)), float(generator.normal(0, 6)))
    turn, poor = (1.6, 0.0) if name != "AP" else (3.2, 0.5)
    return View(
        name,
        int(tall / spacing),
        int(wide / spacing),
        spacing,
        rotation=float(np.radians(generator.normal(0, turn))),
        roll=float(np.radians(generator.normal(0, turn * 0.6))),
        shift=shift,
        scale=patient.scale,
        inspiration=float(np.clip(generator.normal(0.35 - 2 * poor * 0.6, 0.4), -1, 1)),
        exposure=float(np.exp(generator.normal(10.6, 0.45))),
    )


def sample_finish(view: View, generator: np.random.Generator) -> Finish:
    """Sample collimated borders, on about a third of images, and an L or R beside the shoulder of that side."""
    borders = np.where(generator.random(4) < 0.7, generator.uniform(0.008, 0.045, 4), 0.0)
    collimated = generator.random() < 0.35
    letter = "L" if view.lateral or generator.random() < 0.5 else "R"
    across = generator.uniform(0.075, 0.11)
    if view.lateral or letter == "L":
        across = 1 - across
    place = (float(across), float(generator.uniform(0.07, 0.20)))
    left, top, right, bottom = (borders * collimated).tolist()
    return Finish((left, top, right, bottom), letter, place, float(generator.normal(0, 6)))


def draw_radiograph(
    patient: Patient, view: View, findings: tuple[Finding, ...], finish: Finish | None, noise: np.random.Generator
) -> Array:
    """Draw display values (rows, columns). 0 is black, and the brightest anatomy, such as bone, is about 1."""
    draw_chest = anatomy.lateral_chest if view.lateral else anatomy.frontal_chest
    chest = draw_chest(patient, view, pathology.heart_factor(findings))
    pathology.apply_to_chest(findings, chest, patient, view)
    tubes = TubeProjector(view)
    points, radius = anatomy.rib_curves(patient, view)
    pathology.break_ribs(findings, points, radius)
    anatomy.draw_ribs(tubes, points, radius)
    anatomy.draw_skeleton(tubes, view)
    anatomy.draw_vessels(tubes, patient, chest)
    anatomy.draw_bronchi(tubes)
    pathology.draw_air_bronchograms(findings, tubes, patient, view)
    pathology.draw_devices(findings, tubes, patient)
    attenuation = np.maximum(view.resample(chest.attenuation()) + tubes.image(), 0)
    shown = presentation(expose(attenuation, view, noise), attenuation)
    return shown if finish is None else _finish(shown, finish)


def _finish(image: Array, finish: Finish) -> Array:
    """The image with its lead marker and collimated borders."""
    rows, columns = image.shape
    size = max(12, int(0.055 * max(rows, columns)))
    marker = Image.new("L", (2 * size, 2 * size))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(marker).text((size, size), finish.letter, fill=255, font=font, anchor="mm")
    marker = marker.rotate(finish.letter_turn, Image.Resampling.BICUBIC)
    left = int(finish.letter_place[0] * columns) - size
    top = int(finish.letter_place[1] * rows) - size
    canvas = Image.new("L", (columns, rows))
    canvas.paste(marker, (left, top))
    lead = np.asarray(canvas, dtype=np.float32) / 255
    marked = image * (1 - lead) + 1.12 * lead
    edges = [int(share * length) for share, length in zip(finish.borders, (columns, rows, columns, rows), strict=True)]
    open_field = np.zeros_like(image)
    open_field[edges[1] : rows - edges[3], edges[0] : columns - edges[2]] = 1
    return np.asarray(marked * open_field - 0.2 * (1 - open_field), dtype=np.float32)


def quantise(image: Array, bits: int, inverted: bool) -> tuple[NDArray[np.uint16], tuple[float, float]]:
    """The stored values, and the (centre, width) of the window that shows display values 0 to 1.

    A sixth of the range is reserved below black and above white, as in real detectors. `inverted` is for MONOCHROME1.
    """
    top = 2**bits - 1
    span = top * 0.68
    stored = np.clip(np.rint(image * span + top * 0.16), 0, top).astype(np.uint16)
    centre = round(top * 0.5, 1)
    if inverted:
        stored = (top - stored).astype(np.uint16)
    return stored, (centre, float(round(span)))
