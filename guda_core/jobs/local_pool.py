"""Jobs in worker processes of this machine, each with a GPU of its own where there are GPUs.

Each worker lives as long as the pool, so what a job loads once (a model) is there for the next. A worker that ends in
the middle of a job is replaced. A worker whose driver is gone ends between two steps of its job.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from guda_core import machine
from guda_core.amounts import time_said
from guda_core.clean_log import log_cleaned
from guda_core.errors import OptionError
from guda_core.from_hub import held, is_named
from guda_core.jobs.bad_places import BadPlaces
from guda_core.jobs.job import Job, Stopped, Told, perform

log = logging.getLogger(__name__)
LET_GO_S = 30.0  # for a worker to leave its job between two steps, before it is killed
MOST_HANDLES, SHORTLY = 60, 0.2  # Windows waits for 63 at most; with more, the others are asked so many seconds later
QUIET_S, QUIET_TIMES = 60.0, 10.0  # a worker may hang that is silent for so long, and so many times as long as before
LOADING_S = 600.0  # likewise, of one that has not told of any progress yet: it may load a model
MAIN_AGAIN = 87  # the exit code of a worker that would start workers of its own
UNGUARDED = (
    "A worker imports the main program again, and that asks for workers again. Put the call below a line "
    "`if __name__ == '__main__':`."
)
GPUS, DEVICE = "CUDA_VISIBLE_DEVICES", "GUDA_DEVICE"


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: up to the first entry there that names
    none, where CUDA stops; and of those the one that GUDA_DEVICE names."""
    import torch

    asked, _, index = os.environ.get(DEVICE, "").strip().partition(":")
    if asked == "cpu" or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(GPUS, "").split(",") if name]
    found = named[:count] or [str(i) for i in range(count)]
    return found[int(index) : int(index) + 1] if index.isdecimal() else found


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _threads(workers: int, cores: int | None = None) -> str:
    """Of each worker: what OMP_NUM_THREADS says, else its part of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return said if said.isdecimal() and int(said) else str(max(1, (cores or machine.cores()) // workers))


@dataclass(frozen=True)
class Share:
    """How workers share this machine. at_once: so many work side by side, each on a GPU of its own where there are
    GPUs. threads: of the CPU, of each. slower: so many times as long takes each, where the threads are more than the
    cores."""

    workers: int
    at_once: int
    threads: int
    slower: float
    on_gpus: bool

    def seconds(self, jobs: Sequence[float]) -> float:
        """Seconds until jobs that take so many seconds each are done, handed out in their order."""
        free = [0.0] * self.at_once
        for took in jobs:
            free[free.index(min(free))] += self.slower * took
        return max(free)


def share_of(workers: int, *, devices: Sequence[str] | None = None, cores: int | None = None) -> Share:
    """How so many workers would share this machine. devices: its GPUs; cores: of its CPU; None: those that there are.

    Raises:
        OptionError: there are no workers.
    """
    if workers < 1:
        raise OptionError(f"There must be at least one worker; got {workers}.")
    devices, cores = gpus() if devices is None else devices, cores or machine.cores()
    threads = int(_threads(workers, cores))
    if devices:
        return Share(workers, min(workers, len(devices)), threads, 1.0, True)
    return Share(workers, workers, threads, max(1.0, workers * threads / cores), False)


def _serve(pipe: Connection, environ: dict[str, str]) -> None:
    """A worker: jobs from the pipe, one after the other, until it is closed."""
    os.environ.update(environ)
    log_cleaned()  # a worker writes to its driver's terminal
    if "torch" in sys.modules:  # the program's main file was imported again, and that may import it
        sys.modules["torch"].set_num_threads(int(environ["OMP_NUM_THREADS"]))
    busy, stop = [False], [False]

    def ended(number: int, frame: object) -> None:
        stop[0] = True
        if not busy[0]:
            sys.exit(0)

    def tell(told: Told) -> None:
        if stop[0]:
            raise Stopped
        try:
            pipe.send_bytes(pickle.dumps(told))
        except OSError as e:  # the driver is gone
            raise Stopped from e

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver ends us
    signal.signal(signal.SIGTERM, ended)
    while not stop[0]:
        try:
            packed = pipe.recv_bytes()
            busy[0] = True
            last = perform(pickle.loads(packed), tell)
            tell(last)
        except (Stopped, EOFError, OSError):
            return
        if last.kind == "broke":
            return  # whatever failed may have left this process in no good state
        busy[0] = False


class _Worker:
    def __init__(self, environ: dict[str, str]) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, environ), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.heard, self.longest, self.warned = 0.0, 0.0, False  # longest: silence so far that a progress ended

    def take(self, job: Job) -> None:
        self.job, self.heard, self.warned = job, time.monotonic(), False
        try:
            self.pipe.send_bytes(pickle.dumps(job))
        except OSError:  # it has just ended, which `told` finds out
            return

    def told(self) -> list[Told]:
        """What it has said since, and that it has ended, if so."""
        found: list[Told] = []
        ended = not self.process.is_alive()  # before the pipe is read, so that nothing it said is missed
        try:
            while self.pipe.poll():
                found.append(pickle.loads(self.pipe.recv_bytes()))
        except (EOFError, OSError):
            ended = True
        if found and found[-1].kind != "progress":
            self.job = None
        elif ended and self.job is not None:
            self.process.join(LET_GO_S)
            again = self.process.exitcode == MAIN_AGAIN
            note = UNGUARDED if again else _ending(self.process.exitcode)
            found.append(Told(self.job.name, "refused" if again else "broke", note=note, ended=True))
            self.job = None
        self._watch(found)
        return found

    def _watch(self, words: Sequence[Told]) -> None:
        """Tell once a job that the worker may hang."""
        silent = time.monotonic() - self.heard
        if words:
            self.heard += silent
            if any(w.fraction for w in words):
                self.longest = max(self.longest, silent)
        elif silent > (max(QUIET_S, QUIET_TIMES * self.longest) if self.longest else LOADING_S) and not self.warned:
            self.warned = True
            log.warning(
                "The worker of %s has told nothing for %s, and may hang. It is the process %d: end that, and the job "
                "begins again.",
                self.job.name if self.job else "",
                time_said(silent),
                self.process.pid,
            )

    @property
    def usable(self) -> bool:
        return self.process.is_alive()

    def end(self, until: float) -> None:
        """Wait until it has ended, or kill it at that moment of `time.monotonic`."""
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.process.close()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"Its process ended with code {code}."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"Its process was ended by {name}." + (" Memory may have run out." if name == "SIGKILL" else "")


class LocalPool:
    """Worker processes of this machine. workers: how many jobs at once. devices: GPUs, shared out in turn; None: those
    that there are.

    Raises:
        OptionError: there are no workers.
    """

    def __init__(self, workers: int, *, devices: Sequence[str] | None = None) -> None:
        if getattr(
            current_process(), "_inheriting", False
        ):  # a worker imports the main program, which asks for workers
            sys.exit(MAIN_AGAIN)
        if workers < 1:
            raise OptionError(f"There must be at least one worker; got {workers}.")
        devices = gpus() if devices is None else devices
        threads = _threads(workers)
        common = {"OMP_NUM_THREADS": threads}
        if is_named(home := os.environ.get("GUDA_HOME", "")):
            common["GUDA_HOME"] = held(home)  # whatever is uploaded meanwhile
        environs = [dict(common) for _ in range(workers)]
        for i, environ in enumerate(environs):
            if devices:
                environ[GPUS] = devices[i % len(devices)]
                if os.environ.get(DEVICE, "").startswith("cuda:"):
                    environ[DEVICE] = "cuda"  # the only one that it sees
        named = ", ".join(dict.fromkeys(e[GPUS] for e in environs)) if devices else ""
        where = f"GPU {named}" if devices else f"{_counted(int(threads), 'CPU thread')} each"
        self.about = f"{_counted(workers, 'worker')} on this machine, {where}"
        self._environs = environs
        self._workers: list[_Worker | None] = [None] * workers
        self._places = [f"GPU {e[GPUS]}" if devices else "This machine" for e in environs]
        self._bad = BadPlaces()

    def _free(self, job: str = "") -> list[int]:
        """The workers that take a job now, the best for it first."""
        usable = self._bad.usable(self._places, job)
        free = [i for i, w in enumerate(self._workers) if (w is None or w.job is None) and self._places[i] in usable]
        return sorted(free, key=lambda i: usable.index(self._places[i]))

    def free(self) -> int:
        """How many more jobs it takes now."""
        return len(self._free())

    def submit(self, job: Job) -> None:
        """Begin a job; only when there is room."""
        place = self._free(job.name)[0]
        worker = self._workers[place]
        if worker is not None and not worker.usable:
            worker.end(time.monotonic())
            worker = None
        if worker is None:
            self._workers[place] = worker = _Worker(self._environs[place])
        worker.take(job)

    def told(self, timeout: float) -> list[Told]:
        """What the workers say; waits at most so many seconds for the first word."""
        busy = [w for w in self._workers if w is not None and w.job is not None]
        handles: list[Any] = [h for w in busy for h in (w.pipe, w.process.sentinel)]
        wait(handles[:MOST_HANDLES], timeout if len(handles) <= MOST_HANDLES else min(timeout, SHORTLY))
        found = [(w, w.told()) for w in busy]
        for worker, words in found:
            place = self._workers.index(worker)
            for told in words:
                self._bad.note(self._places[place], told)
            if words and words[-1].kind == "broke":  # it ends now
                worker.end(time.monotonic() + LET_GO_S)
                self._workers[place] = None
        return [told for _, words in found for told in words]

    def close(self) -> None:
        """End all workers: each leaves its job between two steps, and is killed if that takes too long."""
        workers = [w for w in self._workers if w is not None]
        for w in workers:
            w.pipe.close()  # and no signal: on Windows that would be a kill
        until = time.monotonic() + LET_GO_S
        for w in workers:
            w.end(until)
        self._workers = [None] * len(self._workers)
