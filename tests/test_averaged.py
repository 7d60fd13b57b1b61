"""Adapters of several seeds in one: closed forms of the mean and of the cut."""

import numpy as np
import torch

from experiments.ablations.averaged import between, cut, merged, scaled
from guda_core.unlearning.adapters import Adapter

CPU = torch.device("cpu")
SHAPES = {"linear.weight": (6, 5), "conv.weight": (4, 3, 2, 2)}


def adapter(seed: int, rank: int = 2) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    factors = {
        n: (torch.randn(s[0], rank, generator=rng), torch.randn(rank, int(np.prod(s[1:])), generator=rng), s)
        for n, s in SHAPES.items()
    }
    return Adapter("a", {"sha256": f"{seed}", "group": "a"}, 0.5, factors)


def test_one_change_is_the_mean_of_the_changes_and_its_hash_is_its_own():
    three = [adapter(s) for s in range(3)]
    one = merged(three)
    for name, shape in SHAPES.items():
        expected = torch.stack([a.delta(name, CPU) for a in three]).mean(dim=0)
        found = one.delta(name, CPU)
        assert found.shape == shape
        torch.testing.assert_close(found, expected)
        half = scaled(three[0], 0.5)
        torch.testing.assert_close(2 * half.delta(name, CPU), three[0].delta(name, CPU))
        assert half.meta["sha256"] != three[0].meta["sha256"]
    hashes = {merged(of, rank).meta["sha256"] for of in (three, three[:2]) for rank in (None, 2)}
    assert len(hashes) == 4


def test_the_cut_is_the_best_of_its_rank():
    for name in SHAPES:
        b, a, _ = merged([adapter(s) for s in range(2)]).factors[name]
        small = cut(b, a, 2)
        assert small[0].shape[1] == small[1].shape[0] == 2
        lost = np.linalg.norm((small[0] @ small[1] - b @ a).numpy())
        assert np.isclose(lost, np.linalg.norm(np.linalg.svd((b @ a).numpy())[1][2:]), rtol=1e-4)
        torch.testing.assert_close(torch.matmul(*cut(b, a, 4)), b @ a, rtol=1e-4, atol=1e-5)


def test_agreement_between_seeds_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 3))
    of = [truth, truth, rng.normal(size=(40, 3))]
    found = between(of, ["real"] * 40)["real"]
    other = between([truth, of[2]], ["real"] * 40)["real"]
    assert np.isclose(found["variation"], (1 + 2 * other["variation"]) / 3)
    assert np.isclose(found["top1"], (1 + 2 * other["top1"]) / 3)
