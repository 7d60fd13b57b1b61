"""How large scores are, and on whose pictures, as tables for the pages (`experiments.score_sizes`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import UNKNOWN, read, source

NAME = "sizes"


def _made(heads: list[str], rows: list[list[str]]) -> str:
    record = read(NAME)
    assert record is not None
    lines = [" | ".join(cells) for cells in (heads, *rows)]
    lines.insert(1, "---|" * (len(heads) - 1) + "---")
    return "\n".join([*(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines), "", _source()])


def _source() -> str:
    record = read(NAME)
    return UNKNOWN if record is None else source(record, NAME)


def _share(x: float) -> str:
    return f"{100 * x:.0f}%"


def drops() -> str:
    """The mean scores of the oracle and of GUDA, by draw and query set."""
    record = read(NAME)
    if record is None:
        return UNKNOWN
    heads = ["draw", "query set", "queries", "oracle, nats", "GUDA's drop, nats", "times", "oracle's above 0"]
    rows = [
        [draw, r["query_set"], str(r["n"]), f"{r['oracle']:.0f}", f"{r['guda']:.0f}", f"{r['times']:.1f}",
         _share(r["oracle_positive"])]
        for draw, of in record["sizes"].items() for r in of
    ]  # fmt: skip
    return _made(heads, rows)


def nothing() -> str:
    """What a retraining "scores" that left nothing out."""
    record = read(NAME)
    if record is None:
        return UNKNOWN
    heads = ["query set", "queries", "drop with nothing left out, nats", "above 0"]
    rows = [[r["query_set"], str(r["n"]), f"{r['drop']:.0f}", _share(r["positive"])] for r in record["nothing"]]
    return _made(heads, rows)


def artists(key: str, head: str) -> str:
    """The mean drop of each group's adapter, or retrained model, on each artist's real pictures."""
    record = read(NAME)
    if record is None:
        return UNKNOWN
    of: list[dict[str, Any]] = record[key]
    names = [r["group"] for r in of]
    heads = [head, *names, "mean of the others'", "of these above 0", "SE over pictures", "SE over artists"]
    rows = [
        [r["group"], *(f"({v:.0f})" if a == r["group"] else f"{round(v)}" for a, v in r["of"].items()),
         f"{r['mean']:.1f}", _share(r["positive"]), f"{r['se_pictures']:.1f}", f"{r['se_artists']:.1f}"]
        for r in of
    ]  # fmt: skip
    return _made(heads, rows)


def ways() -> str:
    """What other means over the artists would make of the offset."""
    record = read(NAME)
    if record is None:
        return UNKNOWN
    sets = list(dict.fromkeys(r["query_set"] for r in record["ways"]))
    found = {(r["way"], r["query_set"]): r for r in record["ways"]}
    heads = ["over the other artists", "weight", *(f"{s}: {m}" for s in sets for m in ("Top-1", "Spearman"))]
    rows = []
    for way in dict.fromkeys(r["way"] for r in record["ways"]):
        cells = [f"{found[way, s][m]:.2f}" for s in sets for m in ("top1", "spearman")]
        rows.append([way, f"{found[way, sets[0]]['weight']:.2f}", *cells])
    return _made(heads, rows)


RENDER = {
    "sizes_drops": drops,
    "sizes_nothing": nothing,
    "sizes_artists": lambda: artists("artists", "adapter of"),
    "sizes_oracle_artists": lambda: artists("oracle_artists", "retrained without"),
    "sizes_ways": ways,
}
