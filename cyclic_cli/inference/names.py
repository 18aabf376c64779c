"""Distinct names: for models that are compared, and for output files."""

from collections import Counter
from collections.abc import Sequence


def distinct(names: Sequence[str], folders: Sequence[Sequence[str]]) -> list[str]:
    """The names, made distinct: those that occur more than once get their folders in front, then a number behind.

    Args:
        names: N names.
        folders: For each name the folders that it lies in, the outermost first.
    """
    counts = Counter(names)
    chosen: dict[str, None] = {}
    for name, above in zip(names, folders, strict=True):
        longer = "-".join((*above, name)) if counts[name] > 1 else name
        choice, copy = longer, 1
        while choice in chosen:  # two sources may hold the same folders
            copy += 1
            choice = f"{longer}-{copy}"
        chosen[choice] = None
    return list(chosen)
