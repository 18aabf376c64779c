"""Findings and anatomy are visible in the synthetic radiographs, in the right place and strength."""

import numpy as np
import pytest
from helpers.synthetic import finding_of, stream
from PIL import Image

from cyclic_cli.phantom.anatomy import Patient, sample_patient
from cyclic_cli.phantom.findings import (
    FINDINGS,
    Finding,
)
from cyclic_cli.phantom.projection import View
from cyclic_cli.phantom.radiograph import draw_radiograph, quantise, sample_view

PATIENT = sample_patient(1, stream(5))


def view_of(name: str, patient: Patient = PATIENT, seed: int = 1) -> View:
    return sample_view(name, patient, False, stream(seed))


def reduce_to_64(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image.clip(0, 1)).resize((64, 64), Image.Resampling.BOX))


def difference(view: View, findings: tuple[Finding, ...]) -> np.ndarray:
    """The change by the findings at 64 × 64 pixels, in multiples of the noise at that size.

    Changes below a quarter of the largest are set to 0, since findings also change the display range slightly.
    """
    without = reduce_to_64(draw_radiograph(PATIENT, view, (), None, stream(7)))
    other_noise = reduce_to_64(draw_radiograph(PATIENT, view, (), None, stream(8)))
    with_findings = reduce_to_64(draw_radiograph(PATIENT, view, findings, None, stream(7)))
    change = np.abs(with_findings - without)
    return np.where(change > change.max() / 4, change, 0) / np.std(other_noise - without)


def extent(mask: np.ndarray) -> tuple[int, int]:
    """The number of rows and of columns with at least one pixel of the mask."""
    return int(mask.any(axis=1).sum()), int(mask.any(axis=0).sum())


SPANNING = [name for name in FINDINGS if name not in ("nodule", "fracture")]


@pytest.mark.parametrize("name", SPANNING)
@pytest.mark.parametrize("view", ["PA", "LL"])
def test_mild_findings_span_three_pixels_at_64(name: str, view: str) -> None:
    severity = "" if name == "pacemaker" else "mild"
    changed = difference(view_of(view), (finding_of(name, severity=severity),)) > 6
    assert min(extent(changed)) >= 3
    assert changed.mean() < 0.5


@pytest.mark.parametrize("name", ["nodule", "fracture"])
def test_small_findings_are_visible(name: str) -> None:
    view = view_of("PA")
    finding = finding_of(name, severity="moderate")
    without = draw_radiograph(PATIENT, view, (), None, stream(7))
    noise = np.std(draw_radiograph(PATIENT, view, (), None, stream(8)) - without)
    changed = np.abs(draw_radiograph(PATIENT, view, (finding,), None, stream(7)) - without)
    blurred = np.asarray(Image.fromarray(changed).reduce(3))
    assert (blurred > noise).sum() >= 6


@pytest.mark.parametrize("name", [name for name in FINDINGS if name != "cardiomegaly"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_findings_lie_on_the_stated_side(name: str, side: str, view: str) -> None:
    change = difference(view_of(view), (finding_of(name, side=side),))
    viewer_left, viewer_right = change[:, :32].sum(), change[:, 32:].sum()
    # the patient's left is at the viewer's right
    assert (viewer_right > 2 * viewer_left) if side == "left" else (viewer_left > 2 * viewer_right)


@pytest.mark.parametrize("name", ["cardiomegaly", "pleural_effusion", "consolidation", "pneumothorax"])
def test_severe_changes_more_than_mild(name: str) -> None:
    side = "" if name == "cardiomegaly" else "right"
    wanted = {"site": "lower lobe"} if name == "consolidation" else {}
    if side:
        wanted["side"] = side
    mild, severe = (
        difference(view_of("PA"), (finding_of(name, severity=severity, **wanted),)).sum()
        for severity in ("mild", "severe")
    )
    assert severe > 1.4 * mild


def test_attenuation_is_bright_and_lungs_are_dark() -> None:
    image = reduce_to_64(draw_radiograph(PATIENT, view_of("PA"), (), None, stream(7)))
    lungs = np.concatenate([image[24:34, 14:20], image[24:34, 44:50]], axis=1)
    assert image[24:40, 30:34].mean() > lungs.mean() + 0.3
    assert image[56:, 28:36].mean() > lungs.mean() + 0.3


def test_anatomy_persists_over_a_patients_images() -> None:
    others = [sample_patient(number, stream(5, number)) for number in range(5)]
    images = [
        [
            reduce_to_64(draw_radiograph(patient, view_of("PA", patient, seed), (), None, stream(9, seed)))[8:, 8:56]
            for seed in (21, 22)
        ]
        for patient in others
    ]

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])

    same = np.mean([correlation(pair[0], pair[1]) for pair in images])
    different = np.mean([correlation(images[a][0], images[b][1]) for a in range(5) for b in range(5) if a != b])
    assert same > different + 0.005


def test_quantise_inverts_for_monochrome1() -> None:
    image = np.linspace(-0.1, 1.1, 50, dtype=np.float32)[None].repeat(2, axis=0)
    plain, (centre, width) = quantise(image, 12, inverted=False)
    inverted, _ = quantise(image, 12, inverted=True)
    assert (np.diff(plain[0].astype(int)) > 0).all()
    assert (plain + inverted == 4095).all()
    assert np.interp(0.5, image[0], plain[0]) == pytest.approx(centre, abs=1)
    assert np.interp(1.0, image[0], plain[0]) == pytest.approx(centre + width / 2, abs=2)
