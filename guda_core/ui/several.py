"""Several pictures at once: what is asked of each, what came of it, and the files to take away.

One picture is scored at a time, and each takes a new place in the queue, so that other visitors come between. Nothing
here knows the screen (`several_screen`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from guda_core.answers import sentences
from guda_core.answers.markup import Html, chip_html, note, safe, small_image, table
from guda_core.answers.verdict import CLEAR, CLOSE, LIKENESS, UNSURE, Verdict, is_out, verdict
from guda_core.data.images import read_file
from guda_core.data.left_behind import is_left_behind
from guda_core.data.written_prompts import written_prompt
from guda_core.errors import GudaError, ImageError, OptionError, ReportError
from guda_core.records import Attribution
from guda_core.reports import bundle
from guda_core.reports.batch import REPORTS, report_name
from guda_core.service import Service, default_methods, find_effort, main_first
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.callbacks import explained, scope_of
from guda_core.ui.uploads import uploaded

VARIABLE, MOST = "GUDA_MOST_PICTURES", 50  # pictures that one visitor may bring at once
LONG = 60  # characters of a name in the table, at most
SCOPED = 0.1  # of one picture's work: that its scope is known
TABLE, ALL_REPORTS = "pictures.csv", "guda-reports.zip"
TURNS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # marks that turn the direction of what is read
COLUMNS = ("file", "answer", "group", "state", "score", "low", "high", "unit", "scope", "effort", "refused")


@dataclass(frozen=True)
class Item:
    """One picture that was looked at. answer: None where it was refused, and `refused` then says why. written: whether
    a program wrote its prompt into the file; it is not used."""

    name: str
    answer: Answer | None = None
    refused: str = ""
    written: bool = False


@dataclass(frozen=True)
class Several:
    """A visitor's pictures. files: their paths in the upload cache. items: what came of the first
    ones."""

    files: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    effort: str = ""
    items: tuple[Item, ...] = ()

    @property
    def left(self) -> int:
        """How many pictures are not looked at yet."""
        return len(self.files) - len(self.items)


def most() -> int:
    """How many pictures one visitor may bring at once. Raises OptionError: the setting is no whole number from 1 on."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        return MOST
    if not given.isascii() or not given.isdecimal() or int(given[:9]) < 1:
        raise OptionError(f"{VARIABLE} must be a whole number, 1 or more; got '{given}'.")
    return int(given[:9])


def begun(service: Service, files: Sequence[str], effort: str, before: Several | None) -> Several:
    """What is to be done. The same pictures and effort as `before`, which was stopped: go on where it ended.

    files: paths in the upload cache; hidden files of a folder, and what systems leave behind, are left out.

    Raises:
        ImageError: there is no picture, or it was not uploaded.
        OptionError: there are too many, or the effort is unknown.
    """
    paths = tuple(str(uploaded(f)) for f in files if not is_left_behind(Path(f).name))
    if not paths:
        raise ImageError(words.NO_PICTURES)
    if len(paths) > most():
        raise OptionError(words.TOO_MANY.format(many=len(paths), most=most()))
    asked = default_methods(service.methods())
    methods = tuple(m for m in main_first(service.methods()) if m in asked)
    new = Several(paths, methods, find_effort(effort).id)
    if before is not None and before.left and (before.files, before.effort) == (new.files, new.effort):
        return before
    return new


def one(service: Service, several: Several) -> Iterator[tuple[Several, float]]:
    """Score the next picture: (what is known, how far this picture is, 0 to 1), at the end with one item more. Whatever
    goes wrong with a picture is its row's sentence. Closing this ends the work within one step."""
    path = several.files[len(several.items)]
    item = Item(_name(path, [known.name for known in several.items]))
    try:
        data = read_file(Path(path))
        item = replace(item, written=written_prompt(data) is not None)
        with closing(cast(Generator, _scored(service, data, Path(path), several))) as stream:
            for answer, progress in stream:
                item = replace(item, answer=answer)
                yield several, min(progress, 0.99)
        if item.answer is None or not item.answer.scored():
            raise ReportError(words.NO_ANSWER)
    except Exception as e:
        item = Item(item.name, refused=explained(e))
    yield replace(several, items=(*several.items, item)), 1.0


def _name(path: str, taken: Sequence[str]) -> str:
    """What a picture is called here: as its file, with a number where another one is called so already."""
    name = TURNS.sub("", Path(path).name)
    numbered = (f"{name} ({n})" for n in range(2, len(taken) + 3))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _scored(service: Service, data: bytes, file: Path, several: Several) -> Iterator[tuple[Answer, float]]:
    query = service.prepare(data)
    answer = Answer(query, several.methods, several.effort, file=file)
    answer = replace(answer, scope=scope_of(service, query))
    yield answer, SCOPED
    stream = service.attribute(query, methods=list(several.methods), effort=several.effort)
    with closing(cast(Generator, stream)):
        for a in stream:
            answer = replace(answer, found={**answer.found, a.method: a})
            done = sum(found.progress for found in answer.found.values()) / len(several.methods)
            yield answer, SCOPED + (1 - SCOPED) * done
    if not is_out(answer.scope):
        answer = replace(answer, shown=replace(answer.shown, near=service.nearest(query)))
    yield answer, 1.0


def said_of(service: Service, answer: Answer) -> Verdict:
    """The verdict on one answer, as the first screen gives it."""
    return verdict(answer.found, service.group_set, answer.methods, service.methods(), scope=answer.scope, over=True)


def _first(service: Service, answer: Answer, v: Verdict) -> tuple[Attribution | None, str]:
    """The main answer, and the group that it puts first where that may be named: not out of scope, nor where no group
    stands out."""
    a = answer.found.get(answer.methods[0]) if answer.methods else None
    named = a is not None and a.ranked() and v.chips and v.chips[0].text in (CLEAR, CLOSE, UNSURE, LIKENESS)
    return a, a.ranked()[0] if a is not None and named else ""


def rows_html(service: Service, several: Several) -> Html:
    """A row for each picture that was looked at; "" for none. A button in a row opens the picture's answer."""
    if not several.items:
        return Html()
    main = service.methods()[several.methods[0]]
    head = ("Picture", "Name", "Answer", "State", f"{main.name.split(' (')[0]} ({main.unit})", "95% interval",
            "Could this model have made it?", "Whole answer")  # fmt: skip
    rows = [_row(service, i, item) for i, item in enumerate(several.items)]
    written = sum(item.written for item in several.items)
    said = note(words.NOT_USED.format(many=written, of=len(several.items))) if written else ""
    return Html(table("The pictures and their answers", head, rows, numbers="....nn..", css="guda-several") + said)


def _row(service: Service, i: int, item: Item) -> list[object]:
    if item.answer is None:
        return [
            "",
            sentences.short(item.name, LONG),
            f"Refused. {item.refused}",
            chip_html("refused", "unsure"),
            "-",
            "-",
            "-",
            "",
        ]
    v = said_of(service, item.answer)
    a, group = _first(service, item.answer, v)
    s = a.groups[group] if a is not None and group else None
    chips = Html(" ".join(chip_html(c.text, c.kind) for c in v.chips[:1]))
    scope = item.answer.scope.verdict if item.answer.scope is not None else "not assessed"
    opens = f'<button type="button" class="guda-open" data-row="{i}" aria-label="Open the answer of {safe(item.name)}">'
    return [
        small_image(item.answer.query.pixels), sentences.short(item.name, LONG), v.headline, chips,
        sentences.score(s, a.unit) if s is not None and a is not None else "-",
        sentences.interval(s, a.unit) if s is not None and a is not None else "-",
        words.SCOPES[scope], Html(f"{opens}Open</button>"),
    ]  # fmt: skip


def csv_of(service: Service, several: Several) -> bytes:
    """The table as a CSV, a line a picture. What a spreadsheet would take for a formula is escaped, and a mark at the
    begin tells it that the text is UTF-8."""
    rows = []
    for item in several.items:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, None) | {"file": item.name, "effort": several.effort}
        if item.answer is None:
            rows.append(row | {"state": "refused", "refused": item.refused})
            continue
        v = said_of(service, item.answer)
        a, group = _first(service, item.answer, v)
        state = v.chips[0].text if v.chips else None
        row |= {"answer": TURNS.sub("", v.headline), "state": "clear" if state == CLEAR else state}
        row["scope"] = item.answer.scope.verdict if item.answer.scope is not None else "not assessed"
        if a is not None and group:
            s = a.groups[group]
            row |= {"group": group, "score": s.score, "low": s.low, "high": s.high, "unit": a.unit}
        rows.append(row)
    return bundle.csv_text(COLUMNS, rows).encode("utf-8-sig")


def reports_of(service: Service, several: Several) -> Iterator[float | bytes]:
    """A zip with the report of every picture that was scored, `pictures.csv` and `scores.csv`; before it, how far it
    is, 0 to 1.

    Raises:
        ReportError: nothing was scored.
    """
    scored = [(i, item) for i, item in enumerate(several.items, 1) if item.answer is not None]
    if not scored:
        raise ReportError(words.NO_ANSWERS)
    files: dict[str, bytes] = {TABLE: csv_of(service, several)}
    rows: list[dict[str, Any]] = []
    for done, (i, item) in enumerate(scored):
        yield done / len(scored)
        assert item.answer is not None
        files[f"{REPORTS}/{report_name(f'{i:03d}-{item.name}')}"] = item.answer.report(service)
        rows += [{"file": item.name, **r} for r in bundle.score_rows(item.answer.record(service))]
    files[bundle.SCORES] = bundle.csv_text(("file", *bundle.COLUMNS), rows).encode()
    yield bundle.zipped(files)


def expected(service: Service, several: Several) -> float:
    """Seconds that one picture takes, about; 0 where nothing tells."""
    try:
        return service.estimate(list(several.methods), several.effort)
    except GudaError:
        return 0.0
