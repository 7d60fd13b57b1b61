"""Pictures an hour by worker processes of this machine, one CPU thread each.

    pictures an hour = 3600 (N - first) / (end - start)

where start is the moment at which as many pictures as workers have rows, `first` of them. So loading does not count; it
is given beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.scale.overhead import Maker
from guda_core.jobs.local_pool import LocalPool
from guda_core.scoring.part_jobs import by_pool
from guda_core.scoring.table_run import Options, Table


def measure(folder: Path, work: Path, make: Maker, options: Options, workers: int) -> dict[str, Any]:
    """Pictures an hour by so many workers, with the seconds until all had begun. work: a folder for the results."""
    began = time.perf_counter()
    moments: list[tuple[float, int]] = []
    pool = LocalPool(workers, devices=[])
    try:
        for total in Table([str(folder)], str(work / f"out-{workers}"), make, options).run(partial(by_pool, pool=pool)):
            moments.append((time.perf_counter() - began, total.done))
    finally:
        pool.close()
    return pace(moments, workers)


def pace(moments: Sequence[tuple[float, int]], workers: int) -> dict[str, Any]:
    """The figures. moments: (seconds since the begin, pictures that have rows by then), in order."""
    start, first = next((t, n) for t, n in moments if n >= workers)
    end, all_done = moments[-1]
    return {
        "pictures": all_done,
        "start_s": round(start, 2),
        "seconds": round(end - start, 2),
        "pictures_per_hour": round(3600 * (all_done - first) / max(end - start, 1e-9), 1),
    }
