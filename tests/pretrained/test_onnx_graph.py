"""Tests of ONNX files as encoders: their features, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.onnx_graphs import WIDTH, model_of, network, saved, text_network, value
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tokenizers import Tokenizer, models, pre_tokenizers

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.onnx_graph import OnnxEncoder, open_graph, rebuild
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.storage import onnx_file

HALF = {"mean": 0.5, "std": 0.25}  # of the pixels
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # sums of tens of float32 products of size 1


def opened(model: onnx.ModelProto, *outputs: str, modality: str = "image", size: int = 16, **overrides: Any) -> Any:
    path = saved(model, Path("encoder.onnx"))
    return open_graph(path, outputs, modality, (1, size, size), overrides or (HALF if modality == "image" else {}))


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def by_reference(model: onnx.ModelProto, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """The outputs by the slow reference implementation of ONNX, of grey images normalised by `HALF`."""
    taken = (pixels.expand(-1, 3, -1, -1).numpy() - np.float32(0.5)) / np.float32(0.25)
    found = ReferenceEvaluator(model).run(None, {"image": taken})
    return dict(zip([one.name for one in model.graph.output], found, strict=True))


def quarters(maps: np.ndarray) -> np.ndarray:
    """(N, D, h, w) → (N, 4D): signed square roots, and the mean of each quarter; h and w are even."""
    roots = np.sign(maps) * np.sqrt(np.abs(maps))
    count, depth, height, width = maps.shape
    return roots.reshape(count, depth, 2, height // 2, 2, width // 2).mean((3, 5)).reshape(count, -1)


def chained(*nodes: tuple[Any, ...], outputs: dict[str, list[Any]], **weights: Any) -> onnx.ModelProto:
    """A model of `image` (N, 3, 16, 16) from nodes (operator, inputs, output, attributes)."""
    made = [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in nodes]
    return model_of(
        made, [value("image", ["N", 3, 16, 16])], [value(name, shape) for name, shape in outputs.items()], weights
    )


def vision_transformer(patches: int, before: int) -> onnx.ModelProto:
    """`image` → `tokens` (N, before + patches, 3): the first pixels of an image in their order."""
    return chained(
        ("Reshape", ["image", "rows"], "pixels", {}),
        ("Slice", ["pixels", "none", "count", "axis"], "chosen", {}),
        ("Transpose", ["chosen"], "tokens", {"perm": [0, 2, 1]}),
        outputs={"tokens": ["N", before + patches, 3]},
        rows=np.array([0, 3, 256]), none=np.array([0]), count=np.array([before + patches]), axis=np.array([2]),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- images


def test_vectors_stay_and_maps_are_pooled_after_a_signed_square_root() -> None:
    model, pixels = network(), images(3)
    encoder = opened(model)
    expected = by_reference(model, pixels)
    found = {name: values.numpy() for name, values in encoder(pixels).items()}
    assert {name: values.shape for name, values in found.items()} == {
        "map": (3, 4 * WIDTH), "features": (3, WIDTH), "logits": (3, 4)
    }  # fmt: skip
    assert [(one.name, one.dims) for one in encoder.facts.outputs] == [("map", 24), ("features", 6), ("logits", 4)]
    np.testing.assert_allclose(found["map"], quarters(expected["map"]), **CLOSE)
    for name in ("features", "logits"):
        np.testing.assert_allclose(found[name], expected[name], **CLOSE)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_tokens_of_a_transformer_become_the_map_of_its_patches(before: int) -> None:
    pixels = images(2)
    found = opened(vision_transformer(16, before))(pixels)
    tokens = ((pixels.numpy() - 0.5) / 0.25).reshape(2, 1, 256)[:, :, : before + 16].repeat(3, 1)
    np.testing.assert_allclose(found["tokens"], quarters(tokens[:, :, before:].reshape(2, 3, 4, 4)), **CLOSE)
    assert ("tokens first" in found) == (before > 0)
    if before:
        np.testing.assert_allclose(found["tokens first"], tokens[:, :, 0], **CLOSE)


def test_tokens_that_are_no_square_are_averaged() -> None:
    pixels = images(2)
    found = opened(vision_transformer(12, 0))(pixels)
    tokens = ((pixels.numpy() - 0.5) / 0.25).reshape(2, 1, 256)[:, :, :12].repeat(3, 1)
    assert list(found) == ["tokens"]
    np.testing.assert_allclose(found["tokens"], tokens.mean(2), **CLOSE)


def test_named_outputs_are_taken_in_their_order_and_typos_are_corrected() -> None:
    assert list(opened(network(), "logits", "map")(images(1))) == ["logits", "map"]
    with pytest.raises(UsageError) as caught:
        opened(network(), "featurs")
    assert "'features'" in caught.value.hint


def test_a_graph_of_fixed_size_resizes_and_one_of_any_size_takes_that_of_the_dataset() -> None:
    fixed, free = opened(network(), size=20), opened(network(side="S"), size=20)
    assert (fixed.facts.geometry.size, free.facts.geometry.size) == (16, 20)
    pixels = images(2, 20)
    expected = by_reference(network(side="S"), pixels)
    np.testing.assert_allclose(free(pixels)["features"], expected["features"], **CLOSE)
    assert fixed(pixels)["features"].shape == (2, WIDTH)


def test_a_graph_of_one_channel_gets_grey_and_one_of_half_precision_gets_float16() -> None:
    assert opened(network(channels=1)).facts.geometry.channels == 1
    half = TensorProto.FLOAT16
    model = model_of(
        [helper.make_node("ReduceMean", ["image"], ["features"], axes=[2, 3], keepdims=0)],
        [value("image", ["N", 3, 16, 16], half)], [value("features", ["N", 3], half)],
    )  # fmt: skip
    pixels = images(2)
    found = opened(model)(pixels)["features"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[:, 0], (pixels.mean((1, 2, 3)) - 0.5) / 0.25, atol=4e-3)  # steps of fp16 below 4


def test_a_graph_for_one_image_at_a_time_takes_batches() -> None:
    one, many = opened(network(batch=1)), opened(network())
    assert (one.facts.settings["one_by_one"], many.facts.settings["one_by_one"]) == (True, False)
    for name, values in one(images(3)).items():
        np.testing.assert_allclose(values, many(images(3))[name], **CLOSE)


def test_images_that_change_one_another_are_read_alone() -> None:
    model = chained(
        ("ReduceMean", ["image"], "all", {"keepdims": 1}),
        ("Sub", ["image", "all"], "centred", {}),
        ("ReduceMean", ["centred"], "features", {"axes": [2, 3], "keepdims": 0}),
        outputs={"features": ["N", 3]},
    )
    encoder, pixels = opened(model), images(3)
    alone = torch.cat([encoder(one)["features"] for one in pixels.split(1)])
    assert torch.equal(encoder(pixels)["features"], alone)


def test_a_graph_that_claims_any_batch_but_takes_one_is_read_alone() -> None:
    model = chained(
        ("Reshape", ["image", "shape"], "rows", {}),
        ("ReduceMean", ["rows"], "features", {"axes": [2], "keepdims": 0}),
        outputs={"features": ["N", 3]}, shape=np.array([1, 3, 256]),
    )  # fmt: skip
    assert opened(model)(images(3))["features"].shape == (3, 3)


def test_outputs_without_a_declared_size_are_resolved_by_a_run() -> None:
    model = network()
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    assert [one.dims for one in opened(model).facts.outputs] == [24, 6, 4]


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": "[0.1, 0.2, 0.3]", "std": "0.5,0.5,0.5", "license": "MIT"},
        {"image_mean": "0.1, 0.2, 0.3", "image_std": "0.5", "licence": "MIT"},
    ],
)
def test_metadata_state_the_normalisation_and_the_licence(metadata: dict[str, str]) -> None:
    path = saved(network(metadata=metadata), Path("encoder.onnx"))
    facts = open_graph(path, (), "image", None, {}).facts
    assert open_graph(path, (), "image", None, {"mean": 0.4}).facts.geometry.mean == (0.4, 0.4, 0.4)
    assert (facts.geometry.mean, facts.geometry.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert (facts.kind, facts.modality, facts.family, facts.licence) == ("onnx", "image", "encoder", "MIT")


def test_without_a_normalisation_the_line_that_gives_it_is_shown() -> None:
    path = saved(network(), Path("encoder.onnx"))
    with pytest.raises(UsageError) as caught:
        open_graph(path, (), "image", None, {})
    assert caught.value.hint == "--set modalities.image.mean=0.5 --set modalities.image.std=0.5"


# -------------------------------------------------------------------------------------------------- what a run stores


def test_an_encoder_is_made_again_from_its_facts_and_its_graph() -> None:
    encoder = opened(network())
    copy = Path("copy.onnx")
    copy.write_bytes(encoder.graph_bytes())
    again = rebuild(encoder.facts, copy)
    assert again.graph_bytes() == encoder.graph_bytes()
    for name, values in encoder(images(2)).items():
        assert torch.equal(again(images(2))[name], values)
    with pytest.raises(CyclicError, match="not the encoder of this model"):
        rebuild(encoder.facts, saved(network(seed=1), Path("other.onnx")))


def test_a_fingerprint_is_that_of_weights_geometry_and_outputs() -> None:
    first = opened(network()).facts.fingerprint
    assert len(first) == 32
    assert opened(network(metadata={"author": "someone"})).facts.fingerprint == first
    others = [opened(network(seed=1)), opened(network(), mean=0.4, std=0.25), opened(network(), "map")]
    assert len({first, *(one.facts.fingerprint for one in others)}) == 4


def test_weights_in_a_file_beside_it_are_included_and_traces_of_a_machine_are_not() -> None:
    model = network()
    model.doc_string = model.graph.node[0].doc_string = "/home/someone/export.py"
    helper.set_model_props(model, {"trace": "/home/someone"})
    onnx.save(model, "encoder.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    encoder = open_graph(Path("encoder.onnx"), (), "image", None, HALF)
    Path("weights.bin").unlink()
    assert b"/home" not in encoder.graph_bytes()
    onnx.checker.check_model(encoder.graph_bytes())
    assert encoder.facts.fingerprint == opened(network()).facts.fingerprint


# -------------------------------------------------------------------------------------------------- files of `export`


def exported(path: Path, **changes: Any) -> Path:
    """A file as `cyclic export` writes it, of a graph with one channel."""
    graph = network(channels=1, opset=13)
    for node in graph.graph.node:
        node.output[:] = [{"map": "code", "features": "embedding"}.get(name, name) for name in node.output]
        node.input[:] = [{"map": "code", "features": "embedding"}.get(name, name) for name in node.input]
    graph.graph.output[0].name, graph.graph.output[1].name = "code", "embedding"
    described = {"part": "encoder", "architecture": {"name": "conv"}, "fingerprint": "f", "licence": "CC0"} | changes
    onnx_file.write(path, graph, onnx_file.Description(preprocessing=Preprocessing(), **described))
    return path


def test_a_part_of_our_own_needs_no_normalisation_and_gives_code_and_embedding() -> None:
    encoder = open_graph(exported(Path("own.onnx")), (), "image", None, {})
    assert [one.name for one in encoder.facts.outputs] == ["code", "embedding"]
    assert (encoder.facts.geometry.mean, encoder.facts.geometry.std) == ((0.0,), (1.0,))
    assert (encoder.facts.family, encoder.facts.licence) == ("conv", "CC0")


@pytest.mark.parametrize(
    ("changes", "modality", "hint"),
    [
        ({"rendered": True}, "image", "without --with-preprocessing"),
        ({"part": "decoder"}, "image", "Give the run folder"),
        ({}, "text", "Give the run folder"),
    ],
)
def test_other_parts_of_our_own_are_refused(changes: dict[str, Any], modality: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_graph(exported(Path("own.onnx"), **changes), (), modality, None, {})
    assert hint in caught.value.hint


# -------------------------------------------------------------------------------------------------------------- texts

WORDS = ["[UNK]", "heart", "large", "small", "no", "effusion"]


def write_tokenizer(window: int | None = None) -> str:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if window:
        tokenizer.enable_truncation(window)
    Path("tokenizer.json").write_text(tokenizer.to_str())
    return tokenizer.to_str()


def expected_text(model: onnx.ModelProto, ids: list[int]) -> np.ndarray:
    """The mean over the tokens of one text of the sums of table rows that `text_network` computes."""
    tables = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    rows = tables["tokens"][ids] + tables["table_token_type_ids"][0] + tables["table_position_ids"][: len(ids)]
    return rows.mean(0)


@pytest.mark.parametrize(("batch", "length"), [("N", "L"), (1, "L"), ("N", 8), (1, 8)])
def test_texts_are_averaged_over_their_tokens_and_windows(batch: Any, length: Any) -> None:
    tokenizer, model = write_tokenizer(8), text_network(batch, length)
    encoder = opened(model, modality="text")
    assert (encoder.facts.window, encoder.facts.tokenizer) == (8, tokenizer)
    texts = ["heart large", "no effusion small heart", "heart " * 9 + "large"]
    found = encoder(torch.from_numpy(Tokens(tokenizer, 8).encode(texts)))
    assert found["last_hidden_state"].shape == (3, WIDTH)
    rows = [expected_text(model, [1, 2]), expected_text(model, [4, 5, 3, 1])]
    rows.append(0.8 * expected_text(model, [1] * 8) + 0.2 * expected_text(model, [1, 2]))
    np.testing.assert_allclose(found["last_hidden_state"], rows, **CLOSE)
    np.testing.assert_allclose(found["pooled"][0], 2 * rows[0], **CLOSE)  # this output is the sum


def test_the_window_is_that_of_the_tokenizer_then_of_the_metadata_then_what_runs() -> None:
    write_tokenizer()
    model = text_network(positions=100)
    assert opened(model, modality="text").facts.window == 77
    helper.set_model_props(model, {"max_length": "40"})
    assert opened(model, modality="text").facts.window == 40
    write_tokenizer(20)
    assert opened(model, modality="text").facts.window == 20


def test_texts_without_types_and_positions_and_of_an_output_by_name() -> None:
    write_tokenizer(8)
    encoder = opened(text_network(inputs=("input_ids", "attention_mask")), "pooled", modality="text")
    assert [(one.name, one.dims) for one in encoder.facts.outputs] == [("pooled", WIDTH)]


def test_without_a_tokenizer_the_line_that_makes_it_is_shown() -> None:
    with pytest.raises(CyclicError, match=r"no tokenizer\.json") as caught:
        opened(text_network(), modality="text")
    assert "save_pretrained(" in caught.value.hint


def test_a_tokenizer_with_more_tokens_than_the_graph_is_refused() -> None:
    write_tokenizer(8)
    with pytest.raises(CyclicError, match="of the 6 tokens"):
        opened(text_network(tokens=4), modality="text")


# ------------------------------------------------------------------------------------------------- what is refused


def with_second_image() -> onnx.ModelProto:
    model = network()
    model.graph.input.append(value("other", ["N", 3, 16, 16]))
    model.graph.node.append(helper.make_node("Identity", ["other"], ["same"]))
    return model


def with_operator_of(domain: str) -> onnx.ModelProto:
    model = network()
    model.graph.node[0].domain = domain
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def with_weights_at(location: str) -> onnx.ModelProto:
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return model


def of_content() -> onnx.ModelProto:
    """The number of features is the number of bright pixels."""
    return chained(
        ("Greater", ["image", "zero"], "bright", {}), ("NonZero", ["bright"], "places", {}),
        ("Cast", ["places"], "features", {"to": TensorProto.FLOAT}),
        outputs={"features": ["A", "B"]}, zero=np.float32(0),
    )  # fmt: skip


def without_outputs() -> onnx.ModelProto:
    model = network()
    del model.graph.output[:]
    return model


def not_finite() -> onnx.ModelProto:
    return chained(
        ("ReduceMean", ["image"], "mean", {"axes": [2, 3], "keepdims": 0}), ("Sub", ["mean", "mean"], "zero", {}),
        ("Div", ["zero", "zero"], "features", {}), outputs={"features": ["N", 3]},
    )  # fmt: skip


def at_random() -> onnx.ModelProto:
    return chained(
        ("RandomNormalLike", ["image"], "noise", {}),
        ("ReduceMean", ["noise"], "features", {"axes": [2, 3], "keepdims": 0}), outputs={"features": ["N", 3]},
    )  # fmt: skip


def of_integers() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Cast", ["image"], ["shades"], to=TensorProto.FLOAT)],
        [value("image", ["N", 3, 16, 16], TensorProto.UINT8)], [value("shades", ["N", 3, 16, 16])],
    )  # fmt: skip


def only_labels() -> onnx.ModelProto:
    return chained(
        ("ReduceMean", ["image"], "mean", {"axes": [2, 3], "keepdims": 0}),
        ("ArgMax", ["mean"], "label", {"axis": 1}), outputs={},
    )  # fmt: skip


def labelled() -> onnx.ModelProto:
    model = only_labels()
    model.graph.output.append(value("label", ["N", 1], TensorProto.INT64))
    return model


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "two-images": (with_second_image, r"has 2 inputs \(image, other\)"),
    "integers": (of_integers, r"is tensor\(uint8\)"),
    "channels-last": (lambda: model_of(
        [helper.make_node("Identity", ["image"], ["y"])],
        [value("image", ["N", 16, 16, 3])], [value("y", ["N", 16, 16, 3])],
    ), "is N × 16 × 16 × 3"),
    "not-square": (lambda: model_of(
        [helper.make_node("Identity", ["image"], ["y"])],
        [value("image", ["N", 3, 16, 24])], [value("y", ["N", 3, 16, 24])],
    ), "16 × 24 pixels"),
    "fixed-batch": (lambda: network(batch=8), "batches of 8"),
    "size-of-content": (of_content, "'features' of .* has no fixed size"),
    "no-outputs": (without_outputs, "no outputs"),
    "only-labels": (labelled, "No output"),
    "not-finite": (not_finite, "not finite"),
    "random": (at_random, "other numbers each time"),
    "custom-operator": (lambda: with_operator_of("com.example"), "not part of ONNX"),
    "operator-of-one-runtime": (lambda: with_operator_of("com.microsoft"), "not part of ONNX"),
    "weights-elsewhere": (lambda: with_weights_at("../weights.bin"), "outside its own folder"),
    "weights-missing": (lambda: with_weights_at("weights.bin"), "not beside it"),
    "texts": (text_network, "encodes texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_cannot_encode_images_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CyclicError, match=message) as caught:
        opened(make())
    assert caught.value.hint


def test_a_graph_of_images_is_no_text_encoder() -> None:
    with pytest.raises(UsageError, match="it encodes images") as caught:
        opened(network(), modality="text")
    assert "--image-encoder encoder.onnx" in caught.value.hint
    with pytest.raises(CyclicError, match="a text encoder has"):
        opened(with_second_image(), modality="text")


def test_an_integer_output_by_name_is_refused() -> None:
    model = network()
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1))
    model.graph.output.append(value("label", ["N", 1], TensorProto.INT64))
    assert len(opened(model).facts.outputs) == 3
    with pytest.raises(UsageError, match="'label'"):
        opened(model, "label")


@pytest.mark.parametrize("content", [b"", b"not a model", network().SerializeToString()[:-50]])
def test_a_damaged_file_is_refused(content: bytes) -> None:
    Path("encoder.onnx").write_bytes(content)
    with pytest.raises(CyclicError):
        open_graph(Path("encoder.onnx"), (), "image", None, HALF)


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(CyclicError, match="2 GiB"):
        opened(network())


@pytest.mark.parametrize(
    "overrides", [{"mean": 127.5, "std": 0.5}, {"mean": 0.5, "std": 0}, {"mean": [0.5, 0.5], "std": 0.5}]
)
def test_an_impossible_normalisation_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        opened(network(), **overrides)


def test_an_encoder_is_no_module_to_train() -> None:
    encoder: OnnxEncoder = opened(network())
    assert not encoder.trainable
    assert not list(encoder.parameters())
