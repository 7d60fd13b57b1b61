"""One bar over everything: it grows, counts the parts, and tells the time that is left."""

from __future__ import annotations

import re
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest

from guda_core.records import Attribution, GroupScore, Query
from guda_core.ui import progress, words
from guda_core.ui.answer import Answer
from guda_core.ui.callbacks import Runs
from guda_core.ui.connect import _between
from guda_core.ui.progress import CAPTIONS, DRAW, SCOPE, Part, Progress
from tests.fakes import FakeService


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def value(said: str) -> float:
    found = re.search(r'value="([0-9.]+)"', said)
    assert found is not None
    return float(found[1])


def test_the_bar_is_of_all_parts_by_their_expected_time(clock):
    p = Progress([Part("a", "First", 30.0), Part("b", "Second", 10.0)])
    assert "First: 1 of 2, about 40 s left" in p.at("a", 0.0)
    clock[0] += 45.0  # three times as slow as expected
    half = p.at("a", 0.5)
    assert value(half) == pytest.approx(0.375) and "First: 1 of 2, about 75 s left" in half
    assert value(p.at("a", 0.2)) == pytest.approx(0.375)  # it never goes back
    p.at("a", 1.0)
    last = p.at("b", 0.0)
    assert value(last) == pytest.approx(0.75) and "Second: 2 of 2" in last
    assert "left" not in p.at("b", 1.0) and p.fraction() == 1.0


def test_a_whole_run_tells_how_slow_the_next_one_will_be(clock):
    parts = [Part("a", "First", 30.0), Part("b", "Second", 10.0)]
    p = Progress(parts)
    p.at("a", 1.0)
    clock[0] += 120.0
    assert p.learned() == 1.0 and Progress([], slower=2.0).learned() == 2.0  # it was not whole
    p.at("b", 1.0)
    assert p.learned() == pytest.approx(3.0)
    again = Progress(parts, slower=p.learned())
    assert again.expected() == pytest.approx(120.0) and "about 2 min left" in again.at("a", 0.0)
    clock[0] += 80.0
    again.at("a", 1.0)
    again.at("b", 1.0)
    assert again.learned() == pytest.approx(2.0)
    clock[0] -= 79.0
    assert again.learned() == 1.0  # never below what was measured


def test_a_plan_holds_everything_that_a_run_does():
    service = FakeService()
    service.oracle = "agrees"
    plan = progress.plan(service, ["clip", "logo", "guda"], "quick", steps=25, scope=True, captions=True)
    assert list(plan.parts) == [DRAW, SCOPE, "guda", "clip", "logo", CAPTIONS]
    seconds = {k: p.seconds for k, p in plan.parts.items()}
    assert seconds["guda"] == pytest.approx(8.2) and seconds["logo"] == pytest.approx(8.0)  # each by what it adds
    assert seconds["clip"] == progress.LEAST and seconds[CAPTIONS] == pytest.approx(16.4)
    assert list(progress.plan(service, [], "quick").parts) == []


def test_cancelled_before_a_score_is_said_once():
    query = Query(np.zeros((8, 8, 3), np.uint8), None, "", "0" * 64)
    answer = Answer(query, ("guda",), "quick", {})
    cancelled = _between(MagicMock(examples=[]), Runs(FakeService(), MagicMock())).cancelled.fn
    assert "no score yet" in cancelled(answer)[0] and words.CANCELLED not in cancelled(answer)[1]
    scored = Attribution("guda", "nats", {"noto": GroupScore(9.0, 8.0, 10.0)}, 0.5)
    assert words.CANCELLED in cancelled(replace(answer, found={"guda": scored}))[1]
