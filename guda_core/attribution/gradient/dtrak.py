"""D-TRAK (Zheng et al. 2024, arXiv 2311.00500): TRAK with the gradient of mean(eps_hat^2) in place of the loss's.

Its authors choose lam on the oracle; here it is fixed beforehand (see `kernel`).
"""

from __future__ import annotations

from guda_core.attribution.gradient.kernel import KernelMethod


class Dtrak(KernelMethod):
    """score_k = sum over the group of phi(x)^T (Phi^T Phi + lam I)^-1 phi(x_i), phi from the estimate's square."""

    id = "dtrak"
    name = "D-TRAK"
    note = (
        "TRAK with the gradient of the model's mean squared output in place of the loss's. The interval is the spread "
        "over the group's pictures."
    )
    output = "mean_square"
