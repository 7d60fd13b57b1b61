"""Where in a picture a score comes from: the drop of every place of the latent.

    drop(x) = sum_t E[KL_t(without) - KL_t(full)] = sum_p map_p,   map_p = sum_t w_t E[e_t,p(without) - e_t,p(full)]

e_t,p is the squared error at place p, summed over channels: the KL of `diffusion.likelihood` is a sum over places, so
that its drop is one too. A place's error is noisier than the sum, so maps are smoothed by a Gaussian. Each draw is
smoothed before draws are averaged, so a smoothed place has a standard error by the same formula as a score. Where a
place is not beyond its noise, it says nothing. The method's offset, which is the same for every picture, has no place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage, stats

from guda_core.attribution.counterfactual import Counterfactual
from guda_core.diffusion import likelihood
from guda_core.diffusion.batches import fitting_batch
from guda_core.diffusion.memory import Fitting
from guda_core.errors import AdapterError, ScoreError
from guda_core.picture_records import PlaceMap
from guda_core.records import Query

WIDTH = 3.0  # of the Gaussian, in places of the latent (`python -m experiments.maps` chooses it)
DRAWS = 4  # in each stratum
STRATA = 24
ERROR = 0.05  # chance that a map of nothing has any place that says something, about


def smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """The last two dimensions, (..., h, w), after a Gaussian of that standard deviation; sums stay the same, since the
    edges are reflected. width: in places, 0 for none."""
    if width <= 0:
        return values
    return ndimage.gaussian_filter(values, width, axes=(-2, -1), mode="reflect")


def limit(places: int, width: float, df: float) -> float:
    """Standard errors that a place needs: two-sided, by Student's t, shared among as many looks as the Gaussian leaves
    apart (Bonferroni; of a square as wide as the Gaussian's standard deviation, one look). df: of a standard error."""
    looks = max(1.0, places / max(1.0, width**2))
    return float(stats.t.ppf(1 - ERROR / (2 * looks), df))


def _freedom(terms: np.ndarray, draws: int) -> np.ndarray:
    """Degrees of freedom of each place's variance after Satterthwaite, (h, w), at least 1. terms: (K, h, w)."""
    below = (terms**2).sum(axis=0) / (draws - 1)
    return np.maximum(1.0, np.divide(terms.sum(axis=0) ** 2, below, out=np.ones_like(below), where=below > 0))


def place_map(
    method: str, group: str, differences: np.ndarray, strata: likelihood.Strata, width: float = WIDTH
) -> PlaceMap:
    """The map from what each place adds to KL(without) - KL(full): differences, (K, m, h, w), m >= 2, nats.

    Raises:
        ScoreError: there are fewer than two draws, which tell no noise.
    """
    if differences.shape[1] < 2:
        raise ScoreError("A map needs two draws in each stratum, or it does not know its own noise.")
    n = strata.sizes.astype(np.float64)[:, None, None]
    drop = (n * differences.mean(axis=1)).sum(axis=0)
    each = smoothed(differences, width)
    smooth = (n * each.mean(axis=1)).sum(axis=0)
    terms = n**2 * each.var(axis=1, ddof=1) / each.shape[1]  # (K, h, w)
    se = np.sqrt(terms.sum(axis=0))
    df = float(np.median(_freedom(terms, each.shape[1])))
    return PlaceMap(method, group, drop, smooth, se, limit(drop.size, width, df), width, each.shape[1])


def maps(
    method: Counterfactual, query: Query, groups: Sequence[str], *, draws: int = DRAWS, width: float = WIDTH
) -> Iterator[PlaceMap | float]:
    """The map of each group that has a model without it; before each, the share of the work that is done, in [0, 1).

    The draws are those of the score. Closing the generator ends the work within one model's share.

    Raises:
        ScoreError: a value is not finite, or there are fewer than two draws.
    """
    model = method.model
    strata = likelihood.make_strata(model.schedule, STRATA)
    when = likelihood.draw_times(query.image_hash, strata, draws)
    inputs = likelihood.noised(model, query.latent, when, range(draws))
    condition, batch = model.embed([query.prompt]), Fitting(fitting_batch(model))
    usable = [g for g in groups if g in method.adapters]
    yield 0.0
    with model.lock:
        full = likelihood.kl_places(model, condition, inputs, batch)
    for i, g in enumerate(usable):
        yield (i + 1) / (len(usable) + 1)
        try:
            with model.lock, method.without(g):
                without = likelihood.kl_places(model, condition, inputs, batch)
        except AdapterError:
            continue
        yield place_map(method.id, g, without - full, strata, width)
