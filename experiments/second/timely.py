"""Trainings handed out one by one, each only if it should end in time.

A card that is kept busy is shared: a training needs it for so many seconds, its share, and waits for what is left of
the shares of those in hand. Scoring and the like take as long in any company.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from guda_core.jobs.driver import Pool
from guda_core.jobs.job import Job, Told

FIRST_S = 60.0  # beside its training, of the first of a call: processes start, and what they share is made


class NoTime(Exception):
    """Nothing is in hand, and the next job would not end in time."""


class Timely:
    """A `guda_core.jobs.driver.Pool` of trainings in another. until: a moment of `time.monotonic`. alone_s: seconds of
    a training that has the card for itself; 0: not known. measured(job): seconds of a training that was made here, and
    of all beside; None where nothing was trained."""

    def __init__(
        self, pool: Pool, until: float, alone_s: float, measured: Callable[[str], tuple[float, float] | None]
    ) -> None:
        self.pool, self.about, self.until, self.measured = pool, pool.about, until, measured
        self.alone_s = self.share_s = alone_s
        self.rest_s = FIRST_S
        self.fractions: dict[str, float] = {}  # of the jobs in hand
        self.begun: dict[str, tuple[float, float]] = {}  # when, and job_s then
        self.job_s, self.counted = 0.0, time.monotonic()  # seconds of all jobs together, up to then

    def expected_s(self) -> float:
        """Seconds of one that begins now."""
        shares = 1 + sum(1 - f for f in self.fractions.values())
        return self.rest_s + max(self.alone_s, shares * self.share_s)

    def free(self) -> int:
        """1 where the next may begin. Raises NoTime."""
        if not self.pool.free():
            return 0
        if time.monotonic() + self.expected_s() <= self.until:
            return 1
        if not self.fractions:
            raise NoTime
        return 0

    def _now(self) -> float:
        now = time.monotonic()
        self.job_s += len(self.fractions) * (now - self.counted)
        self.counted = now
        return now

    def submit(self, job: Job) -> None:
        self.begun[job.name] = self._now(), self.job_s
        self.fractions[job.name] = 0.0
        self.pool.submit(job)

    def told(self, timeout: float) -> list[Told]:
        words = self.pool.told(timeout)
        for word in words:
            if word.kind == "progress":
                self.fractions[word.job] = word.fraction
            else:
                self._ended(word)
        return words

    def _ended(self, word: Told) -> None:
        now, (began, before) = self._now(), self.begun.pop(word.job)
        del self.fractions[word.job]
        if word.kind == "done" and (found := self.measured(word.job)):
            at_once = max(1.0, (self.job_s - before) / max(1e-9, now - began))  # on the mean, while it was in hand
            self.share_s, self.rest_s = found[0] / at_once, found[1]

    def close(self) -> None:
        self.pool.close()
