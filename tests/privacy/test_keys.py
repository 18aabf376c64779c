"""Tests of keys, of their secret and of the split."""

import hashlib
import hmac
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.privacy.keys import Keyer, find_secret, parse_split, place, split_of


def test_keys_are_hmac_sha256_and_kinds_differ() -> None:
    expected = hmac.new(b"secret", b"patient\x00123", hashlib.sha256).hexdigest()[:32]
    assert Keyer(b"secret").key("patient", "123") == expected
    assert Keyer(b"secret").key("study", "123") != expected
    assert Keyer(b"other").key("patient", "123") != expected


def test_places_never_change() -> None:
    """Published splits depend on them: the first 52 bits of the SHA-256 of "place", a zero byte and the key."""
    for name in ("1", "2", "IM-0115"):
        key = Keyer(b"").key("patient", name)
        expected = int.from_bytes(hashlib.sha256(b"place\0" + key.encode()).digest()[:8], "big") >> 12
        assert place(key) == expected / 2**52
    assert place(Keyer(b"").key("patient", "1")) == pytest.approx(0.33745318857895357, abs=1e-12)


def test_places_are_uniform_and_splits_follow_the_shares() -> None:
    places = [place(Keyer(b"").key("patient", str(number))) for number in range(4000)]
    assert all(0 <= where < 1 for where in places)
    assert sum(places) / len(places) == pytest.approx(0.5, abs=0.02)
    splits = [split_of(where, (0.8, 0.1, 0.1))[0] for where in places]
    assert splits.count("train") / 4000 == pytest.approx(0.8, abs=0.02)
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.02)


def test_fractions_are_nested_and_keep_the_order() -> None:
    shares = (0.8, 0.1, 0.1)
    positions = {number: split_of(number / 1000, shares) for number in range(1000)}
    inside = {f: {n for n, (name, at) in positions.items() if name == "train" and at < f} for f in (0.03, 0.15, 0.4, 1)}
    assert inside[0.03] < inside[0.15] < inside[0.4] < inside[1]
    assert len(inside[0.4]) == pytest.approx(320, abs=1)


def test_a_share_of_100_percent_takes_every_place() -> None:
    assert {split_of(number / 100, parse_split("0/0/100"))[0] for number in range(100)} == {"test"}
    assert split_of(1 - 2**-52, parse_split("100/0/0"))[0] == "train"


@pytest.mark.parametrize("text", ["80/20", "80/10/20", "a/b/c", "-10/100/10"])
def test_a_wrong_split_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_split(text)


def test_the_secret_is_made_once_and_only_the_user_can_read_it(tmp_path: Path) -> None:
    first = find_secret(None)
    assert find_secret(None) == first
    path = next((tmp_path / "home").rglob("salt"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(first) == 64


def test_processes_that_make_the_secret_at_the_same_time_agree(tmp_path: Path) -> None:
    code = "from cyclic_cli.privacy.keys import find_secret; print(find_secret(None).decode())"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    secrets = {process.communicate()[0] for process in running}
    assert len(secrets) == 1
    assert [path.name for path in (tmp_path / "home" / "config" / "cyclic").iterdir()] == ["salt"]


def test_the_secret_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "salt"
    path.write_text("from a file\n")
    assert find_secret(path) == b"from a file"
    monkeypatch.setenv("CYCLIC_SALT", "from the environment")
    assert find_secret(None) == b"from the environment"
    path.write_text("")
    with pytest.raises(CyclicError, match="empty"):
        find_secret(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_error_without_a_folder_for_the_secret_names_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "closed"))
    with pytest.raises(CyclicError) as caught:
        find_secret(None)
    assert "--salt-file" in caught.value.hint
