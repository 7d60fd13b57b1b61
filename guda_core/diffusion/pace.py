"""How long a model's passes take on this machine, measured once: from counts of passes to expected seconds.

seconds = forward * s_forward + gradients * s_gradient + seconds of other work (`records.Cost`)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import at_most
from guda_core.diffusion.memory import Fitting, as_fits
from guda_core.records import Cost

BATCH = 24  # pictures of a forward pass that is timed, at most


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of a call's second time; the first is slower."""
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Pace:
    """Measured seconds of a model's passes. Nothing is measured before it is asked for."""

    def __init__(self, model: BaseModel, batch: int = BATCH) -> None:
        """batch: pictures of a forward pass that is timed, at most."""
        self.model, self.batch = model, batch

    def seconds(self, cost: Cost) -> float:
        """Expected seconds of a cost."""
        passes = cost.forward * self.forward_s if cost.forward else 0.0
        gradients = cost.gradients * self.gradient_s if cost.gradients else 0.0
        return passes + gradients + cost.seconds

    @cached_property
    def forward_s(self) -> float:
        """Seconds of one picture's forward pass in a batch, of as many as fit into memory.

        Raises:
            NoMemoryError: not even one fits.
        """
        fits = Fitting(at_most(self.batch, self.model))
        with self.model.lock, torch.no_grad():
            as_fits(self._timed, fits.size, fits)  # the first pass takes longer
            return as_fits(self._timed, fits.size, fits)

    @cached_property
    def gradient_s(self) -> float:
        """Seconds of one picture's forward and backward pass to every weight. The model is left as it was.

        Raises:
            NoMemoryError: it does not fit into memory.
        """
        weights = list(self.model.network.parameters())
        needed = [p.requires_grad for p in weights]
        with self.model.lock, torch.enable_grad():
            try:
                for p in weights:
                    p.requires_grad_(True)
                as_fits(lambda n: self._gradient(weights), 1, Fitting(1))  # the first pass takes longer
                began = time.perf_counter()
                self._gradient(weights)
                return time.perf_counter() - began
            finally:
                for p, was in zip(weights, needed, strict=True):
                    p.requires_grad_(was)

    def _timed(self, batch: int) -> float:
        """Seconds of one picture."""
        began = time.perf_counter()
        float(self._pass(batch).sum())  # waits until it is there
        return (time.perf_counter() - began) / batch

    def _gradient(self, weights: list[nn.Parameter]) -> None:
        found = torch.autograd.grad(self._pass(1).sum(), weights, allow_unused=True)
        float(next(g for g in found if g is not None).sum())  # waits until it is there

    def _pass(self, batch: int) -> Tensor:
        m = self.model
        x = torch.zeros(batch, *m.latent_shape, device=m.device, dtype=torch.float32)
        t = torch.full((batch,), len(m.schedule) // 2, device=m.device)
        return m.predict_eps(x, t, m.embed([""] * batch))
