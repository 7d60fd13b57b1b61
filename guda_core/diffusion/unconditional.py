"""Unconditional diffusion in pixel space (diffusers' UNet2DModel and a DDPM or DDIM schedule; Ho et al. 2020).

    x_0 = pixels / 127.5 - 1,   output = unet(x_t, t),   the condition is empty

There is no autoencoder, so a "latent" is the picture itself in [-1, 1]; one-channel models read the mean of the three
channels and answer with three equal ones. Weights come from a folder or hub id that diffusers' DDPMPipeline reads, or
from modules in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from torch import Tensor, nn

from guda_core.diffusion import checks, sampling
from guda_core.diffusion.base_model import PIXEL_TARGETS, BaseModel, Card
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.identity import hash_module, identity
from guda_core.diffusion.memory import damaged
from guda_core.diffusion.model_files import folder_of, read_json
from guda_core.diffusion.pixels import to_pixels, to_unit
from guda_core.errors import ImageError, ModelError, PromptError

LAYOUTS = ("DDPMPipeline", "DDIMPipeline")


class Unconditional(BaseModel):
    """A pixel-space diffusion model without a prompt, ready to be scored, sampled and unlearned.

    scheduler: any of diffusers with a DDPM's schedule; its settings are kept, sampling is DDIM. said: those that the
    model's files state; None = all.

    Raises:
        ModelError: it cannot be scored.
    """

    lora_targets: ClassVar[tuple[str, ...]] = PIXEL_TARGETS

    @classmethod
    def describe(cls, folder: Path) -> dict[str, object] | None:
        """The fields of a card for a folder in this layout, as its own files say them; None for another layout."""
        if read_json(folder / "model_index.json").get("_class_name") not in LAYOUTS:
            return None
        size = read_json(folder / "unet" / "config.json").get("sample_size")
        return {"resolution": size if isinstance(size, int) else 32, "gpu_dtype": "float32"}

    @classmethod
    def load(cls, card: Card, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Unconditional:
        """Load the card's folder or hub model. dtype: None = float32 on a CPU, the card's type on a GPU.

        Raises:
            ModelError: it is missing, damaged, or cannot be scored.
        """
        folder = folder_of(card)
        checks.check_layout(card, folder, LAYOUTS)
        with damaged(f"The model '{card.id}' in {folder} is damaged or incomplete"):
            pipe = DDPMPipeline.from_pretrained(folder, use_safetensors=True)
        said = read_json(folder / "scheduler" / "scheduler_config.json")
        return cls(card, denoiser=pipe.unet, scheduler=pipe.scheduler, said=said, device=device, dtype=dtype)

    def __init__(
        self,
        card: Card,
        *,
        denoiser: UNet2DModel,
        scheduler: Any,
        said: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.card, self.device = card, torch.device(device)
        self.dtype = dtype or (getattr(torch, card.gpu_dtype) if self.device.type == "cuda" else torch.float32)
        self.scheduler = checks.ddim_of(
            card, scheduler, scheduler.config if said is None else said, set_alpha_to_one=False
        )
        self.prediction = checks.prediction_of(card, self.scheduler)
        check_network(card, denoiser)
        self._shape = (int(denoiser.config.in_channels), card.resolution, card.resolution)
        self.sha256 = identity(
            {"unet": denoiser},
            scheduler=self.scheduler.config,
            prediction=self.prediction.kind,
            latent_shape=self._shape,
        )
        self._earlier = (hash_module(denoiser, self.scheduler.alphas_cumprod, self.prediction.kind),)
        self.network = denoiser.to(self.device).requires_grad_(False).eval()
        if next(denoiser.parameters()).dtype != self.dtype:
            denoiser.to(self.dtype)
            checks.check_weights(card, {"unet": denoiser})

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._shape

    def encode(self, pixels: np.ndarray) -> Tensor:
        c, h, w = self._shape
        if pixels.shape != (h, w, 3):
            raise ImageError(f"The picture has shape {pixels.shape}; this model reads {(h, w, 3)}. Resize it first.")
        x = to_unit(pixels)  # (1, 3, H, W)
        return x.mean(dim=1, keepdim=True) if c == 1 else x

    def embed(self, prompts: Sequence[str]) -> Condition:
        if any(prompts):
            raise PromptError("This model is unconditional: it reads no prompt. Leave the prompt empty.")
        return Condition({}, len(prompts))

    def tokens(self, prompt: str) -> tuple[int, int]:
        return len(prompt.split()), 0

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        module = self.network if network is None else network
        return module(x_t.to(self.dtype), t).sample.float()

    def decode(self, latent: Tensor) -> np.ndarray:
        return to_pixels(latent)

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        """DDIM, one seed a picture. Prompts must be empty; guidance needs two predictions, so it changes nothing."""
        yield from sampling.draw(
            self,
            DDIMScheduler.from_config(self.scheduler.config),
            prompted=self.embed(prompts),
            empty=None,
            seeds=seeds,
            steps=steps,
            guidance=guidance,
        )


def check_network(card: Card, denoiser: UNet2DModel) -> None:
    """The network maps a square picture to another, and wants nothing else. Raises ModelError otherwise."""
    config = denoiser.config
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ModelError(f"The model '{card.id}' wants class labels, so it is not unconditional.")
    if config.in_channels != config.out_channels or config.in_channels not in (1, 3):
        raise ModelError(
            f"The model '{card.id}' maps {config.in_channels} channels to {config.out_channels}; as many out as in, "
            "one or three, can be scored (estimated variances cannot)."
        )
    checks.check_size(card, config.sample_size, scale=1, where="unet/config.json")
