"""What the offset of GUDA's scores brings, and how much depends on its weight (`attribution.guda`, `result_tables`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark import variation as v
from experiments.benchmark.result_tables import GUDA, ORACLE, WITH_OFFSET, sets_of, tuning_half
from guda_core.attribution import metrics
from guda_core.errors import DataError

TIMES = (0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the offset's weight


def weight_of(scores: np.ndarray, offset: np.ndarray, oracle: np.ndarray) -> float:
    """b / a of the least-squares fit oracle ~ a scores + b offset, centred. scores, oracle: (Q, G); offset: (G,).

    Raises:
        DataError: a is not positive (the scores do not rise with the oracle's), or b is negative: there is no weight.
    """
    a, b = _factors(*_equations(scores, np.tile(offset, (len(scores), 1)), oracle), np.ones((1, len(scores))))[0]
    if not (a > 0 and b >= 0):
        raise DataError(
            f"The fit gives the scores the factor {a:.3g} and the offset {b:.3g}; the first must be above 0 and the "
            "second 0 or more, so there is no weight."
        )
    return float(b / a)


def _equations(scores: np.ndarray, offset: np.ndarray, oracle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each query adds to the normal equations of the fit: (Q, 2, 2) and (Q, 2). All (Q, G)."""
    x = np.stack([_centred(scores), _centred(offset)], axis=2)  # (Q, G, 2)
    return np.einsum("qgi,qgj->qij", x, x), np.einsum("qgi,qg->qi", x, _centred(oracle))


def _factors(squares: np.ndarray, products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, 2): a and b, of queries that count as often as `weights` (B, Q) says; the smallest ones where many fit."""
    left = np.einsum("bq,qij->bij", weights, squares)
    return np.einsum("bij,bj->bi", np.linalg.pinv(left, hermitian=True), weights @ products)


def offset_fit(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """What weight the offset of GUDA's scores should have (`attribution.guda`): b / a of the least-squares fit

        oracle_k(x) - mean over groups = a (drop_k(x) - mean) + b (offset_k - mean)

    on the tuning half, for each query set and for "all" of them; [] where the scores have no offset. low, high: its 95%
    percentile bootstrap interval over the queries. The offset part is read off the scores, at the weight that they were
    made with: that of a row is relative to it.
    """
    if not _has_offset(scores):
        return []
    tuning, rows = tuning_half(sets), []
    for query_set, mine in [*sets_of(sets, tuning), ("all", tuning)]:
        drop, added = scores[GUDA][mine], scores[WITH_OFFSET][mine] - scores[GUDA][mine]
        equations = _equations(drop, added, scores[ORACLE][mine])
        ((a, b),) = _factors(*equations, np.ones((1, len(drop))))
        again = _factors(*equations, v.picture_weights(len(drop)))
        low, high = np.quantile(again[:, 1] / again[:, 0], [0.025, 0.975])
        row = {"query_set": query_set, "n": int(mine.sum()), "of_drop": float(a), "of_offset": float(b)}
        rows.append({**row, "weight": float(b / a), "low": float(low), "high": float(high)})
    return rows


def _has_offset(scores: Mapping[str, np.ndarray]) -> bool:
    """Whether GUDA's scores are there with and without an offset, and can be held against a complete oracle."""
    return {GUDA, WITH_OFFSET, ORACLE} <= set(scores) and not any(np.isnan(scores[k]).any() for k in (GUDA, ORACLE))


def offset_weights(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """How much depends on the weight of the offset: {times, query_set, n, top1, mrr, spearman} over all queries,
    `times` what is committed; [] where the scores have no offset. The metrics are means without intervals."""
    if not _has_offset(scores):
        return []
    drop, added, rows = scores[GUDA], scores[WITH_OFFSET] - scores[GUDA], []
    for times in TIMES:
        for query_set, mine in sets_of(sets, None):
            own, truth = (drop + times * added)[mine], scores[ORACLE][mine]
            found = {m: float(metrics.METRICS[m](own, truth).mean()) for m in ("top1", "mrr", "spearman")}
            rows.append({"times": times, "query_set": query_set, "n": int(mine.sum()), **found})
    return rows


def _centred(scores: np.ndarray) -> np.ndarray:
    """(Q, G) less each query's mean."""
    s = scores.astype(float)
    return np.asarray(s - s.mean(axis=1, keepdims=True))
