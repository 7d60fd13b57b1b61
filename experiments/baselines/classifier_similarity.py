"""CLIP similarity with the features of a small classifier of the groups in CLIP's place.

For pictures that a CLIP was never made for, such as 8 by 8 digits. score_k = mean over the group's pictures of
cos(f(x), f(x_i)); also their max and prototype; intervals as in `attribution.similarity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from guda_core.attribution.method import Context, Unavailable
from guda_core.attribution.similarity import Similarity
from guda_core.data.dataset import Pictures


class Featurizer(Protocol):
    """(N, H, W, 3) uint8 -> (N, D) float32 of unit length, e.g. `experiments.train.classifier.Classifier`."""

    def image_features(self, pixels: np.ndarray) -> Tensor: ...


class ClassifierSimilarity(Similarity):
    """Scores groups by the likeness of their training pictures to the query, in a classifier's features."""

    id = "classifier"
    name = "Classifier similarity"
    note = (
        "Likeness, not influence: how similar the picture is to the group's pictures, in the features of a classifier "
        "of the groups. The interval is the spread over the group's pictures."
    )
    missing = "There are no training pictures of this group."

    def __init__(
        self, classifier: Featurizer, pictures: Pictures, group_ids: Sequence[str], aggregate: str = "mean"
    ) -> None:
        features, groups = classifier.image_features(pictures.pixels), np.asarray(pictures.groups)
        super().__init__({g: features[groups == g] for g in group_ids if (groups == g).any()}, group_ids, aggregate)
        self.classifier = classifier

    @classmethod
    def load(cls, context: Context) -> Unavailable:
        return Unavailable("It needs a classifier of the groups, which the benchmarks train (experiments.train).")

    def features(self, pixels: np.ndarray) -> Tensor:
        return self.classifier.image_features(pixels)

    def prepare(self) -> Iterator[float]:
        """Nothing is left to do: the features were computed at once."""
        yield 1.0
