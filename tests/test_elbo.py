"""ELBO differences against closed forms and independent computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from experiments.benchmark import strata as committed
from guda_core.diffusion import likelihood
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ScoreError


def linear_schedule(steps: int = 60) -> Schedule:
    betas = torch.linspace(0.002, 0.1, steps, dtype=torch.float64)
    return Schedule.ddpm(torch.cumprod(1 - betas, dim=0))


DDPM = Schedule.ddpm(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0))


class GaussianModel:
    """Knows that x_0 ~ N(0, s^2 I): x0_hat = alpha s^2 x_t / (alpha^2 s^2 + sigma^2), the optimal denoiser, said in any
    kind of prediction."""

    def __init__(self, s: float, schedule: Schedule, kind: str = "epsilon") -> None:
        self.s, self.schedule, self.device = s, schedule, torch.device("cpu")
        self.prediction = Prediction(kind, schedule)

    def predict(self, x_t, t, condition):
        alpha, sigma = (v[t].float()[:, None, None, None] for v in (self.schedule.alpha, self.schedule.sigma))
        total = alpha**2 * self.s**2 + sigma**2
        return self.prediction.target(alpha * self.s**2 * x_t / total, sigma * x_t / total, t)

    def expected_kl(self, x_0: torch.Tensor) -> float:
        """sum_t 1/2 (SNR_{t-1} - SNR_t) E_eps ||x_0 - x0_hat||^2, exactly."""
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        snr = (alpha / sigma) ** 2
        c = alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2)
        mean = (1 - c * alpha) ** 2 * float(x_0.double().square().sum())
        spread = (c * sigma) ** 2 * x_0.numel()
        return float((0.5 * (snr[:-1] - snr[1:]) * (mean + spread)[1:]).sum())


def test_weights_are_those_of_two_gaussians():
    """w_t ||e||^2 = KL(q(x_{t-1} | x_t, x_0) || p) with both means written out (Ho et al. 2020, eq. 6, 7 and 11)."""
    schedule = linear_schedule()
    ab = schedule.alpha**2
    w = likelihood.kl_weights(Prediction("epsilon", schedule))
    g = torch.Generator().manual_seed(0)
    assert w[0] == 0
    for t in range(1, len(ab)):
        prev, alpha = ab[t - 1], ab[t] / ab[t - 1]
        beta = 1 - alpha
        x_0, eps, eps_hat = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(3))
        x_t = ab[t].sqrt() * x_0 + (1 - ab[t]).sqrt() * eps
        mu_q = prev.sqrt() * beta / (1 - ab[t]) * x_0 + alpha.sqrt() * (1 - prev) / (1 - ab[t]) * x_t
        variance = beta * (1 - prev) / (1 - ab[t])
        mu_p = (x_t - beta / (1 - ab[t]).sqrt() * eps_hat) / alpha.sqrt()
        p, q = (torch.distributions.Normal(m, variance.sqrt()) for m in (mu_p, mu_q))
        kl = torch.distributions.kl_divergence(q, p).sum()
        assert float(w[t] * (eps - eps_hat).square().sum()) == pytest.approx(float(kl), rel=1e-9)


def values(model, x_0, draws, image_hash="picture"):
    strata = likelihood.make_strata(model.schedule, 12)
    d = likelihood.draw_times(image_hash, strata, draws)
    return likelihood.kl_values(model, x_0, Condition({}, 1), d, list(range(draws))), strata


FLOW = Schedule.flow(torch.linspace(0.02, 1, 60, dtype=torch.float64))


@pytest.mark.parametrize(
    ("schedule", "kind"), [(linear_schedule(), "epsilon"), (linear_schedule(), "v_prediction"), (FLOW, "flow")]
)
def test_sum_and_drop_hold_the_closed_form(schedule, kind):
    x_0 = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    right, wrong = GaussianModel(1.0, schedule, kind), GaussianModel(2.5, schedule, kind)
    full, strata = values(right, x_0, 200)
    without, _ = values(wrong, x_0, 200)
    truth = wrong.expected_kl(x_0) - right.expected_kl(x_0)
    drop = likelihood.elbo_drop(full=full, without=without, strata=strata)
    total = likelihood.stratified_sum(full, strata)
    assert abs(total.value - right.expected_kl(x_0)) < 4 * total.se
    assert abs(drop.value - truth) < 4 * drop.se
    assert drop.se < 0.05 * abs(truth) and truth > 0
    assert likelihood.elbo_drop(full=without, without=full, strata=strata).value == pytest.approx(-drop.value)


def test_intervals_cover():
    rng = np.random.default_rng(0)
    strata = likelihood.Strata((1, 3, 10, 30, 60))
    n, sd = strata.sizes, np.array([5.0, 2.0, 1.0, 0.5])
    truth, inside = float((n * 1.5).sum()), 0
    for _ in range(2000):
        e = likelihood.stratified_sum(1.5 + sd[:, None] * rng.standard_normal((4, 5)), strata)
        inside += e.low <= truth <= e.high
    assert 0.92 < inside / 2000 < 0.98


@pytest.mark.parametrize("k", [5, 7])
def test_with_one_draw_in_an_odd_number_of_strata_none_is_left_out_of_the_error(k):
    rng, strata, covered = np.random.default_rng(0), likelihood.Strata(tuple(range(1, k + 2))), []
    for _ in range(2000):
        values = rng.normal(size=(k, 1))
        values[-1] *= 5
        found = likelihood.stratified_sum(values, strata)
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) > 0.94


def test_one_draw_gives_a_wider_interval_not_none():
    rng = np.random.default_rng(1)
    strata = likelihood.make_strata(linear_schedule(), 12)
    one = likelihood.stratified_sum(rng.standard_normal((12, 1)), strata)
    assert one.low < one.value < one.high
    with pytest.raises(ScoreError, match="more draws"):
        likelihood.stratified_sum(np.ones((2, 1)), likelihood.Strata((1, 5, 10)))


def test_strata_cut_all_timesteps_and_narrow_where_weights_are_steep():
    strata = likelihood.make_strata(linear_schedule(), 12)
    assert strata.edges[0] == 1 and strata.edges[-1] == 60 and (strata.sizes > 0).all()
    assert strata.sizes[0] < strata.sizes[-1]
    with pytest.raises(ScoreError):
        likelihood.make_strata(linear_schedule(5), 12)


def test_strata_leave_little_variance_where_it_is_expected():
    """Squared errors that differ by g_t = 50 sqrt(alpha_bar_t) on average, with a third of that as their deviation."""
    schedule = DDPM
    w, shape = likelihood.kl_weights(Prediction("epsilon", schedule)).numpy(), schedule.alpha.numpy()
    mean, sd = 50 * w * shape, 17 * w * shape

    def error(rule: str) -> float:
        edges = committed.make_strata(schedule, 24, rule).edges
        parts = [(b - a, mean[a:b], sd[a:b]) for a, b in itertools.pairwise(edges)]
        return sum(n**2 * ((s**2).mean() + m.var()) for n, m, s in parts) ** 0.5

    best = (w * shape * 17).sum() / 24**0.5  # Neyman's, could a timestep have any share of the draws
    assert best < error(likelihood.RULE) < 1.25 * best
    assert error(committed.OLD_RULE) > 5 * error(likelihood.RULE)
    with pytest.raises(ScoreError, match="no rule 'equal'"):
        committed.make_strata(schedule, 24, "equal")


@pytest.mark.parametrize("rule", [likelihood.RULE, committed.OLD_RULE])
@pytest.mark.parametrize(("k", "steps"), [(1, 5), (4, 5), (24, 60), (59, 60), (24, 1000), (400, 4000)])
def test_any_number_of_strata_that_fits_cuts_all_timesteps(rule, k, steps):
    strata = committed.make_strata(linear_schedule(steps), k, rule)
    assert len(strata) == k and strata.edges[0] == 1 and strata.edges[-1] == steps and (strata.sizes > 0).all()


def test_values_that_were_drawn_by_the_old_rule_can_still_be_read():
    assert committed.make_strata(DDPM, 24, committed.OLD_RULE).edges[:5] == (1, 19, 48, 83, 123)


def test_more_draws_extend_fewer_and_stay_in_their_strata():
    strata = likelihood.make_strata(linear_schedule(), 12)
    few, many = likelihood.draw_times("a", strata, 2), likelihood.draw_times("a", strata, 9)
    assert (many.t[:, :2] == few.t).all()
    assert (many.t >= np.asarray(strata.edges[:-1])[:, None]).all()
    assert (many.t < np.asarray(strata.edges[1:])[:, None]).all()
    assert torch.equal(few.noise((2, 3, 3), 4, 1), many.noise((2, 3, 3), 4, 1))
    other = likelihood.draw_times("b", strata, 2)
    assert not (other.t == few.t).all() and not torch.equal(other.noise((4,), 0, 0), few.noise((4,), 0, 0))


def test_difference_is_paired_and_free_of_the_full_model():
    rng = np.random.default_rng(2)
    strata = likelihood.Strata((1, 4, 9, 20))
    shared = 100 * rng.standard_normal((3, 6))
    a, b = shared + 2.0 + 0.01 * rng.standard_normal((3, 6)), shared
    d = likelihood.difference(first=a, second=b, strata=strata)
    assert d.value == pytest.approx(2.0 * 19, rel=0.02) and d.low > 0 and d.se < 1


def test_values_that_are_not_finite_are_refused():
    class Broken(GaussianModel):
        def predict(self, x_t, t, condition):
            return torch.full_like(x_t, float("nan"))

    with pytest.raises(ScoreError, match="not finite"):
        values(Broken(1.0, linear_schedule()), torch.zeros(1, 1, 2, 2), 2)
    with pytest.raises(ScoreError):
        likelihood.stratified_sum(np.array([[np.nan, 1.0]] * 4), likelihood.Strata((1, 2, 3, 4, 5)))
