"""Training pictures as the gradient methods see them: latents, prompts, groups and hashes, aligned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guda_core.data.captions import Captioner
from guda_core.data.dataset import Item
from guda_core.data.images import hash_pixels
from guda_core.data.latents import Latents, joined
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import DataError, GroupSetError
from guda_core.records import GroupSet


@dataclass(frozen=True)
class Examples:
    """latents: (N, C, h, w) float32 CPU, or of several sizes. prompts, groups, hashes: N each. hashes are of the
    contents and seed the noise: equal pictures get equal noise, wherever they stand."""

    latents: Tensor | Latents
    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    hashes: tuple[str, ...]

    def __post_init__(self) -> None:
        n = {len(self.latents), len(self.prompts), len(self.groups), len(self.hashes)}
        if len(n) != 1 or n == {0}:
            raise DataError(f"Latents, prompts, groups and hashes must be as many, and some; got {sorted(n)}.")

    def __len__(self) -> int:
        return len(self.latents)

    def sha256(self) -> str:
        """Hash of everything that enters a feature, in order (not of the groups: they only sum what comes out)."""
        own = self.latents
        h = hashlib.sha256(str(tuple(own.shape) if isinstance(own, Tensor) else [tuple(z.shape) for z in own]).encode())
        for z, p, image in zip(self.latents, self.prompts, self.hashes, strict=True):
            h.update(f"{image}\0{p}\n".encode())
            h.update(z.contiguous().numpy().tobytes())
        return h.hexdigest()


def check_fit(model: BaseModel, group_set: GroupSet) -> None:
    """Raises GroupSetError when the set keeps its pictures' shapes, and the model takes squares alone."""
    if group_set.fit == "bucket" and not model.keeps_shape:
        raise GroupSetError(
            f"The group set '{group_set.id}' keeps its pictures' shapes (`fit: bucket`), and the model "
            f"'{model.card.id}' takes squares alone. Write the set with --fit crop or --fit pad."
        )


def examples_of(model: BaseModel, items: Sequence[Item], captioner: Captioner | None = None) -> Examples:
    """Encode pictures at the model's resolution. With a captioner every picture gets one caption of its group's style,
    drawn once; without one, prompts are empty."""
    rng, size = torch.Generator().manual_seed(0), model.card.resolution
    prompts = tuple("" if captioner is None else captioner.caption(i, rng) for i in items)
    latents, hashes = [], []
    for item in items:
        pixels = item.seen(size)
        latents.append(model.encode(pixels))
        hashes.append(hash_pixels(pixels))
    return Examples(joined(latents), prompts, tuple(i.group for i in items), tuple(hashes))
