"""CLIP similarity (CLIPA): score_k = mean over the group's pictures of cos(f(x), f(x_i)); also their max and prototype.

"csls" is the nearest picture of the group by cross-domain similarity local scaling (Conneau et al. 2018, arXiv
1710.04087, eq. 7), which takes from a cosine how near each side is to everything:

    CSLS(x, x_i) = 2 cos(f(x), f(x_i)) - r(x) - r(x_i)      r: mean cosine to the K = 10 nearest training pictures

A single query has no neighbours of its own kind, so r(x_i) too is over the training pictures, x_i itself left out.

Likeness, not influence: it never asks what the model learned. The interval is that of a mean over the group's pictures
(normal approximation); the others have none, so theirs is the value itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guda_core.attribution.aggregate import mean_score
from guda_core.attribution.method import Budget, Context, Method, Unavailable
from guda_core.data.embeddings import Encoder, no_bank
from guda_core.data.sources.listed import ListedFiles
from guda_core.data.sources.source import open_dataset
from guda_core.errors import GudaError, OptionError
from guda_core.records import Attribution, Cost, GroupScore, GroupSet, Query

AGGREGATES = ("mean", "max", "prototype", "csls")
NEAREST = 10  # K of CSLS
AT_ONCE = 1024  # pictures whose neighbours are looked for at once


def nearness(features: Tensor) -> Tensor:
    """r of each picture: its mean cosine to its `NEAREST` nearest others, (N,); 0 where there are no others.

    features: (N, D) of unit length.
    """
    k, out = min(NEAREST, len(features) - 1), []
    if k < 1:
        return torch.zeros(len(features), dtype=torch.float32)
    for at in range(0, len(features), AT_ONCE):
        cosines = features[at : at + AT_ONCE] @ features.T
        cosines[torch.arange(len(cosines)), at + torch.arange(len(cosines))] = -torch.inf
        out.append(cosines.topk(k, dim=1).values.mean(dim=1))
    return torch.cat(out)


class Similarity(Method):
    """Scores groups by the likeness of their training pictures to the query, in some features of unit length.

    bank: group id -> (N, D) features of its pictures. missing: what is said of a group that has none.
    """

    unit = "cosine"
    missing: ClassVar[str]

    def __init__(self, bank: Mapping[str, Tensor], group_ids: Sequence[str], aggregate: str) -> None:
        if aggregate not in AGGREGATES:
            raise OptionError(f"aggregate '{aggregate}': known are {', '.join(AGGREGATES)}.")
        self.bank, self.group_ids, self.aggregate = bank, list(group_ids), aggregate

    @abstractmethod
    def features(self, pixels: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32 of unit length."""

    @cached_property
    def nearness(self) -> dict[str, Tensor]:
        """Group id -> r of its pictures, over all groups' pictures."""
        found = nearness(torch.cat(list(self.bank.values())))
        return dict(zip(self.bank, found.split([len(f) for f in self.bank.values()]), strict=True))

    def _csls(self, group: str, query: Tensor, own: float) -> GroupScore:
        """own: r of the query."""
        v = float((2 * (self.bank[group] @ query) - self.nearness[group]).max()) - own
        return GroupScore(v, v, v)

    def cost(self, budget: Budget) -> Cost:
        """No pass of the model; one look at the picture by a small network."""
        return Cost()

    def score(self, cosines: torch.Tensor, features: torch.Tensor, query: torch.Tensor) -> GroupScore:
        """One group's score from the cosines (N,) of its pictures to the query."""
        if self.aggregate == "max":
            v = float(cosines.max())
            return GroupScore(v, v, v)
        if self.aggregate == "prototype":
            v = float(query @ F.normalize(features.mean(dim=0), dim=0))
            return GroupScore(v, v, v)
        return mean_score(cosines)

    def attribute(self, query: Query, budget: Budget | None = None) -> Iterator[Attribution]:
        """Yields one Attribution; a group without features is unavailable. budget: has no influence."""
        f = self.features(query.pixels[None])[0]
        none = GroupScore(None, None, None, "unavailable", self.missing)
        if self.aggregate == "csls" and self.bank:
            cosines = torch.cat([features @ f for features in self.bank.values()])
            own = float(cosines.topk(min(NEAREST, len(cosines))).values.mean())
            scores = {g: self._csls(g, f, own) if g in self.bank else none for g in self.group_ids}
        else:
            scores = {
                g: self.score(self.bank[g] @ f, self.bank[g], f) if g in self.bank else none for g in self.group_ids
            }
        settings = {**self.provenance(), "aggregate": self.aggregate}
        yield Attribution(self.id, self.unit, scores, settings=settings)


def _read(clip: Encoder) -> tuple[dict[str, Tensor], str]:
    """(the encoder's bank, SHA-256 of just the file that was read)."""
    while True:
        sha256, bank = clip.bank_sha256(), clip.read_bank()
        if clip.bank_sha256() == sha256:  # nobody put another in its place
            return bank, sha256


class ClipSimilarity(Similarity):
    """Likeness in the features of CLIP. bank_sha256: of the bank's file as it was when it was read."""

    id = "clip"
    name = "CLIP similarity"
    note = (
        "Likeness, not influence: how similar the picture looks to the group's pictures. It does not ask what the "
        "model learned. The interval is the spread over the group's pictures."
    )
    default = True
    missing = "The bank of CLIP features lacks this group."

    def __init__(self, clip: Encoder, group_set: GroupSet, aggregate: str = "mean") -> None:
        bank, self.bank_sha256 = _read(clip)
        super().__init__(bank, list(group_set.groups), aggregate)
        self.clip, self.group_set = clip, group_set

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        if context.clip is None:
            return Unavailable(context.no_clip)
        if not context.clip.bank.is_file():
            return Unavailable(no_bank(context.clip.mend))
        return KINDS.get(context.clip.kind, cls)(context.clip, context.group_set)  # type: ignore[return-value]

    def features(self, pixels: np.ndarray) -> Tensor:
        return self.clip.image_features(pixels)

    @cached_property
    def outdated(self) -> bool:
        """Whether the features are of other pictures or captions than the set's list names now. Of a set without a list
        that is not asked: its pictures would have to be opened."""
        try:
            data = open_dataset(self.group_set)
            now = data.fingerprint("train") if isinstance(data, ListedFiles) else None
        except GudaError:  # there is no list, or none that can be read
            return False
        return now is not None and self.clip.bank_of_data() not in (None, now)

    def caveat(self) -> str:
        """What has to be said of the scores; "" where the features are what they should be."""
        if not self.outdated:
            return ""
        return (
            f"The features that {self.name} compares with were made before the set's pictures or captions changed. "
            f"`{self.clip.mend}` makes them again."
        )

    def provenance(self) -> dict[str, Any]:
        return {"clip_sha256": self.clip.sha256}


class DinoSimilarity(ClipSimilarity):
    """Likeness in the features of DINOv2, where a model's card asks for it."""

    name = "DINOv2 similarity"
    missing = "The bank of DINOv2 features lacks this group."


class CsdSimilarity(ClipSimilarity):
    """Likeness of style, where a model's card asks for it."""

    name = "CSD similarity (style)"
    note = (
        "Likeness, not influence: how similar the picture's style is to that of the group's pictures. It does not ask "
        "what the model learned. The interval is the spread over the group's pictures."
    )
    missing = "The bank of CSD features lacks this group."


KINDS: dict[str, type[ClipSimilarity]] = {"dinov2": DinoSimilarity, "csd": CsdSimilarity}
