"""Where methods are right and wrong: agreement, apart for kinds of queries and for groups (see `result_tables`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.result_tables import (
    BEFORE,
    GUDA,
    LIVE,
    ORACLE,
    SECOND,
    WITH_OFFSET,
    is_scoring,
    methods,
    on_its_groups,
    sets_of,
    tuning_half,
)
from guda_core.attribution import metrics


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
    of = on_its_groups(scores, other)
    same = of[ORACLE].argmax(axis=1) == of.pop(other).argmax(axis=1)
    return _apart(of, sets, {"same": same, "different": ~same})


def where_separable(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """Each complete method's Top-1 apart: where the oracle's own first two groups are separable, and where they are
    not; [] where that is not known. A row is {method, query_set, separable: {n, top1}, not: {n, top1}}."""
    live = BEFORE in scores or f"separable/{ORACLE}" not in scores  # the live oracle's is the oracle
    known = scores.get(f"separable/{LIVE if live else ORACLE}")
    if known is None:
        return []
    complete = {n: s for n, s in scores.items() if n == ORACLE or not np.isnan(s).any()}
    return _apart(complete, sets, {"separable": known.astype(bool), "not": ~known.astype(bool)})


def where_clear(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """Top-1 of the app's score apart: where its own first two groups are separable, by the draws alone, and where they
    are not; [] where that is not known. A row is {method, query_set, clear: {n, top1}, not: {n, top1}}."""
    own = scores.get(f"separable/{GUDA}")
    if own is None or WITH_OFFSET not in scores:
        return []
    of = {n: scores[n] for n in (ORACLE, WITH_OFFSET)}
    return _apart(of, sets, {"clear": own.astype(bool), "not": ~own.astype(bool)})


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
        for query_set, mine in sets_of(sets, others):
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
        for query_set, mine in sets_of(sets, np.array([list(of) == [group] for of in groups])):
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
        for query_set, mine in sets_of(sets, None):
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
        if is_scoring(name) or np.isnan(s).any():
            continue
        for query_set, mine in sets_of(sets, None):
            fit, held = mine & tuning, mine & ~tuning
            if fit.sum() < 3 or not held.any() or (np.ptp(s[fit], axis=0) == 0).any():  # a constant has no scale
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


def _apart(
    scores: Mapping[str, np.ndarray], sets: Sequence[str], kinds: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Top-1 of every method and query set, for each kind of queries, (Q,) bool."""
    rows = []
    for name, s in methods(scores):
        if is_scoring(name):
            continue
        for query_set, mine in sets_of(sets, None):
            row: dict[str, Any] = {"method": name, "query_set": query_set}
            for kind, is_kind in kinds.items():
                at = mine & is_kind
                hits = metrics.METRICS["top1"](s[at], scores[ORACLE][at]) if at.any() else None
                row[kind] = {"n": int(at.sum()), "top1": None if hits is None else metrics.bootstrap(hits)}
            rows.append(row)
    return rows
