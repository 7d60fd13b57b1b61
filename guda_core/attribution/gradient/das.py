"""Diffusion Attribution Score (DAS, arXiv 2410.18639): how far the noise estimate at x moves when x_i is left out.

    tau(x, x_i) = ( phi(x)^T (Phi^T Phi + lam I)^-1 phi(x_i) r_i / (1 - h_i) )^2

phi: gradient of mean(eps_hat), of unit length at every timestep, averaged over timesteps. r_i: the residual of x_i,
the root mean square of eps - eps_hat, averaged over timesteps. h_i: the leverage of x_i. The square is a distance, so
scores are never negative: a picture that made x harder to explain counts as much as one that made it easier.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from guda_core.attribution.gradient.kernel import KernelMethod


class Das(KernelMethod):
    """score_k = sum over the group of the squared change of the estimate at the query when one picture is left out."""

    id = "das"
    name = "DAS"
    note = (
        "Influence by gradients: how far the model's output for this picture moves, squared, when the group's pictures "
        "are left out one by one. It does not tell better from worse. The interval is the spread over the group's "
        "pictures."
    )
    output = "mean"
    normalise = True
    dim = 4096

    def values(self, query: np.ndarray) -> np.ndarray:
        change = self.ridge.kernel(query) * self.features.residual / (1 - self.leverage)
        return change**2

    @cached_property
    def leverage(self) -> np.ndarray:
        """h_i of every training picture, (N,)."""
        return self.ridge.leverage()
