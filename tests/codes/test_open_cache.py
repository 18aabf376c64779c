"""The open cache gives batches what the cache knows, and leaves the files that `FeatureCache` would leave."""

from pathlib import Path

import numpy as np
import pytest
from helpers.counting_encoder import DIMS, Encoder, check, expected, files, texts

from cyclic_cli.codes import cache as cache_module
from cyclic_cli.codes import cache_size, segments
from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.open_cache import OpenCache
from cyclic_cli.events import Event, Note


@pytest.fixture
def root() -> Path:
    return cache_size.default_folder()


def in_batches(cache: OpenCache, wanted: list[str], size: int = 5) -> list[str]:
    """Ask for texts in batches, and check what comes. Returns the texts that the encoder was asked for."""
    asked = []
    for first in range(0, len(wanted), size):
        encoder = Encoder(wanted[first : first + size])
        check(encoder.run(cache), encoder.texts)
        asked += encoder.asked
    return sorted(asked)


def test_batches_share_what_was_computed_before_and_what_waits(root: Path) -> None:
    Encoder(texts(20)).run(FeatureCache())
    with OpenCache() as cache:
        assert in_batches(cache, [*texts(30, 10), *texts(40), *texts(40)]) == sorted(texts(20, 20))
        assert len(files(root)) == 1
    assert sum(map(segments.count_of, files(root))) == 40
    encoder = Encoder(texts(40))
    check(encoder.run(FeatureCache()), encoder.texts)
    assert not encoder.asked


def test_written_segments_are_read_again_and_merged_at_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ITEMS", 8)
    wanted = texts(200)
    with OpenCache() as cache:
        assert in_batches(cache, wanted) == sorted(wanted)
        assert len(files(root)) == 20  # of ten items: two batches
        assert in_batches(cache, wanted[::-1], 7) == []
        (folder,) = cache._folders.values()
        assert len(folder._tables) <= 6  # of 20: joined as they grow
    assert len(files(root)) == 1
    encoder = Encoder(wanted)
    check(encoder.run(FeatureCache()), wanted)
    assert not encoder.asked


def test_an_interruption_keeps_what_was_computed(root: Path) -> None:
    def interrupted() -> None:
        with OpenCache() as cache:
            in_batches(cache, texts(10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sum(map(segments.count_of, files(root))) == 10


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_new_features_are_those_that_the_cache_gives_back(scale: float) -> None:
    """The numbers of the second scale are too large for float16 in half of the items."""
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    features[::2] *= scale
    digests = [bytes([number]) * 16 for number in range(40)]

    def read(cache: FeatureCache) -> np.ndarray:
        return cache.features("e", {"x": 3}, digests, lambda numbers: {"x": features[numbers]}, 8)["x"].rows(range(40))

    with OpenCache() as cache:
        first = read(cache)
    np.testing.assert_array_equal(read(FeatureCache()), first)
    np.testing.assert_allclose(first, features, rtol=2**-11, atol=2**-24)


def test_a_full_cache_removes_the_least_recently_used_and_then_keeps_no_more(root: Path) -> None:
    size = 100 * (16 + 2 * sum(DIMS.values()))
    Encoder(texts(100)).run(FeatureCache(), key="of no use to remove")
    notes: list[Event] = []
    with OpenCache(notes.append, limit=int(1.8 * size)) as cache:
        assert in_batches(cache, texts(100), 100) == sorted(texts(100))
        (folder,) = cache._folders.values()
        folder._write()
        assert len(cache_size.encoder_folders(root)) == 1
        in_batches(cache, texts(100, 100), 100)
    (note,) = notes
    assert isinstance(note, Note)
    assert note.warning
    assert "is full. Features are computed and not kept." in note.text
    assert sum(map(segments.count_of, files(root))) == 100


def test_digests_that_end_in_zeros_are_kept_whole() -> None:
    """Numpy cuts zeros at the end of bytes."""
    table = np.frombuffer(b"a" * 15 + b"\0" + b"b" * 16, "S16")
    outputs = [np.array([expected("one", "layer 6"), expected("two", "layer 6")])]
    with OpenCache() as cache:
        cache.features("e", {"x": 5}, [b"x" * 16], lambda numbers: {"x": np.ones((1, 5))}, 1)
        (folder,) = cache._folders.values()
        folder.add(table, outputs)
        folder._write()
        found, missing = folder.read(table)
    assert not len(missing)
    np.testing.assert_array_equal(found[0], outputs[0])


def test_what_an_encoder_is_stands_in_its_folder(root: Path) -> None:
    about = {"encoder": "bert", "modality": "text", "device": "cpu", "torch": "2"}
    encoder = Encoder(texts(3))
    FeatureCache().features("e", DIMS, encoder.digests, encoder, 4, about=about)
    (folder,) = cache_size.encoder_folders(root)
    assert cache_size.about(folder.path) == about
    for damaged in (b"", b"[]", b'{"encoder": 3, "modality": "a\\u001b"}', b"[" * 5000, b"\xff"):
        (folder.path / "about.json").write_bytes(damaged)
        assert cache_size.about(folder.path) == {}
