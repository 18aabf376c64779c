"""Leases have one holder at a time, also when a stale one is taken over, with and without hard links."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from cyclic_cli.errors import CyclicError
from cyclic_cli.prepare import task as prepare
from cyclic_cli.storage import lease
from cyclic_cli.storage.dataset_draft import DatasetDraft


def stale(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(path, (1, 1))
    return path


def holds(path: Path) -> bool:
    try:
        with lease.hold(path, "x is being made"):
            return True
    except CyclicError:
        return False


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("links", [True, False])
def test_a_lease_has_one_holder_and_a_stale_one_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        without_links(monkeypatch)
    path = stale(tmp_path / "leases" / "whole")
    assert not lease.is_held(path)
    with lease.hold(path, "x is being made"):
        assert lease.is_held(path)
        assert not holds(path)
    assert not list(path.parent.iterdir())
    assert holds(path)


@pytest.mark.parametrize("links", [True, False])
def test_one_of_two_processes_that_find_a_stale_lease_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """The slow one finds the lease stale, and renames it only after the other has taken it over."""
    if not links:
        without_links(monkeypatch)
    path = stale(tmp_path / "leases" / "whole")
    judged, taken = threading.Event(), threading.Event()
    rename = os.rename
    slow_got_it = []

    def wait_first(source: Path, target: Path) -> None:
        if threading.current_thread() is slow:
            judged.set()
            taken.wait(10)
        rename(source, target)

    monkeypatch.setattr(os, "rename", wait_first)
    slow = threading.Thread(target=lambda: slow_got_it.append(holds(path)))
    slow.start()
    assert judged.wait(10)
    with lease.hold(path, "x is being made"):
        own = path.read_bytes()
        taken.set()
        slow.join()
        assert slow_got_it == [False]
        assert path.read_bytes() == own
    assert not list(path.parent.iterdir())


def test_a_process_that_lost_its_lease_leaves_the_lease_of_another_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    path = tmp_path / "leases" / "whole"
    path.parent.mkdir()
    with lease.hold(path, "x is being made"):
        path.unlink()
        stale(path)
        assert not threading.Event().wait(0.2)
        assert path.stat().st_mtime == 1
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_part_and_a_whole_prepare_that_begin_together_do_not_both_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look for the lease of the other before either has taken one."""
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 1, "fingerprint": "x"})
    take, at_work = lease._take, []
    looked = threading.Barrier(2)

    def take_together(path: Path, work: str, until: float) -> bytes:
        looked.wait(10)
        return take(path, work, until)

    monkeypatch.setattr(lease, "_take", take_together)

    def work(part: tuple[int, int] | None) -> None:
        try:
            with prepare._exclusive(draft, part):
                at_work.append(part)
                ended.wait(10)
        except CyclicError:
            ended.set()

    ended = threading.Event()
    both = [threading.Thread(target=work, args=(part,)) for part in (None, (1, 2))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(at_work) < 2
    assert not any(map(lease.is_held, draft.leases.iterdir()))
