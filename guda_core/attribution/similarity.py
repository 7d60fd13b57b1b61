"""CLIP similarity (CLIPA): score_k = mean over the group's pictures of cos(f(x), f(x_i)); also their max and prototype.

Likeness, not influence: it never asks what the model learned. The interval is that of a mean over the group's pictures
(normal approximation); max and prototype have none, so theirs is the value itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from guda_core.data.embeddings import Clip
from guda_core.errors import OptionError
from guda_core.records import Attribution, GroupScore, GroupSet, Query

AGGREGATES = ("mean", "max", "prototype")


class ClipSimilarity:
    """Scores groups by the likeness of their training pictures to the query."""

    id = "clip"
    unit = "cosine"

    def __init__(self, clip: Clip, group_set: GroupSet, aggregate: str = "mean") -> None:
        if aggregate not in AGGREGATES:
            raise OptionError(f"aggregate '{aggregate}': known are {', '.join(AGGREGATES)}.")
        self.clip, self.group_set, self.aggregate = clip, group_set, aggregate
        self.bank = clip.read_bank()

    def score(self, cosines: torch.Tensor, features: torch.Tensor, query: torch.Tensor) -> GroupScore:
        """One group's score from the cosines (N,) of its pictures to the query."""
        if self.aggregate == "max":
            v = float(cosines.max())
            return GroupScore(v, v, v)
        if self.aggregate == "prototype":
            v = float(query @ F.normalize(features.mean(dim=0), dim=0))
            return GroupScore(v, v, v)
        v = float(cosines.mean())
        half = 1.96 * float(cosines.std()) / math.sqrt(len(cosines)) if len(cosines) > 1 else 0.0
        return GroupScore(v, v - half, v + half)

    def attribute(self, query: Query) -> Iterator[Attribution]:
        """Yields one Attribution; a group without features is unavailable."""
        f = self.clip.image_features(query.pixels[None])[0]
        scores = {}
        for g in self.group_set.groups:
            if g not in self.bank:
                scores[g] = GroupScore(None, None, None, "unavailable", "The bank of CLIP features lacks this group.")
            else:
                scores[g] = self.score(self.bank[g] @ f, self.bank[g], f)
        settings = {"clip_sha256": self.clip.sha256, "aggregate": self.aggregate}
        yield Attribution(self.id, self.unit, scores, settings=settings)
