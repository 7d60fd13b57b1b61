"""The last part of an answer: strip and maps, made while the visitor reads the scores, or why they are not there.

They are made by the models of the main method, and where that was not asked, of the first asked one that has any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import cast

from guda_core.answers.markup import Html
from guda_core.answers.verdict import is_out
from guda_core.picture_records import PlaceMap, Shown
from guda_core.reports.picture_files import tile
from guda_core.service import ALONE, Service, main_first, map_passes, strip_passes
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.progress import STRIP, WHERE, Pictures, Progress, per_pass

log = logging.getLogger(__name__)
FIRST = 3  # groups that have a map on the page: the first ones by the score
LONGEST_S = 60.0  # that strip and maps may take on the page


def pictures_of(service: Service, methods: Sequence[str], effort: str, steps: int = 0) -> Pictures:
    """Which pictures an answer gets: none where no asked method has models without a group, and none where it would
    take longer than LONGEST_S, which is said. steps: of a picture that the model drew, 0: of any other."""
    models = service.provenance().models
    able = [m for m in main_first(service.methods()) if m in methods and m in models and models[m].hashes]
    if not able:
        return Pictures()
    groups = len(models[able[0]].hashes)
    passes = {STRIP: ALONE * strip_passes(groups, steps), WHERE: map_passes(min(FIRST, groups))}
    each = per_pass(service, able[:1], effort)
    seconds = {k: n * each for k, n in passes.items()}
    if (took := sum(seconds.values())) > LONGEST_S:
        return Pictures(able[0], missing=words.too_long(took, LONGEST_S))
    return Pictures(able[0], seconds)


def seen_in_pictures(
    service: Service, answer: Answer, progress: Progress, explained: Callable[[Exception], str]
) -> Iterator[tuple[Shown, Html]]:
    """More and more pictures, the same object while there are no new ones, and the line of the progress. Nothing for a
    picture that is out of scope.

    An error ends the pictures, is told below them and leaves the scores as they are. explained: what a visitor is told
    of it. Closing this ends the work within one step.
    """
    asked, shown = progress.pictures, answer.shown
    a = answer.found.get(asked.method)
    if a is None or not a.ranked() or is_out(answer.scope):
        return
    if not asked.seconds:
        yield replace(shown, missing=_also(shown, asked.missing), by_command=True), progress.at(asked.method, 1.0)
        return
    making = STRIP
    try:
        with closing(cast(Generator, service.pictures(answer.query, method=asked.method))) as strips:
            for strip in strips:
                if shown.strip is None or len(strip.pictures) > len(shown.strip.pictures):
                    shown = replace(shown, strip=strip)
                yield shown, progress.at(STRIP, strip.progress)
        making, groups = WHERE, a.ranked()[:FIRST]
        with closing(cast(Generator, service.maps(answer.query, method=asked.method, groups=groups))) as stream:
            for item in stream:
                if isinstance(item, PlaceMap):
                    where = (*shown.where, tile(answer.query.pixels, item))
                    shown = replace(shown, where=where, draws=item.draws, width=item.width)
                    yield shown, progress.at(WHERE, len(where) / len(groups))
                else:
                    yield shown, progress.at(WHERE, item)
    except Exception as e:
        log.warning("The pictures of an answer are not whole. %s", e)
        said = words.NO_STRIP if making == STRIP else words.NO_WHERE
        yield replace(shown, missing=_also(shown, f"{said} {explained(e)}")), progress.at(making, 1.0)


def _also(shown: Shown, missing: str) -> str:
    return f"{shown.missing} {missing}".strip()


def with_word(service: Service, answer: Answer) -> Answer:
    """A finished answer that comes back, with a word where it could have strip and maps, and was made or stored without
    them, or was stopped before they were there."""
    shown, drawn = answer.shown, answer.query.drawn
    if shown.missing or is_out(answer.scope):
        return answer
    asked = pictures_of(service, answer.methods, answer.effort, drawn.steps if drawn is not None else 0)
    a = answer.found.get(asked.method)
    if a is None or not a.ranked():
        return answer
    strip = shown.strip is not None and bool(shown.strip.pictures) and shown.strip.progress >= 1
    if strip and len(shown.where) >= min(FIRST, len(a.ranked())):
        return answer
    said = replace(shown, missing=asked.missing or words.WITHOUT_PICTURES, by_command=bool(asked.missing))
    return replace(answer, shown=said)
