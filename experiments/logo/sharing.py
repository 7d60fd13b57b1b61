"""Trainings one after the other, shared out between processes: what every queue of the oracle's trainings does."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any, TypeVar

from guda_core.unlearning.loop import Progress
from guda_core.work_queue import deadline

J = TypeVar("J")


def work_through(
    jobs: Iterable[J],
    *,
    in_hand: Callable[[J], AbstractContextManager[bool]],
    is_done: Callable[[J], bool],
    steps: Callable[[J], Generator[Progress, None, Any]],
    minutes: float | None = None,
) -> Iterator[tuple[J, Progress]]:
    """Train what is not done and what no other process has in hand; yields (job, progress).

    Stops after `minutes` with a checkpoint, to be resumed later. in_hand: the claim on a job, whether it was free.

    Raises:
        OptionError: minutes is not positive.
    """
    until = deadline(minutes)
    for job in jobs:
        with in_hand(job) as ours:
            if not ours or is_done(job):
                continue
            with closing(steps(job)) as training:
                for p in training:
                    yield job, p
                    if time.monotonic() > until:
                        return
