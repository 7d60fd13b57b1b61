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
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from experiments.benchmark.fair import OFFSET_ALONE
from experiments.benchmark.result_tables import GUDA, WITH_OFFSET, is_barely, lead
from experiments.tables import measured
from experiments.tables.committed import UNKNOWN, read, source, value
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


def table(name: str, rows_key: str = "rows") -> str:
    """Every method and query set of one benchmark."""
    record = read(name)
    if record is None or not record.get(rows_key):
        return UNKNOWN
    metrics = {k: v for k, v in METRICS.items() if k in record[rows_key][0]}
    lines = []
    for query_set in dict.fromkeys(r["query_set"] for r in record[rows_key]):
        rows = labelled(ordered([r for r in record[rows_key] if r["query_set"] == query_set]))
        lines += [f"**{query_set}** ({rows[0]['n']} queries; 95% intervals over queries)", ""]
        for head, part in (
            ("method", [r for r in rows if "/" not in r["method"]]),
            ("ablations: other scores from the same values", [r for r in rows if "/" in r["method"]]),
        ):
            if not part:
                continue
            lines += [f"| {head} | {' | '.join(metrics.values())} |", "|---|" + "---|" * len(metrics)]
            for r in part:
                lines.append(f"| {r['method']} | {' | '.join(value(r[k]) for k in metrics)} |")
            lines.append("")
    return "\n".join([*lines, source(record, name)])


def differences(name: str, rows_key: str = "differences") -> str:
    """Paired differences of our methods to the others in Top-1 and in both variations, a table each; beside each
    interval over pictures that over artists, where it is known."""
    record = read(name)
    if record is None or not record.get(rows_key):
        return UNKNOWN
    lines: list[str] = []
    for metric in COMPARED:
        rows = [r for r in record[rows_key] if r["metric"] == metric and "/" not in r["second"]]
        sets = list(dict.fromkeys(r["query_set"] for r in rows))
        found = {(r["first"], r["second"], r["query_set"]): _over_both(r) for r in rows}
        for first in dict.fromkeys(r["first"] for r in rows):
            lines += [""] if lines else []
            lines += [
                f"| {METRICS[metric]} of {first} minus that of | {' | '.join(sets)} |",
                "|---|" + "---|" * len(sets),
            ]
            for second in dict.fromkeys(r["second"] for r in rows if r["first"] == first):
                lines.append(f"| {second} | {' | '.join(found.get((first, second, s), '') for s in sets)} |")
    return "\n".join([*lines, "", source(record, name)])


def leads(name: str) -> str:
    """Where our methods are clearly ahead of others over pictures (if barely, that too), level with them, or clearly
    behind (`lead`, `is_barely`): a table for Top-1 and one for each variation. In the plain one, where the offset
    changes nothing, its rows are left out."""
    record = read(name)
    if record is None or not record.get("differences"):
        return UNKNOWN
    lines: list[str] = []
    for metric in COMPARED:
        rows = [r for r in record["differences"] if r["metric"] == metric and "/" not in r["second"]]
        rows = [r for r in rows if metric != "variation" or "offset" not in r["first"] + r["second"]]
        firsts, sets = (list(dict.fromkeys(r[k] for r in rows)) for k in ("first", "query_set"))
        found = {(r["first"], r["second"], r["query_set"]): "barely " * is_barely(r) + lead(r) for r in rows}
        lines += [""] if lines else []
        lines += [f"| {METRICS[metric]}, against | {' | '.join(f'{f}, {s}' for f in firsts for s in sets)} |"]
        lines += ["|---|" + "---|" * len(firsts) * len(sets)]
        for second in dict.fromkeys(r["second"] for r in rows):
            lines.append(f"| {second} | {' | '.join(found.get((f, second, s), '') for f in firsts for s in sets)} |")
    return "\n".join([*lines, "", source(record, name)])


def _over_both(row: dict[str, Any]) -> str:
    said, of = [value(row)], row.get("artists")
    if "p" in row:
        alone = f"{row['only_first']} against {row['only_second']}, " if "only_first" in row else ""
        said.append(f"{alone}p = {row['p']:.2g}")
    return "; ".join([*said, *([f"artists {of['low']:z.2f} to {of['high']:z.2f}"] if of else [])])


def apart(rows_key: str, kinds: dict[str, str], name: str = "styles") -> str:
    """Top-1 on the styles, apart for two kinds of queries. kinds: key of a row -> the head of its columns."""
    record = read(name)
    if record is None or not record.get(rows_key):
        return UNKNOWN
    rows = record[rows_key]
    sets = list(dict.fromkeys(r["query_set"] for r in rows))
    found = {(r["method"], r["query_set"], k): r[k] for r in rows for k in kinds}
    of = {(s, k): next(v["n"] for (_, s2, k2), v in found.items() if (s2, k2) == (s, k)) for s in sets for k in kinds}
    heads = [f"{s}: {label} ({of[s, k]})" for s in sets for k, label in kinds.items()]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method in dict.fromkeys(r["method"] for r in rows):
        cells = [found[method, s, k]["top1"] for s in sets for k in kinds]
        lines.append(f"| {method} | {' | '.join(value(c) if c else '-' for c in cells)} |")
    return "\n".join([*lines, "", source(record, name)])


def if_calibrated() -> str:
    """Top-1 as it is, and with each group's scores put on the oracle's scale."""
    record = read("styles")
    if record is None or not record.get("if_calibrated"):
        return UNKNOWN
    rows = {(r["method"], r["query_set"]): r for r in record["if_calibrated"]}
    sets = list(dict.fromkeys(s for _, s in rows))
    n = {s: next(r["n"] for (_, own), r in rows.items() if own == s) for s in sets}
    heads = [f"{s} ({n[s]}): {label}" for s in sets for label in ("as it is", "calibrated")]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method in dict.fromkeys(m for m, _ in rows):
        cells = [value(rows[method, s][k]) for s in sets for k in ("as_is", "calibrated")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(record, "styles")])


def of_others() -> str:
    """What retraining without a group costs the other groups' pictures, by either seed of the oracle."""
    record = read("styles")
    if record is None or not record.get("of_others"):
        return UNKNOWN
    lines = [
        "| retrained without | query set | queries | first seed, nats | second seed, nats | SD of the difference |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for r in sorted(record["of_others"], key=lambda r: r["query_set"]):
        figures = " | ".join(f"{r[k]:.0f}" for k in ("n", "first", "second", "difference_sd"))
        lines.append(f"| {r['group']} | {r['query_set']} | {figures} |")
    return "\n".join([*lines, "", source(record, "styles")])


def first_places() -> str:
    """On how many queries each group is named first, by the oracle and by some methods; in brackets, wrongly."""
    record = read("styles")
    if record is None or not record.get("first_places"):
        return UNKNOWN
    rows = record["first_places"]
    names = list(rows[0]["named"])
    lines = [
        f"| group | query set | queries | oracle | {' | '.join(names)} |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    for r in sorted(rows, key=lambda r: r["query_set"]):
        cells = [f"{first} ({wrong})" for first, wrong in r["named"].values()]
        lines.append(f"| {r['group']} | {r['query_set']} | {r['n']} | {r['oracle']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(record, "styles")])


def by_group() -> str:
    """How much each group stands out on its own pictures, by the oracle and by GUDA."""
    record = read("styles")
    if record is None or not record.get("by_group"):
        return UNKNOWN
    lines = ["| group | query set | queries | the oracle names it first | its excess, oracle, nats | GUDA, nats |"]
    lines.append("|---|---|---|---|---|---|")
    for r in sorted(record["by_group"], key=lambda r: r["query_set"]):
        excess = " | ".join(f"{r['excess'][m]:.0f}" if m in r["excess"] else "" for m in ("logo", WITH_OFFSET))
        lines.append(f"| {r['group']} | {r['query_set']} | {r['n']} | {r['first']:z.2f} | {excess} |")
    return "\n".join([*lines, "", source(record, "styles")])


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


def short() -> str:
    """For the README: variation and Top-1 on the styles at the fresh queries, and the cost."""
    record, costs = read(FRESH), read("costs")
    if record is None:
        return UNKNOWN
    rows = {(r["method"], r["query_set"]): r for r in record["rows"]}
    sets = list(dict.fromkeys(s for _, s in rows))
    heads = [f"{METRICS[m]}, {s} ({rows['guda', s]['n']})" for m in ("variation", "top1") for s in sets]
    lines = [f"| method | {' | '.join(heads)} | cheaper |", "|---|" + "---|" * (len(heads) + 1)]
    for method in SHORT:
        cells = [_close(rows[method, s][m]) for m in ("variation", "top1") for s in sets]
        lines.append(f"| {method} | {' | '.join(cells)} | {cheaper(method, (costs or {}).get('costs', []))} |")
    return "\n".join([*lines, "", source(record, FRESH)])


def _close(v: dict[str, float]) -> str:
    """A value with its interval, in few characters."""
    value, low, high = (f"{v[k]:z.2f}".replace("0.", ".", 1) for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


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
    lines = [f"| Top-1 agreement with LOGO | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method, own in cells.items():
        there = {b for b in benches for n in own if n.startswith(f"{b}, ")}  # a cost without a row would be another's
        of = [cheaper(method, costs[b].get("costs", [])) if b in there else "" for b in benches]
        row = [*[own.get(n, "") for n in names], *of]
        lines.append(f"| {method} | {' | '.join(row)} |")
    missing = [b for b in records if records[b] is None]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)} (its oracle is still being trained)."]
    note = "`guda` is GUDA-C on the styles; on the digits it is GUDA-U with our smoothed ReTrack target"
    note += " (there `guda-retrack`), and with the paper's K and weight `guda-retrack-unsmoothed`."
    sources = [note, *[source(record, b) for b, record in records.items() if record is not None]]
    return "\n".join([*lines, "", " ".join(sources)])


MISSED = {"named": "the oracle names it", "other": "another"}
CLEAR = {"clear": "a clear lead", "not": "none"}
SEPARABLE = {"separable": "separable", "not": "not separable"}
RENDER = {
    "agreement": summary,
    "agreement_short": short,
    "styles": lambda: table("styles"),
    "styles_fresh": lambda: table(FRESH),
    "styles_fresh_leads": lambda: leads(FRESH),
    "styles_fresh_differences": lambda: differences(FRESH),
    "styles_fresh_where_clear": lambda: apart("where_clear", CLEAR, FRESH),
    "styles_fresh_where_separable": lambda: apart("where_separable", SEPARABLE, FRESH),
    "styles_fresh_where_missed": lambda: apart("where_missed", MISSED, FRESH),
    "styles_report": lambda: table("styles", "rows_report"),
    "styles_where_missed": lambda: apart("where_missed", MISSED),
    "styles_where_separable": lambda: apart("where_separable", SEPARABLE),
    "styles_where_unsure": lambda: apart("where_unsure", {"same": "both seeds agree", "different": "they do not"}),
    "styles_where_unsure_again": lambda: apart(
        "where_unsure_again", {"same": "both agree", "different": "they do not"}
    ),
    "styles_mean_again": lambda: table("styles", "rows_mean_again"),
    "styles_mean_again_differences": lambda: differences("styles", "differences_mean_again"),
    "styles_mean": lambda: table("styles", "rows_mean"),
    "styles_mean_differences": lambda: differences("styles", "differences_mean"),
    "styles_by_group": by_group,
    "styles_first_places": first_places,
    "styles_if_calibrated": if_calibrated,
    "styles_of_others": of_others,
    "styles_differences": lambda: differences("styles"),
    "styles_differences_report": lambda: differences("styles", "differences_report"),
    "digits": lambda: table("digits"),
    "digits_differences": lambda: differences("digits"),
    "digits_report": lambda: table("digits", "rows_report"),
    "digits_differences_report": lambda: differences("digits", "differences_report"),
    "digits_quick": lambda: table("digits-quick"),
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
