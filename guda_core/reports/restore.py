"""Turns a report that was read back into the answers it was made from, so that they can be shown without computing."""

from __future__ import annotations

from guda_core.records import Attribution, GroupScore
from guda_core.reports.read import Report

SCORE = ("score", "low", "high", "status", "reason")


def attributions(report: Report) -> list[Attribution]:
    """The answers of a report, in its order, with the values behind them."""
    out = []
    for method, found in report.record["methods"].items():
        groups = {g: GroupScore(**{k: s[k] for k in SCORE}) for g, s in found["groups"].items()}
        values = {k.partition("/")[2]: v for k, v in report.values.items() if k.startswith(f"{method}/")}
        out.append(
            Attribution(
                method,
                found["unit"],
                groups,
                found["progress"],
                found["separable"],
                found["runner_up"],
                values,
                found["settings"],
            )
        )
    return out
