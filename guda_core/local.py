"""From a picture or a prompt to answers, with a real model on this machine: what app and command line are built on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from guda_core import paths
from guda_core.attribution import scope as scopes
from guda_core.attribution.counterfactual import Counterfactual
from guda_core.attribution.counterfactual_pictures import pictures_without
from guda_core.attribution.maps import maps
from guda_core.attribution.method import Budget, Context, Method, answers, load_methods, total_cost
from guda_core.attribution.nearest import fetched, nearest
from guda_core.attribution.others import caveat_of, info_of, models_of, provenance_of
from guda_core.attribution.similarity import ClipSimilarity
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Item, fitted, middle
from guda_core.data.embeddings import Encoder, no_bank
from guda_core.data.encoded import check_fit
from guda_core.data.encoders import bank_of, name_of, open_encoder
from guda_core.data.groups import chosen_set, load_group_set
from guda_core.data.images import hash_pixels, read_picture
from guda_core.data.prompts import check_options, check_prompt, prompt_notes
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import (
    DEFAULT_MODEL,
    called,
    chosen_card,
    chosen_model,
    find_card,
    load_model,
    own_model,
)
from guda_core.diffusion.pace import Pace
from guda_core.errors import ModelError, OptionError, ScoreError
from guda_core.file_names import placeless
from guda_core.paths import Folder
from guda_core.picture_records import Drawing, Near, PlaceMap, Strip
from guda_core.records import Attribution, Cost, GroupSet, MethodInfo, Provenance, Query, Scope
from guda_core.service import Recorded, Step, check_methods, find_effort
from guda_core.stored_figures import read_validation

START_S = 0.2  # of an answer before and beside its passes
M = TypeVar("M", bound=Method)


class LocalService:
    """The service on this machine: one base model and every method that can be offered for it.

    offered: method id -> method. not_offered: id -> why. clip: what sees likeness; None where there is none, and
    no_clip says why.
    """

    def __init__(
        self,
        model: BaseModel,
        group_set: GroupSet,
        clip: Encoder | None,
        adapters: Folder,
        *,
        features: Folder | None = None,
        oracle: Folder | None = None,
        rule: Path | None = None,
        calibration: Path | None = None,
        banner: str = "",
        no_clip: str = "There is no CLIP beside this model.",
    ) -> None:
        check_fit(model, group_set)
        self.model, self.group_set, self.clip, self.no_clip = model, group_set, clip, no_clip
        self.banner, self.model_name = banner, model.card.name
        context = Context(
            model, group_set, clip, no_clip=no_clip, adapters=adapters, features=features, oracle=oracle,
            calibration=calibration,
        )  # fmt: skip
        self.offered, self.not_offered = load_methods(context)
        fit, mended_by = scopes.fit_of(group_set), context.command("assets scope")
        self.rule = scopes.read_rule(
            rule, base_sha256=model.sha256, group_set=group_set.id, fit=fit, mended_by=mended_by
        )
        self.pace = Pace(model)
        self.told: set[str] = set()  # what a log has heard of this model and set
        self._saved: dict[tuple[frozenset[str], str], int] = {}  # forward passes, by what was asked
        self._items: Sequence[Item] | None = None  # training pictures that were fetched, read when first asked
        self._captions: tuple[list[str], torch.Tensor] | None = None  # what CLIP chooses from, read when first asked

    def method(self, kind: type[M]) -> M:
        """The offered method of a class. Raises OptionError when it is not offered."""
        found = self.offered.get(kind.id)
        if not isinstance(found, kind):
            raise OptionError(f"{kind.name} is not offered. {self.not_offered.get(kind.id, '')}".strip())
        return found

    def encoder(self) -> Encoder:
        """What sees likeness. Raises ModelError that says why there is none."""
        if self.clip is None:
            raise ModelError(self.no_clip)
        return self.clip

    def provenance(self) -> Provenance:
        m, device = self.model, str(self.model.device)
        if m.device.type == "cuda":
            device = f"{device} ({torch.cuda.get_device_name(m.device)})"
        return Provenance(
            model=m.card.id,
            name=m.card.name,
            sha256=m.sha256,
            clip_sha256=self.clip.sha256 if self.clip else "",
            bank_sha256=self._bank_sha256(),
            caveats={"": m.caveat, **{k: caveat_of(method) for k, method in self.offered.items()}},
            resolution=m.card.resolution,
            only_groups=m.card.only_groups and m.card.group_set == self.group_set.id,
            scope_sha256=scopes.used_sha256(self.rule, self.clip),
            dtype=str(m.dtype).removeprefix("torch."),
            device=device,
            threads=torch.get_num_threads(),
            methods=self.methods(),
            not_offered=self.not_offered,
            made_from={k: provenance_of(method) for k, method in self.offered.items()},
            models={k: found for k, method in self.offered.items() if (found := models_of(method)) is not None},
            validation=read_validation(paths.BENCHMARKS, base_sha256=m.sha256),
        )

    def _bank_sha256(self) -> str:
        likeness = self.offered.get(ClipSimilarity.id)
        return likeness.bank_sha256 if isinstance(likeness, ClipSimilarity) else ""

    def methods(self) -> dict[str, MethodInfo]:
        return {k: info_of(method) for k, method in self.offered.items()}

    def cost(self, methods: Sequence[str], effort: str) -> Cost:
        budget = budget_of(effort)
        if methods:
            check_methods(methods, self.offered, self.not_offered)
        return total_cost(self.offered, methods, budget)

    def estimate(self, methods: Sequence[str], effort: str) -> float:
        """Of all passes at most, less those that a race saved the last time that the same was asked."""
        cost, saved = self.cost(methods, effort), self._saved.get((frozenset(methods), effort), 0)
        return START_S + self.pace.seconds(replace(cost, forward=cost.forward - saved))

    def query(self, pixels: np.ndarray, prompt: str, **more: object) -> Query:
        """A Query of pixels of a size that the model takes, (H, W, 3) uint8."""
        return Query(pixels, self.model.encode(pixels), prompt, hash_pixels(pixels), **more)  # type: ignore[arg-type]

    def generate(self, *, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[Step | Query]:
        check_options(seed=seed, steps=steps, guidance=guidance)
        prompt = check_prompt(prompt)
        pictures = None
        stream = self.model.sample([prompt], seeds=[seed], steps=steps, guidance=guidance)
        for i, pictures in enumerate(stream):  # noqa: B007
            yield Step(i + 1, steps)
        assert pictures is not None
        drawn = Drawing(seed, steps, guidance)
        yield self.query(pictures[0], prompt, preparation=self.unread(prompt), drawn=drawn)

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        prompt = check_prompt(prompt)
        p = read_picture(data, size=self.model.card.resolution, fit=self.group_set.fit)
        said = (*p.preparation, *self.unread(prompt))
        return self.query(p.pixels, prompt, file_hash=p.file_hash, preparation=said)

    def with_prompt(self, query: Query, prompt: str) -> Query:
        prompt = check_prompt(prompt)
        before = self.unread(query.prompt)
        kept = tuple(s for s in query.preparation if s not in before)
        return replace(query, prompt=prompt, preparation=(*kept, *self.unread(prompt)))

    def _counterfactual(self, method: str) -> Counterfactual:
        check_methods([method], self.offered, self.not_offered)
        found = self.offered[method]
        if not isinstance(found, Counterfactual):
            raise OptionError(f"{found.name} has no models without a group, so it has no pictures. Ask another method.")
        return found

    def pictures(self, query: Query, *, method: str) -> Iterator[Strip]:
        yield from pictures_without(self._counterfactual(method), query)

    def maps(self, query: Query, *, method: str, groups: Sequence[str]) -> Iterator[PlaceMap | float]:
        yield from maps(self._counterfactual(method), query, groups)

    def with_models(self, methods: Sequence[str]) -> list[str]:
        """Those of the methods that have models without a group. Raises OptionError when none has."""
        able = [m for m in methods if isinstance(self.offered.get(m), Counterfactual)]
        if not able:
            raise OptionError("Pictures and maps need a method that has models without a group. Ask for guda too.")
        return able

    def strip(self, query: Query, method: str) -> Strip:
        """The whole strip of a method, see `pictures`."""
        return list(self.pictures(query, method=method))[-1]

    def place_maps(self, query: Query, method: str) -> dict[str, PlaceMap]:
        """Group id -> its map, of all groups, see `maps`."""
        found = self.maps(query, method=method, groups=list(self.group_set.groups))
        return {m.group: m for m in found if isinstance(m, PlaceMap)}

    def nearest(self, query: Query) -> tuple[Near, ...]:
        likeness = self.offered.get(ClipSimilarity.id)
        if not isinstance(likeness, ClipSimilarity):
            return ()
        if not self._items:  # pictures may be fetched later
            self._items = fetched(self.group_set)
        return nearest(likeness, query, self._items)

    def scope(self, query: Query) -> Scope:
        if query.pixels.shape[0] != query.pixels.shape[1]:  # the rule was made from squares
            query = self.query(fitted(middle(query.pixels), self.model.card.resolution), query.prompt)
        return scopes.judge(self.rule, self.model, self.clip, query)

    def best_caption(self, query: Query) -> str:
        texts = captioner_of(self.group_set).examples()
        if self.clip is None or not self.clip.reads_words or not texts:
            return ""
        if self._captions is None:
            parts = [self.clip.text_features(texts[i : i + 64]) for i in range(0, len(texts), 64)]
            self._captions = (texts, torch.cat(parts))
        texts, features = self._captions
        return texts[int((features @ self.clip.image_features(query.pixels[None])[0]).argmax())]

    def unread(self, prompt: str) -> tuple[str, ...]:
        n, most = self.model.tokens(prompt)
        cut = (f"The prompt has {n} tokens; the model reads the first {most}.",) if n > most else ()
        with self.model.reading:
            return (*cut, *prompt_notes(prompt, self.model.tokenizers))

    def attribute(
        self, query: Query, *, methods: Sequence[str], effort: str, recorded: Recorded | None = None
    ) -> Iterator[Attribution]:
        budget = budget_of(effort, recorded)
        check_methods(methods, self.offered, self.not_offered)
        final: dict[str, Attribution] = {}
        for a in answers(self.offered, methods, query, budget):
            if a.progress >= 1 and a.groups.keys() != self.group_set.groups.keys():
                raise ScoreError(f"The method '{a.method}' gave no score, and no reason, for each group of the set.")
            if a.runner_up not in (None, *a.ranked()[1:2]):
                raise ScoreError(
                    f"The method '{a.method}' names a second group that is not the second by its scores: "
                    f"{a.runner_up!r:.60}."
                )
            final[a.method] = a
            yield a
        self._saved[frozenset(methods), effort] = saved_passes(final.values(), budget)


def saved_passes(found: Iterable[Attribution], budget: Budget) -> int:
    """Forward passes that races saved in the final answers of one request, the full model's counted once."""
    sampled = [a.kl for a in found if a.kl is not None and a.reached is not None]
    if not sampled:
        return 0
    strata = len(sampled[0].edges) - 1
    groups = sum(budget.draws - v.shape[1] for kl in sampled for v in kl.without.values())
    return strata * (groups + budget.draws - max(kl.t.shape[1] for kl in sampled))


def budget_of(effort: str, recorded: Recorded | None = None) -> Budget:
    """The computing that an effort stands for, or stood for in a report. Raises OptionError when there is no such
    effort."""
    e = find_effort(effort)
    if recorded is None:
        return Budget(draws=e.draws, per_pass=e.per_pass, race=e.race)
    race = e.race if recorded.raced else None
    return Budget(
        draws=e.draws, per_pass=e.per_pass, race=race, follow=recorded.draws, offset_error=recorded.offset_error
    )


def load_service(model: str | None = None, *, group_set: str | None = None, fall_back: bool = True) -> LocalService:
    """The service of a model and a group set. Where one is not given: GUDA_MODEL, else the embedded model;
    GUDA_GROUP_SET, else the set of the model's card.

    fall_back: when that card's model cannot be loaded, take the included one and say so in the banner; never for the
    only model of a workspace.

    Raises:
        ModelError: the model cannot be loaded (and the included one neither, or fall_back is off).
    """
    name = chosen_model(model)
    card, banner = chosen_card(model), ""
    base: BaseModel | None = None
    try:
        base = load_model(card)
    except ModelError as e:
        if not fall_back or name in (DEFAULT_MODEL, own_model()):
            raise
        banner = f"The bundled model answers in place of '{name}'. {e}"
    if base is None:  # out here, so that the error no longer holds what was loaded
        card = find_card(DEFAULT_MODEL)
        base = load_model(card)
    return service_for(base, load_group_set(chosen_set(group_set, card.group_set)), banner=banner)


def service_for(base: BaseModel, group_set: GroupSet, *, banner: str = "") -> LocalService:
    """The service of a loaded model, with what the workspaces hold for it and the group set."""
    run = paths.run(base.card.id, group_set.id)
    more = {"features": run.features, "oracle": run.oracle, "rule": run.scope, "calibration": run.calibration}
    clip, why = _encoder(base, group_set, run)
    return LocalService(base, group_set, clip, run.adapters, **more, banner=banner, no_clip=why)


def _encoder(base: BaseModel, group_set: GroupSet, run: paths.Run) -> tuple[Encoder | None, str]:
    """What sees likeness for this model, or why there is none. One that nothing here needs is not brought."""
    bank, how = bank_of(base.card, run), f"guda assets bank {called(base.card, group_set.id)}"
    if name_of(base.card) and not bank.is_file() and not run.scope.is_file():
        return None, no_bank(how)
    try:
        return open_encoder(base.card, bank, mended_by=how), ""
    except ModelError as e:
        return None, placeless(str(e), paths.at_home(name_of(base.card).partition(":")[2]), paths.ASSETS / "clip")


def encoder_of(base: BaseModel, group_set: GroupSet) -> Encoder:
    """What sees likeness for this model. Raises ModelError: it is missing, damaged, or cannot be brought."""
    return open_encoder(base.card, bank_of(base.card, paths.run(base.card.id, group_set.id)))
