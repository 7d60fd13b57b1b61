"""The contract of the user interface and of reports: what a service answers, and how much computing an answer gets.

Answers come as generators, so that they can be shown while they refine; closing a generator cancels the work within one
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from guda_core.errors import OptionError, why
from guda_core.picture_records import Near, PlaceMap, Strip
from guda_core.records import Attribution, Cost, GroupSet, MethodInfo, Provenance, Query, Scope

T = TypeVar("T")
NO_STRIP = "The drawings without a group are missing."
NO_MAPS = "The maps are missing."
NO_NEAR = "The training pictures that look most like it could not be found."


@dataclass(frozen=True)
class Race:
    """When groups stop before all draws are made (`attribution.racing`).

    looks: numbers of draws, rising, after which groups may stop. keep: so many go on whatever they score. error:
    chance that the group that is truly the first is stopped. width: of the leader's interval to each side that is
    narrow enough, as a share of its score.
    """

    looks: tuple[int, ...]
    keep: int = 3
    error: float = 0.01
    width: float = 0.1

    def level(self, groups: int) -> float:
        """The error of one comparison among so many groups (Bonferroni)."""
        return self.error / max(1, len(self.looks) * (groups - 1))


@dataclass(frozen=True)
class Effort:
    """How much computing an ELBO score gets. draws: noise draws in each of the 24 strata of timesteps, at most; race:
    when groups stop before, None: never; per_pass: draws between two refinements of the bars where there is no race."""

    id: str
    name: str
    draws: int
    per_pass: int
    race: Race | None = None


EFFORTS: dict[str, Effort] = {
    "quick": Effort("quick", "Quick", 2, 1),
    "standard": Effort("standard", "Standard", 6, 2, Race((2, 4), width=0.1)),
    "full": Effort("full", "Full", 24, 4, Race((2, 4, 8, 16), width=0.05)),
    "every": Effort("every", "Every draw", 24, 4),
}


@dataclass(frozen=True)
class Recorded:
    """How a report's draws were counted, for a service that computes it again.

    raced: whether its efforts raced. draws: method id -> group id -> draws of that group, which decide where the values
    do not, because other hardware moves them a little. offset_error: whether its intervals hold the error of offsets.
    """

    raced: bool
    draws: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    offset_error: bool = True


@dataclass(frozen=True)
class Step:
    """Progress of a generation: `done` of `steps`."""

    done: int
    steps: int


class Service(Protocol):
    """What the user interface needs. Every method may raise a `GudaError`, whose text is meant for the visitor."""

    group_set: GroupSet
    model_name: str
    banner: str  # "" or a sentence for the top of the page, e.g. that the bundled model stands in for another

    def provenance(self) -> Provenance:
        """The hashes and settings of everything that answers are computed with, for their record."""
        ...

    def methods(self) -> dict[str, MethodInfo]:
        """What is said of each method that is offered, by id, in the order of their answers."""
        ...

    def cost(self, methods: Sequence[str], effort: str) -> Cost:
        """What `attribute` takes at most, in passes of the network."""
        ...

    def estimate(self, methods: Sequence[str], effort: str) -> float:
        """Expected seconds of `attribute` on this machine (measured, not guessed)."""
        ...

    def generate(self, *, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[Step | Query]:
        """Yields a Step after each denoising step, then the Query of the finished picture, last."""
        ...

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        """Check and prepare the bytes of an uploaded picture. Raises ImageError or PromptError in a plain sentence."""
        ...

    def attribute(
        self, query: Query, *, methods: Sequence[str], effort: str, recorded: Recorded | None = None
    ) -> Iterator[Attribution]:
        """Yields Attributions that refine, method by method: the main one first, then the cheapest. The last of each
        has progress 1.0.

        recorded: of the report that is computed again, if it is one."""
        ...

    def pictures(self, query: Query, *, method: str) -> Iterator[Strip]:
        """What the models of a method draw without each group; the strip grows, and the last has progress 1. Raises
        OptionError where the method has no such models."""
        ...

    def maps(self, query: Query, *, method: str, groups: Sequence[str]) -> Iterator[PlaceMap | float]:
        """Where in the picture a method's drop comes from: a map of each of the groups, and before it the share of the
        work that is done. Raises OptionError where the method has no models without a group."""
        ...

    def nearest(self, query: Query) -> tuple[Near, ...]:
        """The training pictures that it looks most like, most like first; () where nothing sees likeness."""
        ...

    def scope(self, query: Query) -> Scope:
        """Could this model have made the picture? Takes a few seconds; the same answer for the same picture."""
        ...

    def best_caption(self, query: Query) -> str:
        """The caption, of those the model was trained with, that CLIP finds most like the picture; "" where there is no
        CLIP that reads words, or no caption."""
        ...

    def with_prompt(self, query: Query, prompt: str) -> Query:
        """The same picture under another caption. Raises PromptError."""
        ...

    def unread(self, prompt: str) -> tuple[str, ...]:
        """What of a prompt the model does not read, in sentences; () when it reads all of it."""
        ...


@dataclass
class Beside:
    """Makes what stands beside the scores. Where that fails they stay. tell: hears why."""

    tell: Callable[[str], object]
    failed: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # why -> what -> of which methods

    def made(self, make: Callable[[], T], otherwise: T, what: str, method: str = "") -> T:
        """What `make` gives, else `otherwise`. what: is said before the reason. method: its name, where others make the
        same."""
        try:
            return make()
        except Exception as e:
            reason = why(e)
        of = [method] if method else []
        self.failed.setdefault(reason, {}).setdefault(what, []).extend(of)
        self.tell(f"{_whose(what, of)} {reason}")
        return otherwise

    @property
    def missing(self) -> str:
        """All that was told, no sentence twice."""
        found = ([*(_whose(*each) for each in whats.items()), reason] for reason, whats in self.failed.items())
        return " ".join(said for sentences in found for said in sentences)


def _whose(what: str, methods: Sequence[str]) -> str:
    return f"{what.removesuffix('.')} ({', '.join(methods)})." if methods else what


def scope_or_why(service: Service, query: Query) -> Scope:
    """The service's word on whether the model could have made the picture; where that fails, why."""
    try:
        return service.scope(query)
    except Exception as e:
        return Scope("not assessed", None, None, "", why(e))


REDRAWN, MAPPED = 15, 96  # passes of one model: for the strip of a picture that it did not draw, and for a map
ALONE = 4  # so many times as long as in a batch takes a pass of one picture (strip.json: 6.0 s for 400 passes)


def strip_passes(groups: int, steps: int) -> int:
    """Passes of the network that a strip takes, each ALONE times as long as in a batch, because its pictures are drawn
    one at a time. groups: that have a model without them. steps: of a picture that the model drew (each with the prompt
    and without), 0: of any other, which the full model draws again too."""
    return 2 * steps * groups if steps else REDRAWN * (groups + 1)


def map_passes(groups: int) -> int:
    """Passes of the network that the maps of so many groups take, those of the full model among them."""
    return MAPPED * (1 + groups)


def find_effort(name: str) -> Effort:
    """The effort of that id. Raises OptionError that lists the known ones."""
    if not isinstance(name, str) or name not in EFFORTS:
        raise OptionError(f"There is no effort '{name}'. Known: {', '.join(EFFORTS)}.")
    return EFFORTS[name]


def check_ids(asked: object) -> None:
    """Raises OptionError unless it is a list of texts, which may be ids of methods."""
    if isinstance(asked, str) or not isinstance(asked, Sequence) or not all(isinstance(m, str) for m in asked):
        raise OptionError('Methods must be a list of ids, for example ["guda"].')


def check_methods(
    asked: Sequence[str], offered: Mapping[str, object], not_offered: Mapping[str, str] | None = None
) -> None:
    """Raises OptionError that lists the offered methods unless some of these, and no others, are asked for.

    not_offered: method id -> why, which is said of one that is asked for.
    """
    check_ids(asked)
    unknown = [m for m in asked if m not in offered]
    if unknown or not asked:
        why = [(not_offered or {})[m] for m in unknown if m in (not_offered or {})]
        said = f"Methods must be some of {', '.join(offered)}; got {', '.join(unknown) or 'none'}."
        raise OptionError(" ".join([said, *why]))


def main_first(methods: Mapping[str, MethodInfo]) -> list[str]:
    """Ids of the methods with the main one first, as on the screen."""
    return sorted(methods, key=lambda m: not methods[m].main)


def main_method(methods: Mapping[str, MethodInfo]) -> str:
    """Id of the main method; "" where it is not offered."""
    return next((m for m, info in methods.items() if info.main), "")


def default_methods(methods: Mapping[str, MethodInfo]) -> list[str]:
    """Ids of the methods that are asked when nobody chooses, the main one first."""
    return [m for m in main_first(methods) if methods[m].default]
