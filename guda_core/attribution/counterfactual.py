"""ELBO drop of every group, refined pass by pass: shared by all methods that have a model without each group.

    drop_k(x) = ELBO(x | full) - ELBO(x | without group k)     nats, positive = the group contributed

Such methods differ in where the model without a group comes from, and in what they add to the drop. Groups that are
clearly behind get no more draws, and a clear answer ends early (`racing`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from guda_core.attribution.method import Budget, Method
from guda_core.attribution.racing import BEHIND, Racing, passes
from guda_core.data.captions import words_sha256
from guda_core.data.own.found import some
from guda_core.data.own.picture_list import trained_on
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import fitting_batch
from guda_core.diffusion.memory import Fitting
from guda_core.errors import AdapterError, ScoreError
from guda_core.file_names import placeless
from guda_core.machine import cores
from guda_core.paths import Folder
from guda_core.records import Attribution, Cost, GroupModels, GroupScore, GroupSet, KLValues, Query
from guda_core.stored_figures import read_figures
from guda_core.unlearning import adapters
from guda_core.unlearning.adapter_files import (
    FIT,
    KEPT,
    LISTED,
    NOTHING_FORGOTTEN,
    WORDS,
    forgot_nothing,
    is_draft,
    read_health,
)
from guda_core.unlearning.forget import told_apart
from guda_core.unlearning.switching import Switching

Without = Callable[[str], AbstractContextManager[None]]
SLACK = {"float32": 0.02}  # standard errors that other hardware may move a bound of a race by; of coarser types:
SLACK_COARSE = 0.5
ENOUGH = 0.99  # of what was changed is kept, at least: below that it is said
READERS = 4  # files that are read at once, at most; more than there are cores get into each other's way


def forward_passes(groups: int, budget: Budget) -> int:
    """Forward passes of one picture that the drops of so many groups take at most: the full model and one without
    each."""
    return (1 + groups) * budget.strata * budget.draws


class FullModel:
    """The full model's side of one picture: its strata, draws and condition, and its KL values, (K, m), as far as they
    were asked for. Methods of one request share it."""

    def __init__(self, model: BaseModel, query: Query, budget: Budget) -> None:
        self.model, self.query, self.batch = model, query, budget.batch or fitting_batch(model)
        self.fits = Fitting(self.batch)
        self.strata = likelihood.make_strata(model.schedule, budget.strata)
        self.draws = likelihood.draw_times(query.image_hash, self.strata, budget.draws)
        self.condition = model.embed([query.prompt])
        self.kl = np.empty((len(self.strata), 0))

    @classmethod
    def of(cls, model: BaseModel, query: Query, budget: Budget, shared: dict[str, Any]) -> FullModel:
        """The one in `shared`, put there when it is not."""
        key = f"full model, {budget.strata} x {budget.draws}"
        if key not in shared:
            shared[key] = cls(model, query, budget)
        return shared[key]

    def inputs(self, columns: range) -> likelihood.Noised:
        """What the models are asked at these draws: made once for all of them."""
        return likelihood.noised(self.model, self.query.latent, self.draws, columns)

    def values(self, inputs: likelihood.Noised) -> np.ndarray:
        """KL of the model as it is now."""
        return likelihood.kl_of(self.model, self.condition, inputs, self.fits)

    def extend(self, inputs: likelihood.Noised, columns: range) -> int:
        """Have the full model's values at these draws; returns the forward passes that this took."""
        if self.kl.shape[1] >= columns.stop:
            return 0
        with self.model.lock:
            self.kl = np.hstack([self.kl[:, : columns.start], self.values(inputs)])
        return len(inputs.w)


@dataclass
class Drops:
    """What is known of one picture's groups while they are scored. kl: group id -> (K, m). broken: group id -> why it
    has no score. m: draws of those that go on. done, left: forward passes."""

    method: str
    groups: Sequence[str]
    full: FullModel
    racing: Racing
    unavailable: Mapping[str, str]
    settings: Mapping[str, Any]
    kl: dict[str, np.ndarray]
    offset_se: Mapping[str, float] = field(default_factory=dict)
    broken: dict[str, GroupScore] = field(default_factory=dict)
    m: int = 0
    done: int = 0
    answer: dict[str, Any] = field(default_factory=dict)  # of the last whole pass

    def snapshot(self, left: int) -> Attribution:
        """The answer of the last whole pass. left: forward passes to come, at most."""
        progress = self.done / (self.done + left) if left else 1.0
        return Attribution(
            self.method, "nats", progress=progress, settings=self.settings, **(self.answer or {"groups": {}})
        )

    def _score(self, g: str) -> GroupScore:
        if g in self.unavailable:
            return GroupScore(None, None, None, "unavailable", self.unavailable[g])
        if g in self.broken:
            return self.broken[g]
        made = self.kl[g].shape[1]
        e = likelihood.elbo_drop(full=self.full.kl[:, :made], without=self.kl[g], strata=self.full.strata)
        e = e.plus(self.racing.offset.get(g, 0.0), self.offset_se.get(g, 0.0))
        return GroupScore(e.value, e.low, e.high, reason=BEHIND if made < self.m else "")

    def finish_pass(self, *, last: bool) -> None:
        """Score all groups and let those go that need no more draws."""
        strata, kl = self.full.strata, {g: v for g, v in self.kl.items() if g not in self.broken}
        scores = {g: self._score(g) for g in self.groups}
        self.racing.look(self.m, self.full.kl, kl, strata)
        kept = KLValues(self.full.draws.t[:, : self.m], np.asarray(strata.edges), self.full.kl[:, : self.m], kl)
        ranked, order = Attribution(self.method, "nats", scores).ranked(), {}
        if len(ranked) > 1:
            first = ahead(kept, ranked, self.racing.offset, self.offset_se)
            order = {"separable": first.low > 0, "runner_up": ranked[1]}
        self.answer = {"groups": scores, "kl": kept, **order}
        if self.racing.race is not None and (last or not self.racing.going):
            self.answer["reached"] = self._reached(scores, order.get("separable"))

    def _reached(self, scores: Mapping[str, GroupScore], separable: bool | None) -> str:
        best = max((s for s in scores.values() if s.score is not None), key=lambda s: s.score or 0.0, default=None)
        if self.racing.decided:
            return "width"
        if best is None or best.low is None or best.high is None or not separable or self.racing.race is None:
            return "draws"
        narrow = (best.high - best.low) / 2 <= self.racing.race.width * abs(best.score or 0.0)
        return "width" if narrow else "draws"


def ahead(
    kl: KLValues, ranked: Sequence[str], offset: Mapping[str, float], offset_se: Mapping[str, float]
) -> likelihood.Estimate:
    """How far the first group is ahead of the second, paired, by the draws that both have. ranked: best first."""
    first, second = ranked[:2]
    m = min(kl.without[g].shape[1] for g in (first, second))
    a, b = (kl.without[g][:, :m] for g in (first, second))
    e = likelihood.difference(first=a, second=b, strata=likelihood.Strata(tuple(kl.edges.tolist())))
    se = math.hypot(offset_se.get(first, 0.0), offset_se.get(second, 0.0))
    return e.plus(offset.get(first, 0.0) - offset.get(second, 0.0), se)


def drops(
    full: FullModel,
    group_ids: Sequence[str],
    without: Without,
    *,
    method: str,
    budget: Budget,
    unavailable: Mapping[str, str],
    settings: Mapping[str, Any],
    offset: Mapping[str, float] | None = None,
    offset_se: Mapping[str, float] | None = None,
) -> Iterator[Attribution]:
    """Yield an Attribution after every model's share of a pass; scores change at the end of each pass.

    unavailable: group id -> reason, for groups that have no model without them. offset: group id -> nats that are
    added to its scores, whatever the picture; offset_se: their standard errors, which the intervals hold. A race looks
    at the error of sampling alone, which more draws make smaller. The first pass yields no scores yet.
    """
    usable = [g for g in group_ids if g not in unavailable]
    slack = SLACK.get(str(full.model.dtype).removeprefix("torch."), SLACK_COARSE)
    racing = Racing(budget.race, usable, offset=offset or {}, follow=budget.follow.get(method), slack=slack)
    empty = {g: np.empty((len(full.strata), 0)) for g in usable}
    found = Drops(method, group_ids, full, racing, unavailable, settings, empty, offset_se or {})
    k = len(full.strata)
    for columns in passes(budget.draws, budget.per_pass, budget.race):
        inputs, going = full.inputs(columns), list(racing.going)
        found.done += full.extend(inputs, columns)
        for i, g in enumerate(going):
            yield found.snapshot(k * (len(going) - i) * len(columns) + _later(k, columns, budget.draws, racing))
            found.done += len(inputs.w)
            try:
                with full.model.lock, without(g):
                    new = full.values(inputs)
                found.kl[g] = np.hstack([found.kl[g], new])
            except (ScoreError, AdapterError) as e:
                status = "no_score" if isinstance(e, ScoreError) else "unavailable"
                found.broken[g] = GroupScore(None, None, None, status, str(e))
                racing.drop(g)
        found.m = columns.stop
        last = columns.stop == budget.draws
        found.finish_pass(last=last)
        ended = last or not racing.going
        yield found.snapshot(0 if ended else _later(k, columns, budget.draws, racing))
        if ended:
            return


def _later(k: int, columns: range, draws: int, racing: Racing) -> int:
    """Forward passes to come at most, after the pass of these draws."""
    return k * (1 + len(racing.going)) * (draws - columns.stop)


class Counterfactual(Method):
    """Scores groups by models without them, stored in a folder: an adapter, or a retrained delta, for each group.

    model_label: what one such model is called. figures_title, figures_note, figure_columns: of the table of what was
    measured of them (`records.GroupModels`).
    adapters: group id -> its model without the group. unavailable: group id -> why there is none. offset: group id ->
    nats that its scores hold beside the drop, whatever the picture; offset_se: their standard errors.
    """

    unit = "nats"
    model_label: ClassVar[str]
    figures_title: ClassVar[str]
    figures_note: ClassVar[str]
    figure_columns: ClassVar[Mapping[str, str]]
    offset: Mapping[str, float]
    offset_se: Mapping[str, float]

    def __init__(self, model: BaseModel, group_set: GroupSet, folder: Folder) -> None:
        self.model, self.group_set, self.folder = model, group_set, folder
        self.offset, self.offset_se = {}, {}
        self.switching = Switching(model.network)
        self.adapters: dict[str, adapters.Adapter] = {}
        self.unavailable: dict[str, str] = {}

        def read(gid: str) -> adapters.Adapter | AdapterError:
            try:
                return adapters.load(folder / gid, model=model, group=gid, group_set=group_set.id)
            except AdapterError as e:
                return e

        with ThreadPoolExecutor(min(READERS, cores())) as pool:  # unpacking and hashing leave Python's lock to others
            for gid, found in zip(group_set.groups, pool.map(read, group_set.groups), strict=True):
                if isinstance(found, AdapterError):
                    self.unavailable[gid] = placeless(str(found))  # reports hold it
                else:
                    self.adapters[gid] = found

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
            figures={g: self._figures(g) for g in self.group_set.groups},
        )

    def _figures(self, group: str) -> dict[str, Any] | str:
        """What was measured of the group's model that answers here, or why nothing is told."""
        found, answers = read_figures(self.folder / group / adapters.HEALTH), self.hashes.get(group)
        if isinstance(found, dict) and answers and found.get("adapter_sha256", answers) != answers:
            return f"{adapters.HEALTH} is of another model without the group than the one that answered."
        return found

    def without(self, group: str) -> AbstractContextManager[None]:
        """Within the block the model is the one without the group."""
        return self.switching.applied(self.adapters[group])

    def cost(self, budget: Budget) -> Cost:
        return Cost(forward=forward_passes(len(self.adapters), budget))

    def shared_cost(self, budget: Budget) -> Cost:
        """The full model's part."""
        return Cost(forward=forward_passes(0, budget))

    @property
    def drafts(self) -> list[str]:
        """The groups whose model is a draft (`guda_core.unlearning.draft`)."""
        return [g for g, a in self.adapters.items() if is_draft(a.meta)]

    @cached_property
    def outdated(self) -> list[str]:
        """The groups whose model was made when the set's list named other pictures or captions."""
        made = {g: a.meta.get(LISTED) for g, a in self.adapters.items()}
        now = trained_on(self.group_set.folder) if any(made.values()) else None
        listed = {g for g, then in made.items() if then and now and then != now}
        words = {g: a.meta[WORDS] for g, a in self.adapters.items() if WORDS in a.meta}
        written = words_sha256(self.group_set) if words else None
        fit = self.group_set.fit
        fits = {g for g, a in self.adapters.items() if a.meta.get(FIT, fit) != fit}
        return [g for g in self.adapters if g in listed | fits or words.get(g, written) != written]

    @cached_property
    def unchanged(self) -> list[str]:
        """The groups whose model, as far as its health tells, did not forget them."""
        return [g for g, sha256 in self.hashes.items() if forgot_nothing(read_health(self.folder / g, sha256))]

    @cached_property
    def differing(self) -> list[str]:
        """The groups whose model was made with other settings than those of most groups, drafts apart."""
        made = {g: told_apart(a.meta) for g, a in self.adapters.items() if not is_draft(a.meta)}
        usual = Counter(made.values()).most_common(1)
        return [g for g, how in made.items() if how != usual[0][0]]

    @property
    def rounded(self) -> dict[str, float]:
        """The groups whose model lost a part of its change by rounding -> the share that is left. In another type than
        the one that it was made in that is not known."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        shares = {g: a.meta.get(KEPT) for g, a in self.adapters.items() if a.meta.get("dtype") == dtype}
        return {g: share for g, share in shares.items() if isinstance(share, float) and share < ENOUGH}

    def caveat(self) -> str:
        """What has to be said of the scores; "" where all models without a group are what they should be."""
        said = []
        if self.unavailable and self.adapters:
            away = [self.group_set.groups[g].name for g in self.unavailable]
            have, them = ("has", "it") if len(away) == 1 else ("have", "them")
            said.append(
                f"{len(away)} of {len(self.group_set.groups)} groups {have} no score, because there is no model "
                f"without {them} that can be used: {some(away)}. So the first place is one among the others."
            )
        if self.drafts:
            said.append(
                f"The models without {self._which(self.drafts)} are drafts: instant edits (UCE) in place of "
                "unlearning. They agree less with retraining, above all for a picture without a prompt. "
                "`guda unlearn` makes the real ones."
            )
        if self.unchanged:
            said.append(NOTHING_FORGOTTEN.format(which=self._which(self.unchanged)))
        if self.rounded:
            least = min(self.rounded.values())
            said.append(
                f"Rounding took a part of what was changed from the models without {self._which(list(self.rounded))} "
                f"(in the worst one, {f'{least:.0%}' if least >= 0.01 else 'almost nothing'} is left), so their scores "
                "are too near to 0. `guda unlearn --again --rank 6` makes LoRAs, which lose no such part."
            )
        if self.differing:
            said.append(
                f"The models without {self._which(self.differing)} were made with other settings than the others, so "
                "their scores cannot be compared."
            )
        if self.outdated:
            said.append(
                f"The models without {self._which(self.outdated)} were made before the set's pictures or captions "
                "changed. `guda unlearn` makes them again."
            )
        return " ".join(said)

    def _which(self, groups: Sequence[str]) -> str:
        if len(groups) == len(self.adapters):
            return "each group"
        return ", ".join(self.group_set.groups[g].name for g in groups)

    def provenance(self) -> dict[str, Any]:
        drafts = {"drafts": self.drafts} if self.drafts else {}
        return {"base_sha256": self.model.sha256, "adapters": self.hashes, **drafts}

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        """Yields refining Attributions. settings names the base and the model without each group by hash."""
        yield from self.answer(query, budget, {})

    def answer(self, query: Query, budget: Budget, shared: dict[str, Any]) -> Iterator[Attribution]:
        """As `attribute`; the full model's values, the noise's seeds and the embedded prompt are shared."""
        full = FullModel.of(self.model, query, budget, shared)
        with self.model.lock:  # not while another thread has a model without a group in place
            live = {"switching": "live"} if self.switching.any_live(self.adapters.values()) else {}
        settings = {
            "budget": {**budget.plain(), "batch": full.batch, "rule": likelihood.RULE},
            **{k: v for k, v in self.provenance().items() if k != "offset_se" or budget.offset_error},
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            **live,
        }
        yield from drops(
            full,
            list(self.group_set.groups),
            self.without,
            method=self.id,
            budget=budget,
            unavailable=self.unavailable,
            settings=settings,
            offset=self.offset,
            offset_se=self.offset_se if budget.offset_error else {},
        )
