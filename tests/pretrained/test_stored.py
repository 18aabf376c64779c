"""The copy of an encoder in a run folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from helpers.onnx_graphs import network
from helpers.tiny_encoders import tiny_image_folder, tiny_text_folder

from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.find import open_encoder
from cyclic_cli.pretrained.stored import facts_from_json, facts_to_json, read_encoder, write_encoder
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.storage.files import checksum


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    """A text encoder, whose folder is gone."""
    path = tiny_text_folder("sentence-transformers", tmp_path_factory.mktemp("encoder") / "text")
    opened = open_encoder(str(path), "text", None, {})
    shutil.rmtree(path)
    return opened


@pytest.fixture
def folder(encoder: PretrainedEncoder, tmp_path: Path) -> Path:
    write_encoder(tmp_path / "encoders", encoder)
    return tmp_path / "encoders"


def refused(folder: Path, encoder: PretrainedEncoder) -> CyclicError:
    with pytest.raises(CyclicError) as caught:
        read_encoder(folder, encoder.facts.fingerprint)
    return caught.value


def change(path: Path, change_facts: Any) -> None:
    """Change the facts of an encoder, with a checksum that fits."""
    described = json.loads(path.read_text())
    described.pop("checksum")
    change_facts(described["encoder"])
    path.write_text(json.dumps(described | {"checksum": checksum(described)}))


def test_a_text_encoder_is_read_without_its_folder(encoder: PretrainedEncoder, folder: Path) -> None:
    fingerprint = encoder.facts.fingerprint
    assert {path.name for path in folder.iterdir()} == {f"{fingerprint}.safetensors", f"{fingerprint}.json"}
    again = read_encoder(folder, fingerprint)
    assert again.facts == encoder.facts
    assert again.facts.window is not None
    content = torch.from_numpy(
        Tokens(again.facts.tokenizer, again.facts.window).encode(["no acute findings", "", "heart " * 40])
    )
    assert torch.equal(again(content)["embedding"], encoder(content)["embedding"])


def test_image_encoders_of_both_kinds_are_read(tmp_path: Path) -> None:
    onnx.save(network(side=32), tmp_path / "encoder.onnx")
    normal = {"mean": 0.5, "std": 0.25}
    for path in (tiny_image_folder("vit", tmp_path / "vit"), tmp_path / "encoder.onnx"):
        first = open_encoder(str(path), "image", (1, 32, 32), normal)
        write_encoder(tmp_path / "encoders", first)
        again = read_encoder(tmp_path / "encoders", first.facts.fingerprint)
        content = torch.rand(2, 1, 32, 32)
        expected = first(content)
        assert again.facts == first.facts
        assert all(torch.equal(value, expected[name]) for name, value in again(content).items())


def test_an_encoder_is_written_once(encoder: PretrainedEncoder, folder: Path) -> None:
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    write_encoder(folder, encoder)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before
    weights = folder / f"{encoder.facts.fingerprint}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    write_encoder(folder, encoder)
    read_encoder(folder, encoder.facts.fingerprint)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_missing_file_is_named(suffix: str, encoder: PretrainedEncoder, folder: Path) -> None:
    name = f"{encoder.facts.fingerprint}.{suffix}"
    (folder / name).unlink()
    error = refused(folder, encoder)
    assert f"The model needs encoders/{name} beside it" in error.message
    assert error.hint == "Copy the whole run folder."


def test_damage_is_found(encoder: PretrainedEncoder, folder: Path) -> None:
    weights, facts = (folder / f"{encoder.facts.fingerprint}.{suffix}" for suffix in ("safetensors", "json"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "does not have its fingerprint" in refused(folder, encoder).message
    weights.write_bytes(whole[:-5])
    assert "not a complete safetensors file" in refused(folder, encoder).message
    weights.write_bytes(whole)
    text = facts.read_text()
    facts.write_text(text.replace("heart", "lungs"))
    assert "is damaged" in refused(folder, encoder).message
    facts.write_text(text)
    change(facts, lambda values: values.update(window=8))
    assert "does not have its fingerprint" in refused(folder, encoder).message
    facts.write_text(text.replace('"format": 1', '"format": 9'))
    assert "has format 9" in refused(folder, encoder).message
    facts.write_text(text)
    read_encoder(folder, encoder.facts.fingerprint)


def test_weights_of_another_version_of_the_library_name_it(
    encoder: PretrainedEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = folder / f"{encoder.facts.fingerprint}.json"
    change(facts, lambda values: values["settings"].update(library="transformers 3.0.1"))
    read_encoder(folder, encoder.facts.fingerprint)  # the version is no part of the fingerprint

    def differ(self: PretrainedEncoder, weights: Any) -> None:
        raise RuntimeError("other names")

    monkeypatch.setattr(type(encoder), "load_state_dict", differ)
    assert refused(folder, encoder).hint == "pip install 'transformers==3.0.1'"


def test_facts_survive_json(encoder: PretrainedEncoder) -> None:
    plain = json.loads(json.dumps(facts_to_json(encoder.facts)))
    assert plain == facts_to_json(encoder.facts)
    assert facts_from_json(plain) == encoder.facts


@pytest.mark.parametrize(
    "change_facts",
    [
        {"modality": "sound"}, {"fingerprint": "../../etc"}, {"outputs": []}, {"outputs": [{"name": "a", "dims": 0}]},
        {"modality": "image"}, {"window": "long"}, {"further": 1}, {"settings": []},
        {"geometry": {"size": 8, "native": 8, "channels": 2, "mean": [0, 0], "std": [1, 1]}},
        {"geometry": {"size": 8, "native": 8, "channels": 1, "mean": [0], "std": [0]}},
    ],
)  # fmt: skip
def test_damaged_facts_are_refused(change_facts: dict[str, Any], encoder: PretrainedEncoder) -> None:
    with pytest.raises(CyclicError, match="description of a pretrained encoder is damaged"):
        facts_from_json(facts_to_json(encoder.facts) | change_facts)
    with pytest.raises(CyclicError):
        facts_from_json("facts")


def test_a_full_disk_leaves_nothing_half(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cyclic_cli.storage.files.save_file", full)
    with pytest.raises(CyclicError, match="no space is left"):
        write_encoder(tmp_path / "encoders", encoder)
    assert not list((tmp_path / "encoders").iterdir())


def test_facts_without_a_family_of_this_library_are_refused(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    from cyclic_cli.pretrained.find import rebuild

    for settings in ({}, {"network": "os"}, encoder.facts.settings | {"network": "pipeline"}):
        with pytest.raises(CyclicError):
            rebuild(replace(encoder.facts, settings=settings))
