"""One progress bar over everything that a press of a button does: "GUDA: 2 of 7, about 20 s left"."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from guda_core.answers.markup import Html, status_html
from guda_core.service import Service, main_first
from guda_core.ui import words

DRAW, SCOPE, CAPTIONS, STRIP, WHERE = "draw", "scope", "captions", "strip", "where"
LEAST = 0.05  # seconds that a part is counted with at least
SCOPE_S = 2.0  # of a check whose time nobody measures beforehand
ALL = 0.999  # of everything, as sums of parts are
TELLING = 0.05  # of everything: from here on, the time that it took tells the time that is left


@dataclass(frozen=True)
class Part:
    """A piece of the work. key: a method's id, or one of DRAW, SCOPE, CAPTIONS, STRIP, WHERE. seconds: as expected."""

    key: str
    label: str
    seconds: float


@dataclass(frozen=True)
class Pictures:
    """Strip and maps that an answer gets. method: id of the one whose models make them, "" for none. seconds: STRIP and
    WHERE -> as expected; {}: they are not made. missing: why they are not, in a sentence."""

    method: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""


class Progress:
    """How far everything is. Parts may advance in any order. slower: so many times as long as the parts say."""

    def __init__(self, parts: Sequence[Part], pictures: Pictures | None = None, slower: float = 1.0) -> None:
        self.pictures, self.slower = pictures or Pictures(), slower
        self.parts = {p.key: p for p in parts}
        self.done = dict.fromkeys(self.parts, 0.0)
        self.began = time.monotonic()

    def fraction(self) -> float:
        """Of everything, in [0, 1]."""
        total = sum(p.seconds for p in self.parts.values())
        return sum(p.seconds * self.done[k] for k, p in self.parts.items()) / total if total else 0.0

    def expected(self) -> float:
        """Seconds of everything."""
        return self.slower * sum(p.seconds for p in self.parts.values())

    def learned(self) -> float:
        """How much slower than the parts say it went, 1 at least, once all is done; as it was expected before."""
        if self.fraction() < ALL:
            return self.slower
        return max(1.0, self.slower * (time.monotonic() - self.began) / self.expected())

    def at(self, key: str, done: float) -> Html:
        """The line and the bar once a part is this far (0 to 1)."""
        self.done[key] = max(done, self.done.get(key, 0.0))
        f, spent = self.fraction(), time.monotonic() - self.began
        left = spent * (1 - f) / f if f >= TELLING else self.expected() * (1 - f)
        finished = sum(v >= 1 for k, v in self.done.items() if k != key)
        part = self.parts.get(key)
        said = f"{part.label if part is not None else key}: {finished + 1} of {len(self.parts)}"
        return status_html(said + (f", {words.seconds(left)} left" if f < 1 else ""), f)


def plan(
    service: Service,
    methods: Sequence[str],
    effort: str,
    *,
    steps: int = 0,
    scope: bool = False,
    captions: bool = False,
    pictures: Pictures | None = None,
    slower: float = 1.0,
) -> Progress:
    """What a run will do, the main method first.

    steps: of the picture that is drawn first, 0: none. scope: whether the picture's scope is looked at. captions:
    whether other captions are tried. Raises OptionError when an option is unknown.
    """
    known = service.methods()
    asked = [m for m in main_first(known) if m in methods]
    until = [0.0, *(service.estimate(asked[: i + 1], effort) for i in range(len(asked)))]
    scored = [Part(m, known[m].name, max(LEAST, until[i + 1] - until[i])) for i, m in enumerate(asked)]
    parts = []
    if steps:
        passes = service.cost(asked, effort).forward if asked else 0
        parts.append(Part(DRAW, "Drawing", max(LEAST, 2 * steps * until[-1] / passes if passes else SCOPE_S)))
    if scope:
        parts.append(Part(SCOPE, "Could this model have made it", SCOPE_S))
    if captions and scored:
        scored.append(Part(CAPTIONS, "Other captions", 2 * scored[0].seconds))
    labels = {STRIP: "What it would draw without", WHERE: "Where in the picture"}
    last = [Part(k, labels[k], max(LEAST, s)) for k, s in (pictures or Pictures()).seconds.items()]
    return Progress([*parts, *scored, *last], pictures, slower)


def per_pass(service: Service, methods: Sequence[str], effort: str) -> float:
    """Seconds of one pass of the network, about, as the estimate of an answer tells; 0 where it tells nothing."""
    passes = service.cost(methods, effort).forward if methods else 0
    return service.estimate(methods, effort) / passes if passes else 0.0
