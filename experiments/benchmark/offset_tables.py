"""What the offset of GUDA's scores brings, and how much depends on its weight (`attribution.guda`, `result_tables`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.result_tables import GUDA, ORACLE, WITH_OFFSET, sets_of, tuning_half
from guda_core.attribution import metrics

TIMES = (0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the offset's weight


def weight_of(scores: np.ndarray, offset: np.ndarray, oracle: np.ndarray) -> float:
    """b / a of the least-squares fit oracle ~ a scores + b offset, centred. scores, oracle: (Q, G); offset: (G,)."""
    columns = [centred(scores), centred(np.tile(offset, (len(scores), 1)))]
    (a, b), *_ = np.linalg.lstsq(np.stack(columns, axis=1), centred(oracle), rcond=None)
    return float(b / a)


def offset_fit(scores: Mapping[str, np.ndarray], sets: Sequence[str]) -> list[dict[str, Any]]:
    """What weight the offset of GUDA's scores should have (`attribution.guda`): b / a of the least-squares fit

        oracle_k(x) - mean over groups = a (drop_k(x) - mean) + b (offset_k - mean)

    on the tuning half, for each query set and for "all" of them; [] where the scores have no offset. The offset
    part is read off the scores, at the weight that they were made with: that of a row is relative to it.
    """
    if not _has_offset(scores):
        return []
    tuning, rows = tuning_half(sets), []
    for query_set, mine in [*sets_of(sets, tuning), ("all", tuning)]:
        drop, added = (centred(x[mine]) for x in (scores[GUDA], scores[WITH_OFFSET] - scores[GUDA]))
        (a, b), *_ = np.linalg.lstsq(np.stack([drop, added], axis=1), centred(scores[ORACLE][mine]), rcond=None)
        row = {"query_set": query_set, "n": int(mine.sum())}
        rows.append({**row, "of_drop": float(a), "of_offset": float(b), "weight": float(b / a)})
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


def centred(scores: np.ndarray) -> np.ndarray:
    """(Q, G) less each query's mean, as one vector."""
    s = scores.astype(float)
    return (s - s.mean(axis=1, keepdims=True)).ravel()
