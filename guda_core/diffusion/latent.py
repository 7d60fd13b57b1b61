"""What all models with an autoencoder and text encoders share (Rombach et al. 2022), over one of diffusers' pipelines.

    z_0 = (E[q(z | x)] - shift) scale          x = D(z_0 / scale + shift)

Latents are the autoencoder's posterior *mean*, never a sample, so that scores do not depend on a draw. The families are
in `unet_family` and `flow_family`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from guda_core.diffusion import checks, sampling
from guda_core.diffusion.base_model import BaseModel, Card
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.identity import KNOWN, identity, with_lora
from guda_core.diffusion.merging import merge, read_lora
from guda_core.diffusion.model_files import INDEX, read_json
from guda_core.diffusion.opening import open_pipeline
from guda_core.diffusion.pixels import to_pixels, to_unit
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.sizes import sizes
from guda_core.errors import ImageError, ModelError


class LatentModel(BaseModel):
    """A latent diffusion model ready to be scored, sampled and unlearned.

    Weights run in float32 on a CPU and in the card's type on a GPU; the network's output is float32.

    pipeline: the class of diffusers that holds the parts. part: the name of its network. encoders: names of its text
    encoders. without: arguments of the pipeline; a part that is None there may be absent. vae_dtype: the autoencoder's
    type; None is the network's. described: fields of a card that the family's files do not say.
    """

    pipeline: ClassVar[type[DiffusionPipeline]]
    part: ClassVar[str]
    encoders: ClassVar[tuple[str, ...]]
    without: ClassVar[Mapping[str, Any]] = {}
    vae_dtype: ClassVar[torch.dtype | None] = torch.float32
    described: ClassVar[Mapping[str, Any]] = {"resolution": 512}
    keeps_shape: ClassVar[bool] = True

    @classmethod
    def describe(cls, folder: Path) -> dict[str, object] | None:
        """The fields of a card for a folder in this layout, as its own files say them; None for another layout."""
        if read_json(folder / INDEX).get("_class_name") != cls.pipeline.__name__:
            return None
        vae, network = (read_json(folder / part / "config.json") for part in ("vae", cls.part))
        size, blocks = network.get("sample_size"), vae.get("block_out_channels", (0,))
        said = {"resolution": size * 2 ** (len(blocks) - 1)} if isinstance(size, int) else {}
        return {**cls.described, **said}

    @classmethod
    def load(cls, card: Card, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Self:
        """Load the card's model. dtype: None = float32 on a CPU, the card's type on a GPU.

        Raises:
            ModelError: it is missing, damaged, or cannot be scored, or the card's LoRA does not fit it.
        """
        pipe, folder = open_pipeline(card, cls.pipeline, (cls.part, "vae", *cls.encoders), cls.without)
        return cls(card, pipe, folder, device=torch.device(device), dtype=dtype)

    def __init__(self, card: Card, pipe: Any, folder: Path, *, device: torch.device, dtype: torch.dtype | None) -> None:
        """pipe: in the types that it is stored in. folder: of its settings."""
        super().__init__()
        self.card, self.pipe, self.folder, self.device = card, pipe, folder, device
        self.dtype = dtype or (getattr(torch, card.gpu_dtype) if device.type == "cuda" else torch.float32)
        self._scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)  # pixels to a latent's row
        self._shape = (int(pipe.vae.config.latent_channels), *[card.resolution // self._scale] * 2)
        self.prediction = self._predicts()
        self._check_tokenizers()
        self._check_parts()
        parts = {p: m for p in (self.part, "vae", *self.encoders) if (m := getattr(pipe, p)) is not None}
        self.sha256 = self._identity(parts)
        if card.lora:
            lora = read_lora(Path(card.lora))
            merge(pipe, lora, (self.part, *self.encoders), self.dtype)
            self.sha256 = with_lora(self.sha256, lora.tensors, lora.settings)
        self._place(parts)

    @abstractmethod
    def _predicts(self) -> Prediction:
        """The schedule and what the network predicts, as the card and the model's files say."""

    @abstractmethod
    def _check_parts(self) -> None:
        """Raises ModelError when the parts do not fit each other, or want more than a latent, a time and a prompt."""

    @abstractmethod
    def _sampler(self) -> Any:
        """A fresh scheduler of diffusers, to draw pictures with."""

    def _schedule_settings(self) -> Mapping[str, Any]:
        """Of the scheduler: what the identity depends on."""
        return self.pipe.scheduler.config

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        return tuple(self._tokenizers().values())

    def _tokenizers(self) -> dict[str, Any]:
        names = {e: e.replace("text_encoder", "tokenizer") for e in self.encoders}
        return {t: getattr(self.pipe, t) for e, t in names.items() if getattr(self.pipe, e) is not None}

    def _identity(self, parts: Mapping[str, nn.Module]) -> str:
        first, *others = self._tokenizers().values()
        zeros = self.pipe.config.get("force_zeros_for_empty_prompt")
        found = identity(
            parts,
            scheduler=self._schedule_settings(),
            prediction=self.prediction.kind,
            latent_shape=self._shape,
            tokenizer=first,
            others=others,
            more={"empty prompt": "zeros"} if zeros else {},
        )
        return KNOWN.get(found, found)

    def _check_tokenizers(self) -> None:
        for name, tokenizer in self._tokenizers().items():
            encoder = name.replace("tokenizer", "text_encoder")
            config = getattr(self.pipe, encoder).config
            length, most = int(tokenizer.model_max_length), getattr(config, "max_position_embeddings", None)
            if not 2 < len(tokenizer) <= config.vocab_size or (most is not None and length > most):
                raise ModelError(
                    f"The model '{self.card.id}' has a {name} of {len(tokenizer)} words and up to {length} tokens; its "
                    f"{encoder} knows {config.vocab_size} and {most or 'any number'}. One of them is damaged or of "
                    "another model."
                )

    def _check_size(self, multiple: int) -> None:
        """The network's size is the card's, and `multiple` divides it."""
        sample = getattr(self.pipe, self.part).config.get("sample_size")
        checks.check_size(self.card, sample, scale=self._scale, where=f"{self.part}/config.json")
        self._multiple = multiple
        if self.card.resolution % multiple:
            raise ModelError(
                f"The model '{self.card.id}' needs a resolution that {multiple} divides, not {self.card.resolution}. "
                "Correct `resolution` in its card."
            )

    def _place(self, parts: Mapping[str, nn.Module]) -> None:
        """All parts on the device, in the types that they run in, frozen."""
        self.pipe.set_progress_bar_config(disable=True)
        for name, module in parts.items():
            own = self.vae_dtype if name == "vae" and self.vae_dtype is not None else self.dtype
            nn.Module.to(module, self.device, own)  # diffusers' own `to` warns whatever the model
            module.requires_grad_(False).eval()
            if own == torch.float16:
                _keep_precise(module)
        if self.dtype != torch.float32:
            checks.check_weights(self.card, parts)
        self.network = getattr(self.pipe, self.part)

    @contextmanager
    def unloaded(self) -> Iterator[None]:
        self._move_others("cpu")
        try:
            yield
        finally:
            self._move_others(self.device)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        away = self.pipe.vae.device.type != self.device.type
        self._move_others(self.device)
        try:
            yield
        finally:
            if away:
                self._move_others("cpu")

    def _move_others(self, device: torch.device | str) -> None:
        """All parts but the network, in the types that they have."""
        for part in ("vae", *self.encoders):
            if (module := getattr(self.pipe, part)) is not None:
                nn.Module.to(module, device)
        if self.device.type == "cuda" and torch.device(device).type == "cpu":
            torch.cuda.empty_cache()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._shape

    def latent_shape_of(self, pixels: np.ndarray) -> tuple[int, int, int]:
        return (self._shape[0], pixels.shape[0] // self._scale, pixels.shape[1] // self._scale)

    def _check_picture(self, pixels: np.ndarray) -> None:
        size = self.card.resolution
        height, width, *colours = pixels.shape
        if colours != [3] or (width, height) not in sizes(size):
            raise ImageError(
                f"The picture has shape {pixels.shape}; this model reads {(size, size, 3)}. Resize it first."
            )
        if width % self._multiple or height % self._multiple:
            raise ImageError(
                f"The picture has {width} by {height} pixels, and the model '{self.card.id}' needs sides that "
                f"{self._multiple} divides. Use a group set whose pictures are square (`fit: crop`)."
            )

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        self._check_picture(pixels)
        vae = self.pipe.vae
        mean = vae.encode(to_unit(pixels).to(self.device, vae.dtype)).latent_dist.mean
        shift, scale = self._shift_and_scale()
        z = (mean.float() - shift) * scale
        return check_finite(z, "The encoded picture").cpu()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> np.ndarray:
        vae = self.pipe.vae
        shift, scale = self._shift_and_scale()
        z = latent.to(self.device, torch.float32) / scale + shift
        return to_pixels(vae.decode(z.to(vae.dtype)).sample)

    def _shift_and_scale(self) -> tuple[Any, Any]:
        """Of latents: numbers, or one for each channel."""
        config = self.pipe.vae.config
        return config.shift_factor or 0.0, config.scaling_factor

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int = 25, guidance: float = 2.5
    ) -> Iterator[np.ndarray | None]:
        yield from sampling.draw(
            self,
            self._sampler(),
            prompted=self.embed(prompts),
            empty=self.embed([""] * len(prompts)),
            seeds=seeds,
            steps=steps,
            guidance=guidance,
        )


def _keep_precise(module: nn.Module) -> None:
    """Parts that overflow in float16 stay in float32: T5's second linear layers (transformers names them)."""
    names = getattr(module, "_keep_in_fp32_modules", None) or ()
    for name, child in module.named_modules():
        if name.rpartition(".")[2] in names:
            child.float()
