"""Encoded pictures that are kept on disk, by picture, crop and model, so that no picture is encoded twice.

    key = SHA-256 of (the prepared pixels, the model's identity, its type, its kind of device; height x width of those
    that are not square; the rule of its latents, where the identity does not tell it)

The pixels are those after crop and scaling, so another crop is another key. Pictures may have several shapes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from guda_core.data.dataset import fitted
from guda_core.data.images import hash_pixels
from guda_core.data.latents import Latents, joined
from guda_core.data.shards import Shards
from guda_core.diffusion.base_model import BaseModel

A_SHARD, SECONDS = 1024, 30.0  # a file is written when it has so many pictures, or after so long


def latent_key(model: BaseModel, pixels: np.ndarray) -> str:
    """Of a prepared picture, (H, W, 3) uint8 at the model's resolution."""
    of = f"{hash_pixels(pixels)}\n{model.sha256}\n{model.dtype}\n{model.device.type}"
    h, w = pixels.shape[:2]
    of += f"\n{h}x{w}" if h != w else ""  # a picture of one colour has the same bytes wide and upright
    of += f"\n{model.latent_rule}" if model.latent_rule else ""
    return hashlib.sha256(of.encode()).hexdigest()


def _is_kept(model: BaseModel) -> bool:
    """A model of pixels has no autoencoder, and nothing worth keeping."""
    return model.latent_shape[1] != model.card.resolution


def _found(model: BaseModel, pixels: np.ndarray, folder: Path) -> tuple[list[str], dict[str, Tensor]]:
    keys, own = list[str](), dict[str, tuple[int, int, int]]()
    for p in pixels:
        prepared = fitted(p, model.card.resolution)
        keys.append(latent_key(model, prepared))
        own[keys[-1]] = model.latent_shape_of(prepared)
    entries = Shards(folder, "pictures").read(keys) if _is_kept(model) else {}
    fit = {k: e["latent"] for k, e in entries.items() if tuple(e["latent"].shape[1:]) == own[k]}
    return keys, fit


def to_encode(model: BaseModel, pixels: np.ndarray, folder: Path) -> int:
    """How many of the pictures (N, H, H, 3) are not kept yet; 0 for a model of pixels."""
    if not _is_kept(model):
        return 0
    keys, found = _found(model, pixels, folder)
    return len(set(keys) - set(found))


def encode(model: BaseModel, pixels: np.ndarray, folder: Path) -> Iterator[tuple[float, Tensor | Latents | None]]:
    """Encode pictures (N, H, H, 3) uint8, but for those in the folder, and keep them there. Yields (fraction done,
    None), and last (1, the latents (N, C, h, w) float32; of pictures of several shapes, `Latents`).

    Raises:
        CacheError: the disk is full; what is there already stays.
    """
    keys, found = _found(model, pixels, folder)
    store, new, written = Shards(folder, "pictures"), dict[str, Tensor](), time.monotonic()

    def keep() -> None:
        if new and _is_kept(model):
            store.write({k: {"latent": z} for k, z in new.items()})
        new.clear()

    for n, (key, p) in enumerate(zip(keys, pixels, strict=True)):
        if key not in found:
            found[key] = new[key] = model.encode(fitted(p, model.card.resolution))
            yield n / len(keys), None
        if len(new) >= A_SHARD or time.monotonic() - written > SECONDS:
            keep()
            written = time.monotonic()
    keep()
    yield 1.0, joined([found[k] for k in keys])
