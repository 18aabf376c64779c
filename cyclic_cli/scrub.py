"""Identities cut out of reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Identifying:
    """What a header or a table's row says that may name somebody. Held in memory only; never written or shown."""

    names: tuple[str, ...] = ()  # persons, institutions, addresses, numbers, dates, as they are written there
    remarks: tuple[str, ...] = ()  # free text, in which a name may stand

    def __repr__(self) -> str:
        return "Identifying(hidden)"
