"""Costs, intervals, what was tried and the oracle's models as tables (for `readme.py`)."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
from scipy import stats

from experiments.benchmark.result_tables import DROP, LIVE
from experiments.logo.trainings import FIDELITY_EVERY
from experiments.tables import committed
from experiments.tables.committed import UNKNOWN, read, source, value
from guda_core.attribution import metrics
from guda_core.data.groups import load_group_set
from guda_core.unlearning.adapter_files import weights_file
from guda_core.unlearning.adapters import OFFSET

OFFSET_SHOWN = ("0.5", "1", "2")  # weights of the offset, of those that were tried
KINDS = ("logo", "logo-2")  # the oracle's scores, of the first seed and of the second


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
        asked = f"{r[query]:z.2f}" if r.get(query) is not None else ""
        stored = f"{r['stored_bytes'] / 1e6:.1f} MB" if r.get("stored_bytes") else ""
        lines.append(f"| {r['method']} | {made} | {cheaper} | {asked} | {stored} |")
    return "\n".join([*lines, "", source(record, name)])


def over_pictures(found: dict[str, float], queries: int) -> dict[str, float]:
    """A share of scorings with its interval for as many cases as there were pictures, where it is 0 or 1: records from
    before `scope_fit.share` did so took scorings of one picture for independent cases. Never a narrower one."""
    if found["value"] not in (0.0, 1.0):
        return found
    own = metrics.wilson(int(found["value"]) * queries, queries)
    return {**found, "low": min(found["low"], own["low"]), "high": max(found["high"], own["high"])}


def percent(share: float) -> str:
    """A share as percent, with a decimal below 1%."""
    return f"{100 * share:.1f}" if 0 < share < 0.01 else f"{100 * share:.0f}"


def intervals() -> str:
    """How often intervals cover the full budget's value."""
    record = read("intervals")
    if record is None:
        return UNKNOWN
    heads = (
        "effort",
        "query set",
        "interval covers the full budget's value",
        "first two separable, by the draws alone",
    )
    lines = [f"| {' | '.join(heads)} | in the wrong order |"]
    lines.append("|---|---|---|---|---|")
    for r in record["rows"]:
        keys = ("held", "told_apart", "told_apart_wrongly")
        cells = [_share(over_pictures(r[k], r["queries"])) if r[k] else "-" for k in keys]
        lines.append(f"| {r['effort']} | {r['query_set']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(record, "intervals")])


def _share(found: dict[str, float]) -> str:
    """As `value`, with a third digit for a share below 1% (0.00 is none)."""
    return value(found, 3) if 0 < found["value"] < 0.01 else value(found)


def intervals_said() -> str:
    """The same in a sentence."""
    record = read("intervals")
    if record is None:
        return UNKNOWN
    said, draws = [], record["config"]["draws"]
    for r in (r for r in record["rows"] if r["query_set"] == "all"):
        held = over_pictures(r["held"], r["queries"])
        wrong = r["told_apart_wrongly"] and over_pictures(r["told_apart_wrongly"], r["queries"])
        apart = (
            f" Of {wrong['n']} pairs that were called separable, {percent(wrong['value'])}% (up to "
            f"{percent(wrong['high'])}) were in the wrong order. They come from {r['queries']} pictures at most."
            if wrong
            else ""
        )
        many = f"{percent(held['value'])}% ({percent(held['low'])} to {percent(held['high'])})"
        said.append(
            f"Effort {r['effort']}: a 95% interval covers the value of {draws} draws a stratum in {many} of cases."
            f"{apart}"
        )
    return f"{' '.join(said)} {source(record, 'intervals')}"


def tuning(name: str) -> str:
    """What was tried, on the tuning half; a table for each oracle that it was held against."""
    record = read(f"{name}-tuning")
    if record is None:
        return UNKNOWN
    by_oracle: dict[str, list[dict[str, Any]]] = {}
    for r in record["rows"]:
        by_oracle.setdefault(r.get("oracle", "kept"), []).append(r)
    lines: list[str] = []
    for which, rows in sorted(by_oracle.items(), reverse=True):
        sets = [k for k, v in rows[0].items() if isinstance(v, dict) and "n" in v]
        later = any("variation" in r[s] for r in rows for s in sets)  # older rows do not have it
        heads = [f"{s}: {m}" for s in sets for m in ("Top-1", "MRR", "Spearman", *["Variation"] * later)]
        metrics = ("top1", "mrr", "spearman", *["variation"] * later)
        said = {"live": "settings, against the live oracle", "kept": "settings, against the earlier values"}[which]
        head = said if len(by_oracle) > 1 else "settings"
        lines += [f"| {head} | times cheaper | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
        for r in rows:
            cells = [f"{r[s][m]:.3f}" if m in r[s] else "" for s in sets for m in metrics]
            lines.append(f"| `{r['variant']}` | {r['times_cheaper']:.0f} | {' | '.join(cells)} |")
            for weight in OFFSET_SHOWN if "with_offset" in r else ():
                of = r["with_offset"][weight]
                cells = [f"{of[s][m]:.3f}" if m in of[s] else "" for s in sets for m in metrics]
                lines.append(f"| and {weight} x the offset |  | {' | '.join(cells)} |")
        lines.append("")
    n = ", ".join(f"{v['n']} {k}" for k, v in record["rows"][0].items() if isinstance(v, dict) and "n" in v)
    return "\n".join([*lines, f"Queries: {n}. {source(record, f'{name}-tuning')}"])


def offset() -> str:
    """The offset of GUDA's scores, beside what GUDA and the oracle say of other groups' real pictures."""
    ids = list(load_group_set("emoji").groups)
    paths = {g: committed.ADAPTERS / g / "health.json" for g in ids}
    health = {g: json.loads(p.read_text(encoding="utf-8")) for g, p in paths.items() if p.is_file()}
    parts = {g: h[OFFSET] for g, h in health.items() if h.get(OFFSET, {}).get("n", 0) > 1}
    queries = read("queries")
    arrays = committed.FOLDER / "styles-scores.npz"
    if set(parts) != set(ids) or queries is None or not arrays.is_file():
        return UNKNOWN
    with np.load(arrays) as z:
        if not {DROP, LIVE} <= set(z.files):
            return UNKNOWN
        drop, oracle_of = z[DROP], z[LIVE]
    heads = ("group", "mean drop on others' held-out pictures, nats (95%)", "pictures", "on others' real queries",
             "the oracle's there")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---|---|---|---|---|")
    others = []
    for k, g in enumerate(ids):
        at = [i for i, q in enumerate(queries["items"]) if q["set"] == "real" and g not in q["groups"]]
        others.append((float(drop[at, k].mean()), float(oracle_of[at, k].mean())))
        p = parts[g]
        mine, truth = (f"{round(v)}" for v in others[-1])  # an integer: never -0
        lines.append(f"| {g} | {p['mean']:.1f} ± {1.96 * p['se']:.1f} | {p['n']} | {mine} | {truth} |")
    truth = [t for _, t in others]
    alike = stats.spearmanr([parts[g]["mean"] for g in ids], truth)[0]
    note = f"Over the groups, it and the oracle's agree with a Spearman of {alike:z.2f}."
    fitted = (read("styles") or {}).get("offset_fit") or []
    if fitted:
        said = ", ".join(
            f"{r['weight']:z.2f} ({r['low']:z.2f} to {r['high']:z.2f}; {r['query_set']}, {r['n']} queries)"
            for r in fitted
        )
        note += (
            " Least-squares weight on the tuning half, relative to the committed one, with its 95% bootstrap interval"
        )
        note += f" over queries: {said}."
    return "\n".join(
        [*lines, "", f"{note} (`python -m guda_core unlearn`, `assets/runs/emoji/emoji/adapters/*/health.json`.)"]
    )


def weights() -> str:
    """How first places, MRR and order depend on the weight of the offset."""
    record = read("styles") or {}
    rows = record.get("offset_weights") or []
    if not rows:
        return UNKNOWN
    sets = list(dict.fromkeys(r["query_set"] for r in rows))
    heads = [f"{s}: {m}" for s in sets for m in ("Top-1", "MRR", "Spearman")]
    lines = [f"| times the committed weight | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for times in dict.fromkeys(r["times"] for r in rows):
        of = {r["query_set"]: r for r in rows if r["times"] == times}
        cells = [f"{of[s][m]:.3f}" for s in sets for m in ("top1", "mrr", "spearman")]
        lines.append(f"| {times:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"All queries. {source(record, 'styles')}"])


def targets() -> str:
    """How near each target comes to the retrained models; means over the groups."""
    record = read("targets")
    if record is None:
        return UNKNOWN
    rows = record["rows"]

    def mean(*path: str) -> float:
        return float(np.mean([functools.reduce(lambda d, k: d[k], path, r) for r in rows]))

    lines = [
        "| anchor | under the caption | goes as far (best: 1) | under the empty prompt: anchor | shift | between |"
    ]
    lines.append("|---|---|---|---|---|---|")
    lines.append(
        f"| none: as the full model | {mean('prompt', 'nothing'):.0f} |  | {mean('empty', 'nothing'):.0f} |  |  |"
    )
    for name in (n for n in rows[0]["prompt"] if n != "nothing"):
        kinds = " | ".join(f"{mean('empty', f'{kind}: {name}'):.0f}" for kind in ("anchor", "shift", "between"))
        lines.append(f"| {name} | {mean('prompt', name):.0f} | {mean('way_prompt', name):z.2f} | {kinds} |")
    n = sum(r["n"] for r in rows)
    return "\n".join([*lines, "", f"Nats, means over {len(rows)} groups, {n} pictures. {source(record, 'targets')}"])


def oracle() -> str:
    """The trainings of the styles' oracle whose values were kept."""
    lines = ["| training | seconds | date | weights (SHA-256) |", "|---|---|---|---|"]
    for path in sorted((committed.FOLDER / "oracle").glob("*.json")):
        r = json.loads(path.read_text(encoding="utf-8"))
        if not (t := r["training"]):  # the full model, whose training is told elsewhere
            continue
        lines.append(f"| {path.stem} | {t['seconds']:.0f} | {t['date'][:10]} | {r['weights_sha256'][:12]} |")
    return "\n".join(lines) if len(lines) > 2 else UNKNOWN


def _against(exact: np.ndarray, before: np.ndarray | None, error: np.ndarray | None, k: int) -> str:
    """Cells: Spearman of exact (Q,) with before[:, k], what moved less its mean (rms), and the sampling error (rms)."""
    if before is None or np.isnan(before[:, k]).any():
        return " |  | "
    rms = "" if error is None else f"{np.sqrt((error[:, k] ** 2).mean()):.0f}"
    return f"{stats.spearmanr(exact, before[:, k])[0]:.3f} | {(exact - before[:, k]).std():.0f} | {rms}"


def live() -> str:
    """What the LOGO models lose by delta compression: each group's scores over the pictures, and the groups' order."""
    paths = sorted(committed.LIVE.glob("*/health.json"))
    found = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in paths}
    if not found:
        return UNKNOWN
    with np.load(committed.FOLDER / "styles-scores.npz") as z:
        made = {k: z[k][::FIDELITY_EVERY].astype(float) for k in KINDS if k in z}
        error = {k: z[f"se/{k}"][::FIDELITY_EVERY].astype(float) for k in KINDS if f"se/{k}" in z}
    heads = ("without", "stored", "Spearman, compressed", "bias", "rms", "spread", "Spearman, trained before",
             "rms of the difference", "sampling error", "Spearman, second seed", "rms of the difference",
             "sampling error")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    ids = list(load_group_set("emoji").groups)
    for group, r in found.items():
        size = weights_file(committed.LIVE / group).stat().st_size / 1e6
        figures = " | ".join(f"{r[k]:.1f}" for k in ("bias", "rms", "sd"))
        others = " | ".join(_against(np.array(r["exact"]), made.get(k), error.get(k), ids.index(group)) for k in KINDS)
        lines.append(f"| {group} | {size:.1f} MB | {r['spearman']:.4f} | {figures} | {others} |")
    exact, coded = (np.array([r[k] for r in found.values()]).T for k in ("exact", "live"))
    first = next(iter(found.values()))
    note = f"{first['pictures']} pictures; bias, rms and spread in nats."
    if len(found) > 1:
        m = {k: float(metrics.METRICS[k](coded, exact).mean()) for k in ("top1", "spearman")}
        note += (
            f" Of {len(found)} groups the compressed models name the same first one on {m['top1']:.3f} of the "
            f"pictures; the order of the groups agrees with a mean Spearman of {m['spearman']:.3f}."
        )
    source_of = (
        f"(`{first['command']}`, {max(r['date'] for r in found.values())[:10]}, "
        "`assets/runs/emoji/emoji/oracle/*/health.json`.)"
    )
    return "\n".join([*lines, "", f"{note} {source_of}"])


RENDER = {
    "costs": lambda: costs("costs"),
    "intervals": intervals,
    "intervals_said": intervals_said,
    "digits_costs": lambda: costs("digits"),
    "digits_tuning": lambda: tuning("digits"),
    "styles_tuning": lambda: tuning("styles"),
    "styles_offset": offset,
    "styles_weights": weights,
    "styles_targets": targets,
    "styles_oracle": oracle,
    "styles_live": live,
}
