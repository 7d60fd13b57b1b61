"""Work that several processes share out."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from guda_core import work_queue
from guda_core.cli.jobs_progress import follow_jobs
from guda_core.errors import OptionError
from guda_core.jobs.driver import Event
from guda_core.jobs.job import Job
from guda_core.work_queue import claimed, shared_out


def test_what_others_have_in_hand_comes_last_and_is_waited_for(tmp_path):
    path, order = tmp_path / "deep" / "b.npy", []

    def other():
        for work in shared_out("abc", lambda w: tmp_path / "deep" / f"{w}.npy"):
            with claimed(tmp_path / "deep" / f"{work}.npy") as free:
                order.append((work, free, path.exists()))

    with ThreadPoolExecutor(1) as pool:
        with claimed(path) as mine:
            done = pool.submit(other)
            while len(order) < 2:
                time.sleep(0.01)
            path.write_text("made")
        done.result(timeout=240)
    assert mine and order == [("a", False, False), ("c", False, False), ("b", False, True)]
    with claimed(tmp_path / "deep" / "a.npy") as free:
        assert free


def test_waiting_ends_in_time(tmp_path):
    with claimed(tmp_path / "b"):
        began = time.monotonic()
        found = list(shared_out("abc", lambda w: tmp_path / w, until=began + 0.3))
    assert found == ["a", "c"] and 0.3 <= time.monotonic() - began < 60
    assert list(shared_out("ab", lambda w: tmp_path / w, until=began)) == ["a", "b"]  # free ones need no waiting


@pytest.mark.parametrize("version", ["now", "earlier"])
@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("left", [False, True], ids=["free", "a file of a machine that died"])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_disk_without_locks_is_told_and_nothing_waits_for_ever(tmp_path, monkeypatch, version, wait, left):
    fcntl = pytest.importorskip("fcntl")

    def none(fd, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    if version == "earlier":
        monkeypatch.setattr(work_queue, "HARD", {})
    if left:
        (tmp_path / "a.lock").write_text("4242\nanother-machine\n")
    with pytest.raises(OptionError, match="on a disk that supports file locks"), claimed(tmp_path / "a", wait=wait):
        pass


def test_a_job_in_hand_elsewhere_is_told_of_once(tmp_path, capsys):
    job = Job("dee", lambda: iter(()), tmp_path / "claims" / "dee")
    events = [Event(job, kind, 0.0, "", 0.0, None) for kind in ("held", "held", "progress", "held", "done")]
    assert [e.kind for e in follow_jobs("all groups", 1, iter(events))] == ["done"]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("dee is in hand in another process") == 1 and "claims/dee.lock" in said
