"""Tests of `cyclic export`: every part of every architecture gives the same as torch, also in fp16 and int8."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers
import torch
from helpers.makers import Ran, fitted, make_dicom, make_png, smooth_image
from onnx import TensorProto, helper, numpy_helper

from cyclic_cli import registry
from cyclic_cli.config import Preprocessing
from cyclic_cli.export import task, versions
from cyclic_cli.export.check import Comparison
from cyclic_cli.export.parts import Part
from cyclic_cli.export.tracing import trace
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]
SIZE = 32
LONG = ("deep", "residual", "vae")  # architectures whose export takes longest; a new one is exported in every run
QUICK = "linear"  # the architecture whose parts are all tested in the quick run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a checkpoint of an architecture with random weights."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def checkpoint_of(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            file = registry.load("models", name, "architecture")
            settings = {"linear": {"latent": 32}, "deep": {"latent": 32}}.get(name, {"width": 8})
            settings |= {"latent": 16} if name in ("vae", "residual") else {}
            torch.manual_seed(0)
            model = file.Model(file.Config(**settings), (1, SIZE, SIZE))
            weights = {key: value.numpy() for key, value in model.state_dict().items()}
            architecture = {"name": name, "config": settings, "image_shape": [1, SIZE, SIZE]}
            write_checkpoint(
                path,
                Checkpoint(
                    weights=weights, architecture=architecture, preprocessing=Preprocessing(size=SIZE), provenance={}
                ),
            )
        return path

    return checkpoint_of


@pytest.fixture(scope="module")
def joint(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an image–text model with the text encoder `bag`, trained for one epoch."""
    from typer.testing import CliRunner

    from cyclic_cli.cli import app

    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", paired_dataset, "--objective", "cyclic", "--arch", "linear", "--epochs", 1, "--out", out, "-q"]
    words += ["--set", "embedding=16", "--set", "model.latent=32"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return out


CASES = [
    (name, part)
    for name in registry.names("models")
    for part in ("autoencoder", "encoder", "decoder", "image-encoder")
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        case
        if case[0] == QUICK or (case[1] == "autoencoder" and case[0] not in LONG)
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_every_part_of_every_architecture_equals_the_checkpoint(
    name: str, part: str, checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    ran = cyclic("export", "--model", checkpoints(name), "--part", part, "--dataset", tiny_dataset, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parts"][part]["max_abs_error"] < 1e-4
    file = Path(f"{part}.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert b".py" not in file.read_bytes()  # no stack traces of the exporter: they hold paths
    found = onnxruntime.InferenceSession(file)
    module = TorchModel(checkpoints(name)).module.eval()
    image = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        code = module.encode(image)
        pooled = torch.nn.functional.adaptive_avg_pool2d(code, 4) if code.dim() == 4 else code
        wanted = {
            "code": code,
            "reconstruction": module.decode(code).clamp(0, 1),
            "embedding": torch.nn.functional.normalize(pooled.flatten(1)),
        }
    given = {"image": image, "code": code}
    fed = {value.name: given[value.name].numpy() for value in found.get_inputs()}
    outputs = [value.name for value in found.get_outputs()]
    assert (
        set(outputs)
        == {
            "autoencoder": {"reconstruction", "embedding"},
            "encoder": {"code", "embedding"},
            "decoder": {"reconstruction"},
            "image-encoder": {"embedding"},
        }[part]
    )
    for output, value in zip(outputs, found.run(outputs, fed), strict=True):
        np.testing.assert_allclose(value, wanted[output].numpy(), atol=1e-5)


def test_all_parts_of_an_image_text_model_equal_the_checkpoint(
    joint: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    ran = cyclic("export", "--model", joint, "--part", "all", "--dataset", paired_dataset, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["parts"]) == {"autoencoder", "encoder", "decoder", "image-encoder", "text-encoder"}
    exported, model = OnnxModel(Path("exported")), TorchModel(joint / "model.safetensors")
    pixels = np.stack([fitted(make_png(Path("a.png"), smooth_image(n)), model.preprocessing) for n in range(3)])
    texts = ["There is left disc.", "Lungs clear. Disc: no.", "What nobody ever wrote!"]
    np.testing.assert_allclose(exported.embed_images(pixels), model.embed_images(pixels), atol=1e-5)
    np.testing.assert_allclose(exported.embed_texts(texts), model.embed_texts(texts), atol=1e-5)
    assert exported.unknown_words(texts[2]) == model.unknown_words(texts[2]) == ["what", "nobody", "ever", "wrote"]
    np.testing.assert_allclose(exported.reconstruct(pixels), model.reconstruct(pixels), atol=1e-5)
    assert exported.fingerprint == model.fingerprint
    assert exported.modalities == ["image", "text"]
    described = cyclic("info", "exported/text-encoder.onnx", "--json").json
    assert described["inputs"] == {"input_ids": "batch × length int64", "attention_mask": "batch × length int64"}
    assert described["fingerprint"] == model.fingerprint
    assert "merges" not in json.dumps(described)


def test_a_text_encoder_can_be_used_without_this_program(joint: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic("export", "--model", joint, "--part", "text-encoder", "--dataset", paired_dataset, "-q").code == 0
    metadata = {entry.key: entry.value for entry in onnx.load("text-encoder.onnx").metadata_props}
    tokenizer = json.loads(metadata["cyclic"])["tokenizer"]
    library = tokenizers.Tokenizer.from_str(tokenizer["library"])
    texts = ["There IS left disc.", "There is what nobody ever wrote, é!"]
    wanted = [line["vector"] for text in texts for line in cyclic("embed", "--text", text, "--model", joint).lines]
    session = onnxruntime.InferenceSession("text-encoder.onnx")
    for text, vector in zip(texts, wanted, strict=True):  # the steps that README describes
        tokens = [token + 3 for token in library.encode(text, add_special_tokens=False).ids] + [2]
        ids = np.array([tokens[: tokenizer["limit"]]])
        found = session.run(["embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        np.testing.assert_allclose(found[0], vector, atol=1e-5)


def test_masked_tokens_do_not_change_the_embedding(joint: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic("export", "--model", joint, "--part", "text-encoder", "--dataset", paired_dataset, "-q").code == 0
    found = onnxruntime.InferenceSession("text-encoder.onnx")
    tokens = np.array([[5, 6, 7, 8]])
    masked = found.run(None, {"input_ids": tokens, "attention_mask": np.array([[1, 1, 0, 0]])})[0]
    short = found.run(None, {"input_ids": tokens[:, :2], "attention_mask": np.ones((1, 2), np.int64)})[0]
    whole = found.run(None, {"input_ids": tokens, "attention_mask": np.ones((1, 4), np.int64)})[0]
    np.testing.assert_allclose(masked, short, atol=1e-6)
    assert np.abs(masked - whole).max() > 1e-3


@pytest.mark.parametrize("arch", ["bag", pytest.param("transformer", marks=pytest.mark.slow)])
def test_every_text_encoder_is_exported(arch: str, paired_dataset: Path, cyclic: Cyclic) -> None:
    settings = (f"modalities.text.arch={arch}", "model.latent=32", "embedding=16")
    words = ["train", paired_dataset, "--objective", "contrastive", "--arch", "linear", "--epochs", 1, "-q"]
    assert cyclic(*words, "--out", "run", *(word for one in settings for word in ("--set", one))).code == 0
    ran = cyclic("export", "--model", "run", "--part", "all", "--dataset", paired_dataset, "--json")
    assert ran.code == 0, ran.err
    texts = ["There is left disc.", "no", "What nobody ever wrote!"]
    wanted = TorchModel(Path("run/model.safetensors")).embed_texts(texts)
    np.testing.assert_allclose(OnnxModel(Path("exported")).embed_texts(texts), wanted, atol=1e-5)


def test_inner_values_of_a_graph_do_not_have_the_name_of_an_output(joint: Path, paired_dataset: Path) -> None:
    class Table(torch.nn.Module):
        """The mean of a lookup. The exporter names the lookup `embedding`, which is also the name of the output."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding(50, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.rows(tokens).mean(1)

    module, tokens = Table().eval(), torch.arange(64).reshape(32, 2) % 50
    part = Part(
        "text-encoder", module, ("input_ids",), ("embedding",), (tokens,), (tokens,), {"input_ids": {0: "batch"}},
        lambda count: (tokens[:count],),
    )  # fmt: skip
    model = trace(part)
    onnx.checker.check_model(model, full_check=True)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input_ids": tokens.numpy()})[0]
    np.testing.assert_allclose(found, module(tokens).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(90, 60), (31, 47), (32, 32), (20, 201), (33, 32), (101, 100), (513, 512)])
def test_preprocessing_inside_the_file_differs_by_at_most_one_grey_level(
    shape: tuple[int, int], checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--with-preprocessing", "-q")
    assert cyclic(*words).code == 0
    model = onnx.load("autoencoder.onnx")
    model.graph.output.append(helper.make_tensor_value_info("preprocessing_levels", TensorProto.FLOAT, None))
    found = onnxruntime.InferenceSession(model.SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)  # noise, because a smooth image hides errors
    levels = found.run(["preprocessing_levels"], {"image": pixels[None, None]})[0]
    wanted = fitted(make_png(Path("a.png"), pixels), Preprocessing(size=SIZE, exact=True))
    assert np.abs(levels[0] - wanted.astype(float)).max() <= 1
    assert np.abs(levels[0] - wanted).mean() < 0.3


@pytest.mark.parametrize(("precision", "smaller"), [("fp16", 0.6), pytest.param("int8", 0.5, marks=pytest.mark.slow)])
def test_fp16_and_int8_files_are_smaller_and_almost_as_accurate(
    precision: str, smaller: float, joint: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    words = ("export", "--model", joint, "--dataset", paired_dataset, "--part", "autoencoder", "--json")
    whole = cyclic(*words, "--out", "whole.onnx").json["parts"]["autoencoder"]
    ran = cyclic(*words, "--quantize", precision, "--out", "small.onnx")
    assert ran.code == 0, ran.err
    small = ran.json["parts"]["autoencoder"]
    assert small["bytes"] < smaller * whole["bytes"]
    assert small["psnr_change"] > (-0.1 if precision == "fp16" else -0.5)
    assert small.get("in_float32", 0) < small.get("operations", 1)
    assert small["top10_overlap"] > (0.99 if precision == "fp16" else 0.7)
    make_png(Path("a.png"), smooth_image(4))
    lines = [cyclic("reconstruct", "a.png", "--model", f"{name}.onnx", "--out", name, "--json").lines[0]
             for name in ("whole", "small")]  # fmt: skip
    assert lines[0]["psnr"] == pytest.approx(lines[1]["psnr"], abs=1)


@pytest.mark.slow
def test_fp16_keeps_the_recall(
    joint: Path, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", "--model", joint, "--dataset", paired_dataset, "--part", "all", "--quantize", "fp16", "--json")
    assert cyclic(*words[:-1], "--out", "shown").code == 0  # as a table, although not every part has every figure
    ran = cyclic(*words, "--out", "small")
    assert ran.code == 0, ran.err
    pairs = len(StoredDataset(paired_dataset).rows(["has_text"], "val")["has_text"].nonzero()[0])
    assert abs(ran.json["recall_change"]) <= max(0.005, 1 / pairs)  # rounding may turn the order of two answers
    monkeypatch.setattr(task, "recall_change", lambda *_: (-0.02, 0.0))
    before = {path.name: path.read_bytes() for path in Path("small").iterdir()}
    ran = cyclic(*words, "--out", "small", "--overwrite")
    assert (ran.code, "recall changes by -2.0 points" in ran.err) == (1, True)
    assert {path.name: path.read_bytes() for path in Path("small").iterdir() if "failed" not in path.name} == before
    assert OnnxModel(Path("small")).modalities == ["image", "text"]  # failed files are not read
    for name in before:
        Path("small", name).unlink()
    assert "holds no model" in cyclic("embed", "--text", "Left disc.", "--model", "small").err


@pytest.mark.parametrize(
    ("precision", "figure", "value", "message"),
    [
        ("fp16", "overlap", 0.98, "only 98.0% of the ten nearest neighbours"),
        ("fp16", "psnr_change", -0.2, "PSNR of its reconstructions is 0.20 dB lower"),
        ("fp16", "psnr_change", float("nan"), "PSNR of its reconstructions"),
        ("float32", "largest_error", 2e-4, "differ by up to 0.0002"),
        ("float32", "largest_error", float("nan"), "differ by up to nan"),
    ],
)
def test_each_figure_can_fail_the_check(
    precision: str, figure: str, value: float, message: str, checkpoints: Callable[[str], Path], tiny_dataset: Path,
    cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Comparison, "overlap", lambda self: 1.0)  # the real overlap depends on the machine
    monkeypatch.setattr(Comparison, figure, lambda self: value)
    words = ["export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset]
    ran = cyclic(*words, *([] if precision == "float32" else ["--quantize", precision]))
    assert (ran.code, message in ran.err) == (1, True)
    assert not Path("autoencoder.onnx").exists()


def test_a_check_covers_all_batch_sizes_with_random_and_real_inputs(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, seen = Comparison.both, []

    def recording(self: Comparison, values: tuple[torch.Tensor, ...]) -> Any:
        is_real = any(torch.equal(values[0], example[: len(values[0])]) for example in self.part.examples)
        seen.append((len(values[0]), is_real))
        return both(self, values)

    monkeypatch.setattr(Comparison, "both", recording)
    assert cyclic("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "-q").code == 0
    assert set(seen) == {(count, is_real) for count in (1, 2, 7, 32) for is_real in (True, False)}


def test_an_output_that_is_not_a_number_for_black_images_fails_the_check(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Comparison.both

    def of_black(self: Comparison, values: tuple[torch.Tensor, ...]) -> Any:
        by_torch, by_runtime = both(self, values)
        black = (values[0].flatten(1) == 0).all(1).numpy()
        by_runtime[0][black] = float("nan")
        return by_torch, by_runtime

    monkeypatch.setattr(Comparison, "both", of_black)
    ran = cyclic("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "-q")
    assert (ran.code, "differ by up to nan" in ran.err) == (1, True)


def test_a_failed_check_exits_with_1_and_keeps_the_existing_file(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--part", "decoder")
    assert cyclic(*words).code == 0
    before = Path("decoder.onnx").read_bytes()
    assert "exists" in cyclic(*words).err

    def broken(part: Part) -> onnx.ModelProto:
        model = trace(part)
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.dtype == np.float32 and value.size > 100:
                tensor.CopyFrom(numpy_helper.from_array(value + np.float32(0.01), tensor.name))
        return model

    monkeypatch.setattr(versions, "trace", broken)
    ran = cyclic(*words, "--overwrite")
    assert ran.code == 1
    assert "its outputs differ by up to" in ran.err
    assert Path("decoder.onnx").read_bytes() == before
    assert Path("decoder.failed.onnx").is_file()


def test_weights_in_a_second_file_are_found_beside_the_first(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--out", "far/a.onnx", "--json")
    assert cyclic(*words).code == 0
    assert {path.name for path in Path("far").iterdir()} == {"a.onnx", "a.onnx.data"}
    size = cyclic("info", "far/a.onnx", "--json").json["bytes"]
    assert size == sum(path.stat().st_size for path in Path("far").iterdir())
    make_png(Path("a.png"), smooth_image(4))
    assert cyclic("reconstruct", "a.png", "--model", "far/a.onnx").code == 0
    damaged = bytearray(Path("far/a.onnx.data").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    whole = Path("far/a.onnx.data").read_bytes()
    Path("far/a.onnx.data").write_bytes(damaged)
    assert "is damaged: the checksum of its weights" in cyclic("info", "far/a.onnx").err
    Path("far/a.onnx.data").write_bytes(whole)
    content = Path("far/a.onnx.data").read_bytes()
    Path("far/a.onnx.data").write_bytes(content[: len(content) // 2])
    cut = cyclic("reconstruct", "a.png", "--model", "far/a.onnx", "--out", "b")
    assert (cut.code, "cut short" in cut.err) == (1, True)
    Path("far/a.onnx.data").unlink()
    gone = cyclic("info", "far/a.onnx")
    assert (gone.code, "not beside it" in gone.err) == (1, True)
    assert cyclic(*words).code == 1
    assert cyclic(*words, "--overwrite").code == 0
    monkeypatch.setattr(onnx_file, "LARGEST", 10**9)
    assert cyclic(*words, "--overwrite").code == 0
    assert {path.name for path in Path("far").iterdir()} == {"a.onnx"}  # the old weights were removed


def test_an_exported_model_needs_no_torch(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    assert cyclic("export", "--model", checkpoints("conv"), "--dataset", tiny_dataset, "-q").code == 0
    for name in ("scan", "other"):
        make_dicom(Path(f"{name}.dcm"), smooth_image(len(name)), bits=8)
    model = ["--model", "autoencoder.onnx"]
    for words in (
        ["info", "autoencoder.onnx"],
        ["reconstruct", "scan.dcm", *model, "--json"],
        ["embed", "scan.dcm", "other.dcm", *model, "--out", "e.parquet", "-q"],
        ["search", "scan.dcm", *model, "--in", "e.parquet"],
    ):
        code = (
            "import sys\n"
            "from cyclic_cli.__main__ import main\n"
            f"sys.argv = ['cyclic', *{words!r}]\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"


def test_exported_encoders_search_for_a_text_without_torch(joint: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic("export", "--model", joint, "--part", "all", "--dataset", paired_dataset, "-q").code == 0
    assert cyclic("embed", paired_dataset, "--model", "exported", "--out", "e.parquet", "-q").code == 0
    code = (
        "import sys\n"
        "from cyclic_cli.__main__ import main\n"
        "sys.argv = ['cyclic', 'search', 'Left xyzzy.', '--model', 'exported', '--in', 'e.parquet']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "xyzzy" in done.stderr


def test_messages_name_what_a_model_lacks(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset)
    ran = cyclic(*words, "--part", "text-encoder")
    assert ran.code == 2
    assert "Known: autoencoder, encoder, decoder, image-encoder, all." in ran.err
    assert cyclic(*words, "--part", "encoder", "-q").code == 0
    make_png(Path("a.png"), smooth_image(4))
    ran = cyclic("reconstruct", "a.png", "--model", "encoder.onnx")
    assert (ran.code, "has no decoder" in ran.err) == (1, True)
    ran = cyclic("evaluate", tiny_dataset, "--model", "encoder.onnx")
    assert (ran.code, "this command needs a checkpoint" in ran.err) == (2, True)
    ran = cyclic(*words, "--part", "decoder", "--with-preprocessing")
    assert ran.code == 2


def test_the_metadata_describe_the_model(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--licence", "CC BY 4.0", "-q")
    assert cyclic(*words).code == 0
    described = cyclic("info", "autoencoder.onnx", "--json").json
    assert described["licence"] == "CC BY 4.0"
    assert described["fingerprint"] == read_checkpoint(checkpoints(QUICK)).fingerprint
    assert described["architecture"]["name"] == QUICK
    assert described["preprocessing"]["size"] == SIZE
    assert described["inputs"] == {"image": f"batch × 1 × {SIZE} × {SIZE} float"}
    assert described["opset"] >= 18


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("models"))
def test_openvino_gives_the_same_outputs(
    name: str, checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    openvino = pytest.importorskip("openvino")
    words = ("export", "--model", checkpoints(name), "--dataset", tiny_dataset, "-q")
    for more in ((), ("--with-preprocessing", "--overwrite")):
        assert cyclic(*words, *more).code == 0
        found = openvino.Core().compile_model("autoencoder.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        own = onnxruntime.InferenceSession("autoencoder.onnx")
        pixels = np.stack([smooth_image(number, SIZE, SIZE)[None] for number in range(3)])
        values = pixels if more else (pixels / 255).astype(np.float32)
        for one, other in zip(found([values]).values(), own.run(None, {"image": values}), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
