"""GUDA and DAS combined: closed forms of the fusion, and what the answer says where a part is silent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from guda_core.attribution import ensemble
from guda_core.attribution.ensemble import GudaAndDas
from guda_core.records import Attribution, GroupScore

COMBINED = GudaAndDas({})


def answer(method: str, scores: dict[str, float | None], half: float = 0.0, progress: float = 1.0) -> Attribution:
    groups = {
        g: GroupScore(None, None, None, "unavailable", "no file") if s is None else GroupScore(s, s - half, s + half)
        for g, s in scores.items()
    }
    return Attribution(method, "nats", groups, progress, settings={"of": method})


def test_the_score_is_the_mean_of_the_parts_standard_scores():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 8)) * 300, rng.normal(size=(4, 8)) * 1e-4
    wanted = (stats.zscore(a, axis=1) + stats.zscore(b, axis=1)) / 2
    np.testing.assert_allclose(ensemble.mean_of(a, b), wanted, atol=1e-12)
    np.testing.assert_allclose(ensemble.mean_of(5 * a - 7, 1e6 * b), wanted, atol=1e-9)  # units do not matter
    groups = [str(i) for i in range(8)]
    both = COMBINED.combine(
        {
            "guda": answer("guda", dict(zip(groups, a[0], strict=True))),
            "das": answer("das", dict(zip(groups, b[0], strict=True))),
        }
    )
    np.testing.assert_allclose([both.groups[g].score for g in groups], wanted[0], atol=1e-12)
    assert both.ranked() == [str(i) for i in np.argsort(-wanted[0])]
    assert both.settings["parts"] == {"guda": {"of": "guda"}, "das": {"of": "das"}}


def test_a_part_that_says_nothing_leaves_the_others_order():
    flat, other = np.ones(4), np.array([1.0, 4.0, 2.0, 3.0])
    assert np.argsort(ensemble.mean_of(flat, other)).tolist() == np.argsort(other).tolist()


def test_intervals_are_scaled_like_the_scores_and_added_in_squares():
    parts = {"guda": answer("guda", {"x": 30.0, "y": 10.0}, 3.0), "das": answer("das", {"x": 4.0, "y": 2.0}, 0.4)}
    both = COMBINED.combine(parts)  # standard deviations 10 and 1
    half = np.hypot(0.3, 0.4) / 2
    assert both.groups["x"].score == pytest.approx(1.0)
    assert both.groups["x"].low == pytest.approx(1 - half) and both.groups["x"].high == pytest.approx(1 + half)
    assert both.separable is True and both.runner_up == "y"
    wide = {"guda": answer("guda", {"x": 30.0, "y": 10.0}, 40.0), "das": parts["das"]}
    assert COMBINED.combine(wide).separable is False


def test_a_group_of_one_picture_has_no_interval_and_nobody_can_tell_who_leads():
    das = answer("das", {"x": 4.0, "y": 2.0}, 0.4)
    one = Attribution("das", "dot products", {**das.groups, "x": GroupScore(4.0, 4.0, 4.0)})
    both = COMBINED.combine({"guda": answer("guda", {"x": 30.0, "y": 10.0}, 3.0), "das": one})
    assert both.separable is None and both.runner_up == "y"
    assert both.groups["x"].span is None and both.groups["y"].span is not None


def test_a_group_without_a_score_in_one_part_has_none_and_says_which():
    parts = {
        "guda": answer("guda", {"x": 3.0, "y": None, "z": 1.0}),
        "das": answer("das", {"x": 1.0, "y": 9.0, "z": 2.0}, progress=0.5),
    }
    both = COMBINED.combine(parts)
    assert both.groups["y"] == GroupScore(None, None, None, "unavailable", "guda: no file")
    assert both.groups["x"].score == pytest.approx(0.0) and both.progress == 0.5
    nothing = COMBINED.combine({**parts, "das": answer("das", {})})
    assert nothing.groups == {} and nothing.separable is None
