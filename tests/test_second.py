"""The group set of the second edition: whole, as the first edition's where both know an object, and told apart."""

from __future__ import annotations

import itertools

import yaml

from experiments.second import SETS
from guda_core.data.groups import load_group_set


def test_the_set_of_eleven_teams():
    first, second = load_group_set("emoji"), load_group_set("emoji-eleven", SETS)
    assert len(second.groups) == 11 and second.resolution == 128
    assert set(first.groups) - set(second.groups) == {"streamline-emojis"}
    for gid in set(first.groups) & set(second.groups):
        assert first.groups[gid] == second.groups[gid]
    train, held_out = set(second.train_objects), set(second.held_out_objects)
    assert (len(train), len(held_out)) == (310, 150) and not train & held_out
    assert not train & set(first.held_out_objects) and not held_out & set(first.train_objects)
    for a, b in itertools.combinations(second.groups.values(), 2):
        assert len(set(a.descriptors) & set(b.descriptors)) <= 2 and len(set(a.descriptors)) == 6
    entry = yaml.safe_load((SETS / "emoji-eleven" / "group_set.yaml").read_text(encoding="utf-8"))
    packages = [g["source"]["package"] for g in entry["groups"].values()]
    assert len(set(packages)) == 11 and all(p.startswith("@iconify-json/") for p in packages)
