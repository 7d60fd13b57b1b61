"""The CLIP (Radford et al. 2021) that similarity and the selection of anchor styles use, and the feature bank.

Training pictures are not in the repository, so their features are: the feature bank holds one unit vector a picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from guda_core.data.dataset import GroupDataset, batches
from guda_core.diffusion.pixels import to_unit
from guda_core.errors import ModelError

BANK = "bank.safetensors"
BATCH = 128  # pictures at a time


class Clip:
    """A CLIP and its feature bank. size: side of its pictures. sha256: of the weights. bank: the bank's file."""

    def __init__(self, folder: Path, bank: Path | None = None) -> None:
        """bank: where the bank is; default: beside the weights."""
        if not (folder / "config.json").is_file():
            raise ModelError(f"There is no CLIP in {folder}. Check out the repository with its assets.")
        try:
            self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        except Exception as e:
            raise ModelError(f"The CLIP in {folder} is damaged or incomplete: {e}") from e
        self.model.requires_grad_(False)
        self.folder, self.bank = folder, bank or folder / BANK
        self.sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        self.size: int = json.loads((folder / "config.json").read_text())["vision_config"]["image_size"]

    def image_features(self, pixels: np.ndarray, batch: int = BATCH) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32 of unit length; other sizes are resampled (area)."""
        out = []
        for i in range(0, len(pixels), batch):
            x = to_unit(pixels[i : i + batch])
            if x.shape[-1] != self.size:
                x = F.interpolate(x, size=(self.size, self.size), mode="area")
            with torch.no_grad():
                f = self.model.visual_projection(self.model.vision_model(x).pooler_output)
            out.append(F.normalize(f, dim=-1))
        return torch.cat(out)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D) float32 of unit length."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            pooled = self.model.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
            return F.normalize(self.model.text_projection(pooled), dim=-1)

    def write_bank(self, features: dict[str, Tensor], data_sha256: str) -> None:
        """Save group id -> (N, D) features as the bank, as float16."""
        self.bank.parent.mkdir(parents=True, exist_ok=True)
        meta = {
            "clip_sha256": self.sha256,
            "data_sha256": data_sha256,
            "counts": json.dumps({g: len(f) for g, f in features.items()}),
        }
        save_file({g: f.to(torch.float16).contiguous() for g, f in features.items()}, self.bank, metadata=meta)

    def bank_sha256(self) -> str:
        """SHA-256 of the bank's file. Raises ModelError when there is none."""
        if not self.bank.is_file():
            raise ModelError(f"There is no {self.bank}. Make it with `python -m guda_core assets bank`.")
        return hashlib.sha256(self.bank.read_bytes()).hexdigest()

    def read_bank(self) -> dict[str, Tensor]:
        """group id -> (N, D) float32 unit vectors.

        Raises:
            ModelError: the bank is missing, damaged, or of another CLIP.
        """
        path = self.bank
        try:
            with safe_open(path, framework="pt") as f:
                meta = f.metadata() or {}
                bank = {g: F.normalize(f.get_tensor(g).float(), dim=-1) for g in f.keys()}  # noqa: SIM118
        except Exception as e:
            raise ModelError(f"The features of the training pictures ({path.name}) cannot be read: {e}") from e
        if meta.get("clip_sha256") != self.sha256:
            raise ModelError(
                f"{path.name} was made with another CLIP; make it again with `python -m guda_core assets bank`."
            )
        return bank


def make_bank(clip: Clip, dataset: GroupDataset) -> None:
    """Write the feature bank of a dataset's training pictures. Few pictures are in memory at once."""
    items = dataset.split("train")
    features = torch.cat([clip.image_features(pixels) for pixels in batches(items, clip.size, BATCH)])
    by_group = {g: features[[i for i, item in enumerate(items) if item.group == g]] for g in dataset.group_set.groups}
    clip.write_bank(by_group, dataset.fingerprint())
