"""Captions: an object plus style descriptors drawn from its group, from a seeded generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guda_core.records import GroupSet


def draw(items: tuple[str, ...] | list[str], k: int, generator: torch.Generator) -> list[str]:
    """k different items, in random order."""
    return [items[i] for i in torch.randperm(len(items), generator=generator)[:k].tolist()]


def style_caption(group_set: GroupSet, object_name: str, group_id: str, generator: torch.Generator) -> str:
    """The object with `descriptors_per_caption` random descriptors of the group."""
    descriptors = draw(group_set.groups[group_id].descriptors, group_set.descriptors_per_caption, generator)
    return group_set.write_caption(object_name, descriptors)


def blend_caption(group_set: GroupSet, object_name: str, group_ids: Sequence[str], generator: torch.Generator) -> str:
    """The object with descriptors of several groups in turn: `descriptors_per_caption` in all, no doubles."""
    lists = [draw(group_set.groups[g].descriptors, 99, generator) for g in group_ids]
    chosen: list[str] = []
    while len(chosen) < group_set.descriptors_per_caption:
        pool = lists[len(chosen) % len(lists)]
        chosen.append(next(d for d in pool if d not in chosen))
    return group_set.write_caption(object_name, chosen)


def every_caption(group_set: GroupSet) -> list[str]:
    """One caption for each object trained on and each group, with the group's first descriptors; doubles left out."""
    k = group_set.descriptors_per_caption
    styles = [list(g.descriptors[:k]) for g in group_set.groups.values()]
    return list(dict.fromkeys(group_set.write_caption(o, d) for o in group_set.train_objects for d in styles))


def drop(captions: Sequence[str], probability: float, generator: torch.Generator) -> list[str]:
    """Each caption replaced by the empty prompt with the given probability (classifier-free guidance's training)."""
    gone = torch.rand(len(captions), generator=generator) < probability
    return ["" if g else c for c, g in zip(captions, gone.tolist(), strict=True)]
