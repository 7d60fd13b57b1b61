"""What the planted truth gave, as tables (`python -m experiments.planted`, `python -m experiments.few`)."""

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


def few() -> str:
    """How often the planted style comes first, by the number of pictures that each style has."""
    record = read("few")
    if record is None:
        return UNKNOWN
    sets = list(dict.fromkeys(r["query_set"] for r in record["rows"]))
    methods = list(dict.fromkeys(r["method"] for r in record["rows"]))
    columns = [(m, s) for m in methods for s in sets]
    lines = [
        f"| pictures of a style | {' | '.join(f'{m}, {s}' for m, s in columns)} |", f"|---{'|---' * len(columns)}|"
    ]  # fmt: skip
    for size in record["sizes"]:
        found = {(r["method"], r["query_set"]): r for r in record["rows"] if r["pictures"] == size}
        cells = [
            f"{r['right']} of {r['of']} ({r['low']:z.2f} to {r['high']:z.2f})" for r in map(found.get, columns) if r
        ]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"In brackets: 95% intervals of the share. {source(record, 'few')}"])


RENDER = {"few": few, "planted": planted, "planted_agreement": planted_agreement}
