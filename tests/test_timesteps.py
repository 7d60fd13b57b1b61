"""Timesteps chosen for GUDA's score: a planted run is found, planted weights come back, and nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.ablations import timesteps
from experiments.benchmark.result_tables import tuning_half
from guda_core.diffusion import likelihood

Q, K, G = 240, 6, 4
SETS = ["a"] * 120 + ["b"] * 120


@pytest.fixture
def world():
    """Strata 2 and 3 hold the oracle's scores, the others loud noise."""
    rng = np.random.default_rng(0)
    oracle = rng.normal(size=(Q, G))
    parts = 3 * rng.normal(size=(Q, K, G))
    parts[:, 2] = oracle + 0.3 * rng.normal(size=(Q, G))
    parts[:, 3] = oracle + 0.3 * rng.normal(size=(Q, G))
    return parts, oracle


def test_a_planted_run_is_found_on_the_tuning_half_and_holds_on_the_other(world):
    parts, oracle = world
    tuning = tuning_half(SETS)
    assert len(list(timesteps.runs(K))) == K * (K + 1) // 2
    best = timesteps.best_run(parts, oracle, SETS, tuning)
    np.testing.assert_array_equal(best, [0, 0, 1, 1, 0, 0])
    other = timesteps.agreement(timesteps.score_by(best, parts), oracle, SETS, ~tuning)
    whole = timesteps.agreement(timesteps.score_by(np.ones(K), parts), oracle, SETS, ~tuning)
    for name in "ab":
        assert other[name]["variation"]["low"] > whole[name]["variation"]["high"]
        assert other[name]["top1"]["value"] > whole[name]["top1"]["value"]
    parts[~tuning] = np.nan  # what is not chosen on is not read
    np.testing.assert_array_equal(timesteps.best_run(parts, oracle, SETS, tuning), best)
    assert np.isfinite(timesteps.fitted(parts, oracle, SETS, tuning)).all()


def test_every_second_query_of_either_half_is_scored():
    sets = ["a"] * 9 + ["b"] * 6
    at = timesteps.some_of_both_halves(sets)
    assert at == [0, 1, 4, 5, 8, 9, 10, 13, 14]
    np.testing.assert_array_equal(tuning_half([sets[i] for i in at]), tuning_half(sets)[at])


def test_planted_weights_come_back():
    rng = np.random.default_rng(1)
    parts, truth = rng.normal(size=(Q, K, G)), np.array([0.0, 1.0, 2.0, 0.5, 0.0, 2.5])
    oracle = 10 * timesteps.score_by(truth, parts) + 5 * np.arange(G) + rng.normal(size=(Q, 1))
    found = timesteps.fitted(parts, oracle, SETS, np.ones(Q, bool))
    np.testing.assert_allclose(found, truth / truth.mean(), atol=0.1)


def test_with_equal_weights_the_score_is_the_drop():
    rng = np.random.default_rng(2)
    strata = likelihood.Strata((1, 4, 6, 12))
    full, without = rng.normal(size=(5, 3, 2)), {g: rng.normal(size=(5, 3, 2)) for g in "xy"}
    found = timesteps.score_by(np.ones(3), timesteps.parts_of(without, full, strata.sizes))
    for k, g in enumerate("xy"):
        truth = [
            likelihood.elbo_drop(full=f, without=w, strata=strata).value for f, w in zip(full, without[g], strict=True)
        ]
        np.testing.assert_allclose(found[:, k], truth)
