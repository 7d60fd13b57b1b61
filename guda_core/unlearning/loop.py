"""One optimisation loop for every training of the project: AdamW, warm-up, cosine decay to zero, optional EMA.

Randomness is a function of (seed, step) alone, so a run that is stopped and resumed takes the same steps as one that is
not (`checkpoints`). A step that does not fit into memory, or whose gradients overflow float16, is taken again: in
smaller pieces, or with a smaller scale.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from guda_core.diffusion.memory import is_out_of_memory
from guda_core.errors import NoMemoryError, TrainingError, first_line
from guda_core.unlearning import checkpoints
from guda_core.unlearning.checkpoints import Kept

log = logging.getLogger(__name__)

SELDOM = 10  # times what a checkpoint takes to write: no more often than that
LEAST_SCALE = 2.0**-20  # of float16's gradients; below that they are not too large but broken
Loss = Tensor | Iterable[Tensor]


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one training.

    steps: optimiser steps. batch: pictures a step. lr: peak learning rate. warmup: steps of linear rise, at
    most half of all. ema: decay of the averaged weights (0 = none; the decay rises as (1+s)/(10+s) in the beginning).
    weight_decay: AdamW's. clip_norm: largest gradient norm. seed: of every draw. checkpoint_s: seconds between saves
    (0: after every step), or more where a save takes long (`SELDOM`).
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
    """step of steps done, the smoothed loss (nan where no step was taken now), pictures per second, and a word on what
    goes on. As text: a line of a progress bar."""

    step: int
    steps: int
    loss: float
    rate: float
    note: str = ""

    def __str__(self) -> str:
        done = f"{self.step}/{self.steps}"
        return done if math.isnan(self.loss) else f"{done}  loss {self.loss:.4f}  {self.rate:.0f} pictures/s"


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step (0-based): linear warm-up, then half a cosine down to zero."""
    warmup = min(config.warmup, config.steps // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; a function of seed and step alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


class Ema:
    """Exponential moving average of a module's trainable parameters."""

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.weights = decay, weights
        self.shadow = {n: p.detach().clone() for n, p in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        for n, p in self.weights.items():
            self.shadow[n].lerp_(p.detach(), 1 - d)

    @torch.no_grad()
    def copy_to_weights(self) -> None:
        for n, p in self.weights.items():
            p.copy_(self.shadow[n])

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.shadow = {n: v.to(self.shadow[n].device) for n, v in state.items()}


class _Steps:
    """Takes one step after the other: gradients of all pieces of the loss, then the optimiser."""

    def __init__(
        self,
        params: list[nn.Parameter],
        opt: torch.optim.Optimizer,
        config: LoopConfig,
        accelerator: Accelerator | None,
        scaler: torch.amp.GradScaler | None,
        shrink: Callable[[], bool] | None,
    ) -> None:
        self.params, self.opt, self.config, self.shrink = params, opt, config, shrink
        self.accelerator, self.scaler = accelerator, scaler

    def take(self, step: int, loss_of: Callable[[int, torch.Generator], Loss]) -> float:
        """Take a step, again and again until it is done; returns its loss."""
        while True:
            self.opt.zero_grad(set_to_none=True)
            try:
                value = self._gradients(step, loss_of(step, step_generator(self.config.seed, step)))
            except Exception as e:
                if self.shrink is None or not is_out_of_memory(e):
                    raise
                why = first_line(e)
            else:
                if self._move(step):
                    return value
                continue
            self._make_room(why)  # out here, so that the error no longer holds its tensors

    def _make_room(self, why: str) -> None:
        self.opt.zero_grad(set_to_none=True)
        if self.shrink is None or not self.shrink():
            raise NoMemoryError(
                f"There is not enough memory, even for one picture at a time ({why}). Close other programs, turn "
                "checkpointing on, or use a smaller rank or a machine with more memory."
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _gradients(self, step: int, loss: Loss) -> float:
        pieces, value = iter([loss] if isinstance(loss, Tensor) else loss), 0.0
        try:
            for piece in pieces:
                value += float(piece.detach())
                if not math.isfinite(value):
                    half = "" if self.scaler is None else "float16 overflows on some GPUs: set GUDA_DTYPE=float32. "
                    raise TrainingError(
                        f"The loss is {value} at step {step}. {half}A smaller learning rate than {self.config.lr} may "
                        "help."
                    )
                if self.accelerator is not None:
                    self.accelerator.backward(piece)
                else:
                    (piece if self.scaler is None else self.scaler.scale(piece)).backward()
                del piece
        finally:
            if isinstance(pieces, Generator):
                pieces.close()
        return value

    def _move(self, step: int) -> bool:
        """Change the weights; whether that was possible. What AdamW keeps of each weight is made in the first step,
        when the pieces are done: smaller ones would not make room for it."""
        try:
            return self._changed(step)
        except Exception as e:
            if self.shrink is None or not is_out_of_memory(e):
                raise
            raise NoMemoryError(
                f"There is not enough memory for what AdamW keeps of each weight ({first_line(e)}). Close "
                "other programs, or use a smaller rank or a machine with more memory."
            ) from e

    def _changed(self, step: int) -> bool:
        scaler, most = self.scaler, self.config.clip_norm
        if self.accelerator is not None:
            norm: Any = self.accelerator.clip_grad_norm_(self.params, most)
        else:
            if scaler is not None:
                scaler.unscale_(self.opt)
            norm = nn.utils.clip_grad_norm_(self.params, most)
        leaves_out = getattr(self.accelerator, "scaler", None) is not None  # such a step, by itself
        if not leaves_out and not math.isfinite(float(norm)):
            if scaler is None or (scale := scaler.get_scale() / 2) < LEAST_SCALE:
                raise TrainingError(
                    f"The gradients are not finite at step {step}. A smaller learning rate than {self.config.lr} may "
                    "help."
                )
            scaler.update(scale)
            return False
        if scaler is None:
            self.opt.step()
        else:
            scaler.step(self.opt)
            scaler.update()
        return True


def run(
    module: nn.Module,
    loss_of: Callable[[int, torch.Generator], Loss],
    config: LoopConfig,
    checkpoint: Path | None = None,
    *,
    accelerator: Accelerator | None = None,
    scaler: torch.amp.GradScaler | None = None,
    beside: Kept | None = None,
    shrink: Callable[[], bool] | None = None,
) -> Generator[Progress, None, None]:
    """Train `module` in place; yields progress after every step. On normal end the EMA weights (if any) are in it.

    Closing the generator saves a checkpoint of the step just made.

    loss_of(step, generator) gives the scalar loss of one batch, drawing only from the generator; or its pieces, one
    after the other, whose sum is the loss: their gradients are added before the weights move.
    accelerator: scales and shares the gradients (mixed precision, several processes); the first process saves.
    scaler: of gradients that pass through float16, without an accelerator. A step whose gradients overflow is taken
    again with half the scale. beside: what else a checkpoint should keep. shrink: called when memory ran out; makes the
    pieces smaller, and says whether it could.

    Raises:
        TrainingError: the checkpoint was made with other settings or cannot be written, the loss or a gradient is not
            finite (the weights and the checkpoint stay as they were), or there is not enough memory.
    """
    weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
    params = list(weights.values())
    opt = torch.optim.AdamW(params, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True)
    ema = Ema(weights, config.ema) if config.ema else None
    if accelerator is not None:
        opt = cast(torch.optim.Optimizer, accelerator.prepare_optimizer(opt))
    kept_scaler: Any = scaler if accelerator is None else getattr(accelerator, "scaler", None)
    parts: dict[str, Kept | None] = {"optimizer": opt, "ema": ema, "scaler": kept_scaler, "beside": beside}
    saves = checkpoint if accelerator is None or accelerator.is_main_process else None
    found = checkpoints.read(checkpoint, asdict(config)) if checkpoint else None
    if found is not None:
        checkpoints.restore(found, weights, parts)
    start, smooth = (int(found["step"]), checkpoints.smoothed(found)) if found else (0, math.nan)

    last = start if found else 0  # the step of the checkpoint that is there

    def save(step: int) -> None:
        nonlocal last
        if saves and step > last:
            values = {n: p.detach() for n, p in weights.items()}
            state = {"config": asdict(config), "step": step, "smooth": smooth, "module": values}
            checkpoints.write(saves, state | checkpoints.state_of(parts))
            last = step

    steps = _Steps(params, opt, config, accelerator, scaler, shrink)
    began = saved = now = time.monotonic()
    between = config.checkpoint_s
    for step in range(start, config.steps):
        for group in opt.param_groups:
            group["lr"] = learning_rate(config, step)
        value = steps.take(step, loss_of)
        if ema is not None:
            ema.update(step)
        smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        lasted, now = time.monotonic() - now, time.monotonic()
        if step + 1 < config.steps and now + lasted - saved > between:  # the next step would end too late
            save(step + 1)
            saved = time.monotonic()
            if between > 0:
                between = max(config.checkpoint_s, SELDOM * (saved - now))
            now = saved
        try:
            yield Progress(step + 1, config.steps, smooth, (step + 1 - start) * config.batch / max(1e-9, now - began))
        except GeneratorExit:  # whoever follows the training stops it here, between two steps
            save(step + 1)
            raise
    if start < config.steps:
        try:
            save(config.steps)
        except TrainingError as e:
            why = first_line(e.__cause__ or e)
            log.warning("The last checkpoint could not be written (%s). The training is done without it.", why)
    else:  # all was done before
        yield Progress(start, config.steps, smooth, 0.0)
    if ema is not None:
        ema.copy_to_weights()
