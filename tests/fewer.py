"""Fewer resamplings, for tests that look at no interval's width."""

from __future__ import annotations

from functools import lru_cache

import pytest

from experiments.benchmark import variation
from guda_core.attribution import metrics

DRAWS = 20


def few_draws(patch: pytest.MonkeyPatch) -> None:
    """Tables of agreement with few resamplings of the queries."""
    patch.setattr(metrics, "DRAWS", DRAWS)
    patch.setattr(variation, "DRAWS", DRAWS)
    patch.setattr(variation, "PARTS", DRAWS)
    patch.setattr(variation, "picture_weights", lru_cache(variation.picture_weights.__wrapped__))
