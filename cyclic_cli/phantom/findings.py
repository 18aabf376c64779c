"""Samples the findings of a study, draws them into a chest, and writes them to the truth table.

A finding belongs to a study, so all views of the study show it. Side, site and severity are words that the report and
the truth table share. The location in the body is a point in millimetres, which only the drawing uses.
"""

from dataclasses import dataclass

import numpy as np

from cyclic_cli.phantom import anatomy
from cyclic_cli.phantom.anatomy import SIDES, Chest, Float, LungField, Patient, soft_step
from cyclic_cli.phantom.projection import GRID_H, GRID_Y, SOFT_TISSUE, Array, TubeProjector, View

SEVERITIES = ("mild", "moderate", "severe")
FREQUENCY = {
    "cardiomegaly": 0.22,
    "pleural_effusion": 0.22,
    "consolidation": 0.18,
    "nodule": 0.14,
    "pneumothorax": 0.12,
    "pacemaker": 0.11,
    "fracture": 0.10,
}
"""Relative frequency of each finding. The keys are the names, in the order of the truth table."""
FINDINGS = tuple(FREQUENCY)
NORMAL_SHARE = 0.455
"""Fraction of studies without a new finding. Earlier pacemakers lower the fraction of normal studies to 0.43."""

LOBES = {
    ("right", "upper lobe"): ((-72, 66, 0), (46, 38, 44)),
    ("right", "middle lobe"): ((-66, 160, -45), (44, 36, 40)),
    ("right", "lower lobe"): ((-86, 178, 45), (44, 42, 42)),
    ("left", "upper lobe"): ((74, 70, -5), (42, 40, 44)),
    ("left", "lingula"): ((92, 158, -48), (34, 38, 38)),
    ("left", "lower lobe"): ((92, 178, 48), (40, 42, 42)),
}
"""Centre and radii in mm of a consolidation in each lobe."""
ZONES = {"upper zone": 62.0, "mid zone": 115.0, "lower zone": 165.0}
"""y in mm of a nodule in each zone."""
ORDINALS = {3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth", 9: "ninth"}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Words that do not apply are empty. `centre` and `size` hold its location and extent. Their meaning and unit depend
    on the name, as `sample_finding` sets them.
    """

    name: str
    side: str = ""
    site: str = ""
    severity: str = ""
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    size: float = 0.0

    @property
    def level(self) -> int:
        return SEVERITIES.index(self.severity)

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(SIDES) if self.side == "bilateral" else (self.side,)


def sample_findings(generator: np.random.Generator, earlier: tuple[Finding, ...] = ()) -> tuple[Finding, ...]:
    """The findings of one study, in the order of the truth table. A pacemaker of the earlier study is kept."""
    kept = tuple(finding for finding in earlier if finding.name == "pacemaker")
    names: list[str] = []
    if generator.random() >= NORMAL_SHARE:
        chance = np.array(list(FREQUENCY.values()))
        count = int(generator.choice([1, 2, 3], p=[0.62, 0.29, 0.09]))
        names = generator.choice(FINDINGS, size=count, replace=False, p=chance / chance.sum()).tolist()
    new = tuple(sample_finding(name, generator) for name in names if name not in [item.name for item in kept])
    return tuple(sorted(kept + new, key=lambda finding: FINDINGS.index(finding.name)))


def sample_finding(name: str, generator: np.random.Generator) -> Finding:
    """One finding of the given name, with side, site, severity and location sampled at random."""
    severity = str(generator.choice(SEVERITIES, p=[0.40, 0.36, 0.24]))
    side = str(generator.choice(["right", "left"]))
    level = SEVERITIES.index(severity)
    if name == "cardiomegaly":
        return Finding(name, severity=severity, size=(1.20, 1.34, 1.50)[level] + generator.uniform(-0.03, 0.03))
    if name == "pleural_effusion":
        side = str(generator.choice(["right", "left", "bilateral"], p=[0.38, 0.36, 0.26]))
        return Finding(name, side, "", severity, size=(42, 82, 130)[level] + generator.uniform(-6, 6))
    if name == "pneumothorax":
        return Finding(name, side, "", severity, size=(20, 33, 54)[level] + generator.uniform(-2, 4))
    if name == "consolidation":
        side, site = list(LOBES)[generator.integers(len(LOBES))]
        return Finding(name, side, site, severity, LOBES[side, site][0], (0.36, 0.56, 0.80)[level])
    if name == "nodule":
        site = str(generator.choice(list(ZONES)))
        across = generator.uniform(62, 92) if site != "upper zone" else generator.uniform(48, 66)
        centre = (SIDES[side] * across, ZONES[site] + generator.uniform(-12, 12), generator.uniform(-40, 45))
        return Finding(name, side, site, severity, centre, (6.0, 9.5, 14.0)[level] + generator.uniform(-0.8, 0.8))
    if name == "pacemaker":
        side = "left" if generator.random() < 0.75 else "right"
        site = str(generator.choice(["single chamber", "dual chamber"]))
        return Finding(name, side, site, "", (SIDES[side] * 96.0, generator.uniform(42, 56), -78.0))
    rib = int(generator.integers(3, 10))
    place = generator.uniform(0.42, 0.62)
    return Finding(name, side, f"{ORDINALS[rib]} rib", severity, (place, float(rib), 0.0), (4.0, 7.5, 12.0)[level])


# --- drawing ------------------------------------------------------------------------------------------------


def apply_to_chest(findings: tuple[Finding, ...], chest: Chest, patient: Patient, view: View) -> None:
    """Change the smooth organs in place. Cardiomegaly is not handled here, since the heart was drawn larger already."""
    for finding in findings:
        if finding.name == "pleural_effusion":
            for side in finding.sides:
                _add_effusion(finding, chest.lungs[side], patient, view, side)
        elif finding.name == "pneumothorax":
            _add_pneumothorax(finding, chest, patient, view)
        elif finding.name == "consolidation":
            lung = chest.lungs[finding.side]
            lung.dense += finding.size * lung.thickness * _consolidation_shape(finding, patient, view)
        elif finding.name == "nodule":
            across, down = view.plane(np.array(finding.centre))
            chest.lungs[finding.side].dense += anatomy.ellipse(
                (float(across), float(down)), (finding.size, finding.size * 0.94), 2.4 * finding.size
            )
        elif finding.name == "pacemaker":
            chest.bone = chest.bone + _generator_box(finding, view)


def heart_factor(findings: tuple[Finding, ...]) -> float:
    """The factor by which cardiomegaly enlarges the heart; 1 without it."""
    return max([finding.size for finding in findings if finding.name == "cardiomegaly"], default=1.0)


def _wall_share(patient: Patient, view: View, side: str) -> Array:
    """A map that rises from 0 at the middle of the lung to 1 at the chest wall."""
    if view.lateral:
        front, back = anatomy.lateral_lung_edges(patient)
        share = np.abs(2 * GRID_H - front - back) / (back - front)
    else:
        share = np.clip(GRID_H * SIDES[side] / anatomy.frontal_lung_edge(patient, side), 0, 1.1)
    return np.asarray(share, dtype=np.float32)


def _add_effusion(finding: Finding, lung: LungField, patient: Patient, view: View, side: str) -> None:
    """Add fluid up to `size` mm above the costophrenic angle at the chest wall.

    The level is lower towards the middle, which forms the meniscus.
    """
    angle = 256 + patient.dome[0] + 10 * view.inspiration
    sag = 18 + 0.22 * finding.size
    surface = angle - finding.size + sag * (1 - _wall_share(patient, view, side) ** 3)
    lung.fluid = np.maximum(lung.fluid, soft_step(np.asarray(GRID_Y - surface), 7.0))


def _add_pneumothorax(finding: Finding, chest: Chest, patient: Patient, view: View) -> None:
    """Add air between the chest wall and the lung, `size` mm wide at the top, and the pleural line."""
    lung = chest.lungs[finding.side]
    gap = finding.size * (1 - 0.55 * np.clip((GRID_Y - 50) / 170, 0, 1))
    top = -4 + 1.5 * finding.size
    rounding = anatomy.dome(1 - np.clip((GRID_Y - top) / 95, 0, 1))
    if view.lateral:
        front, back = anatomy.lateral_lung_edges(patient)
        reach = np.abs(GRID_H - (front + back) / 2)
        boundary = ((back - front) / 2 - 0.6 * gap) * rounding
    else:
        reach = GRID_H * SIDES[finding.side]
        boundary = (anatomy.frontal_lung_edge(patient, finding.side) - gap) * rounding
    within = np.asarray(boundary - reach, dtype=np.float32)
    lung.aerated = soft_step(within, 1.8) * soft_step(GRID_Y - top, 2.0)
    lung.dense += (10.0 + 12.0 * finding.level) * lung.aerated * (lung.thickness > 0)
    line = np.exp(-((within / 1.5) ** 2)) * np.clip(lung.thickness / 40, 0, 1) * (top < GRID_Y)
    chest.bone = chest.bone + (0.10 if view.lateral else 0.16) * line.astype(np.float32)


def _consolidation_shape(finding: Finding, patient: Patient, view: View) -> Array:
    """Density of a consolidation, 0 to 1, with a ragged margin."""
    radii = LOBES[finding.side, finding.site][1]
    across, down = view.plane(np.array(finding.centre))
    wide = radii[2] if view.lateral else radii[0]
    seed = [patient.vessel_seed, FINDINGS.index(finding.name), int(view.lateral)]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    ragged = np.zeros((GRID_Y.shape[0], GRID_H.shape[1]), dtype=np.float32)
    for wavelength in (44, 27, 17, 11):
        first, second, turn = generator.uniform(0, 2 * np.pi, 3)
        one = GRID_H * np.cos(turn) + GRID_Y * np.sin(turn)
        two = GRID_Y * np.cos(turn) - GRID_H * np.sin(turn)
        wave = 2 * np.pi / wavelength
        ragged += 0.012 * wavelength**0.6 * np.sin(wave * one + first) * np.sin(wave * two + second)
    distance = np.hypot((GRID_H - float(across)) / wide, (GRID_Y - float(down)) / radii[1]) + 1.3 * ragged
    body = np.exp(-(distance**4))
    if finding.side == "right" and finding.site == "upper lobe":
        body = body * soft_step(96 + 0.05 * GRID_H - GRID_Y, 3.0)  # the horizontal fissure is a sharp lower border
    return np.asarray(np.clip(body * (1 - 0.9 * ragged), 0, 1), dtype=np.float32)


def _generator_box(finding: Finding, view: View) -> Array:
    """Attenuation of the pacemaker's metal case, dimensionless."""
    across, down = view.plane(np.array(finding.centre))
    half = (5.0, 22.0) if view.lateral else (24.0, 20.0)
    power = ((GRID_H - float(across)) / half[0]) ** 4 + ((GRID_Y - float(down)) / half[1]) ** 4
    inside = soft_step(1 - np.asarray(power), 0.35)
    return np.asarray((2.2 if view.lateral else 1.5) * inside, dtype=np.float32)


def draw_devices(findings: tuple[Finding, ...], tubes: TubeProjector, patient: Patient) -> None:
    """Draw pacemaker leads through the subclavian vein and superior vena cava to the right heart."""
    for finding in findings:
        if finding.name != "pacemaker":
            continue
        sign, (x, y, _) = SIDES[finding.side], finding.centre
        vein = [
            [x - sign * 6, y - 14, -70],
            [x - sign * 26, y - 26, -66],
            [sign * 52, 20, -50],
            [sign * 24, 26, -30],
            [-10, 46, -20],
            [-21, 75, -14],
            [-22, 112, -12],
        ]
        reach = 1 + 0.7 * (heart_factor(findings) - 1)
        tips = [[[-24, 158, -14], [-8, 192, -30], [40 * reach, 203, -58]]]
        if finding.site == "dual chamber":
            tips.append([[-22, 150, -18], [-20, 160, -34], [-14, 142, -48]])
        for tip in tips:
            anatomy.draw_line(tubes, np.array(vein + tip, dtype=float), [1.3] * (len(vein) + len(tip)), 0.16)
            end = np.array([tip[-2], tip[-1]], dtype=float)
            electrode = np.stack([end[1] + 0.22 * (end[0] - end[1]), end[1]])
            anatomy.draw_line(tubes, electrode, [2.0, 2.0], 0.22)


def break_ribs(findings: tuple[Finding, ...], points: Float, radius: Float) -> None:
    """Displace the outer part of each fractured rib downwards by `size` mm, in place."""
    for finding in findings:
        if finding.name == "fracture":
            place, rib, _ = finding.centre
            row = int(rib) - 1 + (12 if finding.side == "left" else 0)
            cut = int(place * (points.shape[1] - 1))
            away = np.arange(points.shape[1] - cut - 1)
            points[row, cut + 1 :, 1] += finding.size * np.exp(-away / 18.0)
            radius[row, cut : cut + 2] = [0.8, 0.8]


def draw_air_bronchograms(findings: tuple[Finding, ...], tubes: TubeProjector, patient: Patient, view: View) -> None:
    """Draw air in the larger branches within each consolidation that is more than mild."""
    for finding in findings:
        if finding.name == "consolidation" and finding.level > 0:
            shape = _consolidation_shape(finding, patient, view)
            for points, radius in anatomy.vessel_tree(patient.vessel_seed, finding.side)[:4]:
                tubes.add(points, radius * 0.9, -0.9 * SOFT_TISSUE, mask=shape)


# --- truth --------------------------------------------------------------------------------------------------

DETAILS = {
    "cardiomegaly": ("severity",),
    "pleural_effusion": ("side", "severity"),
    "consolidation": ("side", "site", "severity"),
    "nodule": ("side", "site", "severity"),
    "pneumothorax": ("side", "severity"),
    "pacemaker": ("side", "site"),
    "fracture": ("side", "site", "severity"),
}
"""The words that apply to each finding, which are the descriptive columns of the truth table."""
TRUTH_COLUMNS = ("no_finding", *FINDINGS, *(f"{name}_{word}" for name, words in DETAILS.items() for word in words))


def truth(findings: tuple[Finding, ...]) -> dict[str, str]:
    """A row of the truth table: 0 or 1 for `no_finding` and each finding, then the words, empty where absent."""
    present = {finding.name: finding for finding in findings}
    row = {"no_finding": str(int(not findings))}
    row |= {name: str(int(name in present)) for name in FINDINGS}
    for name, words in DETAILS.items():
        row |= {f"{name}_{word}": str(getattr(present[name], word)) if name in present else "" for word in words}
    return row
