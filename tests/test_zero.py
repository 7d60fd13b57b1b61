"""Calls marked for ZeroGPU: the same answers, the seconds asked for, and nothing elsewhere."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from inspect import isgeneratorfunction
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from torch.overrides import TorchFunctionMode

from guda_core.diffusion.memory import NO_MEMORY
from guda_core.errors import GudaError, ImageError, OptionError
from guda_core.local import load_service
from guda_core.picture_records import Drawing
from guda_core.records import Cost, Query
from guda_core.service import Step
from guda_core.ui import words
from guda_core.ui.callbacks import explained
from guda_core.zero_gpu import LONGEST_S, UNTIMED_S, VARIABLE, ZeroGpu, on_zero_gpu
from tests.fakes import FakeService
from tests.own_workspace import own_workspace

ASKED = {"methods": ["clip", "guda"], "effort": "quick"}
DRAWN = {"prompt": "a red apple", "seed": 1, "steps": 5, "guidance": 3.0}


@contextmanager
def worker() -> Iterator[None]:
    """Of an error in the other process the name of its type comes out, and no more."""
    try:
        yield
    except Exception as e:
        raise gr.Error(f"'{type(e).__name__}'", title="ZeroGPU worker error") from None


class NoGpu(TorchFunctionMode):
    """Where no GPU is lent: weights are on the disk, and each use of a tensor is a fault."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} where no GPU is lent")


def elsewhere(call: Callable[..., Any], *args: Any) -> Any:
    """What a call gives in a thread of the web server, where no GPU is lent."""

    def called() -> Any:
        with NoGpu():
            return call(*args)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(called).result()


class Platform:
    """Stands for the `spaces` package: what goes in and comes out is pickled, every lent second is noted, and how many
    are asked for is said in another thread, where no GPU is lent."""

    def __init__(self) -> None:
        self.lent: list[int] = []

    def gpu(self, duration: Any) -> Callable[..., Any]:
        def marked(call: Callable[..., Any]) -> Callable[..., Any]:
            def asked(*args: Any) -> tuple[Any, ...]:
                args = pickle.loads(pickle.dumps(args))
                self.lent.append(elsewhere(duration, *args) if callable(duration) else duration)
                return args

            def one(*args: Any) -> Any:
                args = asked(*args)
                with worker():
                    return pickle.loads(pickle.dumps(call(*args)))

            def many(*args: Any) -> Iterator[Any]:
                args = asked(*args)
                with worker():
                    for item in call(*args):
                        yield pickle.loads(pickle.dumps(item))

            return many if isgeneratorfunction(call) else one

        return marked


def drawn(service: Any) -> Query:
    *steps, query = service.generate(**DRAWN)
    assert [s.done for s in steps if isinstance(s, Step)] == [1, 2, 3, 4, 5] and isinstance(query, Query)
    return query


def test_the_answers_are_the_services_own_and_every_computing_call_is_lent_a_gpu(tmp_path):
    platform, plain = Platform(), FakeService()
    marked = ZeroGpu(plain, platform.gpu)
    query = drawn(marked)
    assert query.image_hash == drawn(plain).image_hash and platform.lent == [30]
    there, here = list(marked.attribute(query, **ASKED)), list(plain.attribute(query, **ASKED))
    assert [(a.method, a.progress, a.groups) for a in there] == [(a.method, a.progress, a.groups) for a in here]
    assert platform.lent == [30, marked.seconds(**ASKED)]
    assert marked.scope(query) == plain.scope(query) and marked.best_caption(query) == plain.best_caption(query)
    assert len(platform.lent) == 4
    assert marked.methods() == plain.methods() and marked.group_set is plain.group_set
    np.testing.assert_array_equal(marked.with_prompt(query, "a").pixels, query.pixels)
    assert marked.unread("(a:1.2)") == plain.unread("(a:1.2)") != ()


def test_more_effort_asks_for_more_seconds_up_to_what_may_be_asked():
    service = ZeroGpu(FakeService(), Platform().gpu)
    clip, quick, full = (
        service.seconds(m, e) for m, e in ((["clip"], "full"), (["guda"], "quick"), (["guda"], "full"))
    )
    assert clip < quick < full <= LONGEST_S
    assert (clip, quick) == (10, 12)  # 10 to begin, and 2 for 432 forward passes


def test_strip_and_maps_ask_by_their_passes():
    plain, platform = FakeService(), Platform()
    service, ids = ZeroGpu(plain, platform.gpu), list(plain.group_set.groups)
    query = drawn(service)
    for steps in (5, 25, 50):
        list(service.pictures(replace(query, drawn=Drawing(1, steps, 3.0)), method="guda"))
    list(service.pictures(replace(query, drawn=None), method="guda"))  # of an upload
    strips = [2 * 5 * 8, 2 * 25 * 8, 2 * 50 * 8, 15 * 9]
    assert platform.lent[1:] == [round(10 + 4 * n / 216) for n in strips] == [11, 17, 25, 12]
    plain.unavailable = ("noto", "twemoji", "openmoji", "fluent-emoji")
    list(service.pictures(replace(query, drawn=Drawing(1, 50, 3.0)), method="guda"))
    for n in (1, 3, 8):
        list(service.maps(query, method="guda", groups=ids[:n]))
    assert platform.lent[5:] == [round(10 + 4 * 400 / 216), *(round(10 + 96 * (1 + n) / 216) for n in (1, 3, 8))]
    service._pace, service._timed_s = Slow(1.0), 1.0  # a model that is much slower
    list(service.maps(query, method="guda", groups=ids))
    assert platform.lent[-1] == LONGEST_S


def test_every_part_of_a_cost_asks_for_seconds(monkeypatch):
    service = ZeroGpu(FakeService(), Platform().gpu)
    asked = []
    for cost in (Cost(), Cost(forward=2160), Cost(gradients=100), Cost(seconds=10), Cost(forward=10**9)):
        monkeypatch.setattr(service.service, "cost", lambda methods, effort, cost=cost: cost)
        asked.append(service.seconds(["clip"], "quick"))
    assert asked == [10, 20, 15, 20, LONGEST_S]


def test_the_expected_time_is_what_the_last_such_run_took():
    service = ZeroGpu(FakeService(delay=0.01), Platform().gpu)
    assert service.estimate(**ASKED) == service.seconds(**ASKED)
    list(service.attribute(drawn(service), **ASKED))
    assert 0.03 < service.estimate(["guda", "clip"], "quick") != service.seconds(**ASKED)
    assert service.estimate(["clip"], "quick") == service.seconds(["clip"], "quick")


def test_a_fault_on_the_lent_gpu_reaches_the_caller():
    plain = FakeService()
    plain.fault = RuntimeError("GPU task aborted")
    with pytest.raises(gr.Error, match="RuntimeError") as e:
        list(ZeroGpu(plain, Platform().gpu).attribute(drawn(plain), **ASKED))
    assert explained(e.value) == words.FAULT


@pytest.mark.parametrize(
    ("fault", "told"),
    [(OptionError("There is no method 'x'."), "There is no method 'x'."), (MemoryError(), NO_MEMORY)],
)
def test_a_refusal_on_the_lent_gpu_keeps_its_words(fault, told):
    plain = FakeService()
    plain.fault = fault
    with pytest.raises(GudaError) as e:
        list(ZeroGpu(plain, Platform().gpu).attribute(drawn(plain), **ASKED))
    assert explained(e.value) == told


def test_cancelling_reaches_the_call_on_the_lent_gpu():
    plain = FakeService()
    run = ZeroGpu(plain, Platform().gpu).attribute(drawn(plain), **ASKED)
    next(iter(run))
    before = plain.closed
    run.close()
    assert plain.closed == before + 1


def test_time_that_ran_out_is_said():
    assert explained(gr.Error("GPU task aborted", title="ZeroGPU worker error")) == words.ABORTED


def test_calls_with_one_answer_are_refused_in_words_too():
    with pytest.raises(ImageError, match="SVG"):
        ZeroGpu(FakeService(), Platform().gpu).prepare(b"<svg/>")


def test_the_platforms_own_word_is_passed_on_as_plain_text():
    assert explained(gr.Error("You have exceeded your quota &amp; <a href='x'>so on</a>.")) == (
        "You have exceeded your quota & so on."
    )


class Slow:
    """Stands for a model's pace: a pass takes so many seconds on the lent GPU, where alone it may be timed."""

    def __init__(self, forward_s: float, source: str = "folder") -> None:
        self.model, self._forward_s, self.timed = SimpleNamespace(card=SimpleNamespace(source=source)), forward_s, 0

    @property
    def forward_s(self) -> float:
        self.timed += 1
        return self._forward_s


def paced(pace: Slow) -> FakeService:
    plain = FakeService()
    plain.pace = pace  # type: ignore[attr-defined]
    return plain


def test_a_model_of_ones_own_asks_for_a_minute_first_and_as_timed_on_the_lent_gpu_from_then_on():
    plain, platform = paced(pace := Slow(0.02)), Platform()
    service = ZeroGpu(plain, platform.gpu)
    query = drawn(service)
    assert platform.lent == [UNTIMED_S] and service.seconds(**ASKED) == UNTIMED_S and not pace.timed
    found = list(service.attribute(query, **ASKED))
    assert [a.method for a in found] == [a.method for a in plain.attribute(query, **ASKED)]
    timed = round(10 + 1.25 * 0.02 * plain.cost(**ASKED).forward)
    assert platform.lent[1:] == [UNTIMED_S] and service.seconds(**ASKED) == timed and pace.timed == 1
    list(service.attribute(query, **ASKED))
    assert platform.lent[2:] == [timed] and pace.timed == 1
    list(service.generate(**{**DRAWN, "steps": 50}))
    assert platform.lent[-1] == 30  # 50 steps of two passes take 2.5 s
    service._timed_s = 1.0
    list(service.generate(**{**DRAWN, "steps": 50}))
    assert platform.lent[-1] == LONGEST_S


def test_the_most_that_is_asked_for_fits_into_a_day_without_an_account_and_an_answer_after_a_drawing_does():
    counted, day = 1.5, 120  # seconds counted for each that is asked for; a visitor's day
    assert counted * LONGEST_S <= day and counted * (UNTIMED_S + 15) <= day


@pytest.mark.parametrize("source", ["assets", "folder"])
def test_a_model_as_fast_as_the_included_one_asks_as_that_does(source):
    service, asked = ZeroGpu(paced(Slow(0.0001, source)), Platform().gpu), ZeroGpu(FakeService(), Platform().gpu)
    assert service.seconds(**ASKED) == (asked.seconds(**ASKED) if source == "assets" else UNTIMED_S)
    list(service.attribute(drawn(service), **ASKED))
    assert service.seconds(**ASKED) == asked.seconds(**ASKED)


def test_with_a_model_nothing_is_computed_to_say_how_many_seconds_are_asked_for(home):
    own_workspace(home)
    platform, plain = Platform(), load_service(None, fall_back=False)
    service = ZeroGpu(plain, platform.gpu)
    query = drawn(service)
    (answer,) = list(service.attribute(query, methods=["guda"], effort="quick"))[-1:]
    assert all(s.score is not None for s in answer.groups.values())
    assert list(service.pictures(query, method="guda")) and list(service.maps(query, method="guda", groups=["dee"]))
    service.scope(query)
    assert platform.lent[:2] == [UNTIMED_S] * 2 and len(platform.lent) == 5


def test_elsewhere_nothing_is_marked(monkeypatch):
    service = FakeService()
    monkeypatch.delenv(VARIABLE, raising=False)
    assert on_zero_gpu(service) is service
    monkeypatch.setenv(VARIABLE, "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=Platform().gpu))
    assert isinstance(on_zero_gpu(service), ZeroGpu)
