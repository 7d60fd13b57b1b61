"""Races: who stops and why, what it saves, that the same values give the same draws, and that reports keep it all."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from scipy import stats
from torch.profiler import ProfilerActivity, profile

from guda_core import service as efforts
from guda_core.answers import sentences
from guda_core.answers.verdict import verdict as verdict_of
from guda_core.attribution import racing
from guda_core.attribution.logo import Logo
from guda_core.attribution.method import Budget, answers, total_cost
from guda_core.attribution.racing import BEHIND, Racing, look, passes
from guda_core.diffusion import likelihood
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.errors import NoMemoryError
from guda_core.records import Attribution, Cost, KLValues
from guda_core.reports import bundle
from guda_core.reports.findings import Verdict
from guda_core.reports.read import read_report
from guda_core.reports.replay import compare, recorded, replay
from guda_core.reports.restore import attributions
from guda_core.service import EFFORTS, Race
from tests.light import draw
from tests.tiny import tiny_service

STRATA = likelihood.Strata((1, 3, 11, 41, 101))
IDS = tuple("abcdefgh")
EASY = Race((2, 4), error=0.9, width=0.0)  # stops whoever seems behind


def planted(rng, drops, noise=0.1, m=24):
    """Values of a full model, and of one model a group whose drop is about as given."""
    full = rng.normal(size=(4, m))
    shared = full + noise * rng.normal(size=(4, m))
    return full, {g: shared + d / 100 + noise * rng.normal(size=(4, m)) for g, d in zip(IDS, drops, strict=False)}


def test_a_group_stops_when_its_bound_is_above_0_by_an_independent_computation():
    full, without = planted(np.random.default_rng(0), (50, 49, 48, 47, 5, 0, -5, 1))
    race = Race((6,), error=0.01)
    seen = look(full[:, :6], {g: v[:, :6] for g, v in without.items()}, STRATA, race, groups=8, offset={"b": 100.0})
    assert seen.order[0] == "b"
    d = (without["b"] - without["e"])[:, :6]
    n, s2 = STRATA.sizes, d.var(axis=1, ddof=1)
    terms = n**2 * s2 / 6
    df = terms.sum() ** 2 / (terms**2 / 5).sum()
    bound = n @ d.mean(axis=1) + 100.0 - stats.t.ppf(1 - 0.01 / 7, df) * np.sqrt(terms.sum())
    assert seen.bound["e"] == pytest.approx(bound)


def test_the_first_three_go_on_and_the_hopeless_stop():
    full, without = planted(np.random.default_rng(1), (50, -50, -50, -50, -50, 49, -50, -50))
    race = Racing(Race((4, 8), width=0.0), IDS, offset={})
    race.look(4, full, without, STRATA)
    assert len(race.going) == 3 and {"a", "f"} <= set(race.going) and not race.decided
    kept = list(race.going)
    race.look(5, full, without, STRATA)  # no look is due
    assert race.going == kept


def test_a_clear_answer_ends_and_a_tie_does_not():
    full, without = planted(np.random.default_rng(2), (80, 5, 0, 1), noise=0.01)
    race = Racing(Race((4,), width=0.2), IDS[:4], offset={})
    race.look(4, full, without, STRATA)
    assert race.decided and race.going == []
    for drops, width in (((80, 5, 0, 1), 1e-6), ((80, 80, 0, 1), 0.2)):  # too wide, and a tie
        full, without = planted(np.random.default_rng(2), drops, noise=0.01)
        race = Racing(Race((4,), width=width), IDS[:4], offset={})
        race.look(4, full, without, STRATA)
        assert not race.decided and len(race.going) == 3


def test_the_best_group_is_seldom_stopped_even_when_others_are_as_good():
    rng, wrong = np.random.default_rng(3), 0
    rule = Race((2, 4, 8, 16), keep=1, error=0.05, width=0.0)
    for _ in range(100):
        full, without = planted(rng, [10] * 8)
        race = Racing(rule, IDS, offset={})
        for m in rule.looks:
            race.look(m, full, without, STRATA)
        wrong += "a" not in race.going
    assert wrong <= 9  # 5 of 100 at most are expected


def test_a_record_decides_only_where_the_values_cannot():
    full, without = planted(np.random.default_rng(4), (50, 49, 48, -50, 38))
    rule = Race((4,), width=0.0)
    for follow, slack, going in (
        ({}, 0.0, "abce"),
        (dict.fromkeys("abcde", 4), 0.0, "abce"),  # clear: the rule decides, whatever is recorded
        (dict.fromkeys("abcde", 4), 1e9, ""),  # nothing is clear: the record says that all stopped
        ({**dict.fromkeys("abcd", 24), "e": 4}, 1e9, "abcd"),
    ):
        race = Racing(rule, IDS[:5], offset={}, follow=follow, slack=slack)
        race.look(4, full, without, STRATA)
        assert "".join(race.going) == going


def test_passes_go_from_look_to_look():
    assert passes(24, 4, None) == [range(i, i + 4) for i in range(0, 24, 4)]
    assert passes(3, 2, None) == [range(2), range(2, 3)]
    assert passes(6, 2, Race((1, 2, 4))) == [range(1), range(1, 2), range(2, 4), range(4, 6)]
    assert passes(2, 1, Race((1, 2, 4))) == [range(1), range(1, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("race")
    return root, tiny_service(root, missing=("noto",))


@pytest.fixture
def service(made, monkeypatch):
    monkeypatch.setitem(EFFORTS, "standard", dataclasses.replace(EFFORTS["standard"], draws=6, race=EASY))
    monkeypatch.setitem(EFFORTS, "every", dataclasses.replace(EFFORTS["every"], draws=6))
    return made[1]


@pytest.fixture
def query(service, tmp_path):
    return service.prepare(draw(tmp_path / "x.png").read_bytes())


def ask(service, query, effort="standard", **more) -> list[Attribution]:
    return list(service.attribute(query, methods=["guda"], effort=effort, **more))


def test_a_race_makes_fewer_passes_and_the_same_values(service, query):
    seen = 0

    def count(module, args, out):
        nonlocal seen
        seen += len(args[0])

    handle = service.model.network.register_forward_hook(count)
    try:
        stream = ask(service, query)
    finally:
        handle.remove()
    last = stream[-1]
    assert (
        last.kl is not None
        and last.kl.fewer
        and seen == 24 * (last.kl.full.shape[1] + sum(v.shape[1] for v in last.kl.without.values()))
    )
    most = service.cost(["guda"], "standard").forward
    assert seen < most and service._saved[frozenset(["guda"]), "standard"] == most - seen
    service.pace.__dict__["forward_s"] = 1.0  # measured, once it was asked
    assert service.estimate(["guda"], "standard") == pytest.approx(seen + 0.2)
    progress = [a.progress for a in stream]
    assert progress == sorted(progress) and progress[-1] == 1.0 and max(progress[:-1]) < 1
    (*_, every) = ask(service, query, "every")
    assert every.kl is not None and not every.kl.fewer and every.reached is None
    for g, v in last.kl.without.items():
        np.testing.assert_allclose(every.kl.without[g][:, : v.shape[1]], v, rtol=1e-5)
    for g, s in last.groups.items():
        behind = g in last.kl.fewer
        assert s.reason == (BEHIND if behind else s.reason) and (s.status == "ok" or g == "noto")
        assert not behind or (s.low or 0) < (s.score or 0) < (s.high or 0)
    assert last.reached == "draws"
    assert [v for v in sentences.rows(last, service.group_set) if v[-1] == BEHIND]


def test_what_is_wide_enough_ends_the_answer(service, query, monkeypatch):
    race = Race((2, 4), width=1e9)
    monkeypatch.setattr(racing, "one_sided", lambda e, level: 1.0)  # everyone is behind
    monkeypatch.setitem(EFFORTS, "standard", dataclasses.replace(EFFORTS["standard"], race=race))
    last = ask(service, query)[-1]
    assert last.reached == "width" and last.kl is not None and last.kl.full.shape[1] < 6 and last.progress == 1
    said = verdict_of({"guda": last}, service.group_set, ["guda"], service.methods())
    assert sentences.ENDED_EARLY in said.figures


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_groups_that_drop_out_end_no_answer_before_it_has_scores(service, query, monkeypatch, kept):
    guda = service.offered["guda"]
    good, real = list(guda.adapters)[:kept], guda.without

    def without(group):
        if group not in good:
            raise NoMemoryError(NO_MEMORY)
        return real(group)

    monkeypatch.setattr(guda, "without", without)
    *before, last = ask(service, query, "quick")
    shares = [a.progress for a in before]
    assert all(s < 1 for s in shares) and shares == sorted(shares) and last.progress == 1
    assert [g for g, s in last.groups.items() if s.status == "ok"] == good
    assert {s.reason for g, s in last.groups.items() if s.status == "no_score"} == {NO_MEMORY}


def test_every_noise_is_made_once_for_all_models_and_errors_leave_the_device_once_a_pass(service, query, monkeypatch):
    left, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t, *a, **k: left.append(t.shape) or cpu(t, *a, **k))
    service.model.embed([""])
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        last = ask(service, query, "quick")[-1]
    assert last.kl is not None
    made = {e.key: e.count for e in seen.key_averages()}
    assert made["aten::randn"] == last.kl.t.size
    assert left == [torch.Size([24])] * (2 * (1 + len(last.kl.without)))  # 2 passes of one draw in 24 strata


def test_the_full_model_is_asked_once_for_two_methods(service, query, made, monkeypatch):
    guda = service.offered["guda"]
    logo = Logo(service.model, service.group_set, made[0] / "adapters")
    both = {"guda": guda, "logo": logo}
    calls = []
    values = likelihood.kl_of

    def counted(model, condition, inputs, batch):
        calls.append(len(inputs.w))
        return values(model, condition, inputs, batch)

    monkeypatch.setattr(likelihood, "kl_of", counted)
    budget = Budget(draws=2, per_pass=1)
    found = {a.method: a for a in answers(both, ["guda", "logo"], query, budget)}
    groups = len(guda.adapters)
    assert sum(calls) == 24 * 2 * (1 + 2 * groups) == total_cost(both, both, budget).forward
    assert guda.cost(budget) == Cost(24 * 2 * (1 + groups))
    a, b = found["guda"].kl, found["logo"].kl
    assert a is not None and b is not None
    np.testing.assert_array_equal(a.full, b.full)
    alone = list(logo.attribute(query, budget))[-1]
    assert alone.groups == found["logo"].groups


def report(service, query, path, effort="standard"):
    found = [ask(service, query, effort)[-1]]
    about = {"provenance": service.provenance(), "settings": {"effort": effort, "methods": ["guda"]}}
    path.write_bytes(bundle.make(query, found, service.group_set, **about))
    return found[0]


def verdict(read, service) -> Verdict:
    *_, last = replay(read, service)
    assert isinstance(last, Verdict)
    return last


def test_a_report_keeps_who_stopped_when_and_replays(service, query, tmp_path):
    made = report(service, query, tmp_path / "r.zip")
    read = read_report(tmp_path / "r.zip")
    s = read.record["methods"]["guda"]["sampling"]
    assert made.kl is not None and s["fewer"] == made.kl.fewer and s["reached"] == made.reached
    again = attributions(read)[0]
    assert again.groups == made.groups and again.reached == made.reached
    assert again.kl is not None and again.kl.fewer == made.kl.fewer
    assert recorded(read.record["methods"]).raced and recorded(read.record["methods"]).draws["guda"] == {
        g: made.kl.without[g].shape[1] if g in made.kl.without else 6 for g in service.group_set.groups
    }
    page = zipfile.ZipFile(tmp_path / "r.zip").read("report.html").decode()
    for g, n in s["fewer"].items():
        assert re.search(rf"fewer of groups that stopped early: [^<]*{service.group_set.groups[g].name} {n}\b", page)
    assert verdict(read, service).outcome == "equal"


def test_a_report_of_before_races_is_replayed_in_full(service, query, tmp_path, monkeypatch):
    plain = dataclasses.replace(EFFORTS["standard"], race=None)
    with monkeypatch.context() as before:
        before.setitem(EFFORTS, "standard", plain)
        made = report(service, query, tmp_path / "r.zip")
    read = read_report(tmp_path / "r.zip")
    assert made.kl is not None and not made.kl.fewer and "race" not in json.dumps(read.record["methods"])
    assert "fewer" not in read.record["methods"]["guda"]["sampling"] and not recorded(read.record["methods"]).raced
    assert verdict(read, service).outcome == "equal"


def test_a_report_that_stopped_where_the_rule_does_not_is_found_out(service, query, tmp_path, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(racing, "one_sided", lambda e, level: e.value + 1e6)  # everyone is behind
        report(service, query, tmp_path / "r.zip")
    strict = Race(EASY.looks, error=1e-12, width=EASY.width)
    monkeypatch.setitem(EFFORTS, "standard", dataclasses.replace(EFFORTS["standard"], race=strict))
    found = verdict(read_report(tmp_path / "r.zip"), service)
    assert found.outcome == "different" and any("race/error" in c.where for c in found.inputs)
    assert any(c.where.startswith("guda/") for c in found.scores)


def test_in_half_precision_numbers_may_move_by_a_sixth_of_their_interval(service, query, tmp_path):
    report(service, query, tmp_path / "r.zip", "quick")
    before = read_report(tmp_path / "r.zip").record

    def moved(by: float, dtype: str) -> str:
        now = json.loads(json.dumps(before))
        now["model"]["dtype"] = dtype
        for s in now["methods"]["guda"]["groups"].values():
            if s["score"] is not None:
                wide = s["high"] - s["low"]
                for k in ("score", "low", "high"):
                    s[k] += by * wide
        return compare(before, now).outcome

    assert moved(0.1, "float32") == "different"
    assert moved(0.1, "bfloat16") == "within tolerance" and moved(0.3, "bfloat16") == "different"


def test_ragged_values_keep_their_draws_and_others_are_refused():
    t = np.ones((4, 6), np.int64)
    kl = KLValues(t, np.array(STRATA.edges), np.zeros((4, 6)), {"a": np.ones((4, 2)), "b": np.ones((4, 6))})
    again = KLValues.from_arrays(kl.to_arrays())
    assert again.fewer == {"a": 2} and [v.shape for v in again.pair("a")] == [(4, 2)] * 2
    with pytest.raises(Exception, match="do not belong together"):
        KLValues.from_arrays({**kl.to_arrays(), "kl_without/a": np.ones((4, 7))})


def test_every_field_of_a_race_matters_and_is_in_the_settings(service, query):
    base = Race((2, 4), keep=3, error=0.01, width=0.1)
    rng = np.random.default_rng(5)
    full, without = planted(rng, (60, 50, 45, 44, 43, 42, 41, 40), noise=0.15)

    def draws(race: Race) -> list[int]:
        run, made = Racing(race, IDS, offset={}), dict.fromkeys(IDS, 0)
        for columns in passes(6, 6, race):
            made |= dict.fromkeys(run.going, columns.stop)
            run.look(columns.stop, full, without, STRATA)
        return list(made.values())

    easy = dataclasses.replace(base, error=0.9, width=0.0)
    found = [draws(r) for r in (
        easy, dataclasses.replace(easy, looks=(4,)), dataclasses.replace(easy, keep=5),
        dataclasses.replace(easy, error=1e-9), dataclasses.replace(easy, width=1e9, error=3.0),
    )]  # fmt: skip
    assert len({tuple(f) for f in found}) == 5
    budget = ask(service, query)[-1].settings["budget"]
    assert budget["race"] == {"looks": [2, 4], "keep": 3, "error": 0.9, "width": 0.0}
    assert "race" not in ask(service, query, "every")[-1].settings["budget"] and "follow" not in budget


def test_efforts_race_to_their_widths():
    assert {k: e.race.width for k, e in EFFORTS.items() if e.race} == {"standard": 0.1, "full": 0.05}
    for e in EFFORTS.values():
        assert e.race is None or all(0 < n < e.draws for n in e.race.looks)
    assert efforts.find_effort("every").draws == EFFORTS["full"].draws
