"""Collages of two groups' held-out pictures: it is known which place is whose.

    half      the left or the upper half is the first group's, the rest the second's
    quarter   one quarter is the second group's
    inlay     the second group's picture, at half its size, somewhere on the first group's

Every other collage joins two drawings of the same object, where both groups have one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from guda_core.data.dataset import Pictures

KINDS = ("half", "quarter", "inlay")


@dataclass(frozen=True)
class Collage:
    """pixels: (H, H, 3) uint8. mask: (h, h) bool, places of the latent that are the second group's."""

    kind: str
    first: str
    second: str
    same_object: bool
    pixels: np.ndarray
    mask: np.ndarray


def join(
    kind: str, a: np.ndarray, b: np.ndarray, places: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, mask) of a collage. a, b: (H, H, 3) uint8; places: rows of the latent; H is a multiple of it."""
    size, step = a.shape[0], a.shape[0] // places
    mask, half = np.zeros((places, places), bool), places // 2
    row, column = (int(v) for v in rng.integers(0, 2, 2) * half)
    if kind == "half":
        mask[half:] = True
        mask = mask if rng.integers(2) else mask.T
    elif kind == "inlay":
        row, column = (int(v) for v in rng.integers(0, half + 1, 2))
        small = np.asarray(Image.fromarray(b).resize((size // 2, size // 2), Image.Resampling.LANCZOS))
        b = a.copy()
        b[row * step : row * step + size // 2, column * step : column * step + size // 2] = small
    if kind != "half":
        mask[row : row + half, column : column + half] = True
    return np.where(np.kron(mask, np.ones((step, step), bool))[..., None], b, a), mask


def collages(pictures: Pictures, groups: list[str], each: int, places: int, seed: int) -> list[Collage]:
    """`each` collages of every kind, in turns, the same ones for the same arguments."""
    rng, out = np.random.default_rng(seed), []
    at = {g: [i for i, of in enumerate(pictures.groups) if of == g] for g in groups}
    what = pictures.concepts or pictures.names
    for n in range(each * len(KINDS)):
        kind, same = KINDS[n % len(KINDS)], n // len(KINDS) % 2 == 0
        first, second = (groups[i] for i in rng.choice(len(groups), 2, replace=False))
        i = int(rng.choice(at[first]))
        twins = [j for j in at[second] if (what[j] == what[i]) == same]
        j = int(rng.choice(twins or at[second]))
        pixels, mask = join(kind, pictures.pixels[i], pictures.pixels[j], places, rng)
        out.append(Collage(kind, first, second, what[i] == what[j], pixels, mask))
    return out
