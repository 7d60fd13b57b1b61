"""Works through jobs with a runner: hands them out, tries again what broke, and tells how far everything is."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol

from guda_core.errors import TrainingError
from guda_core.jobs.job import Job, Told

RETRIES = 2  # of a job that broke
AGAIN_S = 1.0  # until a job that another process has in hand is asked for again
LISTEN_S = 0.5


class Pool(Protocol):
    """Where jobs run. about: where that is, for people."""

    about: str

    def free(self) -> int:
        """How many more jobs it takes now.

        Raises:
            OptionError: no worker can be started.
        """
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
    while nothing tells. answer: of the job, when it was made now; so far, where it tells that.
    ended: it broke because its process or machine is gone. error: the class of the GudaError that it raised.
    """

    job: Job
    kind: Literal["progress", "done", "found", "held", "retried", "failed"]
    fraction: float
    note: str
    all_done: float
    left_s: float | None
    answer: Any = None
    ended: bool = False
    error: str = ""


class _Whole:
    """How far all jobs are, and the pace. What was found done, and what a job took up from a checkpoint, has taken no
    time, so it tells nothing of the pace. Each word costs the same, however many jobs there are."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.costs = {j.name: j.cost for j in jobs}
        self.fractions = dict.fromkeys(self.costs, 0.0)
        self.first: dict[str, float] = {}  # of a job: its first fraction above 0; 0 once a second one has come
        self.cost, self.sum, self.made = sum(self.costs.values()), 0.0, 0.0
        self.left = len(self.costs)
        self.began = time.monotonic()

    def note(self, name: str, fraction: float, *, found: bool = False, done: bool = False) -> None:
        """found: it took no time now; done: it was made now."""
        step, cost = fraction - self.fractions[name], self.costs[name]
        self.fractions[name] = fraction
        self.sum += cost * step
        self.left += (fraction - step >= 1) - (fraction >= 1)
        if step < 0:  # it begins again
            self.first.pop(name, None)
        elif step > 0 and not found:
            if name not in self.first and not done:  # it may have begun anywhere
                self.first[name] = step
            else:  # the first step was hardly longer than the second
                self.made += cost * (step + min(step, self.first.get(name, 0.0)))
                self.first[name] = 0.0
        elif done:  # its only word before was that all is there
            self.made += cost * self.first.pop(name, 0.0)

    def done(self) -> float:
        return min(1.0, self.sum / self.cost) if self.left and self.cost else 1.0

    def left_s(self) -> float | None:
        left = self.cost - self.sum if self.left else 0.0
        return (time.monotonic() - self.began) * left / self.made if self.made > 0 else None


def work_through(
    jobs: Sequence[Job], pool: Pool, *, retries: int = RETRIES, until: float = inf
) -> Generator[Event, None, None]:
    """Do all jobs; yields what happens. Whoever stops listening, or is interrupted, ends the jobs in hand; so does the
    moment `until` of `time.monotonic`.

    A job that broke is tried again `retries` times. One that is given up does not stop the others.

    Raises:
        OptionError: the pool can start no worker.
    """
    if len({j.name for j in jobs}) < len(jobs):
        raise ValueError("Two jobs have the same name.")
    work = _Work(jobs, pool, retries)
    try:
        while work.goes_on() and time.monotonic() < until:
            for told in work.told():
                if event := work.note(told):
                    yield event
    finally:
        if work.running:
            pool.close()


class _Work:
    """The jobs that wait, that are asked for again later, and that run."""

    def __init__(self, jobs: Sequence[Job], pool: Pool, retries: int) -> None:
        self.of, self.pool, self.retries = {j.name: j for j in jobs}, pool, retries
        self.waiting, self.later, self.running = deque(jobs), deque[tuple[float, Job]](), set[str]()
        self.whole, self.broken = _Whole(jobs), Counter[str]()

    def goes_on(self) -> bool:
        return bool(self.waiting or self.later or self.running)

    def told(self) -> list[Told]:
        """Hand out what there is room for; what the jobs tell then."""
        while self.later and self.later[0][0] <= time.monotonic():
            self.waiting.append(self.later.popleft()[1])
        while self.waiting and self.pool.free() > 0:
            job = self.waiting.popleft()
            self.running.add(job.name)
            self.pool.submit(job)
        if self.running:
            return self.pool.told(LISTEN_S)
        time.sleep(LISTEN_S)
        return []

    def note(self, told: Told) -> Event | None:
        """What follows from a word; None for a late one, of a job that runs no more, also of other jobs before."""
        if told.job not in self.running:
            return None
        job, kind = self.of[told.job], told.kind
        self.whole.note(job.name, told.fraction, found=kind == "found", done=kind == "done")
        if kind != "progress":
            self.running.discard(job.name)
        if kind == "held":
            self.later.append((time.monotonic() + AGAIN_S, job))
        elif kind == "broke":
            self.broken[job.name] += 1
            if self.broken[job.name] <= self.retries:
                self.waiting.append(job)
                kind = "retried"
        if kind in ("broke", "refused"):
            kind = "failed"
            self.whole.note(job.name, 1.0, found=True)
        whole = self.whole.done(), self.whole.left_s()
        return Event(job, kind, told.fraction, told.note, *whole, told.answer, told.ended, told.error)


def failure(ended: Sequence[Event]) -> TrainingError | None:
    """What failed, as one sentence or two; None where all is done."""
    bad = [e for e in ended if e.kind == "failed"]
    if not bad:
        return None
    why = " ".join(f"'{e.job.name}': {e.note}" for e in bad)
    if len(ended) == 1:
        return TrainingError(f"{bad[0].job.name}: {bad[0].note}")
    return TrainingError(
        f"{len(bad)} of {len(ended)} failed, the others are done. {why} Run the same command again to try once more."
    )
