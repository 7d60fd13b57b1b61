"""Races on committed values: how many passes they save, whether they name the same groups, whether intervals hold.

The oracle's arrays hold the KL values of the full model and of each model without a group at the 500 fixed queries, 4
draws in each of 24 strata. A query's means over them stand for the truth, and random mixtures of its residuals r, the
same for all models, for the noise (a wild bootstrap):

    v_kj = mean_k + sum_i w_kji r_ki / sqrt(3)      w: standard normal

So any number of draws can be made, with the measured variances and the correlation between groups that makes races
short. (Residuals drawn with replacement would not do: of two draws a quarter are the same, and tell no error.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.logo.oracle_values import read_values
from guda_core.attribution.racing import Racing, passes
from guda_core.diffusion import likelihood
from guda_core.service import EFFORTS, Race

FULL = "full"


def committed(folder: Path, groups: Sequence[str]) -> np.ndarray:
    """(Q, 1 + G, K, 4) KL values, nats, of the full model and of the oracle's model without each group."""
    names = [FULL, *(f"unet-without-{g}-s3" for g in groups)]
    return np.stack([read_values(folder, name) for name in names], axis=1).astype(np.float64)


def drawn(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + G, K, draws) from a query's (1 + G, K, M): residuals mixed anew, alike for all models."""
    _, k, m = values.shape
    mean = values.mean(axis=2, keepdims=True)
    return mean + np.einsum("gkm,kmj->gkj", values - mean, rng.normal(size=(k, m, draws))) / math.sqrt(m - 1)


def moved(values: np.ndarray, scores: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(Q, 1 + G, K, M): to each query of scores (Q, G), nats, the values of a sampled picture (N, 1 + G, K, M) that is
    drawn at random, each group's moved by the same amount at all draws so that its mean drop is the query's score."""
    of = values[rng.integers(0, len(values), len(scores))]
    drop = (of[:, 1:] - of[:, :1]).mean(axis=3) @ sizes  # (Q, G)
    out = of.copy()
    out[:, 1:] += ((scores - drop) / sizes.sum())[:, :, None, None]
    return out


def raced(
    values: np.ndarray, groups: Sequence[str], strata: likelihood.Strata, draws: int, race: Race | None
) -> dict[str, Any]:
    """One race over values (1 + G, K, >= draws): draws of each group, of the full model, estimates, decided or not."""
    full, kl = values[0], dict(zip(groups, values[1:], strict=True))
    racing, made, most = Racing(race, groups, offset={}), dict.fromkeys(groups, 0), 0
    for columns in passes(draws, draws, race):
        if not racing.going:
            break
        most = columns.stop
        made |= dict.fromkeys(racing.going, most)
        racing.look(most, full, kl, strata)
    found = {g: likelihood.elbo_drop(full=full[:, :m], without=kl[g][:, :m], strata=strata) for g, m in made.items()}
    order = sorted(groups, key=lambda g: (-found[g].value, g))
    return {"draws": made, "full": most, "found": found, "order": order, "decided": racing.decided}


def simulate(
    values: np.ndarray,
    groups: Sequence[str],
    strata: likelihood.Strata,
    draws: int,
    race: Race,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """A race at every query of (Q, 1 + G, K, M), beside the same values in full. Shares and rates, in [0, 1].

    share: of the passes. same_first, same_two: the race names the same first, and the same first two in any order.
    decided: ended as a whole before the cap. held: intervals that hold the query's mean, of all groups; held_first: of
    the first.
    """
    rng = np.random.default_rng(seed)
    share, first, two, decided, held, held_first = [], [], [], [], [], []
    for v in values:
        made = drawn(v, draws, rng)
        a, b = raced(made, groups, strata, draws, race), raced(made, groups, strata, draws, None)
        share.append((a["full"] + sum(a["draws"].values())) / (draws * (1 + len(groups))))
        first.append(a["order"][0] == b["order"][0])
        two.append(set(a["order"][:2]) == set(b["order"][:2]))
        decided.append(a["decided"])
        truth = (v[1:] - v[0]).mean(axis=2) @ strata.sizes
        hits = [a["found"][g].low <= x <= a["found"][g].high for g, x in zip(groups, truth, strict=True)]
        held += hits
        held_first.append(hits[list(groups).index(a["order"][0])])
    return {
        "draws": draws,
        "race": asdict(race),
        "queries": len(values),
        "share": float(np.mean(share)),
        "same_first": float(np.mean(first)),
        "same_two": float(np.mean(two)),
        "decided": float(np.mean(decided)),
        "held": float(np.mean(held)),
        "held_first": float(np.mean(held_first)),
    }


RULES: Mapping[str, tuple[int, Race]] = {
    "2, every draw": (2, Race((), width=0.0)),
    "6, every draw": (6, Race((), width=0.0)),
    "24, every draw": (24, Race((), width=0.0)),
    "6, after 2": (6, Race((2, 4), width=0.0)),
    "24, after 1": (24, Race((1, 2, 4, 8, 16), width=0.0)),
    "24, after 2": (24, Race((2, 4, 8, 16), width=0.0)),
    "24, after 2, error 5%": (24, Race((2, 4, 8, 16), error=0.05, width=0.0)),
    "24, after 4": (24, Race((4, 8, 16), width=0.0)),
    "24, after 2, every 2": (24, Race(tuple(range(2, 24, 2)), width=0.0)),
    "24, after 2, keep 2": (24, Race((2, 4, 8, 16), keep=2, width=0.0)),
    **{k: (e.draws, e.race) for k, e in EFFORTS.items() if e.race is not None},
}


def table(values: np.ndarray, groups: Sequence[str], strata: likelihood.Strata) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule that was tried, by its name."""
    for name, (draws, race) in RULES.items():
        yield name, simulate(values, groups, strata, draws, race)


def widened(values: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(Q, 1 + size, K, M) from (Q, 1 + G, K, M): further groups are made up of the drops of the G: each 0.3 to 0.9
    times one of them, with a tenth of noise of its own at every draw."""
    full, drop = values[:, :1], values[:, 1:] - values[:, :1]
    out = [values]
    for _ in range(1, size // drop.shape[1]):
        by = rng.uniform(0.3, 0.9, (*drop.shape[:2], 1, 1))
        out.append(full + by * drop * (1 + 0.1 * rng.normal(size=drop.shape)))
    return np.concatenate(out, axis=1)


def many(values: np.ndarray, strata: likelihood.Strata) -> Iterator[tuple[str, dict[str, Any]]]:
    """Full effort with 8 and with 64 groups, as it is and with a look after one draw. passes: of a query, the mean."""
    race = EFFORTS[FULL].race
    assert race is not None
    for size in (8, 64):
        wide, groups = widened(values, size, np.random.default_rng(7)), [str(i) for i in range(size)]
        for name, looks in (("after 2", race.looks), ("after 1", (1, *race.looks))):
            found = simulate(wide, groups, strata, EFFORTS[FULL].draws, replace(race, looks=looks))
            passes = found["share"] * len(strata) * EFFORTS[FULL].draws * (1 + size)
            yield f"{size} groups, {name}", {**found, "passes": passes}
