"""The contract of a base model: what scoring, unlearning and the app may ask of it. No diffusers import."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import wraps
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ModelError

T = TypeVar("T")
# Layers that a LoRA changes by default, by the endings of their names: attentions, feed-forwards, residual blocks; in
# pixel space, where there are no feed-forwards, also the time's way into the blocks.
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
PIXEL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "time_emb_proj")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Card:
    """A base model by name. Read strictly: an unknown field, or a value of another type, is a ValidationError.

    source: "assets" (shipped), "folder" (a local path), "file" (a single .safetensors file) or "hub" (path is a
    Hub id). resolution: of its square pictures,
    in pixels. prediction_type: what the network predicts, where the model's own files do not say it; None = as they
    say. gpu_dtype: the type that the weights run in on a GPU. group_set: scored with it unless another is named; ""
    = none (`data.groups.chosen_set`). kind:
    the family that loads it (`diffusion.FAMILIES`). lora: a LoRA file that is merged into the model at load; "" = none.
    encoder: what sees likeness between pictures, "KIND:PLACE"; "" = what suits its size (`data.encoders`).
    unlearning: settings that its unlearning starts from (`unlearning.defaults`).
    only_groups: whether the model was trained on the pictures of that group set and on no others.
    """

    id: str
    name: str
    source: Literal["assets", "folder", "file", "hub"]
    path: str
    resolution: PositiveInt
    prediction_type: Literal["epsilon", "v_prediction", "flow"] | None = None
    gpu_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    group_set: str = ""
    licence: str = "not stated"
    kind: str = "stable_diffusion"
    lora: str = ""
    encoder: str = ""
    unlearning: dict[str, Any] = field(default_factory=dict, hash=False)
    only_groups: bool = False


def one_reader(read: Callable[..., T]) -> Callable[..., T]:
    """A method of a model that uses a tokenizer: one thread at a time."""

    @wraps(read)
    def alone(self: Any, *args: Any, **more: Any) -> T:
        with self.reading:
            return read(self, *args, **more)

    return alone


class BaseModel(ABC):
    """A latent (or pixel-space) diffusion model. `network` is the module that adapters attach to.

    sha256: the model's identity, a hash of what enters a score (`identity`); adapters, features and reports name it.
    lock: whoever runs the network or switches its weights holds it, so that several visitors can use one model.
    reading: whoever uses a tokenizer holds it, since a tokenizer's settings change while it reads; `embed` also while
    the text encoders work.
    lora_targets: name endings of the layers that a LoRA changes by default. keeps_shape: whether pictures may also have
    the other sizes of its resolution (`sizes`). caveat: a sentence to show beside this
    model's scores, where they mean something else than other models'; else empty.
    """

    card: Card
    prediction: Prediction
    network: nn.Module
    sha256: str
    device: torch.device
    dtype: torch.dtype
    lora_targets: ClassVar[tuple[str, ...]] = UNET_TARGETS
    keeps_shape: ClassVar[bool] = False
    caveat: str = ""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reading = threading.RLock()
        self._earlier: tuple[str, ...] | None = None
        if sys.platform == "darwin":
            torch.backends.nnpack.set_flags(False)  # a Mac's CPU takes it from 16 pictures on: slow, and less exact

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({self.card.id!r}, kind={self.card.kind!r}, device='{self.device}', dtype='{dtype}')"
        )

    def __copy__(self) -> Self:
        out = object.__new__(type(self))
        vars(out).update(vars(self))
        return out

    def __reduce__(self) -> NoReturn:
        raise ModelError(f"A loaded model cannot be sent to another process. Give its name: '{self.card.id}'.")

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained with."""
        return self.prediction.schedule

    def goes_by(self, sha256: str) -> bool:
        """Whether that is this model's identity, today's or the one that version 0.1 gave it."""
        if sha256 != self.sha256 and self._earlier is None:
            self._earlier = self.earlier_names()
        return sha256 == self.sha256 or sha256 in (self._earlier or ())

    def earlier_names(self) -> tuple[str, ...]:
        """What version 0.1 called this model; asked once, since all its files may have to be read."""
        return ()

    @contextmanager
    def unloaded(self) -> Iterator[None]:
        """Within the block only the network is on the device. Pictures and prompts can be encoded in `loaded`."""
        yield

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Within the block all parts are on the device, also within `unloaded`."""
        yield

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a square picture."""

    @property
    def latent_rule(self) -> str:
        """How latents are scaled, where the hash stayed when that changed: kept ones go by it. Else ""."""
        return ""

    def latent_shape_of(self, pixels: np.ndarray) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a picture (H, W, 3)."""
        return self.latent_shape

    @abstractmethod
    def encode(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 at the model's resolution -> (1, C, h, w) float32 CPU: the scaled posterior *mean*.

        Pictures are square; where the model keeps shapes, they may have any of `sizes.sizes`.

        Raises:
            ImageError: the picture has another size.
            ModelError: a value is not finite.
        """

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> their condition on the model's device, a batch of as many; "" is the unconditional one.

        Raises:
            PromptError: the model reads no prompts, and one is not empty.
            ModelError: a value is not finite.
        """

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The transformers' tokenizers that read a prompt, () of a model that reads none."""
        return ()

    @abstractmethod
    def tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt with start and end, most the model reads): more than that is cut off."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        """The network's own output, (B, C, h, w) float32 on the device; what it stands for, `prediction` knows. Keeps
        gradients.

        x_t: (B, C, h, w); t: (B,) int64, steps of the schedule; condition: a batch of B. network: another module in
        place of the model's own, e.g. the student of an unlearning.
        """

    def predict_eps(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        """The noise that the network expects in x_t, (B, C, h, w) float32; arguments as in `predict`."""
        return self.prediction.eps_hat(self.predict(x_t, t, condition, network), x_t, t)

    @abstractmethod
    def decode(self, latent: Tensor) -> np.ndarray:
        """(B, C, h, w) scaled latents -> (B, H, W, 3) uint8. Raises ModelError when a value is not finite."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        """Draw with classifier-free guidance, one seed a picture: None after each step but the last, then the pictures
        (B, H, W, 3) uint8.

        Raises:
            ModelError: a value is not finite, so there is no picture.
        """

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> np.ndarray:
        """What `sample` ends with: (B, H, W, 3) uint8."""
        pictures: np.ndarray | None = None
        for pictures in self.sample(prompts, seeds=seeds, steps=steps, guidance=guidance):  # noqa: B007
            pass
        assert pictures is not None
        return pictures
