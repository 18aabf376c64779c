"""Models the chest of a synthetic patient: trunk, lungs, heart, great vessels, skeleton, airways and lung vessels.

All numbers describe a reference adult. A patient is this adult, with every outline deformed by a few smooth random
terms. The frontal and the lateral view share the tables of ribs, spine and vessels. Only the thickness of the smooth
organs is defined separately for the two directions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cyclic_cli.phantom.projection import (
    BONE,
    GRID_H,
    GRID_STEP,
    GRID_Y,
    LUNG,
    SOFT_TISSUE,
    Array,
    TubeProjector,
    View,
)

Float = NDArray[np.float64]

SIDES = {"right": -1, "left": 1}
"""The sign of x on each side of the patient."""

RIB_TOP = np.array([2, 20, 40, 61, 82, 104, 126, 149, 172, 196, 220, 243], dtype=float)
RIB_WIDTH = np.array([58, 87, 106, 117, 125, 130, 134, 136, 136, 134, 128, 112], dtype=float)
RIB_DEPTH = np.array([38, 55, 66, 74, 80, 85, 89, 91, 92, 91, 88, 82], dtype=float)
RIB_DROP = np.array([30, 52, 70, 84, 95, 103, 110, 115, 118, 118, 112, 100], dtype=float)
RIB_END = np.radians([142, 143, 144, 144, 143, 141, 138, 128, 117, 105, 74, 50])
"""The twelve ribs as tilted rings: y at the spine, half width, half depth and drop towards the front in mm.

RIB_END is the end of the bony part, as an angle in radians around the chest from the spine."""

HEART_RADII = np.array([62, 80, 76, 70, 70, 66, 58, 56, 58, 76, 64, 56], dtype=float)
"""Frontal heart outline in mm from (18, 162), every 30 degrees from the patient's left towards the feet."""


@dataclass(frozen=True)
class Patient:
    """The properties of a patient that are the same in every image. Factors are relative to the reference adult."""

    number: int
    sex: str
    age: int
    scale: tuple[float, float, float]
    fat: float
    heart: float
    heart_shape: tuple[float, ...]
    lung_shape: tuple[float, ...]
    rib_slope: float
    rib_spacing: tuple[float, ...]
    spine_curve: tuple[float, float, float]
    dome: tuple[float, float]
    aorta: float
    breast: float
    stomach_air: float
    vessel_seed: int


def sample_patient(number: int, generator: np.random.Generator) -> Patient:
    """Sample the body build of one patient."""
    sex = "F" if generator.random() < 0.5 else "M"
    age = int(np.clip(generator.normal(57, 17), 19, 92))
    size = generator.normal(0.95 if sex == "F" else 1.02, 0.03)
    fat = float(np.clip(generator.normal(1.0, 0.22), 0.6, 1.6))
    scale = (size * generator.normal(1, 0.03), size * generator.normal(1, 0.04), size * generator.normal(1, 0.04))
    return Patient(
        number=number,
        sex=sex,
        age=age,
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        fat=fat,
        heart=float(generator.normal(0.96, 0.03)),
        heart_shape=tuple(generator.normal(0, 0.028, 12).tolist()),
        lung_shape=tuple(generator.normal(0, 1, 8).tolist()),
        rib_slope=float(generator.normal(1.0, 0.1)),
        rib_spacing=tuple(generator.normal(0, 1.1, 12).tolist()),
        spine_curve=(float(generator.normal(0, 2.5)), float(generator.normal(0, 2.0)), float(generator.uniform(0, 6))),
        dome=(float(generator.normal(0, 4)), float(generator.normal(12, 4))),
        aorta=float(generator.normal(0.8 + age / 250, 0.12)),
        breast=float(generator.uniform(6, 24)) if sex == "F" else float(generator.uniform(0, 8)),
        stomach_air=float(generator.uniform(0, 1)),
        vessel_seed=int(generator.integers(2**31)),
    )


@dataclass
class LungField:
    """One lung on the body grid. All maps are (grid rows, grid columns).

    `thickness` is the depth of the pleural cavity along the beam in mm. `aerated` is the fraction of it that the lung
    fills, while the rest is air of a pneumothorax. `fluid` is the fraction filled by an effusion. `dense` is the path
    through airless lung in mm.
    """

    thickness: Array
    aerated: Array = field(init=False)
    fluid: Array = field(init=False)
    dense: Array = field(init=False)

    def __post_init__(self) -> None:
        self.aerated = np.ones_like(self.thickness)
        self.fluid = np.zeros_like(self.thickness)
        self.dense = np.zeros_like(self.thickness)

    def deficit(self) -> Array:
        """How much less the contents attenuate than soft tissue, dimensionless and not negative."""
        parenchyma = np.minimum(self.dense, self.thickness * (1 - self.fluid) * self.aerated)
        full = self.thickness * (SOFT_TISSUE - LUNG * self.aerated) * (1 - self.fluid)
        return np.asarray(np.maximum(full - parenchyma * (SOFT_TISSUE - LUNG), 0), dtype=np.float32)

    def visibility(self) -> Array:
        """The fraction of vessels that are visible against air at each point, 0 to 1."""
        return np.asarray(
            np.clip(self.thickness / 95, 0, 1) ** 2
            * (1 - self.fluid)
            * self.aerated**2
            * (1 - np.clip(self.dense / (self.thickness + 1), 0, 1))
        )


@dataclass
class Chest:
    """The smooth organs of a chest in one view: maps on the body grid."""

    trunk: Array
    """Path through the body in mm, as if it were solid soft tissue."""
    lungs: dict[str, LungField]
    bone: Array
    """Attenuation of the bones that are drawn as maps, dimensionless."""
    air: Array
    """Path in mm through air outside the lungs."""

    def attenuation(self) -> Array:
        """Total line integral, dimensionless."""
        total = self.trunk * SOFT_TISSUE + self.bone - self.air * SOFT_TISSUE
        for lung in self.lungs.values():
            total = total - lung.deficit()
        return np.asarray(np.maximum(total, 0), dtype=np.float32)


def profile(points: list[tuple[float, float]], smooth: float = 9.0) -> Array:
    """A smooth function of y on the grid, (grid rows, 1), that approximates the given (y, value) points."""
    fine = np.interp(GRID_Y[:, 0], [point[0] for point in points], [point[1] for point in points])
    steps = np.arange(-20, 21) * GRID_STEP
    kernel = np.exp(-0.5 * (steps / smooth) ** 2)
    padded = np.pad(fine, 20, mode="edge")
    return np.asarray(np.convolve(padded, kernel / kernel.sum(), mode="valid"), dtype=np.float32)[:, None]


def dome(value: Array | Float) -> Array:
    """The half chord of a unit circle: sqrt(1 - value²), 0 outside."""
    return np.asarray(np.sqrt(np.maximum(1 - value * value, 0)), dtype=np.float32)


def soft_step(value: Array | Float, width: float) -> Array:
    """A smooth step from 0 to 1 as `value` goes from -width to width, both in mm."""
    share = np.clip(value / (2 * width) + 0.5, 0, 1)
    return np.asarray(share * share * (3 - 2 * share), dtype=np.float32)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], depth: float, tilt: float = 0.0) -> Array:
    """Path in mm through an ellipsoid that is `depth` mm thick at its centre; `tilt` is in radians."""
    cosine, sine = math.cos(tilt), math.sin(tilt)
    across, down = GRID_H - centre[0], GRID_Y - centre[1]
    # In a quadratic form, the square terms are computed on one row and one column instead of the whole map.
    first, second = 1 / radii[0] ** 2, 1 / radii[1] ** 2
    mixed = 2 * cosine * sine * (first - second)
    inside = (1 - (first * cosine**2 + second * sine**2) * across**2) - (first * sine**2 + second * cosine**2) * down**2
    if mixed:
        inside = inside - (mixed * across) * down
    return np.asarray(depth * np.sqrt(np.maximum(inside, 0)), dtype=np.float32)


def union(paths: list[Array]) -> Array:
    """Path through overlapping organs: the root of summed squares, which acts as a smooth maximum."""
    total = np.zeros_like(paths[0])
    for path in paths:
        total = total + path * path
    return np.asarray(np.sqrt(total), dtype=np.float32)


# --- smooth organs, frontal ---------------------------------------------------------------------------------


def frontal_chest(patient: Patient, view: View, heart: float = 1.0) -> Chest:
    """The smooth organs seen from the front or back. `heart` scales the patient's own heart size."""
    central = _frontal_mediastinum(patient, view, heart)
    lungs = {side: LungField(_frontal_lung(patient, view, side, central)) for side in SIDES}
    air = _airways_frontal(view)
    if patient.stomach_air > 0.35:
        size = 12 + 26 * patient.stomach_air
        under = frontal_dome_height(patient, view, "left")
        top = float(under[0, np.argmin(np.abs(GRID_H[0] - 58))]) + 7
        bubble = ellipse((56 + 8 * patient.lung_shape[0], top + size * 0.62), (size * 1.15, size * 0.62), 1.3 * size)
        air = air + bubble
    return Chest(_frontal_trunk(patient), lungs, _frontal_spine(patient, view) + _shoulders(view), air)


def _frontal_trunk(patient: Patient) -> Array:
    layer = 16 * patient.fat
    half = profile(
        [
            (-110, 62),
            (-70, 58),
            (-52, 66),
            (-38, 100),
            (-24, 150),
            (-8, 185),
            (30, 190),
            (75, 150 + layer),
            (130, 140 + layer),
            (210, 140 + layer),
            (350, 142 + 1.2 * layer),
        ],
        7.0,
    )
    depth = profile([(-110, 112), (-45, 112), (-10, 118), (30, 150), (90, 176), (160, 190), (240, 196), (350, 200)])
    offset = np.abs(GRID_H) / half
    trunk = (depth + 1.4 * layer) * np.sqrt(np.maximum(1 - offset**3.2, 0))
    parts = [trunk]
    for sign in SIDES.values():
        shoulder = ellipse((sign * 162, 26), (62, 56), 84)
        along = np.clip((GRID_Y - 10) / 330, 0, 1)
        arm = 84 * dome((GRID_H - sign * (176 + 62 * along)) / (40 + 4 * patient.fat)) * soft_step(GRID_Y - 22, 20)
        fold = 60 * patient.fat * dome((GRID_H - sign * (132 + 26 * soft_step(60 - GRID_Y, 60))) / 30)
        parts += [shoulder, arm, fold * soft_step(85 - GRID_Y, 45) * soft_step(GRID_Y + 5, 20)]
    body = union([np.asarray(part, dtype=np.float32) for part in parts])
    for sign in SIDES.values():
        body = body + _breast(sign, patient)
    return body


def _breast(sign: int, patient: Patient) -> Array:
    height = 165 + 1.0 * patient.breast
    shape = ellipse((sign * 82.0, height), (58.0 + patient.breast * 0.3, 50.0), 1.0)
    return np.asarray(patient.breast * shape**0.8 * soft_step(GRID_Y - height + 34, 38), dtype=np.float32)


def frontal_lung_edge(patient: Patient, side: str) -> Array:
    """Distance from the midline to the inner side of the ribs, in mm, at every y: (grid rows, 1)."""
    bends = patient.lung_shape
    shift = 2 if side == "left" else 5
    lateral = RIB_WIDTH[1:11] + np.array([0.8 * bends[shift]] * 5 + [1.5 * bends[shift + 1]] * 5)
    points = [(y, w - 3.0) for y, w in zip(RIB_TOP[1:11] + RIB_DROP[1:11] / 2, lateral, strict=True)]
    return profile([(-8, 52), (4, 60), (18, 70), (33, 79), *points[1:]], 6.0)


def frontal_dome_height(patient: Patient, view: View, side: str) -> Array:
    """y of the diaphragm's silhouette in mm across the image: (1, grid columns)."""
    top = 203 + patient.dome[0] + 13 * view.inspiration - (0 if view.name == "PA" else 10)
    if side == "left":
        top += patient.dome[1]
    peak = 62 + 5 * patient.lung_shape[1]
    outward = GRID_H * SIDES[side] - peak
    lateral = 38 * (np.maximum(outward, 0) / 70) ** 2.3
    medial = 15 * (np.maximum(-outward, 0) / 55) ** 1.8
    ripple = 1.6 * np.sin(outward / 21 + patient.lung_shape[4] * 3)
    return np.asarray(top + lateral + medial + ripple, dtype=np.float32)


def _frontal_lung(patient: Patient, view: View, side: str, central: Array) -> Array:
    """Depth of one lung in mm, reduced where the heart and the great vessels (`central`) displace it."""
    sign = SIDES[side]
    midline = view.parallax(20.0) + spine_offset(patient, GRID_Y) * 0.6
    outward = (GRID_H - midline) * sign
    edge = frontal_lung_edge(patient, side)
    medial = profile([(-110, 30), (0, 27), (25, 22), (50, 17), (100, 14), (220, 15), (350, 17)])
    depth = profile([(-20, 40), (0, 66), (30, 100), (70, 132), (120, 152), (180, 164), (300, 168)])
    share = np.clip(outward / edge, 0, 1)
    lateral = np.sqrt(np.maximum(1 - share**3.4, 0))
    inner = soft_step(outward - medial - 13, 15)
    crown = -4 + ((outward - 42) / 36) ** 2 * 15
    apex = dome(1 - np.clip((GRID_Y - crown) / 42, 0, 1))
    below = (GRID_Y - frontal_dome_height(patient, view, side)) / 62
    sulcus = 1 - 0.60 * soft_step(below * 62 - 1.5, 2.5) - 0.40 * np.clip(below, 0, 1) ** 0.5
    thickness = depth * (1 + 0.07 * view.inspiration) * lateral * inner * apex * sulcus
    # A product is used, since a difference would show a crease where heart and lung overlap in depth.
    return np.asarray(thickness * (1 - np.minimum(central, 165) / 172), dtype=np.float32)


def _frontal_mediastinum(patient: Patient, view: View, heart: float) -> Array:
    """Path in mm through heart and great vessels."""
    portable = 1.0 if view.name == "PA" else 1.06
    size = patient.heart * heart * portable * (1 - 0.03 * view.inspiration)
    front = view.parallax(-45.0)
    radii = HEART_RADII * (1 + np.array(patient.heart_shape))
    centre = np.array([16 + front, 160.0 + 9 * view.inspiration - 20 * (size - 1)])
    across, down = GRID_H - centre[0], GRID_Y - centre[1]
    angle = np.arctan2(down, across)
    growth = np.clip(1 + 0.65 * np.sin(angle), 0.35, 1)  # a large heart widens more than it rises
    outline = _periodic(radii, angle) * (1 + (size - 1) * growth)
    muscle = 122 * min(size, 1.25) * dome(np.sqrt(across**2 + down**2) / outline) ** 0.9
    aorta, back = patient.aorta, view.parallax(30.0)
    knob = ellipse((21 + 6 * aorta + back, 60), (15 * aorta + 5, 18 * aorta), 112)
    pulmonary = ellipse((24 + front * 0.4, 97), (20, 28), 92)
    ascending = ellipse((-8 + front, 96), (17 + 4 * aorta, 66), 78)
    neck = profile([(-60, 0), (-20, 70), (60, 84), (120, 60), (200, 0)])
    trunk = neck * dome((GRID_H + 3 - front * 0.3) / 31)
    hila = [ellipse((sign * 39, 112 - 6 * (sign > 0)), (17, 30), 26, -0.35 * sign) for sign in SIDES.values()]
    descending = ellipse((23 + back, 150), (14 * aorta, 120), 26)
    return union([muscle, knob, pulmonary, ascending, trunk, descending, *hila])


def _periodic(values: Float, angle: Array) -> Array:
    """Cubic (Catmull-Rom) interpolation of values given at equal steps round the circle."""
    place = angle / (2 * np.pi) * len(values) % len(values)
    start = place.astype(np.int64) % len(values)
    share = place - np.floor(place)
    table = values.astype(np.float32)
    before, first = table[(start - 1) % len(values)], table[start]
    second, after = table[(start + 1) % len(values)], table[(start + 2) % len(values)]
    bend = share * (
        second
        - before
        + share * (2 * before - 5 * first + 4 * second - after + share * (3 * (first - second) + after - before))
    )
    return np.asarray(first + 0.5 * bend, dtype=np.float32)


def _airways_frontal(view: View) -> Array:
    """Path in mm through the air of the trachea. The bronchi are drawn as tubes instead."""
    centre = view.parallax(10.0) - 3.0 * soft_step(GRID_Y - 45, 40)
    column = 14 * dome((GRID_H - centre) / 8.5) * soft_step(82 - GRID_Y, 6) * soft_step(GRID_Y + 95, 20)
    return np.asarray(column, dtype=np.float32)


def spine_offset(patient: Patient, down: Array | Float) -> Array:
    """Sideways curve of the spine in mm at each y."""
    first, second, _ = patient.spine_curve
    turn = (down - 120) / 230
    return np.asarray(first * np.cos(np.pi * turn) + second * np.sin(2 * np.pi * turn))


def _vertebral_phase() -> tuple[Array, Array]:
    """At each y, the distance from the middle of the vertebra in mm, and the height of the vertebra in mm."""
    height = profile([(-110, 17), (0, 19), (120, 22), (240, 25), (350, 29)])
    count = np.cumsum(GRID_STEP / height[:, 0]).astype(np.float32)[:, None]
    return np.asarray(np.abs((count + 0.35) % 1 - 0.5) * height, dtype=np.float32), height


def _vertebral_column(across: Array | Float, half: Array) -> Array:
    """Attenuation of the vertebral bodies, from the distance to the column's centre line in mm."""
    to_middle, height = _vertebral_phase()
    disc = soft_step(to_middle - height / 2 + 3.2, 1.6)
    waist = half * (1 - 0.10 * np.cos(np.pi * to_middle / height))
    body = np.sqrt(np.maximum(1 - (np.abs(across) / waist) ** 3.5, 0))
    endplate = np.exp(-0.5 * ((to_middle - height / 2 + 5.0) / 1.5) ** 2)
    rim = np.exp(-0.5 * ((np.abs(across) - waist + 2.5) / 1.6) ** 2)
    trabecular = 0.15 * (1 - 0.72 * disc) + 0.08 * endplate + 0.07 * rim * (1 - disc)
    return np.asarray(body * trabecular, dtype=np.float32)


def _frontal_spine(patient: Patient, view: View) -> Array:
    middle = view.parallax(55.0) + spine_offset(patient, GRID_Y)
    half = profile([(-110, 12), (0, 15), (120, 16.5), (240, 20), (350, 24)])
    across = np.asarray(GRID_H - middle, dtype=np.float32)
    to_middle, height = _vertebral_phase()
    pedicle = np.hypot((np.abs(across) - 0.72 * half) / 0.8, to_middle) - height * 0.17
    spinous = np.hypot((across + view.parallax(35.0)) / 0.6, height / 2 - to_middle) - height * 0.20
    marks = 0.10 * np.exp(-((pedicle / 1.6) ** 2)) + 0.10 * np.exp(-((spinous / 2.2) ** 2))
    wings = soft_step(np.abs(across) - half + 4, 3) * soft_step(34 - np.abs(across), 4)
    wings = 0.07 * wings * soft_step(4.5 - to_middle, 2.5) * (GRID_Y > -15)
    return np.asarray(_vertebral_column(across, half) + marks + wings, dtype=np.float32)


def _shoulders(view: View) -> Array:
    """Attenuation of the shoulder blades and the humeral heads. Only PA rotates the blades away from the lungs."""
    total = np.zeros((GRID_Y.shape[0], GRID_H.shape[1]), dtype=np.float32)
    medial_edge = 128 if view.name == "PA" else 104
    for sign in SIDES.values():
        outward = GRID_H * sign - view.parallax(70.0) * sign
        medial = medial_edge - 0.03 * (GRID_Y - 40)
        lateral = medial + 46 - 0.36 * (GRID_Y - 20)
        inside = soft_step(outward - medial, 2) * soft_step(lateral - outward, 2) * soft_step(GRID_Y - 12, 6)
        head = np.hypot((outward - 172) / 23, (GRID_Y - 20) / 23)
        globe = 0.34 * dome(head) + 0.20 * np.exp(-(((head - 0.95) / 0.05) ** 2))
        total += np.asarray(0.10 * inside * soft_step(140 - GRID_Y, 6) + globe, dtype=np.float32)
    return total


# --- smooth organs, lateral ---------------------------------------------------------------------------------


def lateral_chest(patient: Patient, view: View, heart: float = 1.0) -> Chest:
    """The smooth organs seen from the patient's left side. The front of the body is at the left of the image."""
    central = _lateral_mediastinum(patient, view, heart)
    lungs = {side: LungField(_lateral_lung(patient, view, side, central)) for side in SIDES}
    middle = np.asarray(profile([(-90, -6), (0, 8), (80, 22)]))
    air = 15 * dome((GRID_H - middle) / 8.5) * soft_step(88 - GRID_Y, 6) * soft_step(GRID_Y + 95, 20)
    if patient.stomach_air > 0.35:
        size = 12 + 26 * patient.stomach_air
        top = float(lateral_dome_height(patient, view, "left")[0, GRID_H.shape[1] // 2]) + 5
        air = air + ellipse((2, top + size * 0.62), (size * 1.1, size * 0.62), 1.5 * size)
    return Chest(_lateral_trunk(patient), lungs, _lateral_spine(patient), np.asarray(air, dtype=np.float32))


def _lateral_trunk(patient: Patient) -> Array:
    layer = 16 * patient.fat
    front = profile(
        [
            (-110, -48),
            (-62, -50),
            (-20, -62),
            (30, -72 - layer),
            (100, -96 - layer),
            (200, -104 - layer),
            (350, -106 - 1.4 * layer),
        ]
    )
    back = profile(
        [(-110, 62), (-50, 74), (0, 96), (60, 104 + 0.7 * layer), (180, 110 + 0.7 * layer), (350, 96 + layer)]
    )
    width = profile([(-110, 112), (-60, 118), (-25, 240), (5, 330), (45, 330), (85, 280), (160, 268), (350, 285)], 12.0)
    offset = np.abs(2 * GRID_H - front - back) / (back - front)
    trunk = width * np.sqrt(np.maximum(1 - offset**3, 0))
    arm = 175 * dome((GRID_H + 22 + 0.45 * (20 - GRID_Y)) / 58) * soft_step(10 - GRID_Y, 30)
    height = 165 + 1.0 * patient.breast
    bust = ellipse((-100.0 - layer, height), (10 + 1.1 * patient.breast, 46.0), 2.4 * patient.breast, 0.15)
    return np.asarray(union([trunk.astype(np.float32), arm.astype(np.float32)]) + bust, dtype=np.float32)


def lateral_dome_height(patient: Patient, view: View, side: str) -> Array:
    """y in mm of the diaphragm's silhouette from front to back: (1, grid columns)."""
    top = 203 + patient.dome[0] + 13 * view.inspiration + (patient.dome[1] if side == "left" else 0)
    backward = GRID_H + 18
    fall = 52 * (np.maximum(backward, 0) / 100) ** 2.1 + 24 * (np.maximum(-backward, 0) / 75) ** 2
    return np.asarray(top + fall, dtype=np.float32)


def lateral_lung_edges(patient: Patient) -> tuple[Array, Array]:
    """z in mm of the front and the back of the lungs at every y: two of (grid rows, 1)."""
    front = profile([(-10, -24), (20, -38), (60, -62), (110, -82), (170, -94), (300, -94)])
    knots = [(float(y), float(depth)) for y, depth in zip(RIB_TOP[:11], RIB_DEPTH[:11], strict=True)]
    back = profile([(-10, 32), *knots])
    return front, back + 1.5 * patient.lung_shape[6]


def _lateral_lung(patient: Patient, view: View, side: str, central: Array) -> Array:
    """Width in mm of one lung, reduced where the mediastinum (`central`) displaces it."""
    front, back = lateral_lung_edges(patient)
    width = profile([(-20, 30), (0, 44), (30, 66), (70, 92), (120, 106), (180, 116), (300, 118)])
    share = (2 * GRID_H - front - back) / (back - front)
    across = np.sqrt(np.maximum(1 - np.abs(share) ** 4, 0))
    crown = -4 + ((GRID_H - 4) / 30) ** 2 * 14
    apex = dome(1 - np.clip((GRID_Y - crown) / 46, 0, 1))
    below = GRID_Y - lateral_dome_height(patient, view, side)
    sulcus = 1 - 0.66 * soft_step(below - 1.5, 2.5) - 0.34 * np.sqrt(np.clip(below / 50, 0, 1))
    thickness = width * across * apex * sulcus
    return np.asarray(thickness * (1 - np.minimum(central, 205) / 240), dtype=np.float32)


def _lateral_mediastinum(patient: Patient, view: View, heart: float) -> Array:
    """Path in mm across heart and great vessels."""
    size, aorta = patient.heart * heart, patient.aorta
    bend = np.array(patient.heart_shape[:2]) * 40
    muscle = ellipse(
        (-42 + bend[0] + 20 * (size - 1), 166 + bend[1] + 6 * view.inspiration - 18 * (size - 1)),
        (76 * size, 53 * size),
        126 * size,
        0.9,
    )
    ascending = ellipse((-26, 84), (20 + 6 * aorta, 44), 60)
    arch = ellipse((6, 62), (40, 16 * aorta), 40)
    descending = ellipse((44, 150), (12 * aorta, 110), 24)
    hilum = ellipse((10, 108), (17, 21), 62)
    cava = ellipse((8, 190), (16, 34), 36)
    return union([muscle, ascending, arch, descending, hilum, cava])


def _lateral_spine(patient: Patient) -> Array:
    middle = np.array([spine_depth(patient, float(down)) for down in GRID_Y[:, 0]], dtype=np.float32)[:, None]
    half = profile([(-110, 9), (0, 13), (120, 16), (240, 18), (350, 20)])
    to_middle, height = _vertebral_phase()
    behind = GRID_H - middle - half
    between = 0.35 + 0.65 * soft_step(height * 0.32 - to_middle, 4)
    arch = soft_step(behind - 3, 3) * soft_step(16 - behind, 6) * between
    return np.asarray(3.0 * _vertebral_column(GRID_H - middle, half) + 0.13 * arch, dtype=np.float32)


# --- skeleton -----------------------------------------------------------------------------------------------


def rib_curves(patient: Patient, view: View) -> tuple[Float, Float]:
    """The ribs of both sides: points (24, 48, 3) and radii (24, 48) in mm. The first twelve are on the right side."""
    turn = np.linspace(0, 1, 48)[None, :]
    start = np.arcsin(14 / RIB_WIDTH)[:, None]
    angle = start + turn * (RIB_END[:, None] - start)
    lift = 1 - 0.10 * view.inspiration
    fall = RIB_DROP[:, None] * patient.rib_slope * lift * (1 - np.cos(angle)) / 2
    hump = -5.0 * np.sin(np.clip(angle * 2, 0, np.pi))
    top = RIB_TOP + np.array(patient.rib_spacing)
    down = top[:, None] + fall + hump + 3 * (1 - patient.rib_slope) * 10
    back = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.9
    across = RIB_WIDTH[:, None] * np.sin(angle) ** 0.92
    depth = RIB_DEPTH[:, None] * back - 4 * np.exp(-((turn / 0.06) ** 2))
    offset = spine_offset(patient, down) * np.exp(-((across / 60) ** 2))
    sides = [np.stack([sign * across + offset, down, depth], axis=-1) for sign in SIDES.values()]
    thick = np.clip(6.4 - 1.4 * np.exp(-turn * 12) - 1.2 * (turn > 0.97), 3, 7)
    radius = thick * np.where(np.arange(12) == 0, 1.15, 1.0)[:, None]
    radius[10:] *= np.linspace(1, 0.6, 48)
    return np.concatenate(sides), np.concatenate([radius, radius])


def draw_ribs(tubes: TubeProjector, points: Float, radius: Float) -> None:
    """Draw the ribs as flat bands that are taller than thick, and that fade to cartilage at the front."""
    along = np.linspace(0, 1, points.shape[1])
    fade = (1 - 0.45 * along) * np.clip(np.minimum(1 - along, along + 0.01) / 0.06, 0.15, 1)
    level = np.tile(np.concatenate([[0.7, 0.85], np.ones(7), [0.85, 0.6, 0.45]]), 2)
    tubes.add(points, radius, BONE, wall=1.2, flatness=0.62, upright=True, strength=level[:, None] * fade)


def draw_skeleton(tubes: TubeProjector, view: View) -> None:
    """Draw the clavicles, the edges of the shoulder blades and the upper arms, and the sternum in a lateral view."""
    for sign in SIDES.values():
        _draw_shoulder(tubes, view, sign)
    if view.lateral:
        line = np.array([[0, 26, -47], [0, 50, -60], [0, 110, -84], [0, 165, -97], [0, 200, -98]], dtype=float)
        draw_line(tubes, line, [7.5, 6.0, 5.5, 5.5, 4.0], 1.5 * BONE, wall=1.4)


def _draw_shoulder(tubes: TubeProjector, view: View, sign: int) -> None:
    lift = {"PA": 4.0, "AP": -7.0, "LL": 0.0}[view.name]
    clavicle: list[list[float]] = [
        [20, 27, -48],
        [40, 22, -56],
        [66, 15, -56],
        [95, 7, -40],
        [122, 2 + lift, -20],
        [150, lift, -4],
    ]
    strength = 0.4 if view.lateral else 0.8
    draw_line(tubes, _side(clavicle, sign), [8.5, 6.6, 5.6, 5.4, 6.0, 6.6], strength * BONE, wall=1.5)
    if view.lateral:  # arms raised
        arm = [[165, -5, 15], [168, -40, -10], [172, -120, -60]]
        draw_line(tubes, _side(arm, sign), [22, 16, 13], 0.3 * BONE, wall=2.5)
        return
    inner = 128 if view.name == "PA" else 104
    edge = [
        [inner - 4, 16, 70],
        [inner - 3, 60, 80],
        [inner + 2, 105, 84],
        [inner + 8, 138, 82],
        [inner + 14, 120, 80],
        [inner + 30, 66, 64],
    ]
    draw_line(tubes, _side(edge, sign), [2.6, 2.6, 3.0, 4.0, 4.2, 5.0], 0.5 * BONE, wall=1.2)
    spine = [[inner + 2, 36, 86], [inner + 24, 18, 80], [inner + 42, 4, 60]]
    draw_line(tubes, _side(spine, sign), [3.0, 4.5, 6.0], 0.4 * BONE, wall=1.5)
    arm = [[177, 32, 10], [184, 50, 8], [193, 80, 6], [208, 130, 4], [228, 210, 2]]
    draw_line(tubes, _side(arm, sign), [16, 14, 12, 12, 12], 0.65 * BONE, wall=2.6)


def _side(points: Sequence[Sequence[float]], sign: int) -> Float:
    return np.array(points, dtype=float) * [sign, 1, 1]


def draw_line(
    tubes: TubeProjector, points: Float, radii: list[float], density: float, wall: float | None = None
) -> None:
    """Draw one tube along a smooth curve through a few points. `density` is in 1/mm, all other arguments in mm."""
    place = np.linspace(0, len(points) - 1, 12 * len(points))
    curve = np.stack([_smooth_interp(place, points[:, axis]) for axis in range(3)], axis=-1)
    radius = _smooth_interp(place, np.array(radii))
    along = np.linspace(0, 1, len(place))
    ends = np.clip(np.minimum(along, 1 - along) / 0.07 + 0.15, 0, 1)  # bones have rounded ends
    tubes.add(curve[None], np.maximum(radius, 1.0)[None], density, wall=wall, strength=ends[None])


def _smooth_interp(place: Float, values: Float) -> Float:
    """Catmull-Rom interpolation at fractional indices of `values`."""
    padded = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    start = np.minimum(place.astype(np.int64), len(values) - 2)
    share = place - start
    before, first, second, after = (padded[start + step] for step in range(4))
    bend = (
        second
        - before
        + share * (2 * before - 5 * first + 4 * second - after + share * (3 * (first - second) + after - before))
    )
    return np.asarray(first + 0.5 * share * bend)


def spine_depth(patient: Patient, down: float) -> float:
    """z in mm of the middle of the vertebral bodies."""
    knots = [(-110, 8), (-40, 14), (0, 22), (60, 50), (130, 66), (200, 66), (270, 52), (350, 34)]
    kyphosis = patient.spine_curve[2] * np.sin(np.pi * np.clip(down, 0, 260) / 260)
    return float(np.interp(down, [k[0] for k in knots], [k[1] for k in knots]) + kyphosis)


# --- airways and vessels of the lung ------------------------------------------------------------------------


@lru_cache(maxsize=8)
def vessel_tree(seed: int, side: str) -> tuple[tuple[Float, Float], ...]:
    """The vessels of one lung, as one entry per generation of branches, from large to small.

    An entry holds points (branches, 10, 3) and radii (branches, 10), both in mm.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SIDES[side] + 1])))
    fan = np.array(
        [
            [0.35, -1.0, -0.2],
            [0.8, -0.75, 0.3],
            [1.0, -0.25, -0.5],
            [1.0, 0.25, 0.4],
            [0.85, 0.7, -0.4],
            [0.45, 1.0, 0.5],
            [0.1, 1.0, 0.1],
            [0.6, 1.0, -0.1],
            [0.5, -0.9, 0.5],
            [0.25, 1.0, 0.4],
        ]
    )
    heading = fan + generator.normal(0, 0.12, fan.shape)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    start = np.array([34.0, 110.0 if side == "right" else 103.0, 4.0]) + heading * [2, 16, 4]
    radius = np.where(fan[:, 1] > 0, 3.7, 2.7) * generator.uniform(0.85, 1.15, len(fan))
    length = generator.uniform(34, 50, len(fan))
    generations: list[tuple[Float, Float]] = []
    for _ in range(5):
        bend = generator.normal(0, 0.16, heading.shape)
        step = np.linspace(0, 1, 10)[None, :, None]
        curve = start[:, None] + length[:, None, None] * (step * heading[:, None] + step**2 * bend[:, None])
        taper = radius[:, None] * np.linspace(1, 0.78, 10)
        generations.append((curve * [SIDES[side], 1, 1], taper))
        start, heading, radius, length = _bifurcate(curve, heading + 2 * bend, radius, length, generator)
    return tuple(generations)


def _bifurcate(
    curve: Float, heading: Float, radius: Float, length: Float, generator: np.random.Generator
) -> tuple[Float, Float, Float, Float]:
    """Two children for each branch. The thicker child is straighter (Murray's law gives 0.79 for equal children)."""
    count = len(radius)
    aside = generator.normal(0, 1, heading.shape)
    aside -= (aside * heading).sum(1, keepdims=True) * heading / (heading**2).sum(1, keepdims=True)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    children = np.concatenate([heading + 0.38 * aside, heading - 0.62 * aside])
    children /= np.linalg.norm(children, axis=1, keepdims=True)
    shrink = np.repeat([0.80, 0.68], count)
    longer = np.tile(length, 2) * generator.uniform(0.66, 0.98, 2 * count)
    ends = np.concatenate([curve[:, -1], curve[:, -1]])
    return ends, children, np.tile(radius, 2) * 0.78 * (shrink / 0.74), longer


def draw_vessels(tubes: TubeProjector, patient: Patient, chest: Chest) -> None:
    """Draw the lung vessels where aerated lung makes them visible."""
    for side, lung in chest.lungs.items():
        visible = lung.visibility()
        for place, (points, radius) in enumerate(vessel_tree(patient.vessel_seed, side)):
            # The trunks fade in, since they leave the hilum, whose soft tissue is already drawn.
            ramp = np.linspace(0.1 if place == 0 else 1.0, 1.0, points.shape[1])
            tubes.add(points, radius, 1.9 * (SOFT_TISSUE - LUNG), mask=visible, strength=ramp[None])


def draw_bronchi(tubes: TubeProjector) -> None:
    """Draw the main bronchi as air within the mediastinum."""
    right = np.array([[-2, 76, 12], [-18, 96, 16], [-32, 116, 20], [-38, 136, 24]], dtype=float)
    left = np.array([[-1, 77, 12], [20, 97, 18], [40, 110, 26], [50, 126, 30]], dtype=float)
    for points in (right, left):
        radius = np.linspace(6.5, 4.2, len(points))
        tubes.add(points[None], radius[None], -0.55 * SOFT_TISSUE)
