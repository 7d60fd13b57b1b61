"""ELBO differences between the full model and one without a group, with their sampling error.

    KL_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))                                (Ho et al. 2020, eq. 5 and 8)
         = 1/2 (SNR_{t-1} - SNR_t) ||x_0 - x0_hat||^2                       (Kingma et al. 2021, eq. 14), t >= 1
         = w_t ||target - output||^2,    w_t = 1/2 (SNR_{t-1} - SNR_t) c_t^2                     c_t: `prediction`
    ELBO = - sum_t E_eps[KL_t] + terms shared by both models
    elbo_drop = ELBO(full) - ELBO(without) = sum_t E_eps[KL_t(without) - KL_t(full)]      nats; positive = contributed

This holds for every schedule and every kind of prediction; the decoder's term at t = 0 is left out. The sum over t is
estimated by stratified sampling: timesteps are cut into strata, in each a number of (t, eps) pairs is drawn, and both
models see the same pairs. Values are kept per (t, draw), so standard errors come for free and a record can be replayed.
Noise is a function of (picture, t, draw) alone: not of batch position, file name or query count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.finite import is_finite
from guda_core.diffusion.memory import Fitting, in_batches
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ScoreError


def kl_weights(prediction: Prediction) -> Tensor:
    """Factor of ||target - output||^2 in KL_t, (T,) float64, nats; entry 0 (the decoder's term) is 0.

    Finite on every schedule that the prediction fits, also where the SNR ends at zero.
    """
    w = torch.zeros_like(prediction.factor)
    w[1:] = 0.5 * -prediction.schedule.snr.diff() * prediction.factor[1:].square()
    return w


@dataclass(frozen=True)
class Strata:
    """Cuts timesteps 1 .. T-1 into K strata. edges: (K+1,) int; stratum k holds edges[k] <= t < edges[k+1]."""

    edges: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(np.asarray(self.edges))

    def at(self, t: Tensor) -> Tensor:
        """The stratum of each timestep; of t = 0, which is in none, the first."""
        return (torch.searchsorted(torch.tensor(self.edges), t, right=True) - 1).clamp(0, len(self) - 1)


RULE = "kl"  # the name of the density below, in records


def _density(schedule: Schedule) -> np.ndarray:
    """(T-1,): what a draw at t = 1 .. T-1 is expected to tell, up to a factor."""
    snr = schedule.snr.numpy()
    seen = np.where(snr[1:] > 0, snr[1:], snr[:-1])  # where x_t is noise alone, as one step before
    return (snr[:-1] - snr[1:]) / np.sqrt(seen * (1 + seen))


def make_strata(schedule: Schedule, k: int = 24) -> Strata:
    """Strata 1 .. T-1 of nearly equal mass under a density over timesteps, at least one timestep each:

        0.1 uniform + 0.9 (SNR_{t-1} - SNR_t) / sqrt(SNR_t (1 + SNR_t)), each normalised

    With as many draws in each stratum, the error is least where a stratum's size times its standard deviation is the
    same in all (Neyman 1934; Cochran 1977, 5.5). A KL is (SNR_{t-1} - SNR_t) / SNR_t times half a squared error of the
    noise. How far two models' squared errors differ, and vary, falls about as sqrt(SNR_t / (1 + SNR_t)) does, which is
    sqrt(alpha_bar) of a DDPM. The density is the product; its uniform part bounds what one draw can stand for.

    Raises:
        ScoreError: there are fewer timesteps than strata.
    """
    steep = _density(schedule)
    if k > len(steep):
        raise ScoreError(f"{k} strata do not fit into {len(steep)} timesteps.")
    cdf = np.concatenate([[0.0], np.cumsum(0.1 / len(steep) + 0.9 * steep / steep.sum())])  # of t < 1, 2, .. T
    edges = [1]
    for j in range(1, k):
        so_far = cdf[edges[-1] - 1]
        goal = so_far + (1 - so_far) / (k - j + 1)  # a timestep with more than its share leaves less to the others
        at = max(edges[-1] + 1, 1 + int(np.searchsorted(cdf, goal)))
        edges.append(min(at, len(schedule) - (k - j)))  # the strata that follow need a timestep each
    return Strata((*edges, len(schedule)))


def seed_of(image_hash: str, *words: int) -> int:
    """A 63-bit seed from the picture's hash and integers."""
    text = ":".join([image_hash, *[str(w) for w in words]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Draws:
    """Which (t, eps) a picture is scored at. t: (K, M) int64, stratum by draw. image_hash seeds t and eps."""

    image_hash: str
    strata: Strata
    t: np.ndarray

    def noise(self, shape: tuple[int, ...], k: int, j: int) -> Tensor:
        """eps of stratum k, draw j: (C, h, w) float32, from the CPU generator seeded by (picture, t, draw)."""
        g = torch.Generator().manual_seed(seed_of(self.image_hash, int(self.t[k, j]), j))
        return torch.randn(shape, generator=g, dtype=torch.float32)


def draw_times(image_hash: str, strata: Strata, draws: int) -> Draws:
    """Uniform timesteps within each stratum. More draws extend fewer ones: the first columns stay the same."""
    t = np.empty((len(strata), draws), np.int64)
    for j in range(draws):
        rng = np.random.default_rng(seed_of(image_hash, -1, j))
        t[:, j] = rng.integers(np.asarray(strata.edges[:-1]), np.asarray(strata.edges[1:]))
    return Draws(image_hash, strata, t)


@dataclass(frozen=True)
class Noised:
    """A picture with the noise of some draws: what every model is asked, made once and kept on the model's device.

    x_t, target: (N, C, h, w) float32; t: (N,) int64; w: (N,) float64 on the CPU. N = strata x columns, by column.
    """

    x_t: Tensor
    target: Tensor
    t: Tensor
    w: Tensor
    strata: int


@torch.no_grad()
def noised(model: BaseModel, latent: Tensor, draws: Draws, columns: Sequence[int]) -> Noised:
    """The inputs of some draws. latent: (1, C, h, w) float32 CPU. Made on the CPU, so the same on every device."""
    pairs = [(k, j) for j in columns for k in range(len(draws.strata))]
    shape = tuple(latent.shape[1:])
    t = torch.tensor([int(draws.t[k, j]) for k, j in pairs])
    eps = torch.stack([draws.noise(shape, k, j) for k, j in pairs])  # (N, C, h, w)
    x_0 = latent.expand(len(pairs), *shape)
    x_t, target = model.schedule.add_noise(x_0, eps, t), model.prediction.target(x_0, eps, t)
    at = model.device
    return Noised(x_t.to(at), target.to(at), t.to(at), kl_weights(model.prediction)[t], len(draws.strata))


@torch.no_grad()
def _weighted_errors(
    model: BaseModel, condition: Condition, inputs: Noised, batch: int | Fitting, summed: tuple[int, ...]
) -> Tensor:
    """w_t times the squared error, summed over these dimensions of (N, C, h, w) in float32 on the device, which it
    leaves once, at the end: (N, ...) float64. Raises as `kl_of`."""

    def run(part: Sequence[int]) -> list[Tensor]:
        at = slice(part[0], part[-1] + 1)
        output = model.predict(inputs.x_t[at], inputs.t[at], condition.expand(len(part)))
        return list((inputs.target[at] - output.float()).square().sum(dim=summed))

    errors = torch.stack(in_batches(run, range(len(inputs.w)), batch)).cpu().double()
    out = inputs.w.reshape(-1, *[1] * (errors.dim() - 1)) * errors
    if not is_finite(out):
        raise ScoreError(
            "The model gave values that are not finite, so there is no score. On a GPU, set GUDA_DTYPE=float32, or "
            "`gpu_dtype: float32` in the model's card."
        )
    return out


def kl_of(model: BaseModel, condition: Condition, inputs: Noised, batch: int | Fitting = 32) -> np.ndarray:
    """KL_t of the model as it is now at these inputs: (K, columns) float64, nats.

    condition: a batch of one. A batch that does not fit into memory is halved; a `Fitting` remembers that.

    Raises:
        ScoreError: a value is not finite, or there is too little memory for one forward pass.
    """
    return _weighted_errors(model, condition, inputs, batch, (1, 2, 3)).numpy().reshape(-1, inputs.strata).T.copy()


def kl_places(model: BaseModel, condition: Condition, inputs: Noised, batch: int | Fitting = 32) -> np.ndarray:
    """What every place of the latent adds to `kl_of`: (K, columns, h, w) float64, nats. Arguments and errors as there.

    Summed over the places it is `kl_of`, up to the rounding of float32.
    """
    out = _weighted_errors(model, condition, inputs, batch, (1,)).numpy()
    return out.reshape(-1, inputs.strata, *out.shape[1:]).swapaxes(0, 1).copy()


def kl_values(
    model: BaseModel,
    latent: Tensor,
    condition: Condition,
    draws: Draws,
    columns: Sequence[int],
    batch: int | Fitting = 32,
) -> np.ndarray:
    """`kl_of` at the given draws (columns): (K, len(columns)) float64, nats. latent: (1, C, h, w) float32 CPU."""
    return kl_of(model, condition, noised(model, latent, draws, columns), batch)


@dataclass(frozen=True)
class Estimate:
    """An estimate of a sum over all timesteps, in nats, with its standard error and Student-t 95% interval, of `df`
    degrees of freedom."""

    value: float
    se: float
    low: float
    high: float
    df: float = math.inf

    def plus(self, other: float, se: float = 0.0) -> Estimate:
        """The estimate of the sum and another number, which is known, or has a standard error of its own from very many
        values. The variances add up; degrees of freedom after Welch and Satterthwaite."""
        if se == 0:
            return Estimate(self.value + other, self.se, self.low + other, self.high + other, self.df)
        var = self.se**2 + se**2
        df = var**2 / (self.se**4 / self.df) if self.se > 0 and math.isfinite(self.df) else math.inf
        half = float(special.stdtrit(df, 0.975)) * math.sqrt(var)
        value = self.value + other
        return Estimate(value, math.sqrt(var), value - half, value + half, df)


def stratum_sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """n_k mean_j v_kj, (..., K), from values (..., K, M): what each stratum adds to sum_t E[v_t]. sizes: (K,), n_k."""
    return sizes * values.mean(axis=-1)


def stratum_variances(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """n_k^2 s_k^2 / M, (..., K): the sampling variance of `stratum_sums`. Needs M >= 2 draws."""
    return sizes**2 * values.var(axis=-1, ddof=1) / values.shape[-1]


def stratified_sum(values: np.ndarray, strata: Strata) -> Estimate:
    """sum_t E[v_t] from values (K, M): sum_k n_k mean_j v_kj; variance sum_k n_k^2 s_k^2 / M (Cochran 1977, 5.3).

    Degrees of freedom after Satterthwaite. With one draw a stratum (M = 1) neighbouring strata are taken together
    instead, in pairs and, of an odd number, the last three (collapsed strata, Cochran 5A.12), which overestimates the
    error.

    Raises:
        ScoreError: a value is not finite, or there are too few to tell an error.
    """
    if not np.isfinite(values).all():
        raise ScoreError("A value is not finite.")
    k, m = values.shape
    n = strata.sizes.astype(np.float64)
    y = stratum_sums(values, n)
    value = float(y.sum())
    if m >= 2:
        terms, each = stratum_variances(values, n), np.full(k, m - 1)
    elif k >= 4:
        pairs, last = y[: k - 3 * (k % 2)].reshape(-1, 2), y[k - 3 * (k % 2) :]
        terms, each = (pairs[:, 0] - pairs[:, 1]) ** 2, np.ones(len(pairs))
        if len(last):
            terms, each = np.append(terms, 3 * last.var(ddof=1)), np.append(each, 2)
    else:
        raise ScoreError("One draw in fewer than four strata tells no error; use more draws.")
    var = float(terms.sum())
    df = max(1.0, var**2 / float((terms**2 / each).sum())) if var > 0 else 1.0
    half = float(special.stdtrit(df, 0.975)) * math.sqrt(var)
    return Estimate(value, math.sqrt(var), value - half, value + half, df)


def elbo_drop(*, full: np.ndarray, without: np.ndarray, strata: Strata) -> Estimate:
    """ELBO(full) - ELBO(without) in nats: the group's score; positive = removing it hurts. Arrays (K, M), paired."""
    return stratified_sum(without - full, strata)


def difference(*, first: np.ndarray, second: np.ndarray, strata: Strata) -> Estimate:
    """How far one group's score is ahead of another's, from their `without` arrays (paired; the full model cancels)."""
    return stratified_sum(first - second, strata)
