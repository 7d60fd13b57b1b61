"""Training on a GPU that does not wait for the processor: one step as a CUDA graph, played again for every batch.

A step of a small UNet is a thousand small kernels, and starting one from Python takes longer than running it. Captured
once, all of a step (loss, gradients, clipping, AdamW, the averaged weights) starts as one. Batches are drawn on the CPU
some steps ahead, each by the generator of its own step, and their captions are embedded many at a time. So the draws,
the rates and the loss are those of `guda_core.unlearning.loop.run`, and the weights are the same up to rounding.

It keeps no checkpoint: it is for trainings of a minute or two. The first steps are taken without the graph. Where it
cannot be made, or does not move the weights as the same step without it does, so are all others; the progress says it.
On a CPU there is no graph, and the rest is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guda_core.errors import TrainingError
from guda_core.unlearning.loop import LoopConfig, Progress, learning_rate, step_generator

CHUNK = 40  # steps whose batches are made at once
EAGER = 6  # first steps, which also warm up what a graph needs
CLOSE = 0.1  # how far the weights may lie from where a step without the graph puts them, relative to the step


@dataclass(frozen=True)
class Drawn:
    """A batch as it is drawn on the CPU. tensors: what the loss takes, (B, ...) each, the same shapes at every step;
    prompts: B of them, embedded for the loss's last argument."""

    tensors: tuple[Tensor, ...]
    prompts: Sequence[str]


class Step:
    """One optimiser step on the batch that lies in `batch`, with all its tensors at fixed places."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor], config: LoopConfig, batch: list[Tensor]) -> None:
        self.params = [p for p in module.parameters() if p.requires_grad]
        device = self.params[0].device
        self.loss, self.config, self.batch = loss, config, batch
        self.rate, self.value = torch.zeros((), device=device), torch.zeros((), device=device)
        self.opt = torch.optim.AdamW(
            self.params, lr=self.rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True,
            capturable=device.type == "cuda",
        )  # fmt: skip
        self.kept, self.passed = torch.zeros((), device=device), torch.zeros((), device=device)
        self.shadow = [p.detach().clone() for p in self.params] if config.ema else []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.side: Any = torch.cuda.Stream() if device.type == "cuda" else None

    def set(self, step: int) -> None:
        """What differs from step to step beside the batch."""
        self.rate.fill_(learning_rate(self.config, step))
        decay = min(self.config.ema, (1 + step) / (10 + step))
        self.kept.fill_(decay)
        self.passed.fill_(1 - decay)

    def take(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        self.opt.zero_grad(set_to_none=True)
        if self.side is None:
            self.move()
            return
        self.side.wait_stream(torch.cuda.current_stream())  # a graph wants what comes before it on a stream of its own
        with torch.cuda.stream(self.side):
            self.move()
        torch.cuda.current_stream().wait_stream(self.side)

    def move(self) -> None:
        value = self.loss(*self.batch)
        value.backward()
        nn.utils.clip_grad_norm_(self.params, self.config.clip_norm)
        self.opt.step()
        if self.shadow:
            with torch.no_grad():
                torch._foreach_mul_(self.shadow, self.kept)
                torch._foreach_add_(self.shadow, torch._foreach_mul(self.params, self.passed))
        self.value.copy_(value.detach())

    def capture(self) -> str:
        """Make the graph of a step that has been taken before, and try it on the batch that lies there; all is as it
        was afterwards. Says what came of it; where the graph is not used, why."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        self.opt.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph):
                self.move()
        except RuntimeError as e:
            self.opt.zero_grad(set_to_none=True)
            return f"without a graph: {str(e).splitlines()[0]}"
        there = self.state()
        before = [t.clone() for t in there]
        chance = torch.cuda.get_rng_state()
        graph.replay()
        moved = [p.detach().clone() for p in self.params]
        self.restore(before)
        torch.cuda.set_rng_state(chance)  # dropout drops the same
        off = self.off(before, moved)
        self.restore(before)
        if not off <= CLOSE:
            return f"without a graph: it moves the weights {off:.2g} of a step elsewhere"
        self.graph = graph
        return "as a graph"

    def off(self, before: Sequence[Tensor], moved: Sequence[Tensor]) -> float:
        """How far from `moved` a step without the graph puts the weights, relative to that step. The weights move."""
        self.take()
        with torch.no_grad():
            far = sum(float((p - m).square().sum()) for p, m in zip(self.params, moved, strict=True))
            step = sum(float((p - b).square().sum()) for p, b in zip(self.params, before, strict=False))
        return math.sqrt(far / step) if step > 0 else math.nan

    def state(self) -> list[Tensor]:
        """Everything that a step changes, the weights first."""
        held = [t for p in self.params for t in self.opt.state[p].values() if isinstance(t, Tensor)]
        return [*(p.detach() for p in self.params), *self.shadow, *held]

    @torch.no_grad()
    def restore(self, before: Sequence[Tensor]) -> None:
        for place, b in zip(self.state(), before, strict=True):
            place.copy_(b)

    @torch.no_grad()
    def finish(self) -> None:
        for p, s in zip(self.params, self.shadow, strict=False):
            p.copy_(s)


class _Ahead:
    """Batches of some steps on the device, made beside what runs there."""

    def __init__(
        self, draw: Callable[[int, torch.Generator], Drawn], embed: Callable[[list[str]], Tensor], seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.draw, self.embed, self.seed, self.device = draw, embed, seed, device
        self.side: Any = torch.cuda.Stream() if device.type == "cuda" else None

    def within(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.side) if self.side is not None else nullcontext()

    def made(self, steps: range) -> list[Tensor]:
        """(S, B, ...) each."""
        drawn = [self.draw(s, step_generator(self.seed, s)) for s in steps]
        together = [torch.stack(parts) for parts in zip(*(d.tensors for d in drawn), strict=True)]
        with self.within():
            condition = self.embed([p for d in drawn for p in d.prompts])
            out = [t.to(self.device) for t in together]
        return [*out, condition.reshape(len(drawn), -1, *condition.shape[1:])]

    def ready(self) -> None:
        if self.side is not None:
            torch.cuda.current_stream().wait_stream(self.side)


def run(
    module: nn.Module,
    draw: Callable[[int, torch.Generator], Drawn],
    embed: Callable[[list[str]], Tensor],
    loss: Callable[..., Tensor],
    config: LoopConfig,
) -> Generator[Progress, None, None]:
    """Train `module` in place; yields progress after some steps. At the end the averaged weights are in it.

    draw(step, generator): the batch of a step, drawn from the generator alone. embed: prompts -> (B, L, D) on the
    module's device. loss(*tensors, condition): the scalar loss of a batch; it draws nothing and reads nothing back.

    Raises:
        TrainingError: the loss is not finite.
    """
    device = next(module.parameters()).device
    ahead = _Ahead(draw, embed, config.seed, device)
    chunks = [range(s, min(s + CHUNK, config.steps)) for s in range(EAGER, config.steps, CHUNK)]
    chunks = [range(min(EAGER, config.steps)), *chunks]
    batches = ahead.made(chunks[0])
    ahead.ready()
    step = Step(module, loss, config, [b[0].clone() for b in batches])
    smooth, began, note = math.nan, time.monotonic(), ""
    for n, steps in enumerate(chunks):
        if n == 1 and device.type == "cuda":
            for place, b in zip(step.batch, batches, strict=True):
                place.copy_(b[0])
            step.set(steps[0])
            note = step.capture()
        values = torch.zeros(len(steps), device=device)
        for i, s in enumerate(steps):
            for place, b in zip(step.batch, batches, strict=True):
                place.copy_(b[i])
            step.set(s)
            step.take()
            values[i].copy_(step.value)
        following = ahead.made(chunks[n + 1]) if n + 1 < len(chunks) else []
        for s, value in zip(steps, values.tolist(), strict=True):  # waits for the device
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss is {value} at step {s}. A smaller learning rate than {config.lr} may help."
                )
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        batches = following
        ahead.ready()
        done = steps.stop
        yield Progress(done, config.steps, smooth, done * config.batch / max(1e-9, time.monotonic() - began), note)
    step.finish()
