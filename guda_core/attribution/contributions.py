"""Timestep contributions: how much each stratum of timesteps adds to a score, and how its interval narrowed.

    drop = sum_k n_k mean_j d_kj,   d_kj = KL_t(without) - KL_t(full) at draw j of stratum k (diffusion/likelihood.py)

The score is the drop, of GUDA with the group's offset (`Attribution.offset`).
Both are read from the KL values that an Attribution keeps, so a stored report tells the same as the live answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from guda_core.diffusion.likelihood import Estimate, Strata, elbo_drop, stratum_sums, stratum_variances
from guda_core.records import KLValues


@dataclass(frozen=True)
class Contribution:
    """What timesteps first .. last add to a score. value, se (standard error; None with one draw): nats. draws: of
    which both are made."""

    first: int
    last: int
    value: float
    se: float | None
    draws: int

    @property
    def half(self) -> float | None:
        """Half of the 95% interval's width, by Student's t; None with one draw."""
        return None if self.se is None else float(special.stdtrit(self.draws - 1, 0.975)) * self.se


def contributions(kl: KLValues, group: str) -> list[Contribution]:
    """What each stratum adds, in the order of timesteps; their values add up to the group's drop."""
    strata = Strata(tuple(int(e) for e in kl.edges))
    full, without = kl.pair(group)
    d = without - full  # (K, m)
    value = stratum_sums(d, strata.sizes)
    se = np.sqrt(stratum_variances(d, strata.sizes)) if d.shape[1] > 1 else [None] * len(value)
    rows = zip(strata.edges[:-1], strata.edges[1:], value, se, strict=True)
    return [Contribution(a, b - 1, float(v), None if e is None else float(e), d.shape[1]) for a, b, v, e in rows]


def narrowing(kl: KLValues, group: str, offset: float = 0.0, offset_se: float = 0.0) -> list[tuple[int, Estimate]]:
    """(draws in each stratum, the score estimated from the first of them): 2, 4, 8, ... and all. Empty below two.

    offset, offset_se: what the score holds beside the drop, and its standard error, nats."""
    strata = Strata(tuple(int(e) for e in kl.edges))
    full, without = kl.pair(group)
    most = full.shape[1]
    at = sorted({2**i for i in range(1, 12) if 2**i < most} | {most})
    drops = ((m, elbo_drop(full=full[:, :m], without=without[:, :m], strata=strata)) for m in at if m > 1)
    return [(m, e.plus(offset, offset_se)) for m, e in drops]
