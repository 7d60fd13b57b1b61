"""TRAK (Park et al. 2023) on a diffusion model: the kernel of gradients of the loss mean((eps - eps_hat)^2)."""

from __future__ import annotations

from guda_core.attribution.gradient.kernel import KernelMethod


class Trak(KernelMethod):
    """score_k = sum over the group of phi(x)^T (Phi^T Phi + lam I)^-1 phi(x_i), phi from the loss."""

    id = "trak"
    name = "TRAK"
    note = (
        "Influence by gradients: how much training on the group's pictures lowers the loss at this one, to first "
        "order. Nothing is retrained or unlearned. The interval is the spread over the group's pictures."
    )
    output = "loss"
