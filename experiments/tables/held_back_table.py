"""What holds variation back, as tables for the pages (`experiments.held_back`)."""

from __future__ import annotations

from experiments.tables.committed import UNKNOWN, read, source

NAME = "held-back"
DRAWS = {
    "target": "target",
    "half_of_the_draws": "measured, with half of GUDA's draws",
    "variation": "measured",
    "without_own_noise": "without the noise of GUDA's draws",
    "without_both": "and without that of the oracle's draws",
}
SEEDS = {
    "second_seed": "the second seed, by the first",
    "a_perfect_method": "a perfect method, by one seed",
    "variation": "GUDA, by the first seed",
    "variation_second": "GUDA, by the second seed",
    "against_the_mean_of_two": "GUDA, by the mean of both",
    "against_many_seeds": "GUDA, by the mean of many seeds",
}


def _table(part: str, rows: dict[str, str]) -> str:
    record = read(NAME)
    if record is None:
        return UNKNOWN
    found = {s: {**v, "target": record["targets"][s]} for s, v in record[part].items()}
    lines = [f"| variation | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for key, label in rows.items():
        cells = ["unknown" if v[key] is None else f"{v[key]:.3f}" for v in found.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(record, NAME)])


RENDER = {
    "held_back_draws": lambda: _table("fresh", DRAWS),
    "held_back_seeds": lambda: _table("seeds", SEEDS),
}
