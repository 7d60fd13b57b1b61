"""Whether two records are the same but for what another processor rounds otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def alike(a: Any, b: Any) -> bool:
    """Equal, and floats to nine digits; wherever they stand in lists and objects."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    return a == b
