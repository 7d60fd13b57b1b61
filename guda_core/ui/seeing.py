"""The last part of an answer: strip and maps of the main method, made while the visitor reads the scores."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import cast

from guda_core.answers.markup import Html
from guda_core.errors import GudaError
from guda_core.picture_records import PlaceMap, Shown
from guda_core.reports.picture_files import tile
from guda_core.service import Service, main_method
from guda_core.ui.answer import Answer
from guda_core.ui.panels import out
from guda_core.ui.progress import STRIP, WHERE, Progress, per_pass

log = logging.getLogger(__name__)
FIRST = 3  # groups that have a map on the page: the first ones by the score
LONGEST_S = 60.0  # that strip and maps may take on the page
REDRAWN, MAPPED = 15, 96  # passes of one model for an upload's picture, and for a map (`attribution`)


def passes(service: Service, methods: Sequence[str], effort: str, steps: int = 0) -> dict[str, int]:
    """STRIP and WHERE -> passes of the network; {} where the main method is not asked or has no models without a group,
    and where it would take long. steps: of a picture that the model drew, 0: of an upload."""
    main = main_method(service.methods())
    models = service.provenance().models.get(main)
    if main not in methods or models is None or not models.hashes:
        return {}
    groups = len(models.hashes)
    found = {STRIP: 2 * steps * groups if steps else REDRAWN * (groups + 1), WHERE: MAPPED * (1 + min(FIRST, groups))}
    return found if sum(found.values()) * per_pass(service, [main], effort) <= LONGEST_S else {}


def seen_in_pictures(service: Service, answer: Answer, progress: Progress) -> Iterator[tuple[Shown, Html]]:
    """More and more pictures, the same object while there are no new ones, and the line of the progress. Nothing for a
    picture that is out of scope.

    An error of ours ends the pictures and leaves the answer as it is. Closing this ends the work within one step.
    """
    main, shown = main_method(service.methods()), answer.shown
    a = answer.found.get(main)
    if STRIP not in progress.parts or a is None or not a.ranked() or out(answer.scope):
        return
    try:
        with closing(cast(Generator, service.pictures(answer.query, method=main))) as strips:
            for strip in strips:
                if shown.strip is None or len(strip.pictures) > len(shown.strip.pictures):
                    shown = replace(shown, strip=strip)
                yield shown, progress.at(STRIP, strip.progress)
        groups = a.ranked()[:FIRST]
        with closing(cast(Generator, service.maps(answer.query, method=main, groups=groups))) as stream:
            for item in stream:
                if isinstance(item, PlaceMap):
                    where = (*shown.where, tile(answer.query.pixels, item))
                    shown = replace(shown, where=where, draws=item.draws, width=item.width)
                    yield shown, progress.at(WHERE, len(where) / len(groups))
                else:
                    yield shown, progress.at(WHERE, item)
    except GudaError as e:
        log.warning("The pictures of an answer were left out. %s", e)
