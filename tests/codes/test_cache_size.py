"""The cache of features keeps its limit, and removes nothing that is in use."""

import errno
import fcntl
import time
from pathlib import Path

import pytest
from helpers.counting_encoder import DIMS, Encoder, check, files, texts

from cyclic_cli.codes import cache as cache_module
from cyclic_cli.codes import cache_lock, cache_size, segments
from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Event, Note


@pytest.fixture
def root() -> Path:
    return cache_size.default_folder()


SIZE = 100 * (16 + 2 * sum(DIMS.values()))  # of 100 items


def test_the_least_recently_used_encoder_makes_room_and_one_in_use_stays(root: Path) -> None:
    cache = FeatureCache(limit=3 * SIZE)
    for key in ("first", "second"):
        Encoder(texts(100)).run(cache, key)
        time.sleep(0.02)
    mapped = Encoder(texts(100)).run(cache, "first")  # the second is now used least recently
    Encoder(texts(100)).run(cache, "third")
    assert not reruns("first")
    assert not reruns("third")
    assert len(cache_size.encoder_folders(root)) == 2
    check(mapped, texts(100))


def reruns(key: str) -> bool:
    encoder = Encoder(texts(100))
    encoder.run(FeatureCache(), key)
    return bool(encoder.asked)


def test_items_of_other_datasets_make_room_in_the_folder_of_the_encoder(root: Path) -> None:
    Encoder(texts(200)).run(FeatureCache())
    notes: list[Event] = []
    encoder = Encoder(texts(200, 150))
    found = FeatureCache(limit=3 * SIZE).features("encoder", DIMS, encoder.digests, encoder, 4, report=notes.append)
    check(found, encoder.texts)
    assert not notes
    assert encoder.asked == texts(150, 200)
    assert sum(map(segments.count_of, files(root))) == 200


def test_features_that_do_not_fit_go_to_a_private_temporary_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Encoder(texts(10)).run(FeatureCache())
    Encoder(texts(10)).run(FeatureCache(), key="of no use to remove")
    notes: list[Event] = []
    encoder = Encoder(texts(100))
    cache = FeatureCache(limit=SIZE // 2)
    found = cache.features("encoder", DIMS, encoder.digests, encoder, 4, report=notes.append)
    check(found, encoder.texts)
    assert encoder.asked == texts(90, 10)
    (folder,) = tmp_path.glob("cyclic-codes-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    (note,) = notes
    assert isinstance(note, Note)
    assert note.warning
    assert str(folder) in note.text
    assert sum(map(segments.count_of, files(root))) == 20
    del found
    assert not folder.exists()


def test_features_that_fit_nowhere_are_an_error_that_says_how_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": 10**6, "used": 0, "free": 10**4})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    encoder = Encoder(texts(1000))
    with pytest.raises(CyclicError, match=r"need 72\.3 KiB") as caught:
        encoder.run(FeatureCache())
    assert not encoder.asked
    assert "export CYCLIC_CACHE=" in caught.value.hint


def test_without_locks_features_are_shared_and_nothing_is_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(cache_module, "ITEMS", 8)
    monkeypatch.setattr(fcntl, "flock", flock)
    encoder = Encoder(texts(100))
    check(encoder.run(FeatureCache()), encoder.texts)
    check(Encoder(texts(100)).run(FeatureCache()), encoder.texts)
    assert len(files(root)) == 13
    assert cache_size.remove()["kept"] == 1
    assert not reruns("encoder")


def test_who_waits_for_a_folder_that_is_removed_makes_a_new_one(tmp_path: Path) -> None:
    """The lock is granted on a file that has no name any more."""
    folder = tmp_path / "root" / ("0" * 32)
    cache_lock.use(folder).end()
    flock, calls = fcntl.flock, []

    def late(lock: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            assert cache_size.remove_encoder(cache_size.encoder_folders(tmp_path / "root")[0])
        flock(lock, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        held = cache_lock.use(folder)
    with cache_lock.alone(folder) as is_alone:
        assert is_alone is False
    held.end()
    with cache_lock.alone(folder) as is_alone:
        assert is_alone


@pytest.mark.parametrize(
    ("text", "size"), [("5G", 5 * 2**30), ("1.5 MiB", 3 * 2**19), ("0", 0), ("700", 700), ("2tb", 2**41)]
)
def test_the_limit_is_read_from_the_environment(
    text: str, size: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYCLIC_CACHE_LIMIT", text)
    assert cache_size.limit_of(root) == size


def test_a_limit_that_is_no_size_is_wrong_usage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLIC_CACHE_LIMIT", "plenty")
    with pytest.raises(UsageError, match="plenty"):
        cache_size.limit_of(root)


def test_a_folder_that_cannot_be_looked_at_is_as_one_that_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.exists

    def exists(path: Path) -> bool:
        if path.is_relative_to(root.parent):
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(path)

    wanted = cache_size.limit_of(root.parent.parent)
    monkeypatch.setattr(Path, "exists", exists)
    assert cache_size.limit_of(root) == pytest.approx(wanted, rel=0.1)
    cache_size.write_about(root, {"encoder": "bert"})


@pytest.mark.parametrize(
    ("total", "free", "limit"),
    [(2**50, 2**49, 20 * 2**30), (100 * 2**30, 90 * 2**30, 10 * 2**30), (100 * 2**30, 2**30, 2**29)],
)
def test_the_limit_honours_small_disks(
    total: int, free: int, limit: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": total, "used": total - free, "free": free})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert cache_size.limit_of(root) == limit
