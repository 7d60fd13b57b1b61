"""What holds variation back: planted noise is taken off again, and what cannot be known is not claimed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import held_back
from experiments.benchmark import variation as v
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import chosen_card, load_model
from guda_core.errors import DataError
from guda_core.paths import ROOT

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


@pytest.fixture
def few_parts(monkeypatch):
    """An interval leaves out a twentieth of the pictures at a time."""
    monkeypatch.setattr(v, "PARTS", 20)


def two_seeds(rng, noise):
    """(truth, first (Q, G), the second's four draws (4, Q, G)): retrainings with a chance of .5 each, and the noise."""
    truth = rng.normal(size=(Q, G))
    first, second = truth + 0.5 * rng.normal(size=(2, Q, G))
    return truth, first, second + noise * rng.normal(size=(4, Q, G))


def values(found):
    return {k: x["value"] for k, x in found.items() if isinstance(x, dict)}


def test_the_chance_of_a_seed_and_the_noise_of_its_draws_are_taken_off(few_parts):
    rng = np.random.default_rng(1)
    truth, first, draws = two_seeds(rng, 1.0)
    method = 0.9 * truth + np.sqrt(1 - 0.81) * rng.normal(size=(Q, G))
    found = values(held_back.of_seeds(method, first, draws))
    noisy = np.sqrt(1.25 / 1.5)  # of four draws' mean, beside a variance of 1.25
    expected = {
        "reliability": 1.25 / 1.5,
        "second_seed": noisy / 1.25,
        "ceiling": 1 / 1.25,
        "a_perfect_method": np.sqrt(1 / 1.25),
        "variation": 0.9 / np.sqrt(1.25),
        "variation_second_drawn": noisy * 0.9 / np.sqrt(1.25),
        "variation_second": 0.9 / np.sqrt(1.25),
        "against_many_seeds": 0.9,
        "less_second_seed": 0.9 / np.sqrt(1.25) - noisy / 1.25,
        "less_ceiling": 0.9 / np.sqrt(1.25) - 1 / 1.25,
        "less_variation_second": 0.0,
    }
    assert found == pytest.approx(expected, abs=0.02)
    shared = values(held_back.of_seeds(method + 0.3 * (first - truth), first, draws))  # knows the first seed's chance
    assert shared["less_variation_second"] > 0.05 and shared["against_many_seeds"] < 0.91


def test_a_second_retraining_that_is_only_drawn_noisily_is_not_taken_for_a_worse_one():
    """The method is a retraining too, drawn without noise: as drawn the second looks worse, freed it is level."""
    rng = np.random.default_rng(5)
    truth, first, draws = (x[..., :400, :] for x in two_seeds(rng, 1.5))
    found = held_back.of_seeds(truth + 0.5 * rng.normal(size=truth.shape), first, draws)
    assert found["less_second_seed"]["low"] > 0.05
    assert found["less_ceiling"]["low"] < 0 < found["less_ceiling"]["high"]


def test_the_same_retraining_drawn_again_agrees_perfectly_without_the_noise(few_parts):
    rng = np.random.default_rng(6)
    _, first, _ = two_seeds(rng, 1.0)
    found = held_back.of_check(first, first + 2 * rng.normal(size=(4, Q, G)))
    assert found["again"]["value"] == pytest.approx(np.sqrt(1.25 / 2.25), abs=0.02)
    assert found["again_without_noise"]["value"] == pytest.approx(1, abs=0.02)


def test_reliability_is_over_all_ways_to_halve():
    draws = np.random.default_rng(7).normal(size=(4, 30, G)) + np.random.default_rng(8).normal(size=(30, G))
    halves = [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)]
    r = np.mean([held_back.each(draws[[a, b]].mean(axis=0), draws[[c, d]].mean(axis=0)) for a, b, c, d in halves], 0)
    np.testing.assert_allclose(held_back.reliability(draws, np.ones((1, 30)))[0], 2 * r / (1 + r))


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
    (tmp_path / "base.json").write_text('{"sha256": "s"}')
    for name in ("base", "other"):
        with pytest.raises(DataError, match="no kept values"):
            held_back.kept(tmp_path, [name], 2)


def test_kept_values_are_of_the_wanted_weights_and_of_one_type(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 3, 2)))
        (tmp_path / f"{name}.json").write_text(json.dumps({"sha256": name}))
    found = held_back.kept(tmp_path, "ab", 2, {"a": "a", "b": "b"})
    assert set(found.values) == {"a", "b"} and found.dtype == "float32"
    with pytest.raises(DataError, match="no kept values of 'b'"):
        held_back.kept(tmp_path, "ab", 2, {"a": "a", "b": "other"})
    (tmp_path / "b.json").write_text(json.dumps({"sha256": "b", "dtype": "torch.bfloat16"}))
    with pytest.raises(DataError, match=r"several number types \(bfloat16, float32\)"):
        held_back.kept(tmp_path, "ab", 2)


def test_the_committed_figures_are_those_of_the_committed_scores():
    record = json.loads((held_back.BENCHMARKS / "held-back.json").read_text(encoding="utf-8"))
    schedule = load_model(chosen_card(None)).schedule
    for part, sets in held_back.seed_figures(list(load_group_set("emoji").groups), schedule).items():
        assert list(sets) == list(record[part])
        for name, found in sets.items():
            for key, x in found.items():
                assert x == pytest.approx(record[part][name][key], abs=1e-6), (part, name, key)
    rows = json.loads((held_back.BENCHMARKS / "fresh" / "styles.json").read_text(encoding="utf-8"))["rows"]
    for name, found in record["fresh"].items():
        (row,) = [r for r in rows if r["method"] == "guda" and r["query_set"] == name]
        assert found["variation"] == pytest.approx(row["variation"]["value"], abs=1e-3)


def test_the_pages_sentences_say_what_the_record_holds():
    page = (ROOT / "docs" / "results" / "held-back.md").read_text(encoding="utf-8")
    record = json.loads((held_back.BENCHMARKS / "held-back.json").read_text(encoding="utf-8"))

    def said(key, part="seeds", of=lambda x: x, between=" / "):
        found = (of(record[part][s][key]["value"]) for s in ("generated", "generated-blend", "real"))
        return between.join(f"{x:.2f}".replace("0.", ".", 1) for x in found)

    for sentence in (
        f"agrees with the first by {said('ceiling')} (the *ceiling*). As drawn it is {said('second_seed')},",
        f"GUDA looked level, by {said('less_second_seed', of=abs)}.",
        f"stored models by {said('again_without_noise')}, where 1",
        f"estimated at {said('against_many_seeds', 'seeds_report')}. The intervals",
        f"estimated at {said('against_many_seeds', of=lambda x: 1 - x)} over all queries,",
        f"and at {said('against_many_seeds', 'seeds_report', of=lambda x: 1 - x)} on the half.",
    ):
        assert sentence in " ".join(page.split()), sentence
    below = said("less_ceiling", of=abs, between=" ").split()
    assert "by {} on generated pictures and {} on blends".format(*below) in page and f"lower by {below[2]}" in page
    part = said("a_perfect_method", of=lambda x: 1 - x, between=" ").split()
    assert "is {} on generated pictures, {} on blends and {} on real ones".format(*part) in page


def test_values_of_other_trainings_are_refused():
    schedule, groups = load_model(chosen_card(None)).schedule, list(load_group_set("emoji").groups)
    with pytest.raises(DataError, match="do not fit the scores"):
        held_back.drawn(groups, schedule, 4, "full", np.zeros((500, 8)))
