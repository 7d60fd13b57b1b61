"""The training pictures that a picture looks most like: likeness in an encoder's features, and no more than that.

    nearest = the pictures i with the largest cos(f(x), f(x_i)), over all groups

The feature bank holds no pictures. A name, and the picture itself, are told only where the set's pictures were fetched
from where anybody can fetch them, and where their features are those of the bank.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from guda_core.attribution.similarity import Similarity
from guda_core.data import SOURCES
from guda_core.data.dataset import Item
from guda_core.data.sources.source import open_dataset
from guda_core.errors import GudaError
from guda_core.picture_records import Near
from guda_core.records import GroupSet, Query

log = logging.getLogger(__name__)
COUNT = 3
SAME = 0.999  # cosine of a picture's features to the bank's, which are kept in half precision


def fetchable(group_set: GroupSet) -> bool:
    """Whether anybody can fetch the training pictures: only such ones are shown. One's own stay private."""
    try:
        return group_set.source in SOURCES and bool(open_dataset(group_set).plan())
    except (GudaError, ValueError, KeyError) as e:
        log.info("The training pictures are not shown. %s", e)
        return False


def fetched(group_set: GroupSet) -> Sequence[Item]:
    """The training pictures that were fetched onto this machine; () where they were not, or are one's own."""
    try:
        if not fetchable(group_set):
            return ()
        return open_dataset(group_set).split("train")
    except (GudaError, OSError, ValueError, KeyError) as e:  # what is damaged is as good as not there
        log.info("The training pictures are not shown. %s", e)
        return ()


def nearest(method: Similarity, query: Query, items: Sequence[Item], count: int = COUNT) -> tuple[Near, ...]:
    """The pictures of the bank that are most like the query, most like first. items: the training pictures in the
    bank's order, of all groups, () where they are not there."""
    f = method.features(query.pixels[None])[0]
    places = [(g, i) for g in method.group_ids if g in method.bank for i in range(len(method.bank[g]))]
    if not places:
        return ()
    cosines = torch.cat([method.bank[g] @ f for g in method.group_ids if g in method.bank])
    best = cosines.topk(min(count, len(places)))
    by_group = {g: [item for item in items if item.group == g] for g in method.group_ids}
    out = []
    for cosine, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        g, i = places[at]
        item = by_group[g][i] if len(by_group[g]) == len(method.bank[g]) else None
        out.append(_near(method, g, i, max(-1.0, min(1.0, cosine)), item, min(query.pixels.shape[:2])))
    return tuple(out)


def _near(method: Similarity, group: str, at: int, cosine: float, item: Item | None, size: int) -> Near:
    if item is None:
        return Near(group, cosine)
    pixels = item.image(size)
    if float(method.features(pixels[None])[0] @ method.bank[group][at]) < SAME:  # other pictures than the bank's
        return Near(group, cosine)
    return Near(group, cosine, item.id.removeprefix(f"{group}/"), pixels)
