"""Rows of a table of agreement with the oracle, as they are shown: which tell of the oracle itself, and their names.
Rows of costs: what one training takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def is_ceiling(method: str) -> bool:
    """Whether a row tells how well the oracle agrees with itself."""
    return method.startswith("ceiling")


def labelled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the number of groups in the method's name where it is compared on fewer than others."""
    most = max((r.get("groups", 0) for r in rows), default=0)
    return [
        {**r, "method": f"{r['method']} ({r['groups']} groups)" if r.get("groups", most) < most else r["method"]}
        for r in rows
    ]


def training_seconds(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Method -> seconds of one group's training, of those that train. costs: the rows of `costs.json`."""
    return {r["method"]: r["before_s"] + r["step_s"] * r["steps"] for r in costs if "steps" in r}
