"""Coded networks: what comes back is off by half a step at most, in about as many bits as the entropy asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guda_core.unlearning import delta

G = torch.Generator().manual_seed(0)
BASE = {n: torch.randn(s, generator=G) for n, s in {"a": (96, 64), "b": (64, 8, 3, 3), "c": (64,)}.items()}
OTHER = {n: w + 0.2 * torch.randn(w.shape, generator=G) for n, w in BASE.items()}
SENSITIVE = {"a": 1.0, "b": 25.0}


def test_what_comes_back_is_off_by_half_a_step():
    codes, small = delta.decode(delta.encode(BASE, OTHER, SENSITIVE, 0.1))
    assert codes["a"].step == pytest.approx(0.1) and codes["b"].step == pytest.approx(0.02)
    for name, c in codes.items():
        off = BASE[name] + c.difference() - OTHER[name]
        assert off.abs().max() <= c.step / 2 + 1e-6 and off.abs().max() > 0.45 * c.step
    assert torch.equal(small["c"], OTHER["c"].half().float()) and "c" not in codes


def test_a_number_costs_about_its_entropy():
    stored = delta.encode(BASE, OTHER, SENSITIVE, 0.1)
    numbers = delta.decode(stored)[0]["a"].numbers.numpy()
    share = np.unique(numbers, return_counts=True)[1] / numbers.size
    bits = -(share * np.log2(share)).sum()
    assert bits < 8 * stored["a"].numel() / numbers.size < 1.15 * bits


def test_a_step_too_small_for_the_levels_is_widened():
    codes, _ = delta.decode(delta.encode(BASE, OTHER, SENSITIVE, 1e-6))
    assert int(codes["a"].numbers.abs().max()) == delta.LEVELS
    assert codes["a"].step == pytest.approx(float((OTHER["a"] - BASE["a"]).abs().max()) / delta.LEVELS)


def test_no_difference_comes_back_exactly():
    codes, small = delta.decode(delta.encode(BASE, BASE, {"a": 0.0, "b": 1.0}, 1e-12))
    assert not any(c.difference().any() for c in codes.values()) and set(small) == {"c"}


@pytest.mark.parametrize("most", [4_000, 8_000])
def test_the_best_that_fits_is_found(most):
    stored = delta.fit(BASE, OTHER, SENSITIVE, most)
    assert 0.9 * most < delta.size(stored) <= most
    steps = {n: c.step for n, c in delta.decode(stored)[0].items()}
    assert steps["a"] == pytest.approx(5 * steps["b"])


def test_bits_are_spent_where_an_error_matters():
    """With the sensitivities known the error that counts is smaller than with all tensors alike, at the same size."""

    def cost(sensitive):
        codes, _ = delta.decode(delta.fit(BASE, OTHER, sensitive, 6_000))
        off = {n: (BASE[n] + c.difference() - OTHER[n]).square().sum() for n, c in codes.items()}
        return float(sum(SENSITIVE[n] * o for n, o in off.items()))

    assert cost(SENSITIVE) < 0.7 * cost({"a": 1.0, "b": 1.0})


def test_too_few_bytes_are_refused():
    with pytest.raises(ValueError, match="too few"):
        delta.fit(BASE, OTHER, SENSITIVE, 500)


@pytest.mark.parametrize("shape", [(96, 63), (96, 65), (0, 64)])
def test_codes_of_another_shape_are_refused(shape):
    stored = delta.encode(BASE, OTHER, SENSITIVE, 0.1)
    with pytest.raises(ValueError, match="coded"):
        delta.decode({**stored, "a" + delta.SHAPE: torch.tensor(shape)})
