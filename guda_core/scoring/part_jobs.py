"""Parts as jobs, so that worker processes of this machine and Ray tasks score them as one process here does."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep

from guda_core.errors import ScoreError
from guda_core.jobs.driver import AGAIN_S, Pool, work_through
from guda_core.jobs.job import Job, Steps
from guda_core.paths import cache_dir
from guda_core.scoring import places
from guda_core.scoring.scorer import TRIES, Done, Task, steps
from guda_core.work_queue import claimed

RETRIES = 2 * TRIES  # of a part whose worker ended: two pictures of it may each end `TRIES` of them
CLAIMS = "claims"


def claim(task: Task) -> Path:
    """The file that keeps others off a part: in the results; for those that are no folder here, in this machine's
    cache."""
    if not places.is_url(task.out):
        return places.as_path(task.out) / CLAIMS / f"{task.part:06d}"
    return cache_dir() / "locks" / f"{hashlib.sha256(task.out.encode()).hexdigest()[:16]}-{task.part:06d}"


def here(tasks: Sequence[Task]) -> Iterator[Done]:
    """Do the tasks in this process, one after the other; last those that another process had in hand."""
    waiting, held = deque(tasks), 0
    while waiting:
        task = waiting.popleft()
        with claimed(claim(task)) as mine:
            if mine:
                held = 0
                yield from steps(task)
        if not mine:
            waiting.append(task)
            held += 1
            if held >= len(waiting):  # all that is left is in hand elsewhere
                sleep(AGAIN_S)
                held = 0


def work(task: Task) -> Steps:
    """A part as the work of a job; answers what was done."""
    done = Done(task.part, task.pictures)
    found = steps(task)
    try:
        for done in found:
            yield done.finished / max(1, task.pictures), ""
    finally:
        found.close()
    return done


def by_pool(tasks: Sequence[Task], pool: Pool) -> Iterator[Done]:
    """Do the tasks by the workers of a pool.

    Raises:
        ScoreError: nobody could do a part, such as on a full disk; the message says why.
    """
    of = {f"part {t.part}": t for t in tasks}
    jobs = [Job(n, work, claim(t), arguments=(t,), cost=float(t.pictures)) for n, t in of.items()]
    retried = Counter[str]()
    for e in work_through(jobs, pool, retries=RETRIES):
        task = of[e.job.name]
        retried[e.job.name] += e.kind == "retried"
        if e.kind == "done":
            yield e.answer
        elif e.kind == "progress":  # of what kind the pictures were, the answer says
            yield Done(task.part, task.pictures, scored=min(int(e.fraction * task.pictures), task.pictures - 1))
        elif e.kind == "failed" and retried[e.job.name] < RETRIES:  # nobody could do this, such as on a full disk
            raise ScoreError(e.note)
