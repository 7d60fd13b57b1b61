"""Calls marked for ZeroGPU: the same answers, the seconds asked for, and nothing elsewhere."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import isgeneratorfunction
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from guda_core import zero_gpu
from guda_core.diffusion.cards import find_card, load_model
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.diffusion.pace import forward_flops
from guda_core.errors import GudaError, ImageError, OptionError
from guda_core.picture_records import Drawing
from guda_core.records import Cost, Query
from guda_core.service import Step
from guda_core.ui import words
from guda_core.ui.callbacks import explained
from guda_core.zero_gpu import LONGEST_S, VARIABLE, ZeroGpu, on_zero_gpu
from tests.fakes import FakeService
from tests.tiny_families import save_family

ASKED = {"methods": ["clip", "guda"], "effort": "quick"}
DRAWN = {"prompt": "a red apple", "seed": 1, "steps": 5, "guidance": 3.0}


@contextmanager
def worker() -> Iterator[None]:
    """Of an error in the other process the name of its type comes out, and no more."""
    try:
        yield
    except Exception as e:
        raise gr.Error(f"'{type(e).__name__}'", title="ZeroGPU worker error") from None


class Platform:
    """Stands for the `spaces` package: what goes in and comes out is pickled, and every lent second is noted."""

    def __init__(self) -> None:
        self.lent: list[int] = []

    def gpu(self, duration: Any) -> Callable[..., Any]:
        def marked(call: Callable[..., Any]) -> Callable[..., Any]:
            def asked(*args: Any) -> tuple[Any, ...]:
                args = pickle.loads(pickle.dumps(args))
                self.lent.append(duration(*args) if callable(duration) else duration)
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
    service._pace, service._timed_s = Slow(None, 1.0), 1.0  # a model that is much slower
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

    def __init__(self, model: Any, forward_s: float) -> None:
        self.model, self._forward_s, self.timed = model, forward_s, 0

    @property
    def forward_s(self) -> float:
        self.timed += 1
        return self._forward_s


def test_a_slow_model_asks_by_its_size_first_and_as_timed_on_the_lent_gpu_from_then_on(tmp_path, monkeypatch):
    plain = FakeService()
    plain.pace = pace = Slow(load_model(save_family(tmp_path, "sd1")), 0.02)  # type: ignore[attr-defined]
    size = forward_flops(pace.model)
    monkeypatch.setattr(zero_gpu, "INCLUDED", size / 4)
    platform = Platform()
    service = ZeroGpu(plain, platform.gpu)
    cost = plain.cost(**ASKED)
    by_size = round(10 + 4 * cost.forward / 216)
    assert service.slower == pytest.approx(4) and service.seconds(**ASKED) == by_size and not pace.timed
    found = list(service.attribute(drawn(plain), **ASKED))
    assert [a.method for a in found] == [a.method for a in plain.attribute(drawn(plain), **ASKED)]
    timed = round(10 + 1.25 * 0.02 * cost.forward)
    assert platform.lent == [by_size] and service.seconds(**ASKED) == timed > by_size and pace.timed == 1
    list(service.attribute(drawn(plain), **ASKED))
    assert platform.lent == [by_size, timed] and pace.timed == 1
    list(service.generate(**{**DRAWN, "steps": 50}))
    assert platform.lent[-1] == 30  # 50 steps of two passes take 2.5 s
    pace._forward_s = service._timed_s = 1.0
    list(service.generate(**{**DRAWN, "steps": 50}))
    assert platform.lent[-1] == LONGEST_S


def test_a_model_faster_than_the_included_one_asks_as_that_does(tmp_path):
    plain = FakeService()
    plain.pace = Slow(load_model(save_family(tmp_path, "sd1")), 0.0001)  # type: ignore[attr-defined]
    service, asked = ZeroGpu(plain, Platform().gpu), ZeroGpu(FakeService(), Platform().gpu).seconds(**ASKED)
    assert service.slower == 1.0 and service.seconds(**ASKED) == asked
    list(service.attribute(drawn(plain), **ASKED))
    assert service.slower == 1.0 and service.seconds(**ASKED) == asked


def test_the_constants_are_of_the_included_model_and_counting_computes_nothing():
    model = load_model(find_card("emoji"))
    assert forward_flops(model) == zero_gpu.INCLUDED
    condition = model.embed([""])
    with torch.no_grad(), FlopCounterMode(display=False) as count:  # of a pass that is made
        model.predict(torch.zeros(1, *model.latent_shape), torch.tensor([500]), condition)
    assert count.get_total_flops() == zero_gpu.INCLUDED


def test_elsewhere_nothing_is_marked(monkeypatch):
    service = FakeService()
    monkeypatch.delenv(VARIABLE, raising=False)
    assert on_zero_gpu(service) is service
    monkeypatch.setenv(VARIABLE, "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=Platform().gpu))
    assert isinstance(on_zero_gpu(service), ZeroGpu)
