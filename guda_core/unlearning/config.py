"""The settings of an unlearning. They are recorded with the adapter; one with other settings is another adapter.

L = forget_weight L_forget + lam L_preserve
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeGuard

import torch

from guda_core.diffusion.base_model import PIXEL_TARGETS
from guda_core.errors import OptionError
from guda_core.unlearning.loop import LoopConfig
from guda_core.unlearning.lora import LoraSpec

# A LoRA for UNet2DModel: its attentions and residual blocks, with the time's way into them.
UNET_LORA = LoraSpec(targets=PIXEL_TARGETS)

# Settings of 0.1 that were tried and not adopted, at the values that change nothing (`experiments.ablations`).
NOT_ADOPTED = {
    "temperature": 1.0, "empty_target": "anchor", "blend_share": 0.0, "push": 0.0, "ascent_strength": 1.0,
    "kl_cap": None, "min_t": 0,
}  # fmt: skip
SELECTIONS = ("weighted", "uniform", "removed")


def check_share(name: str, value: float) -> None:
    """Raises OptionError where a share is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise OptionError(f"{name} {value} is not between 0 and 1.")


WHOLE = {  # settings -> the least whole number
    "steps": 1, "batch": 1, "rank": 1, "neighbours": 1, "expert_steps": 1, "warmup": 0, "seed": -(2**63),
}  # fmt: skip
NUMBERS = (  # from 0 up
    "lr", "lam", "forget_weight", "weight_decay", "ema", "clip_norm", "checkpoint_s", "empty_share", "beta", "eta",
    "bandwidth", "esd_strength",
)  # fmt: skip


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_numbers(given: Mapping[str, object]) -> None:
    """Raises OptionError where a setting that must be a number is none, or is out of its range."""
    for name, value in given.items():
        if name in WHOLE and (not isinstance(value, int) or isinstance(value, bool) or value < WHOLE[name]):
            least = "" if name == "seed" else f", at least {WHOLE[name]}"
            raise OptionError(f"{name} must be a whole number{least}; got {value!r}.")
        if name in NUMBERS and not (_is_number(value) and 0 <= value < float("inf")):
            raise OptionError(f"{name} must be a number from 0 up; got {value!r}.")


class Trained(Protocol):
    """What is trained, of any training's settings. lora: None = the whole network."""

    @property
    def lora(self) -> LoraSpec | None: ...

    @property
    def loop(self) -> LoopConfig: ...


@dataclass(frozen=True)
class MemorySettings:
    """How an unlearning is made to fit into memory. Only rounding depends on it, so it is no part of what "fits"; it is
    recorded with the adapter.

    pictures: of one forward and backward pass, of the 2 loop.batch that make a step; None = all. Halved by itself when
    memory runs out. checkpointing: keep only what enters each block and compute the block again for its gradient.
    unload: autoencoder and text encoders leave the device; prompts are embedded before the first step.
    """

    pictures: int | None = None
    checkpointing: bool = False
    unload: bool = False

    def __post_init__(self) -> None:
        if self.pictures is not None and self.pictures < 1:
            raise OptionError(f"pictures of a pass: {self.pictures} is not at least 1.")


@dataclass(frozen=True)
class Settings:
    """What every unlearning has; each forget loss reads a kind of its own (`ForgetLoss.settings`).

    operator: id of the forget loss, of `FORGET_LOSSES`. forget_weight, lam: of the two halves of the loss.
    empty_share: share of the pictures, forgotten and retained, that the student sees under the empty prompt.
    lora: the adapter; None fine-tunes the whole network, as the paper does.
    loop.batch forgotten and as many retained pictures make a step.
    """

    WHOLE_TYPE: ClassVar[torch.dtype] = torch.float16  # in which a whole network is stored
    LORA: ClassVar[LoraSpec] = LoraSpec()  # where a LoRA is asked for by its rank alone
    operator: str = ""
    forget_weight: float = 1.0
    lam: float = 1.0
    empty_share: float = 0.0
    lora: LoraSpec | None = None
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=80, batch=16, lr=1e-3))

    def __post_init__(self) -> None:
        check_share("empty_share", self.empty_share)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The settings in an adapter's metadata, of this version or of 0.1.

        Raises:
            OptionError: it holds a setting that these settings do not know.
        """
        lora, loop = record["lora"], LoopConfig(**record["loop"])
        spec = None if lora is None else LoraSpec(**{**lora, "targets": tuple(lora["targets"])})
        known = {f.name for f in dataclasses.fields(cls)}
        for name in [n for n in record if n not in known]:
            if name not in NOT_ADOPTED or record[name] != NOT_ADOPTED[name]:
                raise OptionError(
                    f"These settings hold {name} = {record[name]!r}, which was tried and not adopted. "
                    "`python -m experiments.unlearn --with` knows it."
                )
        return cls(**{**{k: v for k, v in record.items() if k in known}, "lora": spec, "loop": loop})

    def sha256(self) -> str:
        """Hash of all settings that change what comes out."""
        plain = asdict(self)
        del plain["loop"]["checkpoint_s"]
        return hashlib.sha256(json.dumps(_floats(plain), sort_keys=True).encode()).hexdigest()


def changed(before: Settings, now: Settings) -> str:
    """What is another setting now, as "steps 80 (before: 40), seed 1 (before: 5)"; "" where nothing is."""
    if before.operator != now.operator:
        return f"forget loss {now.operator} (before: {before.operator})"
    return differing(asdict(before), asdict(now))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`changed`, of settings as plain records."""
    old, new = _flat(before), _flat(now)
    names = [k for k in {**new, **old} if old.get(k) != new.get(k) and k != "checkpoint_s"]
    pairs = ((k, *("nothing" if v is None else v for v in (new.get(k), old.get(k)))) for k in names)
    return ", ".join(f"{k} {n} (before: {o})" for k, n, o in pairs)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their last names, such as steps of loop."""
    found: dict[str, Any] = {}
    for k, v in record.items():
        found |= v if isinstance(v, dict) else {k: v}
    return found


def _floats(value: Any) -> Any:
    """Numbers as floats, so that 3 and 3.0 are one setting."""
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_floats(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class UnlearnConfig(Settings):
    """Of text-conditional models.

    selection of the anchor's group: "uniform"; "weighted", the paper's WSS, with its beta and eta; "removed": the
    anchor is the picture's content without any group's words. esd_strength: ESD's guidance.
    """

    operator: str = "guda_c"
    selection: str = "uniform"
    beta: float = 2.0
    eta: float = 0.3
    empty_share: float = 0.5
    esd_strength: float = 1.0
    lora: LoraSpec | None = field(default_factory=LoraSpec)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=80, batch=16, lr=1e-3, warmup=10, weight_decay=0.0, seed=5, checkpoint_s=60.0
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection not in self.selections():
            raise OptionError(f"selection '{self.selection}': known are {', '.join(self.selections())}.")

    @classmethod
    def selections(cls) -> tuple[str, ...]:
        """The ways to choose an anchor's group."""
        return SELECTIONS


@dataclass(frozen=True)
class UnconditionalConfig(Settings):
    """Of unconditional models. The learning rate, K and forget_weight are the paper's for CIFAR-10.

    neighbours: K of ReTrack, None = all. bandwidth: h of the smoothed posterior mean, in units of the latents
    (`losses.retrack_target`); None = `losses.likely_bandwidth` of the pictures. esd_strength: s. expert_steps:
    fine-tuning steps of ESD's copy.
    """

    WHOLE_TYPE: ClassVar[torch.dtype] = torch.float32
    LORA: ClassVar[LoraSpec] = UNET_LORA
    operator: str = "retrack"
    forget_weight: float = 0.03
    neighbours: int | None = 10
    bandwidth: float | None = 0.0
    esd_strength: float = 1.0
    expert_steps: int = 200
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=400, batch=32, lr=1e-5, warmup=10, weight_decay=0.0, seed=5, checkpoint_s=60.0
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bandwidth is not None and self.bandwidth < 0:
            raise OptionError(f"bandwidth {self.bandwidth} is negative.")
        if (self.neighbours is not None and self.neighbours < 1) or self.expert_steps < 1:
            raise OptionError("neighbours and expert_steps must be at least 1.")
