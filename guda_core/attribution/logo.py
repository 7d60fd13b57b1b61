"""The live oracle: score_k = ELBO(x | full) - ELBO(x | retrained without group k), in nats.

The retrained (LOGO) models are stored with delta compression (`unlearning.delta`). What that loses is measured.
"""

from __future__ import annotations

from guda_core.attribution.guda import Guda


class Logo(Guda):
    """Scores groups by their retrained models."""

    id = "logo"
    adds_offset = False  # retraining holds nothing back
