"""Flow-matching transformers: Stable Diffusion 3 and 3.5 (Esser et al. 2024) and FLUX.1, in diffusers' layout.

    x_s = (1 - s) x_0 + s eps     output = velocity(x_s, s, condition)      target: eps - x_0   (Lipman et al. 2023)
    SNR(s) = ((1 - s) / s)^2      KL_k = 1/2 (SNR(s_{k-1}) - SNR(s_k)) ||x_0 - x0_hat||^2      x0_hat = x_s - s output

The network knows every s in (0, 1], so we choose the grid on which the likelihood is a sum: `grid`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from guda_core.diffusion import checks, sampling
from guda_core.diffusion.base_model import one_reader
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.latent import LatentModel
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ModelError

FIRST_SNR = (1 - 0.00085) / 0.00085  # of Stable Diffusion 1.x: 1175.5
STEPS = 1000
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


def grid() -> Tensor:
    """The times s_0 .. s_{T-1}, (T,) float64, at even distances from s_0 to 1.

    The SNR, and with it the weight of an error, grows without bound towards s = 0. There it weighs detail below what
    the autoencoder keeps, and no draw would be enough. So s_0 is where the SNR is that of Stable Diffusion's first
    timestep, s_0 = 1 / (1 + sqrt(1175.5)) = 0.028: all families are then scored over the same span of SNR, and nats
    mean the same. The last step, s = 1, is noise alone, SNR 0: nothing of the picture is left out at that end.

    Even distances, because the sum is nearer to its integral the smaller the steps in SNR are against the SNR, and they
    are 2 ds / (s (1 - s)) <= 7 % here but for the very last steps, whose SNR is near 0 (on Stable Diffusion's own grid
    the first step is 50 %). Where draws go is decided apart from this, by `likelihood.make_strata`.
    """
    return torch.linspace(1 / (1 + FIRST_SNR**0.5), 1, STEPS, dtype=torch.float64)


class FlowModel(LatentModel):
    """What the flow-matching families share. Conditions hold "text" (B, L, D) and "pooled" (B, P)."""

    part: ClassVar[str] = "transformer"
    without: ClassVar[Mapping[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    described: ClassVar[Mapping[str, Any]] = {"resolution": 1024, "gpu_dtype": "bfloat16"}
    needed: ClassVar[tuple[str, ...]]  # text encoders that cannot be absent
    reads: int  # tokens that its T5 reads
    packs: ClassVar[int] = 1  # channels of the network for one of a latent

    def _check_parts(self) -> None:
        name = f"The model '{self.card.id}'"
        if not isinstance(self.pipe.scheduler, FlowMatchEulerDiscreteScheduler):
            raise ModelError(
                f"{name} has the scheduler {type(self.pipe.scheduler).__name__}; flow matching needs diffusers' "
                "FlowMatchEulerDiscreteScheduler."
            )
        absent = [e for e in self.needed if getattr(self.pipe, e) is None]
        if absent:
            raise ModelError(f"{name} has no {absent[0]}.")
        network, channels = self.pipe.transformer.config, self.packs * self._shape[0]
        reads, writes = network.in_channels, network.out_channels or network.in_channels
        if (reads, writes) != (channels, channels):
            raise ModelError(
                f"{name} maps {reads} channels to {writes} where its VAE's latents give {channels}: models that fill "
                "in, edit or upscale pictures cannot be scored."
            )
        self._check_size(2 * self._scale)

    def _predicts(self) -> Prediction:
        if self.card.prediction_type not in (None, "flow"):
            raise ModelError(
                f"The card '{self.card.id}' says that the model predicts '{self.card.prediction_type}', but its kind "
                "predicts 'flow'. Correct or remove `prediction_type` in the card."
            )
        self._times = grid()
        return Prediction("flow", Schedule.flow(self._times))

    def _schedule_settings(self) -> Mapping[str, Any]:
        return {}  # the grid is ours, and the scheduler only draws

    @abstractmethod
    def velocity(self, x_s: Tensor, s: Tensor, condition: Condition, network: nn.Module, guidance: float) -> Tensor:
        """The network's output at any times s, (B,) float32. guidance: for networks that read it."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        s = self._times.to(t.device)[t].to(self.device, torch.float32)
        return self.velocity(x_t, s, condition, self.network if network is None else network, 1.0).float()

    def _tokens(self, tokenizer: Any, prompt: str, most: int) -> tuple[int, int]:
        return len(tokenizer(prompt, truncation=False, verbose=False).input_ids), most

    def _sampler(self) -> Any:
        return FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)

    def _shift(self) -> dict[str, Any]:
        """How far sampling's times are moved towards noise for a picture of this size, where the scheduler wants to be
        told: linear in the number of patches between its two bounds."""
        c, (_, h, w) = self.pipe.scheduler.config, self._shape
        if not c.use_dynamic_shifting:
            return {}
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        return {"mu": c.base_shift + slope * ((h // 2) * (w // 2) - c.base_image_seq_len)}

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        """Euler steps along the flow, with the scheduler's own shift of times."""
        distilled = self._distilled()

        def answer(x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
            strength = guidance if distilled else 1.0
            return self.velocity(x_t, (time / 1000).float(), condition, self.network, strength).float()

        yield from sampling.draw(
            self,
            self._sampler(),
            prompted=self.embed(prompts),
            empty=None if distilled else self.embed([""] * len(prompts)),
            seeds=seeds,
            steps=steps,
            guidance=guidance,
            answer=answer,
            times={**self._shift(), **self._sigmas(steps)},
        )

    def _sigmas(self, steps: int) -> dict[str, Any]:
        """The times of sampling before their shift, where they are not the scheduler's own."""
        return {}

    def _distilled(self) -> bool:
        """Whether one pass stands for guidance by the empty prompt."""
        return False


class StableDiffusion3(FlowModel):
    """Stable Diffusion 3 or 3.5. Its T5 (`text_encoder_3`) may be absent; zeros stand for its part of the text."""

    pipeline: ClassVar[Any] = StableDiffusion3Pipeline
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    needed: ClassVar[tuple[str, ...]] = encoders[:2]
    without: ClassVar[Mapping[str, Any]] = {**FlowModel.without, "text_encoder_3": None, "tokenizer_3": None}
    lora_targets: ClassVar[tuple[str, ...]] = (*ATTENTION, *FORWARD)
    reads = 256

    @one_reader
    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.reads,
        )  # fmt: skip
        text, pooled = (check_finite(x, "The embedded prompt") for x in (text, pooled))
        return Condition({"text": text, "pooled": pooled})

    @one_reader
    def tokens(self, prompt: str) -> tuple[int, int]:
        if self.pipe.text_encoder_3 is not None:
            return self._tokens(self.pipe.tokenizer_3, prompt, self.reads)
        return self._tokens(self.pipe.tokenizer, prompt, int(self.pipe.tokenizer.model_max_length))

    def velocity(self, x_s: Tensor, s: Tensor, condition: Condition, network: nn.Module, guidance: float) -> Tensor:
        text, pooled = (condition.tensors[k].to(self.dtype) for k in ("text", "pooled"))
        return network(
            hidden_states=x_s.to(self.device, self.dtype), timestep=1000 * s, encoder_hidden_states=text,
            pooled_projections=pooled,
        ).sample  # fmt: skip


class Flux(FlowModel):
    """FLUX.1. Latents are packed for the network: 2 by 2 of them, with their channels, are one token."""

    pipeline: ClassVar[Any] = FluxPipeline
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    needed: ClassVar[tuple[str, ...]] = encoders
    lora_targets: ClassVar[tuple[str, ...]] = (*ATTENTION, *FORWARD, "proj_mlp")
    packs: ClassVar[int] = 4

    def _check_parts(self) -> None:
        super()._check_parts()
        few = not self.reads_guidance and not self.pipe.scheduler.config.use_dynamic_shifting  # as [schnell] is
        self.reads = 256 if few else 512
        self.caveat = self._caveat(few)

    @property
    def reads_guidance(self) -> bool:
        """Whether the network takes the guidance as an input: it was distilled to do in one pass what takes two."""
        return bool(self.pipe.transformer.config.guidance_embeds)

    def _distilled(self) -> bool:
        return bool(self.caveat)

    def _caveat(self, few: bool) -> str:
        kind = ""
        if self.reads_guidance:
            kind = "was distilled with guidance"
        elif few:
            kind = "seems to be distilled to a few steps, as FLUX.1 [schnell] is"
        return kind and f"This FLUX {kind}, {checks.NO_LIKELIHOOD}"

    @one_reader
    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        text, pooled, _ = self.pipe.encode_prompt(list(prompts), device=self.device, max_sequence_length=self.reads)
        text, pooled = (check_finite(x, "The embedded prompt") for x in (text, pooled))
        return Condition({"text": text, "pooled": pooled})

    @one_reader
    def tokens(self, prompt: str) -> tuple[int, int]:
        return self._tokens(self.pipe.tokenizer_2, prompt, self.reads)

    def velocity(self, x_s: Tensor, s: Tensor, condition: Condition, network: nn.Module, guidance: float) -> Tensor:
        b, _, h, w = x_s.shape
        text, pooled = (condition.tensors[k].to(self.dtype) for k in ("text", "pooled"))
        as_floats: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        places = torch.zeros(h // 2, w // 2, 3, **as_floats)
        places[..., 1] += torch.arange(h // 2, device=self.device)[:, None]
        places[..., 2] += torch.arange(w // 2, device=self.device)[None, :]
        out = network(
            hidden_states=pack(x_s.to(self.device, self.dtype)), timestep=s, encoder_hidden_states=text,
            guidance=torch.full((b,), guidance, **as_floats) if self.reads_guidance else None,
            pooled_projections=pooled, img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(text.shape[1], 3, **as_floats),
        ).sample  # fmt: skip
        return unpack(out, h, w)

    def _sigmas(self, steps: int) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}


def pack(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 w/2, 4 C): each 2 by 2 square of latents becomes a token, its channels outermost."""
    b, c, h, w = x.shape
    squares = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)  # (B, h/2, w/2, C, 2, 2)
    return squares.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(x: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`."""
    b, _, wide = x.shape
    squares = x.reshape(b, h // 2, w // 2, wide // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)  # (B, C, h/2, 2, w/2, 2)
    return squares.reshape(b, wide // 4, h, w)
