"""Names that earlier versions of this program wrote into files, and what they are called today.

Files written by those versions stay readable because every reader passes what it reads through these functions.
"""

from typing import Any

RENAMED_SOURCES = {"start_from": "init_from"}
"""Keys of the model that a run was initialised from, in `config.yaml` and checkpoints: earlier name → name today."""
RENAMED_SETTINGS = {"tower": "arch"}
"""Settings of a modality: earlier name → name today."""
EARLIER_ENCODERS = ("bag", "hub", "transformer")
"""Values of the setting `encoder` of the texts that are values of `arch` today. `encoder` now names paths."""


def renamed(table: dict[Any, Any], names: dict[str, str]) -> dict[Any, Any]:
    """A copy of a table in which each key that `names` lists has its new name."""
    return {names.get(name, name): value for name, value in table.items()}


def upgraded_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a checkpoint or of an exported model, with its settings, under the names of today."""
    upgraded = renamed(provenance, RENAMED_SOURCES)
    if isinstance(upgraded.get("settings"), dict):
        upgraded["settings"] = upgraded_settings(upgraded["settings"])
    return upgraded


def upgraded_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with the settings of its modalities under the names of today."""
    tables = settings.get("modalities")
    if not isinstance(tables, dict):
        return settings
    upgraded = {
        name: _upgraded_modality(name, table) if isinstance(table, dict) else table for name, table in tables.items()
    }
    return settings | {"modalities": upgraded}


def _upgraded_modality(name: str, table: dict[Any, Any]) -> dict[Any, Any]:
    upgraded = renamed(table, RENAMED_SETTINGS)
    if name == "text" and upgraded.get("encoder") in EARLIER_ENCODERS and "arch" not in upgraded:
        return renamed(upgraded, {"encoder": "arch"})
    return upgraded


def upgraded_name(name: str, value: Any) -> str:
    """The name of a setting that a user gives a value, such as `modalities.text.arch` of `modalities.text.encoder`."""
    if name == "modalities.text.encoder" and value in EARLIER_ENCODERS:
        return "modalities.text.arch"
    return name
