"""The rule that says whether the model could have made a picture: formula, file, verdicts, measuring."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from guda_core.attribution import scope as scopes
from guda_core.attribution import scope_fit as measuring
from guda_core.attribution.scope import BitsConfig, Rule, bits, judge, read_rule
from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model
from guda_core.records import Query
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny")))


def query(model, seed: int = 0) -> Query:
    side = model.card.resolution
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Query(pixels, model.encode(pixels), "", hash_pixels(pixels))


def test_bits_are_those_of_the_formula(model):
    q, config = query(model), BitsConfig(strata=4, draws=3)
    strata = likelihood.make_strata(model.schedule, 4)
    draws = likelihood.draw_times(q.image_hash, strata, 3)
    weights, total = likelihood.kl_weights(model.prediction), 0.0
    for k in range(4):
        for j in range(3):
            eps, t = draws.noise(tuple(q.latent.shape[1:]), k, j)[None], torch.tensor([int(draws.t[k, j])])
            with torch.no_grad():
                guess = model.predict_eps(model.schedule.add_noise(q.latent, eps, t), t, model.embed([""]))
            kl = float(weights[t] * (eps - guess).square().sum().double())
            total += strata.sizes[k] * kl / 3
    error = np.mean((model.decode(q.latent)[0].astype(float) - q.pixels) ** 2)
    want = 0.5 * math.log2(2 * math.pi * math.e * error) + total / math.log(2) / q.pixels.size
    assert bits(model, q, config) == pytest.approx(want, rel=1e-5)
    assert bits(model, q, config) == bits(model, q, config)


def test_a_picture_that_comes_back_exactly_still_costs_its_rounding(model, monkeypatch):
    q = query(model)
    monkeypatch.setattr(model, "decode", lambda z: q.pixels[None])
    monkeypatch.setattr(likelihood, "kl_values", lambda *a: np.zeros((4, 1)))
    assert bits(model, q, BitsConfig(strata=4)) == pytest.approx(0.5 * math.log2(2 * math.pi * math.e / 12))


def test_every_setting_changes_the_bits(model):
    q = query(model)
    values = {bits(model, q, c) for c in (BitsConfig(4, 1), BitsConfig(4, 2), BitsConfig(5, 1))}
    assert len(values) == 3


def test_the_verdict_names_both_numbers(model):
    q = query(model)
    value = bits(model, q, BitsConfig(4, 1))
    outside = judge(Rule(value - 0.01, BitsConfig(4, 1), {"own": {"value": 0.02}}, "abc"), model, q)
    assert outside.verdict == "out of scope" and outside.value == value and f"{value:.2f}" in outside.reason
    assert outside.settings["errors"] == {"own": {"value": 0.02}} and outside.settings["sha256"] == "abc"
    inside = judge(Rule(value, BitsConfig(4, 1)), model, q)
    assert inside.verdict == "in scope" and "too many" not in inside.reason


def test_a_value_that_is_not_finite_is_not_judged(model, monkeypatch):
    monkeypatch.setattr(model, "predict", lambda x, *a: x * float("nan"))
    found = judge(Rule(5.0, BitsConfig(4, 1)), model, query(model))
    assert found.verdict == "not assessed" and "not finite" in found.reason


def test_a_rule_of_another_model_and_damaged_ones_are_not_used(model, tmp_path):
    path = tmp_path / "scope.json"
    assert read_rule(path, base_sha256="a") == scopes.UNKNOWN
    record = {"base_sha256": "a", "threshold": 5.0, "config": {"bits": {"strata": 4, "draws": 1}}, "kinds": {}}
    path.write_text(json.dumps(record))
    rule = read_rule(path, base_sha256="a")
    assert isinstance(rule, Rule) and rule.threshold == 5.0 and rule.config == BitsConfig(4, 1)
    assert read_rule(path, base_sha256="b") == scopes.UNKNOWN
    for bad in ("", "{", "[]", "null", json.dumps({**record, "threshold": "5"}), json.dumps({**record, "config": 1})):
        path.write_text(bad)
        assert read_rule(path, base_sha256="a") == "scope.json is damaged."
    assert judge(scopes.UNKNOWN, model, query(model)).reason == scopes.UNKNOWN


def test_measuring_sets_the_threshold_on_one_half_and_counts_on_the_rest(model, tmp_path, monkeypatch):
    side = model.card.resolution
    config = measuring.ScopeConfig(pictures=6, bits=BitsConfig(4, 1))
    easy = measuring.Kind(np.full((6, side, side, 3), 128, np.uint8), tuple("abcdef"))
    made = measuring.made_up(6, side, 0)
    monkeypatch.setattr(measuring, "calibration", lambda *a: {"own": easy})
    monkeypatch.setattr(measuring, "kinds", lambda *a: {"own": easy, "noise": made["noise"]})
    told = list(measuring.run(model, load_group_set(), tmp_path, config))
    assert told[-1] == ("noise", 1.0)
    record = json.loads((tmp_path / scopes.FILE).read_text())
    assert record["kinds"]["own"]["out_of_scope"]["value"] == 0.0
    assert record["kinds"]["noise"]["out_of_scope"]["value"] == 1.0
    assert record["kinds"]["own"]["belongs"] and not record["kinds"]["noise"]["belongs"]
    assert record["threshold"] == pytest.approx(record["kinds"]["own"]["bits"]["p95"], abs=1e-3)
    rule = read_rule(tmp_path / scopes.FILE, base_sha256=model.sha256)
    assert isinstance(rule, Rule) and rule.config == config.bits and set(rule.errors) == {"own", "noise"}


def test_foreign_pictures_are_the_same_each_time_and_of_the_right_shape():
    for make in (measuring.photographs, measuring.digits):
        a, b, other = make(6, 32, 1), make(6, 32, 1), make(6, 32, 2)
        assert a.pixels.shape == (6, 32, 32, 3) and a.pixels.dtype == np.uint8 and len(a.sources) == 6
        assert (a.pixels == b.pixels).all() and (a.pixels != other.pixels).any()
    assert len(set(measuring.photographs(12, 32, 1).sources)) == 6
    plain = measuring.made_up(5, 8, 0)["plain"].pixels
    assert (plain == plain[:, :1, :1]).all() and (plain[0] == 255).all() and (plain[1] == 0).all()
