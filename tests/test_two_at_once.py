"""Two threads at once, and work that is stopped half-way: no answer changes, and nothing stays of it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from guda_core import local
from guda_core.attribution.gradient.features import timestep_grid
from guda_core.data.captions import drop
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.errors import lacked
from guda_core.records import GroupScore
from guda_core.scoring.listing import Wanted
from guda_core.scoring.scorer import _fits
from guda_core.scoring.table_run import Total
from guda_core.unlearning import lora
from guda_core.unlearning.lora import LoraSpec
from guda_core.unlearning.student import seeded_dropout
from guda_core.unlearning.switching import _swapped
from guda_core.work_queue import claimed
from tests.light import LightService
from tests.table_works import folder_of, rows, run
from tests.test_pipeline import service  # noqa: F401  (a fixture)


class Alone:
    """In place of a tokenizer: sees that one thread at a time uses it, as its settings change while it reads."""

    def __init__(self, tokenizer):
        self.tokenizer, self.inside, self.used = tokenizer, threading.Lock(), 0

    def __call__(self, *args, **more):
        assert self.inside.acquire(blocking=False), "two threads use the tokenizer"
        try:
            time.sleep(0.005)
            self.used += 1
            return self.tokenizer(*args, **more)
        finally:
            self.inside.release()

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_a_tokenizer_is_used_by_one_thread_at_a_time(service, monkeypatch):  # noqa: F811
    alone = Alone(service.model.pipe.tokenizer)
    monkeypatch.setattr(service.model.pipe, "tokenizer", alone)
    works = [lambda: service.model.embed(["a cat"]), lambda: service.model.tokens("a cat"), lambda: service.unread("x")]
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work) for work in works * 6]:
            done.result()
    assert alone.used >= 18


def test_an_answer_is_the_same_while_another_thread_loads_a_model_of_another_type(service):  # noqa: F811
    """The libraries set torch's default type for the whole process while they load one."""
    query = service.query(np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8), "a cat")
    methods = [m for m in service.offered if m != "random"]

    def answers():
        found = {a.method: a.groups for a in service.attribute(query, methods=methods, effort="quick")}
        return found, service.scope(query)

    before = answers()
    torch.set_default_dtype(torch.float16)
    try:
        assert answers() == before
    finally:
        torch.set_default_dtype(torch.float32)


def test_whether_an_adapter_runs_live_is_asked_while_no_other_thread_has_one_in_place(service, monkeypatch):  # noqa: F811
    guda, held = service.offered["guda"], list[bool]()
    asked = lambda adapters: held.append(service.model.lock._is_owned()) or False  # noqa: E731
    monkeypatch.setattr(guda.switching, "any_live", asked)
    query = service.query(np.zeros((16, 16, 3), np.uint8), "a cat")
    next(iter(service.attribute(query, methods=["guda"], effort="quick")))
    assert held and all(held)


class Weight:
    """A weight whose data cannot be put back at one try, as where Ctrl-C comes just then."""

    def __init__(self, value, interrupt_at=0):
        self.value, self.puts, self.interrupt_at = value, 0, interrupt_at

    @property
    def data(self):
        return self.value

    @data.setter
    def data(self, value):
        self.puts += 1
        if self.puts == self.interrupt_at:
            raise KeyboardInterrupt
        self.value = value


@pytest.mark.parametrize("at", [1, 2])  # while the other weights are put in, and while the own ones are put back
def test_ctrl_c_while_weights_are_switched_leaves_the_models_own(at):
    own = {"a": Weight("a"), "b": Weight("b", at), "c": Weight("c")}
    with pytest.raises(KeyboardInterrupt), _swapped(own, dict.fromkeys(own, "other")):  # type: ignore[arg-type]
        pass
    assert {n: w.value for n, w in own.items()} == {"a": "a", "b": "b", "c": "c"}


def test_a_claim_is_let_go_by_whichever_thread_ends_the_work(tmp_path):
    def work():
        with claimed(tmp_path / "x") as mine:
            yield mine

    begun = work()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, begun).result() is True
    begun.close()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, work()).result() is True


def test_unlearning_leaves_the_callers_random_numbers_as_they_were():
    def drawn(between):
        torch.manual_seed(7)
        between()
        return torch.rand(3)

    def network():
        made = torch.nn.Sequential()
        made.add_module("to_q", torch.nn.Linear(4, 4))
        return made

    of, one = LoraSpec(2, 2, ("to_q",)), network()
    assert torch.equal(drawn(lambda: None), drawn(lambda: lora.attach(one, of, 1)))
    first, again, other = (lora.attach(network(), of, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_had_too_little_memory_is_tried_again():
    wanted = Wanted(*("p.png" for _ in Wanted.__dataclass_fields__))
    row = {"file_sha256": "0", "prompt": wanted.prompt, "status": "no_score", "reason": None}
    assert _fits(row, wanted, "0") and _fits({**row, "reason": "A value is not finite."}, wanted, "0")
    for reason in (NO_MEMORY, f"guda: {NO_MEMORY}"):
        assert lacked(reason) and not _fits({**row, "reason": reason}, wanted, "0")


def test_training_pictures_that_are_fetched_later_are_named(service, monkeypatch):  # noqa: F811
    found = iter([(), ("a picture",)])
    monkeypatch.setattr(local, "fetched", lambda gs: next(found))
    monkeypatch.setattr(local, "nearest", lambda likeness, query, items: items)
    monkeypatch.setattr(service, "_items", None)
    query = service.query(np.zeros((16, 16, 3), np.uint8), "")
    assert service.nearest(query) == () and service.nearest(query) == service.nearest(query) == ("a picture",)


def test_what_unlearning_draws_is_the_same_while_another_thread_loads_a_model_of_another_type():
    def made():
        one = torch.nn.Sequential()
        one.add_module("to_q", torch.nn.Linear(4, 4, dtype=torch.float32))
        first = lora.attach(one, LoraSpec(2, 2, ("to_q",)), 1)[0].tolist()
        return first, drop(["a"] * 99, 0.3, torch.Generator().manual_seed(1)), timestep_grid(1000, 64).tolist()

    before = made()
    torch.set_default_dtype(torch.float16)
    try:
        assert made() == before
        assert torch.get_default_dtype() == torch.float16  # of whoever set it
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_network_that_drops_out_leaves_the_callers_random_numbers_as_they_were():
    drops, plain = torch.nn.Dropout(0.5), torch.nn.Linear(2, 2)

    def drawn(network, seed):
        torch.manual_seed(7)
        with seeded_dropout(network, torch.Generator().manual_seed(seed)):
            within = network(torch.ones(64)) if network is drops else None
        return within, torch.rand(3)

    (one, after), (again, _), (other, _) = (drawn(drops, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(after, drawn(plain, 1)[1])


def test_scores_whose_pictures_cannot_be_read_now_stay_also_where_memory_lacked(tmp_path):
    """Of a table that names its pictures, as where a disk is not plugged in."""

    class Short(LightService):
        def _guda(self, query, progress):
            a = super()._guda(query, progress)
            lacking = GroupScore(None, None, None, "no_score", NO_MEMORY)
            return replace(a, groups={**a.groups, next(iter(a.groups)): lacking})

    folder = folder_of(tmp_path / "in", 3)
    (tmp_path / "t.csv").write_text("file\n" + "".join(f"in/{p.name}\n" for p in sorted(folder.iterdir())))
    table, out = tmp_path / "t.csv", tmp_path / "out"
    run(table, out, Short)
    before = rows(out)
    assert any(r["reason"] == NO_MEMORY for r in before)
    folder.rename(tmp_path / "away")
    assert run(table, out, Short) == Total(3, kept=3) and rows(out) == before
    (tmp_path / "away").rename(folder)
    assert run(table, out, LightService) == Total(3, scored=3)
