"""CLIP similarity with the features of a small classifier of the groups in CLIP's place.

For pictures that a CLIP was never made for, such as 8 by 8 digits. score_k = mean over the group's pictures of
cos(f(x), f(x_i)); also their max and prototype; intervals as in `attribution.similarity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from guda_core.attribution.counterfactual import Budget
from guda_core.attribution.similarity import AGGREGATES, ClipSimilarity
from guda_core.data.dataset import Pictures
from guda_core.errors import OptionError
from guda_core.records import Attribution, GroupScore, Query


class Featurizer(Protocol):
    """(N, H, W, 3) uint8 -> (N, D) float32 of unit length, e.g. `train.classifier.Classifier`."""

    def image_features(self, pixels: np.ndarray) -> Tensor: ...


class ClassifierSimilarity(ClipSimilarity):
    """Scores groups by the likeness of their training pictures to the query, in a classifier's features."""

    id = "classifier"

    def __init__(
        self, classifier: Featurizer, pictures: Pictures, group_ids: Sequence[str], aggregate: str = "mean"
    ) -> None:
        if aggregate not in AGGREGATES:
            raise OptionError(f"aggregate '{aggregate}': known are {', '.join(AGGREGATES)}.")
        self.classifier, self.group_ids, self.aggregate = classifier, list(group_ids), aggregate
        features, groups = classifier.image_features(pictures.pixels), np.asarray(pictures.groups)
        self.bank = {g: features[groups == g] for g in self.group_ids if (groups == g).any()}

    def prepare(self) -> Iterator[float]:
        """Nothing is left to do: the features were computed at once."""
        yield 1.0

    def attribute(self, query: Query, budget: Budget | None = None) -> Iterator[Attribution]:
        """Yields one Attribution; a group without pictures is unavailable. budget: has no influence."""
        f = self.classifier.image_features(query.pixels[None])[0]
        none = GroupScore(None, None, None, "unavailable", "There are no training pictures of this group.")
        scores = {g: self.score(self.bank[g] @ f, self.bank[g], f) if g in self.bank else none for g in self.group_ids}
        yield Attribution(self.id, self.unit, scores, settings={"aggregate": self.aggregate})
