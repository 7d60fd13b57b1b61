"""Places, such as GPUs, whose workers break one job after the other: while there are others, they get none for a while.

Else one bad GPU, at which every job breaks at once, would use up the tries of all jobs while a good one is at work.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection

from guda_core.amounts import time_said
from guda_core.jobs.job import Told

log = logging.getLogger(__name__)
SPARED, PAUSE_S, MOST = 2, 600.0, 8  # so many times; the first pause, which is doubled so often at most


class BadPlaces:
    """How often jobs broke at each place since one got on there, and until when it gets none. A job that broke at two
    places is itself what is bad, and counts at none. One that got on, and breaks again and again, counts once."""

    def __init__(self) -> None:
        self._broke: dict[str, Counter[str]] = {}
        self._where: dict[str, set[str]] = {}  # job -> the places where it broke
        self._far: dict[str, float] = {}  # job -> its largest fraction
        self._until: dict[str, float] = {}
        self._said: set[str] = set()

    def note(self, place: str, told: Told) -> None:
        """A word on a job at that place. Its first fraction may be of a checkpoint, and tells nothing of the place."""
        job, far = told.job, self._far.get(told.job, 0.0)
        if told.kind == "done" or (told.kind == "progress" and 0 < far < told.fraction):
            self._broke.pop(place, None)
            self._until.pop(place, None)
            self._said.discard(place)
        elif told.kind == "broke":
            broke = self._broke.setdefault(place, Counter())
            broke[job] = 1 if far else broke[job] + 1
            self._where.setdefault(job, set()).add(place)
            if (n := self._count(place)) >= SPARED:
                self._until[place] = time.monotonic() + PAUSE_S * 2 ** min(n - SPARED, MOST)
        if told.kind == "progress":
            self._far[job] = max(far, told.fraction)

    def _count(self, place: str) -> int:
        return sum(n for job, n in self._broke.get(place, Counter()).items() if len(self._where[job]) == 1)

    def usable(self, places: Collection[str], job: str = "") -> list[str]:
        """Those of a pool's places that may get a job now, the best first: all, where none of them is good. job: it had
        better go where it has not broken."""
        now, broke = time.monotonic(), self._where.get(job, ())
        good = [p for p in set(places) if self._until.get(p, 0.0) <= now or self._count(p) < SPARED]
        for place in set(places).difference(good, self._said) if good else ():
            self._said.add(place)
            log.warning(
                "Jobs broke %d times in a row at %s. It gets none for %s, while others work.",
                self._count(place),
                place,
                time_said(self._until[place] - now),
            )
        return sorted(good or set(places), key=lambda p: (p in broke, self._count(p), p))
