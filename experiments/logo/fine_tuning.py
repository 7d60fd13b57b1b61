"""Fine-tune a base model on a group set's training pictures, or on those of all groups but one.

    L = E_{x, t, eps} || target_t - output_theta(x_t, t, c) ||^2

target: the family's own, the noise, v, or the velocity of flow matching (`diffusion.prediction`); t is uniform over the
schedule's steps, c the picture's caption or, for a share of them, the empty prompt. The loss and the draws are those of
diffusers' text-to-image training, but that latents are the autoencoder's mean, and each batch takes one t from each of
as many equal parts. The full model and every model without a group start from the same weights and the same LoRA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.train.unet import epoch_batch, stratified_times
from guda_core.data.captions import drop
from guda_core.data.latents import Latents, of_one_size
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.finite import is_finite
from guda_core.errors import OptionError, TrainingError
from guda_core.unlearning import lora
from guda_core.unlearning.config import check_share
from guda_core.unlearning.defaults import LARGE
from guda_core.unlearning.kept_prompts import KeptPrompts, network_alone
from guda_core.unlearning.loop import LoopConfig, Progress, run, step_generator
from guda_core.unlearning.lora import LoraSpec
from guda_core.unlearning.pieces import Pieces
from guda_core.unlearning.run import Forgetting
from guda_core.unlearning.student import Student, precision, scaler

# Where nobody chooses; starting points, not tuned. Large: latent models of 256 px and more.
SMALL_LOOP = LoopConfig(steps=600, batch=16, lr=1e-3, warmup=30, weight_decay=0.0, seed=3, checkpoint_s=60.0)
LARGE_LOOP = LoopConfig(steps=1000, batch=4, lr=1e-4, warmup=50, weight_decay=0.0, seed=3, checkpoint_s=60.0)
WHOLE_LR = 0.1  # of a LoRA's learning rate, where the whole network is trained
RANK = 16


@dataclass(frozen=True)
class FineTuneConfig:
    """caption_dropout: share of pictures under the empty prompt. lora: None trains the whole network. loop.seed: of the
    LoRA's start and of all draws."""

    caption_dropout: float = 0.1
    lora: LoraSpec | None = field(default_factory=lambda: LoraSpec(RANK, RANK))
    loop: LoopConfig = SMALL_LOOP

    def __post_init__(self) -> None:
        check_share("caption_dropout", self.caption_dropout)

    def sha256(self) -> str:
        """Hash of all settings that change what comes out, but for the seed."""
        plain = asdict(self)
        del plain["loop"]["checkpoint_s"], plain["loop"]["seed"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def settings_for(
    model: BaseModel, *, whole: bool = False, rank: int | None = None, lr: float | None = None, **loop: int | None
) -> FineTuneConfig:
    """The settings for a model, with changes; one that is None is left out. loop: steps, batch, warmup, seed.

    Raises:
        OptionError: the whole network and a rank are asked for, or the model reads no prompts.
    """
    if whole and rank is not None:
        raise OptionError("--whole trains the whole network, and --rank is of a LoRA. Leave one of them out.")
    if model.tokens("")[1] == 0:
        raise OptionError(
            f"The model '{model.card.id}' reads no prompts, and only models that do are fine-tuned here. "
            "`python -m experiments.digits` has its own oracle."
        )
    start = LARGE_LOOP if model.card.resolution >= LARGE else SMALL_LOOP
    rate = lr if lr is not None else start.lr * (WHOLE_LR if whole else 1.0)
    changed = LoopConfig(**{**asdict(start), "lr": rate, **{k: v for k, v in loop.items() if v is not None}})
    spec = None if whole else LoraSpec(rank or RANK, rank or RANK, tuple(model.lora_targets))
    return FineTuneConfig(lora=spec, loop=changed)


class Steps:
    """The losses of a training, piece by piece, and what a checkpoint keeps of it beside the weights."""

    def __init__(
        self,
        base: Forgetting,
        config: FineTuneConfig,
        student: Student,
        exclude: str | None,
        latents: Tensor | Latents | None = None,
    ) -> None:
        self.items = base.pictures()
        self.latents = base.training_pictures()[1] if latents is None else latents
        self.base, self.model, self.config, self.student = base, base.model, config, student
        self.parts = Pieces(base.memory.pictures)
        self.prompts = KeptPrompts(base.model, base.kept)
        self.kept = torch.tensor([i for i, item in enumerate(self.items) if item.group != exclude])

    def state_dict(self) -> dict[str, Any]:
        return self.parts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parts.load_state_dict(state)

    def drawn(self, step: int, rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """Places of a step's pictures, (B,), and their captions."""
        loop = self.config.loop
        at = self.kept[epoch_batch(len(self.kept), loop.batch, step, loop.seed)]
        captions = [self.base.captioner.caption(self.items[i], rng) for i in at.tolist()]
        return at, drop(captions, self.config.caption_dropout, rng)

    def all_prompts(self) -> set[str]:
        """Every prompt that the steps will meet."""
        loop, found = self.config.loop, {""}
        for step in range(loop.steps):
            found.update(self.drawn(step, step_generator(loop.seed, step))[1])
        return found

    def pieces(self, step: int, rng: torch.Generator) -> Iterator[Tensor]:
        """The loss of a step in pieces of so many pictures as fit; each is to be differentiated before the next."""
        model, device = self.model, self.model.device
        at, captions = self.drawn(step, rng)
        times = stratified_times(len(at), len(model.schedule), rng)
        for same in of_one_size(self.latents, at):
            x_0, t, said = self.latents[at[same]], times[same], [captions[i] for i in same.tolist()]
            eps = torch.randn(x_0.shape, generator=rng)
            x_t, target = model.schedule.add_noise(x_0, eps, t), model.prediction.target(x_0, eps, t)
            for part in self.parts.of(len(same)):
                with self.student.answers():
                    with precision(model):
                        condition = self.prompts(said[part])
                        out = model.predict(x_t[part].to(device), t[part].to(device), condition, self.student.network)
                    yield (out.float() - target[part].to(device)).square().mean() * (len(out) / len(at))
                del out


def fine_tune(
    base: Forgetting,
    config: FineTuneConfig,
    *,
    exclude: str | None = None,
    checkpoint: Path | None = None,
    latents: Tensor | None = None,
) -> Generator[Progress, None, dict[str, Tensor]]:
    """Fine-tune; yields progress, and returns the LoRA's factors in float16, by name (`lora.factors`); of a whole
    network its weights in float16. The model itself is not changed.

    base: the model, its group set and its pictures. exclude: the group left out. checkpoint: a file from which a run
    that was stopped goes on. latents: in place of the encoded pictures, (N, C, h, w), for a step that only is timed.

    Raises:
        TrainingError: the loss or a weight is not finite, memory or the disk is full, or no picture is left.
        OptionError: there is no such group.
    """
    if exclude is not None:
        base.known([exclude])
    memory, student = base.memory, Student(base.model, config, base.memory)
    steps = Steps(base, config, student, exclude, latents)
    if not len(steps.kept):
        raise TrainingError(f"Without '{exclude}' there are no pictures left to train on.")
    room = network_alone(base.model, steps.prompts, steps.all_prompts) if memory.unload else nullcontext()
    with room, student.ready():
        yield from run(
            student.network, steps.pieces, config.loop, checkpoint,
            scaler=scaler(base.model), beside=steps, shrink=steps.parts.halve,
        )  # fmt: skip
        student.switch(True)
        if config.lora is not None:
            made = lora.factors(student.network)
        else:
            made = {n: p.detach().cpu().half().contiguous() for n, p in student.network.state_dict().items()}
    broken = next((n for n, p in made.items() if not is_finite(p)), None)
    if broken is not None:
        raise TrainingError(f"The weight {broken} is not finite. Try a smaller learning rate than {config.loop.lr:g}.")
    return made


def less(without: dict[str, Tensor], full: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA of rank 2 r that takes a network with the merged LoRA `full` to the one with `without`, exactly:

    s B' A' - s B A = s [B', -B] [A'; A]            s = alpha / r

    A convolution's A is (r, in, kh, kw) and its B (out, r, 1, 1): they are joined along r too.
    """
    out = {}
    for name, factor in without.items():
        if name.endswith(".lora_A.weight"):
            out[name] = torch.cat([factor, full[name]], dim=0).contiguous()
        else:
            out[name] = torch.cat([factor, -full[name]], dim=1).contiguous()
    return out
