"""Unconditional diffusion in pixel space (diffusers' UNet2DModel and a DDPM or DDIM schedule; Ho et al. 2020).

    x_0 = pixels / 127.5 - 1,   eps_hat = eps_theta(x_t, t),   the condition is empty

There is no autoencoder, so a "latent" is the picture itself in [-1, 1]; one-channel models read the mean of the three
channels and answer with three equal ones. Weights come from a folder or hub id that diffusers' DDPMPipeline reads, or
from modules in memory; either way the hash is of the weights, not of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from torch import Tensor, nn

from guda_core.diffusion.base import BaseModel, Card
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.diffusion.unet_family import folder_of
from guda_core.errors import ImageError, ModelError, PromptError


def hash_module(module: nn.Module, alphas_cumprod: Tensor, prediction_type: str) -> str:
    """SHA-256 over names, shapes and float32 values of the weights, the schedule and what the network predicts."""
    h = hashlib.sha256(prediction_type.encode() + alphas_cumprod.double().numpy().tobytes())
    for name, p in sorted(module.state_dict().items()):
        h.update(f"{name}{list(p.shape)}".encode())
        h.update(p.detach().float().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


class Unconditional(BaseModel):
    """A pixel-space diffusion model without a prompt, ready to be scored, sampled and unlearned.

    scheduler: any diffusers scheduler with alphas_cumprod; its settings are kept, sampling is DDIM.

    Raises:
        ModelError: the network wants class labels, estimates variances too, is not square, does not have one or three
            channels, or predicts what cannot be turned into noise.
    """

    def __init__(
        self,
        card: Card,
        *,
        denoiser: UNet2DModel,
        scheduler: object,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.card, self.device = card, torch.device(device)
        self.dtype = dtype or (getattr(torch, card.gpu_dtype) if self.device.type == "cuda" else torch.float32)
        self.scheduler = DDIMScheduler.from_config(scheduler.config, set_alpha_to_one=False)
        alphas_cumprod, kind = self.scheduler.alphas_cumprod, str(self.scheduler.config.prediction_type)
        self._check(denoiser)
        self.prediction = Prediction(kind, Schedule.ddpm(alphas_cumprod))
        self.sha256 = hash_module(denoiser, alphas_cumprod, kind)
        self.network = denoiser.to(self.device).requires_grad_(False).eval()
        if next(denoiser.parameters()).dtype != self.dtype:
            denoiser.to(self.dtype)
        self._shape = (int(denoiser.config.in_channels), card.resolution, card.resolution)

    @classmethod
    def from_card(
        cls, card: Card, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Unconditional:
        """Load the card's folder or hub model.

        Raises:
            ModelError: it is missing, damaged, or of a kind that cannot be scored.
        """
        folder = folder_of(card)
        try:
            pipe = DDPMPipeline.from_pretrained(folder, use_safetensors=True)
        except Exception as e:
            raise ModelError(f"The model '{card.id}' in {folder} is damaged or incomplete: {e}") from e
        return cls(card, denoiser=pipe.unet, scheduler=pipe.scheduler, device=device, dtype=dtype)

    def _check(self, denoiser: UNet2DModel) -> None:
        name, config = self.card.id, denoiser.config
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            raise ModelError(f"The model '{name}' wants class labels, so it is not unconditional.")
        if config.in_channels != config.out_channels or config.in_channels not in (1, 3):
            raise ModelError(
                f"The model '{name}' maps {config.in_channels} channels to {config.out_channels}; as many out as in, "
                "one or three, can be scored (estimated variances cannot)."
            )
        if config.sample_size not in (None, self.card.resolution):
            raise ModelError(
                f"The model '{name}' is made for {json.dumps(config.sample_size)} pixels, its card says "
                f"{self.card.resolution}."
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._shape

    def encode(self, pixels: np.ndarray) -> Tensor:
        c, h, w = self._shape
        if pixels.shape != (h, w, 3):
            raise ImageError(f"The picture has shape {pixels.shape}; this model reads {(h, w, 3)}. Resize it first.")
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1.0  # (1, 3, H, W)
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
        y = ((latent.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        return y.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy().copy()

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        """DDIM, one seed a picture. Prompts must be empty; guidance needs two predictions, so it changes nothing."""
        condition = self.embed(prompts)
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)
        z = torch.stack([torch.randn(self._shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
        z = (z * scheduler.init_noise_sigma).to(self.device)
        for i, t in enumerate(scheduler.timesteps):
            with self.lock, torch.no_grad():
                z = scheduler.step(self.predict(z, t.expand(len(z)).to(self.device), condition), t, z).prev_sample
            yield self.decode(z) if i == len(scheduler.timesteps) - 1 else None
