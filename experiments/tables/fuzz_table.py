"""What the fuzz run counted, as a table (`python -m experiments.fuzz`)."""

from __future__ import annotations

from experiments.tables.committed import UNKNOWN, read, source


def fuzz() -> str:
    """A row for each door."""
    record = read("fuzz")
    if record is None:
        return UNKNOWN
    lines = [
        "| door | inputs tried | accepted | refused | crashed | hung | over memory | slowest (s) | most memory (MB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in record["doors"].items():
        counts = (f"{r[k]:,}" for k in ("tried", "accepted", "refused", "crashed", "hung", "over_memory"))
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(counts)} | {r['slowest_s']} | {r['most_mb']} |")
    return "\n".join([*lines, "", f"Tried in all: {record['tried']:,}. {source(record, 'fuzz')}"])


RENDER = {"fuzz": fuzz}
