"""Unlearning losses against brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guda_core.errors import DataError
from guda_core.unlearning import losses


def brute_force(x_t: np.ndarray, retained: np.ndarray, ab: float) -> np.ndarray:
    """The posterior mean of eps over all retained items, one by one, in float64 with the largest exponent taken out."""
    d = x_t[None] - np.sqrt(ab) * retained
    e = -np.array([float((r**2).sum()) for r in d]) / (2 * (1 - ab))
    w = np.exp(e - e.max())
    w /= w.sum()
    return sum(wi * di for wi, di in zip(w, d, strict=True)) / np.sqrt(1 - ab)


@pytest.mark.parametrize("far", [1.0, 30.0, 1e3])
def test_retrack_equals_brute_force_even_far_out(far):
    rng = np.random.default_rng(0)
    retained, x = rng.standard_normal((40, 2, 3, 3)), far * rng.standard_normal((5, 2, 3, 3))
    ab = np.array([0.999, 0.9, 0.5, 0.1, 0.01])
    raw = np.exp(-((x[0] - np.sqrt(ab[0]) * retained[0]) ** 2).sum() / (2 * (1 - ab[0])))
    assert raw == 0  # this is what the log-domain is for
    ours = losses.retrack_target(*(torch.from_numpy(a) for a in (x, retained, ab)))
    truth = np.stack([brute_force(a, retained, b) for a, b in zip(x, ab, strict=True)])
    assert torch.isfinite(ours).all()
    np.testing.assert_allclose(ours.numpy(), truth, rtol=1e-9)


@pytest.mark.parametrize("h", [0.3, 2.0])
def test_smoothed_posterior_mean_is_that_of_gaussians_around_the_pictures(h):
    """One dimension, by quadrature over x_0: E[eps | x_t] under p(x_0) = mean_r N(x_r, h^2)."""
    retained, ab, x_t = np.array([-1.0, 0.2, 2.0]), 0.6, 0.7
    x_0 = np.linspace(-25, 25, 200_001)
    prior = np.exp(-((x_0[:, None] - retained) ** 2) / (2 * h**2)).sum(axis=1)
    eps = (x_t - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
    weight = prior * np.exp(-(eps**2) / 2)
    truth = (weight * eps).sum() / weight.sum()
    tensors = [torch.tensor(v, dtype=torch.float64) for v in ([[[[x_t]]]], retained.reshape(3, 1, 1, 1), [ab])]
    assert losses.retrack_target(*tensors, bandwidth=h).item() == pytest.approx(truth, rel=1e-6)


def test_the_likely_bandwidth_is_where_the_leave_one_out_likelihood_is_largest():
    x = torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    flat = x.flatten(1).double().numpy()

    def likelihood(h):
        total = 0.0
        for i in range(60):
            d2 = ((np.delete(flat, i, axis=0) - flat[i]) ** 2).sum(axis=1)
            total += np.log((np.exp(-d2 / (2 * h**2)) / h**4).mean())
        return total

    h = losses.likely_bandwidth(x)
    assert likelihood(h) > max(likelihood(0.97 * h), likelihood(1.03 * h))
    assert losses.likely_bandwidth(10 * x) == pytest.approx(10 * h, rel=1e-3)
    with pytest.raises(DataError, match="at least twice"):
        losses.likely_bandwidth(x[:1].expand(4, *x.shape[1:]))


def test_neighbours_of_each_query():
    retained = torch.arange(5.0).reshape(5, 1, 1, 1)
    x = torch.tensor([0.9, 3.2]).reshape(2, 1, 1, 1)
    near = retained[losses.nearest(x, retained, 2)]
    assert near.flatten(1).tolist() == [[1.0, 0.0], [3.0, 4.0]]
    target = losses.retrack_target(x, near, torch.tensor([0.5, 0.5]))
    each = [losses.retrack_target(x[i : i + 1], near[i], torch.tensor([0.5])) for i in range(2)]
    assert torch.allclose(target, torch.cat(each))


@pytest.mark.parametrize("each", [False, True])
def test_a_target_of_many_pictures_is_made_in_parts_to_the_last_bit(monkeypatch, each):
    x, retained, ab = torch.randn(5, 2, 3, 3), torch.randn(5, 40, 2, 3, 3), torch.rand(5)
    retained = retained if each else retained[0]
    whole, held, softmax = losses.retrack_target(x, retained, ab, bandwidth=0.3), [], torch.Tensor.softmax
    monkeypatch.setattr(losses, "LARGEST", 2 * 40 * 18)
    monkeypatch.setattr(torch.Tensor, "softmax", lambda w, **k: held.append(len(w)) or softmax(w, **k))
    assert torch.equal(losses.retrack_target(x, retained, ab, bandwidth=0.3), whole) and held == [2, 2, 1]


def test_anchor_probabilities():
    cos = torch.tensor([1.0, 0.5, -0.5, 0.0])
    pi = losses.anchor_probabilities(cos, beta=2.0, eta=0.3, exclude=0)
    e = np.exp(2.0 * np.array([0.5, -0.5, 0.0]))
    np.testing.assert_allclose(pi.numpy(), [0, *(0.7 * e / e.sum() + 0.1)], rtol=1e-5)
    for beta, eta in ((0.0, 0.3), (2.0, 1.0)):
        flat = losses.anchor_probabilities(cos, beta=beta, eta=eta, exclude=2)
        np.testing.assert_allclose(flat.numpy(), [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


def test_esd_pushes_away_from_the_prompt():
    empty, prompt = torch.tensor([1.0]), torch.tensor([3.0])
    assert losses.esd_target(empty, prompt, strength=2.0).item() == -3.0
    assert losses.esd_target(empty, prompt, strength=0.0).item() == 1.0


def test_targets_get_no_gradient():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.0, 0.0], requires_grad=True)
    loss = losses.mean_square(a, b)
    loss.backward()
    assert loss.item() == 2.5 and a.grad is not None and a.grad.tolist() == [1.0, 2.0] and b.grad is None
