"""Unlearning in little memory, and safely: one network, pieces, checkpointing, what is kept, kills, full disks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guda_core.cli.unlearn_command import _plan_table
from guda_core.data import kept_latents, shards
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import load_model
from guda_core.errors import AdapterError, CacheError, ModelError, NoMemoryError, TrainingError
from guda_core.jobs.local_pool import Share
from guda_core.unlearning import adapters, checkpoints, health, kept_prompts, lora, run
from guda_core.unlearning.config import MemorySettings
from guda_core.unlearning.defaults import memory_settings, starting_settings
from guda_core.unlearning.forget import FORGET_LOSSES, config_of
from guda_core.unlearning.kept_prompts import KeptPrompts
from guda_core.unlearning.loop import LoopConfig
from guda_core.unlearning.loop import run as run_loop
from guda_core.unlearning.one_group import Training, _Health, unlearn
from guda_core.unlearning.pieces import Pieces
from guda_core.unlearning.plan import group_cost
from guda_core.unlearning.student import Student, check
from tests.test_unlearn import make_group_set, planted, task_of
from tests.tiny import save_tiny
from tests.tiny_families import save_family

CONFIG = config_of(steps=6, batch=4, lr=1e-2, warmup=1, seed=0, rank=2)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), tokens=6, pooled=True, small=True)


@pytest.fixture
def world(card):
    pictures, z = planted(6)
    return SimpleNamespace(model=load_model(card), group_set=make_group_set(), pictures=pictures, z=z)


def done(task, folder, config=CONFIG, **more):
    """Unlearn to the end; the folder's files."""
    for _ in unlearn(task, config=config, folder=folder, meta={}, **more):
        pass
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def factors(folder, model):
    return {n: b @ a for n, (b, a, _) in adapters.load(folder, model=model, group="a").factors.items()}


# One network, in pieces ----------------------------------------------------------------------------------------------


def test_teacher_and_student_are_one_network_and_the_model_is_what_it_was(world, tmp_path):
    model = world.model
    before = {n: p.clone() for n, p in model.network.state_dict().items()}
    kinds = [type(m) for m in model.network.modules()]
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 900])

    def answer():
        with torch.no_grad():
            return model.predict_eps(x, t, model.embed(["aa1", ""]))

    first, seen = answer(), []
    for p in unlearn(task_of(world), config=CONFIG, folder=tmp_path, meta={}):
        seen.append(torch.equal(answer(), first))
        if p.step == 3:
            trained = [n for n, _ in model.network.named_parameters() if "lora_" in n]
            assert trained  # it is on the model's own network, and there is no other
    assert all(seen) and len(seen) == 6
    assert [type(m) for m in model.network.modules()] == kinds and not model.network.training
    assert all(torch.equal(p, before[n]) for n, p in model.network.state_dict().items())
    assert not any(p.requires_grad for p in model.network.parameters())
    stopped = unlearn(task_of(world), config=CONFIG, folder=tmp_path, meta={})
    next(stopped)
    stopped.close()
    assert [type(m) for m in model.network.modules()] == kinds and torch.equal(answer(), first)


def gradients(world, pictures, *, whole=False, checkpointing=False, operator="guda_c"):
    """Of one step, by name."""
    config = dataclasses.replace(config_of(operator, batch=4, rank=2, whole=whole or None, seed=0), lam=0.7)
    memory = MemorySettings(pictures, checkpointing)
    task = dataclasses.replace(task_of(world), pieces=Pieces(pictures))
    loss = FORGET_LOSSES.find(operator)(task, config)
    student = Student(world.model, config, memory)
    training = Training(task, loss, config, student)
    with student.ready():
        student.switch(True)
        params = {n: p for n, p in student.network.named_parameters() if p.requires_grad}
        with torch.no_grad():  # so that no factor's gradient is 0
            for n, p in params.items():
                if "lora_B" in n:
                    p.normal_(generator=torch.Generator().manual_seed(len(n))).mul_(0.05)
        count = 0
        for piece in training.pieces(0, torch.Generator().manual_seed(5)):
            piece.backward()
            count += 1
        return {n: p.grad.clone() for n, p in params.items()}, count, training.health.moved


@pytest.mark.parametrize("operator", ["guda_c", "esd"])
@pytest.mark.parametrize("pictures", [1, 3, 5])
def test_pieces_have_the_gradients_of_the_whole(world, pictures, operator):
    whole, one, moved = gradients(world, None, operator=operator)
    parts, many, also = gradients(world, pictures, operator=operator)
    assert (one, many) == (1, -(-8 // pictures)) and also == pytest.approx(moved, rel=1e-4) and moved > 0
    largest = max(float(g.abs().max()) for g in whole.values())
    assert largest > 0
    assert all(torch.allclose(parts[n], g, rtol=1e-3, atol=1e-5 * largest) for n, g in whole.items())


@pytest.mark.parametrize("whole", [False, True], ids=["lora", "whole"])
def test_checkpointing_changes_no_gradient(world, whole):
    plain, _, _ = gradients(world, None, whole=whole)
    again, _, _ = gradients(world, None, whole=whole, checkpointing=True)
    assert all(torch.allclose(again[n], g, rtol=1e-5, atol=1e-8) for n, g in plain.items())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in world.model.network.modules())


@pytest.mark.parametrize("family", ["xl", "sd3", "flux"])
def test_every_family_can_be_checkpointed_in_half_precision(tmp_path, family):
    model = load_model(save_family(tmp_path / "m", family), dtype=torch.bfloat16)
    pictures, _ = planted(2)
    z = torch.randn(len(pictures), *model.latent_shape, generator=torch.Generator().manual_seed(0))
    world = SimpleNamespace(model=model, group_set=make_group_set(), pictures=pictures, z=z)
    config = config_of(steps=2, batch=2, rank=2, lr=1e-3, targets=model.lora_targets)
    done(task_of(world), tmp_path / "a", config, memory=MemorySettings(3, True, True))
    assert max(float(d.abs().max()) for d in factors(tmp_path / "a", model).values()) > 0


def test_when_memory_runs_out_passes_become_smaller_and_the_adapter_is_the_same(world, tmp_path, monkeypatch):
    plain = done(task_of(world), tmp_path / "plain")
    predict, sizes = type(world.model).predict, []

    def short(self, x_t, t, condition, network=None):
        sizes.append(len(t))
        if len(t) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return predict(self, x_t, t, condition, network)

    monkeypatch.setattr(type(world.model), "predict", short)
    done(task_of(world), tmp_path / "short")
    assert max(sizes) == 8 and sizes.count(8) == 1 and sizes.count(4) == 1 and set(sizes[2:]) <= {1, 2}
    recorded = adapters.read_meta(tmp_path / "short")["memory"]
    assert recorded == {"pictures": 2, "checkpointing": False, "unload": False}
    one, two = factors(tmp_path / "plain", world.model), factors(tmp_path / "short", world.model)
    largest = max(float(d.abs().max()) for d in one.values())
    assert all(float((two[n] - d).abs().max()) < 0.02 * largest for n, d in one.items())
    assert plain.keys() == {"guda.json", "adapter_model.safetensors", "adapter_config.json"}

    def never(self, x_t, t, condition, network=None):
        raise RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes\nmore")

    monkeypatch.setattr(type(world.model), "predict", never)
    with pytest.raises(TrainingError, match=r"not enough memory, even for one picture at a time .* Close other"):
        done(task_of(world), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_half_precision_trains_as_full_does(world, card, tmp_path):
    """With factors in float16 the largest was 6,000 times too large."""
    found = {}
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        task = dataclasses.replace(task_of(world), model=load_model(card, dtype=kind))
        config = config_of(steps=6, batch=4, lr=1e-3, warmup=2, seed=0)
        *_, last = unlearn(task, config=config, folder=tmp_path / str(kind), meta={})
        pairs = adapters.load(tmp_path / str(kind), model=task.model, group="a").factors.values()
        found[kind] = (max(float(b.abs().max()) for b, _, _ in pairs), last.loss)
    for dtype in (torch.float16, torch.bfloat16):
        assert found[dtype] == pytest.approx(found[torch.float32], rel=0.05) and found[dtype][0] > 1e-3


def test_a_step_whose_gradients_overflow_is_taken_again(world, card, tmp_path, monkeypatch):
    """At a scale of 65,536 and a loss a thousand times as large, float16's gradients overflow in the beginning."""
    task = dataclasses.replace(task_of(world), model=load_model(card, dtype=torch.float16))
    large = dataclasses.replace(config_of(steps=4, batch=4, lr=1e-3, warmup=1, seed=0), forget_weight=1e4, lam=1e4)
    full, scales = task_of(world), []
    update = torch.amp.GradScaler.update
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda self, new=None: scales.append(new) or update(self, new))
    done(task, tmp_path / "half", large)
    assert scales[0] == 32768.0 and scales.count(None) == 4
    done(full, tmp_path / "full", large)
    one, two = ({n: b for n, (b, _, _) in adapters.load(tmp_path / k, model=m.model, group="a").factors.items()}
                for k, m in (("half", task), ("full", full)))  # fmt: skip
    most = [max(float(b.abs().max()) for b in of.values()) for of in (one, two)]
    assert most[0] == pytest.approx(most[1], rel=0.05)


def test_a_step_that_is_taken_again_counts_once_in_how_far_answers_have_moved():
    health = _Health()
    for step, moved in ((0, 1.0), (1, 9.0), (1, 2.0)):
        health.note(step, moved)
    assert health.moved == pytest.approx(0.8 * 1.0 + 0.2 * 2.0)


# Killed, and a full disk ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process ended here: nothing that follows is done."""


def test_killed_at_ten_random_moments_it_ends_with_the_same_files(world, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, checkpoint_s=0.0))
    moments = {"count": 0, "at": None}

    def counted(function):
        def call(*given, **named):
            moments["count"] += 1
            if moments["count"] == moments["at"]:
                raise Killed
            return function(*given, **named)

        return call

    model = type(world.model)
    for owner, name in (
        (model, "predict"), (torch, "save"), (os, "replace"), (torch.optim.AdamW, "step"), (lora, "switch"),
        (adapters.adapter_files, "save_file"), (adapters.adapter_files, "hash_file"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    whole = done(task_of(world), tmp_path / "whole", config, checkpoint=tmp_path / "w.pt")
    total, kept, kills = moments["count"], tmp_path / "kept" / "a.pt", 0
    rng = random.Random(7)
    while kills < 10:
        moments.update(count=0, at=rng.randrange(1, max(3, total // 4)))
        try:
            done(task_of(world), tmp_path / "killed", config, checkpoint=kept)
        except Killed:
            kills += 1
            assert not (tmp_path / "killed" / "guda.json").exists()
        else:  # it was fast enough: from the beginning
            assert {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir()} == whole
            (tmp_path / "killed" / "guda.json").unlink()
    moments["at"] = None
    assert done(task_of(world), tmp_path / "killed", config, checkpoint=kept) == whole
    assert not list(kept.parent.iterdir())


@contextmanager
def small_disk(size):
    """No file may become larger than that, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_checkpointing_is_one_sentence_and_nothing_half_written_counts(world, tmp_path):
    kept = tmp_path / "kept" / "a.pt"
    config = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, checkpoint_s=0.0))
    steps = unlearn(task_of(world), config=config, folder=tmp_path / "a", meta={}, checkpoint=kept)
    for _ in range(3):
        next(steps)
    before = kept.read_bytes()
    with small_disk(4096), pytest.raises(TrainingError, match=r"a\.pt cannot be written \(.*\)\. Free some disk space"):
        next(steps)
    assert kept.read_bytes() == before and [p.name for p in kept.parent.iterdir()] == ["a.pt"]
    assert done(task_of(world), tmp_path / "a", config, checkpoint=kept) == done(task_of(world), tmp_path / "b", config)


def test_a_disk_that_is_full_after_the_last_step_does_not_undo_the_training(caplog):
    net, config = torch.nn.Linear(2, 1), LoopConfig(steps=3, batch=1, lr=0.1, checkpoint_s=0.0)
    seldom, kept = dataclasses.replace(config, checkpoint_s=60.0), Path("/dev/null/a.pt")
    steps = run_loop(net, lambda step, rng: net(torch.ones(1, 2)).sum(), config, kept)
    with pytest.raises(TrainingError, match="cannot be written"):
        next(steps)
    steps = run_loop(net, lambda step, rng: net(torch.ones(1, 2)).sum(), seldom, kept)
    assert [p.step for p in steps] == [1, 2, 3]
    assert "last checkpoint could not be written" in caplog.text and "done without it" in caplog.text


def test_a_full_disk_while_the_adapter_is_written_leaves_the_one_before(world, tmp_path):
    first = done(task_of(world), tmp_path / "a")
    other = dataclasses.replace(CONFIG, lam=2.0)
    with small_disk(4096), pytest.raises(AdapterError, match=r"cannot be written .* what was there before is still"):
        done(task_of(world), tmp_path / "a", other)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == first


def test_a_checkpoint_that_cannot_be_removed_does_not_undo_the_training(world, tmp_path, monkeypatch, caplog):
    config, kept, real = (
        dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, checkpoint_s=0.0)),
        [],
        os.unlink,
    )

    def held(path, **named):
        kept.append(path)
        if path == tmp_path / "a.pt":
            raise PermissionError(13, "Access is denied")
        real(path, **named)

    monkeypatch.setattr(os, "unlink", held)
    done(task_of(world), tmp_path / "a", config, checkpoint=tmp_path / "a.pt")
    assert tmp_path / "a.pt" in kept and "cannot be deleted" in caplog.text and (tmp_path / "a" / "guda.json").is_file()


def test_a_damaged_checkpoint_is_said(world, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match=r"a\.pt is damaged .* Delete it to start again"):
        done(task_of(world), tmp_path / "a", checkpoint=tmp_path / "a.pt")
    assert checkpoints.read(tmp_path / "none.pt", {}) is None


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (OSError(errno.EIO, "Input/output error"), TrainingError, r"cannot be read \(Input/output error\).*goes on"),
        (PermissionError(errno.EACCES, "Permission denied"), TrainingError, r"\(Permission denied\).*may be read"),
        (MemoryError(), NoMemoryError, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), NoMemoryError, "not enough memory"),
    ],
)
def test_a_checkpoint_that_may_be_sound_is_not_called_damaged(tmp_path, monkeypatch, fault, error, says):
    checkpoints.write(path := tmp_path / "a.pt", {"config": {}})

    def failing(*a, **more):
        raise fault

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(error, match=says) as told:
        checkpoints.read(path, {})
    assert "damaged" not in str(told.value) and "Delete" not in str(told.value)
    monkeypatch.undo()
    assert checkpoints.read(path, {}) == {"config": {}}


@pytest.mark.parametrize(
    ("moved", "size", "why"),
    [(1.5, 0.1, "its answers on the other groups' pictures have moved by 1.5 times"),
     (0.1, 1.5, "it changes the weights by 1.5 times"), (0.1, float("nan"), "it changes the weights by nan times")],
)  # fmt: skip
def test_the_gate(moved, size, why):
    net = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=why):
        check(net, "a", moved, CONFIG, size=size)
    check(net, "a", 0.1, CONFIG, size=0.1)
    net.weight.data[0, 0] = 1e5
    with pytest.raises(TrainingError, match="1 of its weights are beyond what float16 can hold, such as weight"):
        check(net, "a", 0.1, CONFIG, size=0.1)


# Kept on disk --------------------------------------------------------------------------------------------------------


def test_pictures_are_encoded_once(tmp_path, monkeypatch, card):
    model = load_model(card)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(kept_latents, "A_SHARD", 2)
    calls, real = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, p: calls.append(1) or real(self, p))

    def latents():
        *_, (fraction, z) = kept_latents.encode(model, pixels, tmp_path / "latents")
        assert fraction == 1
        return z

    first = latents()
    files = sorted((tmp_path / "latents").iterdir())
    assert len(calls) == 5 and len(files) == 3 and torch.equal(first[2:3], real(model, pixels[2]))
    assert torch.equal(latents(), first) and len(calls) == 5
    files[0].write_bytes(b"torn")
    assert torch.equal(latents(), first) and 6 <= len(calls) <= 7
    assert kept_latents.to_encode(model, pixels, tmp_path / "latents") == 0
    model.sha256 = "another"
    assert kept_latents.to_encode(model, pixels, tmp_path / "latents") == 5
    with small_disk(64), pytest.raises(CacheError, match=r"latents cannot be written .* Free some disk space"):
        latents()
    assert not list((tmp_path / "latents").glob(".part-*"))
    assert kept_latents.to_encode(model, pixels, tmp_path / "latents") == 5


def test_prompts_are_embedded_before_and_the_encoders_leave(world, tmp_path, monkeypatch):
    plain = done(task_of(world), tmp_path / "plain")
    moves, embedded, real = [], [], type(world.model).embed
    monkeypatch.setattr(type(world.model), "_move_others", lambda self, device: moves.append(str(device)))

    def embed(self, prompts):
        embedded.append((len(prompts), list(moves)))
        return real(self, prompts)

    monkeypatch.setattr(type(world.model), "embed", embed)
    kept = KeptPrompts(world.model, tmp_path / "latents")
    task = dataclasses.replace(task_of(world), prompts=kept)
    done(task, tmp_path / "kept", memory=MemorySettings(unload=True))
    assert moves == ["cpu", "cpu"] and all(n == 1 and m == [] for n, m in embedded)
    one, two = factors(tmp_path / "plain", world.model), factors(tmp_path / "kept", world.model)
    largest = max(float(d.abs().max()) for d in one.values())
    assert all(float((two[n] - d).abs().max()) < 0.02 * largest for n, d in one.items()) and plain
    embedded.clear()
    again = dataclasses.replace(task_of(world), prompts=KeptPrompts(world.model, tmp_path / "latents"))
    done(again, tmp_path / "again", memory=MemorySettings(unload=True))
    assert not embedded
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "kept" / "adapter_model.safetensors"
    ).read_bytes()
    moves.clear()
    monkeypatch.setattr(kept_prompts, "MOST_BYTES", 10)  # on disk they need no memory
    more = dataclasses.replace(task_of(world), prompts=KeptPrompts(world.model, tmp_path / "latents"))
    done(more, tmp_path / "more", memory=MemorySettings(unload=True))
    assert moves == ["cpu", "cpu"] and not KeptPrompts(world.model).fits(["a"])
    with small_disk(64), pytest.raises(CacheError, match="Free some disk space"):
        KeptPrompts(world.model, tmp_path / "other").prepare(["aa1"])


def test_each_file_of_prompts_is_read_once(world, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_prompts, "A_SHARD", 2)
    opened, real = [], shards.safe_open
    monkeypatch.setattr(shards, "safe_open", lambda path, **how: opened.append(path) or real(path, **how))
    KeptPrompts(world.model, tmp_path / "latents").prepare([f"a cat {n}" for n in range(8)])
    assert len(opened) == len(set(opened)) == 4


# Defaults and the plan -----------------------------------------------------------------------------------------------


def test_defaults_fit_the_model_and_its_card(card):
    assert starting_settings(card) == {}
    large = dataclasses.replace(card, resolution=512)
    assert starting_settings(large) == {"steps": 200, "batch": 4, "lr": 3e-4, "rank": 8}
    own = dataclasses.replace(large, unlearning={"steps": 7, "pictures": 2, "checkpointing": False})
    assert starting_settings(own)["steps"] == 7 and "pictures" not in starting_settings(own)
    like = SimpleNamespace(card=own, device="cpu")
    assert memory_settings(like) == MemorySettings(2, False, False)
    assert memory_settings(like, pictures=1, checkpointing=True) == MemorySettings(1, True, False)
    cuda = SimpleNamespace(card=large, device="cuda")
    assert memory_settings(cuda) == MemorySettings(None, True, True)
    assert memory_settings(SimpleNamespace(card=card, device="cuda")) == MemorySettings(None, False, False)
    with pytest.raises(ModelError, match=r"has under unlearning: stepz\. Known: batch"):
        starting_settings(dataclasses.replace(card, unlearning={"stepz": 1}))
    assert Card("i", "n", "hub", "p", 64).unlearning == {}


@pytest.mark.parametrize("operator", ["guda_c", "esd"])
def test_the_count_of_passes_is_what_is_made(world, tmp_path, monkeypatch, operator):
    config = dataclasses.replace(CONFIG, operator=operator)
    predict, made = type(world.model).predict, {False: 0, True: 0}

    def counted(self, x_t, t, condition, network=None):
        made[torch.is_grad_enabled()] += len(t)
        return predict(self, x_t, t, condition, network)

    monkeypatch.setattr(type(world.model), "predict", counted)
    task = task_of(world)
    done(task, tmp_path, config)
    cost = group_cost(FORGET_LOSSES.find(operator)(task, config), config)
    assert made == {False: cost.forward, True: cost.gradients} and cost.gradients == 6 * 8


GROUPS = load_group_set("emoji")


@pytest.fixture
def job(tmp_path, monkeypatch, card):
    rng, n = np.random.default_rng(0), 2 * len(GROUPS.groups)
    pixels = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    pictures = Pictures(pixels, tuple(g for g in GROUPS.groups for _ in "ab"), GROUPS.train_objects[:2] * (n // 2))
    monkeypatch.setattr(run, "chosen_card", lambda name: card)
    for module in (run, health):
        monkeypatch.setattr(module, "load_pictures", lambda gs, split, seen: pictures)
    return run.Forgetting(GROUPS, folder=tmp_path / "adapters")


def flushes() -> bool:
    """Whether tiny numbers become 0."""
    return bool(torch.tensor(1e-40) * 1.0 == 0)


@pytest.mark.parametrize("before", [False, True])
def test_unlearning_leaves_tiny_numbers_to_the_caller(job, monkeypatch, before):
    predict, within = type(job.model).predict, set[bool]()

    def seen(self, x_t, t, condition, network=None):
        within.add(flushes())
        return predict(self, x_t, t, condition, network)

    monkeypatch.setattr(type(job.model), "predict", seen)
    torch.set_flush_denormal(before)
    steps = job.unlearn("noto", dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, steps=2)))
    assert [flushes() for _ in steps] == [before] * 2 and within == {True} and flushes() == before
    stopped = job.unlearn("noto", CONFIG)
    next(stopped)
    stopped.close()
    assert flushes() == before


def test_a_plan_makes_a_step_counts_all_and_leaves_nothing(job, tmp_path):
    config = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, steps=50))
    measured = health.Health(job, health.HealthConfig(pictures=2, held_out=8, strata=4))
    before = {n: p.clone() for n, p in job.model.network.state_dict().items()}
    plan = job.plan(["noto", "openmoji"], config, measured.passes(["noto", "openmoji"]))
    noto = plan.groups["noto"]
    assert (noto.cost.forward, noto.cost.gradients) == (50 * 8, 50 * 8)
    assert noto.passes == 800 + noto.health and noto.health > plan.groups["openmoji"].health > 0
    assert plan.step.seconds > 0 and plan.step.pictures == 8 and plan.seconds > 100 * plan.step.seconds
    assert plan.to_json()["passes"] == plan.passes == sum(g.passes for g in plan.groups.values())
    assert all(torch.equal(p, before[n]) for n, p in job.model.network.state_dict().items())
    assert not (tmp_path / "adapters").exists() and not job.kept.exists()
    assert plan.pixel_bytes == 0
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=job.pictures().pixels.shape)
    pixels[:] = job.pictures().pixels
    job._pictures = dataclasses.replace(job.pictures(), pixels=pixels)
    filed = job.plan(["noto"], dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=1)), {"noto": 0})
    kept = filed.kept_bytes + filed.groups["noto"].disk_bytes
    assert filed.pixel_bytes == pixels.nbytes and filed.disk_bytes == kept + pixels.nbytes
    assert dataclasses.replace(filed, share={"at_once": 3}).disk_bytes == kept + 3 * pixels.nbytes
    assert "pixels, in a temporary file" in [*_plan_table(filed).columns[0].cells]
    short = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=2))
    for _ in job.unlearn("noto", short):
        pass
    weights = tmp_path / "adapters" / "noto" / "adapter_model.safetensors"
    assert 0.5 < noto.disk_bytes / weights.stat().st_size <= 1 and list(job.kept.glob("pictures-*.safetensors"))
    made, predict = [], type(job.model).predict

    def counted(self, x_t, t, condition, network=None):
        made.append(len(t))
        return predict(self, x_t, t, condition, network)

    try:
        type(job.model).predict = counted
        for _ in measured.measure("noto"):
            pass
    finally:
        type(job.model).predict = predict
    assert sum(made) == noto.health


def test_the_plan_on_the_command_line(job, tmp_path, monkeypatch, capsys):
    from guda_core.cli import unlearn_command

    measured = health.Health(job, health.HealthConfig(pictures=2, held_out=8, strata=4))
    unlearn_command._plan(job, measured, ["noto"], CONFIG, tmp_path / "plan.json")
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "plan.json").read_text())
    assert "in all" in said and "8 pictures a pass, without checkpointing" in said
    assert record["groups"]["noto"]["cost"]["gradients"] == 48 and record["step"]["seconds"] > 0
    unlearn_command._make(job, ["noto"], CONFIG)
    assert job.fits("noto", CONFIG) and job.pending(["noto"], config=CONFIG) == []
    before = record
    for share in (None, Share(2, 2, 1, 1.5, False)):
        unlearn_command._plan(job, measured, [], CONFIG, tmp_path / "plan.json", share)
        record = json.loads((tmp_path / "plan.json").read_text())
        assert set(record) - set(before) == ({"share", "whole_s"} if share else set()) and set(before) <= set(record)
        assert record["settings"] == before["settings"] and set(record["step"].values()) == {0}
        assert (record["groups"], record["passes"], record["seconds"], record["disk_bytes"]) == ({}, 0, 0, 0)
        said = capsys.readouterr().out
        assert "Nothing to do" in said and "One step" not in said and "--workers" not in said
    assert measured.unmeasured(["noto"]) == ["noto"]
    for pending in ([], ["openmoji"]):
        unlearn_command._plan(job, measured, pending, CONFIG, tmp_path / "plan.json", None, ["noto"])
        group, said = json.loads((tmp_path / "plan.json").read_text())["groups"]["noto"], capsys.readouterr().out
        assert (group["cost"]["gradients"], group["disk_bytes"]) == (0, 0) and group["passes"] == group["health"] > 0
        assert group["seconds"] > 0 and "Only the health is still to be measured of: noto." in said
        assert ("One step" in said) == bool(pending) and "Nothing to do" not in said
    opened = SimpleNamespace(forgetting=job, config=CONFIG, health=measured)
    monkeypatch.setattr(unlearn_command, "_opened", lambda asked: opened)
    unlearn_command._only_plan(SimpleNamespace(groups=("noto",), again=False), None, None)
    assert "still to be measured of: noto." in capsys.readouterr().out
