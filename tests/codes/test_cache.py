"""The cache computes features once, loses nothing, believes nothing that is damaged, and stays private."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.counting_encoder import DIMS, Encoder, check, expected, files, texts
from safetensors.numpy import load_file

from cyclic_cli.codes import cache as cache_module
from cyclic_cli.codes import cache_size, cached_codes, segments
from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.cached_features import CachedFeatures
from cyclic_cli.codes.contents import image_digests, stored_image_digests, text_digests
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.dataset import StoredDataset

PLANTED = "Zacharias Quillfeather, born 1931"


@pytest.fixture
def root() -> Path:
    return cache_size.default_folder()


@pytest.fixture
def in_small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ITEMS", 8)


def test_what_was_computed_is_read_in_any_order_and_repeats_are_computed_once() -> None:
    some = texts(10) + texts(5) + ["text 3"] * 4
    encoder = Encoder(some)
    check(encoder.run(FeatureCache()), some)
    assert encoder.asked == texts(10)
    other = Encoder([*texts(4, 8), "text 0"])
    found = other.run(FeatureCache())
    check(found, other.texts)
    assert other.asked == texts(2, 10)
    np.testing.assert_array_equal(found["layer 6"].rows([4, 1, 4])[2], expected("text 0", "layer 6"))
    assert found["layer 6"].rows([]).shape == (0, 5)


def test_no_items_give_no_features() -> None:
    assert len(Encoder([]).run(FeatureCache())["embedding"]) == 0


def test_encoders_and_outputs_of_other_sizes_share_nothing() -> None:
    Encoder(texts(3)).run(FeatureCache())
    second = Encoder(texts(3))
    second.run(FeatureCache(), key="another")
    assert second.asked == texts(3)
    small = np.array([[1, 2]], np.float32)
    third = FeatureCache().features(
        "encoder", {"embedding": 2}, text_digests(["text 0"]), lambda numbers: {"embedding": small}, 4
    )
    np.testing.assert_array_equal(third["embedding"].rows([0]), [[1, 2]])


@pytest.mark.usefixtures("in_small_segments")
def test_segments_are_merged_at_the_end_and_readers_keep_theirs(root: Path) -> None:
    encoder = Encoder(texts(100))
    check(encoder.run(FeatureCache()), encoder.texts)
    assert len(files(root)) == 1
    reader = encoder.run(FeatureCache())
    more = Encoder(texts(200))
    found = more.run(FeatureCache())
    assert len(files(root)) > 8  # while the reader maps them, nothing is replaced
    check(reader, encoder.texts)
    check(found, more.texts)
    del reader, found
    check(more.run(FeatureCache()), more.texts)
    assert len(files(root)) == 1
    assert len(more.asked) == 100


@pytest.mark.usefixtures("in_small_segments")
def test_more_segments_than_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cyclic_cli.codes.cached_features.OPEN", 2)
    monkeypatch.setattr(segments, "FEW", 1000)
    encoder = Encoder(texts(100))
    check(encoder.run(FeatureCache()), encoder.texts)


def test_slow_encoders_write_segments_by_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PATIENCE", 0.0)
    monkeypatch.setattr(segments, "FEW", 1000)
    Encoder(texts(12)).run(FeatureCache())
    assert len(files(root)) == 3


FILLS = """
import os, sys
import numpy as np
from helpers.counting_encoder import Encoder, check, texts
from cyclic_cli.codes import cache
from cyclic_cli.codes.cache import FeatureCache

cache.ITEMS = 8
class Slow(Encoder):
    def __call__(self, numbers):
        print(len(self.asked), flush=True)
        {before}
        return super().__call__(numbers)

encoder = Slow(texts({count}))
check(encoder.run(FeatureCache()), encoder.texts)
"""


def start(before: str, count: int) -> subprocess.Popen[str]:
    code = FILLS.format(before=before, count=count)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_loses_at_most_its_last_segment(root: Path) -> None:
    with start("if len(self.asked) >= 24: import time; time.sleep(60)", 100) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 24:
            pass
        process.send_signal(signal.SIGKILL)
    (files(root)[0].parent / ".x.safetensors.1.ab.tmp").write_bytes(b"half")
    ticks: list[tuple[int, int]] = []
    encoder = Encoder(texts(100))
    found = FeatureCache().features("encoder", DIMS, encoder.digests, encoder, 4, lambda *tick: ticks.append(tick))
    check(found, encoder.texts)
    assert encoder.asked == texts(76, 24)
    assert ticks[0] == (24, 100)
    assert ticks[-1] == (100, 100)
    assert not list(root.glob("*/.*"))  # the draft is gone


def test_several_processes_fill_the_same_cache(root: Path) -> None:
    both = [start("import time; time.sleep(0.005)", 100) for _ in range(2)]
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    encoder = Encoder(texts(100))
    check(encoder.run(FeatureCache()), encoder.texts)
    assert not encoder.asked
    assert sum(map(segments.count_of, files(root))) == 100  # duplicates were merged


def test_of_two_results_for_an_item_the_first_counts_also_after_merging(root: Path) -> None:
    """Processes that compute at the same time may differ in the last bits."""

    def fill(value: float, count: int) -> CachedFeatures:
        digests = text_digests(texts(count))
        found = FeatureCache().features(
            "encoder", {"x": 1}, digests, lambda numbers: {"x": np.full((len(numbers), 1), value, np.float32)}, 4
        )
        return found["x"]

    assert fill(1, 8).rows([0])[0, 0] == 1
    (early,) = files(root)
    hidden = early.rename(early.parent / "hidden")
    assert fill(2, 8).rows([0])[0, 0] == 2
    hidden.rename(early)
    np.testing.assert_array_equal(fill(3, 10).rows(range(10))[:, 0], [1] * 8 + [3] * 2)
    (root / early.parent.name / ".draft.tmp").touch()  # what is left behind makes the next call merge
    np.testing.assert_array_equal(fill(4, 10).rows(range(10))[:, 0], [1] * 8 + [3] * 2)
    assert len(files(root)) == 1


def damages() -> Iterator[tuple[str, bytes]]:
    encoder = Encoder(texts(12))
    encoder.run(FeatureCache())
    (path,) = files(cache_size.default_folder())
    whole = path.read_bytes()
    middle = len(whole) // 2
    yield "flipped bit", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    yield "flipped bit of a digest", whole.replace(load_file(path)["digests"].tobytes()[:16], bytes(16))
    yield "cut short", whole[:-1]
    yield "longer", whole + b"\0"
    yield "empty", b""
    yield "half a header", whole[:100]
    yield "no header", b"\xff" * len(whole)
    yield "another shape", whole.replace(b"[12, 16]", b"[16, 12]")
    yield "more items", whole.replace(b"[12, ", b"[99, ")
    yield "not JSON", whole.replace(b'{"', b'{{"', 1)
    yield "a list", b"\x08\0\0\0\0\0\0\0[1, 2, 3]"


def test_damaged_segments_are_removed_and_computed_again(root: Path) -> None:
    for name, content in list(damages()):
        (path,) = files(root)
        assert path.read_bytes() != content, name
        path.write_bytes(content)
        encoder = Encoder(texts(12))
        check(encoder.run(FeatureCache()), encoder.texts)
        assert encoder.asked == encoder.texts, name
        assert not path.exists(), name


def test_a_segment_of_another_encoder_is_not_believed(root: Path) -> None:
    Encoder(texts(4)).run(FeatureCache(), key="one")
    (path,) = files(root)
    Encoder(texts(2)).run(FeatureCache(), key="two")
    (folder,) = {one.parent for one in files(root)} - {path.parent}
    path.rename(folder / path.name)
    encoder = Encoder(texts(4))
    check(encoder.run(FeatureCache(), key="two"), encoder.texts)
    assert encoder.asked == texts(2, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_not_stored(value: float, root: Path) -> None:
    def broken(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.full((len(numbers), width), value) for name, width in DIMS.items()}

    with pytest.raises(CyclicError, match="not finite"):
        FeatureCache().features("encoder", DIMS, text_digests(texts(3)), broken, 4)
    assert not files(root)
    path, layout = segments.new_path(root), segments.Layout(root.name, (1,))
    columns = [np.zeros((1, 16)), np.full((1, 1), value)]
    segments._write(path, layout, 1, ("F16",), lambda column: iter([columns[column]]))
    with pytest.raises(ValueError, match="not finite"):
        segments.read(path, layout)


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(CyclicError, match=r"\(3, 7\), not \(3, 24\)"):
        FeatureCache().features(
            "encoder", DIMS, text_digests(texts(3)), lambda numbers: dict.fromkeys(DIMS, np.zeros((3, 7))), 4
        )


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([1.0, 1 / 3, -2e-3], np.float16),
        ([0.0, 0.0, 0.0], np.float16),
        ([7e4, 1.0, 1.0], np.float32),  # more than float16 holds
        ([1e-8, 2e-8, 3e-8], np.float32),  # less than float16 resolves
        ([1e-8, 1.0, 1.0], np.float16),  # a number may change if the item does not
        ([1e30, 1e30, 1e30], np.float32),
    ],
)
def test_float16_is_stored_where_it_changes_no_item(row: list[float], kind: type, root: Path) -> None:
    features = np.array([[1, 2, 3]] * 5 + [row], np.float32)

    def read() -> np.ndarray:
        contents = text_digests(texts(6))
        found = FeatureCache().features("e", {"x": 3}, contents, lambda numbers: {"x": features[numbers]}, 8)
        return found["x"].rows(range(6))

    first, second = read(), read()
    stored = load_file(files(root)[0])["0"]
    assert stored.dtype == kind
    np.testing.assert_array_equal(first, second)
    change = np.linalg.norm(first - features.astype(np.float64), axis=1)
    assert (change <= 1e-3 * np.linalg.norm(features.astype(np.float64), axis=1)).all()


def test_other_users_see_nothing_and_no_text_is_stored(root: Path) -> None:
    before = os.umask(0)
    try:
        Encoder([PLANTED, *texts(3)]).run(FeatureCache(), key=f"key of {PLANTED}")
    finally:
        os.umask(before)
    found = [root, *root.rglob("*")]
    assert len(found) == 4
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
        for secret in (PLANTED.encode(), text_digests([PLANTED])[0], b"layer 6"):
            assert secret not in (os.fsencode(path.name) if path.is_dir() else path.read_bytes())
            assert secret.hex() not in path.name


def test_a_cache_that_was_open_to_others_is_closed(root: Path) -> None:
    root.mkdir(parents=True, mode=0o755)
    Encoder(texts(1)).run(FeatureCache())
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_stays_open_to_others_is_refused(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    root.mkdir(parents=True, mode=0o755)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as on FAT
    with pytest.raises(CyclicError, match="cannot be made private") as caught:
        Encoder(texts(1)).run(FeatureCache())
    assert "CYCLIC_CACHE=" in caught.value.hint


def test_the_keys_of_an_item_differ_between_encoders(root: Path) -> None:
    for key in ("one", "two"):
        Encoder(["text"]).run(FeatureCache(), key=key)
    first, second = (load_file(path)["digests"].tobytes() for path in files(root))
    assert len({first, second, text_digests(["text"])[0]}) == 3


@pytest.mark.usefixtures("in_small_segments")
def test_a_full_disk_is_said_and_earlier_segments_stay(root: Path) -> None:
    """A limit on the file size makes writing fail as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def tick(done: int, total: int) -> None:
        if done == 16:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    encoder = Encoder(texts(100))
    try:
        with pytest.raises(CyclicError, match="cannot be written") as caught:
            FeatureCache().features("encoder", DIMS, encoder.digests, encoder, 4, tick)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "CYCLIC_CACHE=" in caught.value.hint
    assert len(files(root)) == 2
    assert not list(root.glob("*/.*"))
    encoder = Encoder(texts(100))
    check(encoder.run(FeatureCache()), encoder.texts)
    assert encoder.asked == texts(84, 16)


def test_codes_that_a_full_disk_does_not_hold_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A map of a sparse file would kill the process where the disk is full."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cached_codes, "IN_MEMORY", 2**16)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    codes = cached_codes.allocated((2**10, 2**6))
    assert isinstance(codes, np.memmap)
    assert not codes.any()
    codes[:] = 1
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not isinstance(cached_codes.allocated((2**8, 2**6)), np.memmap)
    with pytest.raises(CyclicError, match=re.escape(f"{tmp_path}, which cannot be written: No space left")) as caught:
        cached_codes.allocated((2**10, 2**6))
    assert "$TMPDIR" in caught.value.hint
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.usefixtures("in_small_segments")
def test_merging_changes_no_bit_of_either_number_type(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    features[50:] *= 1e6  # too large for float16
    found = []
    for few in (1000, 1):
        monkeypatch.setattr(segments, "FEW", few)
        cached = FeatureCache().features(
            "e", {"x": 3}, text_digests(texts(100)), lambda numbers: {"x": features[numbers]}, 4
        )
        found.append(cached["x"].rows(range(100)))
        del cached
    np.testing.assert_array_equal(*found)
    assert {load_file(path)["0"].dtype.type for path in files(root)} == {np.float16, np.float32}
    assert len(files(root)) == 2


@pytest.mark.parametrize("where", ["compute", "tick"])
def test_what_was_computed_before_an_interruption_is_kept(where: str) -> None:
    encoder = Encoder(texts(20))

    def compute(numbers: np.ndarray) -> dict[str, np.ndarray]:
        if where == "compute" and len(encoder.asked) >= 8:
            raise KeyboardInterrupt
        return encoder(numbers)

    def tick(done: int, total: int) -> None:
        if where == "tick" and done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache().features("encoder", DIMS, encoder.digests, compute, 4, tick)
    again = Encoder(texts(20))
    again.run(FeatureCache())
    assert again.asked == texts(12, 8)


def test_images_of_a_dataset_have_the_digests_of_their_pixels(tiny_dataset: Path) -> None:
    dataset = StoredDataset(tiny_dataset)
    rows = dataset.rows(["content", "shard", "row"], "train")
    places = np.stack([rows["shard"], rows["row"]], axis=1)
    pixels = dataset.images(rows["shard"], rows["row"])
    from_index = stored_image_digests(dataset, rows["content"].tolist(), places)
    from_pixels = stored_image_digests(dataset, [None, "x", "ab", *rows["content"][3:]], places)
    assert from_index == from_pixels == image_digests(pixels)
    assert len(set(from_index)) == len(pixels)


def test_features_need_little_memory(tmp_path: Path) -> None:
    """25 MB of features are written, merged and read with less than 15 MB of anonymous memory."""
    code = """
import re, sys
import numpy as np
from cyclic_cli.codes.cache import FeatureCache

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

ROW = np.random.default_rng(0).normal(size=1536).astype(np.float32)
digests = [number.to_bytes(16, "little") for number in range(8_000)]
before, most = anonymous(), 0

def tick(done, total):
    global most
    most = max(most, anonymous())

found = FeatureCache().features("e", {"x": 1536}, digests, lambda n: {"x": ROW + n[:, None] / 1024}, 64, tick)["x"]
for first in range(0, 8_000, 500):
    found.rows(range(first, first + 500))
    tick(0, 0)
print(most - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 15
