"""Tables of agreement with the oracle, made from score arrays alone; the same form for every benchmark.

rows, differences           over all queries
rows_report, differences_report  over the half of each query set that is held for the report
rows_ceiling, rows_ceiling_report  every method on those groups alone that the ceiling has, while it lacks some
differences_ceiling  over all queries, on those groups
rows_mean, differences_mean  against the mean of the oracle and its second seed, on the groups of both
rows_mean_again, differences_mean_again  against the mean of the oracle and the same trainings made before

The ceiling is the oracle against itself from another seed. "ceiling-again" is the live oracle (`with_the_live_oracle`)
against the trainings of the same seed that were made and scored before.

A row is {method, query_set, n, groups, top1: {value, low, high}, mrr: {...}, ..., variation: {...}} (see
`metrics.agreement` and `variation`). Where it is known what each query was made of, it holds the intervals over
artists, `top1_artists` and `variation_artists`; where it is known which pictures are not a group's own,
`variation_others`. A difference is paired, of one method to another, in Top-1, MRR or variation; its `artists` is the
interval over artists. In Top-1 it also holds on how many pictures one of the two alone is right, and `p`, McNemar's
exact test of these (McNemar 1947): the interval of few such pictures is too narrow. In variation, `p` is that of the
interval itself. `lead` says which differences are clear, `is_barely` which of these only just.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from experiments.benchmark import variation as v
from guda_core.attribution import metrics

ORACLE, SECOND, LIVE, BEFORE = "logo", "logo-2", "logo-live", "logo-before"
ROW_OF = {SECOND: "ceiling", BEFORE: "ceiling-again"}  # what these scores are called as rows
GUDA, WITH_OFFSET = "guda", "guda + offset"  # rows of the tables (`fair`)
DROP = "guda/drop"  # the arrays' name of the paper's score; there "guda" holds the offset
SIGNIFICANT, PLAIN = 0.05, 0.01  # p at most: of a clear difference; of one that is not barely so
NOT_A_METHOD = ("separable/", "se/")  # what else a file of scores may hold


def methods(scores: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(row name, (Q, G) scores) of everything that is compared with the oracle."""
    for name, s in scores.items():
        if name != ORACLE and not name.startswith(NOT_A_METHOD):
            yield ROW_OF.get(name, name), s


def with_the_live_oracle(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores with the live oracle's as "logo", where it has every group, and those of before as "logo-before";
    other ways to score its values take the place of those of before. Else the scores as they are."""
    if LIVE not in scores or np.isnan(scores[LIVE]).any():
        return {n: s for n, s in scores.items() if not n.startswith(LIVE)}
    out = {n: s for n, s in scores.items() if not n.startswith((f"{ORACLE}/", LIVE)) and n != ORACLE}
    out |= {n.replace(LIVE, ORACLE, 1): s for n, s in scores.items() if n.startswith(LIVE)}
    return out | ({BEFORE: scores[ORACLE]} if ORACLE in scores else {})


def is_scoring(method: str) -> bool:
    """Whether a row is another way to score a method's values."""
    return "/" in method


def agreement(
    scores: Mapping[str, np.ndarray],
    sets: Sequence[str],
    *,
    at: np.ndarray | None = None,
    made_of: Sequence[Sequence[str]] | None = None,
    others: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Rows of every method and query set, in the order of the sets' first appearance.

    A method that lacks some groups (the ceiling, with second seeds of some) is compared on those it has.
    at: (Q,) bool, the queries that count; None = all. made_of: the groups of each query's prompt, or its artist; the
    columns of the scores are the groups in the order of their first appearance. others: `fair.others`, (Q, G) bool.
    """
    rows, ids = [], _ids(made_of)
    for name, s in methods(scores):
        has = ~np.isnan(s).all(axis=0)
        for query_set, mine in sets_of(sets, at):
            own, truth = s[mine][:, has], scores[ORACLE][mine][:, has]
            row = {"method": name, "query_set": query_set, "n": int(mine.sum()), "groups": int(has.sum())}
            row |= metrics.agreement(own, truth)
            varies = v.variation(own, truth)
            row["variation"] = v.over_pictures(varies, len(own), own.shape[1], most=1.0)
            pattern = v.variation(v.standardised(own), v.standardised(truth))
            row["variation_standardised"] = v.over_pictures(pattern, len(own), own.shape[1], most=1.0)
            if others is not None:
                not_own = v.variation(own, truth, others[mine][:, has])
                row["variation_others"] = v.over_pictures(not_own, len(own), own.shape[1], most=1.0)
            if made_of is not None:
                artist = [ids.index(made_of[i][0]) for i in np.flatnonzero(mine)]
                hits = v.mean(metrics.METRICS["top1"](own, truth))
                row["top1_artists"] = v.over_artists(hits, artist, has, most=1.0)
                row["variation_artists"] = v.over_artists(varies, artist, has, most=1.0)
            rows.append(row)
    return rows


def _ids(made_of: Sequence[Sequence[str]] | None) -> list[str]:
    return list(dict.fromkeys(g for of in made_of or () for g in of))


def differences(
    scores: Mapping[str, np.ndarray],
    sets: Sequence[str],
    first: str,
    *,
    at: np.ndarray | None = None,
    made_of: Sequence[Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Paired differences first - other, with intervals, for every other complete method; [] when `first` is absent."""
    rows, ids = [], _ids(made_of)
    for name, s in methods(scores) if first in scores else ():
        if name == first or is_scoring(name) or np.isnan(s).any():
            continue
        for query_set, mine in sets_of(sets, at):
            one, other, truth = scores[first][mine], s[mine], scores[ORACLE][mine]
            by = {
                m: v.less(v.mean(metrics.METRICS[m](one, truth)), v.mean(metrics.METRICS[m](other, truth)))
                for m in ("top1", "mrr")
            }
            by["variation"] = _less_in_variation(one, other, truth)
            patterns = (v.standardised(x) for x in (one, other, truth))
            by["variation_standardised"] = _less_in_variation(*patterns)
            for metric, statistic in by.items():
                row = {"first": first, "second": name, "query_set": query_set, "metric": metric}
                row |= v.over_pictures(statistic, len(one), one.shape[1])
                if metric == "top1":
                    row |= mcnemar(*(metrics.METRICS[metric](x, truth) > 0 for x in (one, other)))
                elif metric != "mrr":
                    row["p"] = v.p_of(row, len(one))
                if made_of is not None:
                    artist = [ids.index(made_of[i][0]) for i in np.flatnonzero(mine)]
                    row["artists"] = v.over_artists(statistic, artist, np.ones(one.shape[1], bool))
                rows.append(row)
    return rows


def _less_in_variation(one: np.ndarray, other: np.ndarray, truth: np.ndarray) -> v.Statistic:
    return v.less(v.variation(one, truth), v.variation(other, truth))


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """On how many pictures one method alone is right, and the exact two-sided p-value. first, second: (Q,) bool."""
    only = int((first & ~second).sum()), int((second & ~first).sum())
    p = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    return {"only_first": only[0], "only_second": only[1], "p": float(p)}


def lead(difference: Mapping[str, Any]) -> str:
    """Which way a paired difference is clear, "ahead" or "behind"; else "level". Clear: its interval excludes 0 and p
    is at most 0.05."""
    if difference.get("p", 0.0) > SIGNIFICANT:
        return "level"
    return "ahead" if difference["low"] > 0 else "behind" if difference["high"] < 0 else "level"


def is_barely(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is clear, with p above 0.01."""
    return lead(difference) != "level" and difference.get("p", 0.0) > PLAIN


def sets_of(sets: Sequence[str], at: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
    of = np.array(sets)
    for query_set in dict.fromkeys(sets):
        mine = of == query_set if at is None else (of == query_set) & at
        if mine.any():
            yield query_set, mine


def tuning_half(sets: Sequence[str]) -> np.ndarray:
    """(Q,) bool: every second query of each set, beginning with its first. Settings are chosen on these alone."""
    seen: dict[str, int] = {}
    out = []
    for name in sets:
        out.append(seen.get(name, 0) % 2 == 0)
        seen[name] = seen.get(name, 0) + 1
    return np.array(out)


def on_the_ceilings_groups(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], *, at: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """`agreement` on the groups that the ceiling has, of methods that have them all; [] when the ceiling has every
    group, or is not there: then `agreement` will do."""
    if SECOND not in scores or not np.isnan(scores[SECOND]).all(axis=0).any():
        return []
    return agreement(on_its_groups(scores), sets, at=at)


def on_its_groups(scores: Mapping[str, np.ndarray], other: str = SECOND) -> dict[str, np.ndarray]:
    """The scores of the groups that another training of the oracle has, of what has them all."""
    has = ~np.isnan(scores[other]).all(axis=0)
    of = {n: s[:, has] for n, s in scores.items() if not n.startswith(NOT_A_METHOD)}
    return {n: s for n, s in of.items() if not np.isnan(s).any()}


def against_the_mean(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], firsts: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Complete methods against the mean of the oracle's scores and another training's, on the groups that both have;
    no keys for what is not there. The mean with a second seed is nearer than either to what retraining costs on
    average; that with the values kept before is a check against the noise of either alone."""
    out = {}
    for other, key in ((SECOND, "mean"), (BEFORE, "mean_again")):
        if other not in scores:
            continue
        of = on_its_groups(scores, other)
        of[ORACLE] = (of[ORACLE] + of.pop(other)) / 2
        of = {n: s for n, s in of.items() if "/" not in n}  # values of one seed, scored otherwise, are no methods here
        out[f"rows_{key}"] = agreement(of, sets)
        out[f"differences_{key}"] = [d for f in firsts for d in differences(of, sets, f)]
    return out


def make(
    scores: Mapping[str, np.ndarray],
    sets: Sequence[str],
    firsts: Sequence[str],
    made_of: Sequence[Sequence[str]] | None = None,
    others: np.ndarray | None = None,
) -> dict[str, Any]:
    """Rows and differences of each of `firsts` to the others, over all queries and over those held for the report."""
    report, partial = ~tuning_half(sets), bool(on_its := on_the_ceilings_groups(scores, sets))
    its = on_its_groups(scores) if partial else {}
    return {
        "rows": agreement(scores, sets, made_of=made_of, others=others),
        "differences": [d for f in firsts for d in differences(scores, sets, f, made_of=made_of)],
        "rows_report": agreement(scores, sets, at=report, made_of=made_of, others=others),
        "differences_report": [d for f in firsts for d in differences(scores, sets, f, at=report, made_of=made_of)],
        "rows_ceiling": on_its,
        "differences_ceiling": [d for f in firsts for d in differences(its, sets, f)],
        "rows_ceiling_report": on_the_ceilings_groups(scores, sets, at=report),
    }
