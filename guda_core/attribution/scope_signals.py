"""What is measured of a picture to tell whether a model could have made it. All of it on the picture's own area.

    e_k  = sum_p a_p |eps - eps_hat(x_t, t)|_p^2 / (C sum_p a_p)    the model's error at noise level k, no caption
    bits = C / (2 ln 2) int e d log(SNR)        bits that a latent place costs (Kingma et al. 2021, eq. 15), trapezoids
    r    = mean over the own area of (decode(encode(x)) - x)^2      squared pixel values, 0 .. 255

p goes over latent places, a_p is the part of a place that the picture's own area covers: an upload that is not square
stands on white (`data.images`), and white is easy for any model that was trained on it. To these come the CLIP features
and a few statistics of the pixels. Noise depends on the picture alone: the same picture always gives the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guda_core.data.embeddings import Encoder
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.likelihood import seed_of
from guda_core.diffusion.memory import in_batches
from guda_core.errors import ScoreError

LEVELS = (0.9, 0.5, 0.25)  # SNR / (1 + SNR): the part of x_t's variance that is picture
ROUNDING = 1 / 12  # variance of the error of rounding to whole pixel values
PASSES = len(LEVELS)  # forward passes of the network for one picture


def own_area(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the smallest box that holds everything but pure white, of (H, W, 3) uint8; of a
    white picture, all of it."""
    inked = (pixels != 255).any(axis=-1)
    if not inked.any():
        return 0, pixels.shape[0], 0, pixels.shape[1]
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def coverage(box: tuple[int, int, int, int], size: tuple[int, int], places: tuple[int, int]) -> np.ndarray:
    """The part of each latent place that a box of pixels covers: places = (h, w) -> (h, w) float64 in [0, 1]."""
    edges = [np.linspace(0, s, p + 1) for s, p in zip(size, places, strict=True)]
    sides = []
    for (low, high), e in zip((box[:2], box[2:]), edges, strict=True):
        sides.append(np.clip(np.minimum(e[1:], high) - np.maximum(e[:-1], low), 0, None) / np.diff(e))
    return np.outer(*sides)


def times(model: BaseModel) -> list[int]:
    """The timestep nearest to each of `LEVELS`."""
    part = model.schedule.snr / (1 + model.schedule.snr)
    return [int((part - level).abs().argmin()) for level in LEVELS]


@torch.no_grad()
def errors(model: BaseModel, latent: Tensor, image_hash: str, area: np.ndarray) -> np.ndarray:
    """e_k of a latent (1, C, h, w): (K,) float64.

    Raises:
        ScoreError: a value is not finite, or there is too little memory.
    """
    shape, condition = tuple(latent.shape[1:]), model.embed([""])
    weights = torch.from_numpy(area / (shape[0] * area.sum()))

    def run(part: Sequence[int]) -> list[float]:
        t = torch.tensor(list(part))
        made = [torch.Generator().manual_seed(seed_of(image_hash, i)) for i in part]
        noise = [torch.randn(shape, generator=g, dtype=torch.float32) for g in made]
        eps = torch.stack(noise)  # (B, C, h, w)
        x_t = model.schedule.add_noise(latent.expand(len(part), *shape), eps, t)
        guess = model.predict_eps(x_t.to(model.device), t.to(model.device), condition.expand(len(part)))
        square = (eps - guess.float().cpu()).square().sum(dim=1).double()  # (B, h, w)
        return (square * weights).sum(dim=(1, 2)).tolist()

    found = np.array(in_batches(run, times(model), PASSES))
    if not np.isfinite(found).all():
        raise ScoreError("The model gave values that are not finite, so its scope cannot be judged.")
    return found


def bits_per_place(e: np.ndarray, channels: int) -> float:
    """The bits of a latent place from e_k (K,)."""
    log_snr = np.log([level / (1 - level) for level in LEVELS])
    return channels / (2 * math.log(2)) * float(np.trapezoid(e[::-1], log_snr[::-1]))


def statistics(pixels: np.ndarray) -> dict[str, float]:
    """Of the pixels in a picture's own area, (H, W, 3) uint8: name -> a number of about -5 .. 5."""
    x = pixels.astype(np.float64) / 255
    grey = x.mean(axis=-1)
    steps = np.concatenate([np.abs(np.diff(grey, axis=i)).ravel() for i in (0, 1)] or [np.zeros(1)])
    steps = steps if steps.size else np.zeros(1)
    border = np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]])
    colours = np.unique((pixels >> 4).reshape(-1, 3), axis=0)
    counts = np.unique((pixels >> 5).reshape(-1, 3), axis=0, return_counts=True)[1] / (x.shape[0] * x.shape[1])
    saturation = x.max(axis=-1) - x.min(axis=-1)
    return {
        "white": float((pixels == 255).all(axis=-1).mean()),
        "white border": float((border > 0.99).all(axis=-1).mean()),
        "even border": float(np.log(border.std(axis=0).mean() + 0.01)),
        "colours": math.log(len(colours) / x[..., 0].size),
        "number of colours": math.log(len(colours)),
        "entropy": float(-(counts * np.log(counts)).sum()),
        "flat": float((steps < 1 / 255).mean()),
        "edges": float((steps > 0.25).mean()),
        "contrast": float(np.log(grey.std() + 0.01)),
        "roughness": float(np.log(steps.mean() + 0.001)),
        "saturation": float(saturation.mean()),
        "spread of saturation": float(saturation.std()),
    }


def look(clip: Encoder, pixels: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, D): CLIP features, then `statistics` of each own area."""
    stats = []
    for p in pixels:
        top, bottom, left, right = own_area(p)
        stats.append(list(statistics(p[top:bottom, left:right]).values()))
    return np.concatenate([clip.image_features(pixels).double().numpy(), np.array(stats)], axis=1)


def of_model(model: BaseModel, pixels: np.ndarray, latent: Tensor, image_hash: str) -> np.ndarray:
    """The model's signals of one picture, (H, W, 3) uint8, with its latent (1, C, h, w): (M,) logarithms, see `names`.

    Raises:
        ScoreError, ModelError: a value is not finite, or there is too little memory.
    """
    top, bottom, left, right = box = own_area(pixels)
    c, h, w = latent.shape[1:]
    with model.lock:
        e = errors(model, latent, image_hash, coverage(box, (pixels.shape[0], pixels.shape[1]), (h, w)))
        again = model.decode(latent)[0]  # (H, W, 3) uint8
    difference = (again.astype(np.float64) - pixels)[top:bottom, left:right]
    r = max(float((difference**2).mean()), ROUNDING)
    return np.log([*np.maximum(e, 1e-6), max(bits_per_place(e, c), 1e-6), r])


def names() -> tuple[str, ...]:
    """What `of_model` gives, in order."""
    return (*(f"error at {level:.0%} picture" for level in LEVELS), "bits of a latent place", "reconstruction")
