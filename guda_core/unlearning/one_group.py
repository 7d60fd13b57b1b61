"""Unlearn one group: one loop for all models and forget losses (`forget`).

    L = w_f || eps_theta(x_t, t, c) - target ||^2  +  lam || eps_theta(x'_t, t, c') - eps_full(x'_t, t, c') ||^2

The student starts as the full model: with a LoRA on it, or trained as a whole. Every draw comes from the generator of
the step, so that a run that is stopped and resumed makes the same adapter as one that is not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import TrainingError
from guda_core.unlearning import adapters, losses
from guda_core.unlearning.config import Settings
from guda_core.unlearning.forget import FORGET_LOSSES, ForgetLoss, Half, Task, hide
from guda_core.unlearning.loop import Progress, run

EXPLODED = 1.0  # of the change of the answers on retained pictures, as a share of those answers


def student_of(model: BaseModel, config: Settings) -> nn.Module:
    """A copy of the network to be trained: its LoRA alone, or all of it. Whatever is trained is float32."""
    student = copy.deepcopy(model.network).train()
    if config.lora is None:
        return student.float().requires_grad_(True)
    adapters.attach(student, config.lora, config.loop.seed)
    return student


def draw_noised(
    task: Task, pool: Tensor, batch: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A batch of the pictures at the places `pool`: (at, x_0, eps, x_t, t); x_t and t on the device."""
    model = task.model
    at = pool[torch.randint(len(pool), (batch,), generator=rng)]
    x_0 = task.latents[at]
    t = torch.randint(len(model.schedule), (batch,), generator=rng)
    eps = torch.randn(x_0.shape, generator=rng)
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
    at = torch.cat([pool[torch.randint(len(pool), (b,), generator=rng)] for pool in (task.own, task.others)])
    x_0 = task.latents[at]
    t = torch.randint(len(model.schedule), (2 * b,), generator=rng)
    eps = torch.randn(x_0.shape, generator=rng)
    x_t = model.schedule.add_noise(x_0, eps, t).to(model.device)
    forgotten, retained = (
        _half(*(v[part] for v in (at, x_0, eps, x_t, t.to(model.device)))) for part in (slice(b), slice(b, None))
    )
    forgotten.prompts = task.captions(forgotten.at, rng)
    loss.draw(forgotten, rng)
    retained.prompts = task.captions(retained.at, rng)
    for half in (retained, forgotten):
        half.hidden = (torch.rand(b, generator=rng) < config.empty_share).tolist()
        half.seen = hide(half.prompts, half.hidden)
    loss.revise(forgotten, retained, rng)
    return forgotten, retained


@torch.no_grad()
def _targets(task: Task, loss: ForgetLoss, forgotten: Half, retained: Half) -> tuple[Tensor, Tensor]:
    """What the student should answer: of the forgotten half by the loss, of the retained half as the full model."""
    kept = hide(retained.prompts, retained.hidden)
    asked = loss.asked(forgotten)
    if asked is None:
        return loss.target(forgotten, None), task.eps(retained.x_t, retained.t, kept)
    x_t, t = torch.cat([forgotten.x_t, retained.x_t]), torch.cat([forgotten.t, retained.t])
    answer = task.eps(x_t, t, asked + kept)
    b = len(forgotten.at)
    return loss.target(forgotten, answer[:b]), answer[b:]


class _Health:
    """How far the student's answers on retained pictures have moved, smoothed over the steps, as a share of the full
    model's: ||student - full||^2 / ||full||^2. At 1 it answers no better than by 0."""

    def __init__(self) -> None:
        self.moved = math.nan

    def note(self, moved: float) -> None:
        self.moved = moved if math.isnan(self.moved) else 0.8 * self.moved + 0.2 * moved


def _precision(model: BaseModel, config: Settings) -> AbstractContextManager[Any]:
    """Of the student's pass. A network that is trained as a whole is float32, whatever the model runs in."""
    if config.lora is not None or model.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, dtype=model.dtype)


def _scaler(model: BaseModel) -> torch.amp.GradScaler | None:
    """In float16 small gradients would become 0."""
    return torch.amp.GradScaler(model.device.type) if model.dtype == torch.float16 else None


def unlearn(
    task: Task, *, config: Settings, folder: Path, meta: Mapping[str, Any], checkpoint: Path | None = None
) -> Iterator[Progress]:
    """Unlearn one group and write its adapter into `folder`; yields progress. The model itself is not changed.

    meta: what else the adapter's metadata should record. checkpoint: a file from which a run that was stopped goes on;
    it is removed at the end.

    Raises:
        OptionError: there is no such forget loss, or it is not for this kind of model. TrainingError: the loss is not
            finite, or the training went astray: nothing is written then.
    """
    model, loss = task.model, FORGET_LOSSES.find(config.operator)(task, config)
    before = checkpoint.with_suffix(".before.pt") if checkpoint else None
    yield from loss.prepare(before)
    student, health, b = student_of(model, config), _Health(), config.loop.batch

    def loss_of(step: int, rng: torch.Generator) -> Tensor:
        forgotten, retained = _drawn(task, loss, config, rng)
        target, kept = _targets(task, loss, forgotten, retained)
        x_t, t = torch.cat([forgotten.x_t, retained.x_t]), torch.cat([forgotten.t, retained.t])
        with _precision(model, config):
            out = task.eps(x_t, t, forgotten.seen + retained.seen, student)
        preserve = losses.mean_square(out[b:], kept)
        health.note(float(preserve.detach() / kept.square().mean().clamp_min(1e-12)))
        return config.forget_weight * losses.mean_square(out[:b], target) + config.lam * preserve

    last: Progress | None = None
    for last in run(student, loss_of, config.loop, checkpoint, scaler=_scaler(model)):
        yield last
    check(student, task.forget, health.moved, config)
    record = {
        **meta,
        "group": task.forget,
        "base_sha256": model.sha256,
        "config": asdict(config),
        "settings_sha256": config.sha256(),
        **loss.record(),
        "loss": last.loss if last else None,
        "moved": None if math.isnan(health.moved) else health.moved,
    }
    if config.lora is None:
        adapters.save_whole(student, folder, meta=record, dtype=config.WHOLE_TYPE)
    else:
        adapters.save(student, folder, spec=config.lora, meta=record)
    for path in (checkpoint, before):
        if path is not None:
            path.unlink(missing_ok=True)


def check(student: nn.Module, group: str, moved: float, config: Settings) -> None:
    """The gate before an adapter counts.

    moved: ||student - full||^2 / ||full||^2 of the answers on retained pictures.

    Raises:
        TrainingError: a weight is not finite, or the student answers retained pictures no better than by 0.
    """
    broken = [n for n, p in student.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
    if broken:
        why = f"{len(broken)} of its weights are not finite, such as {broken[0]}"
    elif moved >= EXPLODED:
        why = f"its answers on the other groups' pictures have moved by {moved:.2g} times their own size"
    else:
        return
    raise TrainingError(
        f"The adapter '{group}' does not count: {why}. Try a smaller learning rate than {config.loop.lr:g}."
    )
