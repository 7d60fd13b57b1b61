"""How large scores are, and on whose pictures: closed forms, and what the pages say of the committed figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from experiments import score_sizes as sizes
from experiments.benchmark import styles_run
from experiments.tables import baselines_table, sizes_table
from guda_core.paths import BENCHMARKS, ROOT, SHIPPED_RUN
from guda_core.unlearning.adapters import OFFSET


@pytest.fixture(scope="module")
def committed():
    return json.loads((BENCHMARKS / "sizes.json").read_text(encoding="utf-8"))


def test_means_are_over_pictures_and_groups_of_a_set():
    oracle = np.array([[10.0, -2], [4, 4], [1, 3]])
    scores = {"logo": oracle, "guda": oracle / np.array([[2.0], [2], [4]])}
    compared = styles_run.Compared(scores, ["a", "a", "b"], [["x"], ["y"], ["x"]], np.ones((3, 2), bool), "")
    first, second = sizes.sizes(compared)
    assert first == {"query_set": "a", "n": 2, "oracle": 4, "guda": 2, "times": 2, "oracle_positive": 0.75}
    assert (second["oracle"], second["times"], second["oracle_positive"]) == (2, 4, 1)


def test_the_error_over_artists_is_that_of_their_means():
    rng = np.random.default_rng(0)
    artist = np.repeat(np.arange(4), 30)
    level = np.array([0.0, 1, 5, 50])
    drops = level[artist][:, None] + rng.normal(size=(120, 4))
    rows = sizes.by_artist(drops, artist, "abcd")
    others = drops[artist != 0, 0]
    means = [drops[artist == i, 0].mean() for i in (1, 2, 3)]
    assert rows[0]["n"] == 90 and rows[0]["mean"] == pytest.approx(np.mean(means))
    assert rows[0]["se_artists"] == pytest.approx(stats.sem(means)) and rows[0]["of"]["d"] == pytest.approx(means[2])
    assert rows[0]["se_pictures"] == pytest.approx(stats.sem(others)) and rows[0]["se_artists"] > 5 * stats.sem(others)


def test_the_pages_words_on_artists_and_other_means_hold(committed):
    for of_artists in (committed["artists"], committed["oracle_artists"]):
        assert [r["group"] for r in of_artists] == list(of_artists[0]["of"])
    spread = {}
    for key in ("artists", "oracle_artists"):
        (row,) = [r for r in committed[key] if r["group"] == "emojione-monotone"]
        others = sorted(v for a, v in row["of"].items() if a != "emojione-monotone")
        spread[key] = others[0] / others[-1]
    assert spread["artists"] < 0.05 and spread["oracle_artists"] > 0.25
    (open_moji,) = [r for r in committed["artists"] if r["group"] == "openmoji"]
    assert round(open_moji["mean"]) == 29 and round(10 * open_moji["positive"]) == 9
    found = {(r["way"], r["query_set"]): r["spearman"] for r in committed["ways"]}
    assert all(found["mean", s] > found[w, s] for w, s in found if w != "mean") and len(found) == 9


def test_the_trimmed_mean_leaves_out_both_ends():
    assert sizes.trimmed([5.0, -100, 3, 7, 900]) == 5


def test_what_the_pages_say_of_sizes_holds(committed):
    page = (ROOT / "docs" / "explanation" / "limits.md").read_text(encoding="utf-8")
    times = {r["query_set"]: round(r["times"]) for r in committed["sizes"]["first"]}
    assert f"{times['generated']}, {times['generated-blend']} and {times['real']} times as large" in page
    nothing = {r["query_set"]: r for r in committed["nothing"]}
    assert nothing["generated"]["positive"] > 0.95 < nothing["generated-blend"]["positive"]
    assert f"{nothing['generated']['drop']:.0f} nats" in page and nothing["real"]["drop"] < 0
    (mono,) = [r for r in committed["artists"] if r["group"] == "emojione-monotone"]
    of = {a: v for a, v in mono["of"].items() if a not in ("emojione-monotone", "fluent-emoji-high-contrast")}
    assert mono["of"]["fluent-emoji-high-contrast"] > 5 * max(of.values())
    in_the_app = {g: adapters_health(g)["se"] for g in mono["of"]}
    more = [r["se_artists"] / in_the_app[r["group"]] for r in committed["artists"]]
    assert 3.5 < max(more) < 4.5 and min(more) > 1
    assert "up to four\n  times the app's" in (ROOT / "docs" / "results" / "offset.md").read_text(encoding="utf-8")


def adapters_health(group):
    return json.loads((SHIPPED_RUN / "adapters" / group / "health.json").read_text(encoding="utf-8"))[OFFSET]


def test_tables_hold_the_figures(committed, monkeypatch):
    text = sizes_table.RENDER["sizes_drops"]()
    row = committed["sizes"]["first"][0]
    cells = f"| first | generated | 200 | {row['oracle']:.0f} | {row['guda']:.0f} | {row['times']:.1f} | "
    assert cells in text and sizes.COMMAND in text
    head = sizes_table.RENDER["sizes_artists"]().splitlines()[0]
    assert [c.strip() for c in head.split("|")[2:10]] == [r["group"] for r in committed["artists"]]
    monkeypatch.setattr("experiments.tables.committed.read", lambda name: None)
    assert {f() for f in sizes_table.RENDER.values()} == {"Not measured yet."}


def test_the_settings_of_the_baselines_are_those_that_their_scores_were_made_with():
    made = json.loads((BENCHMARKS / "fresh" / "made-from" / "styles-scores.json").read_text(encoding="utf-8"))["made"]
    lines = {line.split(" | ")[0][2:]: line for line in baselines_table.RENDER["baseline_settings"]().splitlines()}
    for name in ("trak", "dtrak", "das"):
        of = made[name]["from"]["config"]["features"]
        assert f"| `{of['output']}`" in lines[name] and f"| {of['timesteps']} | {of['dim']:,} |" in lines[name]
    assert "normalised" in lines["das"] and "normalised" not in lines["trak"]
