"""The live oracle: score_k = ELBO(x | full) - ELBO(x | retrained without group k), in nats.

The retrained (LOGO) models are kept as adapters that make the full model answer as they do (`distill`).
"""

from __future__ import annotations

from guda_core.methods.guda import Guda


class Logo(Guda):
    """Scores groups by their distilled LOGO models."""

    id = "logo"
