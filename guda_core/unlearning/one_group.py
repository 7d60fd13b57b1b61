"""Unlearn one group: one loop for all models and forget losses (`forget`).

    L = w_f || eps_theta(x_t, t, c) - target ||^2  +  lam || eps_theta(x'_t, t, c') - eps_full(x'_t, t, c') ||^2

The student starts as the full model: with a LoRA on it, or trained as a whole. With a LoRA, teacher and student are one
network, the LoRA off and on. What is trained is float32; the network keeps its own type, under autocast. Every draw
comes from the generator of the step, so that a run that is stopped and resumed makes the same adapter as one that is
not.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guda_core.data.latents import Latents
from guda_core.held_files import remove_file
from guda_core.unlearning import adapters, losses
from guda_core.unlearning.adapter_files import KEPT
from guda_core.unlearning.config import MemorySettings, Settings
from guda_core.unlearning.forget import FORGET_LOSSES, ForgetLoss, Half, Task, hide
from guda_core.unlearning.kept_prompts import KeptPrompts, network_alone
from guda_core.unlearning.loop import Progress, run, step_generator
from guda_core.unlearning.pieces import Pieces
from guda_core.unlearning.student import Student, check, precision, scaler, seeded_dropout

log = logging.getLogger(__name__)


def _places(task: Task, pool: Tensor, batch: int, rng: torch.Generator) -> Tensor:
    """Places of a batch, drawn from `pool`. Of pictures of several sizes, all have the size of one drawn before: so
    every picture comes up as often as another."""
    if isinstance(task.latents, Latents):
        of = task.latents.sizes[pool]
        pool = pool[of == of[torch.randint(len(pool), (1,), generator=rng)]]
    return pool[torch.randint(len(pool), (batch,), generator=rng)]


def draw_noised(
    task: Task, pool: Tensor, batch: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A batch of the pictures at the places `pool`: (at, x_0, eps, x_t, t); x_t and t on the device."""
    model, at = task.model, _places(task, pool, batch, rng)
    x_0 = task.latents[at]
    t = torch.randint(len(model.schedule), (batch,), generator=rng)
    eps = torch.randn(x_0.shape, generator=rng, dtype=torch.float32)
    return at, x_0, eps, model.schedule.add_noise(x_0, eps, t).to(model.device), t.to(model.device)


def _half(at: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Half:
    blank = [""] * len(at)
    return Half(at, x_0, eps, x_t, t, blank, [False] * len(at), blank)


def _drawn(task: Task, loss: ForgetLoss, config: Settings, rng: torch.Generator) -> tuple[Half, Half]:
    """The forgotten and the retained half of a step."""
    b, model = config.loop.batch, task.model
    if not task.has_prompts:
        forgotten, retained = (_half(*draw_noised(task, pool, b, rng)) for pool in (task.own, task.others))
        loss.draw(forgotten, rng)
        loss.revise(forgotten, retained, rng)
        return forgotten, retained
    at = torch.cat([_places(task, pool, b, rng) for pool in (task.own, task.others)])
    x_0 = [task.latents[part] for part in at.split(b)]
    t = torch.randint(len(model.schedule), (2 * b,), generator=rng)
    if x_0[0].shape == x_0[1].shape:
        eps = torch.randn((2 * b, *x_0[0].shape[1:]), generator=rng, dtype=torch.float32).split(b)
    else:
        eps = tuple(torch.randn(x.shape, generator=rng, dtype=torch.float32) for x in x_0)
    forgotten, retained = (
        _half(a, x, e, model.schedule.add_noise(x, e, s).to(model.device), s.to(model.device))
        for a, x, e, s in zip(at.split(b), x_0, eps, t.split(b), strict=True)
    )
    forgotten.prompts = task.captions(forgotten.at, rng)
    loss.draw(forgotten, rng)
    retained.prompts = task.captions(retained.at, rng)
    for half in (retained, forgotten):
        half.hidden = (torch.rand(b, generator=rng, dtype=torch.float32) < config.empty_share).tolist()
        half.seen = hide(half.prompts, half.hidden)
    loss.revise(forgotten, retained, rng)
    return forgotten, retained


@torch.no_grad()
def _targets(task: Task, loss: ForgetLoss, forgotten: Half, retained: Half) -> tuple[Tensor, Tensor]:
    """What the student should answer, (B, C, h, w) each: on the forgotten half by the loss, on the retained half as the
    full model."""
    kept = hide(retained.prompts, retained.hidden)
    asked = loss.asked(forgotten)
    if asked is None:
        return loss.target(forgotten, None), task.eps(retained.x_t, retained.t, kept)
    if forgotten.x_t.shape != retained.x_t.shape:
        answer = task.eps(forgotten.x_t, forgotten.t, asked)
        return loss.target(forgotten, answer), task.eps(retained.x_t, retained.t, kept)
    x_t, t = torch.cat([forgotten.x_t, retained.x_t]), torch.cat([forgotten.t, retained.t])
    answer = task.eps(x_t, t, asked + kept)
    b = len(forgotten.at)
    return loss.target(forgotten, answer[:b]), answer[b:]


@dataclass(frozen=True)
class Pass:
    """Pictures of a step that one pass of the network takes, the forgotten ones first. x_t, t, seen: as of a `Half`.
    target: what the student should answer. forgotten: how many."""

    x_t: Tensor
    t: Tensor
    seen: list[str]
    target: Tensor
    forgotten: int


def _passes(task: Task, halves: tuple[Half, Half], targets: tuple[Tensor, Tensor]) -> Iterator[Pass]:
    """The passes of a step: both halves together, where their pictures have one size."""
    first, second = halves
    b = len(first.at)
    if first.x_t.shape == second.x_t.shape:
        x_t, t, target = torch.cat([first.x_t, second.x_t]), torch.cat([first.t, second.t]), torch.cat(targets)
        seen = first.seen + second.seen
        for p in task.pieces.of(2 * b):
            yield Pass(x_t[p], t[p], seen[p], target[p], max(0, min(b, p.stop) - p.start))
        return
    for half, target in zip(halves, targets, strict=True):
        for p in task.pieces.of(b):
            yield Pass(half.x_t[p], half.t[p], half.seen[p], target[p], (p.stop - p.start) * (half is first))


class _Health:
    """How far the student's answers on retained pictures have moved, smoothed over the steps, as a share of the full
    model's: ||student - full||^2 / ||full||^2. At 1 it answers no better than by 0."""

    def __init__(self) -> None:
        self.moved = self.before = math.nan
        self.step = -1

    def note(self, step: int, moved: float) -> None:
        """A step that is taken again counts once."""
        if step != self.step:
            self.step, self.before = step, self.moved
        self.moved = moved if math.isnan(self.before) else 0.8 * self.before + 0.2 * moved


class Training:
    """One group's steps: their losses piece by piece, and what a checkpoint keeps of it beside the weights."""

    def __init__(self, task: Task, loss: ForgetLoss, config: Settings, student: Student) -> None:
        self.task, self.loss, self.config, self.student, self.health = task, loss, config, student, _Health()

    def state_dict(self) -> dict[str, Any]:
        return {"pieces": self.task.pieces.state_dict(), "moved": self.health.moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.pieces.load_state_dict(state["pieces"])
        self.health.moved = state["moved"]

    def pieces(self, step: int, rng: torch.Generator) -> Iterator[Tensor]:
        """The loss of a step in pieces of so many pictures as fit; each is to be differentiated before the next."""
        task, config, b = self.task, self.config, self.config.loop.batch
        self.student.switch(False)
        forgotten, retained = _drawn(task, self.loss, config, rng)
        with precision(task.model):
            targets = _targets(task, self.loss, forgotten, retained)
        off = targets[1].square().mean().clamp_min(1e-12)
        moved = 0.0
        with seeded_dropout(self.student.network, rng):
            for part in _passes(task, (forgotten, retained), targets):
                with self.student.answers():
                    with precision(task.model):
                        out = task.eps(part.x_t, part.t, part.seen, self.student.network)
                    first, total, preserve = part.forgotten, None, None
                    if first:
                        of_them = losses.mean_square(out[:first], part.target[:first])
                        total = config.forget_weight * of_them * (first / b)
                    if first < len(out):
                        preserve = losses.mean_square(out[first:], part.target[first:]) * ((len(out) - first) / b)
                        moved += float(preserve.detach() / off)
                        total = config.lam * preserve if total is None else total + config.lam * preserve
                    assert total is not None
                    yield total
                del out, total, preserve
        self.health.note(step, moved)


def _prompts(task: Task, loss: ForgetLoss, config: Settings) -> set[str]:
    """Every prompt that the steps will meet: their draws once more, without a network."""
    found = {""}
    for step in range(config.loop.steps):
        forgotten, retained = _drawn(task, loss, config, step_generator(config.loop.seed, step))
        asked = loss.asked(forgotten) or []
        found.update(forgotten.prompts, forgotten.seen, retained.prompts, retained.seen, asked)
    return found


@contextmanager
def room(task: Task, loss: ForgetLoss, config: Settings, memory: MemorySettings) -> Iterator[None]:
    """Within the block only the network is on the device, if that is wanted and all prompts can be kept."""
    if not memory.unload or not task.has_prompts or task.prompts is None:
        with task.model.unloaded() if memory.unload and not task.has_prompts else nullcontext():
            yield
        return
    with network_alone(task.model, task.prompts, lambda: _prompts(task, loss, config)):
        yield


def unlearn(
    task: Task,
    *,
    config: Settings,
    folder: Path,
    meta: Mapping[str, Any],
    checkpoint: Path | None = None,
    memory: MemorySettings | None = None,
) -> Iterator[Progress]:
    """Unlearn one group and write its adapter into `folder`; yields progress. The model is not changed: between two
    steps it answers as before, and at the end it is what it was.

    meta: what else the adapter's metadata should record. checkpoint: a file from which a run that was stopped goes on;
    it is removed at the end.

    Raises:
        OptionError: there is no such forget loss, or it is not for this kind of model. TrainingError: the loss is not
            finite, the training went astray, or memory or the disk is full: nothing is written then.
    """
    memory = memory or MemorySettings()
    task = dataclasses.replace(task, pieces=Pieces(memory.pictures))
    if memory.unload and task.prompts is None:
        task = dataclasses.replace(task, prompts=KeptPrompts(task.model))
    model, loss = task.model, FORGET_LOSSES.find(config.operator)(task, config)
    before = checkpoint.with_suffix(".before.pt") if checkpoint else None
    yield from loss.prepare(before)  # what it trains before the first step, such as a copy of the model
    student, last = Student(model, config, memory), None
    training = Training(task, loss, config, student)
    with room(task, loss, config, memory), student.ready():
        for last in run(
            student.network, training.pieces, config.loop, checkpoint,
            scaler=scaler(model), beside=training, shrink=task.pieces.halve,
        ):  # fmt: skip
            yield dataclasses.replace(last, rate=2 * last.rate)  # a step sees a batch of the group, and one of others
        student.switch(True)
        moved, size = training.health.moved, student.size()
        check(student.network, task.forget, moved, config, size=size)
        used = dataclasses.replace(memory, pictures=task.pieces.size)
        record = {
            **meta,
            "group": task.forget,
            "base_sha256": model.sha256,
            "config": asdict(config),
            "settings_sha256": config.sha256(),
            "memory": asdict(used),
            "dtype": str(model.dtype).removeprefix("torch."),
            **loss.record(),
            "loss": last.loss if last else None,
            "moved": None if math.isnan(moved) else moved,
            "size": size,
        }
        if config.lora is None:
            record[KEPT] = student.kept(config.WHOLE_TYPE)
            adapters.save_whole(student.network, folder, meta=record, dtype=config.WHOLE_TYPE)
        else:
            adapters.save(student.network, folder, spec=config.lora, meta=record)
    for path in (checkpoint, before):
        if path is None:
            continue
        try:
            remove_file(path)
        except OSError as e:  # the adapter is finished all the same
            log.warning("%s is no longer needed, and cannot be deleted: %s", path, e)
