"""Tables of agreement with the oracle, made from score arrays alone; the same form for every benchmark.

rows, differences           over all queries
rows_report, differences_report  over the half of each query set that is held for the report
rows_ceiling, rows_ceiling_report  every method on those groups alone that the ceiling has, while it lacks some
differences_ceiling  over all queries, on those groups
rows_mean, differences_mean  against the mean of the oracle and its second seed, on the groups of both
rows_mean_again, differences_mean_again  against the mean of the oracle and the same trainings made before

The ceiling is the oracle against itself from another seed. "ceiling-again" is the live oracle (`with_the_live_oracle`)
against the trainings of the same seed that were made and scored before.

A row is {method, query_set, n, groups, top1: {value, low, high}, mrr: {...}, ...} (see `metrics.agreement`); a
difference is paired, of one method to another, in Top-1 or MRR.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from guda_core.attribution import metrics

ORACLE, SECOND, LIVE, BEFORE = "logo", "logo-2", "logo-live", "logo-before"
ROW_OF = {SECOND: "ceiling", BEFORE: "ceiling-again"}  # what these scores are called as rows
DROP = "guda/drop"
TIMES = (0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the offset's weight
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


def _is_scoring(method: str) -> bool:
    """Whether a row is another way to score a method's values. GUDA's drop alone, the paper's score, is none."""
    return "/" in method and method != DROP


def agreement(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], *, at: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Rows of every method and query set, in the order of the sets' first appearance.

    A method that lacks some groups (the ceiling, with second seeds of some) is compared on those it has.
    at: (Q,) bool, the queries that count; None = all.
    """
    rows = []
    for name, s in methods(scores):
        has = ~np.isnan(s).all(axis=0)
        for query_set, mine in _sets(sets, at):
            row = {"method": name, "query_set": query_set, "n": int(mine.sum()), "groups": int(has.sum())}
            rows.append({**row, **metrics.agreement(s[mine][:, has], scores[ORACLE][mine][:, has])})
    return rows


def differences(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], first: str, *, at: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Paired differences first - other, with intervals, for every other complete row; [] when `first` is absent."""
    rows = []
    for name, s in methods(scores) if first in scores else ():
        if name == first or np.isnan(s).any():
            continue
        for query_set, mine in _sets(sets, at):
            for metric in ("top1", "mrr"):
                d = metrics.paired_difference(scores[first][mine], s[mine], scores[ORACLE][mine], metric=metric)
                rows.append({"first": first, "second": name, "query_set": query_set, "metric": metric, **d})
    return rows


def _sets(sets: Sequence[str], at: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
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
    return agreement(_on_its_groups(scores), sets, at=at)


def _on_its_groups(scores: Mapping[str, np.ndarray], other: str = SECOND) -> dict[str, np.ndarray]:
    """The scores of the groups that another training of the oracle has, of what has them all."""
    has = ~np.isnan(scores[other]).all(axis=0)
    of = {n: s[:, has] for n, s in scores.items() if not n.startswith(NOT_A_METHOD)}
    return {n: s for n, s in of.items() if not np.isnan(s).any()}


def where_missed(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], groups: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Each complete method's Top-1 apart: where the oracle's first group is one that the query was made of, and where
    it is another.

    groups: of each query's prompt, or its artist's; the columns of the scores are the groups in the order of their
    first appearance. A row is {method, query_set, named: {n, top1}, other: {n, top1}}; an interval beside each mean,
    None for no queries.
    """
    complete = {n: s for n, s in scores.items() if n == ORACLE or not np.isnan(s).any()}
    ids = list(dict.fromkeys(g for of in groups for g in of))
    first = [ids[i] for i in scores[ORACLE].argmax(axis=1)]
    named = np.array([g in of for g, of in zip(first, groups, strict=True)])
    return _apart(complete, sets, {"named": named, "other": ~named})


def where_unsure(scores: Mapping[str, np.ndarray], sets: Sequence[str], other: str = SECOND) -> list[dict[str, Any]]:
    """Each complete method's Top-1 apart, on the groups that another training of the oracle has: where both name the
    same first group, and where they do not, so that no method can be right about both; [] without another.

    A row is {method, query_set, same: {n, top1}, different: {n, top1}}, as in `where_missed`.
    """
    if other not in scores:
        return []
    of = _on_its_groups(scores, other)
    same = of[ORACLE].argmax(axis=1) == of.pop(other).argmax(axis=1)
    return _apart(of, sets, {"same": same, "different": ~same})


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
        of = _on_its_groups(scores, other)
        of[ORACLE] = (of[ORACLE] + of.pop(other)) / 2
        of = {n: s for n, s in of.items() if "/" not in n}  # values of one seed, scored otherwise, are no methods here
        out[f"rows_{key}"] = agreement(of, sets)
        out[f"differences_{key}"] = [d for f in firsts for d in differences(of, sets, f)]
    return out


def of_others(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], groups: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """What retraining without a group costs pictures that do not name it, by either seed; [] without a second seed.

    groups: as in `where_missed`. A row is {group, query_set, n, first, second, difference_sd}: the mean scores over
    those n queries, in the scores' unit, and the standard deviation over them of second - first.
    """
    ids, rows = list(dict.fromkeys(g for of in groups for g in of)), []
    for k, group in enumerate(ids if SECOND in scores else []):
        first, second = scores[ORACLE][:, k].astype(float), scores[SECOND][:, k].astype(float)
        others = np.array([group not in of for of in groups]) & ~np.isnan(second)
        for query_set, mine in _sets(sets, others):
            a, b = first[mine], second[mine]
            own = {"group": group, "query_set": query_set, "n": int(mine.sum())}
            rows.append({**own, "first": a.mean(), "second": b.mean(), "difference_sd": (b - a).std()})
    return rows


def by_group(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], groups: Sequence[Sequence[str]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """How much a group stands out on its own pictures, by the oracle and by each of `names`.

    groups: as in `where_missed`; queries of one group alone count. A row is {group, query_set, n, first, excess}:
    first: the share of those n queries on which the oracle names the group first; excess: name -> mean of the group's
    score less the mean of the other groups', in the scores' unit.
    """
    ids, rows = list(dict.fromkeys(g for of in groups for g in of)), []
    for k, group in enumerate(ids):
        for query_set, mine in _sets(sets, np.array([list(of) == [group] for of in groups])):
            of = {n: scores[n][mine].astype(float) for n in (ORACLE, *names) if n in scores}
            first = float((of[ORACLE].argmax(axis=1) == k).mean())
            excess = {n: float((s[:, k] - np.delete(s, k, axis=1).mean(axis=1)).mean()) for n, s in of.items()}
            row = {"group": group, "query_set": query_set, "n": int(mine.sum()), "first": first, "excess": excess}
            rows.append(row)
    return rows


def first_places(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], groups: Sequence[Sequence[str]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """On how many queries a group is named first, by the oracle and by each of `names`.

    groups: as in `where_missed`. A row is {group, query_set, n, oracle, named: {name: [queries, of these where the
    oracle names another]}}.
    """
    ids, rows = list(dict.fromkeys(g for of in groups for g in of)), []
    truth, found = scores[ORACLE].argmax(axis=1), {n: scores[n].argmax(axis=1) for n in names if n in scores}
    for k, group in enumerate(ids):
        for query_set, mine in _sets(sets, None):
            row: dict[str, Any] = {"group": group, "query_set": query_set, "n": int(mine.sum())}
            row["oracle"] = int((truth[mine] == k).sum())
            first = {n: mine & (f == k) for n, f in found.items()}
            row["named"] = {n: [int(f.sum()), int((f & (truth != k)).sum())] for n, f in first.items()}
            rows.append(row)
    return rows


def if_calibrated(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """What would be gained if each group's scores were put on the oracle's scale: an affine map a group, fitted to the
    oracle by least squares on the tuning half of a query set, and Top-1 on its other half, before and after.

    It needs the oracle, so it is no method; it tells whether scale or order is what a method lacks. A row is {method,
    query_set, n, as_is: Top-1 with its interval, calibrated: the same}, of complete methods.
    """
    rows, tuning = [], tuning_half(sets)
    for name, s in methods(scores):
        if _is_scoring(name) or np.isnan(s).any():
            continue
        for query_set, mine in _sets(sets, None):
            fit, held = mine & tuning, mine & ~tuning
            if fit.sum() < 3 or not held.any():
                continue
            truth, after = scores[ORACLE][held], np.empty_like(s[held], dtype=float)
            for k in range(s.shape[1]):
                line = np.polynomial.Polynomial.fit(s[fit, k].astype(float), scores[ORACLE][fit, k].astype(float), 1)
                after[:, k] = line(s[held, k].astype(float))
            hits = {
                "as_is": metrics.METRICS["top1"](s[held], truth),
                "calibrated": metrics.METRICS["top1"](after, truth),
            }
            found = {k: metrics.bootstrap(h) for k, h in hits.items()}
            rows.append({"method": name, "query_set": query_set, "n": int(held.sum()), **found})
    return rows


def offset_fit(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """What weight the offset of GUDA's scores should have (`attribution.guda`): b / a of the least-squares fit

        oracle_k(x) - mean over groups = a (drop_k(x) - mean) + b (offset_k - mean)

    on the tuning half, for each query set and for "all" of them; [] where the scores have no offset. The offset
    part is read off the scores, at the weight that they were made with: that of a row is relative to it.
    """
    if not _has_offset(scores):
        return []
    tuning, rows = tuning_half(sets), []
    for query_set, mine in [*_sets(sets, tuning), ("all", tuning)]:
        drop, added = (centred(x[mine]) for x in (scores[DROP], scores["guda"] - scores[DROP]))
        (a, b), *_ = np.linalg.lstsq(np.stack([drop, added], axis=1), centred(scores[ORACLE][mine]), rcond=None)
        row = {"query_set": query_set, "n": int(mine.sum())}
        rows.append({**row, "of_drop": float(a), "of_offset": float(b), "weight": float(b / a)})
    return rows


def _has_offset(scores: Mapping[str, np.ndarray]) -> bool:
    """Whether GUDA's scores have a offset, and can be held against a complete oracle."""
    return {"guda", DROP, ORACLE} <= set(scores) and not any(np.isnan(scores[k]).any() for k in ("guda", ORACLE))


def offset_weights(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """How much depends on the weight of the offset: {times, query_set, n, top1, mrr, spearman} over all queries,
    `times` what is committed; [] where the scores have no offset. The metrics are means without intervals."""
    if not _has_offset(scores):
        return []
    drop, added, rows = scores[DROP], scores["guda"] - scores[DROP], []
    for times in TIMES:
        for query_set, mine in _sets(sets, None):
            own, truth = (drop + times * added)[mine], scores[ORACLE][mine]
            found = {m: float(metrics.METRICS[m](own, truth).mean()) for m in ("top1", "mrr", "spearman")}
            rows.append({"times": times, "query_set": query_set, "n": int(mine.sum()), **found})
    return rows


def centred(scores: np.ndarray) -> np.ndarray:
    """(Q, G) less each query's mean, as one vector."""
    s = scores.astype(float)
    return (s - s.mean(axis=1, keepdims=True)).ravel()


def _apart(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], kinds: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Top-1 of every method and query set, for each kind of queries, (Q,) bool."""
    rows = []
    for name, s in methods(scores):
        if _is_scoring(name):
            continue
        for query_set, mine in _sets(sets, None):
            row: dict[str, Any] = {"method": name, "query_set": query_set}
            for kind, is_kind in kinds.items():
                at = mine & is_kind
                hits = metrics.METRICS["top1"](s[at], scores[ORACLE][at]) if at.any() else None
                row[kind] = {"n": int(at.sum()), "top1": None if hits is None else metrics.bootstrap(hits)}
            rows.append(row)
    return rows


def make(scores: Mapping[str, np.ndarray], sets: Sequence[str], firsts: Sequence[str]) -> dict[str, Any]:
    """Rows and differences of each of `firsts` to the others, over all queries and over those held for the report."""
    report, partial = ~tuning_half(sets), bool(on_its := on_the_ceilings_groups(scores, sets))
    its = _on_its_groups(scores) if partial else {}
    return {
        "rows": agreement(scores, sets),
        "differences": [d for f in firsts for d in differences(scores, sets, f)],
        "rows_report": agreement(scores, sets, at=report),
        "differences_report": [d for f in firsts for d in differences(scores, sets, f, at=report)],
        "rows_ceiling": on_its,
        "differences_ceiling": [d for f in firsts for d in differences(its, sets, f)],
        "rows_ceiling_report": on_the_ceilings_groups(scores, sets, at=report),
    }
