"""The open point of unlearning: what the student should answer on pictures of the forgotten group.

    L = w_f || eps_theta(x_t, t, c) - target ||^2  +  lam || eps_theta(x'_t, t, c') - eps_full(x'_t, t, c') ||^2

x from the forgotten group, x' from the retained ones. A `ForgetLoss` gives the target of the first half and says what
else a step needs for it; the second half and the loop (`unlearn`) are the same for all. A loss is one file and one line
in `FORGET_LOSSES`, or comes from outside by `FORGET_LOSSES.add` or an entry point "guda_core.forget_losses".
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from guda_core.data.captions import Captioner
from guda_core.data.dataset import Item
from guda_core.data.latents import Latents
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import OptionError, TrainingError
from guda_core.records import Cost
from guda_core.registry import Registry
from guda_core.unlearning.config import Settings, check_numbers
from guda_core.unlearning.kept_prompts import KeptPrompts
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.lora import LoraSpec
from guda_core.unlearning.pieces import Pieces

FORGET_LOSSES = Registry(
    "forget loss",
    "guda_core.forget_losses",
    {
        "guda_c": "guda_core.unlearning.guda_c:GudaC",
        "esd": "guda_core.unlearning.esd:Esd",
        "retrack": "guda_core.unlearning.guda_u:Retrack",
        "esd_fine_tuned": "guda_core.unlearning.esd:EsdFineTuned",
    },
)


@dataclass(frozen=True)
class Task:
    """Which group to unlearn, from which model, and the pictures that it was trained on.

    items: N training pictures of all groups. latents: (N, C, h, w) float32, aligned; of several sizes in a set that
    keeps shapes. captioner: writes their captions; it is not asked where the model reads no prompt. text_features:
    texts -> (M, D) unit vectors, for those losses that compare groups by their words. prompts: embeds prompts; the
    model does where there is none. pieces: how many pictures one pass of the network takes.

    Raises:
        TrainingError: the group, or every other group, has no pictures.
    """

    model: BaseModel
    items: Sequence[Item]
    latents: Tensor | Latents
    forget: str
    captioner: Captioner
    text_features: Callable[[list[str]], Tensor] | None = None
    prompts: KeptPrompts | None = None
    pieces: Pieces = field(default_factory=lambda: Pieces(None))

    def __post_init__(self) -> None:
        if not len(self.own) or not len(self.others):
            raise TrainingError(f"Unlearning '{self.forget}' needs pictures of that group and of others.")

    @cached_property
    def own(self) -> Tensor:
        """Places of the forgotten group's pictures."""
        return torch.tensor([n for n, i in enumerate(self.items) if i.group == self.forget])

    @cached_property
    def others(self) -> Tensor:
        """Places of the retained pictures."""
        return torch.tensor([n for n, i in enumerate(self.items) if i.group != self.forget])

    @cached_property
    def has_prompts(self) -> bool:
        """Whether the model reads prompts."""
        return self.model.tokens("")[1] > 0

    def eps(self, x_t: Tensor, t: Tensor, prompts: Sequence[str], network: nn.Module | None = None) -> Tensor:
        """(B, C, h, w) float32: the noise estimate of the full model, or of another network in its place; without
        gradients in passes of so many pictures as fit."""
        said = (self.model.embed if self.prompts is None else self.prompts)(list(prompts))
        parts = [slice(None)] if torch.is_grad_enabled() else self.pieces.of(len(t))
        return torch.cat([self.model.predict_eps(x_t[p], t[p], said[p], network) for p in parts])

    def captions(self, at: Tensor, rng: torch.Generator) -> list[str]:
        """Of the pictures at these places, drawn anew."""
        return [self.captioner.caption(self.items[i], rng) for i in at.tolist()]


@dataclass
class Half:
    """One half of a step: B pictures, all forgotten or all retained.

    at: their places. x_0, eps: (B, C, h, w) on the CPU. x_t, t: on the device. prompts: their captions; "" each where
    the model reads none. hidden: where the student sees the empty prompt instead. seen: what the student sees.
    notes: what a loss drew for its target.
    """

    at: Tensor
    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    t: Tensor
    prompts: list[str]
    hidden: list[bool]
    seen: list[str]
    notes: dict[str, Any] = field(default_factory=dict)


def hide(prompts: Sequence[str], hidden: Sequence[bool]) -> list[str]:
    """The prompts, the hidden ones empty."""
    return ["" if h else p for p, h in zip(prompts, hidden, strict=True)]


class ForgetLoss(ABC):
    """The target of the forgotten half. Everything is drawn from the generator that is handed in, in the same order for
    the same settings: the same seed makes the same adapter."""

    settings: ClassVar[type[Settings]]  # what it is configured by; its defaults are those of the loss
    needs_prompts: ClassVar[bool]  # whether it is for models that read prompts, or for those that do not

    def __init__(self, task: Task, config: Any) -> None:
        self.task, self.config = task, config
        if task.has_prompts != self.needs_prompts:
            kind = "reads prompts" if task.has_prompts else "reads no prompt"
            known = [k for k in FORGET_LOSSES if FORGET_LOSSES[k].needs_prompts == task.has_prompts]
            raise OptionError(
                f"The forget loss '{config.operator}' is not for a model that {kind}. Use {' or '.join(known)}."
            )

    def prepare(self, checkpoint: Path | None) -> Iterator[Progress]:
        """What comes before the first step, such as a model to be trained; yields progress. checkpoint: where it may
        keep itself."""
        return iter(())

    def draw(self, forgotten: Half, rng: torch.Generator) -> None:
        """What else a step draws for the forgotten pictures; put it into their notes. Nothing is hidden yet."""
        return

    def revise(self, forgotten: Half, retained: Half, rng: torch.Generator) -> None:
        """A last change of what the student sees, or of the notes, when it is known which captions are hidden."""
        return

    def passes(self, batch: int) -> int:
        """Passes of a network, of one picture each, that the targets of a step of `batch` forgotten and as many
        retained pictures take beside the retained half's."""
        return batch

    def preparation(self) -> Cost:
        """What `prepare` takes."""
        return Cost()

    def stand_in(self) -> None:
        """Make a step possible without `prepare`, to time it; what it answers then does not matter."""
        return

    def asked(self, forgotten: Half) -> list[str] | None:
        """Prompts under which the full model estimates the noise of x_t for the target, in one pass with the retained
        half; None: the target does without, or asks by itself."""
        return None

    @abstractmethod
    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        """What the student should answer, (B, C, h, w). answer: the full model's under `asked`. No gradient is kept."""

    def record(self) -> Mapping[str, Any]:
        """What the adapter's metadata should tell beside the settings."""
        return {}


LOOP_SETTINGS = {"steps", "batch", "lr", "warmup", "seed", "ema"}  # that `config_of` takes beside those of the loss
INNER = {"operator", "lora", "loop"}  # fields of a loss's settings that are told by others: whole, rank, steps, ...


def config_of(
    operator: str = "guda_c",
    *,
    whole: bool | None = None,
    rank: int | None = None,
    targets: Sequence[str] | None = None,
    **changes: Any,
) -> Any:
    """The default settings of a forget loss with changes; a change that is None is left out.

    whole: fine-tune the whole network (False: a LoRA). rank: of the LoRA, and its alpha. targets: of the LoRA, name
    endings of the layers that it changes (`BaseModel.lora_targets`). Others: settings of the loss, and those of
    `LOOP_SETTINGS`.

    Raises:
        OptionError: there is no such forget loss or setting, or a value is out of its range.
    """
    kind = FORGET_LOSSES.find(operator).settings
    given = {k: v for k, v in changes.items() if v is not None}
    unknown = set(given) - LOOP_SETTINGS - {f.name for f in dataclasses.fields(kind)} | {"loop"} & set(given)
    if unknown:
        known = sorted(
            {"whole", "rank", "targets"} | LOOP_SETTINGS | {f.name for f in dataclasses.fields(kind)} - INNER
        )
        near = get_close_matches(min(unknown), known, 1, 0.75)
        meant = f" Is '{near[0]}' meant?" if near else ""
        raise OptionError(
            f"The forget loss '{operator}' has no setting {', '.join(sorted(unknown))}.{meant} Known: "
            f"{', '.join(known)}."
        )
    if not isinstance(given.get("lora"), LoraSpec | None):
        raise OptionError(
            "lora is a LoraSpec here. A LoRA file that the model needs is named by GUDA_LORA or its card."
        )
    check_numbers(given if rank is None else {**given, "rank": rank})
    if not isinstance(whole, bool | None):
        raise OptionError(f"whole must be True or False; got {whole!r:.60}.")
    if targets is not None and not (_is_list(targets) and targets and all(isinstance(t, str) for t in targets)):
        raise OptionError(f"targets must be a list of layers' names, such as to_q; got {targets!r:.60}.")
    loop = {k: given.pop(k) for k in LOOP_SETTINGS if k in given}
    config = kind(operator=operator, **given)
    lora = config.lora
    if whole is not None or rank is not None:
        lora = None if whole else lora or kind.LORA
    if lora is not None and rank is not None:
        lora = dataclasses.replace(lora, rank=rank, alpha=rank)
    if lora is not None and targets is not None:
        lora = dataclasses.replace(lora, targets=tuple(targets))
    return dataclasses.replace(config, lora=lora, loop=dataclasses.replace(config.loop, **loop))


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def read_config(record: Mapping[str, Any]) -> Settings:
    """The settings in an adapter's metadata, of this version or of 0.1, whose `esd` of unconditional models had no id
    of its own.

    Raises:
        OptionError: there is no such forget loss any more, or it does not know one of the settings.
    """
    operator = record.get("operator", "")
    if operator == "esd" and "expert_steps" in record:
        operator = "esd_fine_tuned"
    return FORGET_LOSSES.find(operator).settings.of({**record, "operator": operator})


def told_apart(meta: Mapping[str, Any]) -> str:
    """What tells the settings of a model without a group, by its metadata, from others."""
    try:
        return read_config(meta["config"]).sha256()
    except (OptionError, KeyError, TypeError, AttributeError, ValueError):  # of another kind, such as retrained ones
        return json.dumps(meta.get("config"), sort_keys=True, default=str)
