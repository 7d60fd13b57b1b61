"""What the planted truth gave, as tables (`python -m experiments.planted`)."""

from __future__ import annotations

from experiments.tables.committed import UNKNOWN, read, source, value
from guda_core.attribution.metrics import of_equal


def planted() -> str:
    """How often each method's first group is the planted one."""
    record = read("planted")
    if record is None:
        return UNKNOWN
    first, sets = record["first"], list(dict.fromkeys(s for found in record["first"].values() for s in found))
    lines = [f"| method | {' | '.join(sets)} |", f"|---{'|---' * len(sets)}|"]
    for name, found in first.items():
        cells = [f"{found[s]['right']} of {found[s]['of']}" if s in found else "-" for s in sets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    groups = ", ".join(record["groups"])
    return "\n".join([*lines, "", f"Groups: {groups}. {source(record, 'planted')}"])


def planted_agreement() -> str:
    """Agreement with the oracle that was trained for it."""
    record = read("planted")
    if record is None:
        return UNKNOWN
    lines = ["| method | queries | n | Top-1 | Variation |", "|---|---|---|---|---|"]
    for r in record["rows"]:
        top1 = value(of_equal(r["top1"], r["n"]))
        lines.append(f"| {r['method']} | {r['query_set']} | {r['n']} | {top1} | {value(r['variation'])} |")
    told = record["calibration"]
    said = f"The offset's weight: {told['offset_weight']}." if "offset_weight" in told else f"No offset. {told['none']}"
    return "\n".join([*lines, "", f"{said} {source(record, 'planted')}"])


RENDER = {"planted": planted, "planted_agreement": planted_agreement}
