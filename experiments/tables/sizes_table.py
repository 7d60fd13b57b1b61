"""How large scores are, and on whose pictures, as tables for the pages (`experiments.score_sizes`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from experiments.tables.committed import Lines, table


def _share(x: float) -> str:
    return f"{100 * x:.0f}%"


def drops(record: Mapping[str, Any]) -> Lines:
    """The mean scores of the oracle and of GUDA, by draw and query set."""
    yield ["draw", "query set", "queries", "oracle, nats", "GUDA's drop, nats", "times", "oracle's above 0"]
    for draw, of in record["sizes"].items():
        for r in of:
            means = [f"{r['oracle']:.0f}", f"{r['guda']:.0f}", f"{r['times']:.1f}"]
            yield [draw, r["query_set"], r["n"], *means, _share(r["oracle_positive"])]


def nothing(record: Mapping[str, Any]) -> Lines:
    """What a retraining "scores" that left nothing out."""
    yield ["query set", "queries", "drop with nothing left out, nats", "above 0"]
    for r in record["nothing"]:
        yield [r["query_set"], r["n"], f"{r['drop']:.0f}", _share(r["positive"])]


def artists(record: Mapping[str, Any], key: str, head: str) -> Lines:
    """The mean drop of each group's adapter, or retrained model, on each artist's real pictures."""
    names = [r["group"] for r in record[key]]
    yield [head, *names, "mean of the others'", "of these above 0", "SE over pictures", "SE over artists"]
    for r in record[key]:
        means = [f"({v:.0f})" if a == r["group"] else f"{round(v)}" for a, v in r["of"].items()]
        errors = [f"{r[k]:.1f}" for k in ("se_pictures", "se_artists")]
        yield [r["group"], *means, f"{r['mean']:.1f}", _share(r["positive"]), *errors]


def ways(record: Mapping[str, Any]) -> Lines:
    """What other means over the artists would make of the offset."""
    found = {(r["way"], r["query_set"]): r for r in record["ways"]}
    names, sets = (list(dict.fromkeys(k[i] for k in found)) for i in (0, 1))
    yield ["over the other artists", "weight", *(f"{s}: {m}" for s in sets for m in ("Top-1", "Spearman"))]
    for way in names:
        cells = [f"{found[way, s][m]:z.2f}" for s in sets for m in ("top1", "spearman")]
        yield [way, f"{found[way, sets[0]]['weight']:z.2f}", *cells]


TABLES = {
    "sizes_drops": drops,
    "sizes_nothing": nothing,
    "sizes_artists": partial(artists, key="artists", head="adapter of"),
    "sizes_oracle_artists": partial(artists, key="oracle_artists", head="retrained without"),
    "sizes_ways": ways,
}
RENDER = {name: table("sizes")(lines) for name, lines in TABLES.items()}
