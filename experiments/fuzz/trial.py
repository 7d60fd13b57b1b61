"""One input at one door, in a process of its own that is watched.

    accepted      the door took it
    refused       an error of the project, on one line of at most 1,000 characters
    crashed       any other error, an unfit text, or the process ended
    hung          no answer within `SECONDS`
    over_memory   the process grew by more than the door's bound, or asked for memory that it did not get

The process may grow by twice the bound (RLIMIT_AS), so that nothing harms the machine.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from guda_core.errors import LONGEST, GudaError
from guda_core.paths import ROOT

SECONDS = 10.0  # for one input
START_S = 300.0  # for loading what a door needs
UNFIT = ("Traceback", "site-packages", " at 0x", 'File "')
NO_MEMORY = ("allocate memory", "out of memory")
ENVIRON = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
BAD = ("crashed", "hung", "over_memory")
KINDS = ("accepted", "refused", *BAD)


@dataclass(frozen=True)
class Door:
    """inputs: seed -> inputs without end. start: a folder of its own -> what tries one input. memory_mb: by how much
    one input may make the process grow, in MB (10^6 bytes)."""

    name: str
    inputs: Callable[[int], Iterator[bytes]]
    start: Callable[[Path], Callable[[bytes], None]]
    memory_mb: int = 400


@dataclass(frozen=True)
class Outcome:
    """kind: one of `KINDS`. detail: of a finding the error, else the refusal. grown_mb: memory at most, in MB."""

    kind: str
    detail: str = ""
    seconds: float = 0.0
    grown_mb: float = 0.0


def find_door(place: str) -> Door:
    """The door of "module:NAME"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def is_fit(text: str) -> bool:
    """Whether a refusal can be shown as it is: one line, not too long, with nothing of the program's inside."""
    return (
        bool(text.strip())
        and len(text) <= LONGEST
        and len(text.splitlines()) == 1
        and not any(u in text for u in UNFIT)
    )


def _status(key: str) -> float:
    """A line of this process's memory, in MB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{key}:")[1].split()[0]) * 1024 / 1e6


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or any(t in str(error)[:10_000] for t in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def tried(run: Callable[[bytes], None], data: bytes, memory_mb: float) -> Outcome:
    """What comes of one input, in this process."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, began = _status("VmRSS"), time.perf_counter()
    kind, detail = "accepted", ""
    try:
        run(data)
    except GudaError as e:
        kind, detail = "refused", str(e)
        if _lacked_memory(e):
            kind = "over_memory"
        elif not is_fit(detail):
            kind, detail = (
                "crashed",
                f"A refusal that cannot be shown: {detail[:2000]!r}\n{traceback.format_exc()[-3000:]}",
            )
    except Exception as e:
        kind = "over_memory" if _lacked_memory(e) else "crashed"
        detail = traceback.format_exc()[-6000:]
    seconds, grown = time.perf_counter() - began, max(0.0, _status("VmHWM") - before)
    if kind in ("accepted", "refused") and grown > memory_mb:
        kind, detail = "over_memory", f"It took {grown:.0f} MB."
    return Outcome(kind, detail, seconds, grown)


def work(place: str, connection: Connection, folder: Path) -> None:
    """The watched process: answers inputs until the other side closes. folder: its own, empty."""
    import resource  # which Windows lacks

    os.environ.update(ENVIRON, GUDA_HOME=str(folder / "home"), GUDA_CACHE=str(folder / "cache"))
    door = find_door(place)
    run = door.start(folder)
    with contextlib.suppress(GudaError):
        run(next(door.inputs(0)))  # what is loaded at the first input counts for nothing
    most = int((_status("VmSize") + 2 * door.memory_mb) * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    connection.send("ready")
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            return
        o = tried(run, data, door.memory_mb)
        connection.send((o.kind, o.detail, o.seconds, o.grown_mb))


class Watched:
    """A door in a process that is started anew after it hung or ended. place: "module:NAME" of the door."""

    def __init__(self, place: str, *, seconds: float = SECONDS) -> None:
        self.place, self.seconds = place, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # of the process, which cannot see its own end

    def start(self) -> Connection:
        """Start the process unless it runs; gives what it is spoken to by."""
        if self._pipe is None:
            ours, theirs = socket.socketpair()
            self._folder = tempfile.TemporaryDirectory(prefix="guda-fuzz-", ignore_cleanup_errors=True)
            place = [self.place, str(theirs.fileno()), self._folder.name]
            command = [sys.executable, "-m", "experiments.fuzz.trial", *place]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, **ENVIRON},
            )  # fmt: skip
            theirs.close()
            self._pipe = Connection(ours.detach())
            if not self._pipe.poll(START_S) or self._pipe.recv() != "ready":
                raise RuntimeError(f"The door {self.place} did not start.")
        return self._pipe

    def tried(self, data: bytes) -> Outcome:
        """What comes of one input."""
        pipe = self.start()
        began = time.perf_counter()
        try:
            pipe.send_bytes(data)
            if not pipe.poll(self.seconds):
                self.close()
                return Outcome("hung", f"No answer within {self.seconds:g} s.", time.perf_counter() - began)
            return Outcome(*pipe.recv())
        except (EOFError, ConnectionError):
            self.close()
            return Outcome("crashed", "The process ended.", time.perf_counter() - began)

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._pipe = self._process = self._folder = None

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    work(sys.argv[1], Connection(int(sys.argv[2])), Path(sys.argv[3]))
