"""A piece of long work: what is to be done, the claim that keeps others off it, and how it is known to be done.

A worker claims the job (`work_queue.claimed`), looks whether it is done, and only then works. So no job is done twice,
whatever was killed and whoever else works on the same files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guda_core.errors import GudaError, InHandError, NoMemoryError, PassingError, one_line
from guda_core.work_queue import claimed

log = logging.getLogger(__name__)

# (fraction done, a word on it; where a job tells it, its answer so far), and last what the job answers
Steps = Generator[tuple[float, str] | tuple[float, str, Any], None, Any]
Kind = Literal["progress", "done", "found", "held", "refused", "broke"]
SECONDS = 0.2  # between two words on the progress


@dataclass(frozen=True)
class Job:
    """Everything in it can be pickled: the functions stand at the top of a module.

    name: as it is shown, no two alike. work: does it. done: whether it is there already, whole; None: it is always to
    be done. arguments: of both functions. claim: the file that the claim is named after, where all workers see it.
    cost: how long it takes, in a unit that is the same for all jobs.
    """

    name: str
    work: Callable[..., Steps]
    claim: Path
    done: Callable[..., bool] | None = None
    arguments: tuple[Any, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Told:
    """What a worker tells of a job.

    kind: progress; done: it was made now; found: it was there; held: another process has it in hand; refused: it cannot
    be done, trying again would not help; broke: something failed that may not fail again, such as too little memory.
    fraction: done, in [0, 1]. note: a word, or why; of one that is held, the file that is locked, if not the claim's.
    answer: of a job that was made now, or so far. ended: it broke because its process or machine is gone. error: the
    class of the GudaError that it raised, by its name.
    """

    job: str
    kind: Kind
    fraction: float = 0.0
    note: str = ""
    answer: Any = None
    ended: bool = False
    error: str = ""


class Stopped(Exception):
    """The worker is to end: the job in hand is left between two of its steps, so that it keeps what it has."""


def perform(job: Job, tell: Callable[[Told], None]) -> Told:
    """Do a job, unless it is done or in hand elsewhere; gives the last word on it.

    tell: takes the words on the progress; raises Stopped when the worker is to end.

    Raises:
        Stopped: from `tell`.
    """
    try:
        with claimed(job.claim) as mine:
            if not mine:
                return Told(job.name, "held")
            if job.done is not None and job.done(*job.arguments):
                return Told(job.name, "found", 1.0)
            answer = _followed(job, tell)
            if job.done is not None and not job.done(*job.arguments):
                return Told(job.name, "broke", note="It ended, but what it should have made is not there.")
            return Told(job.name, "done", 1.0, answer=answer)
    except InHandError as e:
        return Told(job.name, "held", note=e.lock)
    except GudaError as e:
        kind = "broke" if isinstance(e, NoMemoryError | PassingError) else "refused"
        return Told(job.name, kind, note=str(e), error=type(e).__name__)
    except Stopped:
        raise
    except Exception as e:
        log.info("%s broke", job.name, exc_info=True)
        return Told(job.name, "broke", note=one_line(f"{type(e).__name__}: {e}"))


def _followed(job: Job, tell: Callable[[Told], None]) -> Any:
    """The job's answer, its steps told on the way."""
    steps, last = job.work(*job.arguments), -SECONDS
    tell(Told(job.name, "progress"))
    try:
        while True:
            fraction, note, *so_far = next(steps)
            now = time.monotonic()
            if now - last >= SECONDS:
                tell(Told(job.name, "progress", fraction, note, *so_far))
                last = now
    except StopIteration as end:
        return end.value
    finally:
        steps.close()
