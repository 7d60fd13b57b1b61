"""Adapters of several seeds, as a table for the log (`experiments.ablations.averaged`)."""

from __future__ import annotations

from experiments.tables.committed import UNKNOWN, read, source, value

NAME = "averaged"
FIGURES = ("variation", "top1", "spearman")


def averaged() -> str:
    """Every row's agreement with the oracle; the last row: of two seeds with each other."""
    record = read(NAME)
    if record is None:
        return UNKNOWN
    lines = ["| adapters | query set | variation | Top-1 | Spearman |", "|---|---|---|---|---|"]
    for row, found in record["rows"].items():
        lines += [f"| {row} | {s} | {' | '.join(value(v[m]) for m in FIGURES)} |" for s, v in found.items()]
    for s, v in record["between_seeds"].items():
        lines.append(f"| one seed by another | {s} | {' | '.join(f'{v[m]:z.2f}' for m in FIGURES)} |")
    n = ", ".join(f"{n} {s}" for s, n in record["queries"].items())
    lines += ["", f"Queries: {n}, one draw in each stratum, in {record['dtype']}. {source(record, NAME)}"]
    return "\n".join(lines)


RENDER = {"averaged": averaged}
