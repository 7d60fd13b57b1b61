"""What several seeds of the oracle tell, as tables (for `readme.py`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from experiments.tables.committed import Lines, table, value

NAMES = {"first": "tuning queries", "fresh": "fresh queries"}


def agreement(draws: dict[str, Any], key: str, what: str) -> Lines:
    yield "queries", what, "variation", "Top-1", "Spearman"
    for draw, found in draws.items():
        for r in found[key]:
            figures = (value(r[k]) for k in ("variation", "top1", "spearman"))
            yield [f"{NAMES[draw]}, {r['query_set']}", r["method"], *figures]


@table("seeds", "trainings")
def trainings(record: dict[str, Any]) -> Lines:
    """Seconds and losses."""
    yield "training", "device", "seconds", "loss", "on held-out pictures", "the embedded model's"
    for name, r in record.items():
        own = f"{r['held_out_embedded']:.4f}" if "held_out_embedded" in r else ""
        yield name, r["device"], f"{r['seconds']['training']:.0f}", f"{r['loss']:.4f}", f"{r['held_out']:.4f}", own


by_draw = table("seeds", "draws")
RENDER = {
    "seeds_ceiling": by_draw(partial(agreement, key="ceiling", what="against the mean of the other seeds")),
    "seeds_mean": by_draw(partial(agreement, key="rows_mean", what="method")),
    "seeds_trainings": trainings,
}
