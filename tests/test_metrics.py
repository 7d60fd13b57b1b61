"""Ranking metrics against scikit-learn, scipy, hand-worked cases and a direct reading of their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from guda_core.attribution import metrics

RNG = np.random.default_rng(0)
ORACLE, SCORES = RNG.normal(size=(40, 8)), RNG.normal(size=(40, 8))
NOISY = ORACLE + 0.5 * SCORES


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_oracle_agrees_with_itself_and_not_with_its_reverse(name):
    f = metrics.METRICS[name]
    np.testing.assert_allclose(f(ORACLE, ORACLE), 1)
    assert f(-ORACLE, ORACLE).mean() < f(SCORES, ORACLE).mean() < f(NOISY, ORACLE).mean() < 1


@pytest.mark.parametrize("name", metrics.METRICS)
def test_only_the_order_matters(name):
    f = metrics.METRICS[name]
    np.testing.assert_allclose(f(np.exp(NOISY), 3 * ORACLE + 1), f(NOISY, ORACLE))


def test_ndcg_is_scikit_learns():
    relevance = 8.0 - metrics.ranks(ORACLE)
    for f, gain in ((metrics.ndcg3_linear, relevance), (metrics.ndcg3_exponential, 2**relevance - 1)):
        expected = [ndcg_score(r[None], s[None], k=3) for r, s in zip(gain, NOISY, strict=True)]
        np.testing.assert_allclose(f(NOISY, ORACLE), expected)


def test_spearman_is_scipys():
    expected = [spearmanr(a, b).statistic for a, b in zip(NOISY, ORACLE, strict=True)]
    np.testing.assert_allclose(metrics.spearman(NOISY, ORACLE), expected)
    assert metrics.spearman(np.ones((1, 4)), np.arange(4.0)[None])[0] == 0


def test_hand_worked_ranks():
    oracle, scores = np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[2.0, 4.0, 1.0, 3.0]])  # the method says 1, 3, 0, 2
    assert metrics.ranks(scores).tolist() == [[3, 1, 4, 2]]
    assert metrics.top1(scores, oracle)[0] == 0 and metrics.mrr(scores, oracle)[0] == pytest.approx(1 / 3)
    assert metrics.top3(scores, oracle)[0] == pytest.approx(2 / 3)
    # pairs (0,1), (0,2), (0,3) weigh 1, (1,2), (1,3) weigh 1/2, (2,3) weighs 1/3; right are (0,2), (1,2), (1,3)
    assert metrics.pairs(scores, oracle)[0] == pytest.approx((1 + 0.5 + 0.5) / (3 + 1 + 1 / 3))


def test_rbo_is_the_sum_of_its_definition():
    """Extrapolated RBO of two permutations: agreement beyond their end stays what it is there (1)."""
    p, g = 0.9, 5
    for perm in itertools.islice(itertools.permutations(range(g)), 0, 120, 7):
        scores, oracle = -np.array([perm], float), -np.arange(g)[None].astype(float)
        a, b = np.argsort(perm), np.arange(g)
        overlap = [len({*a[:d]} & {*b[:d]}) / d for d in range(1, g + 1)]
        infinite = (1 - p) * sum(p ** (d - 1) * (overlap[d - 1] if d <= g else 1) for d in range(1, 2000))
        assert metrics.rbo(scores, oracle, p)[0] == pytest.approx(infinite, abs=1e-9)


def test_a_missing_score_ranks_last():
    assert metrics.order(np.array([[np.nan, -5.0, 1.0]])).tolist() == [[2, 1, 0]]


def test_the_bootstrap_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = [
        b["low"] <= 0.5 <= b["high"]
        for b in (metrics.bootstrap(rng.integers(0, 2, 80).astype(float), draws=400, seed=i) for i in range(300))
    ]
    assert 0.9 <= np.mean(held) <= 0.98


def test_what_is_all_right_or_all_wrong_has_wilsons_interval():
    """Of n cases that are all right, Wilson's lower end is 1 / (1 + z^2 / n)."""
    z2 = 1.959964**2
    assert metrics.bootstrap(np.ones(24)) == pytest.approx({"value": 1.0, "low": 1 / (1 + z2 / 24), "high": 1.0})
    assert metrics.bootstrap(np.zeros(24)) == pytest.approx({"value": 0.0, "low": 0.0, "high": 1 - 1 / (1 + z2 / 24)})
    half = metrics.bootstrap(np.array([0.0, 1.0] * 12))
    assert metrics.of_equal(half, 24) == half
    found = metrics.agreement(ORACLE, ORACLE)
    assert found["top1"]["low"] == pytest.approx(1 / (1 + z2 / len(ORACLE))) and found["spearman"]["low"] == 1.0


def test_with_leave_one_group_out_subsets_the_linear_datamodeling_score_is_the_rank_correlation():
    """LDS (Park et al. 2023, TRAK): the rank correlation, over subsets of the data, of what a picture's scores predict,
    their sum over the subset, with what a model trained on the subset gives. A subset lacks one group; the model's
    output is its ELBO, that of the full model less the oracle's score."""
    full = RNG.normal(size=40)
    subsets = [[g for g in range(8) if g != left_out] for left_out in range(8)]
    predicted = np.array([[sum(scores[g] for g in s) for s in subsets] for scores in NOISY])
    output = np.array([[f - row[k] for k in range(8)] for f, row in zip(full, ORACLE, strict=True)])
    lds = [spearmanr(p, o).statistic for p, o in zip(predicted, output, strict=True)]
    np.testing.assert_allclose(lds, metrics.spearman(NOISY, ORACLE))
