"""How near targets come to retrained models: distances by hand, and a "retrained" model that is known."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.ablations import targets
from guda_core.data.dataset import Pictures
from guda_core.diffusion import likelihood
from guda_core.unlearning import adapters
from tests.tiny import tiny_service


def test_distances_are_weighted_sums_and_the_way_is_the_best_coefficient():
    g = torch.Generator().manual_seed(0)
    a, b, truth = (torch.randn(3, 4, 2, 5, 5, generator=g).double() for _ in range(3))
    weights = torch.rand(3, 4, generator=g).double()
    d = targets.Distances(weights)
    by_hand = sum(weights[i, k] * ((a - truth)[i, k] ** 2).sum() for i in range(3) for k in range(4)) / 3
    assert d.of(a, truth) == pytest.approx(float(by_hand))
    assert d.way(a + 0.7 * (b - a), a, b - a) == pytest.approx(0.7)
    best = d.way(truth, a, b - a)
    tried = [d.of(a + c * (b - a), truth) for c in (best - 0.01, best, best + 0.01)]
    assert min(tried) == tried[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny service whose oracle without "noto" is the full model itself, and pictures of every group."""
    root = tmp_path_factory.mktemp("tiny")
    service = tiny_service(root)
    spec, student = adapters.LoraSpec(rank=2, alpha=2), copy.deepcopy(service.model.network)
    adapters.attach(student, spec, seed=0)  # B = 0: changes nothing
    meta = {"group": "noto", "base_sha256": service.model.sha256}
    adapters.save(student, root / "oracle" / "noto", spec=spec, meta=meta)
    service.offered["logo"] = SimpleNamespace(folder=root / "oracle")
    ids = [g for g in service.group_set.groups for _ in range(3)]
    objects = service.group_set.train_objects[:3] * 8
    pictures = Pictures(np.zeros((24, 16, 16, 3), np.uint8), tuple(ids), tuple(objects))
    latents = torch.randn(24, *service.model.latent_shape, generator=torch.Generator().manual_seed(2))
    return SimpleNamespace(service=service, pictures=pictures, latents=latents)


def test_a_model_that_nothing_was_taken_from_is_the_full_one(world):
    some, latents = targets.chosen(world.pictures, world.latents, "noto", 2, seed=0)
    assert some.groups == ("noto", "noto") and len(set(some.names)) == 2 and latents.shape[0] == 2
    job = SimpleNamespace(clip=world.service.clip)
    strata = likelihood.make_strata(world.service.model.schedule, 6)
    row = targets.measure(world.service, job, "noto", some, latents, strata)
    assert row["n"] == 2 and row["prompt"].pop("nothing") == row["empty"].pop("nothing") == 0
    assert set(row["prompt"]) == {"weighted", "uniform", *(f"posterior, {t:g} nats" for t in targets.TEMPERATURES)}
    assert min(row["prompt"].values()) > 0 and min(row["empty"].values()) > 0
    ways = [*row["way_prompt"].values(), *row["way_empty_anchor"].values(), *row["way_empty_shift"].values()]
    assert np.allclose(ways, 0)
    assert row["prompt"]["posterior, 1000 nats"] != row["prompt"]["posterior, 1 nats"]


def test_a_model_that_answers_as_the_mean_of_the_other_styles_is_found_at_the_uniform_anchor(world, monkeypatch):
    """The "retrained" model's estimates are planted: of its caption and of the empty prompt, that mean."""
    honest, own = targets.estimates, list(world.service.group_set.groups).index("noto")
    last = []

    def planted(model, x_t, t, captions):
        if len(captions) > 2:  # of the full model: every style, then the empty prompt
            last[:] = [honest(model, x_t, t, captions)]
            return last[0]
        mean = torch.cat([last[0][:own], last[0][own + 1 : -1]]).mean(dim=0)
        return torch.stack([mean, mean])

    monkeypatch.setattr(targets, "estimates", planted)
    some, latents = targets.chosen(world.pictures, world.latents, "noto", 2, seed=0)
    strata = likelihood.make_strata(world.service.model.schedule, 6)
    row = targets.measure(world.service, SimpleNamespace(clip=world.service.clip), "noto", some, latents, strata)
    assert row["prompt"]["uniform"] < 1e-6 * row["prompt"]["nothing"]
    assert row["empty"]["anchor: uniform"] < 1e-6 * row["empty"]["nothing"]
    assert row["way_prompt"]["uniform"] == pytest.approx(1, abs=1e-3)
    assert row["way_empty_anchor"]["uniform"] == pytest.approx(1, abs=1e-3)
    assert min(v for k, v in row["prompt"].items() if k != "uniform") > row["prompt"]["uniform"]
