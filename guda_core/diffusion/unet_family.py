"""Text-conditional latent diffusion in the layout of Stable Diffusion 1.x and 2.x (`StableDiffusionPipeline`).

    z_0 = (E[q(z | x)] - shift) scale,   output = unet(z_t, t, text)

The embedded model and Stable Diffusion are the same classes, so one code path serves both. Latents are the VAE's
posterior *mean*, never a sample, so that scores do not depend on a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from guda_core.diffusion import checks, sampling
from guda_core.diffusion.base import BaseModel, Card
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.files import folder_of, read_json
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.identity import KNOWN, hash_folder, identity
from guda_core.diffusion.pixels import to_pixels, to_unit
from guda_core.errors import ImageError, ModelError

LAYOUTS = ("StableDiffusionPipeline",)
SCHEDULER = Path("scheduler") / "scheduler_config.json"


def quieten_libraries() -> None:
    """Keep the libraries' progress bars and loading reports off a terminal that has its own."""
    for quiet in (diffusers_logging, transformers_logging):
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()


class StableDiffusion(BaseModel):
    """A Stable Diffusion model ready to be scored, sampled and unlearned.

    Network weights run in float32 on a CPU and in the card's type on a GPU; the network's output is float32.
    """

    @classmethod
    def describe(cls, folder: Path) -> dict[str, object] | None:
        """The fields of a card for a folder in this layout, as its own files say them; None for another layout."""
        if read_json(folder / "model_index.json").get("_class_name") not in LAYOUTS:
            return None
        vae, unet = (read_json(folder / part / "config.json") for part in ("vae", "unet"))
        scale = 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
        size = unet.get("sample_size")
        return {"resolution": size * scale if isinstance(size, int) else 512}

    @classmethod
    def load(
        cls, card: Card, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> StableDiffusion:
        """Load the card's model. dtype: None = float32 on a CPU, the card's type on a GPU.

        Raises:
            ModelError: it is missing, damaged, or cannot be scored.
        """
        folder = folder_of(card)
        checks.check_layout(card, folder, LAYOUTS)
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, safety_checker=None, requires_safety_checker=False
            )
        except Exception as e:
            raise ModelError(f"The model '{card.id}' in {folder} is damaged or incomplete: {e}") from e
        return cls(card, pipe, folder, device=torch.device(device), dtype=dtype)

    def __init__(
        self,
        card: Card,
        pipe: StableDiffusionPipeline,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        """pipe: in float32, as loaded from the folder."""
        super().__init__()
        self.card, self.folder, self.device = card, folder, device
        self.dtype = dtype or (getattr(torch, card.gpu_dtype) if device.type == "cuda" else torch.float32)
        said = read_json(folder / SCHEDULER)
        ddim = checks.ddim_of(card, pipe.scheduler, said, clip_sample=False, set_alpha_to_one=False)
        self.prediction = checks.prediction_of(card, ddim)
        self._scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)  # pixels to a latent's row
        check_parts(card, pipe, self._scale)
        parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
        self._shape = (int(pipe.unet.config.in_channels), *[card.resolution // self._scale] * 2)
        found = identity(
            parts,
            scheduler=ddim.config,
            prediction=self.prediction.kind,
            latent_shape=self._shape,
            tokenizer=pipe.tokenizer,
        )
        self.sha256 = KNOWN.get(found, found)
        pipe.scheduler = ddim
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe.to(self.device)
        if self.dtype != torch.float32:
            for module in parts.values():
                nn.Module.to(module, self.dtype)  # diffusers' own `to` warns whatever the model
            checks.check_weights(card, parts)
        self.network = pipe.unet.requires_grad_(False).eval()
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)
        pipe.vae.requires_grad_(False).eval()
        pipe.text_encoder.requires_grad_(False).eval()

    def earlier_names(self) -> tuple[str, ...]:
        return (hash_folder(self.folder),)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._shape

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        size = self.card.resolution
        if pixels.shape != (size, size, 3):
            raise ImageError(
                f"The picture has shape {pixels.shape}; this model reads {(size, size, 3)}. Resize it first."
            )
        vae = self.pipe.vae
        mean = vae.encode(to_unit(pixels).to(self.device, vae.dtype)).latent_dist.mean
        z = (mean.float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return check_finite(z, "The encoded picture").cpu()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        tok = self.pipe.tokenizer
        ids = tok(
            list(prompts), padding="max_length", truncation=True, max_length=tok.model_max_length, return_tensors="pt"
        ).input_ids
        text = self.pipe.text_encoder(ids.to(self.device)).last_hidden_state  # (B, L, D)
        return Condition({"text": check_finite(text, "The embedded prompt")})

    def tokens(self, prompt: str) -> tuple[int, int]:
        tok = self.pipe.tokenizer
        return len(tok(prompt, truncation=False, verbose=False).input_ids), int(tok.model_max_length)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        module = self.network if network is None else network
        text = condition.tensors["text"].to(self.dtype)
        return module(x_t.to(self.dtype), t, encoder_hidden_states=text).sample.float()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> np.ndarray:
        vae = self.pipe.vae
        z = latent.to(self.device, torch.float32) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return to_pixels(vae.decode(z.to(vae.dtype)).sample)

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        yield from sampling.draw(
            self,
            DDIMScheduler.from_config(self.pipe.scheduler.config),
            prompted=self.embed(prompts),
            empty=self.embed([""] * len(prompts)),
            seeds=seeds,
            steps=steps,
            guidance=guidance,
        )


def check_parts(card: Card, pipe: StableDiffusionPipeline, scale: int) -> None:
    """The parts fit each other, and nothing is asked of the network but a latent, a timestep and a prompt.

    Raises:
        ModelError: otherwise, in one sentence.
    """
    unet, name = pipe.unet.config, f"The model '{card.id}'"
    checks.check_size(card, unet.sample_size, scale=scale, where="unet/config.json")
    channels = int(pipe.vae.config.latent_channels)
    if (unet.in_channels, unet.out_channels) != (channels, channels):
        raise ModelError(
            f"{name} maps {unet.in_channels} channels to {unet.out_channels} where its VAE has {channels}: models that "
            "fill in, edit or upscale pictures cannot be scored."
        )
    wanted = [unet.class_embed_type, unet.num_class_embeds, unet.encoder_hid_dim_type, unet.time_cond_proj_dim]
    if any(v is not None for v in wanted) or unet.addition_embed_type not in (None, "text"):
        raise ModelError(
            f"{name} wants more than a prompt (class labels, sizes, another picture or the guidance), so a card of "
            f"kind '{card.kind}' cannot score it."
        )
    width = int(pipe.text_encoder.config.hidden_size)
    if unet.cross_attention_dim != width:
        raise ModelError(f"{name} reads prompts of width {unet.cross_attention_dim}; its text encoder writes {width}.")
    length, most = int(pipe.tokenizer.model_max_length), int(pipe.text_encoder.config.max_position_embeddings)
    if length > most or len(pipe.tokenizer) > int(pipe.text_encoder.config.vocab_size):
        raise ModelError(
            f"{name} has a tokenizer of {len(pipe.tokenizer)} words and up to {length} tokens; its text encoder knows "
            f"{pipe.text_encoder.config.vocab_size} and {most}."
        )
