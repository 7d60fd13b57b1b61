"""Agreement with the oracle as tables (for `readme.py`) and as pictures: `python benchmarks/agreement.py` writes
docs/styles.png and docs/digits.png from assets/benchmarks/*.json.

What has not been measured says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from guda_core import charts  # noqa: E402

FOLDER = ROOT / "assets" / "benchmarks"
METRICS = {"top1": "Top-1", "mrr": "MRR", "ndcg3_exponential": "NDCG@3", "spearman": "Spearman"}
UNKNOWN = "Not measured yet."


def read(name: str) -> dict[str, Any] | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def value(v: dict[str, float], digits: int = 2) -> str:
    return f"{v['value']:.{digits}f} ({v['low']:.{digits}f} to {v['high']:.{digits}f})"


def source(record: dict[str, Any], name: str) -> str:
    return f"(`{record['command']}`, {record['date'][:10]}, `assets/benchmarks/{name}.json`.)"


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ceiling first, then by falling Top-1."""
    return sorted(rows, key=lambda r: (r["method"] != "ceiling", -r["top1"]["value"], r["method"]))


def table(name: str, rows_key: str = "rows") -> str:
    """Every method and query set of one benchmark."""
    record = read(name)
    if record is None:
        return UNKNOWN
    metrics = {k: v for k, v in METRICS.items() if k in record[rows_key][0]}
    lines = []
    for query_set in dict.fromkeys(r["query_set"] for r in record[rows_key]):
        rows = ordered([r for r in record[rows_key] if r["query_set"] == query_set])
        lines += [f"**{query_set}** ({rows[0]['n']} queries; 95% bootstrap intervals over queries)", ""]
        lines += [f"| method | {' | '.join(metrics.values())} |", "|---|" + "---|" * len(metrics)]
        for r in rows:
            of = f" ({r['groups']} groups)" if r["groups"] < max(x["groups"] for x in rows) else ""
            lines.append(f"| {r['method']}{of} | {' | '.join(value(r[k]) for k in metrics)} |")
        lines.append("")
    return "\n".join([*lines, source(record, name)])


def differences(name: str, rows_key: str = "differences") -> str:
    """Paired differences of our method to the others in Top-1."""
    record = read(name)
    if record is None:
        return UNKNOWN
    rows = [r for r in record[rows_key] if r["metric"] == "top1"]
    sets = list(dict.fromkeys(r["query_set"] for r in rows))
    found = {(r["second"], r["query_set"]): value(r) for r in rows}
    first = rows[0]["first"] if rows else "guda"
    lines = [f"| Top-1 of {first} minus that of | {' | '.join(sets)} |", "|---|" + "---|" * len(sets)]
    for second in dict.fromkeys(r["second"] for r in rows):
        lines.append(f"| {second} | {' | '.join(found.get((second, s), '') for s in sets)} |")
    return "\n".join([*lines, "", source(record, name)])


def costs(name: str) -> str:
    """Precompute, query and storage. styles: seconds by the clock, in turns; digits: CPU seconds of all threads."""
    record = read(name)
    if record is None:
        return UNKNOWN
    cpu = name != "costs"
    unit = "CPU seconds" if cpu else "seconds"
    once, query = ("precompute_cpu_s", "query_cpu_s") if cpu else ("precompute_s", "query_s")
    lines = [f"| method | precompute, {unit} | times cheaper than retraining | one query, {unit} | stored |"]
    lines.append("|---|---|---|---|---|")
    for r in record["costs"]:
        made = f"{r[once]:.0f}" if r.get(once) is not None else ""
        cheaper = f"{r['times_cheaper']:.0f}" if r.get("times_cheaper") is not None else ""
        asked = f"{r[query]:.2f}" if r.get(query) is not None else ""
        stored = f"{r['stored_bytes'] / 1e6:.1f} MB" if r.get("stored_bytes") else ""
        lines.append(f"| {r['method']} | {made} | {cheaper} | {asked} | {stored} |")
    return "\n".join([*lines, "", source(record, name)])


def intervals() -> str:
    """How often intervals hold the full budget's value."""
    record = read("intervals")
    if record is None:
        return UNKNOWN
    lines = ["| effort | query set | interval holds the full budget's value | first two told apart | wrongly so |"]
    lines.append("|---|---|---|---|---|")
    for r in record["rows"]:
        wrong = value(r["told_apart_wrongly"]) if r["told_apart_wrongly"] else "-"
        lines.append(f"| {r['effort']} | {r['query_set']} | {value(r['held'])} | {value(r['told_apart'])} | {wrong} |")
    return "\n".join([*lines, "", source(record, "intervals")])


RENDER = {
    "styles": lambda: table("styles"),
    "styles_report": lambda: table("styles", "rows_report"),
    "styles_differences": lambda: differences("styles"),
    "styles_differences_report": lambda: differences("styles", "differences_report"),
    "costs": lambda: costs("costs"),
    "intervals": intervals,
    "digits": lambda: table("digits"),
    "digits_differences": lambda: differences("digits"),
    "digits_costs": lambda: costs("digits"),
    "digits_quick": lambda: table("digits-quick"),
}


def main() -> None:
    for name in ("styles", "digits"):
        record = read(name)
        if record is not None:
            png = charts.agreement_png(ordered(record["rows"]), "top1", "Top-1 agreement with LOGO")
            (ROOT / "docs" / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main()
