"""ELBO drop of every group, refined pass by pass: shared by all methods that have a model without each group.

`guda` and `logo` differ only in where the model without a group comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from guda_core.diffusion import likelihood
from guda_core.diffusion.base import BaseModel
from guda_core.errors import AdapterError, ScoreError
from guda_core.records import Attribution, GroupScore, KLValues, Query


@dataclass(frozen=True)
class Budget:
    """strata of timesteps (likelihood.make_strata); draws in each, made in passes of `per_pass` draws; batch: largest
    forward batch."""

    draws: int = 4
    per_pass: int = 2
    strata: int = 24
    batch: int = 32


Without = Callable[[str], AbstractContextManager[None]]


def _rank(
    values: Mapping[str, np.ndarray],
    strata: likelihood.Strata,
    scores: Mapping[str, GroupScore],
    offset: Mapping[str, float],
) -> dict[str, Any]:
    """Is the first group ahead of the second in the paired 95% interval?"""
    ok = [(k, s.score) for k, s in scores.items() if s.score is not None]
    if len(ok) < 2:
        return {}
    (first, _), (second, _) = sorted(ok, key=lambda kv: (-kv[1], kv[0]))[:2]
    ahead = likelihood.difference(first=values[first], second=values[second], strata=strata)
    ahead = ahead.plus(offset.get(first, 0.0) - offset.get(second, 0.0))
    return {"separable": ahead.low > 0, "runner_up": second}


def drops(
    model: BaseModel,
    query: Query,
    group_ids: list[str],
    without: Without,
    *,
    method: str,
    budget: Budget,
    unavailable: Mapping[str, str],
    settings: Mapping[str, Any],
    offset: Mapping[str, float] | None = None,
) -> Iterator[Attribution]:
    """Yield an Attribution after every model's share of a pass; scores change at the end of each pass.

    unavailable: group id -> reason, for groups that have no model without them. offset: group id -> nats that are
    added to its scores, whatever the picture. The first pass yields no scores yet.
    """
    offset = offset or {}
    strata = likelihood.make_strata(model.schedule, budget.strata)
    draws = likelihood.draw_times(query.image_hash, strata, budget.draws)
    cond = model.embed([query.prompt])
    usable = [g for g in group_ids if g not in unavailable]
    broken: dict[str, GroupScore] = {}
    full = np.empty((len(strata), 0))
    kl = {g: np.empty((len(strata), 0)) for g in usable}
    scores: dict[str, GroupScore] = {}
    order: dict[str, Any] = {}
    passes = [list(range(j, min(j + budget.per_pass, budget.draws))) for j in range(0, budget.draws, budget.per_pass)]
    jobs, done = len(passes) * (len(usable) + 1), 0

    def snapshot() -> Attribution:
        kept = None
        if scores:
            m = min([full.shape[1], *[v.shape[1] for g, v in kl.items() if g not in broken]])
            without = {g: v[:, :m] for g, v in kl.items() if g not in broken}
            kept = KLValues(draws.t[:, :m], np.asarray(strata.edges), full[:, :m], without)
        return Attribution(method, "nats", dict(scores), done / jobs, kl=kept, settings=settings, **order)

    for columns in passes:
        with model.lock:
            full = np.hstack([full, likelihood.kl_values(model, query.latent, cond, draws, columns, budget.batch)])
        done += 1
        yield snapshot()
        for g in usable:
            done += 1
            if g not in broken:
                try:
                    with model.lock, without(g):
                        new = likelihood.kl_values(model, query.latent, cond, draws, columns, budget.batch)
                    kl[g] = np.hstack([kl[g], new])
                except ScoreError as e:
                    broken[g] = GroupScore(None, None, None, "no_score", str(e))
                except AdapterError as e:
                    broken[g] = GroupScore(None, None, None, "unavailable", str(e))
            if g != usable[-1]:
                yield snapshot()
        scores = {}
        for g in group_ids:
            if g in unavailable:
                scores[g] = GroupScore(None, None, None, "unavailable", unavailable[g])
            elif g in broken:
                scores[g] = broken[g]
            else:
                e = likelihood.elbo_drop(full=full, without=kl[g], strata=strata).plus(offset.get(g, 0.0))
                scores[g] = GroupScore(e.value, e.low, e.high)
        order = _rank(kl, strata, scores, offset)
        yield snapshot()
