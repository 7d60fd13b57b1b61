"""The offset of GUDA's scores: it is added for every picture, told apart from the drop, and never made up."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from experiments import offset as fitting
from experiments.benchmark import fair, offset_tables
from guda_core.answers import markup, sentences
from guda_core.answers.verdict import Verdict, verdict
from guda_core.attribution.calibration import fitted_with, read_calibration, write_weight
from guda_core.attribution.guda import Guda, offset_of
from guda_core.attribution.logo import Logo
from guda_core.attribution.method import Budget, Context, Unavailable
from guda_core.cli import terminal
from guda_core.cli.attribute_command import _show_answer as show
from guda_core.data.groups import load_group_set
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model
from guda_core.errors import DataError
from guda_core.paths import BENCHMARKS, SHIPPED_RUN
from guda_core.records import Attribution, GroupScore, KLValues, Query
from guda_core.reports.replay import recorded
from guda_core.ui import examples, inspect
from guda_core.unlearning import adapters
from guda_core.unlearning.adapters import OFFSET
from guda_core.unlearning.config import UnlearnConfig
from tests.light import LightService
from tests.tiny import save_tiny

WEIGHT, SE = 1.04, 30.0
GROUPS = load_group_set("emoji")
IDS = list(GROUPS.groups)[:3]
CONFIG, HEALTH = dataclasses.asdict(UnlearnConfig()), {"pictures": 16, "held_out": 160}
MEANS = {IDS[0]: -5.0, IDS[1]: 2000.0, IDS[2]: 7.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def folder(model, tmp_path):
    """Three random adapters without health."""
    spec = adapters.LoraSpec(rank=2, alpha=4)
    for seed, g in enumerate(IDS):
        student = copy.deepcopy(model.network)
        with torch.no_grad():
            for p in adapters.attach(student, spec, seed):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())))
        adapters.save(
            student, tmp_path / g, spec=spec, meta={"group": g, "base_sha256": model.sha256, "config": CONFIG}
        )
    return tmp_path


def note(folder, group, **changes):
    """The health of a group's adapter."""
    record = {OFFSET: {"mean": MEANS[group], "se": SE, "n": 140}, "unit": "nats", "config": HEALTH}
    record["adapter_sha256"] = adapters.read_meta(folder / group)["sha256"]
    (folder / group / adapters.HEALTH).write_text(json.dumps({**record, **changes}))


def weighted(model, folder) -> Guda:
    made = Guda(model, GROUPS, folder)
    made.offset, made.offset_se = offset_of(folder, made.adapters, WEIGHT)
    return made


def answer(model, folder, method=None, **budget) -> Attribution:
    latent = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    query = Query(pixels=torch.zeros(1).numpy(), latent=latent, prompt="", image_hash="x")
    made = method or weighted(model, folder)
    *_, last = made.attribute(query, Budget(draws=2, per_pass=1, strata=8, **budget))
    return last


def test_it_is_added_to_scores_and_intervals_and_decides_the_order(model, folder):
    plain = answer(model, folder)
    assert plain.settings["offset"] == {} and plain.offset(IDS[0]) == 0
    for g in IDS:
        note(folder, g)
    found = answer(model, folder)
    assert found.settings["offset"] == {g: WEIGHT * MEANS[g] for g in IDS}
    assert found.settings["offset_se"] == dict.fromkeys(IDS, WEIGHT * SE)
    for g in IDS:
        a, b = plain.groups[g], found.groups[g]
        assert b.score == pytest.approx(a.score + WEIGHT * MEANS[g])
        assert (b.low + b.high) / 2 == pytest.approx(b.score) and b.high - b.low > a.high - a.low
        np.testing.assert_array_equal(found.kl.without[g], plain.kl.without[g])
    assert found.ranked()[0] == IDS[1]
    first, second = IDS[1], found.runner_up
    strata = likelihood.make_strata(model.schedule, 8)
    ahead = likelihood.difference(first=found.kl.without[first], second=found.kl.without[second], strata=strata)
    both = ahead.plus(found.offset(first) - found.offset(second), WEIGHT * SE * 2**0.5)
    assert found.separable == (both.low > 0) and both.low < ahead.low + found.offset(first) - found.offset(second)


def test_two_errors_add_up_as_variances():
    sampled = likelihood.Estimate(10.0, 3.0, 4.0, 16.0, 5.0)
    found = sampled.plus(2.0, 4.0)
    assert (found.value, found.se) == (12.0, 5.0) and found.df == pytest.approx(5.0**4 / (3.0**4 / 5.0))
    half = float(stats.t.ppf(0.975, found.df)) * 5.0
    assert (found.low, found.high) == pytest.approx((12.0 - half, 12.0 + half))
    assert sampled.plus(2.0) == likelihood.Estimate(12.0, 3.0, 6.0, 18.0, 5.0)
    rng = np.random.default_rng(0)  # a mean of 6 values with a known mean's error beside it: covered in 95% of cases
    held = 0
    for _ in range(4000):
        x, other = rng.normal(0, 3 * 6**0.5, 6), rng.normal(0, 4)
        se = x.std(ddof=1) / 6**0.5
        e = likelihood.Estimate(float(x.mean()), float(se), 0.0, 0.0, 5.0).plus(other, 4.0)
        held += e.low <= 0 <= e.high
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


def test_a_report_of_before_is_computed_without_the_offsets_error(model, folder):
    for g in IDS:
        note(folder, g)
    now, then = answer(model, folder), answer(model, folder, offset_error=False)
    assert "offset_se" in now.settings and "offset_se" not in then.settings
    assert all(then.groups[g].high < now.groups[g].high for g in IDS)
    methods = {m: {"settings": dict(a.settings), "sampling": None} for m, a in {"now": now, "then": then}.items()}
    assert recorded({"guda": methods["now"]}).offset_error
    assert not recorded({"guda": methods["then"]}, "0.1.0").offset_error
    assert recorded({"guda": methods["then"]}).offset_error  # no later version leaves it out
    assert recorded({"clip": {"settings": {}, "sampling": None}}).offset_error


def test_an_offset_of_few_pictures_has_a_wider_error_and_of_one_there_is_none(model, folder):
    for g in IDS:
        note(folder, g)
    many = weighted(model, folder)
    note(folder, IDS[0], **{OFFSET: {"mean": MEANS[IDS[0]], "se": SE, "n": 3}})
    few = weighted(model, folder)
    assert few.offset == many.offset and few.offset_se[IDS[1]] == many.offset_se[IDS[1]] == WEIGHT * SE
    assert few.offset_se[IDS[0]] == pytest.approx(WEIGHT * SE * stats.t.ppf(0.975, 2) / 1.96)
    note(folder, IDS[0], **{OFFSET: {"mean": MEANS[IDS[0]], "n": 1}})
    assert weighted(model, folder).offset == {}


@pytest.mark.parametrize("bad", [{"adapter_sha256": "of another"}, {OFFSET: {}}, {OFFSET: {"mean": None}}, {OFFSET: 3}])
def test_without_a_figure_of_just_these_adapters_nothing_is_added_to_any(model, folder, bad):
    for g in IDS:
        note(folder, g)
    note(folder, IDS[2], **bad)
    assert weighted(model, folder).offset == {}
    (folder / IDS[2] / adapters.HEALTH).write_text("damaged")
    assert weighted(model, folder).offset == {}


def test_without_a_calibration_the_score_is_the_papers(model, folder, tmp_path):
    for g in IDS:
        note(folder, g)
    assert Guda(model, GROUPS, folder).offset == {}
    context = Context(model, GROUPS, adapters=folder, calibration=tmp_path / "calibration.json")
    loaded = Guda.load(context)
    assert isinstance(loaded, Guda) and loaded.offset == {}
    of = fitted_with(folder, IDS)
    write_weight(
        tmp_path / "calibration.json", 0.5, base_sha256=model.sha256, group_set="emoji", fitted="by hand", **of
    )
    loaded = Guda.load(context)
    assert isinstance(loaded, Guda) and loaded.offset == {g: 0.5 * MEANS[g] for g in IDS}
    assert "offset" not in loaded.caveat()


def test_a_weight_waits_for_the_health_that_is_not_measured_yet(model, folder, tmp_path):
    path = tmp_path / "calibration.json"
    for g in IDS:
        note(folder, g)
    write_weight(path, 0.5, base_sha256=model.sha256, group_set="emoji", **fitted_with(folder, IDS))
    (folder / IDS[1] / adapters.HEALTH).unlink()
    loaded = Guda.load(Context(model, GROUPS, adapters=folder, calibration=path))
    assert isinstance(loaded, Guda) and loaded.offset == {}
    assert f"the health of {IDS[1]} was not measured" in loaded.caveat() and "remove" not in loaded.caveat()


@pytest.mark.parametrize("change", ["steps", "health", "no file's settings"])
def test_a_weight_is_used_for_adapters_of_the_settings_alone_that_it_was_fitted_with(model, folder, tmp_path, change):
    path = tmp_path / "calibration.json"
    for g in IDS:
        note(folder, g)
    of = fitted_with(folder, IDS) if change != "no file's settings" else {}
    write_weight(path, 0.5, base_sha256=model.sha256, group_set="emoji", **of)
    if change == "steps":
        meta = adapters.read_meta(folder / IDS[1])
        meta["config"]["loop"]["steps"] = 20
        (folder / IDS[1] / adapters.META).write_text(json.dumps(meta))
    elif change == "health":
        note(folder, IDS[1], config={**HEALTH, "held_out": 8})
    loaded = Guda.load(Context(model, GROUPS, adapters=folder, calibration=path))
    assert isinstance(loaded, Guda) and loaded.offset == loaded.offset_se == {}
    said = f"with other settings than those of {IDS[1]}. Fit it again" if of else "does not say which adapters"
    assert said in loaded.caveat()
    if of:
        with pytest.raises(DataError, match="different settings"):
            fitted_with(folder, IDS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"offset_weight": float("nan")}, "no usable offset_weight, but nan"),
        ({"offset_weight": -1}, "but -1"),
        ({"offset_weight": True}, "but True"),
        ({"offset_weight": None}, "but None"),
        ({"offset_weight": "1"}, "but '1'"),
        ({"queries": "many"}, "no usable queries, but 'many'"),
        ({"base_sha256": "another"}, "made for another base model (another, this one is "),
        ({"group_set": "artists"}, "made for another group set ('artists', not 'emoji')"),
        (None, "cannot be read"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_said_and_guda_is_not_offered(model, folder, tmp_path, changes, sentence):
    path = tmp_path / "calibration.json"
    write_weight(path, 1.04, base_sha256=model.sha256, group_set="emoji")
    record = {**json.loads(path.read_text()), **(changes or {})}
    path.write_text("[" if changes is None else json.dumps(record))
    found = Guda.load(Context(model, GROUPS, adapters=folder, calibration=path))
    assert isinstance(found, Unavailable) and sentence in found.reason and "experiments.offset" in found.reason


def test_the_committed_weight_is_the_fit_to_the_committed_scores():
    weight, n, base = fitting.fit(BENCHMARKS, SHIPPED_RUN / "adapters")
    found = read_calibration(SHIPPED_RUN / "calibration.json", base_sha256=base, group_set="emoji")
    assert found is not None and round(weight, 2) == found.offset_weight == 1.04 and n == 250
    assert {"unlearning": found.unlearning, "health": found.health} == fitted_with(
        SHIPPED_RUN / "adapters", GROUPS.groups
    )


def test_a_planted_weight_is_found():
    rng = np.random.default_rng(0)
    drop, offset = rng.normal(0, 30, (50, 8)), rng.normal(10, 5, 8)
    oracle = 2.0 * drop + 3.0 * offset + rng.normal(0, 100, (50, 1))  # what moves all of a query's scores alike is free
    assert offset_tables.weight_of(drop, offset, oracle) == pytest.approx(1.5)


@pytest.mark.parametrize(("a", "b"), [(-2.0, -3.0), (-2.0, 3.0), (2.0, -3.0)])
def test_scores_that_fall_with_the_oracles_or_an_offset_that_counts_against_have_no_weight(a, b):
    """Two negative factors have a positive ratio, and still there is none."""
    rng = np.random.default_rng(0)
    drop, offset = rng.normal(0, 30, (50, 8)), rng.normal(10, 5, 8)
    with pytest.raises(DataError, match=rf"factor {a:g} and the offset {b:g}; .* no weight"):
        offset_tables.weight_of(drop, offset, a * drop + b * offset)
    items = [{"set": "real", "groups": [str(i % 8)], "prompt": ""} for i in range(50)]
    truth = a * drop + b * offset
    scores = {"logo": truth, "guda/drop": drop, "guda": drop + offset, "das": drop, "dtrak": truth - offset}
    rows = fair.with_fair_rows(scores, items, {str(k): () for k in range(8)})
    assert "das + offset" not in rows and "dtrak + offset" in rows


def test_the_fitted_weight_has_an_interval_over_queries():
    rng = np.random.default_rng(1)
    held, sets = 0, ["real"] * 80
    for _ in range(60):
        drop, offset = rng.normal(0, 10, (80, 8)), rng.normal(0, 10, 8)
        truth = 2 * drop + 3 * offset + rng.normal(0, 40, (80, 8))
        (row, _) = offset_tables.offset_fit({"logo": truth, "guda": drop, "guda + offset": drop + offset}, sets)
        assert row["low"] < row["weight"] < row["high"]
        held += row["low"] <= 1.5 <= row["high"]
    assert held >= 51  # of 60, at 95%: fewer come once in 300 runs


def test_retrained_models_have_none(model, folder):
    for g in IDS:
        note(folder, g)
    assert "offset" not in answer(model, folder, Logo(model, GROUPS, folder)).settings


def test_behind_a_group_whose_drop_is_not_clear_another_may_stand_out():
    a = scored(30, 8, 25)
    other = {IDS[1]: GroupScore(28.0, 20.0, 36.0), IDS[2]: GroupScore(12.0, 9.0, 15.0)}
    a = dataclasses.replace(
        a, groups={**a.groups, **other}, settings={"offset": {IDS[0]: 25.0, IDS[1]: 19.0, IDS[2]: -3.0}}
    )
    first, third = GROUPS.groups[IDS[0]].name, GROUPS.groups[IDS[2]].name
    said = judged(a)
    assert said.headline == f"{first} or {third}: two readings" and said.chips[0].text == "close"
    assert said.plain == (
        f"{first} comes first, but its drop, measured on this picture, is not clearly above 0. {third} stands out "
        "most: its drop is."
    )
    assert sentences.first_of(a, GROUPS) == f"{first}; {third} stands out"
    retrained = dataclasses.replace(a, method="logo", groups={**a.groups, IDS[0]: GroupScore(30, -1, 61)}, settings={})
    second = GROUPS.groups[IDS[1]].name
    assert sentences.first_of(retrained, GROUPS) == f"{first}; {second} stands out"
    said = judged(retrained)
    assert said.headline == f"{first} or {second}: two readings"
    assert said.plain == (
        f"{first} comes first, but its interval reaches down to 0. {second} stands out most: its interval does not."
    )


def test_a_kept_example_is_of_just_this_offset_part(folder):
    service = LightService()
    example = examples.Example("rocket", "twemoji", 1)
    before = examples._place(service, example, ("guda",))
    service.change(made_from={"guda": {"offset": {"noto": 3.0}}})
    assert examples._place(service, example, ("guda",)) != before


def scored(score: float, half: float, offset: float) -> Attribution:
    groups = {g: GroupScore(0.0, -1.0, 1.0) for g in IDS[1:]}
    groups |= {IDS[0]: GroupScore(score, score - half, score + half)}
    return Attribution("guda", "nats", groups, settings={"offset": {IDS[0]: offset}}, separable=True, runner_up=IDS[1])


def test_a_group_whose_drop_is_not_clearly_above_zero_does_not_stand_out():
    name = GROUPS.groups[IDS[0]].name
    said = judged(scored(30, 8, 25))
    assert said.headline == "No group stands out" and said.chips[0].text == "no group"
    assert said.plain == f"{name} comes first, but its drop, measured on this picture, is not clearly above 0."
    assert sentences.first_of(scored(30, 8, 25), GROUPS) == "no group stands out"
    clear = judged(scored(40, 8, 25))
    assert clear.headline == f"Most needed: {name}" and name in sentences.first_of(scored(40, 8, 25), GROUPS)
    for none in (scored(3, 8, 0), scored(3, 8, -5)):
        assert judged(none).headline == "No group stands out" and "reaches down to 0" in judged(none).plain


def test_where_the_offset_decides_the_order_the_first_by_the_drop_is_named_too():
    groups = {IDS[0]: GroupScore(40.0, 38.0, 42.0), IDS[1]: GroupScore(34.0, 32.0, 36.0)}
    a = Attribution("guda", "nats", groups, settings={"offset": {IDS[0]: 28.0, IDS[1]: 19.0}}, separable=True)
    first, second = (GROUPS.groups[g].name for g in IDS[:2])
    said = judged(dataclasses.replace(a, runner_up=IDS[1]))
    assert said.headline == f"Most needed: {first}"
    assert said.plain == (
        f"By {Guda.name}, {first} has the highest score. By the drop on this picture alone, {second} would come first."
    )
    assert "explains this picture worst" in judged(dataclasses.replace(a, settings={}, runner_up=IDS[1])).plain


@pytest.mark.parametrize(
    ("low", "offset", "stands_out"),
    [
        (26.0, 25.0, True),
        (25.0, 25.0, False),
        (1.0, 0.0, True),
        (0.0, 0.0, False),
        (1.0, -5.0, True),
        (-1.0, -5.0, False),
    ],
)
def test_a_group_stands_out_if_its_drop_and_its_score_are_clearly_above_zero(low, offset, stands_out):
    a = Attribution("guda", "nats", {IDS[0]: GroupScore(low + 4, low, low + 8)}, settings={"offset": {IDS[0]: offset}})
    assert a.stands_out(IDS[0]) == stands_out == (low > 0 and low - offset > 0)


def judged(a: Attribution) -> Verdict:
    return verdict({"guda": a}, GROUPS, ["guda"], {"guda": Guda.info()})


def test_the_command_line_shows_it_in_a_column_of_its_own(monkeypatch):
    shown = Console(record=True, width=140)
    monkeypatch.setattr(terminal, "OUT", shown)
    a = scored(40, 8, 25)
    missing = GroupScore(None, None, None, "unavailable", "Its file is missing.")
    show(dataclasses.replace(a, groups={**a.groups, "noto": missing}), GROUPS, Guda.info())
    text = shown.export_text(clear=True)
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert Guda.name in text and "Influence: how much worse" in text  # its note
    assert "offset" in text and {len(row) for row in cells} == {6}
    assert cells[0][2:5] == ["40.0", "32.0 to 48.0", "25.0"] and cells[-1][5].startswith("unavailable")
    show(dataclasses.replace(a, settings={}), GROUPS, Guda.info())
    assert "│ offset" not in shown.export_text()


def test_the_screens_table_has_it_as_text():
    missing = GroupScore(None, None, None, "unavailable", "Its file is missing.")
    a = scored(40, 8, 25)
    a = dataclasses.replace(a, groups={**a.groups, "noto": missing})
    table = sentences.rows(a, GROUPS)
    assert table[0][2:] == ("40", "32 to 48", "25", "15", "")
    assert table[-1][4:] == ("-", "-", "unavailable: Its file is missing.") and {len(r) for r in table} == {7}
    shown = markup.scores_html(a, GROUPS, "GUDA")
    heads, cells = (re.findall(rf"<{tag}[^>]*>([^<]*)</{tag}>", shown) for tag in ("th", "td"))
    first = dict(zip(heads, cells, strict=False))
    assert first["Offset"] == "25" and first["Drop"] == "15"
    plain = dataclasses.replace(a, settings={})
    assert "ffset" not in markup.scores_html(plain, GROUPS, "GUDA") and len(sentences.rows(plain, GROUPS)[0]) == 5


def test_the_evidence_adds_up_to_the_score():
    edges = np.array([1, 3, 10, 40, 100])
    full = np.random.default_rng(0).normal(5, 1, (4, 6))
    kl = KLValues(np.ones((4, 6), np.int64), edges, full, {IDS[0]: full + 1.0})  # a fall of 99 nats
    for offset, lines in ((20.0, (">99<", ">20<", ">119<", "the offset")), (0.0, (">99<", "all: the score"))):
        a = Attribution(
            "guda", "nats", {IDS[0]: GroupScore(99 + offset, None, None)}, kl=kl, settings={"offset": {IDS[0]: offset}}
        )
        said, _, table = inspect.steps(a, IDS[0], "A")
        assert all(line in str(table) for line in lines), str(table)
        assert ("offset" in str(said)) == bool(offset)
        _, _, narrowed = inspect.narrowing(a, IDS[0], "A")
        assert f">{99 + offset:.0f}<" in str(narrowed)
