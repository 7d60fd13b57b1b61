"""The optimisation loop for a GPU that has minutes: nothing waits for the device, and steps are CUDA graphs.

AdamW, warm-up, cosine decay and the mean of weights as in `guda_core.unlearning.loop`, whose settings it takes. What
differs is how a step is taken:

    draws    on the device, from a generator seeded by (seed, step) alone, so that a stopped run takes the same steps
    passes   under bfloat16 autocast, the weights in float32
    a graph  forward, backward, clipping and AdamW are captured once, after WARM plain steps, and replayed. A small UNet
             keeps a GPU waiting for the processor; a graph does not. Where it cannot be captured, steps stay plain.
    the loss is read every `How.every` steps; nothing else waits for the device

On a CPU the same code takes plain steps in float32.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from guda_core.errors import TrainingError
from guda_core.unlearning import checkpoints
from guda_core.unlearning.loop import Ema, LoopConfig, Progress, learning_rate

log = logging.getLogger(__name__)

WARM = 3  # plain steps before a graph is captured
Batch = Mapping[str, Tensor]
Draw = Callable[[int, torch.Generator], Batch]
LossOf = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class How:
    """Where and how steps are taken; what comes out differs by rounding alone. bf16: passes under autocast. graph:
    steps as CUDA graphs, only on "cuda". every: steps between two looks at the loss."""

    device: str = "cpu"
    bf16: bool = False
    graph: bool = False
    every: int = 50

    @classmethod
    def on(cls, device: str) -> How:
        """The fastest way on a device: all of it on a GPU."""
        return cls(device, bf16=device == "cuda", graph=device == "cuda")

    @property
    def card(self) -> str:
        """The device's name, for records."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    def settle(self) -> None:
        """Let a GPU round float32 products to TF32; a CPU treat the smallest numbers as zero."""
        torch.set_flush_denormal(True)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True


def orders(n: int, batch: int, steps: int, seed: int) -> Tensor:
    """The indices of all steps, (steps, batch) int64: as `experiments.train.unet.epoch_batch` gives them one by one."""
    epochs = -(-steps * batch // n)
    each = [torch.randperm(n, generator=torch.Generator().manual_seed(seed * 7_919 + e)) for e in range(epochs)]
    return torch.cat(each)[: steps * batch].reshape(steps, batch)


class FastEma(Ema):
    """`Ema` with one call for all weights."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self.weights.values()]
        get_ema_multi_avg_fn(decay)([self.shadow[n] for n in self.weights], weights, step)


class Steps:
    """Takes steps, as a graph once it can. why: what kept a graph from being captured; "" = nothing."""

    def __init__(
        self, params: list[nn.Parameter], opt: torch.optim.Optimizer, loss_of: LossOf, clip_norm: float, how: How
    ) -> None:
        self.params, self.opt, self.loss_of, self.clip_norm, self.how = params, opt, loss_of, clip_norm, how
        self.total = torch.zeros((), device=how.device)  # of the losses since the last `mean_loss`
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.wanted, self.why, self.taken, self.since = how.graph and how.device == "cuda", "", 0, 0

    @property
    def note(self) -> str:
        """How steps are taken."""
        return "graph" if self.graph is not None else f"plain ({self.why})" if self.why else "plain"

    def take(self, batch: Batch) -> None:
        """One step; the weights move, and nothing is waited for."""
        if self.graph is None and self.wanted and self.taken >= WARM:
            self._capture(batch)
        if self.graph is not None:
            for name, held in self.inputs.items():
                held.copy_(batch[name])
            self.graph.replay()
        elif self.wanted:
            self._aside(batch)
        else:
            self._work(batch)
        self.taken, self.since = self.taken + 1, self.since + 1

    def mean_loss(self) -> float:
        """Of the steps since this was asked last; waits for the device."""
        value = float(self.total) / max(1, self.since)
        self.total.zero_()
        self.since = 0
        return value

    def _work(self, batch: Batch) -> None:
        self.opt.zero_grad(set_to_none=True)
        self._move(batch)

    def _move(self, batch: Batch) -> None:
        """All that a graph holds: shapes are fixed, and nothing is read back."""
        kind = self.how.device
        with torch.autocast(kind, torch.bfloat16, enabled=self.how.bf16, cache_enabled=False):
            loss = self.loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.clip_norm)
        self.opt.step()
        self.total.add_(loss.detach())

    def _aside(self, batch: Batch) -> None:
        """A plain step on a stream of its own, as what is captured later must have been warmed up on one."""
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            self._work(batch)
        here.wait_stream(stream)

    def _capture(self, batch: Batch) -> None:
        self.inputs = {name: v.clone() for name, v in batch.items()}
        self.opt.zero_grad(set_to_none=True)  # so that the gradients lie in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._move(self.inputs)
        except RuntimeError as e:
            self.why, self.wanted, self.inputs = checkpoints.first_line(e), False, {}
            log.warning("Steps are not captured as a graph: %s", self.why)
            self.opt.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            return
        self.graph = graph


def _set_rate(opt: torch.optim.Optimizer, value: float) -> None:
    for group in opt.param_groups:
        group["lr"].fill_(value)


def _held_rate(opt: torch.optim.Optimizer, device: str) -> None:
    """The learning rate as a number on the device, which a graph reads anew at every replay."""
    for group in opt.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def run(
    module: nn.Module,
    draw: Draw,
    loss_of: LossOf,
    config: LoopConfig,
    how: How,
    checkpoint: Path | None = None,
) -> Iterator[Progress]:
    """Train `module`, which is on the device, in place; yields progress every `how.every` steps and after the last. On
    normal end the averaged weights (if any) are in it. Closing it saves a checkpoint of the steps made.

    draw(step, generator): the batch of a step, tensors of the same shapes at every step, on the device; it draws from
    the generator alone. loss_of(batch): the scalar loss; reads nothing back from the device.

    Raises:
        TrainingError: the checkpoint was made with other settings or cannot be written, or the loss is not finite.
    """
    weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
    on_gpu = how.device == "cuda"
    opt = torch.optim.AdamW(
        list(weights.values()), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True,
        capturable=on_gpu,
    )  # fmt: skip
    ema = FastEma(weights, config.ema) if config.ema else None
    parts: dict[str, checkpoints.Kept | None] = {"optimizer": opt, "ema": ema}
    found = checkpoints.read(checkpoint, asdict(config)) if checkpoint else None
    start = int(found["step"]) if found else 0
    if found is not None:
        checkpoints.restore(found, weights, parts)
    _held_rate(opt, how.device)
    steps, generator = Steps(list(weights.values()), opt, loss_of, config.clip_norm, how), torch.Generator(how.device)

    def save(step: int) -> None:
        if checkpoint:
            state = {"config": asdict(config), "step": step, "module": {n: p.detach() for n, p in weights.items()}}
            checkpoints.write(checkpoint, state | checkpoints.state_of(parts))

    began = saved = time.monotonic()
    for step in range(start, config.steps):
        _set_rate(opt, learning_rate(config, step))
        generator.manual_seed((config.seed * 1_000_003 + step) % 2**63)
        steps.take(draw(step, generator))
        if ema is not None:
            ema.update(step)
        done = step + 1
        if done % how.every and done != config.steps:
            continue
        loss, now = steps.mean_loss(), time.monotonic()
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {step}. A smaller learning rate than {config.lr} may help."
            )
        if now - saved > config.checkpoint_s:
            save(done)
            saved = now
        try:
            yield Progress(done, config.steps, loss, (done - start) * config.batch / max(1e-9, now - began), steps.note)
        except GeneratorExit:  # whoever follows the training stops it here
            save(done)
            raise
    if start == config.steps:  # all was done before
        yield Progress(start, config.steps, math.nan, 0.0)
    save(config.steps)
    if ema is not None:
        ema.copy_to_weights()
