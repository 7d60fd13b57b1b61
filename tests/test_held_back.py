"""What holds variation back: planted noise is taken off again, and what cannot be known is not claimed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import held_back
from guda_core.errors import DataError

Q, G = 6000, 5


def centred(x):
    return x - x.mean(axis=-1, keepdims=True)


def test_the_noise_of_draws_is_taken_off():
    """True scores correlate .8; each draw of either side adds noise of a known size."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(Q, G))
    method = 0.8 * truth + 0.6 * rng.normal(size=(Q, G))
    noisy = method + 0.7 * rng.normal(size=(2, Q, G))
    oracle = truth + 1.0 * rng.normal(size=(2, Q, G))
    found = held_back.of_draws(noisy, oracle)
    assert found["variation"] == pytest.approx(0.8 / np.sqrt((1 + 0.49 / 2) * (1 + 1 / 2)), abs=0.02)
    assert found["half_of_the_draws"] == pytest.approx(0.8 / np.sqrt(1.49 * 1.5), abs=0.02)
    assert found["reliability"] == pytest.approx(1 / 1.245, abs=0.02)
    assert found["without_own_noise"] == pytest.approx(0.8 / np.sqrt(1.5), abs=0.02)
    assert found["without_oracle_noise"] == pytest.approx(0.8 / np.sqrt(1.245), abs=0.02)
    assert found["without_both"] == pytest.approx(0.8, abs=0.02)


def test_the_chance_of_a_seed_is_taken_off():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(Q, G))
    method = 0.9 * truth + np.sqrt(1 - 0.81) * rng.normal(size=(Q, G))
    first, second = truth + 0.5 * rng.normal(size=(2, Q, G))
    shared = held_back.of_seeds(
        method + 0.3 * (first - truth), first, second
    )  # the method knows the first seed's chance
    assert shared["variation"] > shared["variation_second"] + 0.05 and shared["against_many_seeds"] < 0.91
    found = held_back.of_seeds(method, first, second)
    assert found["second_seed"] == pytest.approx(1 / 1.25, abs=0.02)
    assert found["a_perfect_method"] == pytest.approx(np.sqrt(1 / 1.25), abs=0.02)
    assert found["variation"] == pytest.approx(0.9 / np.sqrt(1.25), abs=0.02)
    assert found["against_the_mean_of_two"] == pytest.approx(0.9 / np.sqrt(1.125), abs=0.02)
    assert found["against_many_seeds"] == pytest.approx(0.9, abs=0.02)


def test_a_groups_correlation_is_pearsons_of_centred_scores():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 40, 3))
    truth = [np.corrcoef(centred(a)[:, k], centred(b)[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(held_back.each(a, b), truth)


def test_halves_that_hardly_correlate_are_not_divided_by():
    r = np.array([0.5, 0.5])
    assert held_back.without_noise(r, np.array([0.9, 0.01])) is None
    assert held_back.without_noise(r, np.array([0.25, 1.0])) == pytest.approx((0.5 / 0.5 + 0.5) / 2)


def test_the_score_of_a_draw_is_the_sum_over_strata():
    rng = np.random.default_rng(3)
    values, base, sizes = {g: rng.normal(size=(4, 3, 2)) for g in "ab"}, rng.normal(size=(4, 3, 2)), np.array([5, 2, 1])
    found = held_back.draws_of(values, base, sizes)
    for m in range(2):
        for k, g in enumerate("ab"):
            np.testing.assert_allclose(found[m, :, k], ((values[g] - base)[:, :, m] * sizes).sum(axis=1))


def test_values_that_are_not_whole_are_refused(tmp_path):
    np.save(tmp_path / "base.npy", np.full((2, 3, 2), np.nan))
    for name in ("base", "other"):
        with pytest.raises(DataError, match="no kept values"):
            held_back.kept(tmp_path, [name], 2)


def test_the_committed_figures_are_those_of_the_committed_scores():
    record = json.loads((held_back.BENCHMARKS / "held-back.json").read_text(encoding="utf-8"))
    for name, found in held_back.seed_figures().items():
        assert found == pytest.approx(record["seeds"][name])
    rows = json.loads((held_back.BENCHMARKS / "fresh" / "styles.json").read_text(encoding="utf-8"))["rows"]
    for name, found in record["fresh"].items():
        (row,) = [r for r in rows if r["method"] == "guda" and r["query_set"] == name]
        assert found["variation"] == pytest.approx(row["variation"]["value"], abs=1e-3)
