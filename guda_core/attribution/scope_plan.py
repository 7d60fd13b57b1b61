"""What making a scope's rule will take, said before: pictures by count, time by what is really tried.

    seconds = N (S f s_forward + s_decode) + M s_measure

N pictures that the model draws in S steps, f = 2 passes a step with guidance, else 1; M pictures, at most, whose
signals are taken, each in s_measure with its encoding and decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from guda_core.attribution import scope_material, scope_signals
from guda_core.attribution.scope_fit import ABOUT, ScopeConfig
from guda_core.attribution.scope_pictures import DRAWN, kinds_in
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.pace import Pace, seconds_of

PIXELS = 128  # of the grey picture that is tried


@dataclass(frozen=True)
class ScopePlan:
    """drawn: pictures that the model draws. passes: forward passes of one picture that this takes. measured: pictures
    whose signals are taken, at most. seconds: of both, about."""

    drawn: int
    passes: int
    measured: int
    seconds: float


def measured_at_most(config: ScopeConfig, foreign: Path | None = None) -> int:
    """Of how many pictures the model's signals are taken, at most: kinds that belong are in three parts of the
    material, foreign ones in two. foreign: folder with further kinds."""
    strange = {*DRAWN, "photographs"}
    if foreign is not None:
        strange |= {p.name for p in kinds_in(foreign)}
    inside, calibration, outside, tried = (
        min(config.pictures, config.most(part)) for part in ("inside", "calibration", "outside", "tried")
    )
    return len(ABOUT) * (inside + calibration + tried) + len(strange) * (outside + tried)


def make_plan(model: BaseModel, config: ScopeConfig, *, foreign: Path | None = None) -> ScopePlan:
    """The plan. foreign: as of `scope_fit.run`.

    Raises:
        DataError: there is no folder `foreign`.
        NoMemoryError, ModelError, ScoreError: the model cannot do it once, so it could not do all of it.
    """
    n, side = scope_material.count_own(config.pictures), model.card.resolution
    passes = n * scope_material.STEPS * (2 if model.tokens("")[1] > 0 else 1)
    pixels = np.full((side, side, 3), PIXELS, np.uint8)
    most, latent = measured_at_most(config, foreign), torch.zeros(1, *model.latent_shape, dtype=torch.float32)
    measure_s = seconds_of(lambda: scope_signals.of_model(model, pixels, model.encode(pixels), "plan"))
    decode_s = seconds_of(lambda: model.decode(latent))
    forward_s = Pace(model, batch=scope_material.AT_ONCE).forward_s
    return ScopePlan(n, passes, most, passes * forward_s + n * decode_s + most * measure_s)
