"""What holds variation back, as tables for the pages (`experiments.held_back`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import UNKNOWN, read, source, value, written

NAME = "held-back"
DRAWS = {
    "target": "target",
    "half_of_the_draws": "measured, with half of GUDA's draws",
    "variation": "measured",
    "without_own_noise": "without the noise of GUDA's draws",
    "without_both": "and without that of the oracle's draws",
}
SEEDS = {
    "queries": "queries",
    "second_seed": "the second retraining, as drawn",
    "reliability": "reliability of the second retraining's values",
    "ceiling": "the second retraining, without that noise: the ceiling",
    "a_perfect_method": "a perfect method",
    "variation": "GUDA",
    "less_second_seed": "GUDA less the second retraining, as drawn",
    "less_ceiling": "GUDA less the ceiling",
    "variation_second_drawn": "GUDA, by the second seed as drawn",
    "variation_second": "GUDA, by the second seed without its noise",
    "less_variation_second": "GUDA by the first seed, less by the second without its noise",
    "against_many_seeds": "GUDA, by the mean of many seeds (an estimate)",
    "again": "check: the first retraining made again, as drawn",
    "again_without_noise": "check: the same without that noise (should be 1)",
}


def _cell(found: Any) -> str:
    if found is None:
        return "unknown"
    if isinstance(found, dict):
        return value(found, 3)
    return str(found) if isinstance(found, int) else f"{found:.3f}"


def _table(part: str, rows: dict[str, str]) -> str:
    record = read(NAME)
    if record is None:
        return UNKNOWN
    found = {s: {**v, "target": record["targets"][s]} for s, v in record[part].items()}
    lines = [[label, *(_cell(v[key]) for v in found.values())] for key, label in rows.items()]
    made = {**record, "date": record.get(f"{part}_date", record["date"])}
    return written([["variation", *found], *lines, source(made, NAME)])


RENDER = {
    "held_back_draws": lambda: _table("fresh", DRAWS),
    "held_back_seeds": lambda: _table("seeds", SEEDS),
    "held_back_seeds_report": lambda: _table("seeds_report", SEEDS),
}
