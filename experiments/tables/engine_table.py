"""What was measured of the scoring engine, as tables (for `readme.py`)."""

from __future__ import annotations

import statistics
from typing import Any

from scipy.stats import binomtest

from experiments.tables.committed import UNKNOWN, Lines, ends, read, source, table, written
from experiments.tables.gpu_table import gpu_shares

SHOWN = {  # key -> what it is, what was aimed at
    "speedup_full": ("full effort, times faster than version 0.1 (the fastest type of this machine)", "5 or more"),
    "speedup_full_float32": ("the same in float32", "2 or more"),
    "share_cpu": ("passes a second, as a share of the bare network's (float32, full effort)", "0.9 or more"),
    "same_first": ("same first group as with every draw, 500 fixed queries (simulated)", "0.995 or more"),
    "ratio_64_to_8": ("64 groups against 8, full effort, times the seconds", "under 2.5"),
    "coverage_quick": ("95% intervals that cover the value of 24 draws, quick", "0.93 to 0.98"),
    "coverage_standard": ("the same, standard, after races", "0.93 to 0.98"),
    "coverage_standard_logo": ("the same, standard, of the retrained models (`logo`)", "0.93 to 0.98"),
    "first_bar_s": ("seconds from `python app.py` to the first bars of the first example", "10 or less"),
}


def engine() -> str:
    """The figures that were aimed at."""
    record = read("engine")
    if record is None:
        return UNKNOWN
    rows = [(said, _figure(record, k) if k in record else UNKNOWN, aim) for k, (said, aim) in SHOWN.items()]
    shares, card = gpu_shares(), read("gpu")
    what = "the share of passes on a GPU (float16, Stable Diffusion 1.5)"
    rows += [(f"{what}, effort {effort}", f"{share:.3g}", "0.85 or more") for effort, share in shares.items()]
    said = source(record, "engine") + (f" On a GPU: {source(card, 'gpu')}" if shares and card else "")
    return written([("", "figure", "aimed at"), *rows, said])


def _figure(record: dict[str, Any], key: str) -> str:
    """A figure; a share with its 95% interval."""
    value, parts = record[key], record["parts"]
    if key == "same_first":
        n = parts["rules"]["rules_guda"]["2, every draw"]["queries"]
        found = binomtest(round(value * n), n).proportion_ci(method="wilson")
        return f"{value:.3g} ({found.low:.3f} to {found.high:.3f})"
    if not key.startswith("coverage_"):
        return f"{value:.3g}"
    rows = parts["coverage"][key.replace("coverage_", "rows_")]
    whole = next(r for r in rows if r["query_set"] == "all")
    return f"{value:.3g} ({ends(whole['held'])}, {whole['queries']} pictures)"


KEPT = ("same_first", "same_two", "held")


@table("engine", "parts", "rules")
def engine_rules(rules: dict[str, Any]) -> Lines:
    """Every rule that was tried, on two kinds of noise."""
    yield "draws a stratum, first look", "noise", "share of passes", "ended early", "same first", "same two", "covered"
    for noise in (n for n in ("guda", "logo", "oracle") if f"rules_{n}" in rules):
        for rule, r in rules[f"rules_{noise}"].items():
            yield [rule, noise, f"{r['share']:z.2f}", f"{r['decided']:z.2f}", *(f"{r[k]:.3f}" for k in KEPT)]


@table("engine", "parts", "rules", "rules_many")
def engine_many(rules: dict[str, Any]) -> Lines:
    """Passes of a query with 8 and with 64 groups."""
    yield "groups, first look", "passes", "same first", "same two", "covered"
    for name, r in rules.items():
        yield [name, f"{r['passes']:,.0f}", *(f"{r[k]:.3f}" for k in KEPT)]


@table("engine", "parts", "switching")
def engine_switching(part: dict[str, Any]) -> Lines:
    """A switch and a pass, merged and live."""
    yield "network", "a switch", "where weights are kept", "a pass, merged", "a pass, live", "live pays below"
    for name in ("embedded", "medium"):
        r = part[name]
        cells = [f"{1000 * r[k]:.1f} ms" for k in ("switch_s", "switch_kept_s", "pass_merged_s", "pass_live_s")]
        below = r["live_pays_below_passes"]
        pays = "always" if below is None else f"{below:.0f} passes a switch"
        yield [f"{name}, {r['parameters'] / 1e6:.0f} million weights", *cells, pays]
    if "bfloat16_nats" in part:
        a, b = part["bfloat16_nats"]["merged"], part["bfloat16_nats"]["live"]
        yield (
            f"Scores of two draws in bfloat16 differ from those in float32 by {a['median']:z.2f} nats merged and "
            f"{b['median']:z.2f} nats live (medians; at most {a['largest']:z.2f} and {b['largest']:z.2f})."
        )
        yield ""


@table("engine", "parts", "start")
def engine_start(part: dict[str, Any]) -> Lines:
    """Seconds to each milestone of the start."""
    said = {"imported": "command read", "loaded": "model loaded", "page": "page served", "drawn": "picture drawn"}
    said |= {"bar": "first bars"}
    yield "milestone", "seconds, each start"
    yield from ((text, ", ".join(f"{x:.1f}" for x in part[k])) for k, text in said.items())
    yield f"Load of the machine before: {part['load_before']:.1f}."


@table("engine", "parts")
def engine_speeds(parts: dict[str, Any]) -> Lines:
    """Seconds and passes of an answer at full effort, taken in turns; and with more groups."""
    if "speeds" not in parts:
        return
    speeds, bare = parts["speeds"], parts["speeds"]["bare_passes_per_second"]
    yield "full effort, 8 groups", "seconds", "passes", "passes a second", "bare network"
    for name, seconds in speeds["seconds"].items():
        mean, made = statistics.mean(seconds), statistics.mean(speeds["passes"][name])
        alone = f"{statistics.mean(bare[name]):.0f}" if name in bare else ""
        said = "version 0.1, float32" if name == "before" else f"today, {name}"
        yield said, f"{mean:.1f}", f"{made:.0f}", f"{made / mean:.0f}", alone
    if "sizes" in parts:
        yield from ["", ("groups", "seconds, of all pictures", "passes")]
        yield from ((n, f"{r['seconds']:.1f}", r["passes"]) for n, r in parts["sizes"]["groups"].items())


@table("engine", "parts", "types")
def engine_types(types: dict[str, Any]) -> Lines:
    """What bfloat16 does to scores."""
    if "types_nats" not in types:
        return
    nats, errors = types["types_nats"], types["types_standard_errors"]
    yield (
        f"Scores in bfloat16 differ from those in float32 by {nats['median']:z.2f} nats (median; at most "
        f"{nats['largest']:z.2f}), or {errors['median']:z.2f} standard errors (at most {errors['largest']:z.2f})."
    )


RENDER = {
    "engine": engine,
    "engine_rules": engine_rules,
    "engine_many": engine_many,
    "engine_switching": engine_switching,
    "engine_start": engine_start,
    "engine_speeds": engine_speeds,
    "engine_types": engine_types,
}
