"""Costs, intervals, what was tried and the oracle's models as tables (for `readme.py`)."""

from __future__ import annotations

import json
from functools import partial, reduce
from typing import Any

import numpy as np
from scipy import stats

from experiments.benchmark.result_tables import DROP, LIVE
from experiments.logo.trainings import FIDELITY_EVERY
from experiments.tables import committed
from experiments.tables.committed import UNKNOWN, Lines, ends, read, table, value, written
from guda_core.attribution import metrics
from guda_core.data.groups import load_group_set
from guda_core.unlearning.adapter_files import weights_file
from guda_core.unlearning.adapters import OFFSET

OFFSET_SHOWN = ("0.5", "1", "2")  # weights of the offset, of those that were tried
KINDS = ("logo", "logo-2")  # the oracle's scores, of the first seed and of the second


def costs(rows: list[dict[str, Any]], cpu: bool) -> Lines:
    """Precompute, query and storage. styles: seconds by the clock, in turns; digits: CPU seconds of all threads."""
    unit = "CPU seconds" if cpu else "seconds"
    once, query = ("precompute_cpu_s", "query_cpu_s") if cpu else ("precompute_s", "query_s")
    yield "method", f"precompute, {unit}", "times cheaper than retraining", f"one query, {unit}", "stored"
    for r in rows:
        made = f"{r[once]:.0f}" if r.get(once) is not None else ""
        cheaper = f"{r['times_cheaper']:.0f}" if r.get("times_cheaper") is not None else ""
        asked = f"{r[query]:z.2f}" if r.get(query) is not None else ""
        stored = f"{r['stored_bytes'] / 1e6:.1f} MB" if r.get("stored_bytes") else ""
        yield r["method"], made, cheaper, asked, stored


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


@table("intervals", "rows")
def intervals(rows: list[dict[str, Any]]) -> Lines:
    """How often intervals cover the full budget's value."""
    yield ("effort", "query set", "interval covers the full budget's value", "first two separable, by the draws alone",
           "in the wrong order")  # fmt: skip
    for r in rows:
        keys = ("held", "told_apart", "told_apart_wrongly")
        cells = [_share(over_pictures(r[k], r["queries"])) if r[k] else "-" for k in keys]
        yield [r["effort"], r["query_set"], *cells]


def _share(found: dict[str, float]) -> str:
    """As `value`, with a third digit for a share below 1% (0.00 is none)."""
    return value(found, 3) if 0 < found["value"] < 0.01 else value(found)


@table("intervals")
def intervals_said(record: dict[str, Any]) -> Lines:
    """The same in a sentence."""
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
    yield " ".join(said)


def tuning(tried: list[dict[str, Any]]) -> Lines:
    """What was tried, on the tuning half; a table for each oracle that it was held against."""
    by_oracle: dict[str, list[dict[str, Any]]] = {}
    for r in tried:
        by_oracle.setdefault(r.get("oracle", "kept"), []).append(r)
    for which, rows in sorted(by_oracle.items(), reverse=True):
        sets = [k for k, v in rows[0].items() if isinstance(v, dict) and "n" in v]
        later = any("variation" in r[s] for r in rows for s in sets)  # older rows do not have it
        heads = [f"{s}: {m}" for s in sets for m in ("Top-1", "MRR", "Spearman", *["Variation"] * later)]
        metrics = ("top1", "mrr", "spearman", *["variation"] * later)
        said = {"live": "settings, against the live oracle", "kept": "settings, against the earlier values"}[which]
        head = said if len(by_oracle) > 1 else "settings"
        yield from ["", [head, "times cheaper", *heads]]
        for r in rows:
            cells = [f"{r[s][m]:.3f}" if m in r[s] else "" for s in sets for m in metrics]
            yield [f"`{r['variant']}`", f"{r['times_cheaper']:.0f}", *cells]
            for weight in OFFSET_SHOWN if "with_offset" in r else ():
                of = r["with_offset"][weight]
                cells = [f"{of[s][m]:.3f}" if m in of[s] else "" for s in sets for m in metrics]
                yield [f"and {weight} x the offset", "", *cells]
    n = ", ".join(f"{v['n']} {k}" for k, v in tried[0].items() if isinstance(v, dict) and "n" in v)
    yield f"Queries: {n}."


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
    lines: list[Any] = [heads]
    others = []
    for k, g in enumerate(ids):
        at = [i for i, q in enumerate(queries["items"]) if q["set"] == "real" and g not in q["groups"]]
        others.append((float(drop[at, k].mean()), float(oracle_of[at, k].mean())))
        p = parts[g]
        mine, truth = (f"{round(v)}" for v in others[-1])  # an integer: never -0
        lines.append((g, f"{p['mean']:.1f} ± {1.96 * p['se']:.1f}", p["n"], mine, truth))
    truth = [t for _, t in others]
    alike = stats.spearmanr([parts[g]["mean"] for g in ids], truth)[0]
    note = f"Over the groups, it and the oracle's agree with a Spearman of {alike:z.2f}."
    fitted = (read("styles") or {}).get("offset_fit") or []
    if fitted:
        said = ", ".join(f"{r['weight']:z.2f} ({ends(r)}; {r['query_set']}, {r['n']} queries)" for r in fitted)
        note += (
            " Least-squares weight on the tuning half, relative to the committed one, with its 95% bootstrap interval"
        )
        note += f" over queries: {said}."
    return written(
        [*lines, f"{note} (`python -m guda_core unlearn`, `assets/runs/emoji/emoji/adapters/*/health.json`.)"]
    )


@table("styles", "offset_weights")
def weights(rows: list[dict[str, Any]]) -> Lines:
    """How first places, MRR and order depend on the weight of the offset."""
    sets = list(dict.fromkeys(r["query_set"] for r in rows))
    yield ["times the committed weight", *(f"{s}: {m}" for s in sets for m in ("Top-1", "MRR", "Spearman"))]
    for times in dict.fromkeys(r["times"] for r in rows):
        of = {r["query_set"]: r for r in rows if r["times"] == times}
        yield [f"{times:g}", *(f"{of[s][m]:.3f}" for s in sets for m in ("top1", "mrr", "spearman"))]
    yield "All queries."


@table("targets", "rows")
def targets(rows: list[dict[str, Any]]) -> Lines:
    """How near each target comes to the retrained models; means over the groups."""

    def mean(*path: str) -> float:
        return float(np.mean([reduce(lambda d, k: d[k], path, r) for r in rows]))

    yield "anchor", "under the caption", "goes as far (best: 1)", "under the empty prompt: anchor", "shift", "between"
    full = [f"{mean(of, 'nothing'):.0f}" for of in ("prompt", "empty")]
    yield "none: as the full model", full[0], "", full[1], "", ""
    for name in (n for n in rows[0]["prompt"] if n != "nothing"):
        kinds = (f"{mean('empty', f'{kind}: {name}'):.0f}" for kind in ("anchor", "shift", "between"))
        yield [name, f"{mean('prompt', name):.0f}", f"{mean('way_prompt', name):z.2f}", *kinds]
    yield f"Nats, means over {len(rows)} groups, {sum(r['n'] for r in rows)} pictures."


def oracle() -> str:
    """The trainings of the styles' oracle whose values were kept."""
    lines = [("training", "seconds", "date", "weights (SHA-256)")]
    for path in sorted((committed.FOLDER / "oracle").glob("*.json")):
        r = json.loads(path.read_text(encoding="utf-8"))
        if not (t := r["training"]):  # the full model, whose training is told elsewhere
            continue
        lines.append((path.stem, f"{t['seconds']:.0f}", t["date"][:10], r["weights_sha256"][:12]))
    return written(lines) if len(lines) > 1 else UNKNOWN


def _against(exact: np.ndarray, before: np.ndarray | None, error: np.ndarray | None, k: int) -> list[str]:
    """Cells: Spearman of exact (Q,) with before[:, k], what moved less its mean (rms), and the sampling error (rms)."""
    if before is None or np.isnan(before[:, k]).any():
        return ["", "", ""]
    rms = "" if error is None else f"{np.sqrt((error[:, k] ** 2).mean()):.0f}"
    return [f"{stats.spearmanr(exact, before[:, k])[0]:.3f}", f"{(exact - before[:, k]).std():.0f}", rms]


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
    lines: list[Any] = [heads]
    ids = list(load_group_set("emoji").groups)
    for group, r in found.items():
        size = weights_file(committed.LIVE / group).stat().st_size / 1e6
        figures = [f"{r[k]:.1f}" for k in ("bias", "rms", "sd")]
        others = [_against(np.array(r["exact"]), made.get(k), error.get(k), ids.index(group)) for k in KINDS]
        lines.append([group, f"{size:.1f} MB", f"{r['spearman']:.4f}", *figures, *others[0], *others[1]])
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
    return written([*lines, f"{note} {source_of}"])


RENDER = {
    "costs": table("costs", "costs")(partial(costs, cpu=False)),
    "intervals": intervals,
    "intervals_said": intervals_said,
    "digits_costs": table("digits", "costs")(partial(costs, cpu=True)),
    "digits_tuning": table("digits-tuning", "rows")(tuning),
    "styles_tuning": table("styles-tuning", "rows")(tuning),
    "styles_offset": offset,
    "styles_weights": weights,
    "styles_targets": targets,
    "styles_oracle": oracle,
    "styles_live": live,
}
