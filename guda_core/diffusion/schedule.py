"""The noise schedule of a diffusion process, for all families of models.

    x_t = alpha_t x_0 + sigma_t eps,     eps ~ N(0, I),     SNR_t = alpha_t^2 / sigma_t^2

    DDPM (Ho et al. 2020)              alpha_t = sqrt(alpha_bar_t)    sigma_t = sqrt(1 - alpha_bar_t)
    flow matching (Lipman et al. 2023) alpha_t = 1 - s_t              sigma_t = s_t

t counts the steps of a grid, 0 .. T-1, from little noise to much. A likelihood depends on the SNR alone (Kingma et al.
2021), so nothing else needs to know the family.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from guda_core.errors import ModelError


@dataclass(frozen=True)
class Schedule:
    """alpha, sigma: (T,) float64, alpha >= 0, sigma > 0; the SNR falls strictly. alpha may be 0 at the last step ("zero
    terminal SNR", Lin et al. 2024): x_t is then noise alone.

    rounded: alpha and sigma in float32, as pictures are noised with them; left out, they are rounded from float64.

    Raises:
        ModelError: the numbers are no schedule.
    """

    alpha: Tensor
    sigma: Tensor
    rounded: tuple[Tensor, Tensor] = field(default=(), repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.alpha.dim() != 1 or self.alpha.shape != self.sigma.shape or len(self.alpha) < 2:
            raise ModelError("A noise schedule needs one alpha and one sigma for each of two timesteps or more.")
        fine = torch.isfinite(self.snr).all() and (self.alpha >= 0).all() and (self.sigma > 0).all()
        if not fine or not (self.snr.diff() < 0).all():
            raise ModelError("The model's noise schedule is damaged: its noise must grow with every timestep.")
        if not self.rounded:
            object.__setattr__(self, "rounded", (self.alpha.float(), self.sigma.float()))

    @classmethod
    def ddpm(cls, alphas_cumprod: Tensor) -> Schedule:
        """The schedule of alpha_bar, (T,) in [0, 1). Pictures are noised with the roots of its float32 values, as
        diffusers' schedulers do it and as the networks were trained."""
        ab, single = alphas_cumprod.double(), alphas_cumprod.float()
        return cls(ab.sqrt(), (1 - ab).sqrt(), (single.sqrt(), (1 - single).sqrt()))

    @classmethod
    def flow(cls, s: Tensor) -> Schedule:
        """The schedule of flow matching on a grid of times s, (T,) rising in (0, 1]: x_s = (1 - s) x_0 + s eps."""
        return cls(1 - s.double(), s.double())

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio alpha^2 / sigma^2, (T,) float64."""
        return (self.alpha / self.sigma).square()

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t. x_0, eps: (B, C, h, w) float32 on one device; t: (B,) int64 on any."""
        alpha, sigma = (spread(table, t, x_0) for table in self.rounded)
        return alpha * x_0 + sigma * eps


def spread(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] as float32 on the device of `like`, with as many dimensions: (B, 1, 1, 1) for pictures."""
    found = table[t.to(table.device)].to(like.device, torch.float32)
    return found.reshape(-1, *[1] * (like.dim() - 1))
