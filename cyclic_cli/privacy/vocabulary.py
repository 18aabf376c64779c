"""The words that are ordinary in reports, so that they do not point at a person."""

import gzip
from functools import cache
from importlib.resources import files


@cache
def german_nouns() -> frozenset[str]:
    """Folded German nouns and their forms, without those that are also names; see the file's first lines."""
    content = (files("cyclic_cli") / "assets" / "german_nouns.txt.gz").read_bytes()
    lines = gzip.decompress(content).decode("ascii")
    return frozenset(lines[lines.rindex("#") :].split("\n")[1:-1])
