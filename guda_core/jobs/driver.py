"""Works through jobs with a runner: hands them out, tries again what broke, and tells how far everything is."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from guda_core.jobs.job import Job, Told

RETRIES = 2  # of a job that broke
AGAIN_S = 1.0  # until a job that another process has in hand is asked for again
LISTEN_S = 0.5


class Pool(Protocol):
    """Where jobs run. about: where that is, for people."""

    about: str

    def free(self) -> int:
        """How many more jobs it takes now."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job."""
        ...

    def told(self, timeout: float) -> list[Told]:
        """What is told of the jobs that were begun; waits at most so many seconds."""
        ...

    def close(self) -> None:
        """End everything, jobs in hand too."""
        ...


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    kind: progress; done (found: it was there already); held: another process has it in hand, and it is asked for again;
    retried: it broke and begins again; failed: it is given up. fraction: of this job, in [0, 1]. note: a word, or why.
    all_done: share of all jobs by their costs, in [0, 1]. left_s: seconds until all are done, by the pace so far; None
    while nothing tells. answer: of the job, when it was made now.
    """

    job: Job
    kind: Literal["progress", "done", "found", "held", "retried", "failed"]
    fraction: float
    note: str
    all_done: float
    left_s: float | None
    answer: Any = None


class _Whole:
    """How far all jobs are. What was found done has taken no time, so it tells nothing of the pace."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.costs = {j.name: j.cost for j in jobs}
        self.fractions = dict.fromkeys(self.costs, 0.0)
        self.found: set[str] = set()
        self.began = time.monotonic()

    def note(self, name: str, fraction: float, *, found: bool = False) -> None:
        self.fractions[name] = fraction
        if found:
            self.found.add(name)

    def done(self) -> float:
        whole = sum(self.costs.values())
        return sum(self.costs[n] * f for n, f in self.fractions.items()) / whole if whole else 1.0

    def left_s(self) -> float | None:
        worked = {n: f for n, f in self.fractions.items() if n not in self.found}
        made = sum(self.costs[n] * f for n, f in worked.items())
        left = sum(self.costs[n] * (1 - f) for n, f in worked.items())
        return (time.monotonic() - self.began) * left / made if made > 0 else None


def work_through(jobs: Sequence[Job], pool: Pool, *, retries: int = RETRIES) -> Iterator[Event]:
    """Do all jobs; yields what happens. The pool is closed at the end, however that comes.

    A job that broke is tried again `retries` times. One that is given up does not stop the others.
    """
    with closing(pool):
        of = {j.name: j for j in jobs}
        if len(of) < len(jobs):
            raise ValueError("Two jobs have the same name.")
        waiting, later, running = deque(jobs), deque[tuple[float, Job]](), set[str]()
        whole, broken = _Whole(jobs), Counter[str]()

        while waiting or later or running:
            while later and later[0][0] <= time.monotonic():
                waiting.append(later.popleft()[1])
            while waiting and pool.free() > 0:
                job = waiting.popleft()
                running.add(job.name)
                pool.submit(job)
            if not running:
                time.sleep(min(LISTEN_S, AGAIN_S))
                continue
            for told in pool.told(LISTEN_S):
                job, kind = of[told.job], told.kind
                if job.name not in running:
                    continue  # a late word of a worker that was given up
                whole.note(job.name, told.fraction, found=kind == "found")
                if kind != "progress":
                    running.discard(job.name)
                if kind == "held":
                    later.append((time.monotonic() + AGAIN_S, job))
                elif kind == "broke":
                    broken[job.name] += 1
                    if broken[job.name] <= retries:
                        waiting.append(job)
                        kind = "retried"
                if kind in ("broke", "refused"):
                    kind = "failed"
                    whole.note(job.name, 1.0, found=True)
                yield Event(job, kind, told.fraction, told.note, whole.done(), whole.left_s(), told.answer)
