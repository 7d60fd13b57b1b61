"""What several seeds of the oracle tell, as tables (for `readme.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.tables.committed import UNKNOWN, read, source, value

NAMES = {"first": "tuning queries", "fresh": "fresh queries"}


def _lines(rows: Sequence[dict[str, Any]], draw: str) -> list[str]:
    return [
        f"| {NAMES[draw]}, {r['query_set']} | {r['method']} | {value(r['variation'])} | {value(r['top1'])} "
        f"| {value(r['spearman'])} |"
        for r in rows
    ]


def _table(key: str, what: str) -> str:
    record = read("seeds")
    if record is None:
        return UNKNOWN
    lines = [f"| queries | {what} | variation | Top-1 | Spearman |", "|---|---|---|---|---|"]
    for draw, found in record["draws"].items():
        lines += _lines(found[key], draw)
    return "\n".join([*lines, "", source(record, "seeds")])


def ceiling() -> str:
    """Each seed against the mean of the others."""
    return _table("ceiling", "against the mean of the other seeds")


def against_the_mean() -> str:
    """Methods against the mean of all seeds."""
    return _table("rows_mean", "method")


def trainings() -> str:
    """Seconds and losses."""
    record = read("seeds")
    if record is None:
        return UNKNOWN
    head = ("training", "device", "seconds", "loss", "on held-out pictures", "the embedded model's")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for name, r in record["trainings"].items():
        own = f"{r['held_out_embedded']:.4f}" if "held_out_embedded" in r else ""
        lost = f"{r['loss']:.4f} | {r['held_out']:.4f}"
        lines.append(f"| {name} | {r['device']} | {r['seconds']['training']:.0f} | {lost} | {own} |")
    return "\n".join([*lines, "", source(record, "seeds")])


RENDER = {"seeds_ceiling": ceiling, "seeds_mean": against_the_mean, "seeds_trainings": trainings}
