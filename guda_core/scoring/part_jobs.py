"""Parts as jobs, so that worker processes of this machine and Ray tasks score them as one process here does."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic, sleep

from guda_core.errors import ReportError, ScoreError, kind_of
from guda_core.jobs.driver import AGAIN_S, Event, Pool, work_through
from guda_core.jobs.job import Job, Steps
from guda_core.scoring import places
from guda_core.scoring.scorer import TRIES, Done, Task, blame_nothing, steps
from guda_core.work_queue import claimed

log = logging.getLogger(__name__)
RETRIES = 2 * TRIES  # of a part whose worker ended: two pictures of it may each end `TRIES` of them
END_S = 5.0  # until the claims of workers that were ended are free
HELD = "All that is left is in hand in another process, and is waited for. A claim of it: %s.lock"


def claim(task: Task) -> Path:
    """That of a part."""
    return places.claim_of(task.out, f"{task.part:06d}")


def here(tasks: Sequence[Task]) -> Iterator[Done]:
    """Do the tasks in this process, one after the other; last those that another process had in hand."""
    waiting, held, said = deque(tasks), 0, False
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
                if not said:
                    log.warning(HELD, claim(task))
                    said = True
                sleep(AGAIN_S)
                held = 0


def work(task: Task) -> Steps:
    """A part as the work of a job; answers what was done."""
    done = Done(task.pictures, part=task.part)
    found = steps(task, one_of_several=True)
    try:
        for done in found:
            yield done.done / max(1, task.pictures), "", done
    finally:
        found.close()
    return done


class _Rounds:
    """n: how often in a row all workers broke that were at work when the first of them did, and no picture was done. So
    a bad machine among good ones stops no run, and one that is lost with all its workers counts once."""

    def __init__(self) -> None:
        self.in_hand, self.left, self.n = set[str](), set[str](), 0

    def hear(self, e: Event) -> None:
        (self.in_hand.add if e.kind == "progress" else self.in_hand.discard)(e.job.name)
        if e.kind in ("retried", "failed"):
            self.left = (self.left or self.in_hand) - {e.job.name}
            self.n += not self.left
        elif e.fraction:
            self.left, self.n = set(), 0


def by_pool(tasks: Sequence[Task], pool: Pool) -> Iterator[Done]:
    """Do the tasks by the workers of a pool.

    Raises:
        OptionError: the pool can start no worker.
        GudaError: nobody could do a part; of the class that its worker raised, such as ReportError on a full disk.
        ScoreError: no worker gets any picture done.
        ReportError: parts were given up, because their workers ended.
    """
    of = {f"part {t.part}": t for t in tasks}
    jobs = [Job(n, work, claim(t), arguments=(t,), cost=float(t.pictures)) for n, t in of.items()]
    rounds = _Rounds()
    try:
        with closing(work_through(jobs, pool, retries=RETRIES)) as events:
            yield from _heard(of, events, rounds)
    finally:
        until = monotonic() + END_S
        for name in rounds.in_hand:  # their workers were ended, and not by a picture
            # whatever a store raises, what ended the run is what is told
            with suppress(Exception), claimed(claim(of[name]), wait=True, until=until) as mine:
                if mine:
                    blame_nothing(of[name])


def _heard(of: Mapping[str, Task], events: Iterator[Event], rounds: _Rounds) -> Iterator[Done]:
    """How far the parts are, by what is heard of their jobs. of: name of a job -> its task."""
    done, retried = dict.fromkeys(of, 0), Counter[str]()
    ours, said, missing, last = set(of), set[str](), 0, ""  # ours: what is left and no other process has in hand
    for e in events:
        name, task = e.job.name, of[e.job.name]
        (ours.add if e.kind in ("progress", "retried") else ours.discard)(name)
        retried[name] += e.kind == "retried"
        rounds.hear(e)
        if e.kind == "done":
            yield e.answer
        elif e.kind == "progress":
            if e.answer is not None:
                done[name] = e.answer.done
                yield e.answer
        elif e.kind == "held":
            if not ours and HELD not in said:
                log.warning(HELD, e.job.claim)
                said.add(HELD)
        elif e.kind == "failed" and retried[name] < RETRIES:  # nobody could do this, such as on a full disk
            raise kind_of(e.error)(e.note)
        else:
            why = e.note.removesuffix(places.AGAIN).rstrip(". ")
            if rounds.n >= (RETRIES + 1 if e.ended else TRIES):
                raise ScoreError(
                    f"No worker gets a picture done ({why}). Mend that, and run the same command again: it goes on."
                )
            if why not in said:
                log.warning("The worker of %s broke off (%s).", name, why)
                said.add(why)
            if e.kind == "failed":
                missing, last = missing + task.pictures - done[name], why
    if missing:
        asked = sum(t.pictures for t in of.values())
        raise ReportError(
            f"{missing} of {asked} pictures have no rows yet, because their workers broke off "
            f"again and again ({last}). Run the same command again: it goes on."
        )
