"""The contract of a base model: what scoring, unlearning and the app may ask of it. No diffusers import.

Notation (Ho et al. 2020): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, with t in 0 .. T-1
as diffusers counts.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guda_core.errors import ModelError


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


@dataclass(frozen=True)
class Schedule:
    """The noise schedule. alphas_cumprod: (T,) float64, decreasing, alpha_bar_t in (0, 1)."""

    alphas_cumprod: Tensor

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t for t: (B,) int64; x_0, eps: (B, C, h, w) float32."""
        ab = self.alphas_cumprod[t].to(torch.float32)[:, None, None, None]  # (B, 1, 1, 1)
        return ab.sqrt() * x_0 + (1 - ab).sqrt() * eps


def to_eps(output: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, prediction_type: str) -> Tensor:
    """The network's output as eps, float32: identity for "epsilon"; for "v_prediction"
    eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t (Salimans & Ho 2022, eq. in appendix D).

    Raises:
        ModelError: any other prediction type.
    """
    if prediction_type == "epsilon":
        return output.float()
    if prediction_type == "v_prediction":
        ab = schedule.alphas_cumprod[t.cpu()].to(device=output.device, dtype=torch.float32)[:, None, None, None]
        return ab.sqrt() * output.float() + (1 - ab).sqrt() * x_t.float()
    raise ModelError(
        f"This model predicts '{prediction_type}'. Only 'epsilon' and 'v_prediction' can be turned into the noise "
        "estimate that the ELBO needs."
    )


class BaseModel(ABC):
    """A latent (or pixel-space) diffusion model. `denoiser` is the module that adapters attach to.

    sha256: hash of the weights that enter a score (denoiser, text encoder, VAE). lock: whoever runs the denoiser or
    switches its weights holds it, so that several visitors can use one model.
    """

    card: Card
    schedule: Schedule
    network: nn.Module
    sha256: str
    device: torch.device
    dtype: torch.dtype

    def __init__(self) -> None:
        self.lock = threading.RLock()

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""

    @abstractmethod
    def encode(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 at the model's resolution -> (1, C, h, w) float32 CPU: the scaled posterior *mean*."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (B, L, D) conditioning on the model's device; "" is the unconditional one."""

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The transformers' tokenizers that read a prompt, () of a model that reads none."""
        return ()

    @abstractmethod
    def tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt with start and end, most the model reads): more than that is cut off."""

    @abstractmethod
    def predict_eps(self, x_t: Tensor, t: Tensor, cond: Tensor, denoiser: nn.Module | None = None) -> Tensor:
        """eps_hat (B, C, h, w) float32 on the device; x_t: (B, C, h, w), t: (B,), cond: (B, L, D). Keeps gradients.

        denoiser: another module in place of the model's own, e.g. the student of an unlearning.
        """

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
