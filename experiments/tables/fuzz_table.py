"""What the fuzz run counted, as a table (`python -m experiments.fuzz`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import Lines, table


@table("fuzz")
def fuzz(record: dict[str, Any]) -> Lines:
    """A row for each door."""
    yield ("door", "inputs tried", "accepted", "refused", "crashed", "hung", "over memory", "slowest (s)",
           "most memory (MB)")  # fmt: skip
    for name, r in record["doors"].items():
        counts = (f"{r[k]:,}" for k in ("tried", "accepted", "refused", "crashed", "hung", "over_memory"))
        yield [name.replace("_", " "), *counts, r["slowest_s"], r["most_mb"]]
    yield f"Tried in all: {record['tried']:,}."


RENDER = {"fuzz": fuzz}
