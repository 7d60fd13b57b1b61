"""Places, such as GPUs, whose workers break one job after the other: while there are others, they get none for a while.

Else one bad GPU, at which every job breaks at once, would use up the tries of all jobs while a good one is at work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from guda_core.amounts import time_said

log = logging.getLogger(__name__)
SPARED, PAUSE_S, MOST = 2, 600.0, 8  # so many jobs in a row; the first pause, which is doubled so often at most


class BadPlaces:
    """How many jobs in a row broke at each place, and until when it gets none."""

    def __init__(self) -> None:
        self._broke: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._said: set[str] = set()

    def note(self, place: str, kind: str) -> None:
        """The last word on a job at that place (`Told`)."""
        if kind == "done":
            self._broke.pop(place, None)
            self._until.pop(place, None)
            self._said.discard(place)
        elif kind == "broke":
            n = self._broke[place] = self._broke.get(place, 0) + 1
            if n >= SPARED:
                self._until[place] = time.monotonic() + PAUSE_S * 2 ** min(n - SPARED, MOST)

    def usable(self, places: Collection[str]) -> list[str]:
        """Those of a pool's places that may get a job now, the best first: all, where none of them is good."""
        now = time.monotonic()
        good = [p for p in set(places) if self._until.get(p, 0.0) <= now]
        for place in set(places).difference(good, self._said) if good else ():
            self._said.add(place)
            log.warning(
                "%s broke %d jobs one after the other. It gets none for %s, while others work.",
                place,
                self._broke[place],
                time_said(self._until[place] - now),
            )
        return sorted(good or set(places), key=lambda p: (self._broke.get(p, 0), p))
