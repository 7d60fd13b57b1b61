"""ELBO drop of every group, refined pass by pass: shared by all methods that have a model without each group.

    drop_k(x) = ELBO(x | full) - ELBO(x | without group k)     nats, positive = the group contributed

Such methods differ in where the model without a group comes from, and in what they add to the drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from guda_core.attribution.method import Budget, Method
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import AdapterError, ScoreError
from guda_core.paths import Folder
from guda_core.records import Attribution, Cost, GroupModels, GroupScore, GroupSet, KLValues, Query
from guda_core.stored_figures import read_figures
from guda_core.unlearning import adapters

Without = Callable[[str], AbstractContextManager[None]]


def forward_passes(groups: int, budget: Budget) -> int:
    """Forward passes of one picture that the drops of so many groups take: the full model and one without each."""
    return (1 + groups) * budget.strata * budget.draws


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
    total, done = forward_passes(len(usable), budget), 0

    def snapshot() -> Attribution:
        kept = None
        if scores:
            m = min([full.shape[1], *[v.shape[1] for g, v in kl.items() if g not in broken]])
            without = {g: v[:, :m] for g, v in kl.items() if g not in broken}
            kept = KLValues(draws.t[:, :m], np.asarray(strata.edges), full[:, :m], without)
        return Attribution(method, "nats", dict(scores), done / total, kl=kept, settings=settings, **order)

    for columns in passes:
        with model.lock:
            full = np.hstack([full, likelihood.kl_values(model, query.latent, cond, draws, columns, budget.batch)])
        done += len(strata) * len(columns)
        yield snapshot()
        for g in usable:
            done += len(strata) * len(columns)
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


class Counterfactual(Method):
    """Scores groups by models without them, stored in a folder: an adapter, or a retrained delta, for each group.

    model_label: what one such model is called. figures_title, figures_note, figure_columns: of the table of what was
    measured of them (`records.GroupModels`).
    adapters: group id -> its model without the group. unavailable: group id -> why there is none. offset: group id ->
    nats that its scores hold beside the drop, whatever the picture.
    """

    unit = "nats"
    model_label: ClassVar[str]
    figures_title: ClassVar[str]
    figures_note: ClassVar[str]
    figure_columns: ClassVar[Mapping[str, str]]
    offset: Mapping[str, float]

    def __init__(self, model: BaseModel, group_set: GroupSet, folder: Folder) -> None:
        self.model, self.group_set, self.folder = model, group_set, folder
        self.offset = {}
        self.adapters: dict[str, adapters.Adapter] = {}
        self.unavailable: dict[str, str] = {}
        for gid in group_set.groups:
            try:
                self.adapters[gid] = adapters.load(folder / gid, model=model, group=gid, group_set=group_set.id)
            except AdapterError as e:
                self.unavailable[gid] = str(e)

    @property
    def hashes(self) -> dict[str, str]:
        """Group id -> SHA-256 of its model."""
        return {g: a.meta["sha256"] for g, a in self.adapters.items()}

    def models(self) -> GroupModels:
        return GroupModels(
            label=self.model_label,
            hashes=self.hashes,
            unavailable=self.unavailable,
            title=self.figures_title,
            note=self.figures_note,
            columns=self.figure_columns,
            figures={g: read_figures(self.folder / g / adapters.HEALTH) for g in self.group_set.groups},
        )

    def without(self, group: str) -> AbstractContextManager[None]:
        """Within the block the model is the one without the group."""
        return adapters.applied(self.model.network, self.adapters[group])

    def cost(self, budget: Budget) -> Cost:
        return Cost(forward=forward_passes(len(self.adapters), budget))

    def provenance(self) -> dict[str, Any]:
        return {"base_sha256": self.model.sha256, "adapters": self.hashes}

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        """Yields refining Attributions. settings names the base and the model without each group by hash."""
        settings = {
            "budget": {**asdict(budget), "rule": likelihood.RULE},
            **self.provenance(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
        }
        yield from drops(
            self.model,
            query,
            list(self.group_set.groups),
            self.without,
            method=self.id,
            budget=budget,
            unavailable=self.unavailable,
            settings=settings,
            offset=self.offset,
        )
