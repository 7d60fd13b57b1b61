"""Adapters of several seeds, as a table for the log (`experiments.ablations.averaged`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import Lines, table, value

FIGURES = ("variation", "top1", "spearman")


@table("averaged")
def averaged(record: dict[str, Any]) -> Lines:
    """Every row's agreement with the oracle; the last row: of two seeds with each other."""
    yield "adapters", "query set", "variation", "Top-1", "Spearman"
    for row, found in record["rows"].items():
        yield from ([row, s, *(value(v[m]) for m in FIGURES)] for s, v in found.items())
    for s, v in record["between_seeds"].items():
        yield ["one seed by another", s, *(f"{v[m]:z.2f}" for m in FIGURES)]
    n = ", ".join(f"{n} {s}" for s, n in record["queries"].items())
    yield f"Queries: {n}, one draw in each stratum, in {record['dtype']}."


RENDER = {"averaged": averaged}
