"""What a worker does with one part: it keeps the rows that are right, scores the other pictures, and writes the part.

    parts/<part>.parquet   rows so far; written again and again while the part is worked on, always in one go
    trying/<part>.json     the picture at work, and how often pictures ended the process that scored them, or it lacked
                           memory for them: after `TRIES` times it is a row. Who ends a process on purpose says so here
    made_from.json         all that decides the scores; a worker that has anything else at hand stops

A kept row is of the same bytes and prompt; where the picture's file cannot be read now, whatever was scored is kept.
Noise comes from a picture's hash, so who scores it does not matter. The service is made once in a process and kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from guda_core import kept_services
from guda_core.data.images import MAX_BYTES
from guda_core.errors import (
    LACKS,
    GudaError,
    NoMemoryError,
    OptionError,
    PassingError,
    ReportError,
    UnreadError,
    lacked,
)
from guda_core.records import Provenance
from guda_core.reports.bundle import json_text
from guda_core.scoring import caveats, parts, places, table_rows
from guda_core.scoring.listing import Wanted, asked
from guda_core.scoring.table_rows import FAILED, REFUSED, Row
from guda_core.service import Service, check_methods, default_methods, find_effort, scope_or_why
from guda_core.work_queue import claimed

log = logging.getLogger(__name__)
SAVE_S, SAVE_SHARE = 30.0, 0.03  # the part is written again when that takes this share of the time, or this is over
AGAIN_S = (1.0, 5.0, 15.0)  # until a part that is done and cannot be written now is written again
TRIES = 3  # one machine that goes away and one driver that is killed may meet the same picture
WHY = 20  # reasons that a part hands back; all are in its rows
TEXTS = {"model": ("id", "sha256", "dtype"), "group_set": ("id",), "settings": ("effort",)}  # of what it is made from
MADE_FROM, TRYING = "made_from.json", "trying"
MADE_OF = "made_from"  # method -> what its answers are computed from, in what a table is made from
FAULT = "An unexpected fault; see the log."
ENDED = f"The process that scored it ended {TRIES} times at this picture."


@dataclass(frozen=True)
class Task:
    """A part that is to be scored, in words that travel to another process or machine.

    pictures: so many are in the part. make_service: what makes the service there; the same object makes it once. out:
    the folder of the results. methods: () for the default ones. listed: the name of the list of pictures. parts: so
    many has the table.
    """

    out: str
    part: int
    pictures: int
    make_service: Callable[[], Service]
    effort: str = "standard"
    methods: tuple[str, ...] = ()
    listed: str = ""
    parts: int = 1


@dataclass(frozen=True)
class Total:
    """How far a table is. scored, kept, refused, no_score: pictures, of `pictures`. refused counts those that failed,
    too; why: some of their reasons. no_score: of which no method has a score of any group, now or before."""

    pictures: int
    scored: int = 0
    kept: int = 0
    refused: int = 0
    why: dict[str, str] = field(default_factory=dict)
    no_score: int = 0

    @property
    def done(self) -> int:
        """Pictures that have rows now."""
        return self.scored + self.kept + self.refused + self.no_score


@dataclass(frozen=True)
class Done(Total):
    """How far one part is."""

    part: int = field(kw_only=True)


def service_of(task: Task) -> Service:
    """The service of this process for a task; the last one is kept."""
    if isinstance(task.make_service, partial):  # of this process alone, and kept by what it calls
        return task.make_service()
    resolved = getattr(task.make_service, "resolved", None)  # of names: what they stand for now
    return kept_services.kept(resolved() if resolved else task.make_service, task.make_service)


def steps(task: Task, *, one_of_several: bool = False) -> Generator[Done, None, None]:
    """Score a part, yielding after every picture. one_of_several: another worker may have more memory.

    Raises:
        NoMemoryError: there is too little for a picture, and it is to be tried by another worker.
        OptionError: the effort or a method is unknown, or the results were begun with something else.
        ReportError: the results cannot be written.
    """
    yield from _Part(task, service_of(task), one_of_several).run()


def asked_methods(task: Task, service: Service, provenance: Provenance) -> list[str]:
    """The methods of a task. Raises OptionError: one is unknown, or not offered."""
    methods = list(dict.fromkeys(task.methods)) or default_methods(service.methods())
    check_methods(methods, service.methods(), provenance.not_offered)
    return methods


def agree(out: str, made_from: dict[str, Any]) -> dict[str, Any]:
    """Write down what these results are made from, or check that it is what is at hand; gives what is written there.

    Raises:
        OptionError: they were begun with something else.
        ReportError: the file cannot be read now, or not be written.
    """
    place = places.joined(out, MADE_FROM)
    now = json.loads(json.dumps(made_from))
    if (before := _begun(place)) is None:
        with claimed(places.claim_of(out, MADE_FROM), wait=True):
            if (before := _begun(place)) is None:  # nor did another run write it meanwhile
                if places.is_file(place):
                    log.warning("%s is not whole and is written again.", place)
                places.write(place, json_text(now).encode())
                return now
    if before != now:
        other = _differs(before["settings"], now["settings"]) or _differs(before, now)
        if other == MADE_OF:
            other = f"what {_differs(before.get(MADE_OF) or {}, now[MADE_OF])} is computed from"
        raise OptionError(
            f"The results in '{out}' were begun with something else ({other}). Name another folder with --out."
        )
    return before


def _begun(place: str) -> dict[str, Any] | None:
    """What is written there; None where nothing is, or it is not whole."""
    if (data := places.content(place)) is not None:
        with suppress(ValueError):
            return made_from_in(data)
    return None


def made_from_in(data: bytes) -> dict[str, Any]:
    """What the file says that all scores of a table are made from. Raises ValueError: it is not whole."""
    try:
        found = json.loads(data)
        parts = {name: found[name] for name in TEXTS}
        methods = parts["settings"].get("methods", [])
        texts = [parts[name].get(k, "") for name, keys in TEXTS.items() for k in keys]
        if isinstance(methods, list) and all(isinstance(t, str) for t in [*texts, *methods]):
            return found
    except (KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError("it is not whole") from e
    raise ValueError("it is not whole")


def _differs(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The names of what is another value, or is missing on one side."""
    return ", ".join(k for k in {**now, **before} if before.get(k) != now.get(k))


def _goes_on(e: PassingError) -> None:
    log.warning("%s The run goes on.", str(e).removesuffix(places.AGAIN).rstrip())


class _Tried:
    """How often each picture was left unfinished by the process that scored it: a small file that is gone when the part
    is done. blame: the one that it names as being at work, too."""

    def __init__(self, task: Task, *, blame: bool = True) -> None:
        self.place = places.joined(places.joined(task.out, TRYING), f"{task.part:06d}.json")
        self.at, self.ended = "", dict[str, int]()
        with suppress(Exception):  # libraries of stores raise kinds of their own; one count less is no harm
            found = json.loads(places.read(self.place))
            self.ended = {str(k): int(v) for k, v in found["ended"].items()}
            if blame and (at := str(found["at"])):
                self.ended[at] = self.ended.get(at, 0) + 1

    def begin(self, picture: str) -> bool:
        """Note that a picture is begun, so the one before it is done; False where it was left too often."""
        self.ended.pop(self.at, None)
        self.at = ""
        if self.ended.get(picture, 0) >= TRIES:
            return False
        self.at = picture
        self._write()
        return True

    @property
    def last(self) -> bool:
        """Whether the picture at work is tried for the last time."""
        return self.ended.get(self.at, 0) + 1 >= TRIES

    def left(self) -> None:
        """Note that the picture at work was left on purpose; its count stays."""
        self.at = ""
        self._write()

    def _write(self) -> None:
        try:
            places.write(self.place, json.dumps({"at": self.at, "ended": self.ended}).encode())
        except PassingError as e:  # likewise
            _goes_on(e)


def blame_nothing(task: Task) -> None:
    """Note that whoever had a part in hand was ended on purpose: not by the picture at work."""
    tried = _Tried(task, blame=False)
    if places.is_file(tried.place):
        tried.left()


class _Part:
    def __init__(self, task: Task, service: Service, one_of_several: bool) -> None:
        find_effort(task.effort)
        self.task, self.service, self.gives_back = task, service, one_of_several
        self.provenance: Provenance = service.provenance()
        self.methods = asked_methods(task, service, self.provenance)
        self.settings: dict[str, Any] = {"effort": task.effort, "methods": self.methods}
        made = table_rows.identity(service.group_set, provenance=self.provenance, settings=self.settings)
        self.of = parts.origin(agree(task.out, made), task.part, task.parts)
        caveats.write(task.out, self.provenance.said_of(self.methods))
        self.place = parts.place_of(task.out, task.part)
        self.wanted = asked(task.out, task.part, task.listed)
        self.tried = _Tried(task)
        self.about: dict[str, Any] = {"provenance": self.provenance, "effort": task.effort}

    def run(self) -> Generator[Done, None, None]:
        try:
            yield from self._run()
        except ReportError:  # such as on a full disk: it is not the picture that ended the process
            with suppress(ReportError):
                self.tried.left()
            raise

    def _run(self) -> Generator[Done, None, None]:
        before: dict[str, list[Row]] = {}
        for row in parts.read(self.place, of=self.of):
            before.setdefault(row["picture"], []).append(row)
        found = dict(before)  # rows of pictures that nobody asks about today stay
        done, saved, took = Done(len(self.wanted), part=self.task.part), time.monotonic(), 0.1
        try:
            for w in self.wanted:
                kept, found[w.picture] = self._picture(w, before.get(w.picture, []))
                done = _counted(done, kept, found[w.picture])
                if (now := time.monotonic()) - saved > min(SAVE_S, took / SAVE_SHARE) and not kept:
                    try:
                        self._save(found)
                    except PassingError as e:  # the next one, or the last, holds these rows too
                        _goes_on(e)
                    saved = time.monotonic()
                    took = saved - now
                yield done
        except NoMemoryError:
            self._save(found)
            raise
        except (GeneratorExit, KeyboardInterrupt, SystemExit):  # who stops it loses nothing
            self._save(found)
            self.tried.left()
            raise
        if found != before or not places.is_file(self.place):
            self._save(found, AGAIN_S)
        places.remove(self.tried.place)

    def _save(self, found: dict[str, list[Row]], again_s: Sequence[float] = ()) -> None:
        """again_s: after so many seconds each, it is tried again where it fails for a moment."""
        rows = [row for name in sorted(found) for row in found[name]]
        for seconds in again_s:
            try:
                parts.write(self.place, rows, of=self.of)
                return
            except PassingError as e:
                _goes_on(e)
                time.sleep(seconds)
        parts.write(self.place, rows, of=self.of)

    def _picture(self, w: Wanted, before: list[Row]) -> tuple[bool, list[Row]]:
        """(whether its rows were kept, its rows)."""
        data, sha256 = b"", None
        try:
            data = places.read_picture_file(w.place)
            sha256 = hashlib.sha256(data).hexdigest() if len(data) <= MAX_BYTES else None
        except GudaError as e:
            if isinstance(e, UnreadError) and before and all(_is_scored(row) for row in before):
                other = "" if before[0]["prompt"] == w.prompt else ", of the prompt of before"
                log.warning("%s cannot be read now; its scores stay%s. %s", w.picture, other, e)
                return True, before
            return False, table_rows.without_scores(w, None, REFUSED, str(e), **self.about)
        if before and all(_fits(row, w, sha256) for row in before):
            return True, [{**row, "place": w.place} for row in before]
        if not self.tried.begin(w.picture):
            return False, table_rows.without_scores(w, sha256, FAILED, ENDED, **self.about)
        try:
            rows = self._score(w, data)
            if not any(row["status"] == "ok" for row in rows) and any(lacked(row["reason"] or "") for row in rows):
                self._give_back(NoMemoryError(LACKS))
            return False, rows
        except ReportError:
            raise  # nothing can be written any more
        except GudaError as e:
            if isinstance(e, NoMemoryError):
                self._give_back(e)
            return False, table_rows.without_scores(w, sha256, REFUSED, str(e), **self.about)
        except Exception as e:  # whatever one picture does to the libraries, the others are still wanted
            log.exception("%s failed", w.picture)
            return False, table_rows.without_scores(w, sha256, FAILED, f"{FAULT} ({type(e).__name__})", **self.about)

    def _give_back(self, e: NoMemoryError) -> None:
        """Raise it: another worker may have more memory. The last try is a row, as is what lacks memory after it."""
        self.gives_back = self.gives_back and not self.tried.last
        if self.gives_back:
            raise e
        self.tried.left()  # its count stays: whoever has the part next tries it once

    def _score(self, w: Wanted, data: bytes) -> list[Row]:
        query = self.service.prepare(data, prompt=w.prompt)
        final = {a.method: a for a in self.service.attribute(query, **self.settings)}  # the last one of each
        answers = [final[m] for m in self.methods]
        scope = scope_or_why(self.service, query)
        if lacked(scope.reason):
            self._give_back(NoMemoryError(scope.reason))
        return table_rows.scored(w, query, answers, scope, group_set=self.service.group_set, **self.about)


def _counted(done: Done, kept: bool, rows: Sequence[Row]) -> Done:
    """What was done, with the rows of one more picture."""
    first = rows[0]
    if first["status"] in (REFUSED, FAILED):
        why = {**done.why, first["picture"]: first["reason"]} if len(done.why) < WHY else done.why
        return replace(done, refused=done.refused + 1, why=why)
    if not any(row["status"] == "ok" for row in rows):
        return replace(done, no_score=done.no_score + 1)
    return replace(done, kept=done.kept + kept, scored=done.scored + (not kept))


def _is_scored(row: Row) -> bool:
    """Whether a row was neither refused nor failed."""
    return row["file_sha256"] is not None and row["status"] not in (FAILED, REFUSED)


def _fits(row: Row, w: Wanted, sha256: str | None) -> bool:
    """Whether a row is of the same bytes and prompt, and need not be tried again. What was refused is: something that
    was missing then, such as what reads HEIC, may be there now. So is what had too little memory."""
    same = (row["file_sha256"], row["prompt"]) == (sha256, w.prompt)
    return same and _is_scored(row) and not lacked(row["reason"] or "")
