"""The map of any group, chosen by the visitor, beside those of the first ones that an answer brings by itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

from guda_core.answers import sentences
from guda_core.answers.verdict import is_out
from guda_core.errors import OptionError
from guda_core.picture_records import PlaceMap, Tile
from guda_core.reports.picture_files import tile
from guda_core.service import Service, main_method
from guda_core.ui import words
from guda_core.ui.answer import Answer


def mappable(service: Service, answer: Answer | None) -> bool:
    """Whether maps can be made of this answer: it has scores by models without a group, and is not out of scope."""
    main = main_method(service.methods())
    if answer is None or main not in answer.found or is_out(answer.scope):
        return False
    models = service.provenance().models.get(main)
    return models is not None and bool(models.hashes) and bool(answer.found[main].ranked())


def said_of(name: str, t: Tile) -> str:
    """What a map says, in a sentence."""
    if not t.share:
        return words.MAP_NOTHING.format(name=name)
    return words.MAP_SAYS.format(name=name, share=sentences.places(t.share))


def one_map(service: Service, answer: Answer | None, group: Any) -> Iterator[float | tuple[Answer, str]]:
    """The share that is done, then the answer with the group's map and what the map says.

    Raises:
        OptionError: there is no such group, or no map can be made.
    """
    names = {g: v.name for g, v in service.group_set.groups.items()}
    if answer is None or not mappable(service, answer):
        raise OptionError(words.NO_MAPS)
    if not isinstance(group, str) or group not in names:
        raise OptionError(f"There is no such group. Known: {', '.join(names)}.")
    known = next((t for t in answer.shown.where if t.group == group), None)
    if known is not None:
        yield answer, f"{said_of(names[group], known)} {words.MAP_THERE}"
        return
    stream = service.maps(answer.query, method=main_method(service.methods()), groups=[group])
    with closing(cast(Generator, stream)):
        for item in stream:
            if isinstance(item, PlaceMap):
                made = tile(answer.query.pixels, item)
                shown = replace(answer.shown, where=(made, *answer.shown.where), draws=item.draws, width=item.width)
                yield replace(answer, shown=shown), said_of(names[group], made)
                return
            yield item
    raise OptionError(words.NO_MAP.format(name=names[group]))
