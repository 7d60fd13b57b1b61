"""Pictures that the model itself draws, answered once and then at once: their reports are kept in the cache folder.

Nothing is committed and no third party's picture is used. A kept report is read like one from a stranger, and counts
only when it belongs to this model, group set, adapters and versions; anything else is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described
from guda_core.errors import GudaError
from guda_core.paths import cache_dir
from guda_core.picture_records import Drawing
from guda_core.records import GroupSet
from guda_core.reports import bundle
from guda_core.reports.read import read_report
from guda_core.reports.record import circumstances
from guda_core.reports.restore import attributions, shown
from guda_core.service import Service
from guda_core.ui.answer import Answer

log = logging.getLogger(__name__)
EFFORT = "quick"
Made = TypeVar("Made")
Stamp = tuple[Path, int, int]  # of a kept report: place, time of writing in ns, bytes


@dataclass(frozen=True)
class Example:
    """An object drawn in the words of one group."""

    object_name: str
    style: str
    seed: int
    steps: int = 25
    guidance: float = 2.5

    def fits(self, group_set: GroupSet) -> bool:
        """Whether the group set has this object and group."""
        return self.object_name in group_set.train_objects and self.style in group_set.groups

    def name(self, group_set: GroupSet) -> str:
        """What the button says. The words of a style are the group's; whose style it is, is left for the answer."""
        return f"{self.object_name.replace('-', ' ').capitalize()}, {captioner_of(group_set).phrases(self.style)[0]}"

    def file(self) -> str:
        """The name of its picture among the model's own (`ui.seen`)."""
        return f"example-{self.object_name}-{self.style}.png"

    def prompt(self, group_set: GroupSet) -> str:
        """The caption, as in training."""
        return captioner_of(group_set).prompt(described(self.style, self.object_name))


EXAMPLES = (
    Example("rocket", "openmoji", 1),
    Example("cat-face", "fluent-emoji", 2),
    Example("house-with-garden", "fluent-emoji-high-contrast", 3),
)
FIRST = Example("rocket", "fluent-emoji-flat", 1)  # what the form holds before anybody changes it


def _place(service: Service, example: Example, methods: tuple[str, ...]) -> Path:
    """Where an example's report is kept: another file for everything that the answer depends on."""
    settings = {"methods": list(methods), "effort": EFFORT}
    made = service.provenance()
    known = circumstances(service.group_set, provenance=made, settings=settings)
    more = [
        "pictures, nearest",
        {m: made.made_from.get(m) for m in methods},
        repr(example),
        example.prompt(service.group_set),
    ]
    text = json.dumps([known, *more], sort_keys=True)
    return cache_dir() / "examples" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.zip"


def kept(service: Service, example: Example, methods: tuple[str, ...]) -> Answer | None:
    """The answer that was computed earlier, None when there is none that fits."""
    path = _place(service, example, methods)
    if not path.is_file():
        return None
    try:
        report = read_report(path)
        query = service.prepare(report.picture, prompt=report.record["picture"]["prompt"])
        pictures = replace(shown(report), near=service.nearest(query))  # a report holds none of these pictures
    except (GudaError, OSError) as e:
        log.warning("A kept example is computed again. %s", e)
        return None
    drawn = Drawing(example.seed, example.steps, example.guidance)
    told = report.record["picture"]
    if query.image_hash != told["pixels_sha256"] or told.get("drawn") != asdict(drawn):
        return None
    query = replace(query, file_hash=None, preparation=tuple(told["preparation"]), drawn=drawn)
    return Answer(query, methods, EFFORT, {a.method: a for a in attributions(report)}, shown=pictures)


class Shelf(Generic[Made]):
    """What was made of each kept answer, so that only the first press of an example costs anything. made: of an answer
    that was read."""

    def __init__(self, service: Service, made: Callable[[Answer], Made]) -> None:
        self.service, self.made = service, made
        self.known: dict[Example, tuple[Stamp, Made]] = {}
        self.reading = threading.Lock()

    def get(self, example: Example, methods: tuple[str, ...], *, wait: bool) -> Made | None:
        """What was made of an example's kept answer, None when there is none that fits. Answers are read one at a time.
        wait: for another that is being read; else None then too."""
        path = _place(self.service, example, methods)
        try:
            file = path.stat()
        except OSError:
            return None
        stamp = (path, file.st_mtime_ns, file.st_size)
        if (found := self._found(example, stamp)) is not None:
            return found
        if not self.reading.acquire(blocking=wait):
            return None
        try:
            if (found := self._found(example, stamp)) is None:
                answer = kept(self.service, example, methods)
                if answer is not None:
                    found = self.made(answer)
                    self.known[example] = stamp, found
            return found
        finally:
            self.reading.release()

    def _found(self, example: Example, stamp: Stamp) -> Made | None:
        known = self.known.get(example)
        return known[1] if known is not None and known[0] == stamp else None


def keep(service: Service, example: Example, answer: Answer) -> None:
    """Keep a finished answer. Where the cache cannot be written to, the next visitor's is computed again."""
    try:
        bundle.write(_place(service, example, answer.methods), answer.report(service))
    except (GudaError, OSError) as e:
        log.warning("An example could not be kept. %s", e)
