"""What the planted truth gave, as tables (`python -m experiments.planted`, `python -m experiments.few`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import Lines, ends, table, value
from guda_core.attribution.metrics import of_equal


@table("planted")
def planted(record: dict[str, Any]) -> Lines:
    """How often each method's first group is the planted one."""
    first, sets = record["first"], list(dict.fromkeys(s for found in record["first"].values() for s in found))
    yield ["method", *sets]
    for name, found in first.items():
        yield [name, *(f"{found[s]['right']} of {found[s]['of']}" if s in found else "-" for s in sets)]
    yield f"Groups: {', '.join(record['groups'])}."


@table("planted")
def planted_agreement(record: dict[str, Any]) -> Lines:
    """Agreement with the oracle that was trained for it."""
    yield "method", "queries", "n", "Top-1", "Variation"
    for r in record["rows"]:
        yield r["method"], r["query_set"], r["n"], value(of_equal(r["top1"], r["n"])), value(r["variation"])
    told = record["calibration"]
    yield f"The offset's weight: {told['offset_weight']}." if "offset_weight" in told else f"No offset. {told['none']}"


@table("few")
def few(record: dict[str, Any]) -> Lines:
    """How often the planted style comes first, by the number of pictures that each style has."""
    sets = list(dict.fromkeys(r["query_set"] for r in record["rows"]))
    methods = list(dict.fromkeys(r["method"] for r in record["rows"]))
    columns = [(m, s) for m in methods for s in sets]
    yield ["pictures of a style", *(f"{m}, {s}" for m, s in columns)]
    for size in record["sizes"]:
        found = {(r["method"], r["query_set"]): r for r in record["rows"] if r["pictures"] == size}
        cells = [f"{r['right']} of {r['of']} ({ends(r)})" for r in map(found.get, columns) if r]
        yield [size, *cells]
    yield "In brackets: 95% intervals of the share."


RENDER = {"few": few, "planted": planted, "planted_agreement": planted_agreement}
