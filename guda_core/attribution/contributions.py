"""What a score is made of: how much each stratum of timesteps adds, and how its interval narrowed with the draws.

    drop = sum_k n_k mean_j d_kj,   d_kj = KL_t(without) - KL_t(full) at draw j of stratum k (elbo.py)

The score is the drop, of GUDA with the group's offset (`Attribution.offset`).
Both are read from the values that an Attribution keeps, so a stored report tells the same as the live answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from guda_core.diffusion.likelihood import Estimate, Strata, elbo_drop


@dataclass(frozen=True)
class Contribution:
    """What timesteps first .. last add to a score. value, se (standard error; None with one draw): nats."""

    first: int
    last: int
    value: float
    se: float | None


def has_values(values: Mapping[str, np.ndarray], group: str) -> bool:
    """Whether everything that both functions below need is there."""
    return {"edges", "kl_full", f"kl_without/{group}"} <= set(values)


def contributions(values: Mapping[str, np.ndarray], group: str) -> list[Contribution]:
    """One Contribution a stratum, in the order of timesteps; their values add up to the group's drop.

    values: of an Attribution in nats: edges (K + 1,), kl_full (K, M), kl_without/<group> (K, M).
    """
    strata = Strata(tuple(int(e) for e in values["edges"]))
    d = values[f"kl_without/{group}"] - values["kl_full"]  # (K, M)
    n, draws = strata.sizes, d.shape[1]
    mean = n * d.mean(axis=1)
    se = n * d.std(axis=1, ddof=1) / math.sqrt(draws) if draws > 1 else [None] * len(n)
    rows = zip(strata.edges[:-1], strata.edges[1:], mean, se, strict=True)
    return [Contribution(a, b - 1, float(v), None if e is None else float(e)) for a, b, v, e in rows]


def narrowing(values: Mapping[str, np.ndarray], group: str, offset: float = 0.0) -> list[tuple[int, Estimate]]:
    """(draws in each stratum, the score estimated from the first of them): 2, 4, 8, ... and all. Empty below two.

    offset: what the score holds beside the drop, nats."""
    strata = Strata(tuple(int(e) for e in values["edges"]))
    full, without = values["kl_full"], values[f"kl_without/{group}"]
    most = full.shape[1]
    at = sorted({2**i for i in range(1, 12) if 2**i < most} | {most})
    drops = ((m, elbo_drop(full=full[:, :m], without=without[:, :m], strata=strata)) for m in at if m > 1)
    return [(m, e.plus(offset)) for m, e in drops]
