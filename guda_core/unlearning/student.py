"""The network that is trained: how it shares the full model's weights, computes in its type, and passes the gate.

With a LoRA, teacher and student are one network, the LoRA off and on: no second one is in memory. What is trained is
float32; the network keeps its own type, and autocast decides in which type each layer computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.finite import is_finite
from guda_core.diffusion.precision import mixed
from guda_core.errors import TrainingError
from guda_core.unlearning import adapters, lora
from guda_core.unlearning.config import MemorySettings, Trained

EXPLODED = 1.0  # of the change of the answers on retained pictures, as a share of those answers
OVERGROWN = 1.0  # of the size of all changes of weights, as a share of the weights that they change


def student_of(model: BaseModel, config: Trained) -> nn.Module:
    """A copy of the network to be trained: its LoRA alone, or all of it. Whatever is trained is float32."""
    student = copy.deepcopy(model.network).train()
    if config.lora is None:
        return student.float().requires_grad_(True)
    adapters.attach(student, config.lora, config.loop.seed)
    return student


class Student:
    """The network that is trained: the full model's own with a LoRA on it, or a copy that is trained as a whole.

    `answers` is a pass of the student, within which its gradients are taken too; outside of it the full model's network
    answers as ever.
    """

    def __init__(self, model: BaseModel, config: Trained, memory: MemorySettings) -> None:
        self.model, self.config, self.memory = model, config, memory
        self.network = model.network

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the block there is a student; afterwards the model is what it was."""
        config = self.config
        with ExitStack() as stack:
            if config.lora is None:
                self.network = student_of(self.model, config)
            else:
                stack.enter_context(lora.attached(self.network, config.lora, config.loop.seed))
                stack.callback(self.network.train, self.network.training)
            if self.memory.checkpointing:
                self.network.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
                stack.callback(self.network.disable_gradient_checkpointing)  # pyright: ignore[reportArgumentType]
            self.network.train()
            yield

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Within the block the network is the student."""
        if self.config.lora is None:
            yield
            return
        try:
            self.switch(True)
            yield
        finally:
            self.switch(False)

    def switch(self, on: bool) -> None:
        """Whether the model's own network is the student; one that is trained as a whole is a copy."""
        if self.config.lora is not None:
            lora.switch(self.network, on)
            self.network.train(on)

    @torch.no_grad()
    def size(self) -> float:
        """How large the change is, as a share of the weights that it changes (Frobenius norms)."""
        if self.config.lora is not None:
            return lora.relative_size(self.network)
        before = self.model.network.state_dict()
        change = sum(float((p - before[n].to(p)).double().square().sum()) for n, p in self.network.named_parameters())
        own = sum(float(before[n].double().square().sum()) for n, _ in self.network.named_parameters())
        return (change / own) ** 0.5

    @torch.no_grad()
    def kept(self, stored: torch.dtype) -> float:
        """How much of a whole network's change is left once it is stored in a type and run in the model's."""
        left, made, before = 0.0, 0.0, self.model.network.state_dict()
        for name, p in self.network.named_parameters():
            own, new = before[name].to(p), p.to(stored).to(before[name].dtype).to(p)
            left += float(((new - own) * (p - own)).sum())
            made += float((p - own).square().sum())
        return left / made if made else 1.0


def drops_out(network: nn.Module) -> bool:
    """Whether its passes draw random numbers in training."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in network.modules())


@contextmanager
def seeded_dropout(network: nn.Module, rng: torch.Generator) -> Iterator[None]:
    """Within the block a network that drops out draws from the global generators, which it does, as the generator says;
    the caller's own draws go on as they were."""
    if not drops_out(network):
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=rng))
    with torch.random.fork_rng(devices=list({p.device for p in network.parameters() if p.device.type == "cuda"})):
        torch.manual_seed(seed)
        yield


def precision(model: BaseModel) -> AbstractContextManager[Any]:
    """Of every pass: what is trained is float32, and computes in the type that the model runs in."""
    return mixed(model.device, model.dtype)


def scaler(model: BaseModel) -> torch.amp.GradScaler | None:
    """In float16 small gradients would become 0."""
    return torch.amp.GradScaler(model.device.type) if model.dtype == torch.float16 else None


def check(student: nn.Module, group: str, moved: float, config: Trained, *, size: float = 0.0) -> None:
    """The gate before an adapter counts.

    moved: ||student - full||^2 / ||full||^2 of the answers on retained pictures. size: of the change of weights, as a
    share of them.

    Raises:
        TrainingError: a weight is not finite or beyond float16, the change is as large as the weights, or the student
            answers retained pictures no better than by 0.
    """
    trained = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    broken = [n for n, p in trained if not is_finite(p)]
    if broken:
        why = f"{len(broken)} of its weights are not finite, such as {broken[0]}"
    elif large := [n for n, p in trained if p.abs().max() > adapters.LARGEST]:
        why = f"{len(large)} of its weights are beyond what float16 can hold, such as {large[0]}"
    elif not size < OVERGROWN:
        why = f"it changes the weights by {size:.2g} times their own size"
    elif moved >= EXPLODED:
        why = f"its answers on the other groups' pictures have moved by {moved:.2g} times their own size"
    else:
        return
    raise TrainingError(
        f"The adapter '{group}' does not count: {why}. Try a smaller learning rate than {config.loop.lr:g}."
    )
