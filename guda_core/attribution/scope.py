"""Could this model have made a picture? The bits that the whole model needs for it, against a measured threshold.

    bits = 1/2 log2(2 pi e s^2) + sum_t E_eps[KL_t] / (D ln 2)        bits per dimension; high = foreign to the model
    s^2  = max(mean((decode(encode(x)) - x)^2), 1/12)                 in squared pixel values, 0 .. 255

x has D = H W 3 values. The first term is what a Gaussian decoder spends that knows its own error (sigma-VAE, Rybkin et
al. 2021; 1/12 is the error of rounding), the second the ELBO's KL terms without a caption (`diffusion.likelihood`).
Terms that are the same for every picture are left out, and so is the encoder's entropy: the latent is its mean. More
bits than all but a few of the model's own and its training pictures: out of scope. How often that errs is measured by
`python -m guda_core assets scope` and stored beside the threshold.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import ModelError, ScoreError
from guda_core.records import Query, Scope

FILE = "scope.json"
UNIT = "bits per dimension"
ROUNDING = 1 / 12  # variance of the error of rounding to whole pixel values
UNKNOWN = "This model's scope was not measured; `python -m guda_core assets scope` does it."


@dataclass(frozen=True)
class BitsConfig:
    """strata of timesteps (likelihood.make_strata), and draws in each, for the KL terms."""

    strata: int = 24
    draws: int = 1

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> BitsConfig:
        """What `plain` wrote. Raises ValueError when the strata were cut by another rule than today's."""
        if found.get("rule", likelihood.RULE) != likelihood.RULE:
            raise ValueError("other strata")
        return cls(**{k: v for k, v in found.items() if k != "rule"})

    def plain(self) -> dict[str, Any]:
        """As records hold it."""
        return {**asdict(self), "rule": likelihood.RULE}


@dataclass(frozen=True)
class Rule:
    """More bits than `threshold` is out of scope. errors: kind of picture -> how often it was called out of scope."""

    threshold: float
    config: BitsConfig
    errors: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""


def bits(model: BaseModel, query: Query, config: BitsConfig) -> float:
    """Bits per dimension of a picture under the model without a caption. The same picture always gives the same value.

    Raises:
        ScoreError: a value is not finite, or there is too little memory.
    """
    strata = likelihood.make_strata(model.schedule, config.strata)
    draws = likelihood.draw_times(query.image_hash, strata, config.draws)
    with model.lock, torch.no_grad():
        kl = likelihood.kl_values(model, query.latent, model.embed([""]), draws, list(range(config.draws)))
        again = model.decode(query.latent)[0]  # (H, W, 3) uint8
    error = float(np.mean((again.astype(np.float64) - query.pixels) ** 2))
    spread = 0.5 * math.log2(2 * math.pi * math.e * max(error, ROUNDING))
    total = float(likelihood.stratum_sums(kl, strata.sizes).sum())
    return spread + total / (query.pixels.size * math.log(2))


def read_rule(path: Path, *, base_sha256: str) -> Rule | str:
    """The measured rule of a model, or a sentence why there is none."""
    try:
        data = path.read_bytes()
        found = json.loads(data)
        threshold, config = found["threshold"], BitsConfig.read(found["config"]["bits"])
        if found["base_sha256"] != base_sha256:
            return UNKNOWN
        errors = {k: v["out_of_scope"] for k, v in found["kinds"].items()}
        if not isinstance(threshold, float) or not math.isfinite(threshold):
            return f"{path.name} is damaged."
    except FileNotFoundError:
        return UNKNOWN
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path.name} is damaged."
    return Rule(threshold, config, errors, hashlib.sha256(data).hexdigest())


def judge(rule: Rule | str, model: BaseModel, query: Query) -> Scope:
    """The verdict on a picture, with both numbers in the reason; "not assessed" where there is no rule."""
    if isinstance(rule, str):
        return Scope("not assessed", None, None, "", rule)
    try:
        value = bits(model, query, rule.config)
    except (ScoreError, ModelError) as e:
        return Scope("not assessed", None, None, "", str(e))
    outside = value > rule.threshold
    reason = (
        f"The model needs {value:.2f} {UNIT} for it{', too many' if outside else ''}. Nearly all of its own and its "
        f"training pictures need at most {rule.threshold:.2f}."
    )
    settings = {"bits": rule.config.plain(), "errors": dict(rule.errors), "sha256": rule.sha256}
    return Scope("out of scope" if outside else "in scope", value, rule.threshold, UNIT, reason, settings)
