"""GUDA and DAS combined: the mean of their standard scores over the groups.

    score_k = (z_k(GUDA) + z_k(DAS)) / 2,     z_k = (s_k - mean over groups) / standard deviation over groups

This is score fusion by CombSUM (Fox and Shaw, 1994) after z-score normalisation (Montague and Aslam, 2001), with equal
weights and nothing tuned. One part unlearns groups, the other differentiates; where their errors differ, they cancel.
The benchmark has its agreement with the oracle beside that of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from guda_core.attribution.aggregate import lead
from guda_core.attribution.method import Combination
from guda_core.records import Attribution, GroupScore


def standard_scores(scores: np.ndarray) -> np.ndarray:
    """z over the last axis, (..., G) finite; all zero where the scores do not differ."""
    s = np.asarray(scores, np.float64)
    deviation = s.std(axis=-1, keepdims=True)
    return (s - s.mean(axis=-1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)


def mean_of(*scores: np.ndarray) -> np.ndarray:
    """The combined scores, (..., G), of each part's, aligned."""
    return np.mean([standard_scores(s) for s in scores], axis=0)


class GudaAndDas(Combination):
    """Score fusion of an unlearning and a gradient method."""

    id = "combined"
    name = "GUDA and DAS combined"
    unit = "standard scores"
    note = (
        "Influence, GUDA and DAS together: the mean of their standard scores over the groups (0 is the groups' mean). "
        "The interval includes those of both."
    )
    needs = ("guda", "das")

    def combine(self, parts: Mapping[str, Attribution]) -> Attribution:
        """What both parts' answers say together; as far as the less finished one is.

        A group that lacks a score in one part has none here either. Intervals are those of the parts, scaled like their
        scores and added in squares; `separable` compares the first two groups as if their errors were independent. A
        group without an interval in one part, as one of a single picture, has none here either.
        """
        answers = [parts[p] for p in self.needs]
        progress = min(a.progress for a in answers)
        settings = {"parts": {p: dict(parts[p].settings) for p in self.needs}}
        if not all(a.groups for a in answers):
            return Attribution(self.id, self.unit, {}, progress, settings=settings)
        scored = [g for g in answers[0].groups if all(a.groups[g].score is not None for a in answers)]
        own = [np.array([a.groups[g].score for g in scored], np.float64) for a in answers]
        scale = [s.std() or 1.0 for s in own] if scored else []
        both, groups = mean_of(*own) if scored else np.empty(0), {}
        for g in answers[0].groups:
            if g not in scored:
                a = next(a for a in answers if a.groups[g].score is None)
                groups[g] = GroupScore(None, None, None, a.groups[g].status, f"{a.method}: {a.groups[g].reason}")
                continue
            halves = [_half(a.groups[g]) / d for a, d in zip(answers, scale, strict=True)]
            score, half = float(both[scored.index(g)]), math.hypot(*halves) / len(halves) if all(halves) else 0.0
            groups[g] = GroupScore(score, score - half, score + half)
        return Attribution(self.id, self.unit, groups, progress, settings=settings, **lead(groups))


def _half(s: GroupScore) -> float:
    return 0.0 if s.span is None else (s.span[1] - s.span[0]) / 2
