"""Agreement of a method's scores with an oracle's, per query; then means with bootstrap intervals over queries.

Everywhere scores and oracle are (Q, G) arrays: Q queries, G groups, higher = contributed more. Ranks are by falling
score; ties are broken by the group's place in the set, the same for both. A missing score is NaN and ranks last.

    top1      1 if the method's first group is the oracle's
    top3      share of the oracle's first three groups that are among the method's first three
    mrr       1 / rank that the method gives to the oracle's first group
    ndcg3     DCG@3 / ideal DCG@3 with relevance G - (oracle's rank), ranks from 1. Two gains are in use under one
              name: exponential 2^rel - 1 (Burges et al. 2005) and linear rel (Jarvelin & Kekalainen 2002)
    rbo       rank-biased overlap, p = 0.9, extrapolated (Webber et al. 2010, eq. 32)
    spearman  rank correlation
    pairs     top-heavy pairwise agreement: share of group pairs in the oracle's order, each pair weighted by
              1 / (the better of its two oracle ranks)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from scipy.stats import binomtest, rankdata


def order(scores: np.ndarray) -> np.ndarray:
    """Groups from best to worst, (Q, G) int; NaN last."""
    filled = np.where(np.isnan(scores), -np.inf, scores)
    return np.argsort(-filled, axis=1, kind="stable")


def ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of every group, 1 = best, (Q, G) int."""
    by_place = order(scores)
    out = np.empty_like(by_place)
    np.put_along_axis(out, by_place, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return out


def top1(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) 0 or 1."""
    return (order(scores)[:, 0] == order(oracle)[:, 0]).astype(float)


def top3(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) in [0, 1]."""
    return ((ranks(scores) <= 3) & (ranks(oracle) <= 3)).sum(axis=1) / min(3, scores.shape[1])


def mrr(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) in (0, 1]."""
    first = order(oracle)[:, :1]
    return 1.0 / np.take_along_axis(ranks(scores), first, axis=1)[:, 0]


def _ndcg3(scores: np.ndarray, oracle: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    g = gain((scores.shape[1] - ranks(oracle)).astype(float))
    discount = 1 / np.log2(np.arange(2, 2 + min(3, scores.shape[1])))
    k = len(discount)
    dcg = (np.take_along_axis(g, order(scores)[:, :k], axis=1) * discount).sum(axis=1)
    ideal = (np.take_along_axis(g, order(oracle)[:, :k], axis=1) * discount).sum(axis=1)
    return dcg / ideal


def ndcg3_exponential(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) in [0, 1], gain 2^rel - 1."""
    return _ndcg3(scores, oracle, lambda rel: 2**rel - 1)


def ndcg3_linear(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) in [0, 1], gain rel."""
    return _ndcg3(scores, oracle, lambda rel: rel)


def rbo(scores: np.ndarray, oracle: np.ndarray, p: float = 0.9) -> np.ndarray:
    """(Q,) in [0, 1]; for two complete rankings of the same G groups."""
    a, b, n = ranks(scores), ranks(oracle), scores.shape[1]
    depths = np.arange(1, n + 1)
    overlap = np.stack([((a <= d) & (b <= d)).sum(axis=1) / d for d in depths], axis=1)  # (Q, G)
    return overlap[:, -1] * p**n + (1 - p) / p * (overlap * p**depths).sum(axis=1)


def spearman(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) in [-1, 1]; ties share their mean rank; 0 where a side is constant."""
    a = rankdata(np.where(np.isnan(scores), -np.inf, scores), axis=1)
    b = rankdata(np.where(np.isnan(oracle), -np.inf, oracle), axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)


def pairs(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(Q,) in [0, 1]; 0.5 is chance."""
    a, b = ranks(scores), ranks(oracle)
    i, j = np.triu_indices(scores.shape[1], k=1)
    weight = 1.0 / np.minimum(b[:, i], b[:, j])
    agree = (a[:, i] < a[:, j]) == (b[:, i] < b[:, j])
    return (weight * agree).sum(axis=1) / weight.sum(axis=1)


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "top1": top1,
    "top3": top3,
    "mrr": mrr,
    "ndcg3_exponential": ndcg3_exponential,
    "ndcg3_linear": ndcg3_linear,
    "rbo": rbo,
    "spearman": spearman,
    "pairs": pairs,
}


DRAWS = 2000  # resamplings of a bootstrap
SIGNED = ("spearman",)  # may be negative: no share of cases


def bootstrap(per_query: np.ndarray, *, draws: int | None = None, seed: int = 0) -> dict[str, float]:
    """Mean over queries with its 95% percentile bootstrap interval: value, low, high. per_query: (Q,). draws: of the
    queries; None: `DRAWS`.

    The same seed resamples the same queries, so that differences of rows may be bootstrapped as paired. All 0 or all 1
    resample to themselves, as if nothing could come otherwise: such a mean has Wilson's interval for Q cases (1927).
    """
    return of_equal(_percentiles(per_query, DRAWS if draws is None else draws, seed), len(per_query))


def of_equal(found: Mapping[str, float], n: int) -> dict[str, float]:
    """A mean of n cases in [0, 1] with its interval; Wilson's in place of one without width at 0 or 1."""
    edge = found["value"] in (0.0, 1.0) and found["low"] == found["high"]
    return {**found, **wilson(int(found["value"]) * n, n)} if edge else dict(found)


def wilson(hits: int, n: int) -> dict[str, float]:
    """Wilson's 95% interval of a share of n cases: low, high. n must be 1 or more."""
    low, high = _wilson(hits, n)
    return {"low": low, "high": high}


@lru_cache(maxsize=4096)  # tables ask for few different ones, many times
def _wilson(hits: int, n: int) -> tuple[float, float]:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _percentiles(per_query: np.ndarray, draws: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    means = per_query[rng.integers(0, len(per_query), (draws, len(per_query)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(per_query.mean()), "low": float(low), "high": float(high)}


def agreement(scores: np.ndarray, oracle: np.ndarray, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Every metric's mean with its interval."""
    found = {name: _percentiles(f(scores, oracle), DRAWS, seed) for name, f in METRICS.items()}
    return {name: v if name in SIGNED else of_equal(v, len(scores)) for name, v in found.items()}
