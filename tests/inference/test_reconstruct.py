"""`cyclic reconstruct`: pixels as `prepare` reads them, errors that equal other libraries', safe outputs."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.makers import Ran, fitted, make_dicom, make_png, smooth_image
from matplotlib import colormaps
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.stats import spearmanr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cyclic_cli.config import Preprocessing, TrainConfig
from cyclic_cli.imaging import readers
from cyclic_cli.inference.load import PACKAGED_MODEL
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]


@pytest.fixture(scope="module")
def run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "conv"
    train(tiny_dataset, folder, TrainConfig(arch="conv", epochs=2))
    return folder


@pytest.fixture(scope="module")
def other_run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "linear"
    train(tiny_dataset, folder, TrainConfig(arch="linear", epochs=1))
    return folder


def test_scans_in_a_zip_archive_are_reconstructed(cyclic: Cyclic) -> None:
    for name in ("1.2.3", "1.2.4"):
        make_dicom(Path(f"study/{name}"), smooth_image(len(name)), bits=8)
    with zipfile.ZipFile("study.zip", "w") as archive:
        for name in ("1.2.3", "1.2.4"):
            archive.write(f"study/{name}", f"s1/{name}")
    zipped = cyclic("reconstruct", "study.zip", "--json", "--out", "a").lines
    plain = cyclic("reconstruct", "study", "--json", "--out", "b").lines
    assert [line["source"] for line in zipped] == ["study.zip/s1/1.2.3", "study.zip/s1/1.2.4"]
    assert [Path(line["output"]).name for line in zipped] == ["1.2.3.png", "1.2.4.png"]
    assert [line["mse"] for line in zipped] == [line["mse"] for line in plain]


def test_errors_over_the_image_area_equal_other_libraries(run: Path, cyclic: Cyclic) -> None:
    path = make_png(Path("scan.png"), smooth_image(77, 90, 60))
    results = cyclic("reconstruct", path, "--model", run, "--format", "npy", "--json").lines
    assert len(results) == 1
    decoded = np.load(results[0]["output"], allow_pickle=False)
    rows, columns = readers.image_area(90, 60, 32)
    original = fitted(path, Preprocessing(size=32))[0][rows, columns] / 255
    assert decoded.shape == original.shape
    assert decoded.dtype == np.float32
    assert results[0]["mse"] == pytest.approx(float(np.mean((original - decoded) ** 2)), rel=1e-5)
    assert results[0]["psnr"] == pytest.approx(peak_signal_noise_ratio(original, decoded, data_range=1), abs=1e-3)
    expected = structural_similarity(
        original,
        decoded.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    assert results[0]["ssim"] == pytest.approx(expected, abs=1e-5)


def test_the_reconstruction_equals_the_model_s_output(run: Path, cyclic: Cyclic) -> None:
    """The model is rebuilt here from the checkpoint alone."""
    from cyclic_cli.models import conv

    path = make_png(Path("scan.png"), smooth_image(5, 64, 64))
    output = cyclic("reconstruct", path, "--model", run / "model.safetensors", "--format", "npy", "--json").lines[0][
        "output"
    ]
    kept = read_checkpoint(run / "model.safetensors")
    model = conv.Model(conv.Config(**kept.architecture["config"]), tuple(kept.architecture["image_shape"]))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in kept.weights.items()})
    pixels = fitted(path, kept.preprocessing)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels[None] / np.float32(255)))["reconstruction"].clamp(0, 1)[0, 0].numpy()
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)


def test_the_picture_shows_original_reconstruction_and_difference(run: Path, cyclic: Cyclic) -> None:
    path = make_png(Path("scan.png"), smooth_image(5, 64, 64))
    words = ("reconstruct", path, "--model", run, "--overwrite", "--json")
    output = cyclic(*words).lines[0]["output"]
    decoded = np.load(cyclic(*words, "--format", "npy").lines[0]["output"])
    picture = Image.open(output)
    assert picture.info == {}  # no text chunk
    canvas = np.asarray(picture.convert("RGB")).astype(int)
    factor, top, left = 448 // 32, 38, 24
    middle = top + factor // 2 + factor * np.arange(32)

    def panel(number: int) -> np.ndarray:
        return canvas[np.ix_(middle, left + number * (448 + 24) + factor // 2 + factor * np.arange(32))]

    original = fitted(path, Preprocessing(size=32))[0]
    np.testing.assert_array_equal(panel(0)[..., 0], original)
    np.testing.assert_allclose(panel(1)[..., 0], decoded * 255, atol=0.5001)
    brightness = panel(2).sum(-1).ravel()  # the colour map rises in brightness with the difference
    difference = np.abs(original / 255 - decoded).ravel()
    assert spearmanr(brightness, difference).statistic > 0.99


def test_several_models_are_compared_on_scans_that_are_read_once(
    run: Path, other_run: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_png(Path(f"files/{number}.png"), smooth_image(number))
    make_png(Path("files/narrow.png"), smooth_image(3, 80, 20))  # too narrow for SSIM
    alone = {
        path.name: cyclic("reconstruct", "files", "--model", path, "--out", path.name, "--json").lines
        for path in (run, other_run)
    }
    reads: list[int] = []
    read = readers.read
    monkeypatch.setattr(readers, "read", lambda *words: reads.append(1) or read(*words))
    words = ("reconstruct", "files", "--model", run, "--model", other_run, "--overwrite")
    results = cyclic(*words, "--json", "--summary", "totals.json").lines
    assert len(reads) == 4
    assert [(line["source"], line["model"]) for line in results] == [
        (f"files/{scan}.png", model) for scan in ("0", "1", "2", "narrow") for model in ("conv", "linear")
    ]
    for model, lines in alone.items():
        assert {line["model"] for line in lines} == {model}
        together = [line for line in results if line["model"] == model]
        for name in ("source", "mse", "psnr", "ssim"):
            assert [line[name] for line in together] == [line[name] for line in lines]
    assert len({line["output"] for line in results}) == 4
    totals = json.loads(Path("totals.json").read_text())
    assert totals["used"] == 4
    assert totals["models"]["linear"]["checkpoint"] == str(other_run / "model.safetensors")
    for model, lines in alone.items():
        for name in ("mse", "psnr", "ssim"):
            values = [line[name] for line in lines if line[name] is not None]
            assert len(values) == (3 if name == "ssim" else 4)
            assert totals["models"][model][name] == pytest.approx(np.mean(values))
    assert "model" in cyclic(*words).out.splitlines()[0].split()
    assert "model" not in cyclic("reconstruct", "files", "--model", run, "--overwrite").out.splitlines()[0].split()


def test_the_picture_of_several_models_has_a_row_each_and_one_scale(run: Path, other_run: Path, cyclic: Cyclic) -> None:
    path = make_png(Path("scan.png"), smooth_image(5, 64, 64))
    words = ("reconstruct", path, "--model", run, "--model", other_run, "--json")
    arrays = [line["output"] for line in cyclic(*words, "--format", "npy").lines]
    assert arrays == ["reconstructions/conv/scan.npy", "reconstructions/linear/scan.npy"]
    canvas = np.asarray(Image.open(cyclic(*words).lines[0]["output"]).convert("RGB")).astype(int)
    original, decoded = fitted(path, Preprocessing(size=32))[0], [np.load(array) for array in arrays]
    differences = [np.abs(original / np.float32(255) - one) for one in decoded]
    end = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if np.quantile(differences, 0.995) <= step)
    height, factor = canvas.shape[0] // 2, 448 // 32
    for row, (one, difference) in enumerate(zip(decoded, differences, strict=True)):
        panels = [
            canvas[row * height + 38 :, 24 + number * (448 + 24) :][:448:factor, :448:factor] for number in range(3)
        ]
        np.testing.assert_array_equal(panels[0][..., 0], original)
        np.testing.assert_allclose(panels[1][..., 0], one * 255, atol=0.5001)
        colours = colormaps["inferno"](np.clip(difference / end, 0, 1))[..., :3] * 255
        np.testing.assert_allclose(panels[2], colours, atol=4)


def test_models_of_the_same_name_get_distinct_names(run: Path, cyclic: Cyclic) -> None:
    path = make_png(Path("scan.png"), smooth_image(1))
    for folder in ("a/best", "b/best"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    Path("small.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    given = ("a/best", "b/best/model.safetensors", "b/best", "small.safetensors")
    results = cyclic("reconstruct", path, "--json", *(word for model in given for word in ("--model", model))).lines
    assert [line["model"] for line in results] == ["a-best", "b-best", "b-best-2", "small"]


def test_models_that_differ_in_their_preprocessing_are_not_compared(run: Path, cyclic: Cyclic) -> None:
    path = make_png(Path("scan.png"), smooth_image(1))
    ran = cyclic("reconstruct", path, "--model", run, "--model", PACKAGED_MODEL)
    assert ran.code == 2
    assert "The models conv and default differ in their preprocessing: size 32 and 224." in ran.err
    assert not Path("reconstructions").exists()


def test_a_contact_sheet_shows_each_scan_beside_its_reconstructions(cyclic: Cyclic) -> None:
    paths = [make_png(Path(f"{number}.png"), smooth_image(number, 300, 260)) for number in range(2)]
    words = ("--model", PACKAGED_MODEL, "--format", "npy", "--sheet", "sheet.png", "--json")
    arrays = [np.load(line["output"]) for line in cyclic("reconstruct", *paths, *words).lines]
    picture = Image.open("sheet.png")
    assert picture.info == {}
    canvas = np.asarray(picture.convert("L")).astype(int)
    gap, head, row = 16, 40, 224 + 4 + 3 * 18 + 16
    assert canvas.shape == (head + 2 * row, gap + 2 * (224 + gap))
    for number, (path, array) in enumerate(zip(paths, arrays, strict=True)):
        area = readers.image_area(300, 260, 224)
        original = fitted(path, Preprocessing())[0][area]
        shown = canvas[head + number * row :][: array.shape[0]]
        np.testing.assert_array_equal(shown[:, gap:][:, : array.shape[1]], original)
        np.testing.assert_allclose(shown[:, 2 * gap + 224 :][:, : array.shape[1]], array * 255, atol=0.5001)
        figures = canvas[head + number * row + 224 : head + (number + 1) * row, 2 * gap + 224 :]
        assert (figures > 200).any()
    assert cyclic("reconstruct", *paths, *words).code == 1  # the outputs exist
    assert cyclic("reconstruct", *paths, "--sheet", "sheet.jpg").code == 2


def test_a_contact_sheet_has_at_most_24_rows_and_says_so(run: Path, other_run: Path, cyclic: Cyclic) -> None:
    for number in range(26):
        make_png(Path(f"files/{number:02}.png"), smooth_image(number, 64, 64))
    models = ("--model", run, "--model", other_run)
    ran = cyclic("reconstruct", "files", *models, "--sheet", "many.png", "--overwrite")
    assert "many.png shows the first 24 of 26 scans" in ran.err
    few = cyclic("reconstruct", "files/00.png", "files/01.png", *models, "--sheet", "few.png", "--overwrite")
    assert "few.png" not in few.err
    head, row = 40, 224 + 4 + 3 * 18 + 16
    assert Image.open("many.png").size == (16 + 3 * (224 + 16), head + 24 * row)
    assert Image.open("few.png").height == head + 2 * row


def test_scans_of_the_same_name_get_distinct_pictures(run: Path, cyclic: Cyclic) -> None:
    paths = ["x/s/a/1.2.840.1", "x/s/b/1.2.840.1", "y/s/b/1.2.840.1", "x/s/a/1.2.840.2.dcm"]
    for number, path in enumerate(paths):
        make_dicom(Path(path), smooth_image(number), bits=8)
    results = cyclic("reconstruct", "x/s", "y/s", "--model", run, "--json").lines
    assert {line["source"]: line["output"] for line in results} == {
        "x/s/a/1.2.840.1": "reconstructions/s-a-1.2.840.1.png",
        "x/s/b/1.2.840.1": "reconstructions/s-b-1.2.840.1.png",
        "y/s/b/1.2.840.1": "reconstructions/s-b-1.2.840.1-2.png",
        "x/s/a/1.2.840.2.dcm": "reconstructions/1.2.840.2.png",
    }
    assert all(Path(line["output"]).is_file() for line in results)
    again = cyclic("reconstruct", "x/s/a/1.2.840.2.dcm", "--model", run)
    assert again.code == 1
    assert "--overwrite" in again.err
    assert cyclic("reconstruct", "x/s/a/1.2.840.2.dcm", "--model", run, "--overwrite").code == 0


def test_bad_files_are_named_and_the_others_are_reconstructed(run: Path, cyclic: Cyclic) -> None:
    make_png(Path("files/good.png"), smooth_image(1))
    Path("files/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    make_dicom(Path("files/seg.dcm"), smooth_image(4), bits=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    words = ("reconstruct", "files", "--model", run, "--json", "--overwrite", "--summary", "totals.json")
    ran = cyclic(*words)
    assert ran.code == 0
    assert [line["source"] for line in ran.lines] == ["files/good.png"]
    assert "files/bad.png: the beginning of the PNG file is damaged or cut short" in ran.err
    totals = json.loads(Path("totals.json").read_text())
    assert {name: totals[name] for name in ("inputs", "used", "skipped", "rejected")} == {
        "inputs": 3, "used": 1, "skipped": 1, "rejected": 1,
    }  # fmt: skip
    assert cyclic(*words, "--strict").code == 8
    assert cyclic("reconstruct", "files/bad.png", "--model", run).code == 1


def test_a_file_name_that_is_not_utf_8_can_be_shown(run: Path, cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1)).rename(os.fsdecode(b"files/bad\xff.png"))
    ran = cyclic("reconstruct", "files", "--model", run, "--json")
    assert ran.lines[0]["source"] == r"files/bad\xff.png"
    assert cyclic("reconstruct", "files", "--model", run, "--overwrite").code == 0


def test_no_paths_names_scans_by_number(run: Path, cyclic: Cyclic) -> None:
    make_png(Path("files/Miller, Anna.png"), smooth_image(1))
    Path("files/Other, Name.png").write_bytes(b"")
    ran = cyclic("reconstruct", "files", "--model", run, "--no-paths", "--json")
    assert (ran.lines[0]["source"], ran.lines[0]["output"]) == ("1", "reconstructions/000001.png")
    assert "Miller" not in ran.out + ran.err
    assert "Other" not in ran.out + ran.err


def test_the_model_is_found_in_the_order_documented(
    run: Path, tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_png(Path("scan.png"), smooth_image(1, 64, 64))
    shapes: list[tuple[int, ...]] = []

    def image_side(*words: str | Path) -> int:
        ran = cyclic("reconstruct", path, "--format", "npy", "--overwrite", "--json", *words)
        shapes.append(np.load(ran.lines[0]["output"]).shape)
        return shapes[-1][0]

    assert image_side() == 224  # the model that comes with the package
    cyclic("train", tiny_dataset, "--arch", "linear", "--epochs", 1)
    assert image_side() == 32  # runs/latest
    monkeypatch.setenv("CYCLIC_MODEL", str(PACKAGED_MODEL))
    assert image_side() == 224
    assert image_side("--model", run) == 32
    assert cyclic("reconstruct", path, "--model", "gone").code == 1


def test_the_packaged_model_reconstructs_unseen_dicom(cyclic: Cyclic) -> None:
    scans = [str(get_testdata_file(name, download=False)) for name in ("CT_small.dcm", "MR_small.dcm")]
    results = cyclic("reconstruct", *scans, "--json", "--quiet").lines
    assert len(results) == 2
    assert all(line["psnr"] > 22 for line in results)


def test_a_closed_pipe_is_not_an_error(run: Path) -> None:
    for number in range(60):
        make_png(Path(f"files/{number:02}.png"), smooth_image(number))
    command = f"'{sys.executable}' -m cyclic_cli reconstruct files --model '{run}' --json -q | head -n 1"
    ran = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert json.loads(lines[0])["source"] == "files/00.png"
    assert lines[1] == "0"
    assert ran.stderr == ""


def test_a_list_of_scans_on_stdin(run: Path) -> None:
    for number in range(3):
        make_png(Path(f"files/{number}.png"), smooth_image(number))
    command = (
        f"find files -type f -print0 | '{sys.executable}' -m cyclic_cli reconstruct - -0 --model '{run}' --json -q"
    )
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert len(ran.stdout.splitlines()) == 3


def test_info_describes_datasets_runs_and_checkpoints(run: Path, tiny_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic("info", tiny_dataset, "--json").json["counts"]["used"] == 40
    about_run = cyclic("info", run, "--json").json
    assert (about_run["kind"], about_run["finished"]) == ("run", True)
    about = cyclic("info", run / "model.safetensors", "--json").json
    assert about["kind"] == "checkpoint"
    assert about["architecture"]["name"] == "conv"
    assert about["fingerprint"] == about_run["checkpoint"]["fingerprint"]
    assert about["parameters"] == sum(
        value.size for value in read_checkpoint(run / "model.safetensors").weights.values()
    )
    assert "conv" in cyclic("info", run).out
    assert cyclic("info", "nothing").code == 1
    Path("words.txt").write_text("no model")
    assert cyclic("info", "words.txt").code == 1
