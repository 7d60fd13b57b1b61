"""ZeroGPU Spaces lend a GPU for the length of one call: this marks the calls that compute. Elsewhere it does nothing.

What is marked runs in a process of its own: arguments and answers are pickled, and what it changes in memory is lost.
Each call asks for as many seconds as it needs at most, because the lent time is counted:

    seconds = START_S + r (FORWARD_S forward + GRADIENT_S gradients) + seconds of other work,      at most LONGEST_S

r: how many times as long a pass of this model takes as one of the included model, for which the two constants hold. It
is timed on the lent GPU, by the first attribution: outside a marked call there is no GPU, and no weights to touch.
Until then, a model of one's own asks for UNTIMED_S. The passes of a strip are counted ALONE times each, because its
pictures are drawn one at a time.

The platform counts 1.5 s for each second that is asked for. A visitor without an account has 120 s a day.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from guda_core.diffusion.memory import NO_MEMORY, is_out_of_memory
from guda_core.diffusion.pace import Pace
from guda_core.errors import GudaError, ScoreError
from guda_core.picture_records import Near, PlaceMap, Strip
from guda_core.records import Attribution, Cost, MethodInfo, Provenance, Query, Scope
from guda_core.service import ALONE, Recorded, Service, Step, map_passes, strip_passes

log = logging.getLogger(__name__)
VARIABLE = "SPACES_ZERO_GPU"  # set by the platform
START_S, LONGEST_S = 10, 80  # seconds asked for: to begin, and at most
UNTIMED_S = 60  # seconds asked for by a model of which no pass was timed; leaves a visitor enough to draw before
FORWARD_S, GRADIENT_S = 1 / 216, 1 / 20  # for a forward pass, and for one with the gradient of every weight
ROOM = 1.25  # times as long as was timed is asked for


def is_zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space."""
    return bool(os.environ.get(VARIABLE))


def on_zero_gpu(service: Service) -> Service:
    """The service with its computing calls marked for ZeroGPU; the same service everywhere else."""
    if not is_zero_gpu():
        return service
    import spaces  # pyright: ignore[reportMissingImports]  (only there, and imported by app.py before torch)

    return ZeroGpu(service, spaces.GPU)


@dataclass(frozen=True)
class Refused:
    """An error that the visitor is told, on its way out of the marked call: of one that is raised there, the platform
    passes on its type's name alone."""

    error: GudaError


@dataclass(frozen=True)
class Timed:
    """Seconds of a forward pass on the lent GPU, on their way out of the marked call."""

    forward_s: float


def _refused(error: Exception) -> Refused:
    """Raises the error again when it is nothing that a visitor can be told."""
    if isinstance(error, GudaError):
        return Refused(error)
    if is_out_of_memory(error):
        log.exception("Out of memory")
        return Refused(ScoreError(NO_MEMORY))
    raise error


def _marked_stream(call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def marked(*args: Any) -> Iterator[Any]:
        try:
            yield from call(*args)
        except Exception as e:
            yield _refused(e)

    return marked


def _marked(call: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args: Any) -> Any:
        try:
            return call(*args)
        except Exception as e:
            return _refused(e)

    return marked


def _told(answer: Any) -> Any:
    """What a marked call gave. Raises the error that it was refused with."""
    if isinstance(answer, Refused):
        raise answer.error
    return answer


def _each(stream: Iterator[Any]) -> Generator[Any, None, None]:
    """`_told` of all that a marked stream gives; closing this closes it."""
    try:
        for answer in stream:
            yield _told(answer)
    finally:
        if isinstance(stream, Generator):
            stream.close()


class ZeroGpu:
    """A `Service` whose calls that compute are wrapped by `gpu(duration=...)`."""

    def __init__(self, service: Service, gpu: Callable[..., Callable[..., Any]]) -> None:
        self.service = service
        self.group_set, self.model_name, self.banner = service.group_set, service.model_name, service.banner
        self._took: dict[tuple[tuple[str, ...], str], float] = {}
        self._pace: Pace | None = getattr(service, "pace", None)  # of services with a model
        self._timed_s: float | None = None

        def generate(options: dict[str, Any]) -> Iterator[Step | Query]:
            yield from service.generate(**options)

        def attribute(
            query: Query, methods: Sequence[str], effort: str, recorded: Recorded | None, timed: bool
        ) -> Iterator[Attribution | Timed]:
            if self._pace is not None and not timed:
                yield Timed(self._pace.forward_s)
            yield from service.attribute(query, methods=methods, effort=effort, recorded=recorded)

        def asked(query: Query, methods: Sequence[str], effort: str, recorded: Recorded | None, timed: bool) -> int:
            return self.seconds(methods, effort)

        def to_draw(options: dict[str, Any]) -> int:
            return self._asked(30, 2 * FORWARD_S * options["steps"])  # with the prompt and without

        self._generate = gpu(duration=to_draw)(_marked_stream(generate))
        self._attribute = gpu(duration=asked)(_marked_stream(attribute))

        def pictures(query: Query, method: str) -> Iterator[Strip]:
            yield from service.pictures(query, method=method)

        def maps(query: Query, method: str, groups: Sequence[str]) -> Iterator[PlaceMap | float]:
            yield from service.maps(query, method=method, groups=groups)

        def to_redraw(query: Query, method: str) -> int:
            models, steps = service.provenance().models.get(method), query.drawn.steps if query.drawn else 0
            passes = strip_passes(len(models.hashes), steps) if models is not None else 0
            return self._asked(START_S, ALONE * FORWARD_S * passes)

        def to_map(query: Query, method: str, groups: Sequence[str]) -> int:
            return self._asked(START_S, FORWARD_S * map_passes(len(groups)))

        self._pictures = gpu(duration=to_redraw)(_marked_stream(pictures))
        self._maps = gpu(duration=to_map)(_marked_stream(maps))
        self._scope = gpu(duration=30)(_marked(service.scope))
        self._caption = gpu(duration=30)(_marked(service.best_caption))
        self._prepare = gpu(duration=30)(_marked(lambda data, prompt: service.prepare(data, prompt=prompt)))

    def seconds(self, methods: Sequence[str], effort: str) -> int:
        """GPU seconds that an attribution asks for."""
        cost = self.cost(methods, effort)
        return self._asked(START_S, FORWARD_S * cost.forward + GRADIENT_S * cost.gradients, cost.seconds)

    def _asked(self, least: int, computing: float, other: float = 0.0) -> int:
        """Seconds to ask for. computing: seconds that the passes would take with the included model."""
        if self._timed_s is None and self._pace is not None and self._pace.model.card.source != "assets":
            return UNTIMED_S
        slower = 1.0 if self._timed_s is None else max(1.0, ROOM * self._timed_s / FORWARD_S)  # r above
        return max(least, min(LONGEST_S, round(START_S + slower * computing + other)))

    def provenance(self) -> Provenance:
        return self.service.provenance()

    def methods(self) -> dict[str, MethodInfo]:
        return self.service.methods()

    def cost(self, methods: Sequence[str], effort: str) -> Cost:
        return self.service.cost(methods, effort)

    def estimate(self, methods: Sequence[str], effort: str) -> float:
        """What the last such run took; before there was one, the seconds asked for."""
        return self._took.get((tuple(sorted(methods)), effort), self.seconds(methods, effort))

    def generate(self, *, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[Step | Query]:
        yield from _each(self._generate({"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance}))

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        return _told(self._prepare(data, prompt))

    def attribute(
        self, query: Query, *, methods: Sequence[str], effort: str, recorded: Recorded | None = None
    ) -> Iterator[Attribution]:
        began = time.monotonic()
        known = self._timed_s is not None
        with closing(_each(self._attribute(query, list(methods), effort, recorded, known))) as answers:
            for answer in answers:
                if isinstance(answer, Timed):
                    self._timed_s = answer.forward_s
                else:
                    yield answer
        self._took[(tuple(sorted(methods)), effort)] = time.monotonic() - began

    def pictures(self, query: Query, *, method: str) -> Iterator[Strip]:
        yield from _each(self._pictures(query, method))

    def maps(self, query: Query, *, method: str, groups: Sequence[str]) -> Iterator[PlaceMap | float]:
        yield from _each(self._maps(query, method, list(groups)))

    def nearest(self, query: Query) -> tuple[Near, ...]:
        return self.service.nearest(query)  # by a small network on the CPU

    def scope(self, query: Query) -> Scope:
        return _told(self._scope(query))

    def best_caption(self, query: Query) -> str:
        return _told(self._caption(query))

    def with_prompt(self, query: Query, prompt: str) -> Query:
        return self.service.with_prompt(query, prompt)

    def unread(self, prompt: str) -> tuple[str, ...]:
        return self.service.unread(prompt)
