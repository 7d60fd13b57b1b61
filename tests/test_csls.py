"""CSLS in similarity: brute force on tiny random towers, and a hub that no longer wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from guda_core.attribution import similarity
from guda_core.attribution.similarity import Similarity
from guda_core.records import Query


class Tower(Similarity):
    """A random linear tower over 4 by 4 pixels."""

    id, name, note, missing = "tower", "Tower", "", "None."

    @classmethod
    def load(cls, context):
        raise NotImplementedError

    def provenance(self):
        return {}

    def features(self, pixels):
        w = torch.randn(48, 6, generator=torch.Generator().manual_seed(7))
        return F.normalize(torch.from_numpy(pixels.reshape(len(pixels), -1)).float() @ w, dim=1)


def pixels(seed, n=1):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def answer(tower, picture):
    query = Query(pixels=picture, latent=torch.zeros(1), prompt="", image_hash="x")
    (found,) = tower.attribute(query)
    return {g: s.score for g, s in found.groups.items()}


@pytest.mark.parametrize("sizes", [(5, 9, 4), (3, 1, 2)])  # more and fewer pictures than K
def test_it_is_conneaus_formula_for_each_groups_nearest_picture(sizes, monkeypatch):
    monkeypatch.setattr(similarity, "AT_ONCE", 4)  # in several parts
    tower = Tower({}, ["a", "b", "c", "none"], "csls")
    tower.bank = {g: tower.features(pixels(i, n)) for i, (g, n) in enumerate(zip("abc", sizes, strict=True))}
    f = tower.features(pixels(9))[0].numpy()
    everyone = [x for g in "abc" for x in tower.bank[g].numpy()]
    own = np.sort([f @ x for x in everyone])[::-1][:10].mean()

    def r(i):
        others = [everyone[i] @ x for j, x in enumerate(everyone) if j != i]
        return np.sort(others)[::-1][:10].mean()

    values = [2 * f @ x - own - r(i) for i, x in enumerate(everyone)]
    truth = {g: max(v) for g, v in zip("abc", np.split(np.array(values), np.cumsum(sizes)[:-1]), strict=True)}
    found = answer(tower, pixels(9)[0])
    assert found.pop("none") is None
    assert found == pytest.approx(truth, abs=1e-5)


def test_a_hub_that_is_near_to_everything_no_longer_comes_first(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    crowd = F.normalize(torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.1 * torch.randn(30, 6, generator=rng), dim=1)
    hub, lonely, query = (
        torch.tensor([[math.cos(a), math.sin(a), 0, 0, 0, 0]]) for a in (0, math.radians(60), math.radians(28))
    )
    firsts = {}
    for aggregate in ("max", "csls"):
        tower = Tower({"hub": hub, "crowd": crowd, "lonely": lonely}, ["hub", "lonely"], aggregate)
        monkeypatch.setattr(tower, "features", lambda pixels: query)
        found = answer(tower, pixels(0)[0])
        firsts[aggregate] = max(found, key=lambda g: found[g] or 0.0)
    assert firsts == {"max": "hub", "csls": "lonely"}


def test_one_picture_alone_has_no_neighbours():
    tower = Tower({"a": F.normalize(torch.ones(1, 6), dim=1)}, ["a"], "csls")
    f = tower.features(pixels(1))[0]
    cosine = float(tower.bank["a"][0] @ f)
    assert answer(tower, pixels(1)[0]) == pytest.approx({"a": 2 * cosine - cosine}, abs=1e-6)
