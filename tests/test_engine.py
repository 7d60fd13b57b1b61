"""The measurement of the engine: simulations whose truth is known, and version 0.1's loop as an independent one."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.benchmark import coverage
from experiments.engine import __main__ as command
from experiments.engine import engine_bench, engine_parts, reference_loop, simulation, timings
from guda_core.attribution.guda import Guda
from guda_core.attribution.method import Budget
from guda_core.diffusion import likelihood
from guda_core.diffusion.batches import LEAST, MOST, fitting_batch
from guda_core.diffusion.cards import load_model
from guda_core.diffusion.precision import VARIABLE, chosen_dtype, has_fast_bfloat16
from guda_core.errors import DataError, OptionError
from guda_core.paths import BENCHMARKS
from guda_core.service import EFFORTS, Race
from tests.light import draw
from tests.tiny import save_tiny, tiny_service

STRATA = likelihood.Strata((1, 3, 11, 41, 101))
IDS = ("a", "b", "c", "d", "e")


def of(drops, noise, q, m, seed=0):
    """(Q, 1 + G, K, M) values of groups with such drops, and noise that all models share by nine tenths."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(q, 1, 4, m)), rng.normal(size=(q, 1 + len(drops), 4, m))
    mean = np.array([0, *drops])[None, :, None, None] / STRATA.sizes.sum()
    return mean + noise * (3 * shared + own)


def test_mixed_residuals_have_the_mean_and_covariance_of_the_values():
    v = of((5, 1), 0.2, 1, 4)[0]
    made = simulation.drawn(v, 20000, np.random.default_rng(1))
    np.testing.assert_allclose(made.mean(axis=2), v.mean(axis=2), atol=0.02)
    for k in range(4):
        np.testing.assert_allclose(np.cov(made[:, k]), np.cov(v[:, k]), atol=0.05)


def test_a_simulated_race_saves_passes_names_the_same_and_holds():
    race = Race((2, 4, 8), width=0.0)
    found = simulation.simulate(of((60, 57, 40, 0, 0), 0.05, 60, 24), IDS, STRATA, 12, race)
    assert 0.4 < found["share"] < 0.9 and found["same_first"] > 0.95 and found["decided"] == 0
    assert 0.9 < found["held"] <= 1
    ended = simulation.simulate(of((60, 7, 4, 0, 0), 0.05, 20, 24), IDS, STRATA, 12, Race((2, 4, 8), width=0.5))
    assert ended["decided"] == 1 and ended["share"] < 0.7


def test_further_groups_are_weaker_copies_and_the_first_ones_stay():
    v = of((50, 10, 5, 2, 1), 0.01, 3, 8)
    wide = simulation.widened(v, 20, np.random.default_rng(0))
    drop = (wide[:, 1:] - wide[:, :1]).mean(axis=3) @ STRATA.sizes
    assert wide.shape == (3, 21, 4, 8) and np.array_equal(wide[:, :6], v)
    share = drop[:, 5:].reshape(3, 3, 5)[:, :, 0] / drop[:, None, 0]
    assert (share > 0.2).all() and (share < 1.0).all() and share.std() > 0.05


def test_moved_values_have_the_scores_that_they_are_moved_to():
    scores = np.array([[3.0, 1, 2, 0, -4], [9.0, 8, 7, 6, 5]])
    moved = simulation.moved(of((5, 4, 3, 2, 1), 0.1, 3, 8), scores, STRATA.sizes, np.random.default_rng(0))
    np.testing.assert_allclose((moved[:, 1:] - moved[:, :1]).mean(axis=3) @ STRATA.sizes, scores, atol=1e-9)


def test_coverage_counts_each_groups_own_draws():
    v, race = of((60, 57, 40, 0, 0), 0.05, 1, 24)[0], Race((2, 4), width=0.0)
    without: dict[str, np.ndarray] = dict(zip(map(str, IDS), v[1:], strict=True))
    made = coverage.counted(v[0], without, STRATA, 6, race, {})
    assert len(made) == 4 and all(m["a"] == 6 and m["e"] < 6 for m in made)
    assert coverage.counted(v[0], without, STRATA, 6, None, {}) == [dict.fromkeys(IDS, 6)] * 4
    n = [m["e"] for m in made]
    found = coverage.held(v[0], without["e"], STRATA, 6, n)
    drop = without["e"] - v[0]
    for i, hit in enumerate(found):
        e = likelihood.stratified_sum(drop[:, 6 * i : 6 * i + n[i]], STRATA)
        off = abs(e.value - drop.mean(axis=1) @ STRATA.sizes)
        assert hit == (off <= (e.high - e.low) / 2 * np.sqrt(1 - n[i] / 24))
    rows = coverage.measure(v[None, 0], {g: x[None] for g, x in without.items()}, ["x"], STRATA, 6, race=race)
    assert rows[-1]["held"]["n"] == 20


def test_the_loop_of_before_gives_the_same_scores(tmp_path):
    service = tiny_service(tmp_path)
    query, guda = service.prepare(draw(tmp_path / "x.png").read_bytes()), service.method(Guda)
    scores, passes = reference_loop.drops(service.model, query, list(guda.adapters), guda.without, draws=5, strata=6)
    last = list(guda.attribute(query, Budget(draws=5, per_pass=3, strata=6)))[-1]
    assert passes == 6 * 5 * 9 == engine_bench.passes_of(last)
    for g, s in last.groups.items():
        assert (s.score, s.low, s.high) == pytest.approx(
            (scores[g].value, scores[g].low, scores[g].high), rel=1e-4, abs=1e-4
        )
    wide = timings.widened(guda, 16)
    assert len(wide.adapters) == 16 == len(wide.group_set.groups) and len(guda.adapters) == 8
    both = list(wide.attribute(query, Budget(draws=2, per_pass=2, strata=6)))[-1]
    assert len(both.ranked()) == 16 and both.groups["noto"].score != both.groups["noto-1"].score
    assert timings.bare(service.model, 4, seconds=0.01) > 0


def test_values_of_other_adapters_or_of_another_type_are_not_gone_on_with(tmp_path, monkeypatch):
    service = tiny_service(tmp_path / "m")
    guda, asked = service.method(Guda), [service.prepare(draw(tmp_path / "x.png").read_bytes())]
    monkeypatch.setattr(engine_parts, "DRAWS", 1)
    monkeypatch.setattr(engine_bench.Bench, "sample", lambda self: SimpleNamespace(queries=asked))

    def bench(name="float32", before=None):
        return engine_bench.Bench(tmp_path, {name: service.model}, {"float32": guda, name: guda}, None, before or {})

    def made_anew(of):
        counted = []
        with monkeypatch.context() as patch:
            patch.setattr(engine_parts.likelihood, "noised", lambda *a: counted.append(1) or noised(*a))
            *_, last = engine_parts.values(of)
        assert last["dtype"] == of.fastest
        return bool(counted)

    noised = engine_parts.likelihood.noised
    assert made_anew(bench()) and not made_anew(bench()) and made_anew(bench("bfloat16"))
    assert engine_parts.sampled(bench())[1].shape[:2] == (1, 1 + len(guda.adapters))  # in any type
    with np.load(tmp_path / engine_parts.VALUES) as z:
        older = {k: v for k, v in z.items() if k != engine_parts.MADE_FROM}
    np.savez(tmp_path / engine_parts.VALUES, **older)  # the record says what they are of
    settings = {"base_sha256": service.model.sha256, "adapters": guda.hashes}
    assert not made_anew(bench(before={"settings": settings, "parts": {"values": {"dtype": "float32"}}}))
    monkeypatch.setitem(guda.adapters["noto"].meta, "sha256", "of another")
    with pytest.raises(DataError, match="holds no values of these models"):
        engine_parts.sampled(bench(before={"settings": settings, "parts": {"values": {"dtype": "float32"}}}))
    assert made_anew(bench())


def test_the_committed_figures_are_those_of_todays_rules():
    record = json.loads((BENCHMARKS / command.FILE).read_text())
    named = json.loads(json.dumps({k: e.race and [list(e.race.looks), e.race.width] for k, e in EFFORTS.items()}))
    told = record["settings"]["efforts"]
    assert {k: e["race"] and [e["race"]["looks"], e["race"]["width"]] for k, e in told.items()} == named
    assert set(record["parts"]) <= set(command.PARTS) == set(engine_parts.PARTS)
    assert 0.93 <= record["coverage_quick"] <= 0.98 and 0.93 <= record["coverage_standard"] <= 0.98
    assert 0.93 <= record["coverage_standard_logo"] <= 0.98
    for noise in ("guda", "logo"):  # in today's strata
        full = record["parts"]["rules"][f"rules_{noise}"]["full"]
        assert full["same_first"] >= 0.995 and 0.93 <= full["held"] <= 0.98
    assert record["same_first"] >= 0.995 and record["parts"]["rules"]["rules_guda"]["full"]["queries"] == 500


def test_a_part_that_is_unknown_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["engine", "everything"])
    with pytest.raises(SystemExit):
        command.main()
    assert "There is no part 'everything'" in " ".join(capsys.readouterr().err.split())


def test_the_type_is_the_one_that_is_asked_for(tmp_path, monkeypatch):
    card, cpu = save_tiny(tmp_path), torch.device("cpu")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen_dtype(cpu) is None and load_model(card, device="cpu").dtype == torch.float32
    monkeypatch.setenv(VARIABLE, "bfloat16")
    model = load_model(card, device="cpu")
    assert model.dtype == torch.bfloat16 and {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert (fitting_batch(model), fitting_batch(load_model(card, device="cpu", dtype=torch.float32))) == (144, 64)
    monkeypatch.setenv(VARIABLE, "fastest")
    assert chosen_dtype(cpu) == (torch.bfloat16 if has_fast_bfloat16() else None)
    assert chosen_dtype(torch.device("cuda")) is None
    monkeypatch.setenv(VARIABLE, "int8")
    with pytest.raises(OptionError, match="int8"):
        load_model(card)


@pytest.mark.parametrize(("free", "batch"), [(1, LEAST), (80 * 2**30, MOST)])
def test_a_gpus_batch_follows_its_free_memory(tmp_path, monkeypatch, free, batch):
    model = load_model(save_tiny(tmp_path))
    model.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    assert fitting_batch(model) == batch
