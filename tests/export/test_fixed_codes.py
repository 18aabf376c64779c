"""Tests of `cyclic export` of models with fixed codes: their pretrained encoders become part of the ONNX files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.makers import Ran, fitted, make_png, smooth_image
from helpers.onnx_graphs import network, saved, text_network
from helpers.tiny_encoders import IMAGES, TEXTS, WORDS, tiny_image_folder, tiny_text_folder, tiny_tokenizer

from cyclic_cli.errors import CyclicError
from cyclic_cli.export import versions
from cyclic_cli.export.merging import CannotMerge
from cyclic_cli.export.stand_ins import StandIn
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.pretrained.find import open_encoder
from cyclic_cli.storage import onnx_file

Cyclic = Callable[..., Ran]
CLOSE = 1e-4  # the limit of the check of an export in float32
TEXTS_READ = ["There is left disc.", "no", "What nobody ever wrote!", "The disc on the left, " * 20]
LICENCE = "MIT"


@pytest.fixture(scope="module")
def train(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a model with fixed codes; once for the same words."""
    from typer.testing import CliRunner

    from cyclic_cli.cli import app

    runs: dict[tuple[str, ...], Path] = {}

    def trained(*words: Any) -> Path:
        key = tuple(map(str, words))
        if key not in runs:
            out = tmp_path_factory.mktemp("runs") / "run"
            command = ["train", str(paired_dataset), "--objective", "aligned", "--out", str(out), "-q", *key]
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, result.stderr
            runs[key] = out
        return runs[key]

    return trained


def onnx_encoders(folder: Path, batch: Any = "N") -> list[Any]:
    """The words that name an ONNX encoder of images and one of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    images = network(batch=batch, side=32, metadata={"mean": "0.5", "std": "0.5", "license": LICENCE})
    texts = text_network(batch=batch, tokens=tiny_tokenizer().get_vocab_size())
    saved(images, folder / "image.onnx")
    saved(texts, folder / "text.onnx")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return ["--image-encoder", folder / "image.onnx", "--text-encoder", folder / "text.onnx"]


def check_equal(folder: Path, run: Path) -> None:
    """Check that exported encoders embed, reconstruct and know words as the checkpoint does."""
    exported, model = OnnxModel(folder), TorchModel(run / "model.safetensors")
    pixels = np.stack([fitted(make_png(Path("a.png"), smooth_image(n)), model.preprocessing) for n in range(3)])
    np.testing.assert_allclose(exported.embed_images(pixels), model.embed_images(pixels), atol=CLOSE)
    for texts in (TEXTS_READ, TEXTS_READ[:1]):
        np.testing.assert_allclose(exported.embed_texts(texts), model.embed_texts(texts), atol=CLOSE)
    if (folder / "autoencoder.onnx").exists():
        np.testing.assert_allclose(exported.reconstruct(pixels), model.reconstruct(pixels), atol=CLOSE)
    unknown = model.unknown_words("What xyzzy left")
    assert exported.unknown_words("What xyzzy left") == unknown
    assert "xyzzy" in unknown


def export_encoders(run: Path, dataset: Path, cyclic: Cyclic) -> None:
    for part in ("image-encoder", "text-encoder"):
        words = ("--dataset", dataset, "--part", part, "--out", f"exported/{part}.onnx", "--json")
        ran = cyclic("export", "--model", run, *words)
        assert ran.code == 0, ran.err
        assert ran.json["parts"][part]["max_abs_error"] < CLOSE


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in which torch must not be loaded."""
    code = (
        "import sys\n"
        "from cyclic_cli.__main__ import main\n"
        f"sys.argv = ['cyclic', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    return done


def check_search(folder: Path, dataset: Path) -> None:
    without_torch("embed", str(dataset), "--model", str(folder), "--out", "e.parquet", "-q")
    assert "xyzzy" in without_torch("search", "Left xyzzy.", "--model", str(folder), "--in", "e.parquet").stderr


# -------------------------------------------------------------------------------------------------- in one file


def test_an_onnx_encoder_of_images_is_merged_and_texts_need_none(
    train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    run = train(*onnx_encoders(tmp_path / "encoders")[:2])
    export_encoders(run, paired_dataset, cyclic)
    assert {path.name for path in Path("exported").iterdir()} == {"image-encoder.onnx", "text-encoder.onnx"}
    names = [node.name for node in onnx.load("exported/image-encoder.onnx").graph.node]
    assert any(name.startswith("encoder0_conv") for name in names)
    check_equal(Path("exported"), run)
    described = cyclic("info", "exported/text-encoder.onnx", "--json").json
    assert described["inputs"] == {"input_ids": "batch × 1 × windows × length int64"}
    assert described["encoders"] == []
    (stated,) = cyclic("info", "exported/image-encoder.onnx", "--json").json["encoders"]
    assert (stated["family"], stated["licence"], len(stated["fingerprint"])) == ("image", LICENCE, 32)
    assert cyclic("info", run, "--json").json["checkpoint"]["encoders"] == [stated]
    assert cyclic("embed", paired_dataset, "--model", "exported", "--out", "e.parquet", "-q").code == 0
    assert "xyzzy" in without_torch("search", "Left xyzzy.", "--model", "exported", "--in", "e.parquet").stderr


def test_residual_heads_are_exported(
    train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    words = ("--objective", "cyclic", "--set", "refine=true", "--paired-fraction", 0.5, "--epochs", 1)
    run = train(*onnx_encoders(tmp_path / "encoders")[:2], *words)
    state = max((run / "state").iterdir()) / "model.safetensors"
    shutil.copy(state, run / "model.safetensors")  # the last epoch, whether it is the best or not
    export_encoders(run, paired_dataset, cyclic)
    check_equal(Path("exported"), run)
    model = TorchModel(run / "model.safetensors")
    assert all(residual.outer.weight.any() for residual in model.module.residuals.values())


@pytest.mark.slow
def test_all_parts_of_a_model_without_pretrained_encoders(
    train: Callable[..., Path], paired_dataset: Path, cyclic: Cyclic
) -> None:
    run = train()
    assert cyclic("export", "--model", run, "--part", "all", "--dataset", paired_dataset, "-q").code == 0
    check_equal(Path("exported"), run)
    check_search(Path("exported"), paired_dataset)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["N", 1])
def test_all_parts_with_encoders_of_onnx_files(
    batch: Any, train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    run = train(*onnx_encoders(tmp_path / f"encoders-{batch}", batch))
    assert cyclic("export", "--model", run, "--part", "all", "--dataset", paired_dataset, "-q").code == 0
    assert len(list(Path("exported").iterdir())) == 5
    check_equal(Path("exported"), run)
    check_search(Path("exported"), paired_dataset)


CASES = [*((image, "bert") for image in IMAGES), *(("vit", text) for text in [*TEXTS, "sentence-transformers"])]


@pytest.mark.slow
@pytest.mark.parametrize(("image", "text"), list(dict.fromkeys(CASES)))
def test_encoders_of_every_family_are_exported(
    image: str, text: str, train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    images, texts = tiny_image_folder(image, tmp_path / "images"), tiny_text_folder(text, tmp_path / "texts")
    run = train("--image-encoder", images, "--text-encoder", texts)
    export_encoders(run, paired_dataset, cyclic)
    check_equal(Path("exported"), run)
    for model in (run, "exported"):  # with torch, and without
        assert cyclic("embed", paired_dataset, "--model", model, "--out", "e.parquet", "--overwrite", "-q").code == 0
        ran = cyclic("search", "Left disc.", "--model", model, "--in", "e.parquet", "--json")
        assert ran.code == 0, ran.err


@pytest.mark.slow
def test_encoders_of_a_run_are_exported(
    joint_run: Path, train: Callable[..., Path], paired_dataset: Path, cyclic: Cyclic
) -> None:
    run = train("--image-encoder", joint_run, "--text-encoder", joint_run)
    export_encoders(run, paired_dataset, cyclic)
    check_equal(Path("exported"), run)


def test_an_encoder_that_torch_cannot_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder(str(tiny_image_folder("vit", tmp_path / "vit")), "image", (1, 32, 32), {})

    def failing(*args: Any, **settings: Any) -> None:
        raise torch.onnx.OnnxExporterError("No ONNX function found")

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(CyclicError, match="cannot export the encoder vit"):
        StandIn(encoder, 0).graph(torch.zeros(2, 1, 32, 32))


@pytest.mark.slow
def test_several_text_encoders_whose_windows_differ(
    train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    words = onnx_encoders(tmp_path / "encoders")[2:]  # reads 32 tokens, the other one 16
    run = train(*words, "--text-encoder", tiny_text_folder("bert", tmp_path / "bert"))
    export_encoders(run, paired_dataset, cyclic)
    assert TorchModel(run / "model.safetensors").texts([" ".join(WORDS) * 3]).shape[1] > 1  # both read it
    check_equal(Path("exported"), run)


@pytest.mark.slow
def test_preprocessing_stands_before_merged_encoders(
    train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    run = train(*onnx_encoders(tmp_path / "encoders"))
    words = ("--dataset", paired_dataset, "--part", "image-encoder", "--with-preprocessing", "-q")
    assert cyclic("export", "--model", run, *words).code == 0
    pixels = smooth_image(3, 90, 60)
    found = onnxruntime.InferenceSession("image-encoder.onnx").run(None, {"image": pixels[None, None]})[0]
    model = TorchModel(run / "model.safetensors")
    wanted = model.embed_images(fitted(make_png(Path("a.png"), pixels), model.preprocessing)[None])
    np.testing.assert_allclose(found, wanted, atol=0.02)  # the resizing differs by up to a grey level


# -------------------------------------------------------------------------------------------------- fewer bits


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_only_operations_of_encoders_get_fewer_bits(
    precision: str, train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("cyclic_cli.export.check.LEAST_OVERLAP", 0.5)  # images of equal discs are almost equally near
    run = train("--image-encoder", tiny_image_folder("vit", tmp_path / "vit"))
    words = ("--dataset", paired_dataset, "--quantize", precision, "--json")
    ran = cyclic("export", "--model", run, "--part", "image-encoder", *words)
    assert ran.code == 0, ran.err
    graph = onnx.load("image-encoder.onnx").graph
    small = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert small in kinds.values()
    assert all(name.startswith("encoder0_") for name, kind in kinds.items() if kind == small)
    described = cyclic("info", "image-encoder.onnx", "--json").json
    assert described["precision"] == precision
    ran = cyclic("export", "--model", run, "--part", "text-encoder", *words)
    assert "text-encoder stays in float32" in ran.err
    assert cyclic("info", "text-encoder.onnx", "--json").json["precision"] == "float32"


# ------------------------------------------------------------------------------------------------ several files


@pytest.fixture
def no_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*pieces: Any) -> onnx.ModelProto:
        raise CannotMerge("opset 3 of an encoder cannot be converted")

    monkeypatch.setattr(versions, "merge", refusing)


@pytest.mark.slow
@pytest.mark.usefixtures("no_merging")
@pytest.mark.parametrize("batch", ["N", 1])
def test_encoders_that_cannot_be_merged_are_files_of_their_own(
    batch: Any, train: Callable[..., Path], paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    run = train(*onnx_encoders(tmp_path / f"encoders-{batch}", batch))
    ran = cyclic("export", "--model", run, "--part", "all", "--dataset", paired_dataset)
    assert ran.code == 0, ran.err
    assert "text-encoder is several files: opset 3 of an encoder cannot be converted" in ran.err
    encoders = [one["fingerprint"] for one in cyclic("info", run, "--json").json["checkpoint"]["encoders"]]
    parts = ("autoencoder", "encoder", "image-encoder", "text-encoder")
    files = {f"encoder-{one}" for one in encoders} | {*parts, *(f"{part}.front" for part in parts), "decoder"}
    assert {path.name for path in Path("exported").iterdir()} == {f"{name}.onnx" for name in files}
    check_equal(Path("exported"), run)
    check_search(Path("exported"), paired_dataset)
    for words in (("--quantize", "int8"), ("--with-preprocessing",)):
        ran = cyclic("export", "--model", run, "--part", "image-encoder", "--dataset", paired_dataset, *words)
        assert (ran.code, "cannot be one file: opset 3" in ran.err) == (1, True)
    Path(f"exported/encoder-{encoders[0]}.onnx").unlink()
    ran = cyclic("embed", "a.png", "--model", "exported", "--out", "x.parquet")
    assert (ran.code, f"no file exported/encoder-{encoders[0]}.onnx" in ran.err) == (1, True)


def test_pieces_lie_beside_the_part(tmp_path: Path) -> None:
    piece = {"file": "encoder-0.onnx", "inputs": {"image": "image"}, "outputs": {"features": "encoder0_features"}}
    onnx_file._check_piece(piece)
    for wrong in ({"file": "../encoder.onnx"}, {"file": "encoder.sh"}, {"inputs": {"image": 1}}):
        with pytest.raises(ValueError, match=r"."):
            onnx_file._check_piece(piece | wrong)
    values: dict[str, Any] = {"sources": [{"terms": json.dumps({})}], "words": ["left"]}
    onnx_file._check_tokenizer(values)
    for damaged in ({"sources": ["text"]}, {"words": [1]}):
        with pytest.raises(ValueError, match=r"."):
            onnx_file._check_tokenizer(values | damaged)
