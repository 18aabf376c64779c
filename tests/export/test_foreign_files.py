"""Tests of ONNX files from elsewhere: unsafe, damaged and foreign files are refused before anything runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.makers import Ran, make_png, smooth_image
from onnx import TensorProto, helper, numpy_helper

from cyclic_cli.config import Preprocessing
from cyclic_cli.storage import onnx_file

Cyclic = Callable[..., Ran]


def foreign_file(path: Path, change: Callable[[onnx.ModelProto], Any] = lambda model: None) -> Path:
    """A tiny valid file, with a change made to its ONNX model after it was written."""
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
    """Moves the weights to another file."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": "16"}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def custom_operator_in_branch(model: onnx.ModelProto) -> None:
    """Adds a custom operator inside a branch."""
    inner = helper.make_graph([helper.make_node("Run", [], ["x"], domain="com.example")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["weight"], ["y"], then_branch=inner, else_branch=inner))


def other_fingerprint(model: onnx.ModelProto) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == onnx_file.KEY)
    entry.value = entry.value.replace('"fingerprint": "f"', '"fingerprint": "g"')


def other_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(4, 2, np.float32), "weight"))


def with_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Mine", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], []))


def weights_in_attribute(model: onnx.ModelProto) -> None:
    """Adds weights in another file that belong to an attribute instead of the graph."""
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, np.float32), "c"))
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../secret.bin", "offset": "0", "length": "16"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    model.graph.node.append(constant)


def newer_format(model: onnx.ModelProto) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == onnx_file.KEY)
    entry.value = entry.value.replace(f'"format": {onnx_file.FORMAT}', '"format": 99')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside("/etc/passwd"), "outside its own folder"),
        (outside("../secret.bin"), "outside its own folder"),
        (outside("link.bin"), "outside its own folder"),
        (outside("nothing.bin"), "not beside it"),
        (outside("short.bin"), "cut short"),
        (custom_operator, "not part of ONNX"),
        (custom_operator_in_branch, "not part of ONNX"),
        (lambda model: model.metadata_props.pop(), "lacks the metadata"),
        (other_fingerprint, "is damaged"),
        (other_weights, "is damaged"),
        (with_function, "not part of ONNX"),
        (weights_in_attribute, "outside its own folder"),
        (outside(".."), "outside its own folder"),
        (newer_format, "Update cyclic"),
    ],
    ids=[
        "absolute",
        "above",
        "link",
        "missing",
        "short",
        "custom-operator",
        "custom-operator-in-branch",
        "no-metadata",
        "other-fingerprint",
        "other-weights",
        "function",
        "attribute",
        "dots",
        "newer",
    ],
)
def test_unsafe_and_undescribed_files_are_refused(
    change: Callable[[onnx.ModelProto], Any], message: str, tmp_path: Path, cyclic: Cyclic
) -> None:
    Path("short.bin").write_bytes(b"1234")
    (tmp_path / "secret.bin").write_bytes(b"0" * 16)
    Path("link.bin").symlink_to(tmp_path / "secret.bin")
    make_png(Path("a.png"), smooth_image(4))
    foreign_file(Path("model.onnx"), change)
    for words in (("info", "model.onnx"), ("reconstruct", "a.png", "--model", "model.onnx")):
        ran = cyclic(*words)
        assert ran.code == 1
        assert message in ran.err


def test_a_valid_file_is_described(cyclic: Cyclic) -> None:
    assert cyclic("info", foreign_file(Path("model.onnx")), "--json").json["part"] == "encoder"


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x08\x0a" * 999, b"\xff" * 99], ids=["empty", "text", "noise", "ones"]
)
def test_files_that_are_not_onnx_are_refused(content: bytes, cyclic: Cyclic) -> None:
    Path("model.onnx").write_bytes(content)
    ran = cyclic("info", "model.onnx")
    assert ran.code == 1
    assert "Traceback" not in ran.err
