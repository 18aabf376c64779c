"""Simulates the X-ray projection: geometry, line integrals of attenuation, and the detector.

Organs have two representations. Smooth organs (lungs, heart, trunk) are thickness maps on one coarse grid in the body
frame, and one affine resampling transfers them to the image. Thin structures (ribs, vessels, leads) are tubes in three
dimensions. Their mass is added to the image sample by sample, which is exact for any direction of view and needs no
loop over pixels.

The body frame is in millimetres of a reference adult. x points to the patient's left, y to the feet (0 near the lung
apex), and z to the back. The horizontal image axis is x in a frontal view and z in a lateral view.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Points = NDArray[Any]
"""Coordinates as floating-point numbers of single or double precision."""

GRID_STEP = 2.0
GRID_H = np.arange(-232.0, 232.1, GRID_STEP, dtype=np.float32)[None, :]
GRID_Y = np.arange(-110.0, 350.1, GRID_STEP, dtype=np.float32)[:, None]

SOFT_TISSUE = 0.0190
"""Linear attenuation coefficient of soft tissue in 1/mm, about that of water at 65 keV (NIST XCOM: 0.0193)."""
LUNG = 0.0048
"""Linear attenuation coefficient of aerated lung in 1/mm, at a quarter of the density of water."""
BONE = 0.058
"""Attenuation of cortical bone beyond that of soft tissue, in 1/mm, rounded up so that trabeculae are visible."""


@dataclass(frozen=True)
class View:
    """One exposure: direction, positioning and pixel grid.

    `name` is PA, AP or LL. `rotation` (about the body's long axis) and `roll` (in the image plane) are in radians.
    `shift` is (across, down) in mm. `scale` is the patient's size along x, y and z, relative to the reference adult.
    `spacing` is in mm per pixel. `inspiration` runs from -1 (poor) to 1 (deep). `exposure` is the number of quanta per
    square millimetre that reach the detector without a patient.
    """

    name: str
    rows: int
    columns: int
    spacing: float
    rotation: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    inspiration: float = 0.0
    exposure: float = 60000.0

    @property
    def lateral(self) -> bool:
        return self.name == "LL"

    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Matrix (2, 2) and offset (2,) that map body-frame (h, y) in mm to (column, row) in pixels."""
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        across = self.scale[2] if self.lateral else self.scale[0]
        matrix = np.array([[cosine * across, -sine * self.scale[1]], [sine * across, cosine * self.scale[1]]])
        centre = np.array([self.columns, self.rows]) / 2 + np.array(self.shift) / self.spacing
        return matrix / self.spacing, centre - matrix @ np.array([0.0, FIELD_CENTRE]) / self.spacing

    def plane(self, points: Points) -> tuple[Points, Points]:
        """Body-frame coordinates (h, y) in mm of points (..., 3), projected after the patient's rotation."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        if self.lateral:
            return z - x * (math.sin(self.rotation) * self.scale[0] / self.scale[2]), y
        return x + z * self.parallax(1.0), y

    def parallax(self, depth: float) -> float:
        """Horizontal shift in mm, in a frontal image, of a structure at depth z by the patient's rotation."""
        return depth * math.sin(self.rotation) * self.scale[2] / self.scale[0]

    def pixels(self, points: Points) -> Points:
        """Pixel coordinates (..., 2) as (column, row) of body points (..., 3)."""
        matrix, offset = self.affine()
        (a, b), (c, d) = matrix.tolist()
        left, top = offset.tolist()
        across, down = self.plane(points)
        return np.stack([a * across + b * down + left, c * across + d * down + top], axis=-1)

    def resample(self, grid: Array) -> Array:
        """A map on the body grid, resampled to the pixel grid (rows, columns) by bicubic interpolation."""
        matrix, offset = self.affine()
        inverse = np.linalg.inv(matrix)
        start = inverse @ (-offset) - np.array([GRID_H[0, 0], GRID_Y[0, 0]])
        rows = np.concatenate([inverse, start[:, None]], axis=1) / GRID_STEP
        rows[:, 2] += 0.5  # Pillow measures from the corner of a pixel, and the grid from its centre
        picture = Image.fromarray(np.ascontiguousarray(grid, dtype=np.float32))
        size = (self.columns, self.rows)
        coefficients = tuple(float(value) for value in rows.ravel())
        return np.asarray(
            picture.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC), dtype=np.float32
        )


FIELD_CENTRE = 122.0
"""The body's y in mm on which an exposure is centred."""


FORESHORTENING = 2.6
"""Upper limit on the length of a tube along the beam, relative to its length in the image.

Real tubes curve away from the beam, so longer paths are not realistic."""

TUBE_RASTER = 0.62
"""Resolution at which tubes are drawn, relative to the image.

The coarser grid is faster, and blurs about as much as a detector does."""


class TubeProjector:
    """Collects tubes, and sums their attenuation, the line integral through each pixel."""

    def __init__(self, view: View) -> None:
        self.full = view
        self.view = replace(
            view,
            rows=int(np.ceil(view.rows * TUBE_RASTER)),
            spacing=view.spacing / TUBE_RASTER,
            columns=int(np.ceil(view.columns * TUBE_RASTER)),
        )
        self._corners: list[NDArray[np.int64]] = []
        self._masses: list[Array] = []

    def add(
        self,
        points: Points,
        radius: Points,
        density: float,
        wall: float | None = None,
        flatness: float = 1.0,
        mask: Array | None = None,
        upright: bool = False,
        strength: Points | float = 1.0,
    ) -> None:
        """Add tubes along polylines.

        Args:
            points: (tubes, samples, 3) in mm.
            radius: (tubes, samples) in mm.
            density: Attenuation coefficient in 1/mm.
            wall: Thickness of the wall in mm for hollow tubes, whose core has an eighth of the density.
            flatness: Factor on the path length through the tube.
            mask: A map on the body grid that multiplies the density.
            upright: Whether the tube is a band, like a rib, whose breadth stays as close to the body's long axis as its
                course allows. Other tubes turn their breadth to the viewer.
            strength: (tubes, samples) or one number, multiplies the density along the tube.
        """
        amount = np.broadcast_to(np.asarray(strength, dtype=float), radius.shape)
        points, radius, amount = _refine(points, radius, amount, self.view)
        pixel = self.view.pixels(points)
        breadth = _upright_breadth(points, self.view) if upright else _facing_breadth(pixel, self.view)
        scaled = points * np.array(self.view.scale, dtype=np.float32)
        length = np.linalg.norm(np.gradient(scaled, axis=1), axis=-1)
        seen = np.linalg.norm(np.gradient(pixel, axis=1), axis=-1) * self.view.spacing
        length = np.minimum(length, FORESHORTENING * seen + 0.1 * length)
        across = max(3, int(2 * float(radius.max()) / self.view.spacing) + 1)
        offsets = ((np.arange(across) + 0.5) / across * 2 - 1).astype(np.float32)
        chord = _chord(radius, offsets, wall) * flatness
        weight = chord * (length * radius * amount * (2 / across * density / self.view.spacing**2))[..., None]
        if mask is not None:
            weight *= _look_up(mask, *self.view.plane(points))[..., None]
        column = pixel[..., :1] + (radius * breadth[..., 0])[..., None] * offsets
        row = pixel[..., 1:] + (radius * breadth[..., 1])[..., None] * offsets
        self._deposit(column.ravel() - 0.5, row.ravel() - 0.5, weight.ravel())

    def _deposit(self, column: Array, row: Array, mass: Array) -> None:
        """Distribute the mass of each sample over the four nearest pixels (bilinear weights)."""
        inside = (column >= 0) & (row >= 0) & (column < self.view.columns - 1) & (row < self.view.rows - 1)
        if not inside.all():
            column, row, mass = column[inside], row[inside], mass[inside]
        left, top = column.astype(np.int32), row.astype(np.int32)
        right_share, bottom_share = column - left.astype(np.float32), row - top.astype(np.float32)
        self._corners.append(top.astype(np.int64) * self.view.columns + left)
        lower, right = mass * bottom_share, mass * right_share
        both = lower * right_share
        self._masses.append(np.stack([mass - lower - right + both, right - both, lower - both, both]))

    def image(self) -> Array:
        """Attenuation (rows, columns), dimensionless."""
        columns, size = self.view.columns, self.view.rows * self.view.columns
        corners, masses = np.concatenate(self._corners), np.concatenate(self._masses, axis=1)
        total = np.zeros(size)
        for step, mass in zip((0, 1, columns, columns + 1), masses, strict=True):
            total[step:] += np.bincount(corners, mass, minlength=size)[: size - step]
        wide, tall = TUBE_RASTER * self.full.columns, TUBE_RASTER * self.full.rows
        left, top = (columns - wide) / 2, (self.view.rows - tall) / 2
        picture = Image.fromarray(total.reshape(self.view.rows, columns).astype(np.float32))
        finer = picture.resize(
            (self.full.columns, self.full.rows), Image.Resampling.BICUBIC, (left, top, left + wide, top + tall)
        )
        return np.asarray(finer, dtype=np.float32)


def _facing_breadth(pixel: Array, view: View) -> Array:
    """The direction perpendicular to the tube in the image, in pixels per mm: (tubes, samples, 2)."""
    tangent = np.gradient(pixel, axis=1)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1)
    return np.asarray(normal / (np.maximum(np.hypot(normal[..., :1], normal[..., 1:]), 1e-6) * view.spacing))


def _upright_breadth(points: Array, view: View) -> Array:
    """The body's long axis without its component along the tube, in pixels per mm: (tubes, samples, 2).

    A small perpendicular component is added, because the band would have no thickness where it turns edge-on.
    """
    tangent = np.gradient(points, axis=1)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    axis = -tangent * tangent[..., 1:2]
    axis[..., 1] += 1
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    breadth = view.pixels(points + axis) - view.pixels(points)
    outward = np.sign(view.plane(points)[0])
    breadth[..., 0] += 0.4 * outward * np.abs(_facing_breadth(view.pixels(points), view)[..., 0])
    return breadth


def _refine(points: Points, radius: Points, amount: Points, view: View) -> tuple[Array, Array, Array]:
    """Insert samples until neighbouring samples are less than a pixel apart."""
    step = np.abs(np.diff(view.pixels(points), axis=1)).max()
    pieces = max(1, int(np.ceil(step)))
    samples = points.shape[1]
    points, radius, amount = (values.astype(np.float32) for values in (points, radius, amount))
    position = np.linspace(0, samples - 1, (samples - 1) * pieces + 1, dtype=np.float32)
    start = np.minimum(position.astype(np.int64), samples - 2)
    share = position - start.astype(np.float32)
    finer = points[:, start] * (1 - share)[:, None] + points[:, start + 1] * share[:, None]
    along = [values[:, start] * (1 - share) + values[:, start + 1] * share for values in (radius, amount)]
    return finer, along[0], along[1]


def _chord(radius: Array, offsets: Array, wall: float | None) -> Array:
    """Path in mm through a round rod or shell at `offsets` (-1 to 1 of the radius): (tubes, samples, offsets)."""
    squared = (radius[..., None] * offsets) ** 2
    outer = 2 * np.sqrt(np.maximum(radius[..., None] ** 2 - squared, 0))
    if wall is None:
        return outer
    inner = 2 * np.sqrt(np.maximum((radius[..., None] - wall) ** 2 - squared, 0))
    return np.asarray(outer - 0.875 * inner)


def _look_up(grid: Array, across: Array, down: Array) -> Array:
    """Nearest-neighbour values of a body-grid map at (h, y) in mm."""
    column = np.clip((across - GRID_H[0, 0]) / GRID_STEP + 0.5, 0, grid.shape[1] - 1).astype(np.int64)
    row = np.clip((down - GRID_Y[0, 0]) / GRID_STEP + 0.5, 0, grid.shape[0] - 1).astype(np.int64)
    return grid[row, column]


def low_pass(image: Array, cells: int) -> Array:
    """The image, blurred to about `cells` independent values along its longer side."""
    rows, columns = image.shape
    longer = max(rows, columns)
    small = (max(2, columns * cells // longer), max(2, rows * cells // longer))
    reduced = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(reduced.resize((columns, rows), Image.Resampling.BICUBIC), dtype=np.float32)


def expose(attenuation: Array, view: View, generator: np.random.Generator) -> Array:
    """The negative logarithm of the detected exposure (rows, columns) for a map of attenuation.

    It is the Beer-Lambert transmission plus scatter, a broad blur of the transmission, and quantum noise. Counts are
    Poisson distributed. The logarithm of a count has the standard deviation one over the root of the count.
    """
    transmission = np.exp(-attenuation)
    scatter = np.maximum(low_pass(transmission, 16), 0)
    detected = transmission + 0.18 * scatter
    quanta = view.exposure * view.spacing**2 * detected
    noise = generator.standard_normal(attenuation.shape, dtype=np.float32) / np.sqrt(quanta)
    return np.asarray(noise - np.log(detected), dtype=np.float32)


def presentation(exposure: Array, attenuation: Array) -> Array:
    """The processed image for display: 0 (black) to about 1 (white) over the anatomy, with some values outside.

    The processing is dynamic range compression with a mild unsharp mask, as is usual for digital radiographs (Prokop
    and others, Journal of Thoracic Imaging 18:148, 2003). `attenuation` separates the body from the surrounding air.
    """
    coarse, fine = low_pass(exposure, 8), low_pass(exposure, 110)
    processed = exposure - 0.36 * coarse + 0.5 * (exposure - fine)
    body = attenuation[::4, ::4] > 1.0
    low, high = np.percentile(processed[::4, ::4][body], [3.0, 98.5])
    return np.asarray((processed - low) / (high - low) * 0.84 + 0.10, dtype=np.float32)
