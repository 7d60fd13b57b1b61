"""What an attribution method is: the contract that service, screens, command line and reports read.

A method is one class, found by its line in `attribution.METHODS`. A higher score means that the group
contributed more, by that method. Only in nats of ELBO does positive mean that it contributed at all.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from guda_core.attribution import METHODS, others
from guda_core.attribution.others import cost_of, faults_of, is_ours, made_from, own
from guda_core.data.embeddings import Encoder
from guda_core.data.encoded import Examples
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import called
from guda_core.errors import GudaError, OptionError, ScoreError
from guda_core.file_names import placeless
from guda_core.paths import SHIPPED_RUN, Folder
from guda_core.records import Attribution, Cost, GroupModels, GroupSet, MethodInfo, Query
from guda_core.service import Race

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How much computing one answer gets. strata of timesteps (likelihood.make_strata); draws in each, made in
    passes of `per_pass` draws; batch: largest forward batch, 0: what suits the model and the device. Methods that draw
    no timesteps ignore it.

    race: when groups stop before all draws are made; None: never. follow: method id -> group id -> draws that a report
    names (`service.Recorded`); it is no part of the settings. offset_error: whether intervals hold the error of the
    offsets; False only for reports of before they did.
    """

    draws: int = 4
    per_pass: int = 2
    strata: int = 24
    batch: int = 0
    race: Race | None = None
    follow: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    offset_error: bool = True

    def plain(self) -> dict[str, Any]:
        """As an answer's settings hold it."""
        out: dict[str, Any] = {k: getattr(self, k) for k in ("draws", "per_pass", "strata", "batch")}
        return out if self.race is None else {**out, "race": {**asdict(self.race), "looks": list(self.race.looks)}}


@dataclass(frozen=True)
class Unavailable:
    """A method that cannot be offered here, and why: one plain sentence, with what mends it."""

    reason: str


@dataclass(frozen=True)
class Context:
    """What a method may be loaded from.

    clip: what sees likeness, with the features of the training pictures; None where there is none, and no_clip says
    why. adapters: the folder of unlearning adapters; features: of gradient features; oracle: of retrained models;
    calibration: the file with the offset's weight; each may be missing.
    examples: the training pictures, encoded; None in the app, which does not have them.
    loaded: the methods that are loaded already, of which a method that `needs` others is made.
    """

    model: BaseModel
    group_set: GroupSet
    clip: Encoder | None = None
    no_clip: str = "There is no CLIP beside this model."
    adapters: Folder | None = None
    features: Folder | None = None
    oracle: Folder | None = None
    calibration: Path | None = None
    examples: Examples | None = None
    loaded: Mapping[str, Method] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """Ids of the groups, in the order of the set."""
        return list(self.group_set.groups)

    @property
    def is_shipped(self) -> bool:
        """Whether it is the embedded model with its groups."""
        return (self.model.card.id, self.group_set.id) == (SHIPPED_RUN.parent.name, SHIPPED_RUN.name)

    def command(self, words: str) -> str:
        """The command of `guda` that makes something for just this model and group set, such as "assets features"."""
        return f"guda {words} {called(self.model.card, self.group_set.id)}"


class Method(ABC):
    """One way to score groups. A subclass says what it is by class attributes (`records.MethodInfo`).

    needs: ids of the methods that it is made from, see `Combination`.
    """

    id: ClassVar[str]
    name: ClassVar[str]
    unit: ClassVar[str]
    note: ClassVar[str]
    main: ClassVar[bool] = False
    oracle: ClassVar[bool] = False
    default: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def load(cls, context: Context) -> Self | Unavailable:
        """The method for a model and its data, or why it cannot be offered. An error of ours says the same."""

    @abstractmethod
    def cost(self, budget: Budget) -> Cost:
        """What one answer takes at most, beside the answers of the methods that it needs."""

    def shared_cost(self, budget: Budget) -> Cost:
        """The part of `cost` that is computed once for all methods of a request that have such a part."""
        return Cost()

    def answer(self, query: Query, budget: Budget, shared: dict[str, Any]) -> Iterator[Attribution]:
        """`attribute` within a request for several methods. shared: what they leave for each other, empty at first."""
        return self.attribute(query, budget)

    @abstractmethod
    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        """Yields Attributions of `id` and `unit` that refine; the last has progress 1.0.

        Closing the generator ends the work within one step and leaves the model as it was.

        Raises:
            ScoreError: there can be no score.
        """

    def provenance(self) -> dict[str, Any]:
        """The part of every answer's settings that names what it is computed from: hashes, offsets. Plain data."""
        return {}

    def caveat(self) -> str:
        """What has to be said of its scores, such as that they are of an older set's pictures; "" where nothing has."""
        return ""

    def models(self) -> GroupModels | None:
        """Its models without a group each, None when it has no such."""
        return None

    @classmethod
    def info(cls) -> MethodInfo:
        """What is said of the method."""
        return MethodInfo(cls.id, cls.name, cls.unit, cls.note, cls.main, cls.oracle, cls.default, tuple(cls.needs))


class Combination(Method):
    """A method made from the answers of others, `needs`, all of which must be offered."""

    def __init__(self, parts: Mapping[str, Method]) -> None:
        self.parts = dict(parts)

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        return cls({m: context.loaded[m] for m in cls.needs})

    @abstractmethod
    def combine(self, parts: Mapping[str, Attribution]) -> Attribution:
        """The answer from one of each part, as far as the least finished one is."""

    def cost(self, budget: Budget) -> Cost:
        """Nothing beside its parts."""
        return Cost()

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        """Computes the parts and yields what they say together, whenever one of them refines."""
        yield from answers({**self.parts, self.id: self}, [self.id], query, budget)

    def provenance(self) -> dict[str, Any]:
        return {"parts": {m: made_from(method) for m, method in self.parts.items()}}


def load_methods(context: Context) -> tuple[dict[str, Method], dict[str, str]]:
    """(id -> every method of METHODS that can be offered, in its order; id -> why not, of the others)."""
    loaded: dict[str, Method] = {}
    refused: dict[str, str] = {}
    waiting: dict[str, Any] = {m: _read(m) for m in METHODS}
    while waiting:
        ready = [m for m, kind in waiting.items() if not set(getattr(kind, "needs", ())) & set(waiting)]
        for m in ready or list(waiting):  # where methods need each other in a circle, none is ready and all are refused
            found = _load(waiting.pop(m), replace(context, loaded=MappingProxyType(loaded)))
            if isinstance(found, Unavailable):
                refused[m] = placeless(found.reason)  # reports hold it
            else:
                loaded[m] = found
    return {m: loaded[m] for m in METHODS if m in loaded}, {m: refused[m] for m in METHODS if m in refused}


def _read(m: str) -> type[Method] | Unavailable:
    """The class behind a line of METHODS, if it is one that says all it must."""
    try:
        kind = METHODS[m]
    except OptionError as e:
        return _warned(m, str(e))
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        return _warned(m, "It is no class made from Method.")
    why = others.unfit(kind, m)
    return _warned(m, why) if why else kind


def _load(kind: type[Method] | Unavailable, context: Context) -> Method | Unavailable:
    if isinstance(kind, Unavailable):
        return kind
    missing = [m for m in kind.needs if m not in context.loaded]
    if missing:
        return Unavailable(f"It is made from {', '.join(missing)}, which cannot be offered.")
    try:
        found = kind.load(context)
        if not isinstance(found, Method | Unavailable):
            raise TypeError(f"its load gives {type(found).__name__}")
        if isinstance(found, Unavailable) and not isinstance(found.reason, str):
            raise TypeError("the reason why it cannot be offered is no text")
        if isinstance(found, Method) and not is_ours(kind):
            others.check_loaded(found)
    except GudaError as e:
        return _warned(kind.name, str(e))
    except (Exception, SystemExit) as e:
        if is_ours(kind):
            raise
        log.exception("%s of %s cannot be loaded", kind.name, kind.__module__)
        of = others.package_of(kind)
        return _warned(kind.name, f"It cannot be loaded ({type(e).__name__}: {e}). It is of the package '{of}'.")
    if isinstance(found, Unavailable):
        log.info("%s is not offered. %s", kind.name, found.reason)
    return found


def _warned(name: str, reason: str) -> Unavailable:
    log.warning("%s is not offered. %s", name, reason)
    return Unavailable(reason)


def checked(method: Method, answer: Callable[[], Iterator[Attribution]]) -> Iterator[Attribution]:
    """The answers of a method as they come; those of other packages' methods are looked at (`attribution.others`).

    Raises:
        ScoreError: one cannot be used; the last is not whole; or a method of another package fails.
    """
    last = None
    with faults_of(method):
        found = answer()
        with closing(cast(Generator, found)) if hasattr(found, "close") else nullcontext():
            for a in found:
                last = own(method, a)
                yield last
    _check_whole(method, last)


def _check_whole(method: Method, last: Attribution | None) -> None:
    if not is_ours(type(method)) and (last is None or last.progress < 1):
        raise ScoreError(f"The method '{method.id}' ended before its answer was whole.")


def with_needs(methods: Mapping[str, Method], asked: Iterable[str]) -> list[str]:
    """The asked methods and all that they are made from: the main one first, else in the order of `methods`."""
    wanted: set[str] = set()
    left = list(asked)
    while left:
        m = left.pop()
        if m not in wanted:
            wanted.add(m)
            left += methods[m].needs
    return sorted((m for m in methods if m in wanted), key=lambda m: not methods[m].main)


def total_cost(methods: Mapping[str, Method], asked: Iterable[str], budget: Budget) -> Cost:
    """What the answers of the asked methods take together at most; what several need is counted once."""
    wanted = [methods[m] for m in with_needs(methods, asked)]
    total = sum((cost_of(m, m.cost, budget) for m in wanted), Cost())
    shared = sorted((cost_of(m, m.shared_cost, budget).forward for m in wanted), reverse=True)
    return replace(total, forward=total.forward - sum(shared[1:]))


def answers(methods: Mapping[str, Method], asked: Sequence[str], query: Query, budget: Budget) -> Iterator[Attribution]:
    """The asked methods' answers as they refine, method by method. What several need is computed once."""
    wanted = with_needs(methods, asked)
    made = {m: c for m in wanted if isinstance(c := methods[m], Combination)}
    latest: dict[str, Attribution] = {}
    shared: dict[str, Any] = {}

    def follow(a: Attribution) -> Iterator[Attribution]:
        """An answer, and those that can be made from it."""
        latest[a.method] = a
        if a.method in asked:
            yield a
        for c in made.values():
            if a.method in c.needs and all(p in latest for p in c.needs):
                with faults_of(c):
                    combined = own(c, c.combine(latest))
                yield from follow(combined)

    for m in wanted:
        if m not in made:
            for a in checked(methods[m], partial(methods[m].answer, query, budget, shared)):
                yield from follow(a)
    for c in made.values():
        _check_whole(c, latest.get(c.id))
