"""Tests of merged ONNX graphs: one graph computes what its pieces compute one after another."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.onnx_graphs import WIDTH, model_of, network, value
from onnx import TensorProto, helper
from torch import Tensor, nn

from cyclic_cli.export.merging import CannotMerge, EncoderGraph, merge
from cyclic_cli.export.parts import Part
from cyclic_cli.export.quantisation import Quantiser, to_fp16
from cyclic_cli.export.tracing import OPSET, trace

CLOSE = 1e-5  # numbers are of size 1 and sums of tens of terms in float32


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, inputs), strict=True))


def images(count: int, side: int = 16, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(count).random((count, channels, side, side), dtype=np.float32)


def front(output: str = "prepared") -> onnx.ModelProto:
    """`image` (N, 1, 16, 16) → three equal channels, normalised. Its inner names are those of `network`."""
    make = helper.make_node
    nodes = [
        make("Sub", ["image", "scale"], ["x"], "conv"),
        make("Div", ["x", "scale"], ["y"]),
        make("Concat", ["y", "y", "y"], [output], axis=1),
    ]
    shapes = [value("image", ["batch", 1, 16, 16])], [value(output, ["batch", 3, 16, 16])]
    return model_of(nodes, *shapes, {"scale": np.float32(0.5)}, OPSET)


def back(*sources: str, **further: Any) -> onnx.ModelProto:
    """Vectors (N, 6) and the image → `embedding` (N, 6), their sum and the mean of the image. Names clash again."""
    make = helper.make_node
    nodes = [make("ReduceMean", ["image"], ["x"], keepdims=0), make("Sum", [*sources], ["y"])]
    nodes.append(make("Add", ["y", "x"], ["embedding"]))
    inputs = [value(name, ["batch", WIDTH]) for name in sources]
    return model_of(
        nodes, [value("image", ["batch", 1, 16, 16]), *inputs], [value("embedding", ["batch", WIDTH])], {}, OPSET
    )


def one_after_another(pixels: np.ndarray, *encoders: onnx.ModelProto) -> np.ndarray:
    """What `front`, the encoders and `back` give, each in a session of its own."""
    prepared = run(front(), image=pixels)["prepared"]
    vectors = {f"encoder{n}_features": run(one, image=prepared)["features"] for n, one in enumerate(encoders)}
    pooled = pixels.mean()
    return sum(vectors.values()) + pooled


@pytest.mark.parametrize("count", [1, 3])
def test_two_older_networks_between_a_front_and_a_back_become_one_graph(count: int) -> None:
    encoders = network(), network(seed=1, opset=11)
    sources = ("encoder0_features", "encoder1_features")
    merged = merge(front(), [EncoderGraph(one, {"image": "prepared"}) for one in encoders], back(*sources))
    assert [(entry.domain, entry.version) for entry in merged.opset_import] == [("", OPSET)]
    assert [one.name for one in merged.graph.input] == ["image"]
    onnx.checker.check_model(merged, full_check=True)
    pixels = images(count)
    np.testing.assert_allclose(
        run(merged, image=pixels)["embedding"], one_after_another(pixels, *encoders), rtol=0, atol=CLOSE
    )


def test_only_what_is_needed_is_kept_and_every_node_has_its_own_name() -> None:
    merged = merge(front(), [EncoderGraph(network(), {"image": "prepared"})], back("encoder0_features"))
    assert "encoder0_head" not in {one.name for one in merged.graph.initializer}
    names = [node.name for node in merged.graph.node]
    assert all(names)
    assert len({*names}) == len(names)


def test_a_network_for_one_image_at_a_time_takes_any_batch_in_the_merged_graph() -> None:
    encoder = network(batch=1)
    graph = EncoderGraph(encoder, {"image": "prepared"}, one_by_one=True)
    merged = merge(front(), [graph], back("encoder0_features"))
    pixels = images(3)
    expected = np.concatenate(
        [run(encoder, image=run(front(), image=one[None])["prepared"])["features"] for one in pixels]
    )
    found = run(merged, image=pixels)["embedding"]
    np.testing.assert_allclose(found, expected + pixels.mean(), rtol=0, atol=CLOSE)


def test_without_a_front_the_network_takes_the_image_itself() -> None:
    encoder = network(channels=1)
    merged = merge(None, [EncoderGraph(encoder)], back("encoder0_features"))
    assert [one.name for one in merged.graph.input] == ["image"]
    pixels = images(2)
    expected = run(encoder, image=pixels)["features"] + pixels.mean()
    np.testing.assert_allclose(run(merged, image=pixels)["embedding"], expected, rtol=0, atol=CLOSE)


def test_number_types_are_converted_between_the_pieces() -> None:
    half = TensorProto.FLOAT16
    encoder = model_of(
        [helper.make_node("ReduceMean", ["image"], ["wide"], axes=[2], keepdims=0),
         helper.make_node("Slice", ["wide", "none", "six", "axes"], ["cut"]),
         helper.make_node("ReduceMean", ["cut"], ["features"], axes=[1], keepdims=0)],
        [value("image", ["N", 3, 16, 16], half)], [value("features", ["N", WIDTH], half)],
        {"none": np.array([0]), "six": np.array([WIDTH]), "axes": np.array([2])},
    )  # fmt: skip
    merged = merge(front(), [EncoderGraph(encoder, {"image": "prepared"})], back("encoder0_features"))
    pixels = images(2)
    expected = one_after_another(pixels) + (pixels[:, 0, :, :WIDTH].mean(1) - 0.5) / 0.5
    found = run(merged, image=pixels)["embedding"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-3)  # fp16 has steps of 2e-3 below 2


def test_branches_keep_what_they_take_from_outside() -> None:
    """A branch of `If` reads a value and an initial value of the graph around it, and has names that clash with it."""

    def branch(kind: str) -> onnx.GraphProto:
        nodes = [helper.make_node(kind, ["mean", "scale"], ["z"]), helper.make_node("Identity", ["z"], ["out"])]
        return helper.make_graph(nodes, kind, [], [value("out", ["N", WIDTH])])

    encoder = network()
    nodes = [*encoder.graph.node][:4]
    nodes += [
        helper.make_node("Size", ["image"], ["size"]), helper.make_node("Greater", ["size", "limit"], ["large"]),
        helper.make_node("If", ["large"], ["features"], then_branch=branch("Mul"), else_branch=branch("Div")),
    ]  # fmt: skip
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in encoder.graph.initializer}
    weights["limit"] = np.array(2000)  # between two and three images
    branching = model_of(nodes, [*encoder.graph.input], [encoder.graph.output[1]], weights, 13)
    merged = merge(front(), [EncoderGraph(branching, {"image": "prepared"})], back("encoder0_features"))
    for count in (2, 3):
        pixels = images(count)
        expected = one_after_another(pixels, branching)
        np.testing.assert_allclose(run(merged, image=pixels)["embedding"], expected, rtol=0, atol=CLOSE)


def test_initial_values_among_the_inputs_and_as_outputs() -> None:
    encoder = network()
    encoder.graph.input.append(value("head", [WIDTH, 4]))  # as files before IR version 4 do
    encoder.graph.input.append(value("scale", []))
    encoder.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, WIDTH), 7, np.float32), "fixed"))
    encoder.graph.output.append(value("fixed", [1, WIDTH]))
    graph = EncoderGraph(encoder, {"image": "prepared"})
    merged = merge(front(), [graph], back("encoder0_features", "encoder0_fixed"))
    assert [one.name for one in merged.graph.input] == ["image"]
    pixels = images(2)
    expected = one_after_another(pixels, encoder) + 7
    np.testing.assert_allclose(run(merged, image=pixels)["embedding"], expected, rtol=0, atol=CLOSE)


def without_conversion() -> onnx.ModelProto:
    """An operator that opset 20 does not have yet."""
    model = network(opset=13)
    model.opset_import[0].version = 24
    model.graph.node.append(helper.make_node("RotaryEmbedding", ["map", "map", "map"], ["turned"]))
    return model


@pytest.mark.parametrize(
    ("front_model", "encoder", "source", "reason"),
    [
        (front(), without_conversion(), "encoder0_features", "opset 24"),
        (front(), network(), "encoder0_nothing", "takes an output of encoder 0"),
        (front("image_1"), network(), "encoder1_features", "takes an output of encoder 0"),
    ],
    ids=["no-conversion", "no-such-output", "no-such-encoder"],
)
def test_what_cannot_be_merged_says_why(
    front_model: onnx.ModelProto, encoder: onnx.ModelProto, source: str, reason: str
) -> None:
    with pytest.raises(CannotMerge, match=reason):
        merge(front_model, [EncoderGraph(encoder, {"image": "prepared"})], back(source))


def test_an_output_that_no_encoder_gives_is_no_input() -> None:
    with pytest.raises(CannotMerge, match="encoder0_nothing"):
        merge(front(), [EncoderGraph(network(), {"image": "prepared"})], back("encoder0_features", "encoder0_nothing"))


def test_a_merged_graph_converts_to_fp16_and_int8() -> None:
    merged = merge(front(), [EncoderGraph(network(), {"image": "prepared"})], back("encoder0_features"))
    pixels = images(5)
    expected = run(merged, image=pixels)["embedding"]
    small = Quantiser(merged, [{"image": pixels}]).quantised(0)
    assert any(node.op_type == "QuantizeLinear" for node in small.graph.node)
    found = run(small, image=pixels)["embedding"]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9  # some processors saturate sums of 8-bit products
    found = run(to_fp16(merged), image=pixels)["embedding"]
    np.testing.assert_allclose(found, expected, rtol=0.02)  # steps of 2⁻¹⁰ in sums of 27 products


class Prepare(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        larger = nn.functional.interpolate(image, size=(16, 16), mode="bilinear", antialias=False)
        return (larger.repeat(1, 3, 1, 1) - 0.5) / 0.25


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 4)

    def forward(self, encoder0_features: Tensor, encoder0_map: Tensor) -> tuple[Tensor, Tensor]:
        code = encoder0_features + nn.functional.adaptive_avg_pool2d(encoder0_map, 1).flatten(1)
        return code, nn.functional.normalize(self.linear(code), dim=1)


def part(module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...]) -> Part:
    examples, dynamic = tuple(inputs.values()), {name: {0: "batch"} for name in inputs}
    return Part("part", module.eval(), tuple(inputs), outputs, examples, examples, dynamic, lambda count: examples)


@pytest.mark.slow
def test_traced_pieces_and_a_foreign_network_become_one_graph() -> None:
    torch.manual_seed(0)
    prepare, head, encoder = Prepare(), Head(), network()
    first = trace(part(prepare, {"image": torch.rand(2, 1, 12, 12)}, ("prepared",)))
    taken = {"encoder0_features": torch.rand(2, WIDTH), "encoder0_map": torch.rand(2, WIDTH, 8, 8)}
    last = trace(part(head, taken, ("code", "embedding")))
    merged = merge(first, [EncoderGraph(encoder, {"image": "prepared"})], last)
    assert [one.name for one in merged.graph.output] == ["code", "embedding"]
    pixels = images(5, 12)
    with torch.no_grad():
        between = run(encoder, image=prepare(torch.from_numpy(pixels)).numpy())
        expected = head(torch.from_numpy(between["features"]), torch.from_numpy(between["map"]))[1].numpy()
    np.testing.assert_allclose(run(merged, image=pixels)["embedding"], expected, rtol=0, atol=CLOSE)
