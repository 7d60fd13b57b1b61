"""The rows that make the comparison fair, and the variation over pictures, against planted scores and closed forms."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from experiments.benchmark import fair, where_tables
from experiments.benchmark import result_tables as tables
from experiments.benchmark import variation as v
from experiments.benchmark.styles_arrays import INSTANCE_EXAMPLES, INSTANCE_TIMESTEPS
from experiments.held_back import TARGETS
from experiments.tables import agreement
from guda_core.paths import BENCHMARKS, DOCS, ROOT

WORDS = {"a": ("red", "thin"), "b": ("blue", "thick"), "c": ("grey", "flat")}


def item(groups, prompt, query_set="generated"):
    return {"set": query_set, "groups": list(groups), "prompt": prompt}


def test_the_label_counts_the_words_of_the_groups_that_a_prompt_was_made_of():
    items = [
        item("a", "cat, artistic style featuring red, thin"),
        item("ba", "cat, artistic style featuring blue, red, thick", "generated-blend"),
        item("c", "", "real"),
        item("a", "blue cat, artistic style featuring red, blue"),  # "blue" is not one of a's words
    ]
    np.testing.assert_array_equal(fair.label(items, WORDS), [[2, 0, 0], [1, 2, 0], [0, 0, 1], [1, 0, 0]])


def test_others_pictures_hold_none_of_a_groups_words_though_groups_share_some():
    shared = {"a": ("red", "flat"), "b": ("blue",), "c": ("grey", "flat"), "d": ()}
    items = [
        item("a", "cat, artistic style featuring red, flat"),  # a word of c's, who was not asked for
        item("a", "cat, artistic style featuring red"),
        item("ab", "cat, artistic style featuring flat, blue", "generated-blend"),
        item("c", "", "real"),
        item("d", "cat in the style of d"),  # a phrase in place of descriptors
    ]
    expected = ["bd", "bcd", "d", "abd", "abc"]
    found = fair.others(items, shared)
    assert ["".join(g for g, at in zip(shared, row, strict=True) if at) for row in found] == expected
    assert fair.label(items, shared)[0].tolist() == [2, 0, 0, 0]  # only who was asked for
    rng = np.random.default_rng(8)
    oracle, scores = rng.normal(size=(2, 30, 4))
    many = np.tile(found, (6, 1))
    (row,) = tables.agreement({"logo": oracle, "m": scores}, ["s"] * 30, others=many)
    x, y = (z - z.mean(axis=1, keepdims=True) for z in (scores, oracle))
    own = [stats.pearsonr(x[many[:, k], k], y[many[:, k], k])[0] for k in range(4)]
    assert row["variation_others"]["value"] == pytest.approx(np.mean(own))


def planted(n=60):
    rng = np.random.default_rng(0)
    offset = np.array([5.0, -3.0, 0.5])
    truth = rng.normal(size=(n, 3)) * 4
    drop, das = truth - offset + 0.1 * rng.normal(size=(n, 3)), 0.01 * (truth - offset)
    items = [item("abc"[i % 3], "", "real") for i in range(n)]
    return {"logo": truth, "guda/drop": drop, "guda": drop + offset, "das": das, "trak": -truth}, items, offset


def test_the_offset_is_given_to_all_or_none_and_stands_alone():
    scores, items, offset = planted()
    rows = fair.with_fair_rows(scores, items, WORDS)
    assert set(rows) == {"logo", "guda", "guda + offset", "das", "das + offset", "trak", "offset alone", "label"}
    np.testing.assert_array_equal(rows["guda"], scores["guda/drop"])
    np.testing.assert_array_equal(rows["guda + offset"], scores["guda"])
    assert np.ptp(rows["offset alone"], axis=0).max() == 0
    np.testing.assert_allclose(rows["offset alone"][0], offset, rtol=1e-6)
    np.testing.assert_allclose(rows["das + offset"], scores["das"] + 0.01 * offset, rtol=1e-3)  # on its own scale
    without = fair.with_fair_rows({k: s for k, s in scores.items() if k != "guda/drop"}, items, WORDS)
    assert set(without) == {"logo", "guda", "das", "trak", "label"}


def test_the_weight_of_others_is_fitted_on_the_tuning_half_alone():
    scores, items, _ = planted()
    held = ~tables.tuning_half([i["set"] for i in items])
    spoilt = {**scores, "logo": np.where(held[:, None], -scores["logo"], scores["logo"])}
    one, other = (fair.with_fair_rows(s, items, WORDS)["das + offset"] for s in (scores, spoilt))
    np.testing.assert_array_equal(one, other)


def independent(scores, oracle):
    """The mean over groups of numpy's own correlation of the centred scores."""
    x, y = scores - scores.mean(axis=1, keepdims=True), oracle - oracle.mean(axis=1, keepdims=True)
    return np.mean([np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(x.shape[1])])


def test_variation_is_the_mean_correlation_over_pictures_and_a_constant_earns_nothing():
    rng = np.random.default_rng(1)
    oracle = rng.normal(size=(80, 4))
    scores = oracle + rng.normal(size=oracle.shape)
    found = v.over_pictures(v.variation(scores, oracle), 80, 4)
    assert found["value"] == pytest.approx(independent(scores, oracle))
    assert found["low"] < found["value"] < found["high"]
    shifted = scores * 3 + np.array([100.0, -7, 0, 3]) + rng.normal(size=(80, 1))
    assert v.over_pictures(v.variation(shifted, oracle), 80, 4)["value"] == pytest.approx(found["value"])
    constant = np.tile([3.0, 1.0, 2.0, 0.0], (80, 1))
    assert v.over_pictures(v.variation(constant, oracle), 80, 4) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_interval_over_pictures_is_the_jackknifes():
    rng = np.random.default_rng(2)
    oracle, scores = rng.normal(size=(2, 25, 3))
    found = v.over_pictures(v.variation(scores, oracle), 25, 3)
    without = np.array([independent(np.delete(scores, i, 0), np.delete(oracle, i, 0)) for i in range(25)])
    half = stats.t.ppf(0.975, 24) * np.sqrt(24 / 25 * ((without - without.mean()) ** 2).sum())
    assert found["high"] - found["value"] == pytest.approx(half) == pytest.approx(found["value"] - found["low"])
    rows = tables.agreement({"logo": oracle, "m": oracle}, ["s"] * 25)
    assert {r["variation"]["high"] for r in rows} == {1.0}
    assert v.over_pictures(v.variation(scores[:1], oracle[:1]), 1, 3) == {"value": 0.0, "low": -2.0, "high": 2.0}


def test_of_many_pictures_parts_are_left_out(monkeypatch):
    rng = np.random.default_rng(6)
    oracle = rng.normal(size=(403, 3))
    varies = v.variation(oracle + rng.normal(size=oracle.shape), oracle)
    one_by_one = v.over_pictures(varies, 403, 3)
    monkeypatch.setattr(v, "PARTS", 50)
    in_parts = v.over_pictures(varies, 403, 3)
    assert in_parts["value"] == one_by_one["value"]
    widths = [x["high"] - x["low"] for x in (in_parts, one_by_one)]
    assert 0.7 < widths[0] / widths[1] < 1.4 and widths[0] != widths[1]


def test_the_interval_of_variation_holds_the_truth_as_often_as_it_says():
    """Of 40 pictures, each of one of four groups, whose score is far above the rest. There a percentile bootstrap is
    far too narrow."""
    rng, n, held = np.random.default_rng(3), 40, []

    def pair(size):
        truth = rng.normal(size=(size, 4))
        truth[np.arange(size), rng.integers(0, 4, size)] += rng.exponential(6, size)
        return truth + rng.normal(size=truth.shape), truth

    scores, oracle = pair(100_000)
    truth = v.variation(scores, oracle)(np.ones((1, len(scores))), np.ones((1, 4)))[0]
    drawn = v.picture_weights(n)[:200]
    for _ in range(300):
        varies = v.variation(*pair(n))
        found = v.over_pictures(varies, n, 4)
        resampled = np.quantile(varies(drawn, np.ones((200, 4))), [0.025, 0.975])
        held.append([low <= truth <= high for low, high in ((found["low"], found["high"]), resampled)])
    jackknife, percentile = np.mean(held, axis=0)
    assert percentile < 0.88 < 0.92 <= jackknife <= 0.98


def test_over_artists_whole_artists_are_left_out():
    """For a mean of equally many pictures of each artist, the jackknife is Student's interval of the artists' means."""
    shares = np.array([0.2, 0.4, 0.9, 0.5])
    hits = np.concatenate([np.arange(10) < 10 * p for p in shares]).astype(float)
    found = v.over_artists(v.mean(hits), np.repeat(range(4), 10), np.ones(4, bool))
    low, high = stats.t.interval(0.95, 3, shares.mean(), stats.sem(shares))
    assert found == pytest.approx({"value": shares.mean(), "low": low, "high": high})
    pictures = v.over_pictures(v.mean(hits), 40, 4)
    low, high = stats.t.interval(0.95, 39, hits.mean(), stats.sem(hits))
    assert pictures == pytest.approx({"value": hits.mean(), "low": low, "high": high})


def test_over_artists_a_group_goes_with_its_pictures():
    rng = np.random.default_rng(4)
    oracle = rng.normal(size=(40, 5))
    scores, artist = oracle + rng.normal(size=oracle.shape), np.arange(40) % 5
    found = v.over_artists(v.variation(scores, oracle), artist, np.ones(5, bool))

    def left(i):
        x, y = (z - z.mean(axis=1, keepdims=True) for z in (scores, oracle))
        at = artist != i
        return np.mean([np.corrcoef(x[at, k], y[at, k])[0, 1] for k in range(5) if k != i])

    without = np.array([left(i) for i in range(5)])
    half = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert found["high"] - found["value"] == pytest.approx(half) == pytest.approx(found["value"] - found["low"])
    assert v.over_artists(v.variation(scores[:, :1], oracle[:, :1]), [0] * 40, np.ones(1, bool))["low"] == -2


def test_over_artists_the_interval_of_eight_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(9)
    held = []
    for _ in range(400):
        hits = np.repeat(rng.normal(size=8), 5) + rng.normal(size=40)
        found = v.over_artists(v.mean(hits), np.repeat(range(8), 5), np.ones(8, bool))
        held.append(found["low"] <= 0 <= found["high"])
    assert 0.92 <= np.mean(held) <= 0.98


def test_standardised_scores_keep_the_pattern_of_each_picture_alone():
    rng = np.random.default_rng(5)
    oracle = rng.normal(size=(60, 4))
    scores = oracle + rng.normal(size=oracle.shape)
    sizes, places = rng.uniform(0.1, 50, (60, 1)), rng.normal(size=(60, 1))
    one, other = (v.standardised(s) for s in (scores, sizes * scores + places))
    np.testing.assert_allclose(one, other)
    np.testing.assert_allclose([one.mean(axis=1), one.std(axis=1)], [np.zeros(60), np.ones(60)], atol=1e-12)
    assert not v.standardised(np.full((3, 4), 1e6 + 0.1)).any()
    row = {r["method"]: r for r in tables.agreement({"logo": oracle, "m": scores}, ["s"] * 60)}["m"]
    z, truth = (stats.zscore(x, axis=1) for x in (scores, oracle))
    expected = np.mean([stats.pearsonr(z[:, k], truth[:, k])[0] for k in range(4)])
    assert row["variation_standardised"]["value"] == pytest.approx(expected)
    assert row["variation_standardised"]["value"] != pytest.approx(row["variation"]["value"])


def test_first_places_are_clear_only_where_mcnemars_exact_test_says_so_too():
    first = np.array([True] * 14 + [False] * 5 + [True] * 100)
    second = np.array([False] * 14 + [True] * 5 + [True] * 100)
    found = tables.mcnemar(first, second)
    assert (found["only_first"], found["only_second"]) == (14, 5)
    assert found["p"] == pytest.approx(2 * stats.binom.sf(13, 19, 0.5))  # 0.064
    assert tables.mcnemar(first, first) == {"only_first": 0, "only_second": 0, "p": 1.0}
    interval = {"low": 0.005, "high": 0.2}
    assert [tables.lead({**interval, "p": p}) for p in (0.049, 0.051)] == ["ahead", "level"]
    assert [tables.lead({"low": low, "high": high}) for low, high in ((-2, -1), (-1, 1), (1, 2))] == [
        "behind", "level", "ahead",
    ]  # fmt: skip
    oracle = np.eye(3)[np.arange(60) % 3]
    right, wrong = oracle, np.roll(oracle, 1, axis=1)
    mixed = np.where(np.arange(60)[:, None] < 12, wrong, right)
    rows = tables.differences({"logo": oracle, "a": right, "b": mixed}, ["s"] * 60, "a")
    (row,) = [r for r in rows if r["metric"] == "top1"]
    assert (row["only_first"], row["only_second"], tables.lead(row)) == (12, 0, "ahead")


def test_p_in_variation_is_that_of_the_interval_and_says_what_is_barely_clear():
    """Of a mean, the jackknife's t test is the paired one."""
    rng = np.random.default_rng(7)
    one, other = rng.normal(0.4, size=50), rng.normal(size=50)
    row = v.over_pictures(v.less(v.mean(one), v.mean(other)), 50, 3)
    assert v.p_of(row, 50) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    same = {"value": 1e-9, "low": 1e-10, "high": 2e-9}  # the same scores, rounded in two ways
    assert v.p_of(same, 50) == 1 == v.p_of({"value": 1.0, "low": -2, "high": 2}, 1)
    interval = {"low": 0.005, "high": 0.2}
    assert [tables.is_barely({**interval, "p": p}) for p in (0.009, 0.011, 0.051)] == [False, True, False]
    oracle = rng.normal(size=(60, 3))
    near, far = oracle + rng.normal(size=(60, 3)), oracle + 1.4 * rng.normal(size=(60, 3))
    found = tables.differences({"logo": oracle, "a": near, "b": far}, ["s"] * 60, "a")
    p = {r["metric"]: r["p"] for r in found if "p" in r}
    assert set(p) == {"top1", "variation", "variation_standardised"}
    for r in found:
        assert r["metric"] in ("top1", "mrr") or (r["p"] < 0.05) == (not r["low"] <= 0 <= r["high"])


def test_rows_and_differences_hold_variation_and_both_intervals():
    rng = np.random.default_rng(3)
    made_of = [["a"], ["b"], ["c"]] * 20
    oracle = rng.normal(size=(60, 3)) + 8 * np.array([[g in of for g in "abc"] for of in made_of])
    label = np.array([[float(g in of) for g in "abc"] for of in made_of])
    near = oracle + rng.normal(size=oracle.shape)
    scores = {"logo": oracle, "near": near, "label": label}
    others = fair.others([item(of, "", "real") for of in made_of], WORDS)
    rows = {r["method"]: r for r in tables.agreement(scores, ["s"] * 60, made_of=made_of, others=others)}
    assert rows["label"]["top1"]["value"] == 1 and rows["label"]["variation"]["value"] > 0.8
    assert abs(rows["label"]["variation_others"]["value"]) < 1e-9 < 0.3 < rows["near"]["variation_others"]["value"]
    assert rows["near"]["variation"]["value"] == pytest.approx(independent(near, oracle))
    assert {"top1_artists", "variation_artists"} <= set(rows["near"])
    (d,) = [d for d in tables.differences(scores, ["s"] * 60, "near", made_of=made_of) if d["metric"] == "variation"]
    assert d["value"] == pytest.approx(rows["near"]["variation"]["value"] - rows["label"]["variation"]["value"])
    assert d["low"] <= d["value"] <= d["high"] and d["artists"]["value"] == pytest.approx(d["value"])


def test_where_the_apps_lead_is_clear_stands_apart():
    scores = {"logo": np.eye(3)[[0, 1, 2, 0]], "guda + offset": np.eye(3)[[0, 1, 0, 1]]}
    assert where_tables.where_clear(scores, ["s"] * 4) == []
    (row,) = where_tables.where_clear({**scores, "separable/guda": np.array([1, 1, 1, 0])}, ["s"] * 4)
    assert row["method"] == "guda + offset" and (row["clear"]["n"], row["not"]["n"]) == (3, 1)
    assert row["clear"]["top1"]["value"] == pytest.approx(2 / 3) and row["not"]["top1"]["value"] == 0


def test_where_the_oracle_separates_its_own_first_two_stands_apart():
    scores = {"logo": np.eye(3)[[0, 1, 2, 0]], "guda": np.eye(3)[[0, 1, 0, 1]]}
    assert where_tables.where_separable(scores, ["s"] * 4) == []
    (row,) = where_tables.where_separable({**scores, "separable/logo": np.array([1, 1, 0, 0])}, ["s"] * 4)
    assert (row["separable"]["n"], row["separable"]["top1"]["value"]) == (2, 1.0)
    assert (row["not"]["n"], row["not"]["top1"]["value"]) == (2, 0.0)


SETS = ("generated", "generated-blend", "real")
RIVALS = ("das", "dtrak", "trak", "combined", "instance", "introstyle", "clip-mean", "clip-max", "clip-prototype")
RIVALS += ("clip-csls",)
CLIP = RIVALS[-4:]


@pytest.fixture(scope="module")
def committed():
    return json.loads((BENCHMARKS / "styles.json").read_text(encoding="utf-8"))


def test_the_settings_that_were_tried_are_counted():
    rows = json.loads((BENCHMARKS / "styles-tuning.json").read_text(encoding="utf-8"))["rows"]
    page = (ROOT / "docs" / "results" / "index.md").read_text(encoding="utf-8")
    assert len({r["variant"] for r in rows}) == 15 and "fifteen settings of unlearning" in page
    shown = f"asked of {INSTANCE_EXAMPLES} pictures a group, at {INSTANCE_TIMESTEPS} timesteps"
    assert shown in page


def clear(record, key, first, metric, over="pictures"):
    """(other, query set) of the differences that are clear."""
    rows = [r for r in record[key] if (r["first"], r["metric"]) == (first, metric)]
    ahead = {True: lambda r: tables.lead(r) == "ahead", False: lambda r: r["artists"]["low"] > 0}[over == "pictures"]
    return {(r["second"], r["query_set"]) for r in rows if ahead(r)}


def behind(record, key, first, metric):
    """(other, query set) of what is clearly ahead of a row."""
    rows = [r for r in record[key] if (r["first"], r["metric"]) == (first, metric)]
    return {(r["second"], r["query_set"]) for r in rows if tables.lead(r) == "behind"}


def test_what_is_claimed_of_the_fresh_pictures_holds_in_their_table():
    fresh = json.loads((BENCHMARKS / "fresh" / "styles.json").read_text(encoding="utf-8"))
    rivals = [m for m in RIVALS if m in {r["method"] for r in fresh["rows"]}]
    assert {"das", "dtrak", "combined", "introstyle", *CLIP} <= set(rivals)
    varies = clear(fresh, "differences", "guda", "variation")
    assert {(m, s) for m in (*rivals, "label") for s in SETS} <= varies
    over = clear(fresh, "differences", "guda", "variation", "artists")
    assert not {m for m, _ in over} & {"das", "dtrak", "combined", "das + offset", "dtrak + offset"}
    every = {(m, s) for m in (*rivals, "label") for s in SETS}
    assert every - over == {
        *((m, s) for m in ("das", "dtrak", "combined") for s in SETS),
        *((m, "real") for m in ("label", "introstyle", "clip-mean")),
    }
    assert "on real pictures not of the label, IntroStyle or *clip-mean*." in said_on("README.md")
    first = clear(fresh, "differences", "guda", "top1", "artists")
    names = ("das", "dtrak", "combined", "label")
    assert every - first == {
        *((m, s) for m in names for s in SETS),
        *((m, "real") for m in ("clip-mean", "clip-prototype")),
        ("introstyle", "generated-blend"),
    }
    first = clear(fresh, "differences", "guda + offset", "top1", "artists")
    assert not {(m, "real") for m in CLIP} & first
    for r in (r["variation_others"] for r in fresh["rows"] if r["method"] == "label"):
        assert r["low"] <= 0 <= r["high"] and abs(r["value"]) < 0.05  # naming the label earns nothing there
    first = clear(fresh, "differences", "guda", "top1")
    assert {s for m, s in varies if m == "guda-draft"} == {"generated-blend", "real"}
    assert {s for m, s in first if m == "guda-draft"} == {"real"}
    assert {(m, s) for m in CLIP for s in SETS} <= first
    level = {(m, s) for m, s in first if m in ("das", "dtrak", "label")}
    assert level == {("das", "real"), ("dtrak", "real"), ("label", "real")}
    together = clear(fresh, "differences", "combined", "top1")
    assert {s for m, s in together if m == "label"} == {"generated-blend", "real"}
    ahead = {(m, s) for m, s in behind(fresh, "differences", "guda", "top1") if "offset" not in m}
    assert ahead == {("combined", "generated"), ("combined", "generated-blend")}
    shown = clear(fresh, "differences", "guda + offset", "top1")  # as in the app
    others = {(m, s) for m, s in shown if m.split(" + ")[0] in ("das", "dtrak", "label")}
    assert others == {("das", "real"), ("dtrak", "real"), ("das + offset", "real")}  # not "dtrak + offset"
    assert {(m, s) for m in CLIP for s in SETS} - shown == {("clip-prototype", "real"), ("clip-mean", "real")}
    assert {s for m, s in together if m == "guda + offset"} == {"real"}
    assert behind(fresh, "differences", "guda + offset", "top1") == {("combined", "real"), ("guda", "real")}
    assert not {m for m, _ in behind(fresh, "differences", "combined", "top1") if "/" not in m}
    found = {(r["method"], r["query_set"]): r for r in fresh["rows"]}
    for s in SETS:
        if s != "generated":
            others = [r["top1"]["value"] for (m, q), r in found.items() if q == s and "/" not in m]
            assert found["combined", s]["top1"]["value"] == max(others)
        for m in ("guda", "das", "dtrak", "clip-mean"):
            assert found[f"{m} + offset", s]["spearman"]["value"] > found[m, s]["spearman"]["value"]
    assert "guda" not in {m for m, _ in shown}  # the offset helps nowhere clearly
    assert ("guda + offset", "real") in first  # and costs here


BARELY = {  # (record, first, metric) -> what is barely clear, either way, of the others that the pages tell of
    ("fresh", "differences", "guda", "variation"): {("das", "generated")},
    ("fresh", "differences", "combined", "variation"): {("dtrak", "generated")},
    ("fresh", "differences", "guda", "variation_standardised"): set(),
    ("fresh", "differences", "guda + offset", "variation_standardised"): {
        ("das", "generated"), ("combined", "generated-blend"), *((m, "real") for m in ("combined", "das", "dtrak")),
    },
    ("fresh", "differences", "guda", "top1"): {("label", "real"), ("combined", "generated"), ("guda + offset", "real")},
    ("fresh", "differences", "guda + offset", "top1"): {*((m, "real") for m in ("guda", "clip-max", "clip-csls"))},
    ("styles", "differences_report", "guda", "variation"): {("das", "real"), ("dtrak", "generated-blend")},
    ("styles", "differences_report", "guda + offset", "top1"): {
        *((m, "generated-blend") for m in ("clip-mean", "clip-max", "clip-csls")),
    },
    ("styles", "differences", "guda", "variation"): set(),
    ("styles", "differences", "guda + offset", "top1"): {
        *((m, "real") for m in ("das", "clip-mean", "clip-max", "clip-csls")),
    },
    ("styles", "differences_mean", "guda", "top1"): {("clip-max", "real"), ("clip-csls", "real")},
    ("styles", "differences_mean", "guda + offset", "top1"): {("clip-csls", "real")},
    ("styles", "differences_mean_again", "guda", "top1"): {("clip-csls", "real")},
    ("styles", "differences_mean_again", "combined", "top1"): {("clip-mean", "real"), ("clip-max", "real")},
}  # fmt: skip


@pytest.mark.parametrize(("name", "key", "first", "metric"), BARELY)
def test_what_is_called_barely_clear_is_so_and_nothing_else(name, key, first, metric):
    path = BENCHMARKS / ("fresh/styles.json" if name == "fresh" else "styles.json")
    rows = json.loads(path.read_text(encoding="utf-8"))[key]
    shown = {*CLIP} if "_mean" in key else {*RIVALS, "label", "guda", "guda + offset"}
    own = [r for r in rows if (r["first"], r["metric"]) == (first, metric) and r["second"] in shown]
    assert own and all("p" in r for r in own)
    assert {(r["second"], r["query_set"]) for r in own if tables.is_barely(r)} == BARELY[name, key, first, metric]


def said_on(page):
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_the_pages_say_what_is_barely_clear():
    page, results = said_on("README.md"), said_on("docs/results/index.md")
    assert "every other method on generated pictures (of DAS barely)" in page
    assert "and ahead of *guda + offset*, the app's score, barely." in page
    assert "the label on all three sets, of DAS on generated pictures barely" in results
    assert "p above .01, in variation by the same t" in results
    leads = agreement.RENDER["styles_fresh_leads"]()
    assert "| Variation, against | guda, generated |" in leads and "| das | barely ahead | ahead | ahead | " in leads


def test_what_is_claimed_of_the_pattern_alone_holds_in_the_fresh_table():
    fresh = json.loads((BENCHMARKS / "fresh" / "styles.json").read_text(encoding="utf-8"))
    ahead, after = (of(fresh, "differences", "guda", "variation_standardised") for of in (clear, behind))
    rivals = ("das", "dtrak", "combined", "label")
    assert {(m, s) for m, s in ahead if m in rivals} == {
        ("das", "real"),
        ("dtrak", "real"),
        ("label", "generated-blend"),
    }
    assert {(m, s) for m, s in after if m in rivals} == {
        ("das", "generated"), ("combined", "generated"), ("combined", "generated-blend"),
    }  # fmt: skip
    assert {(m, s) for m in CLIP for s in SETS} <= ahead
    after = behind(fresh, "differences", "guda + offset", "variation_standardised")  # as in the app
    assert {(m, s) for m, s in after if m in rivals} == {("das", "generated"), *(("combined", s) for s in SETS)}
    shown = clear(fresh, "differences", "guda + offset", "variation_standardised")
    assert {(m, s) for m in CLIP for s in SETS} <= shown


def test_how_often_a_clear_lead_is_right_is_said_as_it_is():
    fresh = json.loads((BENCHMARKS / "fresh" / "styles.json").read_text(encoding="utf-8"))
    in_ten = {k: {round(10 * r[k]["top1"]["value"]) for r in fresh["where_clear"]} for k in ("clear", "not")}
    assert in_ten["clear"] == {7, 8} and min(in_ten["not"]) == 2 and max(in_ten["not"]) == 4
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "[seven to eight of ten pictures](" in page and "where it is not, on two to four." in page


def test_what_the_readme_and_the_results_claim_holds_in_the_committed_table(committed):
    report = clear(committed, "differences_report", "guda", "variation")
    assert {(m, s) for m in RIVALS for s in SETS} - report == {(m, "generated-blend") for m in ("das", "combined")}
    assert {s for m, s in report if m == "label"} == {"generated", "generated-blend"}
    everywhere = clear(committed, "differences", "guda", "variation")
    assert {(m, s) for m in (*RIVALS, "label") for s in SETS} <= everywhere
    top1 = clear(committed, "differences_report", "guda + offset", "top1")
    assert {(m, s) for m, s in top1 if m in CLIP} == {(m, s) for m in CLIP for s in SETS[:2]}
    assert not {m for m, _ in top1} & {"das", "dtrak", "combined", "label"}
    ahead = clear(committed, "differences", "guda + offset", "top1")
    assert {m for m, s in ahead if m in CLIP and s == "real"} == {"clip-mean", "clip-max", "clip-csls"}
    assert {(m, s) for m, s in ahead if m in ("das", "dtrak", "label")} == {("das", "real"), ("dtrak", "real")}
    for key, first, metric in (("differences_report", "guda", "variation"), ("differences_report", "guda", "top1")):
        assert not {m for m, _ in clear(committed, key, first, metric, "artists")} & {"das", "dtrak", "combined"}
    found = {(r["method"], r["query_set"]): r for r in committed["rows_report"]}
    for s in SETS:  # ahead, if not clearly; and no method is clearly better than the label
        assert all(found["guda", s]["variation"]["value"] > found[m, s]["variation"]["value"] for m in RIVALS)
    for first, also in (
        ("guda", {"clip-csls"}),
        ("guda + offset", set()),
        ("combined", {*CLIP} - {"clip-prototype"}),
    ):
        again = {(m, s) for m, s in clear(committed, "differences_mean_again", first, "top1") if m in CLIP}
        assert again == {(m, s) for m in CLIP for s in SETS[:2]} | {(m, "real") for m in also}
    not_of = {"combined": set(), "guda": {"clip-mean", "clip-prototype"}, "guda + offset": {*CLIP} - {"clip-csls"}}
    for first, others in not_of.items():
        level = {(m, s) for m in CLIP for s in SETS} - clear(committed, "differences_mean", first, "top1")
        assert level == {(m, "real") for m in others}
    for first in ("guda + offset", "combined"):
        assert "label" not in {m for m, _ in clear(committed, "differences_report", first, "top1")}


def test_a_second_retraining_is_ahead_of_guda_once_the_noise_of_its_values_is_taken_off(committed):
    held = json.loads((BENCHMARKS / "held-back.json").read_text(encoding="utf-8"))
    found, half = held["seeds"], held["seeds_report"]
    assert all(found[s]["groups"] == 8 for s in SETS)
    below = {part: {s: held[part][s]["less_ceiling"] for s in SETS} for part in ("seeds", "seeds_report")}
    for part in below.values():
        assert {s for s, d in part.items() if d["high"] < 0} == {"generated", "generated-blend"}
        assert all(d["value"] < 0 for d in part.values())
    assert abs(below["seeds"]["real"]["high"]) < 0.005  # on the edge
    rows = {r["query_set"]: r for r in committed["rows"] if r["method"] == "ceiling"}
    for s in SETS:  # as drawn, which the tables show, GUDA looks level with it
        assert rows[s]["variation"]["value"] == pytest.approx(found[s]["second_seed"]["value"])
        assert found[s]["less_second_seed"]["low"] < 0 < found[s]["less_second_seed"]["high"]
        assert found[s]["ceiling"]["value"] > found[s]["second_seed"]["value"] + 0.05
        assert found[s]["again_without_noise"]["value"] > 0.92 > 0.91 > found[s]["again"]["value"]
        assert found[s]["less_variation_second"]["low"] < 0 < found[s]["less_variation_second"]["high"]
        assert half[s]["queries"] * 2 == found[s]["queries"]
    over = {s for s in SETS if found[s]["ceiling"]["value"] > TARGETS[s]}
    assert over == {"generated", "generated-blend"} and found["real"]["ceiling"]["value"] > TARGETS["real"] - 0.01
    of = [r for r in committed["differences"] if (r["first"], r["second"]) == ("guda + offset", "ceiling")]
    first = [r for r in of if r["metric"] == "top1"]
    assert {r["query_set"] for r in first} == set(SETS) and all(r["low"] < 0 < r["high"] for r in first)
    gained = clear(committed, "differences", "guda + offset", "top1")
    assert not {s for m, s in gained if m == "guda"}  # the offset brings first places, not clearly


def test_what_is_claimed_of_the_digits_holds_in_their_table():
    digits, sets = json.loads((BENCHMARKS / "digits.json").read_text(encoding="utf-8")), {"held_out", "generated"}

    def of(found, metric):
        return {m: {s for n, s in found(digits, "differences", "guda-retrack", metric) if n == m} for m in others}

    others = {r["method"] for r in digits["rows"]} - {"guda-retrack"}
    near, far = {"das", "dtrak", "classifier"}, {"trak", "instance", "guda-esd", "guda-retrack-unsmoothed", "random"}
    first, after = of(clear, "top1"), of(behind, "top1")
    assert all(not first[m] and not after[m] for m in near) and all(first[m] == sets for m in far)
    for metric in ("variation", "variation_standardised"):
        ahead, after = of(clear, metric), of(behind, metric)
        assert after["das"] == sets and all(ahead[m] == sets for m in far)
        assert not ahead["dtrak"] and not after["dtrak"]
    assert barely(digits, "variation") == {("das", "held_out")} and not barely(digits, "variation_standardised") & {
        (m, s) for m in near for s in sets
    }


def barely(found, metric):
    """Of the rows that the page on digits tells of."""
    near = {"das", "dtrak", "trak", "classifier", "ceiling"}
    rows = [r for r in found["differences"] if r["metric"] == metric and r["second"] in near]
    return {(r["second"], r["query_set"]) for r in rows if tables.is_barely(r)}


def test_what_is_claimed_of_the_digits_quick_form_holds_in_its_table():
    quick = json.loads((BENCHMARKS / "digits-quick.json").read_text(encoding="utf-8"))
    near = {"das", "dtrak", "trak", "classifier"}
    for metric in ("top1", "variation", "variation_standardised"):
        ahead, after = (set(f(quick, "differences", "guda-retrack", metric)) for f in (clear, behind))
        assert not {(m, "generated") for m in near} & (ahead | after)
        held_out = {m for m, s in after if s == "held_out"}
        assert held_out == ({"dtrak"} if metric == "top1" else {"das", "dtrak"})
    assert barely(quick, "top1") == barely(quick, "variation") == {("dtrak", "held_out")}
    first = {r["method"]: r["top1"]["value"] for r in quick["rows"] if r["query_set"] == "generated"}
    assert first["ceiling"] <= first["guda-retrack"] + 0.01
    above = {
        s for m in ("top1", "variation") for n, s in clear(quick, "differences", "guda-retrack", m) if n == "ceiling"
    }
    below = {
        s for m in ("top1", "variation") for n, s in behind(quick, "differences", "guda-retrack", m) if n == "ceiling"
    }
    assert not above and not below


def test_the_page_of_limits_says_how_much_more_retraining_takes_away(committed):
    """The slopes of its sentence are those of the record."""
    page = (ROOT / "docs" / "explanation" / "limits.md").read_text(encoding="utf-8")
    slope = {r["query_set"]: f"{r['of_drop']:.1f}" for r in committed["offset_fit"]}
    said = "{generated} times on generated pictures, {generated-blend} on blends, {real} on real ones"
    for name, value in slope.items():
        said = said.replace(f"{{{name}}}", value)
    assert said in page


@pytest.mark.parametrize("name", agreement.PLOTTED)
def test_the_plots_of_first_places_are_of_the_committed_tables(name):
    """Else: `python -m experiments.tables.agreement`."""
    rows, sha256 = agreement.plotted(name)
    with Image.open(DOCS / f"{name}.png") as im:
        assert rows and im.text[agreement.ROWS] == sha256


def bootstrapped(found):
    """Whether one of the intervals of variation is none of the jackknife's, which lie around their value."""
    sides = [(v["high"] - v["value"], v["value"] - v["low"]) for v in found if v["low"] > -1 and v["high"] < 1]
    return any(abs(up - down) > 1e-6 for up, down in sides)


@pytest.mark.parametrize(
    ("name", "page", "head"),
    [
        ("planted", "planted", "## Agreement with the oracle"),
        ("timesteps", "tried", "## Styles: chosen timesteps"),
        ("averaged", "tried", "## Styles: adapters of several seeds"),
    ],
)
def test_pages_say_where_intervals_of_variation_are_too_narrow(name, page, head):
    record = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    rows = record["rows"] if "rows" in record else record["fresh"]
    rows = rows if isinstance(rows, list) else [of for by_set in rows.values() for of in by_set.values()]
    text = (DOCS / "results" / f"{page}.md").read_text(encoding="utf-8").partition(head)[2].partition("\n## ")[0]
    assert text and ("bootstrap ones here, and too narrow" in text) == bootstrapped([r["variation"] for r in rows])


def test_the_jackknifes_intervals_are_not_taken_for_bootstrap_ones(committed):
    assert not bootstrapped([r["variation"] for r in committed["rows"]])


def test_the_commands_that_make_the_tables_again_need_no_kept_values():
    section = said_on("docs/results/index.md").partition("## Make the tables again")[2].partition("## ")[0]
    commands = re.findall(r"`python -m (experiments[^`]*)`", section)
    assert len(commands) == 3 and all(c.endswith(" --table") for c in commands)
    assert "`python -m experiments.held_back --table` makes" in said_on("docs/results/held-back.md")
