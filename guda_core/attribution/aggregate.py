"""From one number a training picture to one score a group: sum_k = sum over the group's pictures, or their mean.

Intervals take the group's pictures as a sample of what it could have contributed: n mean +- q sqrt(n) s, or
mean +- q s / sqrt(n), with q = 1.96, or, of fewer than 30 pictures, Student's t of n - 1 degrees of freedom. They tell
nothing of the method's own error. One picture alone tells no interval: low and high are the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special
from torch import Tensor

from guda_core.errors import OptionError
from guda_core.records import GroupScore

AGGREGATES = ("sum", "mean")
Z, MANY = 1.96, 30  # standard errors of a 95% interval, from so many values on


def errors_of_95(n: int) -> float:
    """How many standard errors, estimated from n values (2 or more), a 95% interval reaches to each side."""
    return Z if n >= MANY else float(special.stdtrit(n - 1, 0.975))


def mean_score(values: Tensor) -> GroupScore:
    """The mean of the values (N,) of a group's pictures."""
    v, n = float(values.mean()), len(values)
    half = errors_of_95(n) * float(values.std()) / math.sqrt(n) if n > 1 else 0.0
    return GroupScore(v, v - half, v + half)


def check_aggregate(how: str) -> None:
    """Raises OptionError unless `how` is known."""
    if how not in AGGREGATES:
        raise OptionError(f"aggregate '{how}': known are {', '.join(AGGREGATES)}.")


def group_scores(
    values: np.ndarray, groups: Sequence[str], group_ids: Sequence[str], how: str
) -> dict[str, GroupScore]:
    """values: (N,) of pictures; groups: N ids, aligned. A group without pictures is unavailable."""
    check_aggregate(how)
    member, out = np.asarray(groups), {}
    for g in group_ids:
        v = np.asarray(values, np.float64)[member == g]
        if not len(v):
            out[g] = GroupScore(None, None, None, "unavailable", "There are no training pictures of this group.")
        elif not np.isfinite(v).all():
            out[g] = GroupScore(None, None, None, "no_score", "A picture's value is not finite.")
        else:
            scale = len(v) if how == "sum" else 1
            half = errors_of_95(len(v)) * scale * float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else 0.0
            score = scale * float(v.mean())
            out[g] = GroupScore(score, score - half, score + half)
    return out


def lead(scores: Mapping[str, GroupScore]) -> dict[str, Any]:
    """`separable` and `runner_up` of an Attribution: is the first group ahead of the second in a 95% interval of their
    difference? Different pictures make up the two groups, so their errors are independent and add in squares. Where one
    of the two has no interval, as a group of one picture, nobody can tell: `separable` is None."""
    ok = [(k, s) for k, s in scores.items() if s.score is not None and s.low is not None and s.high is not None]
    if len(ok) < 2:
        return {}
    (_, a), (second, b) = sorted(ok, key=lambda kv: (-(kv[1].score or 0.0), kv[0]))[:2]
    halves = [((s.high or 0.0) - (s.low or 0.0)) / 2 for s in (a, b)]
    ahead = (a.score or 0.0) - (b.score or 0.0) > math.hypot(*halves)
    return {"separable": ahead if all(halves) else None, "runner_up": second}
