"""Builds the image–text model that a checkpoint describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cyclic_cli.data.mixture import Modality
from cyclic_cli.errors import CyclicError
from cyclic_cli.models._aligned import AlignedModel
from cyclic_cli.models._joint import JointModel, make_joint
from cyclic_cli.pretrained import find
from cyclic_cli.pretrained.encoder import EncoderFacts, PretrainedEncoder
from cyclic_cli.pretrained.stored import facts_from_json

CLOSED_FORM = "closed_form"  # the `start` of a run whose model is an `AlignedModel`


def rebuild(architecture: Mapping[str, Any], where: str) -> JointModel:
    """Return the image–text model that a checkpoint describes, without its weights.

    Frozen pretrained encoders are missing, see `attach_frozen`.

    Raises:
        CyclicError: The description is damaged. `where` names the file in the message.
    """
    try:
        config, facts = architecture["config"], architecture["facts"]
        modalities = [Modality.of(str(name), dict(table)) for name, table in config["modalities"].items()]
        if config.get("start") == CLOSED_FORM:
            return make_aligned(modalities, facts, config["blocks"], config.get("residual"))
        return make_joint(modalities, facts, int(config["embedding"]), int(config["private"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CyclicError(
            f"{where} describes a model that cannot be built.", "Copy the file again, or train a new model."
        ) from error


def make_aligned(
    modalities: Iterable[Modality],
    facts: Mapping[str, Any],
    blocks: Iterable[Mapping[str, Any]],
    residual: int | None = None,
) -> AlignedModel:
    """Return an image–text model on fixed codes, without its weights. `residual` as in `AlignedModel`.

    Pretrained encoders that training may move are part of it. Frozen ones are missing, see `attach_frozen`.
    """
    encoders = {}
    for one in modalities:
        encoders[one.name] = one.file.Encoder(one.config, facts[one.name])
        if not one.config.frozen:
            for encoder in used_encoders(facts[one.name]):
                encoders[one.name].attach(encoder.fingerprint, find.rebuild(encoder), frozen=False)
    return AlignedModel(encoders, list(blocks), residual)


def used_encoders(facts: Mapping[str, Any]) -> list[EncoderFacts]:
    """Return the pretrained encoders of a modality whose features its code uses."""
    sources = {part["source"] for part in facts.get("parts", ())}
    return [facts_from_json(one) for one in facts.get("encoders", ()) if one["fingerprint"] in sources]


def attach_frozen(model: JointModel, architecture: Mapping[str, Any], read: Callable[[str], PretrainedEncoder]) -> None:
    """Give the encoders of a model their frozen pretrained encoders.

    Args:
        model: As `rebuild` returned it.
        architecture: From the checkpoint.
        read: Returns the encoder with a fingerprint.
    """
    for name, fingerprint in frozen_encoders(architecture):
        model.encoders[name].attach(fingerprint, read(fingerprint))


def frozen_encoders(architecture: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield modality and fingerprint of the pretrained encoders that a checkpoint needs beside it."""
    config = architecture["config"]
    if config.get("start") != CLOSED_FORM:
        return
    for name, table in config["modalities"].items():
        if table.get("frozen", True):
            for encoder in used_encoders(architecture["facts"][name]):
                yield name, encoder.fingerprint
