"""The measurement of the intervals, on values whose truth is known."""

from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.benchmark import coverage
from experiments.benchmark.queries import Item, Queries
from guda_core.diffusion import likelihood
from guda_core.paths import DOCS

STRATA = likelihood.Strata((1, 11, 41, 101, 201))


def normal(rng: np.random.Generator, shift: float, noise: float, q: int = 40, m: int = 48) -> np.ndarray:
    return shift / STRATA.sizes.sum() + noise * rng.normal(size=(q, 4, m))


def test_intervals_of_normal_values_hold_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    full = normal(rng, 0, 0.1)
    rows = coverage.measure(full, {"a": normal(rng, 5, 0.1), "b": normal(rng, 1, 0.1)}, ["x"] * 40, STRATA, 4)
    assert [r["query_set"] for r in rows] == ["x", "all"] and rows[0]["held"]["n"] == 40 * 2 * 12
    assert 0.93 < rows[0]["held"]["value"] < 0.97
    assert rows[0]["held"]["low"] < 0.95 < rows[0]["held"]["high"]


def test_intervals_that_are_too_narrow_are_found_out(monkeypatch):
    rng = np.random.default_rng(1)
    full, without = normal(rng, 0, 0.1), {g: normal(rng, 5, 0.1) for g in "ab"}
    honest = likelihood.elbo_drop

    def narrow(*, full, without, strata):
        e = honest(full=full, without=without, strata=strata)
        return likelihood.Estimate(e.value, e.se / 2, e.value - (e.value - e.low) / 2, e.value + (e.high - e.value) / 2)

    monkeypatch.setattr(likelihood, "elbo_drop", narrow)
    assert coverage.measure(full, without, ["x"] * 40, STRATA, 4)[0]["held"]["high"] < 0.85


def test_told_apart_counts_and_errors():
    rng = np.random.default_rng(2)
    clear = {"a": normal(rng, 300, 0.1), "b": normal(rng, 0, 0.1), "c": normal(rng, 0, 0.1)}
    row = coverage.measure(clear["b"], clear, ["x"] * 40, STRATA, 12)[0]
    assert row["told_apart"]["value"] == 1 and row["told_apart_wrongly"]["value"] == 0
    tied = {"a": normal(rng, 0, 0.1), "b": normal(rng, 0, 0.1)}
    row = coverage.measure(clear["b"], tied, ["x"] * 40, STRATA, 4)[0]
    assert row["told_apart"]["value"] < 0.1  # the larger of two equals: 5 of 100 beyond a two-sided 95% interval
    one = {g: v[0] for g, v in clear.items()}
    assert coverage.told_apart(one, STRATA, 48, {}) == [(True, True)]
    half = {g: v[0][:, :24] for g, v in clear.items()}
    mean = {g: float(v.mean(axis=1) @ STRATA.sizes) for g, v in half.items()}
    tie = {"c": mean["a"] - mean["c"]}  # what makes the last as good as the first
    assert [apart for apart, _ in coverage.told_apart(half, STRATA, 24, tie)] == [False]
    assert coverage.told_apart(half, STRATA, 24, {"c": 1e6}) == [(True, True)]


def test_scorings_of_one_picture_are_not_independent_cases():
    hits = [True] * 50 + [False] * 50
    alike = coverage.share(hits, [0] * 50 + [1] * 50)
    apart = coverage.share(hits, list(range(100)))
    assert alike["value"] == apart["value"] == 0.5
    assert alike["high"] - alike["low"] > 3 * (apart["high"] - apart["low"])
    assert coverage.share([True] * 10, list(range(10)))["high"] == pytest.approx(1.0)
    z2 = 1.959964**2  # Wilson's end for n cases that are all alike: z^2 / (n + z^2) away
    for hit in (True, False):
        found = coverage.share([hit] * 92, [i % 23 for i in range(92)])  # no variance, and still only 23 pictures
        assert found["high"] - found["low"] == pytest.approx(z2 / (23 + z2)) and found["n"] == 92
    assert coverage.share([True] * 92, [0] * 92)["low"] == pytest.approx(92 / (92 + z2))  # one source, told as it is


@pytest.mark.parametrize(("sources", "each"), [(3, 20), (8, 32), (24, 8)])
def test_a_share_covers_as_often_as_it_says_over_sources_that_differ(sources, each):
    """Of a source's pictures some 70%, of one more and of another less."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(600):
        own = rng.beta(7, 3, sources)
        hits = (rng.random((sources, each)) < own[:, None]).ravel()
        found = coverage.share(list(hits), list(np.repeat(range(sources), each)))
        covered.append(found["low"] <= 0.7 <= found["high"])
    assert np.mean(covered) > 0.925


def test_queries_are_spread_over_each_set():
    items = tuple(Item(s, ("g",), str(i), "", i) for s in ("a", "b") for i in range(10))
    some = coverage.choose(Queries((0,) * 20, items, "h"), 3)  # type: ignore[arg-type]
    assert [(i.set, i.object) for i in some.items] == [(s, o) for s in "ab" for o in ("0", "4", "9")]


def test_both_pages_aim_at_the_same_coverage():
    checks, engine = ((DOCS / "results" / f"{n}.md").read_text(encoding="utf-8") for n in ("checks", "engine"))
    low, high = re.search(r"in (\d+) to (\d+)% of cases", checks).groups()
    assert engine.count(f"| 0.{low} to 0.{high} |") == 3
