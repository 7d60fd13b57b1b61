"""The networks that a model's card may name for likeness: `encoder: KIND:PLACE`, PLACE a folder or a Hub repository.

    clip      features = the picture tower of CLIP with its projection (Radford et al. 2021, arXiv 2103.00020)
    dinov2    features = the class token of DINOv2 (Oquab et al. 2023, arXiv 2304.07193)
    csd       features = style head (CLIP's picture tower without its projection): CSD (Somepalli et al. 2024, arXiv
              2404.01292). Its folder holds the tower in transformers' layout, and in `style_head.safetensors` the
              matrix `weight` (D_out, D_in).

All are read by transformers, from safetensors only. A card that names none gets the included small CLIP, which was made
for 64 pixels, up to that size; from there on the CLIP of Stable Diffusion.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
)

from guda_core.data.dataset import middle
from guda_core.data.embeddings import BANK, BATCH, SAFELY, Clip, Encoder, words
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.memory import MEND, damaged, lacked_memory
from guda_core.errors import ModelError, NoRoomError
from guda_core.from_hub import bring
from guda_core.machine import LOADING
from guda_core.paths import ASSETS, Run, at_home, is_folder

SMALL_PX = 64  # for which the included CLIP was made
LARGE = "clip:openai/clip-vit-large-patch14"
STYLE_HEAD = "style_head.safetensors"
END = 2**20  # bytes of a file that its mark is made of, at each end
WANTED = (
    "config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json", STYLE_HEAD,
    "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json",
)  # fmt: skip
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Tower(Encoder):
    """A picture tower in a folder. Pictures are resampled (bicubic) to `size`; mean, std: of its normalisation."""

    network: ClassVar[Any]
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __init__(self, folder: Path, bank: Path) -> None:
        self.folder, self.bank = folder, bank
        try:
            self.model = self.network.from_pretrained(folder, **SAFELY).eval()
            self.head = self._head()
            self._read_preparation()
        except Exception as e:
            if lacked_memory(e):
                what = f"The {self.kind} in {folder} cannot be read: there is not enough memory. {MEND}"
                raise NoRoomError(what) from e
            raise ModelError(f"The {self.kind} in {folder} cannot be read: {e}") from e
        self.model.requires_grad_(False)
        self.sha256 = self._sha256()

    def _head(self) -> Tensor | None:
        """(D_out, D_in), what the tower's output is multiplied by; None = nothing."""
        return None

    def _read_preparation(self) -> None:
        path = self.folder / "preprocessor_config.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.mean = tuple(found.get("image_mean") or self.mean)
        self.std = tuple(found.get("image_std") or self.std)
        size: Any = found.get("crop_size") or found.get("size") or self.model.config.image_size
        self.size = int((size.get("height") or size["shortest_edge"]) if isinstance(size, dict) else size)

    def _sha256(self) -> str:
        h = hashlib.sha256(f"{self.kind}\n{self.size}\n{self.mean}\n{self.std}\n".encode())
        tensors = dict(self.model.state_dict()) | ({} if self.head is None else {"style head": self.head})
        for name in sorted(tensors):
            h.update(f"{name}\0{tuple(tensors[name].shape)}\n".encode())
            h.update(tensors[name].contiguous().numpy().tobytes())
        return h.hexdigest()

    def prepared(self, pixels: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, size, size) float32, normalised: the square in the middle."""
        x = torch.from_numpy(middle(pixels)).permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def image_features(self, pixels: np.ndarray) -> Tensor:
        out = []
        for i in range(0, len(pixels), BATCH):
            with torch.no_grad():
                f = self.output(self.model(pixel_values=self.prepared(pixels[i : i + BATCH])))
            out.append(F.normalize(f, dim=-1))
        return torch.cat(out)

    def output(self, found: Any) -> Tensor:
        """(N, D) features in what the tower gives."""
        return found.pooler_output


class ClipTower(Tower):
    """Of a CLIP; its text tower is read when it is first asked."""

    kind = "clip"
    network = CLIPVisionModelWithProjection
    reads_words = True

    def output(self, found: Any) -> Tensor:
        return found.image_embeds

    @cached_property
    def _text(self) -> tuple[nn.Module, nn.Module, CLIPTokenizer]:
        with LOADING, damaged(f"The clip in {self.folder} has no text tower that can be read"):
            tower = CLIPTextModelWithProjection.from_pretrained(self.folder, **SAFELY).eval()
            tokenizer = CLIPTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        return tower.text_model, tower.text_projection, tokenizer

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return words(*self._text, texts)


class Dino(Tower):
    """DINOv2."""

    kind = "dinov2"
    network = Dinov2Model
    mean, std = IMAGENET_MEAN, IMAGENET_STD


class Csd(Tower):
    """CSD: a CLIP's picture tower with a style head."""

    kind = "csd"
    network = CLIPVisionModel

    def _head(self) -> Tensor:
        return load_file(self.folder / STYLE_HEAD)["weight"].float()

    def output(self, found: Any) -> Tensor:
        assert self.head is not None
        return found.pooler_output @ self.head.T


ENCODERS: dict[str, type[Tower]] = {"clip": ClipTower, "dinov2": Dino, "csd": Csd}


def name_of(card: Card) -> str:
    """What the model's likeness is seen by, as a card says it; "" = the included CLIP."""
    return card.encoder or ("" if card.source == "assets" or card.resolution <= SMALL_PX else LARGE)


def bank_of(card: Card, run: Run) -> Path:
    """The file of the feature bank: one for each model, group set and encoder."""
    return run.file(bank_name(card))


def bank_name(card: Card) -> str:
    """Its name within a run: of an encoder in a folder by what the folder is called and holds, wherever it lies."""
    name = name_of(card)
    kind, _, place = name.partition(":")
    folder = at_home(place)
    if not place or not is_folder(folder):
        return _bank(name)
    return _bank(f"{kind}-{folder.resolve().name}-{_mark(folder)[:12]}")


def _bank(name: str) -> str:
    return BANK if not name else f"bank-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.safetensors"


def _mark(folder: Path) -> str:
    """SHA-256 of the names, sizes, beginnings and ends of an encoder's files: no gigabytes are read for a name."""
    h = hashlib.sha256()
    for path in sorted({p for pattern in WANTED for p in folder.glob(pattern) if p.is_file()}):
        size = path.stat().st_size
        h.update(f"{path.name}\0{size}\n".encode())
        with path.open("rb") as f:
            h.update(f.read(END))
            f.seek(max(0, size - END))
            h.update(f.read(END))
    return h.hexdigest()


def open_encoder(card: Card, bank: Path, *, mended_by: str = Encoder.mend) -> Encoder:
    """The encoder of a model's card, with its bank's place.

    Raises:
        ModelError: its name is wrong, or it is missing, damaged, or cannot be brought from the hub.
    """
    name = name_of(card)
    found = Clip(ASSETS / "clip", bank) if not name else _tower(name, bank)
    found.mend = mended_by
    return found


def _tower(name: str, bank: Path) -> Tower:
    kind, _, place = name.partition(":")
    if kind not in ENCODERS or not place:
        raise ModelError(f"The encoder '{name}' is not known. Write KIND:PLACE with one of {', '.join(ENCODERS)}.")
    folder = at_home(place)
    if not is_folder(folder):
        folder = bring(place, WANTED)
    return ENCODERS[kind](folder, bank)
