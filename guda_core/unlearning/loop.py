"""One optimisation loop for every training of the project: AdamW, warm-up, cosine decay to zero, optional EMA.

Randomness is a function of (seed, step) alone, so a run that is stopped and resumed takes the same steps as one that is
not. Checkpoints live in the cache and hold tensors only; they are written aside and renamed, so a kill never tears one.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from guda_core.errors import TrainingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one training.

    steps: optimiser steps. batch: pictures a step. lr: peak learning rate. warmup: steps of linear rise.
    ema: decay of the averaged weights (0 = none; the decay rises as (1+s)/(10+s) in the beginning).
    weight_decay: AdamW's. clip_norm: largest gradient norm. seed: of every draw. checkpoint_s: seconds between saves.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    ema: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_s: float = field(default=120.0, compare=False)  # changes nothing of what comes out


@dataclass(frozen=True)
class Progress:
    """step of steps done, the smoothed loss, pictures per second, and a word on what goes on."""

    step: int
    steps: int
    loss: float
    rate: float
    note: str = ""


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step (0-based): linear warm-up, then half a cosine down to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; a function of seed and step alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


class Ema:
    """Exponential moving average of a module's trainable parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        for n, p in module.named_parameters():
            if p.requires_grad:
                self.shadow[n].lerp_(p.detach(), 1 - d)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for n, p in module.named_parameters():
            if p.requires_grad:
                p.copy_(self.shadow[n])


def _save(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    os.replace(aside, path)


def _resume(
    path: Path, config: LoopConfig, module: nn.Module, opt: torch.optim.Optimizer, ema: Ema | None, scaler: Any
) -> tuple[int, float]:
    """The steps done, and the smoothed loss."""
    if not path.is_file():
        return 0, math.nan
    state = torch.load(path, weights_only=True, map_location="cpu")
    ours = {k: v for k, v in asdict(config).items() if k != "checkpoint_s"}
    theirs = {k: v for k, v in state["config"].items() if k != "checkpoint_s"}
    if ours != theirs:
        changed = sorted(k for k in ours if ours[k] != theirs.get(k))
        raise TrainingError(
            f"{path} was made with other settings ({', '.join(changed)}). Delete it to start again, or use the same."
        )
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.requires_grad:
                p.copy_(state["module"][name])
    opt.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.shadow = {n: v.to(ema.shadow[n].device) for n, v in state["ema"].items()}
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return int(state["step"]), float(state.get("smooth", math.nan))


def _state(
    step: int,
    smooth: float,
    config: LoopConfig,
    module: nn.Module,
    opt: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: Any,
) -> dict:
    return {
        "config": asdict(config),
        "step": step,
        "smooth": smooth,
        "module": {n: p.detach() for n, p in module.named_parameters() if p.requires_grad},
        "optimizer": opt.state_dict(),
        "ema": ema.shadow if ema else {},
        "scaler": scaler.state_dict() if scaler is not None else {},
    }


def _take_step(
    loss: Tensor,
    params: list[nn.Parameter],
    clip_norm: float,
    opt: torch.optim.Optimizer,
    accelerator: Accelerator | None,
    scaler: torch.amp.GradScaler | None,
) -> None:
    opt.zero_grad(set_to_none=True)
    if accelerator is not None:
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(params, clip_norm)
        opt.step()
        return
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is not None:
        scaler.unscale_(opt)
    nn.utils.clip_grad_norm_(params, clip_norm)
    if scaler is None:
        opt.step()
    else:
        scaler.step(opt)  # skips a step whose gradients are not finite, and scales by less from then on
        scaler.update()


def run(
    module: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    config: LoopConfig,
    checkpoint: Path | None = None,
    *,
    accelerator: Accelerator | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Generator[Progress, None, None]:
    """Train `module` in place; yields progress after every step. On normal end the EMA weights (if any) are in it.

    Closing the generator saves a checkpoint of the step just made.

    loss_of(step, generator) gives the scalar loss of one batch, drawing only from the generator.
    accelerator: scales and shares the gradients (mixed precision, several processes); the first process saves.
    scaler: of gradients that pass through float16, without an accelerator.

    Raises:
        TrainingError: the checkpoint was made with other settings, or the loss is not finite.
    """
    params = [p for p in module.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True)
    ema = Ema(module, config.ema) if config.ema else None
    if accelerator is not None:
        opt = cast(torch.optim.Optimizer, accelerator.prepare_optimizer(opt))
    kept_scaler = scaler if accelerator is None else getattr(accelerator, "scaler", None)
    saves = checkpoint if accelerator is None or accelerator.is_main_process else None
    start, smooth = _resume(checkpoint, config, module, opt, ema, kept_scaler) if checkpoint else (0, math.nan)

    def save(step: int) -> None:
        if saves:
            _save(saves, _state(step, smooth, config, module, opt, ema, kept_scaler))

    began = saved = time.monotonic()
    for step in range(start, config.steps):
        for group in opt.param_groups:
            group["lr"] = learning_rate(config, step)
        loss = loss_of(step, step_generator(config.seed, step))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at step {step}. A smaller learning rate than {config.lr} may help."
            )
        _take_step(loss, params, config.clip_norm, opt, accelerator, scaler)
        if ema is not None:
            ema.update(module, step)
        smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        now = time.monotonic()
        if now - saved > config.checkpoint_s:
            save(step + 1)
            saved = now
        try:
            yield Progress(step + 1, config.steps, smooth, (step + 1 - start) * config.batch / max(1e-9, now - began))
        except GeneratorExit:  # whoever follows the training stops it here, between two steps
            save(step + 1)
            raise
    save(config.steps)
    if start == config.steps:  # all was done before
        yield Progress(start, config.steps, smooth, 0.0)
    if ema is not None:
        ema.copy_to(module)
