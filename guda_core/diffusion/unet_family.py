"""Stable Diffusion with a UNet: 1.x, 2.x (Rombach et al. 2022) and XL (Podell et al. 2023), in diffusers' layout.

    output = unet(z_t, t, condition)        target: eps, or v = alpha_t eps - sigma_t z_0   (Salimans & Ho 2022)

The embedded model and Stable Diffusion 1.5 are the same class, so one code path serves both. The schedule may end in
pure noise ("zero terminal SNR", Lin et al. 2024), for models that predict v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from guda_core.diffusion import checks
from guda_core.diffusion.base_model import one_reader
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.identity import hash_folder
from guda_core.diffusion.latent import LatentModel
from guda_core.diffusion.model_files import read_json
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.single_file import SCHEDULER, schedule_of
from guda_core.errors import ModelError

OF_FEW_STEPS = ("LCMScheduler", "TCDScheduler")  # which only distilled models come with


class StableDiffusion(LatentModel):
    """Stable Diffusion 1.x or 2.x. Its condition is "text", (B, L, D): the text encoder's last layer."""

    pipeline: ClassVar[Any] = StableDiffusionPipeline
    part: ClassVar[str] = "unet"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    without: ClassVar[Mapping[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    vae_dtype: ClassVar[torch.dtype | None] = None
    addition: ClassVar[tuple[str | None, ...]] = (None, "text")  # what the UNet may read beside the text

    def _predicts(self) -> Prediction:
        own = self.card.source == "file"
        said = schedule_of(self.card, self.folder) if own else read_json(self.folder / SCHEDULER)
        if (kind := type(self.pipe.scheduler).__name__) in OF_FEW_STEPS:
            self.caveat = f"This model seems to be distilled to a few steps (it has the {kind}), {checks.NO_LIKELIHOOD}"
        changes: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}
        if self.pipe.scheduler.config.get("rescale_betas_zero_snr"):
            changes["timestep_spacing"] = "trailing"  # drawing must begin at the step that is noise alone
        self.pipe.scheduler = checks.ddim_of(self.card, self.pipe.scheduler, said, **changes)
        return checks.prediction_of(self.card, self.pipe.scheduler)

    def _check_parts(self) -> None:
        unet, name = self.pipe.unet.config, f"The model '{self.card.id}'"
        self._check_size(self._scale)
        channels = self._shape[0]
        if (unet.in_channels, unet.out_channels) != (channels, channels):
            raise ModelError(
                f"{name} maps {unet.in_channels} channels to {unet.out_channels} where its VAE has {channels}: models "
                "that fill in, edit or upscale pictures cannot be scored."
            )
        wanted = [unet.class_embed_type, unet.num_class_embeds, unet.encoder_hid_dim_type, unet.time_cond_proj_dim]
        if any(v is not None for v in wanted) or unet.addition_embed_type not in self.addition:
            raise ModelError(
                f"{name} wants more than a prompt (class labels, sizes, another picture or the guidance), so a card of "
                f"kind '{self.card.kind}' cannot score it."
            )
        encoders = [getattr(self.pipe, e) for e in self.encoders]
        if None in encoders:
            raise ModelError(f"{name} has no {self.encoders[encoders.index(None)]}, so it does not draw alone.")
        widths = [int(e.config.hidden_size) for e in encoders]
        if unet.cross_attention_dim != sum(widths):
            writes = f"text encoder writes {widths[0]}" if len(widths) == 1 else f"text encoders write {widths}"
            raise ModelError(f"{name} reads prompts of width {unet.cross_attention_dim}; its {writes}.")

    def _place(self, parts: Mapping[str, nn.Module]) -> None:
        super()._place(parts)
        if self.device.type == "cpu" and self.dtype == torch.float32:  # other types are faster without
            self.network.to(memory_format=torch.channels_last)

    def earlier_names(self) -> tuple[str, ...]:
        known = type(self) is StableDiffusion and self.card.source != "file" and not self.card.lora
        return (hash_folder(self.folder),) if known else ()

    @one_reader
    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        tok = self.pipe.tokenizer
        ids = tok(
            list(prompts), padding="max_length", truncation=True, max_length=tok.model_max_length, return_tensors="pt"
        ).input_ids
        text = self.pipe.text_encoder(ids.to(self.device)).last_hidden_state  # (B, L, D)
        return Condition({"text": check_finite(text, "The embedded prompt")})

    @one_reader
    def tokens(self, prompt: str) -> tuple[int, int]:
        tok = self.pipe.tokenizer
        return len(tok(prompt, truncation=False, verbose=False).input_ids), int(tok.model_max_length)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        module = self.network if network is None else network
        text = condition.tensors["text"].to(self.dtype)
        return module(x_t.to(self.dtype), t, encoder_hidden_states=text, **self._more(condition, x_t)).sample.float()

    def _more(self, condition: Condition, x_t: Tensor) -> dict[str, Any]:
        """What else the network reads of the condition, and of the latents' size."""
        return {}

    def _sampler(self) -> DDIMScheduler:
        scheduler: Any = DDIMScheduler.from_config(self.pipe.scheduler.config)
        return scheduler


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL.

    Its condition is "text" (B, L, D1 + D2), the last layer but one of both text encoders; "pooled" (B, P), the second
    one's projection; and "sizes" (B, 6): height, width, top, left of the crop, height and width, for a picture that
    was neither scaled nor cropped; for latents that are not square, height and width are theirs. The empty prompt is
    all zeros where the model was trained so.
    """

    pipeline: ClassVar[Any] = StableDiffusionXLPipeline
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    without: ClassVar[Mapping[str, Any]] = {"add_watermarker": False, "image_encoder": None, "feature_extractor": None}
    vae_dtype: ClassVar[torch.dtype | None] = torch.float32  # in float16 it overflows
    addition: ClassVar[tuple[str | None, ...]] = ("text_time",)
    described: ClassVar[Mapping[str, Any]] = {"resolution": 1024}

    @one_reader
    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        if self.pipe.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(p) for p in prompts], device=text.device, dtype=text.dtype)
            text, pooled = text * said[:, None, None], pooled * said[:, None]
        side = float(self.card.resolution)
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], dtype=torch.float32, device=self.device)
        text, pooled = (check_finite(x, "The embedded prompt") for x in (text, pooled))
        return Condition({"text": text, "pooled": pooled, "sizes": sizes.repeat(len(prompts), 1)})

    @property
    def latent_rule(self) -> str:
        return "by channel" if isinstance(self._shift_and_scale()[0], Tensor) else ""

    def _shift_and_scale(self) -> tuple[Any, Any]:
        config = self.pipe.vae.config
        if None in (config.latents_mean, config.latents_std):
            return super()._shift_and_scale()
        mean, std = (
            torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )
        return mean, config.scaling_factor / std

    def _more(self, condition: Condition, x_t: Tensor) -> dict[str, Any]:
        pooled, sizes = condition.tensors["pooled"], condition.tensors["sizes"]
        if tuple(x_t.shape[1:]) != self.latent_shape:
            h, w = (float(n * self._scale) for n in x_t.shape[2:])
            sizes = torch.tensor([[h, w, 0.0, 0.0, h, w]], dtype=torch.float32, device=sizes.device).expand(
                len(sizes), 6
            )
        return {"added_cond_kwargs": {"text_embeds": pooled.to(self.dtype), "time_ids": sizes.to(self.dtype)}}
