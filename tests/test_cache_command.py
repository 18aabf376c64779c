"""`cyclic info --cache` describes and removes the cache of features."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import Ran

from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.cached_features import CachedFeatures
from cyclic_cli.codes.contents import text_digests

Cyclic = Callable[..., Ran]


def fill(key: str, count: int) -> CachedFeatures:
    contents = text_digests(map(str, range(count)))
    return FeatureCache().features(key, {"x": 8}, contents, lambda n: {"x": np.ones((len(n), 8))}, 16)["x"]


def test_info_describes_the_cache_and_removes_what_is_not_in_use(
    cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CYCLIC_CACHE_LIMIT", "1G")
    fill("one", 20)
    mapped = fill("two", 30)
    said = cyclic("info", "--cache", "--json").json
    folder = tmp_path / "cache" / "codes"
    sizes = [path.stat().st_size for path in folder.glob("*/*.safetensors")]
    assert said["path"] == str(folder)
    assert said["bytes"] == sum(sizes)
    assert said["limit_bytes"] == 2**30
    assert (said["encoders"], said["items"]) == (2, 50)
    last, first = said["by_encoder"].values()  # the last used one stands first
    assert (last["items"], last["in_use"]) == (30, True)
    assert (first["items"], first["in_use"]) == (20, False)
    assert last["last_use"] >= first["last_use"] > "2025"
    assert "1,073,741,824" in cyclic("info", "--cache").out

    ran = cyclic("info", "--cache", "--remove", "--json")
    assert (ran.json["removed"], ran.json["kept"]) == (1, 1)
    assert ran.json["removed_bytes"] == first["bytes"]
    assert "in use" in ran.err
    np.testing.assert_array_equal(mapped.rows(range(30)), np.ones((30, 8)))
    del mapped
    assert "in use" not in cyclic("info", "--cache", "--remove").err
    assert not folder.exists()


def test_an_empty_cache_is_described_and_removed(cyclic: Cyclic) -> None:
    assert cyclic("info", "--cache", "--json").json["encoders"] == 0
    assert cyclic("info", "--cache", "--remove", "--json").json["removed"] == 0


def test_other_folders_of_the_cache_folder_are_left_alone(cyclic: Cyclic, tmp_path: Path) -> None:
    fill("one", 3)
    mine = tmp_path / "cache" / "codes" / "mine" / "thesis.tex"
    mine.parent.mkdir()
    mine.touch()
    cyclic("info", "--cache", "--remove")
    assert [path.name for path in mine.parent.parent.iterdir()] == ["mine"]
    assert mine.exists()


@pytest.mark.parametrize("words", [(), ("x", "--cache"), ("--remove",), ("x", "--remove")])
def test_info_takes_a_path_or_the_cache(words: tuple[str, ...], cyclic: Cyclic) -> None:
    ran = cyclic("info", *words)
    assert ran.code == 2
    assert "--cache" in ran.err
