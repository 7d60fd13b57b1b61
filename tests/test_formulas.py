"""Targets that were tried and not adopted, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.ablations import formulas
from guda_core.unlearning import losses


def test_shift_is_exact_for_the_exact_denoiser():
    g = torch.Generator().manual_seed(0)
    own, others = torch.randn(4, 1, 2, 2, generator=g).double(), torch.randn(9, 1, 2, 2, generator=g).double()
    x, ab = torch.randn(5, 1, 2, 2, generator=g).double(), torch.tensor([0.999, 0.8, 0.5, 0.2, 0.01]).double()
    full = losses.retrack_target(x, torch.cat([others, own]), ab, bandwidth=0.4)
    target = formulas.shift_target(full, x, others, own, ab, bandwidth=0.4)
    torch.testing.assert_close(target, losses.retrack_target(x, others, ab, bandwidth=0.4))
    assert not torch.allclose(target, full)
    near, mine = others[losses.nearest(x, others, 3)], own[losses.nearest(x, own, 2)]
    of_three = formulas.shift_target(full, x, near, mine, ab, bandwidth=0.4)
    first = formulas.shift_target(full[:1], x[:1], near[0], mine[0], ab[:1], bandwidth=0.4)
    torch.testing.assert_close(of_three[:1], first)


def test_shift_of_a_far_away_group_is_nothing_and_of_the_own_group_is_bounded_as_noise_falls():
    others, far = torch.zeros(5, 1, 4, 4), 100 + torch.zeros(3, 1, 4, 4)
    full, ab = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.99, 0.5])
    near_others = 0.01 * full
    torch.testing.assert_close(formulas.shift_target(full, near_others, others, far, ab, bandwidth=0.3), full)
    own, tiny = torch.ones(1, 1, 4, 4), torch.tensor([1 - 1e-6])
    moved = formulas.shift_target(torch.zeros(1, 1, 4, 4), own, others, own, tiny, bandwidth=0.3)
    raw = losses.retrack_target(own, others, tiny)
    assert float(moved.abs().max()) < 0.1 and float(raw.abs().max()) > 900


def test_ascent_goes_up_the_training_loss_at_first_and_stops_at_its_target():
    g = torch.Generator().manual_seed(2)
    full, eps = torch.randn(2, 3, generator=g), torch.randn(2, 3, generator=g)
    target = formulas.ascent_target(full, eps, strength=0.5)
    student = full.clone().requires_grad_(True)
    (up,) = torch.autograd.grad(losses.mean_square(student, target), student)
    (down,) = torch.autograd.grad(losses.mean_square(student, eps), student)
    torch.testing.assert_close(up, -0.5 * down)
    assert losses.mean_square(target, target) == 0 < losses.mean_square(full, eps) < losses.mean_square(target, eps)


def test_a_style_shift_takes_out_the_style_and_leaves_the_object():
    g = torch.Generator().manual_seed(0)
    content, own, other, seen = torch.randn(4, 2, 3, 5, 5, generator=g)  # a model whose estimates are sums of parts
    prompt, anchor, empty = content + own, content + other, seen + own
    np.testing.assert_allclose(formulas.style_shift_target(empty, prompt, anchor, push=0.0), seen + other, atol=1e-6)
    twice = formulas.style_shift_target(empty, prompt, anchor, push=1.0)
    np.testing.assert_allclose(twice, seen + 2 * other - own, atol=1e-6)


def test_the_cap_bounds_the_correction_and_leaves_small_ones():
    eps, target = torch.zeros(2, 1, 2, 2), torch.tensor([10.0, 0.1])[:, None, None, None].expand(2, 1, 2, 2)
    cut = formulas.capped(target, eps, kl_cap=1.0)
    assert cut.flatten(1).norm(dim=1).tolist() == pytest.approx([2**0.5, 0.2]) and torch.equal(cut[1], target[1])
