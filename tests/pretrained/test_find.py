"""What a path holds is told by its content."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_encoders import IMAGES, SIZE, TEXTS, tiny_image_folder, tiny_text_folder

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained import find, onnx_graph, own_run, transformers_folder
from cyclic_cli.pretrained.encoder import EncoderFacts, Output

FACTS = {
    "modality": "text",
    "family": "a",
    "fingerprint": "0" * 32,
    "licence": "",
    "outputs": (Output(name="a", dims=1),),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the modules of the kinds of encoders were asked for. They open nothing."""
    calls: list[tuple[Any, ...]] = []

    def recorder(name: str) -> Callable[..., None]:
        return lambda *given: calls.append((name, *given))

    monkeypatch.setattr(transformers_folder, "open_folder", recorder("transformers"))
    monkeypatch.setattr(own_run, "open_run", recorder("run"))
    monkeypatch.setattr(onnx_graph, "open_graph", recorder("onnx"))
    for module in (transformers_folder, own_run, onnx_graph):
        monkeypatch.setattr(module, "rebuild", recorder(f"rebuild {module.__name__.split('.')[-1]}"))
    return calls


def write(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.json", "model.safetensors"], "transformers"),
        (["modules.json", "0_Transformer/config.json"], "transformers"),
        (["model.safetensors", "config.yaml", "summary.json"], "run"),
    ],
)
def test_folders(files: list[str], kind: str, tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    find.open_encoder(str(write(tmp_path, *files)), "image", (1, 8, 8), {"mean": 0.5})
    assert asked == [(kind, tmp_path, "image", (1, 8, 8), {"mean": 0.5})]


def test_files(tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    write(tmp_path, "a.safetensors", "b.onnx", "c#d.onnx")
    find.open_encoder(f"{tmp_path}/a.safetensors", "text", None, {})
    find.open_encoder(f"{tmp_path}/b.onnx", "text", None, {})
    find.open_encoder(f"{tmp_path}/b.onnx#one,two", "image", (1, 8, 8), {})
    find.open_encoder(f"{tmp_path}/c#d.onnx", "image", None, {})
    assert asked == [
        ("run", tmp_path / "a.safetensors", "text", None, {}),
        ("onnx", tmp_path / "b.onnx", (), "text", None, {}),
        ("onnx", tmp_path / "b.onnx", ("one", "two"), "image", (1, 8, 8), {}),
        ("onnx", tmp_path / "c#d.onnx", (), "image", None, {}),
    ]


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "empty/notes.txt", "graphs/a.onnx", "whole/config.json", "whole/model.safetensors", "model.bin")
    for path, said, hint in (
        ("missing", "There is no encoder", "not downloaded"),
        ("empty", "holds no encoder", "save_pretrained"),
        ("model.bin", "is not an encoder", "save_pretrained"),
        ("graphs", "folder of ONNX files", f"--image-encoder {tmp_path}/graphs/a.onnx"),
        ("whole/model.safetensors", "only the weights", f"Give its folder: {tmp_path}/whole"),
        ("whole#one", "outputs cannot be chosen", "Leave out #one"),
    ):
        with pytest.raises(CyclicError) as caught:
            find.open_encoder(f"{tmp_path}/{path}", "image", None, {})
        assert said in caught.value.message
        assert hint in caught.value.hint
    with pytest.raises(UsageError, match="no pretrained encoders of sounds"):
        find.open_encoder(str(tmp_path), "sound", None, {})


def test_encoders_are_built_again_by_their_kind(tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    for kind in ("transformers", "cyclic", "onnx"):
        find.rebuild(EncoderFacts(kind=kind, **FACTS), tmp_path)
    assert [call[0] for call in asked] == ["rebuild transformers_folder", "rebuild own_run", "rebuild onnx_graph"]
    for kind in ("onnx", "other"):
        with pytest.raises(CyclicError, match="cannot be made again"):
            find.rebuild(EncoderFacts(kind=kind, **FACTS))


def test_folders_open(tmp_path: Path) -> None:
    image = find.open_encoder(str(tiny_image_folder("vit", tmp_path / "vit")), "image", (1, 16, 16), {"std": 0.5})
    assert image.facts.geometry is not None
    assert (image.facts.geometry.size, image.facts.geometry.std) == (16, (0.5, 0.5, 0.5))
    assert find.open_encoder(str(tiny_text_folder("bert", tmp_path / "bert")), "text", None, {}).facts.family == "bert"


def test_encoders_of_every_family_are_opened(tmp_path: Path) -> None:
    for modality, families, make in (("image", IMAGES, tiny_image_folder), ("text", TEXTS, tiny_text_folder)):
        for family in families:
            folder = make(family, tmp_path / modality / family)
            facts = find.open_encoder(str(folder), modality, (1, SIZE, SIZE), {}).facts
            assert facts.modality == modality, family
