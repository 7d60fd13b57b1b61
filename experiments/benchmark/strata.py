"""The strata that committed values were drawn in: the product's own rule, and the one before it.

    kl        `likelihood.make_strata`
    sqrt-kl   nearly equal mass under 0.5 uniform + 0.5 sqrt(KL weight of the noise's squared error)

The weights of the oracle's trainings are too big to be kept, only values are. Those were drawn by "sqrt-kl". Its first
stratum is as wide as 1 .. 17 and holds nearly all of the variance. So nothing new is drawn by it but the digits'
figures, which go on as they began.
"""

from __future__ import annotations

import numpy as np

from guda_core.diffusion import likelihood
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ScoreError

OLD_RULE = "sqrt-kl"


def make_strata(schedule: Schedule, k: int, rule: str) -> likelihood.Strata:
    """k strata 1 .. T-1 by one of the two rules.

    Raises:
        ScoreError: there are fewer timesteps than strata, or no such rule.
    """
    if rule == likelihood.RULE:
        return likelihood.make_strata(schedule, k)
    if rule != OLD_RULE:
        raise ScoreError(f"There is no rule '{rule}' of strata. Known: {likelihood.RULE}, {OLD_RULE}.")
    w = np.sqrt(likelihood.kl_weights(Prediction("epsilon", schedule))[1:].numpy())
    if k > len(w):
        raise ScoreError(f"{k} strata do not fit into {len(w)} timesteps.")
    cdf = np.concatenate([[0.0], np.cumsum(0.5 / len(w) + 0.5 * w / w.sum())])  # of t < 1, 2, .. T
    edges = [1]
    for j in range(1, k):
        at = max(edges[-1] + 1, 1 + int(np.searchsorted(cdf, j / k)))
        edges.append(min(at, len(schedule) - (k - j)))  # the strata that follow need a timestep each
    return likelihood.Strata((*edges, len(schedule)))
