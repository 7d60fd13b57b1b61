"""The contract of a base model: what scoring, unlearning and the app may ask of it. No diffusers import."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Card:
    """One line of `cards.yaml`. source: "assets" (in the repository), "folder" (a local path) or "hub" (path is a hub
    id). kind: "stable_diffusion" or "unconditional", the class that loads it."""

    id: str
    name: str
    source: str
    path: str
    resolution: int
    prediction_type: str
    gpu_dtype: str
    group_set: str
    licence: str
    kind: str = "stable_diffusion"


class BaseModel(ABC):
    """A latent (or pixel-space) diffusion model. `network` is the module that adapters attach to.

    sha256: hash of what enters a score. lock: whoever runs the network or switches its weights holds it, so that
    several visitors can use one model.
    """

    card: Card
    prediction: Prediction
    network: nn.Module
    sha256: str
    device: torch.device
    dtype: torch.dtype

    def __init__(self) -> None:
        self.lock = threading.RLock()

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained with."""
        return self.prediction.schedule

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""

    @abstractmethod
    def encode(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 at the model's resolution -> (1, C, h, w) float32 CPU: the scaled posterior *mean*."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> their condition on the model's device, a batch of as many; "" is the unconditional one."""

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

    def predict_x0(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        """The picture that the network expects behind x_t, (B, C, h, w) float32; arguments as in `predict`."""
        return self.prediction.x0_hat(self.predict(x_t, t, condition, network), x_t, t)

    @abstractmethod
    def decode(self, latent: Tensor) -> np.ndarray:
        """(B, C, h, w) scaled latents -> (B, H, W, 3) uint8."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        """DDIM with classifier-free guidance, one seed a picture: None after each step but the last, then the pictures
        (B, H, W, 3) uint8."""

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> np.ndarray:
        """What `sample` ends with: (B, H, W, 3) uint8."""
        pictures: np.ndarray | None = None
        for pictures in self.sample(prompts, seeds=seeds, steps=steps, guidance=guidance):  # noqa: B007
            pass
        assert pictures is not None
        return pictures
