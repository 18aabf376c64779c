"""`cyclic export`: every part of every architecture, beside torch; what comes from elsewhere is looked at first."""

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
from cyclic_cli.export import task
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

Cyclic = Callable[..., Ran]
SIZE = 32
QUICK = "linear"  # the architecture whose parts are all tried each time


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of architectures with random weights."""
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
    """A joint model of images and bags of words, trained for a moment."""
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
        case if case[0] == QUICK or case[1] == "autoencoder" else pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_every_part_of_every_architecture_does_what_the_checkpoint_does(
    name: str, part: str, checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    ran = cyclic("export", "--model", checkpoints(name), "--part", part, "--dataset", tiny_dataset, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parts"][part]["max_abs_error"] < 1e-5
    file = Path(f"{part}.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert b".py" not in file.read_bytes()  # the exporter's stack traces, with paths of this machine
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


def test_all_parts_of_a_joint_model_embed_and_reconstruct_as_it_does(
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
    np.testing.assert_allclose(exported.reconstruct(pixels), model.reconstruct(pixels), atol=1e-5)
    assert exported.fingerprint == model.fingerprint
    assert exported.modalities == ["image", "text"]
    said = cyclic("info", "exported/text-encoder.onnx", "--json").json
    assert said["inputs"] == {"input_ids": "batch × length int64", "attention_mask": "batch × length int64"}
    assert said["fingerprint"] == model.fingerprint
    assert "merges" not in json.dumps(said)


def test_a_text_encoder_needs_nothing_of_this_program(joint: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic("export", "--model", joint, "--part", "text-encoder", "--dataset", paired_dataset, "-q").code == 0
    said = json.loads({entry.key: entry.value for entry in onnx.load("text-encoder.onnx").metadata_props}["cyclic"])
    library = tokenizers.Tokenizer.from_str(said["tokenizer"]["library"])
    texts = ["There IS left disc.", "What nobody ever wrote, é!"]
    wanted = [line["vector"] for text in texts for line in cyclic("embed", "--text", text, "--model", joint).lines]
    session = onnxruntime.InferenceSession("text-encoder.onnx")
    for text, vector in zip(texts, wanted, strict=True):  # as README says
        tokens = [token + 3 for token in library.encode(text, add_special_tokens=False).ids] + [2]
        ids = np.array([tokens[: said["tokenizer"]["limit"]]])
        found = session.run(["embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        np.testing.assert_allclose(found[0], vector, atol=1e-5)


def test_a_text_hidden_by_the_mask_is_not_read(joint: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic("export", "--model", joint, "--part", "text-encoder", "--dataset", paired_dataset, "-q").code == 0
    found = onnxruntime.InferenceSession("text-encoder.onnx")
    tokens = np.array([[5, 6, 7, 8]])
    masked = found.run(None, {"input_ids": tokens, "attention_mask": np.array([[1, 1, 0, 0]])})[0]
    short = found.run(None, {"input_ids": tokens[:, :2], "attention_mask": np.ones((1, 2), np.int64)})[0]
    whole = found.run(None, {"input_ids": tokens, "attention_mask": np.ones((1, 4), np.int64)})[0]
    np.testing.assert_allclose(masked, short, atol=1e-6)
    assert np.abs(masked - whole).max() > 1e-3


@pytest.mark.parametrize("encoder", ["bag", pytest.param("transformer", marks=pytest.mark.slow)])
def test_every_text_encoder_is_exported(encoder: str, paired_dataset: Path, cyclic: Cyclic) -> None:
    settings = (f"modalities.text.encoder={encoder}", "model.latent=32", "embedding=16")
    words = ["train", paired_dataset, "--objective", "contrastive", "--arch", "linear", "--epochs", 1, "-q"]
    assert cyclic(*words, "--out", "run", *(word for one in settings for word in ("--set", one))).code == 0
    ran = cyclic("export", "--model", "run", "--part", "all", "--dataset", paired_dataset, "--json")
    assert ran.code == 0, ran.err
    texts = ["There is left disc.", "no", "What nobody ever wrote!"]
    wanted = TorchModel(Path("run/model.safetensors")).embed_texts(texts)
    np.testing.assert_allclose(OnnxModel(Path("exported")).embed_texts(texts), wanted, atol=1e-5)


def test_values_within_a_graph_are_not_called_like_its_outputs(joint: Path, paired_dataset: Path) -> None:
    class Table(torch.nn.Module):
        """A lookup, which the exporter calls `embedding`, and what is made of it."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding(50, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.rows(tokens).mean(1)

    module, tokens = Table().eval(), torch.arange(64).reshape(32, 2) % 50
    part = task.Part(
        "text-encoder", module, ("input_ids",), ("embedding",), (tokens,), (tokens,), {"input_ids": {0: "batch"}},
        lambda count: (tokens[:count],),
    )  # fmt: skip
    model = task.trace(part)
    onnx.checker.check_model(model, full_check=True)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input_ids": tokens.numpy()})[0]
    np.testing.assert_allclose(found, module(tokens).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(90, 60), (31, 47), (32, 32), (20, 201), (33, 32), (101, 100), (513, 512)])
def test_with_preprocessing_a_picture_of_any_size_is_within_a_grey_level(
    shape: tuple[int, int], checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--with-preprocessing", "-q")
    assert cyclic(*words).code == 0
    model = onnx.load("autoencoder.onnx")
    model.graph.output.append(helper.make_tensor_value_info("preprocessing_levels", TensorProto.FLOAT, None))
    found = onnxruntime.InferenceSession(model.SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)  # what smoothness would hide shows
    levels = found.run(["preprocessing_levels"], {"image": pixels[None, None]})[0]
    wanted = fitted(make_png(Path("a.png"), pixels), Preprocessing(size=SIZE, exact=True))
    assert np.abs(levels[0] - wanted.astype(float)).max() <= 1
    assert np.abs(levels[0] - wanted).mean() < 0.3


@pytest.mark.parametrize(("precision", "smaller"), [("fp16", 0.6), ("int8", 0.5)])
def test_fewer_bits_are_smaller_and_about_as_good(
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


def test_fewer_bits_keep_the_recall(
    joint: Path, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", "--model", joint, "--dataset", paired_dataset, "--part", "all", "--quantize", "fp16", "--json")
    assert cyclic(*words[:-1], "--out", "shown").code == 0  # a table: not every part has every figure
    ran = cyclic(*words, "--out", "small")
    assert ran.code == 0, ran.err
    assert abs(ran.json["recall_change"]) <= 0.005
    monkeypatch.setattr(task, "_recall_change", lambda *_: (-0.02, 0.0))
    before = {path.name: path.read_bytes() for path in Path("small").iterdir()}
    ran = cyclic(*words, "--out", "small", "--overwrite")
    assert (ran.code, "recall changes by -2.0 points" in ran.err) == (1, True)
    assert {path.name: path.read_bytes() for path in Path("small").iterdir() if "failed" not in path.name} == before
    assert OnnxModel(Path("small")).modalities == ["image", "text"]  # of those that passed
    for name in before:
        Path("small", name).unlink()
    assert "holds no model" in cyclic("embed", "--text", "Left disc.", "--model", "small").err


@pytest.mark.parametrize(
    ("precision", "figure", "value", "said"),
    [
        ("fp16", "overlap", 0.98, "only 98.0% stay"),
        ("fp16", "psnr_change", -0.2, "reconstructs worse by 0.20 dB"),
        ("fp16", "psnr_change", float("nan"), "reconstructs worse"),
        ("float32", "largest_error", 2e-4, "differ by up to 0.0002"),
        ("float32", "largest_error", float("nan"), "differ by up to nan"),
    ],
)
def test_every_figure_of_a_check_counts(
    precision: str, figure: str, value: float, said: str, checkpoints: Callable[[str], Path], tiny_dataset: Path,
    cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(task._Runner, "overlap", lambda self: 1.0)  # hangs on the machine
    monkeypatch.setattr(task._Runner, figure, lambda self: value)
    words = ["export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset]
    ran = cyclic(*words, *([] if precision == "float32" else ["--quantize", precision]))
    assert (ran.code, said in ran.err) == (1, True)
    assert not Path("autoencoder.onnx").exists()


def test_a_check_is_of_all_sizes_of_batches_with_random_and_real_inputs(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, seen = task._Runner.both, []

    def noted(self: task._Runner, values: tuple[torch.Tensor, ...]) -> Any:
        is_real = any(torch.equal(values[0], example[: len(values[0])]) for example in self.part.examples)
        seen.append((len(values[0]), is_real))
        return both(self, values)

    monkeypatch.setattr(task._Runner, "both", noted)
    assert cyclic("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "-q").code == 0
    assert set(seen) == {(count, is_real) for count in (1, 2, 7, 32) for is_real in (True, False)}


def test_a_failed_check_ends_with_1_and_keeps_what_was_there(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--part", "decoder")
    assert cyclic(*words).code == 0
    before = Path("decoder.onnx").read_bytes()
    assert "exists" in cyclic(*words).err
    trace = task.trace

    def broken(part: task.Part) -> onnx.ModelProto:
        model = trace(part)
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.dtype == np.float32 and value.size > 100:
                tensor.CopyFrom(numpy_helper.from_array(value + np.float32(0.01), tensor.name))
        return model

    monkeypatch.setattr(task, "trace", broken)
    ran = cyclic(*words, "--overwrite")
    assert ran.code == 1
    assert "its outputs differ by up to" in ran.err
    assert Path("decoder.onnx").read_bytes() == before
    assert Path("decoder.failed.onnx").is_file()


def test_weights_beside_the_file_are_found_where_it_lies(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--out", "far/a.onnx", "--json")
    assert cyclic(*words).code == 0
    assert {path.name for path in Path("far").iterdir()} == {"a.onnx", "a.onnx.data"}
    said = cyclic("info", "far/a.onnx", "--json").json["bytes"]
    assert said == sum(path.stat().st_size for path in Path("far").iterdir())
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
    assert {path.name for path in Path("far").iterdir()} == {"a.onnx"}  # weights of before are gone


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


# --------------------------------------------------------------------------------------------- files from elsewhere


def elsewhere(path: Path, change: Callable[[onnx.ModelProto], Any] = lambda model: None) -> Path:
    """A tiny valid file, changed in some way."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "weight"], ["embedding"])], "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 4])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx_file.write(path, model, onnx_file.Description(
        part="encoder", architecture={"name": "linear"}, preprocessing=Preprocessing(), fingerprint="f",
    ))  # fmt: skip
    found = onnx.load(path, load_external_data=False)
    change(found)
    path.write_bytes(found.SerializeToString())
    return path


def outside(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": "16"}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def hidden(model: onnx.ModelProto) -> None:
    """An operator of somebody's own within a branch."""
    inner = helper.make_graph([helper.make_node("Run", [], ["x"], domain="com.example")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["weight"], ["y"], then_branch=inner, else_branch=inner))


def lying(model: onnx.ModelProto) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == onnx_file.KEY)
    entry.value = entry.value.replace('"fingerprint": "f"', '"fingerprint": "g"')


def weighty(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(4, 2, np.float32), "weight"))


def with_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Mine", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], []))


def in_attribute(model: onnx.ModelProto) -> None:
    """Weights outside that belong to an attribute, not to the graph."""
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, np.float32), "c"))
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../secret.bin", "offset": "0", "length": "16"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    model.graph.node.append(constant)


def newer(model: onnx.ModelProto) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == onnx_file.KEY)
    entry.value = entry.value.replace('"format": 1', '"format": 99')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (outside("/etc/passwd"), "outside its own folder"),
        (outside("../secret.bin"), "outside its own folder"),
        (outside("link.bin"), "outside its own folder"),
        (outside("nothing.bin"), "not beside it"),
        (outside("short.bin"), "cut short"),
        (custom, "not ONNX's own"),
        (hidden, "not ONNX's own"),
        (lambda model: model.metadata_props.pop(), "lacks the metadata"),
        (lying, "is damaged"),
        (weighty, "is damaged"),
        (with_function, "not ONNX's own"),
        (in_attribute, "outside its own folder"),
        (outside(".."), "outside its own folder"),
        (newer, "Update cyclic"),
    ],
    ids=[
        "absolute",
        "above",
        "link",
        "gone",
        "short",
        "custom",
        "hidden",
        "bare",
        "lying",
        "weighty",
        "function",
        "attribute",
        "dots",
        "newer",
    ],
)
def test_files_that_reach_outside_or_do_not_say_what_they_are_are_refused(
    change: Callable[[onnx.ModelProto], Any], said: str, tmp_path: Path, cyclic: Cyclic
) -> None:
    Path("short.bin").write_bytes(b"1234")
    (tmp_path / "secret.bin").write_bytes(b"0" * 16)
    Path("link.bin").symlink_to(tmp_path / "secret.bin")
    make_png(Path("a.png"), smooth_image(4))
    elsewhere(Path("model.onnx"), change)
    for words in (("info", "model.onnx"), ("reconstruct", "a.png", "--model", "model.onnx")):
        ran = cyclic(*words)
        assert ran.code == 1
        assert said in ran.err


def test_a_tiny_file_that_is_in_order_is_described(cyclic: Cyclic) -> None:
    assert cyclic("info", elsewhere(Path("model.onnx")), "--json").json["part"] == "encoder"


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x08\x0a" * 999, b"\xff" * 99], ids=["empty", "text", "noise", "ones"]
)
def test_what_is_no_onnx_file_is_refused(content: bytes, cyclic: Cyclic) -> None:
    Path("model.onnx").write_bytes(content)
    ran = cyclic("info", "model.onnx")
    assert ran.code == 1
    assert "Traceback" not in ran.err


def test_what_a_model_lacks_is_said(checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset)
    ran = cyclic(*words, "--part", "text-encoder")
    assert ran.code == 2
    assert "Known: autoencoder, encoder, decoder, image-encoder, all." in ran.err
    assert cyclic(*words, "--part", "encoder", "-q").code == 0
    make_png(Path("a.png"), smooth_image(4))
    ran = cyclic("reconstruct", "a.png", "--model", "encoder.onnx")
    assert (ran.code, "encodes and does not decode" in ran.err) == (1, True)
    ran = cyclic("evaluate", tiny_dataset, "--model", "encoder.onnx")
    assert (ran.code, "this needs the checkpoint" in ran.err) == (2, True)
    ran = cyclic(*words, "--part", "decoder", "--with-preprocessing")
    assert ran.code == 2


def test_the_metadata_say_where_a_model_comes_from(
    checkpoints: Callable[[str], Path], tiny_dataset: Path, cyclic: Cyclic
) -> None:
    words = ("export", "--model", checkpoints(QUICK), "--dataset", tiny_dataset, "--licence", "CC BY 4.0", "-q")
    assert cyclic(*words).code == 0
    said = cyclic("info", "autoencoder.onnx", "--json").json
    assert said["licence"] == "CC BY 4.0"
    assert said["fingerprint"] == read_checkpoint(checkpoints(QUICK)).fingerprint
    assert said["architecture"]["name"] == QUICK
    assert said["preprocessing"]["size"] == SIZE
    assert said["inputs"] == {"image": f"batch × 1 × {SIZE} × {SIZE} float"}
    assert said["opset"] >= 18


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("models"))
def test_another_runtime_gives_the_same(
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
