"""The optimisation loop for a GPU that has minutes: nothing waits for the device, and steps are CUDA graphs.

AdamW, warm-up, cosine decay and the mean of weights as in `guda_core.unlearning.loop`, whose settings it takes. A step
is that of `experiments.train.captured`: captured once and played again, where the graph moves the weights as a plain
step does. What differs from there:

    draws    on the device, from a generator seeded by (seed, step) alone, so that a stopped run takes the same steps
    passes   under bfloat16 autocast, the weights in float32
    a word   every `How.every` steps: nothing else waits for the device
    saved    as `guda_core.unlearning.checkpoints`, so that a run may be stopped

On a CPU the same code takes plain steps in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.train import captured
from guda_core.errors import TrainingError
from guda_core.unlearning import checkpoints
from guda_core.unlearning.loop import LoopConfig, Progress

Batch = Mapping[str, Tensor]
Draw = Callable[[int, torch.Generator], Batch]
LossOf = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class How:
    """Where and how steps are taken; what comes out differs by rounding alone. bf16: passes under autocast. graph:
    steps as CUDA graphs, only on "cuda". compiled: the UNet's passes by torch.compile, only on "cpu" (a C++ compiler
    is needed). every: steps between two looks at the loss."""

    device: str = "cpu"
    bf16: bool = False
    graph: bool = False
    compiled: bool = False
    every: int = 50

    @classmethod
    def on(cls, device: str) -> How:
        """The fastest way on a device: all of it on a GPU."""
        return cls(device, bf16=device == "cuda", graph=device == "cuda")

    @property
    def writes_attention_out(self) -> bool:
        """Whether attention is products and a softmax: on a CPU the gradient of the fused one takes most of a step in
        bfloat16."""
        return self.bf16 and self.device == "cpu"

    @property
    def captures(self) -> bool:
        """Whether steps are to be graphs."""
        return self.graph and self.device == "cuda"

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
            torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every shape


def orders(n: int, batch: int, steps: int, seed: int) -> Tensor:
    """The indices of all steps, (steps, batch) int64: as `experiments.train.unet.epoch_batch` gives them one by one."""
    epochs = -(-steps * batch // n)
    each = [torch.randperm(n, generator=torch.Generator().manual_seed(seed * 7_919 + e)) for e in range(epochs)]
    return torch.cat(each)[: steps * batch].reshape(steps, batch)


class Weights:
    """What a checkpoint keeps beside the module's own weights: the averaged ones. A `checkpoints.Kept`."""

    def __init__(self, step: captured.Step) -> None:
        self.step = step

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): t for i, t in enumerate(self.step.shadow)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for i, t in enumerate(self.step.shadow):
            t.copy_(state[str(i)])


def restored(step: captured.Step, module: nn.Module, config: LoopConfig, checkpoint: Path | None) -> int:
    """Put back what a checkpoint holds; the number of steps made, 0 where there is none.

    Raises:
        TrainingError: it was made with other settings, or is damaged.
    """
    found = checkpoints.read(checkpoint, asdict(config)) if checkpoint else None
    if found is None:
        return 0
    checkpoints.restore(found, dict(module.named_parameters()), {"optimizer": step.opt, "ema": Weights(step)})
    for group in step.opt.param_groups:
        group["lr"] = step.rate  # loading puts a copy in its place, which nobody sets
    return int(found["step"])


def saved(step: captured.Step, module: nn.Module, config: LoopConfig, checkpoint: Path | None, done: int) -> None:
    """Write a checkpoint of `done` steps, if one is kept. Raises TrainingError: it cannot be written."""
    if checkpoint is not None:
        weights = {n: p.detach() for n, p in module.named_parameters()}
        state = {"config": asdict(config), "step": done, "module": weights}
        parts: dict[str, checkpoints.Kept | None] = {"optimizer": step.opt, "ema": Weights(step)}
        checkpoints.write(checkpoint, state | checkpoints.state_of(parts))


@contextmanager
def searching(how: How) -> Iterator[None]:
    """Within the block a GPU searches the fastest convolution for each shape: worth it for thousands of steps alone."""
    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = how.device == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = was


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
    generator = torch.Generator(how.device)

    def drawn(step: int) -> Batch:
        return draw(step, generator.manual_seed((config.seed * 1_000_003 + step) % 2**63))

    first = drawn(0)

    def loss(*tensors: Tensor) -> Tensor:
        with torch.autocast(how.device, torch.bfloat16, enabled=how.bf16, cache_enabled=False):
            return loss_of(dict(zip(first, tensors, strict=True)))

    step = captured.Step(module, loss, config, [t.clone() for t in first.values()])
    with searching(how):
        yield from _taken(step, drawn, module, config, how, checkpoint)
    step.finish()


def _taken(
    step: captured.Step, drawn: Callable[[int], Batch], module: nn.Module, config: LoopConfig, how: How,
    checkpoint: Path | None,
) -> Iterator[Progress]:  # fmt: skip
    """All steps that are left."""
    start, total, since, note = restored(step, module, config, checkpoint), torch.zeros((), device=how.device), 0, ""
    began = kept = time.monotonic()
    for s in range(start, config.steps):
        for held, new in zip(step.batch, drawn(s).values(), strict=True):
            held.copy_(new)
        step.set(s)
        if s - start == captured.EAGER and how.captures:
            note = step.capture()
        step.take()
        total, since, done = total.add_(step.value), since + 1, s + 1
        if done % how.every and done != config.steps:
            continue
        mean, now = float(total) / since, time.monotonic()  # waits for the device
        total, since = total.zero_(), 0
        if not math.isfinite(mean):
            raise TrainingError(f"The loss is {mean} at step {s}. A smaller learning rate than {config.lr} may help.")
        if now - kept > config.checkpoint_s:
            saved(step, module, config, checkpoint, done)
            kept = now
        rate = (done - start) * config.batch / max(1e-9, now - began)
        try:
            yield Progress(done, config.steps, mean, rate, note or "without a graph")
        except GeneratorExit:  # whoever follows the training stops it here
            saved(step, module, config, checkpoint, done)
            raise
    if start == config.steps:  # all was done before
        yield Progress(start, config.steps, math.nan, 0.0)
    saved(step, module, config, checkpoint, config.steps)
