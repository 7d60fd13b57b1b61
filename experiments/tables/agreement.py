"""Agreement with the oracle as tables (for `readme.py`) and as pictures: `python -m experiments.tables.agreement`
writes docs/styles.png and docs/digits.png from assets/benchmarks/*.json.

What has not been measured says so.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from experiments.benchmark.fair import OFFSET_ALONE
from experiments.benchmark.result_tables import GUDA, WITH_OFFSET, is_barely, lead
from experiments.tables import measured
from experiments.tables.committed import UNKNOWN, Lines, ends, read, source, table, value, written
from guda_core.paths import ROOT
from guda_core.reports import figures
from guda_core.reports.agreement_rows import is_ceiling, labelled

METRICS = {"top1": "Top-1", "mrr": "MRR", "ndcg3_exponential": "NDCG@3", "spearman": "Spearman",
           "variation": "Variation", "variation_standardised": "Variation, standardised",
           "variation_others": "Variation, others' pictures"}  # fmt: skip
COMPARED = ("top1", "variation", "variation_standardised")


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ceilings first, then by falling Top-1."""
    return sorted(rows, key=lambda r: (not is_ceiling(r["method"]), -r["top1"]["value"], r["method"]))


Rows = list[dict[str, Any]]


def every(found: Rows) -> Lines:
    """Every method and query set of one benchmark."""
    metrics = {k: v for k, v in METRICS.items() if k in found[0]}
    for query_set in dict.fromkeys(r["query_set"] for r in found):
        rows = labelled(ordered([r for r in found if r["query_set"] == query_set]))
        yield f"**{query_set}** ({rows[0]['n']} queries; 95% intervals over queries)"
        for head, part in (
            ("method", [r for r in rows if "/" not in r["method"]]),
            ("ablations: other scores from the same values", [r for r in rows if "/" in r["method"]]),
        ):
            if part:
                yield from ["", [head, *metrics.values()]]
                yield from ([r["method"], *(value(r[k]) for k in metrics)] for r in part)


def differences(found: Rows) -> Lines:
    """Paired differences of our methods to the others in Top-1 and in both variations, a table each; beside each
    interval over pictures that over artists, where it is known."""
    for metric in COMPARED:
        rows = [r for r in found if r["metric"] == metric and "/" not in r["second"]]
        sets = list(dict.fromkeys(r["query_set"] for r in rows))
        cells = {(r["first"], r["second"], r["query_set"]): _over_both(r) for r in rows}
        for first in dict.fromkeys(r["first"] for r in rows):
            yield from ["", [f"{METRICS[metric]} of {first} minus that of", *sets]]
            for second in dict.fromkeys(r["second"] for r in rows if r["first"] == first):
                yield [second, *(cells.get((first, second, s), "") for s in sets)]


def leads(found: Rows) -> Lines:
    """Where our methods are clearly ahead of others over pictures (if barely, that too), level with them, or clearly
    behind (`lead`, `is_barely`): a table for Top-1 and one for each variation. In the plain one, where the offset
    changes nothing, its rows are left out."""
    for metric in COMPARED:
        rows = [r for r in found if r["metric"] == metric and "/" not in r["second"]]
        rows = [r for r in rows if metric != "variation" or "offset" not in r["first"] + r["second"]]
        firsts, sets = (list(dict.fromkeys(r[k] for r in rows)) for k in ("first", "query_set"))
        cells = {(r["first"], r["second"], r["query_set"]): "barely " * is_barely(r) + lead(r) for r in rows}
        yield from ["", [f"{METRICS[metric]}, against", *(f"{f}, {s}" for f in firsts for s in sets)]]
        for second in dict.fromkeys(r["second"] for r in rows):
            yield [second, *(cells.get((f, second, s), "") for f in firsts for s in sets)]


def _over_both(row: dict[str, Any]) -> str:
    said, of = [value(row)], row.get("artists")
    if "p" in row:
        alone = f"{row['only_first']} against {row['only_second']}, " if "only_first" in row else ""
        said.append(f"{alone}p = {row['p']:.2g}")
    return "; ".join([*said, *([f"artists {ends(of)}"] if of else [])])


def apart(rows: Rows, kinds: dict[str, str]) -> Lines:
    """Top-1 on the styles, apart for two kinds of queries. kinds: key of a row -> the head of its columns."""
    sets = list(dict.fromkeys(r["query_set"] for r in rows))
    found = {(r["method"], r["query_set"], k): r[k] for r in rows for k in kinds}
    of = {(s, k): next(v["n"] for (_, s2, k2), v in found.items() if (s2, k2) == (s, k)) for s in sets for k in kinds}
    yield ["method", *(f"{s}: {label} ({of[s, k]})" for s in sets for k, label in kinds.items())]
    for method in dict.fromkeys(r["method"] for r in rows):
        cells = [found[method, s, k]["top1"] for s in sets for k in kinds]
        yield [method, *(value(c) if c else "-" for c in cells)]


@table("styles", "if_calibrated")
def if_calibrated(found: Rows) -> Lines:
    """Top-1 as it is, and with each group's scores put on the oracle's scale."""
    rows = {(r["method"], r["query_set"]): r for r in found}
    sets = list(dict.fromkeys(s for _, s in rows))
    n = {s: next(r["n"] for (_, own), r in rows.items() if own == s) for s in sets}
    yield ["method", *(f"{s} ({n[s]}): {label}" for s in sets for label in ("as it is", "calibrated"))]
    for method in dict.fromkeys(m for m, _ in rows):
        yield [method, *(value(rows[method, s][k]) for s in sets for k in ("as_is", "calibrated"))]


@table("styles", "of_others")
def of_others(rows: Rows) -> Lines:
    """What retraining without a group costs the other groups' pictures, by either seed of the oracle."""
    yield "retrained without", "query set", "queries", "first seed, nats", "second seed, nats", "SD of the difference"
    for r in sorted(rows, key=lambda r: r["query_set"]):
        yield [r["group"], r["query_set"], *(f"{r[k]:.0f}" for k in ("n", "first", "second", "difference_sd"))]


@table("styles", "first_places")
def first_places(rows: Rows) -> Lines:
    """On how many queries each group is named first, by the oracle and by some methods; in brackets, wrongly."""
    yield ["group", "query set", "queries", "oracle", *rows[0]["named"]]
    for r in sorted(rows, key=lambda r: r["query_set"]):
        cells = [f"{first} ({wrong})" for first, wrong in r["named"].values()]
        yield [r["group"], r["query_set"], r["n"], r["oracle"], *cells]


@table("styles", "by_group")
def by_group(rows: Rows) -> Lines:
    """How much each group stands out on its own pictures, by the oracle and by GUDA."""
    yield "group", "query set", "queries", "the oracle names it first", "its excess, oracle, nats", "GUDA, nats"
    for r in sorted(rows, key=lambda r: r["query_set"]):
        excess = (f"{r['excess'][m]:.0f}" if m in r["excess"] else "" for m in ("logo", WITH_OFFSET))
        yield [r["group"], r["query_set"], r["n"], f"{r['first']:z.2f}", *excess]


SUMMARY = (("digits", "generated"), ("digits", "held_out"), ("styles", "generated"), ("styles", "generated-blend"),
           ("styles", "real"))  # fmt: skip


OURS = {"guda-retrack": "guda"}  # a method's name in the summary, where it is not that of the bench


FRESH = "fresh/styles"  # the table of the fresh queries
SHORT = ("guda", "guda + offset", "das", "das + offset", "dtrak", "combined", "clip-mean", "label",
         "offset alone", "random")  # fmt: skip


def cheaper(method: str, costs: Iterable[Mapping[str, Any]]) -> str:
    """How many times less than retraining a row's precompute takes; "" where that is not known. A row that holds the
    offset also needs GUDA's adapters and their offset. costs: of one bench's record."""
    times = {OURS.get(r["method"], r["method"]): r["times_cheaper"] for r in costs if r.get("times_cheaper")}
    own, _, more = method.partition(" + ")
    parts = {GUDA} if own == OFFSET_ALONE else {"clip" if own.startswith("clip-") else own, *[GUDA] * bool(more)}
    return f"{1 / sum(1 / times[p] for p in parts):.0f}x" if parts <= set(times) else ""


@table(FRESH, "rows")
def short(found: Rows) -> Lines:
    """For the README: variation and Top-1 on the styles at the fresh queries, and the cost."""
    rows, costs = {(r["method"], r["query_set"]): r for r in found}, (read("costs") or {}).get("costs", [])
    sets = list(dict.fromkeys(s for _, s in rows))
    columns = [(m, s) for m in ("variation", "top1") for s in sets]
    yield ["method", *(f"{METRICS[m]}, {s} ({rows['guda', s]['n']})" for m, s in columns), "cheaper"]
    for method in SHORT:
        yield [method, *(_close(rows[method, s][m]) for m, s in columns), cheaper(method, costs)]


def _close(v: dict[str, float]) -> str:
    """A value with its interval, in few characters."""
    return value(v).replace("0.", ".")


def summary() -> str:
    """Top-1 of every method on every query set of both benches, and how much cheaper than retraining it is.

    Other ways to make scores from the same values (names with a "/") are left to the page of all tables."""
    records = {bench: read(bench) for bench in dict.fromkeys(b for b, _ in SUMMARY)}
    columns = [(b, s) for b, s in SUMMARY if records[b] is not None]
    if not columns:
        return UNKNOWN
    cells: dict[str, dict[str, str]] = {}
    for bench, query_set in columns:
        record = records[bench]
        assert record is not None
        for r in ordered([r for r in record["rows"] if r["query_set"] == query_set]):
            if "/" not in r["method"]:
                name = OURS.get(r["method"], r["method"])
                of = f", {r['groups']} groups" if r["groups"] < max(x["groups"] for x in record["rows"]) else ""
                cells.setdefault(name, {})[f"{bench}, {query_set}"] = value(r["top1"]) + of
    costs = {"digits": records["digits"] or {}, "styles": read("costs") or {}}
    benches = list(dict.fromkeys(b for b, _ in columns))
    names = [f"{b}, {s}" for b, s in columns]
    heads = [*names, *[f"precompute against retraining, {b}" for b in benches]]
    lines: list[Any] = [["Top-1 agreement with LOGO", *heads]]
    for method, own in cells.items():
        there = {b for b in benches for n in own if n.startswith(f"{b}, ")}  # a cost without a row would be another's
        of = [cheaper(method, costs[b].get("costs", [])) if b in there else "" for b in benches]
        lines.append([method, *(own.get(n, "") for n in names), *of])
    missing = [b for b in records if records[b] is None]
    if missing:
        lines.append(f"Not measured yet: {', '.join(missing)} (its oracle is still being trained).")
    note = "`guda` is GUDA-C on the styles; on the digits it is GUDA-U with our smoothed ReTrack target"
    note += " (there `guda-retrack`), and with the paper's K and weight `guda-retrack-unsmoothed`."
    sources = [note, *[source(record, b) for b, record in records.items() if record is not None]]
    return written([*lines, " ".join(sources)])


MISSED = {"named": "the oracle names it", "other": "another"}
CLEAR = {"clear": "a clear lead", "not": "none"}
SEPARABLE = {"separable": "separable", "not": "not separable"}
RENDER = {
    "agreement": summary,
    "agreement_short": short,
    "styles": table("styles", "rows")(every),
    "styles_fresh": table(FRESH, "rows")(every),
    "styles_fresh_leads": table(FRESH, "differences")(leads),
    "styles_fresh_differences": table(FRESH, "differences")(differences),
    "styles_fresh_where_clear": table(FRESH, "where_clear")(partial(apart, kinds=CLEAR)),
    "styles_fresh_where_separable": table(FRESH, "where_separable")(partial(apart, kinds=SEPARABLE)),
    "styles_fresh_where_missed": table(FRESH, "where_missed")(partial(apart, kinds=MISSED)),
    "styles_report": table("styles", "rows_report")(every),
    "styles_where_missed": table("styles", "where_missed")(partial(apart, kinds=MISSED)),
    "styles_where_separable": table("styles", "where_separable")(partial(apart, kinds=SEPARABLE)),
    "styles_where_unsure": table("styles", "where_unsure")(
        partial(apart, kinds={"same": "both seeds agree", "different": "they do not"})
    ),
    "styles_where_unsure_again": table("styles", "where_unsure_again")(
        partial(apart, kinds={"same": "both agree", "different": "they do not"})
    ),
    "styles_mean_again": table("styles", "rows_mean_again")(every),
    "styles_mean_again_differences": table("styles", "differences_mean_again")(differences),
    "styles_mean": table("styles", "rows_mean")(every),
    "styles_mean_differences": table("styles", "differences_mean")(differences),
    "styles_by_group": by_group,
    "styles_first_places": first_places,
    "styles_if_calibrated": if_calibrated,
    "styles_of_others": of_others,
    "styles_differences": table("styles", "differences")(differences),
    "styles_differences_report": table("styles", "differences_report")(differences),
    "digits": table("digits", "rows")(every),
    "digits_differences": table("digits", "differences")(differences),
    "digits_report": table("digits", "rows_report")(every),
    "digits_differences_report": table("digits", "differences_report")(differences),
    "digits_quick": table("digits-quick", "rows")(every),
    **measured.RENDER,
}


PLOTTED, ROWS = ("styles", "digits"), "rows_sha256"  # the benches with a plot, and where a plot says what it shows


def plotted(name: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of a bench's plot, and their hash, which the plot holds: `ROWS` of the PNG's text."""
    record = read(name)
    rows = labelled(ordered([r for r in record["rows"] if "/" not in r["method"]])) if record else []
    return rows, hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name in PLOTTED:
        rows, sha256 = plotted(name)
        if rows:
            png = figures.agreement_png(rows, "top1", "Top-1 agreement with LOGO", ours="guda")
            text = PngInfo()
            text.add_text(ROWS, sha256)
            with Image.open(io.BytesIO(png)) as im:
                im.save(ROOT / "docs" / f"{name}.png", pnginfo=text)


if __name__ == "__main__":
    main()
