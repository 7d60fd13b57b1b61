"""Jobs for the tests of the runners: each makes a file in some steps, and keeps a diary of when it was begun and ended.

No torch: what is tested is the handing out, not the work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from guda_core.errors import OptionError
from guda_core.jobs.driver import Event, Pool, work_through
from guda_core.jobs.job import Job, Steps, Told, perform
from guda_core.jobs.local_pool import LocalPool


def content(name: str) -> bytes:
    """What a job makes."""
    return hashlib.sha256(name.encode()).hexdigest().encode()


def write_down(folder: Path, *words: object) -> None:
    """A line of the diary; lines of several processes do not mix."""
    with (folder / "diary").open("a") as f:
        f.write(" ".join(map(str, words)) + "\n")


def diary(folder: Path, what: str) -> list[str]:
    """The names that this was written of, sorted."""
    lines = [line.split() for line in (folder / "diary").read_text().splitlines()]
    return sorted(name for said, name, *_ in lines if said == what)


def pid(folder: Path, name: str) -> int:
    """The process that has the job in hand."""
    return int((folder / f"{name}.pid").read_text())


def work(folder: Path, name: str, seconds: float) -> Steps:
    """Make the file, in steps of 50 ms."""
    write_down(folder, "begun", name)
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    if name.startswith("refused"):
        raise OptionError("Nobody can do this.")
    if name.startswith("poisoned"):
        raise ValueError("a bad picture")
    if name.startswith("loud"):
        logging.getLogger("guda_core.work").warning("%s is odd", "\x1b[2J.png")
    steps = max(1, round(seconds / 0.05))
    for i in range(steps):
        time.sleep(0.05)
        yield (i + 1) / steps, f"step {i + 1}"
    if not name.startswith("lazy"):
        aside = folder / f"{name}.tmp"
        aside.write_bytes(content(name))
        aside.replace(folder / f"{name}.made")
    write_down(folder, "made", name)
    return len(name)


def is_made(folder: Path, name: str, seconds: float) -> bool:
    """Whether the file is there, whole."""
    path = folder / f"{name}.made"
    return path.is_file() and path.read_bytes() == content(name)


def jobs(folder: Path, names: Sequence[str], seconds: float = 0.2) -> list[Job]:
    """A job for each name."""
    return [Job(n, work, folder / "claims" / n, is_made, (folder, n, seconds)) for n in names]


def run(folder: Path, names: Sequence[str], pool: Pool, seconds: float = 0.2) -> list[Event]:
    """Work through them; what happened."""
    with closing(pool):
        return list(work_through(jobs(folder, names, seconds), pool))


def last_words(events: Sequence[Event]) -> dict[str, str]:
    """Job -> what became of it."""
    return {e.job.name: e.kind for e in events}


class Here:
    """A pool whose one worker is this process. It gets a job as workers do, pickled."""

    about = "this process"

    def __init__(self) -> None:
        self._told: list[Told] = []

    def free(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self._told.append(perform(pickle.loads(pickle.dumps(job)), self._told.append))

    def told(self, timeout: float) -> list[Told]:
        said, self._told = self._told, []
        return said

    def close(self) -> None:
        """There is nothing to end."""


def drive(folder: Path, address: str, names: Sequence[str]) -> None:
    """Be a driver, which a test kills: here or on the Ray cluster of that address."""
    if address == "here":
        run(folder, names, LocalPool(2, devices=[]), seconds=5.0)
        return
    from guda_core.jobs.ray_pool import RayPool, connected

    with connected(address) as ray:
        run(folder, names, RayPool(ray), seconds=1.0)


if __name__ == "__main__":  # its functions are to be found by this module's name
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever is started in the background ignores it
    from tests import job_works

    job_works.drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","))
