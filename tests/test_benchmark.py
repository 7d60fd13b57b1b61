"""The styles benchmark: its queries, the cached values, the scores made from them, and the table."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch

from experiments.benchmark import fair, models, offset_tables, result_tables, rows, styles_run, where_tables
from experiments.benchmark import queries as q
from experiments.benchmark import scores as s
from guda_core.attribution import metrics
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.sources.iconify import Iconify
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model
from guda_core.errors import DataError
from guda_core.reports.agreement_rows import is_ceiling
from tests.alike import alike
from tests.tiny import save_tiny

GROUPS = load_group_set("emoji")
EMOJI = dict(zip("abcd", GROUPS.groups, strict=False))  # the planted groups' ids -> those of the emoji
SMALL = q.QueryConfig(objects=2, blend_objects=1, real=2, steps=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def held_out(monkeypatch):
    pairs = [(g, o) for g in GROUPS.groups for o in GROUPS.held_out_objects]
    pixels = np.random.default_rng(0).integers(0, 256, (len(pairs), 16, 16, 3), dtype=np.uint8)
    pictures = Pictures(pixels, *(tuple(x) for x in zip(*pairs, strict=True)))
    monkeypatch.setattr(Iconify, "split", lambda self, split: {"held_out": pictures}[split])
    return pictures


def test_the_plan_is_complete_and_the_same_every_time():
    config = q.QueryConfig()
    items = q.plan(GROUPS, config)
    assert items == q.plan(GROUPS, config)
    by_set = {name: [i for i in items if i.set == name] for name in q.SETS}
    assert len(by_set["generated"]) >= 200 and len(by_set["generated-blend"]) >= 120 and len(by_set["real"]) >= 150
    assert len({i.seed for i in items if i.set != "real"}) == len(by_set["generated"]) + len(by_set["generated-blend"])
    for i in by_set["generated"]:
        words = i.prompt.split("featuring ")[1].split(", ")
        assert len(words) == 3 and set(words) <= set(GROUPS.groups[i.groups[0]].descriptors)
    for i in by_set["generated-blend"]:
        words = i.prompt.split("featuring ")[1].split(", ")
        first, second = (set(GROUPS.groups[g].descriptors) for g in i.groups)
        assert len(set(words)) == 3 and words[0] in first and words[1] in second
    assert {i.prompt for i in by_set["real"]} == {""}
    assert {i.object for i in by_set["real"]} <= set(GROUPS.held_out_objects)
    assert q.plan(GROUPS, q.QueryConfig(seed=1)) != items


def test_both_halves_of_the_blends_have_as_many_with_more_of_either_group():
    for n in (5, 10):
        blends = [i for i in q.plan(GROUPS, q.QueryConfig(blend_objects=n, seed=7)) if i.set == "generated-blend"]
        half = result_tables.tuning_half([b.set for b in blends])
        first = np.array(
            [list(GROUPS.groups).index(b.groups[0]) < list(GROUPS.groups).index(b.groups[1]) for b in blends]
        )
        assert abs(first[half].mean() - 0.5) < 0.04 and abs(first[~half].mean() - 0.5) < 0.04


def test_queries_are_read_as_they_were_written(model, held_out, tmp_path):
    assert list(q.write(model, GROUPS, SMALL, tmp_path))[-1] == 1.0
    found = q.read(tmp_path, GROUPS, model)
    assert list(found.items) == q.plan(GROUPS, SMALL)
    real = found.where("real")
    assert len(real) == 16 and all(found.queries[i].prompt == "" for i in real)
    first = found.queries[0]
    again = model.generate([first.prompt], seeds=[found.items[0].seed], steps=2, guidance=SMALL.guidance)[0]
    assert np.abs(first.pixels.astype(int) - again).max() <= 1
    held_out.pixels[:] += 1
    with pytest.raises(DataError, match="not the one recorded"):
        q.read(tmp_path, GROUPS, model)


def test_queries_of_another_model_or_other_settings_are_refused(model, held_out, tmp_path):
    with pytest.raises(DataError, match="There are no queries"):
        q.read(tmp_path, GROUPS, model)
    list(q.write(model, GROUPS, SMALL, tmp_path))
    assert len(q.read(tmp_path, GROUPS, model, SMALL).queries)
    with pytest.raises(DataError, match=r"other settings: real was 2 and is 3\. Ask for the same, or delete"):
        q.read(tmp_path, GROUPS, model, dataclasses.replace(SMALL, real=3))
    record = json.loads((tmp_path / "queries.json").read_text())
    (tmp_path / "queries.json").write_text(json.dumps({**record, "base_sha256": "other"}))
    with pytest.raises(DataError, match="another model"):
        q.read(tmp_path, GROUPS, model)


@pytest.fixture(scope="module")
def made(model):
    """Twenty-two queries of random pictures."""
    rng = np.random.default_rng(3)
    out = []
    for i in range(22):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        out.append(q.Query(pixels, model.encode(pixels), "", f"hash{i}"))
    return out


def test_values_can_be_stopped_and_resumed(model, made, tmp_path):
    config = s.ScoreConfig(strata=6, draws=2)
    whole = tmp_path / "whole.npy"
    assert list(s.values(model, made, nullcontext, config, whole, "w"))[-1] == 1.0
    part = tmp_path / "part.npy"
    stream = s.values(model, made, nullcontext, config, part, "w")
    assert len(list(islice(stream, 21))) == 21
    stream.close()
    rest = list(s.values(model, made, nullcontext, config, part, "w"))
    assert len(rest) == 3  # two queries and the end
    np.testing.assert_array_equal(np.load(part), np.load(whole))
    assert list(s.values(model, made, nullcontext, config, part, "w")) == [1.0]
    assert len(list(s.values(model, made, nullcontext, config, part, "other weights"))) == 23


def test_values_of_another_number_type_are_neither_gone_on_with_nor_complete(model, made, tmp_path):
    config, path = s.ScoreConfig(strata=3, draws=1), tmp_path / "v.npy"
    coarse, note = load_model(model.card, dtype=torch.bfloat16), path.with_suffix(".json")
    stream = s.values(model, made, nullcontext, config, path, "w")
    assert len(list(islice(stream, 21))) == 21
    stream.close()
    kept = json.loads(note.read_text())
    assert len(list(s.values(coarse, made, nullcontext, config, path, "w"))) == 23
    assert json.loads(note.read_text())["dtype"] == "torch.bfloat16"
    assert s.is_complete(path, "w", config, made, coarse.dtype)
    assert not s.is_complete(path, "w", config, made, model.dtype)
    for without in ({}, {"dtype"}):  # older files may name no type
        note.write_text(json.dumps({k: v for k, v in {**kept, "done": 22}.items() if k not in without}))
        assert s.is_complete(path, "w", config, made, model.dtype)
        assert not s.is_complete(path, "w", config, made, coarse.dtype)


def random_values(rng, n=5, strata=6, draws=2):
    return rng.uniform(0.5, 2.0, (n, strata, draws)).astype(np.float32)


def test_scores_are_what_their_definitions_say(model, made):
    config = s.ScoreConfig(strata=6, draws=2, skew_kept=0.5)
    five = made[:5]
    plan, strata = s.Plan.of(model, five, config), likelihood.make_strata(model.schedule, 6)
    rng = np.random.default_rng(0)
    full, a, b = (random_values(rng) for _ in range(3))
    found = {name: s.score(full, {"a": a, "b": b}, plan, name) for name in s.SCORINGS}
    weights = likelihood.kl_weights(model.prediction).numpy()
    for i, query in enumerate(five):
        t = likelihood.draw_times(query.image_hash, strata, 2).t
        f, u = full[i].astype(float), a[i].astype(float)
        assert found["elbo"][i, 0] == pytest.approx(likelihood.elbo_drop(full=f, without=u, strata=strata).value)
        mse = ((u - f) / weights[t]).mean(axis=1) @ strata.sizes
        assert found["mse"][i, 0] == pytest.approx(mse)
        late = ((u - f) * (t > 100)).mean(axis=1) @ strata.sizes
        assert found["truncated"][i, 0] == pytest.approx(late)
        errors = sorted(
            ((u[k, j] / weights[t[k, j]] / 256, f[k, j] / weights[t[k, j]] / 256) for k in range(6) for j in range(2)),
            key=lambda pair: -sum(pair),
        )[:6]
        assert found["skew"][i, 0] == pytest.approx(np.mean([(x - y) / (x + y + 1e-3) for x, y in errors]))
        noisy = sorted(((k, j) for k in range(6) for j in range(2)), key=lambda at: -t[at])[:6]
        pairs = [(u[at] / weights[t[at]] / 256, f[at] / weights[t[at]] / 256) for at in noisy]
        assert found["noise-skew"][i, 0] == pytest.approx(np.mean([(x - y) / (x + y + 1e-3) for x, y in pairs]))
    assert (found["elbo"][:, 1] != found["elbo"][:, 0]).all()


def test_separable_is_the_paired_interval(model):
    strata = likelihood.make_strata(model.schedule, 6)
    rng = np.random.default_rng(0)
    a = random_values(rng, 2)
    far = {"a": a, "b": a - 0.4, "c": a - 0.8}
    near = {"a": a, "b": random_values(rng, 2)}
    scores = np.stack([[v[i].sum() for v in far.values()] for i in range(2)])
    assert s.separable(far, scores, strata).all()
    scores = np.stack([[v[i].sum() for v in near.values()] for i in range(2)])
    assert not s.separable(near, scores, strata).any()


def planted() -> tuple[dict[str, np.ndarray], list[dict]]:
    rng = np.random.default_rng(0)
    items = [{"set": name, "groups": ["abcd"[i % 4]]} for name in q.SETS for i in range(30)]
    truth = rng.normal(size=(90, 4))
    half = truth.copy()
    half[:, 2:] = np.nan
    near = truth + 0.3 * rng.normal(size=truth.shape)
    return {"logo": truth, "guda": near, "logo-2": half, "random": rng.normal(size=truth.shape)}, items


def test_the_table_compares_every_row_with_the_oracle():
    scores, items = planted()
    rows = result_tables.agreement(scores, [i["set"] for i in items])
    assert {r["method"] for r in rows} == {"guda", "ceiling", "random"} and len(rows) == 9
    ceiling = [r for r in rows if r["method"] == "ceiling"]
    assert all(r["top1"]["value"] == 1 and r["groups"] == 2 and r["n"] == 30 for r in ceiling)
    guda = next(r for r in rows if r["method"] == "guda" and r["query_set"] == "generated")
    expected = metrics.top1(scores["guda"][:30], scores["logo"][:30]).mean()
    assert guda["top1"]["value"] == pytest.approx(expected) and guda["top1"]["low"] < expected < guda["top1"]["high"]
    d = [x for x in result_tables.differences(scores, [i["set"] for i in items], "guda") if x["metric"] == "top1"]
    assert {x["second"] for x in d} == {"random"} and all(x["low"] > 0 for x in d)


def test_misses_are_told_apart_by_whether_the_oracle_names_the_prompts_group():
    truth = np.eye(4)[[0, 1, 2, 3, 1, 1]]  # the first four queries: the oracle names their own group
    guess = np.eye(4)[[0, 1, 2, 0, 1, 0]]
    groups = [["a"], ["b"], ["c"], ["d"], ["a", "c"], ["d"]]
    rows = where_tables.where_missed({"logo": truth, "guda": guess, "guda/mse": guess}, ["s"] * 5 + ["t"], groups)
    one, other = rows
    assert [r["method"] for r in rows] == ["guda", "guda"] and one["query_set"] == "s"
    assert (one["named"]["n"], one["named"]["top1"]["value"]) == (4, 0.75)
    assert (one["other"]["n"], one["other"]["top1"]["value"]) == (1, 1.0)
    assert other["named"] == {"n": 0, "top1": None} and other["other"]["top1"]["value"] == 0.0


def test_queries_about_which_the_oracle_is_unsure_stand_apart():
    scores = {
        "logo": np.eye(4)[[0, 1, 0, 1, 3]],
        "logo-2": np.eye(4)[[0, 0, 0, 1, 3]],
        "guda": np.eye(4)[[0, 1, 1, 1, 3]],
    }
    scores["logo-2"][:, 2] = np.nan
    scores["partly"] = np.where(np.arange(4) == 0, np.nan, scores["guda"])  # lacks a group that the ceiling has
    (row,) = where_tables.where_unsure(scores, ["s"] * 5)
    assert (row["method"], row["same"]["n"], row["same"]["top1"]["value"]) == ("guda", 4, 0.75)
    assert (row["different"]["n"], row["different"]["top1"]["value"]) == (1, 1.0)
    assert where_tables.where_unsure({"logo": scores["logo"]}, ["s"] * 5) == []
    again = {"logo": scores["logo"], "logo-before": np.eye(4)[[2, 1, 0, 1, 3]], "guda": scores["guda"]}
    (row,) = where_tables.where_unsure(again, ["s"] * 5, result_tables.BEFORE)  # on all groups
    assert (row["same"]["n"], row["same"]["top1"]["value"], row["different"]["n"]) == (4, 0.75, 1)


def test_methods_are_compared_with_the_mean_of_both_seeds_on_the_groups_of_both():
    first = np.array([[9.0, 1.0, 4.0, 50.0], [9.0, 1.0, 4.0, 50.0]])
    second = np.array([[1.0, 2.0, 8.0, np.nan], [5.0, 2.0, 4.0, np.nan]])  # means: [5, 1.5, 6] and [7, 1.5, 4]
    guda = np.array([[0.0, 0.0, 1.0, 9.0], [1.0, 0.0, 0.0, 9.0]])
    scores = {"logo": first, "logo-2": second, "guda": guda, "logo/mse": first, "random": -guda}
    found = result_tables.against_the_mean(scores, ["s", "t"], ("guda",))
    rows = {(r["method"], r["query_set"]): r for r in found["rows_mean"]}
    assert {m for m, _ in rows} == {"guda", "random"} and all(r["groups"] == 3 for r in rows.values())
    assert rows["guda", "s"]["top1"]["value"] == 1 and rows["guda", "t"]["top1"]["value"] == 1
    assert rows["random", "s"]["top1"]["value"] == 0
    assert {(d["first"], d["second"]) for d in found["differences_mean"]} == {("guda", "random")}
    assert result_tables.against_the_mean({"logo": first, "guda": guda}, ["s", "t"], ("guda",)) == {}


def test_the_live_oracle_is_the_oracle_and_the_one_before_a_ceiling_and_half_of_a_mean():
    live, before = np.array([[9.0, 1.0, 4.0, 5.0]]), np.array([[1.0, 2.0, 8.0, 6.0]])  # mean: [5, 1.5, 6, 5.5]
    guda = np.array([[0.0, 0.0, 1.0, 0.5]])
    scores = {"logo": before, "logo-live": live, "guda": guda, "logo/mse": -before, "logo-live/mse": -live}
    scores |= {"separable/logo": np.ones(1), "separable/logo-live": np.zeros(1), "se/logo-live": live / 9}
    partly = {**scores, "logo-live": np.where(np.arange(4) == 3, np.nan, live)}
    assert result_tables.with_the_live_oracle(partly)[
        "logo"
    ] is before and "logo-live" not in result_tables.with_the_live_oracle(partly)
    found = result_tables.with_the_live_oracle(scores)
    assert found["logo"] is live and found["logo-before"] is before and (found["logo/mse"] == -live).all()
    assert {n for n in found if not n.startswith(result_tables.NOT_A_METHOD)} == {
        "logo",
        "logo-before",
        "guda",
        "logo/mse",
    }
    rows = {r["method"]: r for r in result_tables.agreement(found, ["s"])}
    assert set(rows) == {"ceiling-again", "guda", "logo/mse"} and rows["ceiling-again"]["top1"]["value"] == 0
    assert all(is_ceiling(r) == (r == "ceiling-again") for r in rows)
    del found["logo/mse"]
    mean = result_tables.against_the_mean(found, ["s"], ("guda",))
    (row,) = mean.pop("rows_mean_again")
    assert (row["method"], row["groups"], row["top1"]["value"]) == ("guda", 4, 1)
    assert mean == {"differences_mean_again": []}
    seed = {**found, "logo-2": np.where(np.arange(4) == 3, np.nan, live)}
    (_, same) = result_tables.against_the_mean(seed, ["s"], ())["rows_mean"]  # beside the mean of two seeds it is a row
    assert (same["method"], same["groups"], same["top1"]["value"]) == ("ceiling-again", 3, 0)


def test_what_a_groups_removal_costs_the_others_is_told_by_both_seeds():
    first = np.array([[9.0, 1.0, 2.0], [1.0, 9.0, 4.0], [3.0, 5.0, 9.0]])
    second = first + np.array([[0.0, 2.0, np.nan], [1.0, 0.0, np.nan], [5.0, 4.0, np.nan]])
    rows = where_tables.of_others({"logo": first, "logo-2": second}, ["s"] * 3, [["a"], ["b"], ["c"]])
    assert rows == [
        {"group": "a", "query_set": "s", "n": 2, "first": 2.0, "second": 5.0, "difference_sd": 2.0},
        {"group": "b", "query_set": "s", "n": 2, "first": 3.0, "second": 6.0, "difference_sd": 1.0},
    ]
    assert where_tables.of_others({"logo": first}, ["s"] * 3, [["a"], ["b"], ["c"]]) == []


def test_calibration_mends_scales_and_not_orders():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 3))
    scaled = truth * [1, 30, -0.2] + [5, 0, 9]  # each group's scores on a scale of their own
    noise, half = rng.normal(size=truth.shape), truth.copy()
    half[:, 0] = np.nan
    scores = {"logo": truth, "guda": scaled, "random": noise, "half": half, "guda/mse": truth}
    rows = {r["method"]: r for r in where_tables.if_calibrated(scores, ["s"] * 200)}
    assert set(rows) == {"guda", "random"} and rows["guda"]["n"] == 100
    assert rows["guda"]["as_is"]["value"] < 0.6 and rows["guda"]["calibrated"]["value"] == 1
    assert rows["random"]["calibrated"]["value"] < 0.6
    held = ~result_tables.tuning_half(["s"] * 200)
    right = (scaled[held].argmax(axis=1) == truth[held].argmax(axis=1)).mean()
    assert rows["guda"]["as_is"]["value"] == pytest.approx(right)


def test_how_much_a_group_stands_out_on_its_own_pictures_is_told_group_by_group():
    oracle = np.array([[9.0, 1.0, 2.0], [3.0, 2.0, 4.0], [3.0, 5.0, 9.0], [8.0, 8.0, 0.0]])
    scores = {"logo": oracle, "guda": oracle / 2, "das": -oracle}
    rows = where_tables.by_group(scores, ["s"] * 4, [["a"], ["a"], ["b"], ["a", "c"]], ("guda", "clip-mean"))
    assert rows == [
        {"group": "a", "query_set": "s", "n": 2, "first": 0.5, "excess": {"logo": 3.75, "guda": 1.875}},
        {"group": "b", "query_set": "s", "n": 1, "first": 0.0, "excess": {"logo": -1.0, "guda": -0.5}},
    ]


def test_first_places_are_counted_by_group_and_the_wrong_ones_among_them():
    oracle, guda = np.eye(3)[[0, 0, 1, 2]], np.eye(3)[[0, 1, 1, 1]]
    rows = where_tables.first_places(
        {"logo": oracle, "guda": guda}, ["s"] * 3 + ["t"], [["a"], ["b"], ["c"], ["a"]], ("guda", "das")
    )
    assert [(r["group"], r["query_set"], r["n"], r["oracle"], r["named"]["guda"]) for r in rows] == [
        ("a", "s", 3, 2, [1, 0]), ("a", "t", 1, 0, [0, 0]), ("b", "s", 3, 1, [2, 1]),
        ("b", "t", 1, 0, [1, 1]), ("c", "s", 3, 0, [0, 0]), ("c", "t", 1, 1, [0, 0]),
    ]  # fmt: skip
    assert all(set(r["named"]) == {"guda"} for r in rows)


def test_methods_are_compared_on_the_groups_of_a_ceiling_that_lacks_some():
    scores, items = planted()
    sets = [i["set"] for i in items]
    partly = np.where(np.arange(4) == 1, np.nan, scores["guda"])  # lacks a group that the ceiling has
    more = {"separable/guda": np.ones(90, bool), "partly": partly}
    rows = result_tables.make({**scores, **more}, sets, ("guda",))["rows_ceiling"]
    assert {(r["method"], r["groups"]) for r in rows} == {("guda", 2), ("ceiling", 2), ("random", 2)}
    apart = result_tables.make({**scores, **more}, sets, ("guda",))["differences_ceiling"]
    assert {d["second"] for d in apart} == {"ceiling", "random"}
    lost = next(d for d in apart if (d["second"], d["query_set"], d["metric"]) == ("ceiling", "generated", "top1"))
    guda = next(r for r in rows if r["method"] == "guda" and r["query_set"] == "generated")
    assert lost["value"] == pytest.approx(guda["top1"]["value"] - 1)  # the planted ceiling is always right
    two = metrics.top1(scores["guda"][:30, :2], scores["logo"][:30, :2]).mean()
    assert guda["top1"]["value"] == pytest.approx(two)
    whole = {**scores, "logo-2": scores["logo"]}
    assert (
        result_tables.on_the_ceilings_groups(whole, sets)
        == []
        == result_tables.make({"logo": scores["logo"]}, sets, ("guda",))["rows_ceiling"]
    )


def test_the_table_is_made_from_the_committed_arrays_alone(tmp_path, monkeypatch):
    scores, items = planted()
    with pytest.raises(DataError, match="There is no styles-scores"):
        styles_run.write_table(tmp_path)
    items = [{**i, "groups": [EMOJI[i["groups"][0]]], "prompt": ""} for i in items]
    (tmp_path / "queries.json").write_text(json.dumps({"items": items, "base_sha256": "b", "group_set": "four"}))
    four = dataclasses.replace(GROUPS, groups={g: GROUPS.groups[g] for g in EMOJI.values()})
    monkeypatch.setattr(styles_run, "load_group_set", {"four": four}.get)
    errors = {f"se/{k}": np.ones((90, 4)) for k in ("logo", "logo-2")}  # no methods
    np.savez_compressed(tmp_path / styles_run.ARRAYS, **scores, **errors)
    table = json.loads(styles_run.write_table(tmp_path).read_text())
    assert table["base_sha256"] == "b"
    sets, made_of = [i["set"] for i in items], [i["groups"] for i in items]
    labelled = {**scores, "label": np.array([[g in of for g in EMOJI.values()] for of in made_of], np.float32)}
    others = fair.others(items, {g: GROUPS.groups[g].descriptors for g in EMOJI.values()})
    expected = result_tables.agreement(labelled, sets, made_of=made_of, others=others)
    assert sorted(table["rows"], key=str) == sorted(json.loads(json.dumps(expected)), key=str)
    assert {r["n"] for r in table["rows"]} == {30} and {r["n"] for r in table["rows_report"]} == {15}
    report = np.array([i % 2 == 1 for i in range(90)])
    expected = result_tables.agreement(labelled, sets, at=report, made_of=made_of, others=others)
    assert sorted(table["rows_report"], key=str) == sorted(json.loads(json.dumps(expected)), key=str)
    assert table["differences_report"] != table["differences"]
    np.savez_compressed(tmp_path / styles_run.ARRAYS, **{**scores, "logo": scores["logo-2"]})
    with pytest.raises(DataError, match="oracle is not complete"):
        styles_run.write_table(tmp_path)


def test_swapped_weights_come_back_bit_by_bit(model):
    before = {n: p.clone() for n, p in model.network.state_dict().items()}
    other = {n: p + 1 for n, p in before.items()}
    with models.swapped(model.network, other):
        assert all(torch.equal(p, other[n]) for n, p in model.network.state_dict().items())
    assert all(torch.equal(p, before[n]) for n, p in model.network.state_dict().items())


def test_the_committed_table_is_that_of_the_committed_arrays():
    folder = styles_run.Path(__file__).resolve().parent.parent / "assets" / "benchmarks"
    if not (folder / styles_run.TABLE).is_file():
        pytest.skip("no styles.json yet: the oracle is still being trained")
    found = styles_run.compared(folder)
    rows = result_tables.agreement(found.scores, found.sets, made_of=found.made_of, others=found.others)
    kept = json.loads((folder / styles_run.TABLE).read_text())["rows"]
    assert alike(json.loads(json.dumps(rows)), kept)
    kept[0]["top1"]["value"] += 1e-6
    assert not alike(json.loads(json.dumps(rows)), kept)


def test_committed_rows_stand_only_while_what_they_were_made_from_is_the_same(tmp_path):
    arrays, base = tmp_path / "styles-scores.npz", {"base_sha256": "b", "queries_sha256": "q"}
    made = {"guda": {"weights_sha256": {"x": "1"}, "parts": ("a", "b")}, "trak": {"config": {"dim": 8}}}
    names = ["guda", "guda/mse", "separable/guda", "separable/guda/1-draws", "guda-esd", "trak", "clip-mean"]
    scores = {n: np.full((2, 3), i, np.float32) for i, n in enumerate(names)}
    assert rows.standing(arrays, base, made) == {}
    rows.write(arrays, scores, base, made)
    there = rows.standing(arrays, base, made)
    assert {r: sorted(of) for r, of in there.items()} == {"guda": sorted(names[:4]), "trak": ["trak"]}
    np.testing.assert_array_equal(there["guda"]["separable/guda"], scores["separable/guda"])
    other = made | {"guda": {"weights_sha256": {"x": "2"}, "parts": ("a", "b")}}
    assert set(rows.standing(arrays, base, other)) == {"trak"}
    assert rows.standing(arrays, base | {"queries_sha256": "r"}, made) == {}
    rows.note(arrays).unlink()
    assert rows.standing(arrays, base, made) == {}


def test_the_general_parts_weight_is_that_of_least_squares_on_the_tuning_half():
    rng = np.random.default_rng(0)
    sets = ["generated"] * 40 + ["real"] * 40
    drop, offset = rng.normal(0, 10, (80, 8)), rng.normal(0, 10, 8)
    shift = rng.normal(0, 500, (80, 1))  # the same for all groups of a query: no matter of their order
    truth = 3 * drop + 3 * 1.7 * offset + shift + rng.normal(0, 1, (80, 8))
    truth[~result_tables.tuning_half(sets)] = -drop[
        ~result_tables.tuning_half(sets)
    ]  # what is held for the report is not looked at
    made = {"logo": truth, "guda": drop, "guda + offset": drop + 0.5 * offset}
    rows = offset_tables.offset_fit(made, sets)
    assert [(r["query_set"], r["n"]) for r in rows] == [("generated", 20), ("real", 20), ("all", 40)]
    assert all(r["weight"] == pytest.approx(1.7 / 0.5, rel=0.05) for r in rows)
    assert rows[-1]["of_drop"] == pytest.approx(3, rel=0.05)
    assert offset_tables.offset_fit({"logo": truth, "guda": drop}, sets) == []
    by_weight = offset_tables.offset_weights(made, sets)
    assert offset_tables.offset_weights({"logo": truth, "guda": drop}, sets) == [] and len(by_weight) == 2 * len(
        offset_tables.TIMES
    )
    for row in by_weight:
        mine = [i for i, s in enumerate(sets) if s == row["query_set"]]
        own = (drop + row["times"] * 0.5 * offset)[mine]
        hits = own.argmax(axis=1) == truth[mine].argmax(axis=1)
        assert row["n"] == 40 and row["top1"] == pytest.approx(hits.mean())
