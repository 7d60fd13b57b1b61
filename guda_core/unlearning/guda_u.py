"""GUDA-U (arXiv 2601.22651): forget a group of an unconditional model by ReTrack.

    target = eps_bar_t(x_t) = sum_r w_r (x_t - sqrt(ab_t) x_r) / sqrt(1 - ab_t)

the posterior mean noise of the K retained pictures nearest to x_0, or of all (`losses.retrack_target`).
ReTrack: Shi, Jin, Zhang and Gu (arXiv 2509.13007).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guda_core.errors import OptionError
from guda_core.unlearning import losses
from guda_core.unlearning.config import UnconditionalConfig
from guda_core.unlearning.forget import ForgetLoss, Half, Task


class Retrack(ForgetLoss):
    """Answer as the exact model of the retained pictures would."""

    settings = UnconditionalConfig
    needs_prompts = False

    def __init__(self, task: Task, config: UnconditionalConfig) -> None:
        super().__init__(task, config)
        if not isinstance(task.latents, Tensor):
            raise OptionError("ReTrack compares pictures place by place, so that they must have one size: `fit: crop`.")
        self._near: dict[bool, Tensor] = {}  # whether of its own pictures -> places of the nearest in them, (N, K)

    @cached_property
    def bandwidth(self) -> float:
        """h. Of the pictures where the settings name none; made when it is first needed, not for a plan of costs."""
        if self.config.bandwidth is not None:
            return self.config.bandwidth
        assert isinstance(self.task.latents, Tensor)  # seen above
        return losses.likely_bandwidth(self.task.latents)

    def stand_in(self) -> None:
        self.bandwidth = 1.0 if self.config.bandwidth is None else self.config.bandwidth
        k = self.config.neighbours or 0
        for own, of in ((True, self.task.own), (False, self.task.others)):
            self._near[own] = torch.zeros(len(self.task.own), min(k, len(of)), dtype=torch.long)

    def record(self) -> Mapping[str, Any]:
        return {"bandwidth": self.bandwidth} if self.config.bandwidth is None else {}

    def passes(self, batch: int) -> int:
        return 0

    def near(self, half: Half, of: Tensor) -> Tensor:
        """Of the pictures at the places `of`, own or others: the K nearest of each forgotten x_0, (B, K, C, h, w), or
        all, (R, C, h, w)."""
        latents, own, k = self.task.latents, self.task.own, self.config.neighbours
        if k is not None:
            mine = of is own
            if mine not in self._near:  # they depend on x_0 alone
                self._near[mine] = losses.nearest(latents[own], latents[of], k)
            of = of[self._near[mine][torch.searchsorted(own, half.at)]]
        return latents[of].to(half.x_t.device)

    def alpha_bar(self, half: Half) -> Tensor:
        """(B,) float32, on the device."""
        return self.task.model.schedule.alpha[half.t.cpu()].square().float().to(half.x_t.device)

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        near, alpha_bar = self.near(forgotten, self.task.others), self.alpha_bar(forgotten)
        return losses.retrack_target(forgotten.x_t, near, alpha_bar, bandwidth=self.bandwidth)
