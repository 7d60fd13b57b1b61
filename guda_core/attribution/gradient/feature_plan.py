"""What gradient features will take, said before they are made: passes by count, time by what is really tried.

    seconds of a method = N K s_gradient + ceil(N / n) s_projection(n)

N pictures, K timesteps, n pictures projected at a time, s_gradient of one pass with the gradient of every weight,
s_projection of projecting n gradients, as some blocks of it take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from guda_core.attribution.gradient.features import FeatureConfig, Gradients, at_once
from guda_core.attribution.gradient.projection import Projection, blocks_seconds
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.pace import seconds_of

SHORT = 5.0  # seconds up to which a whole picture is tried, with all its timesteps


@dataclass(frozen=True)
class MethodPlan:
    """gradients: passes with the gradient of every weight. seconds, disk_bytes: of all pictures; what stays."""

    gradients: int
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class FeaturePlan:
    """methods: method id -> its own. pictures: trained on. encode_s: seconds to encode all of them. pass_s: of one pass
    with gradients, as tried. there: methods whose features are there already; they take nothing."""

    methods: Mapping[str, MethodPlan]
    pictures: int
    encode_s: float
    pass_s: float
    device: str
    there: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.encode_s + sum(m.seconds for m in self.methods.values())

    @property
    def disk_bytes(self) -> int:
        """Of everything."""
        return sum(m.disk_bytes for m in self.methods.values())

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with the sums."""
        sums = {"gradients": sum(m.gradients for m in self.methods.values())}
        return {**asdict(self), **sums, "seconds": self.seconds, "disk_bytes": self.disk_bytes}


def make_plan(
    model: BaseModel, configs: Mapping[str, FeatureConfig], pictures: int, there: Sequence[str] = ()
) -> FeaturePlan:
    """The plan. configs: method id -> the settings of its features. there: methods whose features are there. The model
    is left as it was.

    Raises:
        ModelError: the model has none of the parts.
    """
    pixels = np.full((model.card.resolution, model.card.resolution, 3), 128, np.uint8)
    encode_s = pictures * seconds_of(lambda: model.encode(pixels)) if set(configs) - set(there) else 0.0
    methods, passes = dict[str, MethodPlan](), list[float]()
    for name, config in configs.items():
        if name in there:
            methods[name] = MethodPlan(0, 0.0, 0)
            continue
        one = _gradient_s(model, config)
        passes.append(one)
        size = Gradients(model, replace(config, timesteps=1)).size
        n, dim = at_once(size), config.dim or size
        projection = Projection(size, config.dim, config.seed)
        projected = math.ceil(pictures / n) * blocks_seconds(projection, n) if config.dim else 0.0
        seconds = pictures * config.timesteps * one + projected
        kept = pictures * (4 * dim + 4) + pictures * (dim + 8)  # in the cache, and beside the model
        methods[name] = MethodPlan(pictures * config.timesteps, seconds, kept)
    there = tuple(n for n in configs if n in there)
    return FeaturePlan(methods, pictures, encode_s, max(passes, default=0.0), str(model.device), there)


def _gradient_s(model: BaseModel, config: FeatureConfig) -> float:
    """Seconds of a pass with gradients, of one picture at one timestep; where that is short, within a whole picture."""
    latent = torch.zeros(1, *model.latent_shape, dtype=torch.float32)

    def seconds(timesteps: int) -> float:
        tried = Gradients(model, replace(config, timesteps=timesteps))
        return seconds_of(lambda: tried.at(latent, "", "plan")) / timesteps

    one = seconds(1)
    return seconds(config.timesteps) if one * config.timesteps <= SHORT and config.timesteps > 1 else one
