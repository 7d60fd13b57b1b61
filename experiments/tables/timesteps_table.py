"""The choice of timesteps that was tried, as a table for the log (`experiments.ablations.timesteps`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import Lines, table, value

ROWS = {"all": "all, alike (`guda`)", "run": "one run of strata", "fitted": "fitted weights"}
WHERE = {"tuning": "chosen on", "other_half": "the other half", "fresh": "fresh"}


@table("timesteps")
def timesteps(record: dict[str, Any]) -> Lines:
    """Variation and Top-1 of each choice, on the queries it was made on and on the others."""
    yield "queries", "timesteps", "query set", "variation", "Top-1"
    for where, said in WHERE.items():
        for name, label in ROWS.items():
            for query_set, found in record[where][name].items():
                yield said, label, query_set, value(found["variation"]), value(found["top1"])
    at = [i for i, w in enumerate(record["weights"]["run"]) if w]
    first, end = record["edges"][at[0]], record["edges"][at[-1] + 1] - 1
    weights = ", ".join(f"{w:.1f}" for w in record["weights"]["fitted"])
    yield f"The run of strata is t = {first} to {end}. The fitted weights, from small t to large: {weights}."
    yield ""


RENDER = {"timesteps": timesteps}
