"""Text-conditional latent diffusion in the Stable Diffusion 1.x layout (diffusers' `StableDiffusionPipeline`).

The embedded model and Stable Diffusion 1.5 are the same classes, so one code path serves both. Latents are the VAE's
posterior *mean* times `scaling_factor`, never a sample, so that scores do not depend on a draw.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from guda_core.diffusion.base import BaseModel, Card, Schedule, to_eps
from guda_core.errors import ModelError
from guda_core.paths import ASSETS

log = logging.getLogger(__name__)
PARTS = ("unet", "text_encoder", "vae", "scheduler", "tokenizer")
WEIGHED = ("unet", "text_encoder", "vae")  # what enters a score, besides the schedule


def quieten_libraries() -> None:
    """Keep the libraries' progress bars and loading reports off a terminal that has its own."""
    for quiet in (diffusers_logging, transformers_logging):
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()


def folder_of(card: Card) -> Path:
    """The local folder of a card's weights; hub models are downloaded into the hub's own cache.

    Raises:
        ModelError: the folder is missing, or the hub cannot be reached and holds no earlier copy.
    """
    if card.source in ("assets", "folder"):
        folder = ASSETS / card.path if card.source == "assets" else Path(card.path)
        if not (folder / "model_index.json").is_file():
            raise ModelError(
                f"The model '{card.id}' is not in {folder}. Check out the repository with its assets, or train it with "
                "`python -m experiments.train`."
            )
        return folder
    try:
        return Path(DiffusionPipeline.download(card.path, use_safetensors=True))
    except Exception as e:
        raise ModelError(
            f"The model '{card.id}' ({card.path}) could not be had from the Hugging Face Hub: {type(e).__name__}. "
            "Connect to the internet once so that it is cached, or set HF_HOME to a cache that holds it, or use the "
            "bundled model (GUDA_MODEL=emoji)."
        ) from e


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of the weights and configs that enter a score."""
    h = hashlib.sha256()
    files = [p for part in WEIGHED for p in (folder / part).glob("*.safetensors")]
    files += [folder / part / "config.json" for part in WEIGHED] + [folder / "scheduler" / "scheduler_config.json"]
    for p in sorted(files):
        h.update(p.relative_to(folder).as_posix().encode() + b"\0")
        h.update(hashlib.sha256(p.read_bytes()).digest())
    return h.hexdigest()


class StableDiffusion(BaseModel):
    """A Stable Diffusion 1.x model ready to be scored, sampled and unlearned.

    Network weights run in float32 on a CPU and in the card's dtype on a GPU; noise estimates come out as float32.
    """

    def __init__(self, card: Card, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> None:
        super().__init__()
        folder = folder_of(card)
        self.card = card
        self.device = torch.device(device)
        self.dtype = dtype or (getattr(torch, card.gpu_dtype) if self.device.type == "cuda" else torch.float32)
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, dtype=self.dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
            )
            self.sha256 = hash_folder(folder)
        except Exception as e:
            raise ModelError(f"The model '{card.id}' in {folder} is damaged or incomplete: {e}") from e
        if pipe.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"The model '{card.id}' predicts '{pipe.scheduler.config.prediction_type}'; only 'epsilon' and "
                "'v_prediction' can be scored."
            )
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False)
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe.to(self.device)
        self.prediction_type: str = pipe.scheduler.config.prediction_type
        self.schedule = Schedule(pipe.scheduler.alphas_cumprod.double())
        self.network = pipe.unet.requires_grad_(False).eval()
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)
        pipe.vae.requires_grad_(False).eval()
        pipe.text_encoder.requires_grad_(False).eval()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1.0  # (1, 3, H, W)
        vae = self.pipe.vae
        mean = vae.encode(x.to(self.device, vae.dtype)).latent_dist.mean
        z = (mean.float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        if not torch.isfinite(z).all():
            raise ModelError("The VAE gave values that are not finite. Set `gpu_dtype: float32` in the model's card.")
        return z.cpu()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        tok = self.pipe.tokenizer
        ids = tok(
            list(prompts), padding="max_length", truncation=True, max_length=tok.model_max_length, return_tensors="pt"
        ).input_ids
        return self.pipe.text_encoder(ids.to(self.device)).last_hidden_state  # (B, L, D)

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        return (self.pipe.tokenizer,)

    def tokens(self, prompt: str) -> tuple[int, int]:
        tok = self.pipe.tokenizer
        return len(tok(prompt, truncation=False, verbose=False).input_ids), int(tok.model_max_length)

    def predict_eps(self, x_t: Tensor, t: Tensor, cond: Tensor, denoiser: nn.Module | None = None) -> Tensor:
        return to_eps(self.denoise(x_t, t, cond, denoiser), x_t, t, self.schedule, self.prediction_type)

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tensor, denoiser: nn.Module | None = None) -> Tensor:
        """The network's own output (epsilon or v), float32."""
        network = self.network if denoiser is None else denoiser
        return network(x_t.to(self.dtype), t, encoder_hidden_states=cond.to(self.dtype)).sample.float()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> np.ndarray:
        vae = self.pipe.vae
        z = latent.to(self.device, torch.float32) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        y = vae.decode(z.to(vae.dtype)).sample.float()
        return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        shape = self.latent_shape
        z = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
        z = (z * scheduler.init_noise_sigma).to(self.device)
        cond = torch.cat([self.embed(prompts), self.embed([""] * len(prompts))])  # (2 B, L, D)
        for i, t in enumerate(scheduler.timesteps):
            with self.lock, torch.no_grad():
                ts = t.expand(2 * len(prompts)).to(self.device)
                prompted, empty = self.denoise(torch.cat([z, z]), ts, cond).chunk(2)
                z = scheduler.step(empty + guidance * (prompted - empty), t, z).prev_sample
            yield self.decode(z) if i == len(scheduler.timesteps) - 1 else None
