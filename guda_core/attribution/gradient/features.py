"""Projected gradient features of single pictures, for TRAK-like baselines.

    phi(x) = S mean_k grad_theta f(x, t_k, eps_k)

f is one of the outputs below, t_k are K timesteps spread evenly over 1 .. T-1, eps_k is seeded by (picture, t_k), and S
is a sparse random projection (`projection`).

A model in half precision is differentiated as it is trained: float32 weights, which compute in the model's type.
float16 holds no small numbers, so that f is scaled up before, and the gradient down after. The timesteps go through the
network together, or as many at a time as fit into memory.

    loss         mean((eps - eps_hat)^2)      TRAK (Park et al. 2023; Georgiev et al. 2023 for diffusion)
    mean_square  mean(eps_hat^2)              D-TRAK (Zheng et al. 2024)
    mean         mean(eps_hat)                DAS (arXiv 2410.18639)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from guda_core.attribution.gradient.projection import SPREAD, Projection
from guda_core.attribution.gradient.store import Store
from guda_core.data.encoded import Examples
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.finite import is_finite
from guda_core.diffusion.likelihood import seed_of
from guda_core.diffusion.memory import Fitting, as_fits
from guda_core.diffusion.precision import mixed
from guda_core.errors import ModelError, OptionError, ScoreError
from guda_core.records import Query

OUTPUTS = ("loss", "mean_square", "mean")
FIRST_SCALE = 2.0**16  # of f in float16; halved where a gradient overflows
MEMORY = 2**27  # gradient entries held at a time: 512 MiB


@dataclass(frozen=True)
class FeatureConfig:
    """output: f. timesteps: K. normalise: scale the gradient of each timestep to unit length first. dim: coordinates
    of the projection, 0 = none. seed: of the projection. parts: endings of the names of the weights that count (a
    module's name or a parameter's); () = all."""

    output: str = "loss"
    timesteps: int = 10
    normalise: bool = False
    dim: int = 4096
    seed: int = 0
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise OptionError(f"output '{self.output}': known are {', '.join(OUTPUTS)}.")
        if self.timesteps < 1 or self.dim < 0 or self.dim % SPREAD:
            raise OptionError(f"timesteps must be at least 1 and dim a multiple of {SPREAD} (0 = no projection).")


def timestep_grid(steps: int, k: int) -> Tensor:
    """The middles of k equal parts of 1 .. steps-1: (k,) int64."""
    return (1 + (torch.arange(k, dtype=torch.float32) + 0.5) * (steps - 1) / k).long()


def at_once(size: int) -> int:
    """Pictures whose gradients are held and projected at a time. size: parameters."""
    return max(1, min(64, MEMORY // size))


def counted(network: nn.Module, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Name -> parameter, of the weights that count (`FeatureConfig.parts`)."""
    endings = tuple(f".{p}{end}" for p in parts for end in ("", ".weight", ".bias"))
    return {n: p for n, p in network.named_parameters() if not endings or f".{n}".endswith(endings)}


@dataclass(frozen=True)
class Gradient:
    """vector: (P,) float32 CPU, the mean gradient. residual: mean over timesteps of the root mean square of
    eps - eps_hat. scale: of f, with which it did not overflow."""

    vector: Tensor
    residual: float
    scale: float


Copies = WeakValueDictionary[tuple[str, ...], nn.Module]  # of a model's network, by the parts that count
_copies: WeakKeyDictionary[BaseModel, Copies] = WeakKeyDictionary()


def differentiated(model: BaseModel, parts: tuple[str, ...]) -> nn.Module:
    """A float32 copy of the network in which the weights that count take gradients.

    Raises:
        ModelError: the model has none of the parts.
    """
    with model.lock:  # not while an adapter is switched in
        network = copy.deepcopy(model.network).float().eval().requires_grad_(False)
    named = counted(network, parts)
    if not named:
        raise ModelError(f"The model '{model.card.id}' has none of the parts {', '.join(parts)}.")
    for p in named.values():
        p.requires_grad_(True)
    return network


def shared(model: BaseModel, parts: tuple[str, ...]) -> nn.Module:
    """`differentiated`: one for all who ask for the same parts, for as long as one of them has it. Nobody may change
    its weights."""
    with model.lock:
        own = _copies.setdefault(model, WeakValueDictionary())
        network = own.get(parts)
        if network is None:
            network = own[parts] = differentiated(model, parts)
        return network


class Gradients:
    """Gradients of a model at single pictures. The model itself is left alone: a copy of the denoiser is used.

    Raises:
        ModelError: the model has none of the parts.
    """

    def __init__(self, model: BaseModel, config: FeatureConfig, *, own: bool = False) -> None:
        """own: with a copy whose weights may be changed."""
        self.model, self.config = model, config
        self.network = (differentiated if own else shared)(model, tuple(config.parts))
        self.first_scale = FIRST_SCALE if model.dtype == torch.float16 else 1.0
        self.parameters: dict[str, nn.Parameter] = counted(self.network, config.parts)
        self.size = sum(p.numel() for p in self.parameters.values())
        self.t = timestep_grid(len(model.schedule), config.timesteps)
        self.fits = Fitting(1 if config.normalise else len(self.t))

    def noise(self, image_hash: str, shape: tuple[int, ...]) -> Tensor:
        """eps of every timestep, (K, *shape) float32, from the CPU generator seeded by (picture, t)."""
        seeds = [seed_of(image_hash, -2, t) for t in self.t.tolist()]
        made = (torch.Generator().manual_seed(s) for s in seeds)
        return torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in made])

    def errors(
        self, latents: Tensor, prompts: tuple[str, ...], hashes: tuple[str, ...], part: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(eps_hat, eps) at the grid's timesteps, each (B, K, C, h, w) on the device; eps_hat keeps gradients.

        part: places in the grid, None = all.
        """
        at = list(range(len(self.t))) if part is None else list(part)
        b, k = len(latents), len(at)
        eps = torch.cat([self.noise(h, tuple(latents.shape[1:]))[at] for h in hashes])  # (B K, C, h, w)
        t = self.t[at].repeat(b)
        x_t = self.model.schedule.add_noise(latents.repeat_interleave(k, dim=0), eps, t)
        cond = self.model.embed(list(prompts)).repeat_interleave(k)
        device = self.model.device
        with mixed(device, self.model.dtype):
            eps_hat = self.model.predict_eps(x_t.to(device), t.to(device), cond, self.network)
        return eps_hat.unflatten(0, (b, k)), eps.to(device).unflatten(0, (b, k))

    def _output(self, eps_hat: Tensor, eps: Tensor) -> Tensor:
        """f at each timestep: (K, C, h, w) twice -> (K,)."""
        value = {"loss": lambda: (eps - eps_hat).square(), "mean_square": eps_hat.square, "mean": lambda: eps_hat}
        return value[self.config.output]().flatten(1).mean(dim=1)

    def at(
        self, latent: Tensor, prompt: str, image_hash: str, what: str = "the picture", scale: float | None = None
    ) -> Gradient:
        """The gradient at one picture, latent (1, C, h, w). what: the picture in an error's words. scale: of f, to
        begin with; None: the first one, so that nothing depends on the pictures before.

        Raises:
            ScoreError: it is not finite. NoMemoryError: not even one timestep fits.
        """
        vector, residual, done = torch.zeros(self.size, dtype=torch.float32), 0.0, 0
        used = self.first_scale if scale is None else scale

        def add(n: int) -> tuple[int, float, float]:
            eps_hat, eps = (v[0] for v in self.errors(latent, (prompt,), (image_hash,), range(done, done + n)))
            off = float((eps - eps_hat.detach()).square().flatten(1).mean(dim=1).sqrt().sum()) / len(self.t)
            return n, off, self._add(self._output(eps_hat, eps).sum() / len(self.t), vector, used)

        while done < len(self.t):
            n, off, used = as_fits(add, len(self.t) - done, self.fits)
            done, residual = done + n, residual + off
        if not is_finite(vector):
            raise ScoreError(f"The gradient at {what} is not finite, so there is no score.")
        return Gradient(vector, residual, used)

    def _add(self, value: Tensor, vector: Tensor, scale: float) -> float:
        """Add the gradient of a value to vector, (P,) float32 CPU; not finite where no scale helps. Nothing is added
        where memory runs out. Returns the scale that did not overflow."""
        weights = list(self.parameters.values())
        while True:
            found = torch.autograd.grad(value * scale, weights, retain_graph=scale > 1)
            if scale == 1 or all(is_finite(p) for p in found):
                break
            scale /= 2
        found = [p.cpu() for p in found]
        g = torch.zeros_like(vector) if self.config.normalise else vector
        for own, p in zip(g.split([p.numel() for p in weights]), found, strict=True):
            own.view(p.shape).add_(p, alpha=1 / scale)
        if self.config.normalise:
            vector += g.div_(g.norm().clamp_min(1e-20)).div_(len(self.t))
        return scale

    @torch.no_grad()
    def losses(self, examples: Examples) -> Iterator[np.ndarray]:
        """Mean over timesteps of mean((eps - eps_hat)^2), batch by batch of pictures: (b,) float64 each."""
        batch = 16 if isinstance(examples.latents, Tensor) else 1  # of several sizes
        for i in range(0, len(examples), batch):
            part = slice(i, i + batch)
            eps_hat, eps = self.errors(examples.latents[part], examples.prompts[part], examples.hashes[part])
            yield (eps - eps_hat).double().square().flatten(1).mean(dim=1).cpu().numpy()


@dataclass(frozen=True)
class Features:
    """phi: (N, dim) float32, memory-mapped; residual: (N,) float32; settings: what they depend on."""

    phi: np.ndarray
    residual: np.ndarray
    settings: dict


class FeatureBank:
    """The features of a training set, computed once and kept in the cache."""

    def __init__(self, model: BaseModel, examples: Examples, config: FeatureConfig) -> None:
        self.model, self.examples, self.groups = model, examples, examples.groups
        self.gradients = Gradients(model, config)
        self._scale = self.gradients.first_scale  # that no training picture so far overflowed with
        self.projection = Projection(self.gradients.size, config.dim, config.seed)
        self.provenance = {"base_sha256": model.sha256, "examples_sha256": examples.sha256()}
        dtype = {} if model.dtype == torch.float32 else {"dtype": str(model.dtype).removeprefix("torch.")}
        self.store = Store("gradients", {**self.provenance, **asdict(config), **dtype})

    def prepare(self) -> Iterator[float]:
        """Compute what is not there yet, also after another process was stopped; yields the fraction done. Nothing
        happens when the cache is complete.

        Raises:
            CacheError: there is no room for it in the cache.
        """
        if not self.store.complete:
            with self.store.making():
                yield from self._make()

    def _make(self) -> Iterator[float]:
        n, dim = len(self.examples), self.projection.dim or self.gradients.size
        phi, residual = self.store.create("phi", (n, dim)), self.store.create("residual", (n,))
        chunk, before = at_once(self.gradients.size), self.store.noted
        self._scale = before.get("scale", self._scale)
        for start in range(int(before.get("rows", 0)), n, chunk):
            at = range(start, min(start + chunk, n))
            found = [self._at(i) for i in at]
            rows = found[0].vector[None] if len(found) == 1 else torch.stack([f.vector for f in found])
            phi[start : at.stop] = self.projection(rows.numpy())
            residual[start : at.stop] = [f.residual for f in found]
            if at.stop < n:
                self.store.note(rows=at.stop, scale=self._scale)
                yield at.stop / n
        del phi, residual
        self.store.finish()
        yield 1.0

    def _at(self, i: int) -> Gradient:
        e = self.examples
        what = f"training picture {i + 1} of {len(e)} (group '{e.groups[i]}', caption '{e.prompts[i]}')"
        found = self.gradients.at(e.latents[i : i + 1], e.prompts[i], e.hashes[i], what, self._scale)
        self._scale = found.scale
        return found

    def load(self) -> Features:
        """What `prepare` made. Raises CacheError when it is missing or damaged."""
        arrays = self.store.open()
        return Features(arrays["phi"], arrays["residual"], self.store.settings)

    def query(self, query: Query) -> np.ndarray:
        """phi of a query, (dim,) float32."""
        g = self.gradients.at(query.latent, query.prompt, query.image_hash)
        return self.projection(g.vector[None].numpy())[0]
