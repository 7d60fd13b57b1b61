"""A whole table: every part is one task, done here one after the other, or by workers.

    table.json    how many parts, when it was begun and by which version; written first
    asked-*       the pictures of a run (`listing`); the next one removes it
    summary.html  written last (`page`)

A run that was stopped, wherever and however, is started again by the same command: rows that are right are kept. Runs
of other pictures may go on beside it: the first one says how many parts there are, and each part is in one hand.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from guda_core import __version__
from guda_core.errors import OptionError, ReportError
from guda_core.held_files import remove_left
from guda_core.reports.bundle import json_text
from guda_core.scoring import parts, places
from guda_core.scoring.listing import LIST, PARQUET, Listing, as_text, parts_for
from guda_core.scoring.part_jobs import here
from guda_core.scoring.scorer import TRYING, WHY, Done, Task, Total, asked_methods, service_of
from guda_core.service import Service, find_effort
from guda_core.versions import today
from guda_core.work_queue import claimed

log = logging.getLogger(__name__)
FORMAT = 1
TABLE = "table.json"
Work = Callable[[Sequence[Task]], Iterator[Done]]  # does tasks, in any order; a part is told of as it grows


@dataclass(frozen=True)
class Options:
    """What a table is made with. prompt: of every picture, where a table of pictures has none. methods: () for the
    default ones."""

    effort: str = "standard"
    methods: tuple[str, ...] = ()
    prompt: str = ""


class Table:
    """Some pictures and the folder for what a service says of them."""

    def __init__(
        self, sources: Sequence[str], out: str, make_service: Callable[[], Service], options: Options = Options()
    ) -> None:
        """Look at everything that could stop the run before a model is loaded.

        Raises:
            OptionError: no such picture, folder, table or effort, or the results are of another format.
            ReportError: a place cannot be read now.
        """
        if not out or as_text(out) != out:
            raise OptionError("The name of the folder for the results is empty, or no text. Name one with --out.")
        self.out, self.options, self.make_service = places.absolute(out), options, make_service
        find_effort(options.effort)
        if any(places.is_within(self.out, s) for s in sources if s and places.is_folder(s)):
            raise OptionError("The results must go into another folder than that of the pictures.")
        if places.is_file(self.out):
            raise OptionError(f"'{out}' is a file, and the results need a folder. Name one with --out.")
        self.listing = Listing(sources, options.prompt)
        self.parts = self._parts()

    def _parts(self) -> int:
        """How many parts the results have: what was written when they were begun, else what suits the pictures."""
        found = begun(self.out)
        return parts_for(len(self.listing)) if found is None else int(found["parts"])

    def said_before(self) -> list[str]:
        """Sentences before the run: which rows it takes the place of, which rows of a table of pictures it leaves out,
        which columns it does not use, and whether the prompt."""
        said, found = [], parts.whole(places.files(places.joined(self.out, parts.FOLDER), parts.ENDING))[0]
        if n := self.listing.prompted_otherwise(found):
            has = "picture has" if n == 1 else "pictures have"
            said.append(f"{n:,} {has} rows under another prompt. Scored again, these rows are replaced.")
        if n := self.listing.nameless:
            said.append(
                f"{n:,} {'row names' if n == 1 else 'rows name'} no file, and {'is' if n == 1 else 'are'} left out."
            )
        said += [f"The column '{column}' holds no texts, and is not used." for column in self.listing.textless]
        if self.options.prompt and self.listing.captions:
            said.append(f"The column '{self.listing.captions}' is used in place of the prompt.")
        return said

    def tasks(self) -> list[Task]:
        """Write down what is asked, and give a task for every part that has pictures."""
        o, sizes = self.options, self.listing.write(self.out, self.parts)
        more = (self.make_service, o.effort, o.methods, self.listing.name, self.parts)
        return [Task(self.out, part, n, *more) for part, n in sizes.items()]

    def run(self, work: Work = here) -> Iterator[Total]:
        """Score what is not scored, by `work`; yields how far it is, the finished total last.

        Raises:
            OptionError: a method is unknown, or the results were begun with something else.
            ReportError: the results cannot be written, or `work` gave parts up.
        """
        if work is here:  # before there is a folder; of workers, the first one finds out
            task = Task(self.out, 0, 0, self.make_service, methods=self.options.methods)
            asked_methods(task, service := service_of(task), service.provenance())
        claim = places.claim_of(self.out, self.listing.name)
        with ExitStack() as stack:
            mine = stack.enter_context(claimed(claim))  # so that no other run removes the list
            self._begin()
            so_far, total = dict[int, Done](), Total(len(self.listing))
            for done in work(self.tasks()):
                mine = mine or stack.enter_context(claimed(claim))  # the same command had it, and has ended
                total = _added(total, done, so_far.get(done.part, Done(done.pictures, part=done.part)))
                so_far[done.part] = replace(done, why={})
                yield total
            self._remove_left()

    def _begin(self) -> None:
        """Write down how many parts there are; where another run has done so, it is as many."""
        with claimed(places.claim_of(self.out, TABLE), wait=True):
            if begun(self.out) is None:
                head = {"format": FORMAT, "parts": self.parts, "begun": today(), "guda_version": __version__}
                places.write(places.joined(self.out, TABLE), json_text(head).encode())
            self.parts = self._parts()

    def _remove_left(self) -> None:
        """Remove the lists of runs before this one, but not of those that go on beside it, and files of killed ones."""
        with suppress(OSError, ReportError):  # the next run tries it again
            for name in () if places.is_url(self.out) else ("", parts.FOLDER, TRYING):
                remove_left(places.as_path(self.out) / name)
            for place in places.files(self.out, PARQUET):
                name = places.name_of(place)
                if LIST.fullmatch(name) and name != self.listing.name:
                    with claimed(places.claim_of(self.out, name)) as mine:  # its lock stays: others may wait for it
                        if mine:
                            places.remove(place)


def _added(total: Total, now: Done, before: Done) -> Total:
    """The total with a part that is further than before."""
    counts = ("scored", "kept", "refused", "no_score")
    more = {k: getattr(total, k) + getattr(now, k) - getattr(before, k) for k in counts}
    return replace(total, **more, why=total.why if len(total.why) >= WHY else {**total.why, **now.why})


def begun(out: str) -> dict[str, Any] | None:
    """What `table.json` of the results says; None where there is none.

    Raises:
        OptionError: it is damaged, or of another format.
        ReportError: it cannot be read now.
    """
    place = places.joined(out, TABLE)
    if (data := places.content(place)) is None:
        return None
    try:
        found = json.loads(data)
        its, parts = int(found["format"]), int(found["parts"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise OptionError(f"'{place}' is damaged. Name another folder for the results, or one with whole ones.") from e
    if its > FORMAT:
        raise OptionError(
            f"The results in '{out}' are of format {its}, which a newer version of guda writes. This one knows format "
            f"{FORMAT}. Install the newer one."
        )
    if its < FORMAT or not 0 < parts < 10**7:
        raise OptionError(f"'{place}' is damaged. Name another folder for the results, or one with whole ones.")
    return found
