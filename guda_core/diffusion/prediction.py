"""What a network predicts, and what follows from it.

Every kind of prediction is a mixture of the picture and the noise, of which the network sees another one:

    target_t = a_t x_0 + b_t eps           x_t = alpha_t x_0 + sigma_t eps           d_t = alpha_t b_t - sigma_t a_t

    kind            a_t         b_t        source
    epsilon         0           1          Ho et al. 2020
    v_prediction    -sigma_t    alpha_t    Salimans & Ho 2022
    flow            -1          1          Lipman et al. 2023: the velocity eps - x_0

The two equations, solved for x_0 and eps with the network's output o in place of the target, give

    x0_hat  = (b_t x_t - sigma_t o) / d_t         eps_hat = (alpha_t o - a_t x_t) / d_t
    ||x_0 - x0_hat||^2 = c_t^2 ||target_t - o||^2            c_t = sigma_t / |d_t|
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from guda_core.diffusion.schedule import Schedule, spread
from guda_core.errors import ModelError

KINDS: Mapping[str, Callable[[Schedule], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda s: (torch.zeros_like(s.alpha), torch.ones_like(s.alpha)),
    "v_prediction": lambda s: (-s.sigma, s.alpha),
    "flow": lambda s: (-torch.ones_like(s.alpha), torch.ones_like(s.alpha)),
}


class Prediction:
    """One kind of prediction on one schedule. factor: c_t, (T,) float64.

    Raises:
        ModelError: an unknown kind, or one that says nothing about the picture at some timestep.
    """

    def __init__(self, kind: str, schedule: Schedule) -> None:
        if kind not in KINDS:
            raise ModelError(
                f"This model predicts '{kind}'. Only {', '.join(KINDS)} can be scored: the likelihood needs the "
                "picture that the network expects."
            )
        self.kind, self.schedule = kind, schedule
        alpha, sigma = schedule.alpha, schedule.sigma
        a, b = KINDS[kind](schedule)
        d = alpha * b - sigma * a
        if (d == 0).any():
            raise ModelError(
                f"This model predicts '{kind}', but its schedule ends in pure noise (zero terminal SNR), where the "
                "noise says nothing about the picture. Use a model that predicts 'v_prediction'."
            )
        self._target, self._x0, self._eps = (a, b), (b / d, -sigma / d), (-a / d, alpha / d)
        self.factor = sigma / d.abs()

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer at x_t. x_0, eps: (B, C, h, w) float32; t: (B,) int64."""
        return eps if self.kind == "epsilon" else self._mix(self._target, x_0, eps, t)

    def x0_hat(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The picture that the network expects, (B, C, h, w) float32."""
        return self._mix(self._x0, x_t, output, t)

    def eps_hat(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that the network expects, (B, C, h, w) float32."""
        return output.float() if self.kind == "epsilon" else self._mix(self._eps, x_t, output, t)

    @staticmethod
    def _mix(tables: tuple[Tensor, Tensor], first: Tensor, second: Tensor, t: Tensor) -> Tensor:
        p, q = (spread(table, t, first) for table in tables)  # (B, 1, 1, 1)
        return p * first.float() + q * second.float()
