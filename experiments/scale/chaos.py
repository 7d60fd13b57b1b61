"""A table made on a Ray cluster of two nodes while a node is killed, and then the driver.

lost             pictures of the single process's table that have no rows
twice            rows that stand more than once (same picture, method and group)
equal_to_single  whether all rows are bit by bit those that one process writes
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guda_core.scoring import parts, places
from guda_core.scoring.table_rows import Row

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
HEAD = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
POLL_S = 0.2
PATIENCE_S = 3600.0


def rows(out: Path) -> list[Row]:
    """All rows of a table, by picture, method and group."""
    found = [r for p in places.files(str(out / parts.FOLDER), parts.ENDING) for r in parts.read(p)]
    return sorted(found, key=lambda r: (r["picture"], r["method"] or "", r["group_id"] or ""))


def compare(single: Sequence[Row], other: Sequence[Row]) -> dict[str, Any]:
    """lost, twice and equal_to_single of two tables' rows."""
    names = {r["picture"] for r in single}
    times = Counter((r["picture"], r["method"], r["group_id"]) for r in other)
    return {
        "lost": len(names - {r["picture"] for r in other}),
        "twice": sum(n - 1 for n in times.values()),
        "equal_to_single": list(single) == list(other),
    }


def _wait(until: Callable[[], bool], driver: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + PATIENCE_S
    while not until():
        if time.monotonic() > end:
            raise SystemExit("The table does not go on.")
        if driver is not None and driver.poll() is not None:
            return  # it was faster than the killer
        time.sleep(POLL_S)


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Within the block there is a Ray cluster of this machine; the node of the drivers, and another one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **HEAD})
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


def suffer(cluster: Any, out: Path, pictures: int, command: Callable[[str], list[str]]) -> dict[str, Any]:
    """Make a table by a command, given the cluster's address, while the other node and the driver are killed.

    Gives how many pictures had rows when each was killed. There are two nodes again at the end.
    """

    def done() -> int:
        return len({r["picture"] for r in rows(out)})

    driver = subprocess.Popen(command(cluster.address))
    try:
        _wait(lambda: done() >= pictures // 4, driver)
        at_node = done()
        cluster.remove_node(next(iter(cluster.worker_nodes)))
        _wait(lambda: done() >= pictures // 2, driver)
        at_driver = done()
    finally:
        driver.kill()
        driver.wait()
    cluster.add_node(**NODE)
    subprocess.run(command(cluster.address), timeout=PATIENCE_S, check=True)
    return {"pictures": pictures, "node_killed_at": at_node, "driver_killed_at": at_driver}
