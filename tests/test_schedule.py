"""Schedules, kinds of prediction and the one KL for all of them, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from guda_core.diffusion import likelihood
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import KINDS, Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ModelError
from tests.test_elbo import GaussianModel

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE_DIFFUSION = DDIMScheduler(**SD).alphas_cumprod
ZERO = DDIMScheduler(**SD, rescale_betas_zero_snr=True).alphas_cumprod
EVERY = [
    *[(Schedule.ddpm(STABLE_DIFFUSION), kind) for kind in ("epsilon", "v_prediction")],
    (Schedule.ddpm(ZERO), "v_prediction"),
    (Schedule.flow(torch.linspace(0.001, 1, 1000, dtype=torch.float64)), "flow"),
]


def test_weights_of_epsilon_are_the_ddpms():
    """beta^2 / (2 posterior variance alpha (1 - alpha_bar)), as version 0.1 wrote it, to 1e-12."""
    ab = STABLE_DIFFUSION.double()
    prev = torch.cat([torch.ones(1, dtype=torch.float64), ab[:-1]])
    alpha = ab / prev
    old = (1 - alpha[1:]) / (2 * alpha[1:] * (1 - prev[1:]))
    new = likelihood.kl_weights(Prediction("epsilon", Schedule.ddpm(STABLE_DIFFUSION)))
    assert new[0] == 0
    assert float((new[1:] / old - 1).abs().max()) < 1e-12


def test_strata_are_where_they_were():
    """As version 0.1 cut them, which the committed values were drawn in."""
    old = (1, 2, 3, 5, 7, 10, 15, 21, 30, 42, 57, 77, 102, 132, 168, 210, 259, 314, 376, 445, 523, 611, 713, 837, 1000)
    assert likelihood.make_strata(Schedule.ddpm(STABLE_DIFFUSION), 24).edges == old
    cosine = Schedule.ddpm(DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=4000).alphas_cumprod)
    assert likelihood.make_strata(cosine, 8).edges == (1, 4, 19, 73, 218, 560, 1267, 2460, 4000)


@pytest.mark.parametrize(("schedule", "kind"), EVERY)
def test_a_prediction_turns_into_picture_and_noise_and_back(schedule, kind):
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(5, 2, 3, 3, generator=g), torch.randn(5, 2, 3, 3, generator=g)
    t = torch.tensor([0, 1, 400, 998, 999])
    x_t = schedule.add_noise(x_0, eps, t)
    p = Prediction(kind, schedule)
    answer = p.target(x_0, eps, t)
    loose = 1e-4 if kind == "epsilon" else 1e-5
    assert torch.allclose(p.x0_hat(answer, x_t, t), x_0, atol=loose)
    assert torch.allclose(p.eps_hat(answer, x_t, t), eps, atol=5e-4)
    wrong = answer + torch.randn(answer.shape, generator=g)
    of_picture = (x_0 - p.x0_hat(wrong, x_t, t)).double().square().sum(dim=(1, 2, 3))
    of_answer = (answer - wrong).double().square().sum(dim=(1, 2, 3))
    assert torch.allclose(of_picture, p.factor[t] ** 2 * of_answer, rtol=1e-2)


def test_add_noise_is_diffusers_own():
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(9, 2, 3, 3, generator=g), torch.randn(9, 2, 3, 3, generator=g)
    t = torch.randint(1000, (9,), generator=g)
    theirs = DDIMScheduler(**SD).add_noise(x_0, eps, t)
    assert torch.allclose(Schedule.ddpm(STABLE_DIFFUSION).add_noise(x_0, eps, t), theirs, atol=1e-6)


def test_one_bound_for_every_schedule():
    """For pictures from N(0, s^2 I) and the exact denoiser, the KLs and the known terms add up to -log p(x_0).

    E over x_0 of: KL(q(x_T | x_0) || p(x_T)) + sum_t KL_t - E log p(x_0 | x_small). The gap falls as the step does, and
    two families with one SNR have one bound (Kingma et al. 2021).
    """
    d, s = 32, 0.7
    exact = 0.5 * d * np.log(2 * np.pi * np.e * s**2)  # nats, the entropy
    gaps = []
    for steps in (100, 1000, 10_000):
        half_log_snr = torch.linspace(5, -5, steps, dtype=torch.float64)
        flow = Schedule.flow(torch.sigmoid(-half_log_snr))  # alpha / sigma = (1 - s) / s
        ddpm = Schedule.ddpm(torch.sigmoid(2 * half_log_snr))
        bounds = [_bound(schedule, s, d) for schedule in (flow, ddpm)]
        gaps.append(bounds[0] - exact)
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    assert gaps[0] > 9 * gaps[1] > 81 * gaps[2] > 0 and gaps[2] < 0.02 * exact


def _bound(schedule: Schedule, s: float, d: int) -> float:
    """-ELBO in nats, in expectation over pictures, every term but the KLs written out."""
    alpha, sigma, snr = schedule.alpha, schedule.sigma, schedule.snr
    error = d * s**2 / (1 + s**2 * snr)  # E ||x_0 - x0_hat||^2
    kl = float((0.5 * (snr[:-1] - snr[1:]) * error[1:]).sum())
    last = alpha[-1] ** 2 * s**2 + sigma[-1] ** 2  # p(x_T): exact marginal
    prior = 0.5 * d * (float(torch.log(last) - torch.log(sigma[-1] ** 2)))
    first = s**2 / (1 + s**2 * snr[0])  # p(x_0 | x_small), exact
    decoder = 0.5 * d * float(torch.log(2 * torch.pi * torch.e * first))
    return prior + kl + decoder


@pytest.mark.parametrize(("schedule", "kind"), EVERY)
def test_elbo_drop_of_two_gaussians_agrees_between_families(schedule, kind):
    """Two models' difference is that of their log densities, whatever the schedule (but for its ends)."""
    x_0 = 0.7 * torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    right, wrong = GaussianModel(0.7, schedule, kind), GaussianModel(1.4, schedule, kind)
    drop = wrong.expected_kl(x_0) - right.expected_kl(x_0)
    noise_left = 0.7**2 / float(schedule.snr[0]) / 0.7**2
    ratio = float(x_0.double().square().sum()) / 2 * (1 / 1.4**2 - 1 / 0.7**2) + 32 * np.log(1.4 / 0.7)
    assert drop == pytest.approx(ratio, rel=0.02 + 4 * noise_left)
    strata = likelihood.make_strata(schedule, 24)
    draws = likelihood.draw_times("p", strata, 60)
    full, without = (likelihood.kl_values(m, x_0, Condition({}, 1), draws, list(range(60))) for m in (right, wrong))
    found = likelihood.elbo_drop(full=full, without=without, strata=strata)
    assert abs(found.value - drop) < 4 * found.se < abs(drop)


def test_zero_terminal_snr_has_right_weights_and_strata():
    schedule = Schedule.ddpm(ZERO)
    assert float(schedule.snr[-1]) == 0
    w = likelihood.kl_weights(Prediction("v_prediction", schedule))
    assert torch.isfinite(w).all() and (w[1:] > 0).all()
    assert float(w[-1]) == pytest.approx(0.5 * float(schedule.snr[-2]), rel=1e-12)  # c_T = 1, SNR_T = 0
    edges = np.asarray(likelihood.make_strata(schedule, 24).edges)
    plain = np.asarray(likelihood.make_strata(Schedule.ddpm(STABLE_DIFFUSION), 24).edges)
    assert np.abs(edges - plain).max() < 60 and edges[-2] < 950
    with pytest.raises(ModelError, match="zero terminal SNR"):
        Prediction("epsilon", schedule)


def test_flow_has_the_strata_of_its_snr():
    edges = likelihood.make_strata(Schedule.flow(torch.linspace(0.001, 1, 1000, dtype=torch.float64)), 24).edges
    sizes = np.diff(edges)
    assert edges[-1] == 1000 and sizes[0] < 5 < 50 < sizes[-1]


@pytest.mark.parametrize("ab", [[0.9, 0.9, 0.5], [0.5, 0.9], [0.9, float("nan")], [1.0, 0.5], [0.9], [0.9, -0.1]])
def test_a_damaged_schedule_is_refused(ab):
    with pytest.raises(ModelError, match="schedule"):
        Schedule.ddpm(torch.tensor(ab, dtype=torch.float64))


def test_other_predictions_are_refused():
    with pytest.raises(ModelError, match=f"'sample'.*{', '.join(KINDS)}"):
        Prediction("sample", Schedule.ddpm(STABLE_DIFFUSION))


def test_conditions_are_cut_and_joined():
    a = Condition({"text": torch.arange(6.0).reshape(3, 2), "pooled": torch.arange(3.0)})
    assert len(a) == 3 and [float(c.tensors["pooled"]) for c in a] == [0, 1, 2]
    assert a[1].expand(4).tensors["text"].tolist() == [[2, 3]] * 4
    assert a[[2, 0]].tensors["pooled"].tolist() == [2, 0] and len(a[:2]) == 2
    assert a.repeat_interleave(2).tensors["pooled"].tolist() == [0, 0, 1, 1, 2, 2]
    assert Condition.cat([a, a[:1]]).tensors["pooled"].tolist() == [0, 1, 2, 0]
    nothing = Condition({}, 2)
    assert len(Condition.cat([nothing, nothing[0]])) == 3 and len(nothing.repeat_interleave(3)) == 6
    with pytest.raises(TypeError):
        a.tensors["text"] = torch.zeros(3)  # type: ignore[index]
    with pytest.raises(ValueError, match="one batch size"):
        Condition({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="batch of one"):
        a.expand(2)
