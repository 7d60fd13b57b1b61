"""Tables of pictures that people write: CSV, JSON and JSON lines, with the columns that are known and no others.

`metadata.csv` and `metadata.jsonl` are the Hub's habit (`file_name`, `text`).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from guda_core.data.own.found import words
from guda_core.errors import DataError

COLUMNS = {  # of a table -> what it means
    "file_name": "file", "file": "file", "group": "group", "text": "text", "caption": "text", "object": "object",
    "author": "author", "licence": "licence", "license": "licence", "licence_link": "licence_link",
    "license_link": "licence_link", "link": "link",
}  # fmt: skip
KINDS = (".csv", ".json", ".jsonl")
SEPARATOR = re.compile(r"""\s*"?sep=([^"\w\s]|\t)"?[,;\t]*\r?\n""", re.I)  # what Excel may begin a CSV with


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Excel begins its UTF-8 with a mark
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text. Save it again as UTF-8.") from e
    except OSError as e:
        raise DataError(f"{path} cannot be opened: {e.strerror or e}.") from e


def csv_rows(file: IO[str], where: object) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """(what separates columns, the rows of a CSV with their lines), the columns' names first. where: how the file is
    called in sentences. The rows raise DataError where one is not readable."""
    head = file.readline()
    told = SEPARATOR.fullmatch(head)
    by = told[1] if told else max(",;\t", key=head.count)
    found = csv.reader(file if told else itertools.chain([head], file), delimiter=by, strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        above = 1 if told else 0
        try:
            for row in found:
                yield found.line_num + above, row
        except csv.Error as e:
            raise DataError(f"{where}, line {found.line_num + above} is not readable as CSV: {e}.") from e

    return by, rows()


def _csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    _, rows = csv_rows(io.StringIO(text, newline=""), path)
    _, columns = next(rows, (0, []))
    _check_twice(str(path), columns)
    for line, row in rows:
        if len(row) > len(columns):
            raise DataError(f"{path}, line {line} has more fields than the first line.")
        if any(v.strip() for v in row):  # Excel leaves rows that are empty
            yield line, dict(itertools.zip_longest(columns, row))


def _json(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise DataError(f"{path} must hold a list with one object for each picture.")
            yield from enumerate(rows, 1)
            return
        for n, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield n, json.loads(line)
    except (ValueError, RecursionError) as e:  # ValueError also for a number of thousands of digits
        raise DataError(f"{path} is not readable as JSON: {e}.") from e


def _plain(column: object) -> str:
    """The name of a column as it is compared."""
    return str(column).strip().lower()


def _known(column: object) -> str:
    return COLUMNS.get(_plain(column), "")


def _check_twice(where: str, columns: Iterable[object]) -> None:
    """Raises DataError: a known column is there twice."""
    known = [_plain(c) for c in columns if _known(c)]
    if twice := next((c for c in known if known.count(c) > 1), None):
        raise DataError(f"{where} has two columns '{twice}'. Take one out.")


def read_table(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """(rows, what was not taken, in sentences). A row has the texts of the columns that are known, under the names on
    the right of `COLUMNS`, and "where": its place for sentences. Of a row's text and caption, the text is taken.

    Raises:
        DataError: the file cannot be read, is not UTF-8, CSV or JSON, or a row names no file, or a column is there
            twice, or two columns of one meaning say different things.
    """
    rows, unknown, passed_over = [], dict[str, None](), False
    for n, row in (_csv if path.suffix.lower() == ".csv" else _json)(path, _text(path)):
        where = f"{path.name}, {'row' if path.suffix.lower() == '.json' else 'line'} {n}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where} must be an object with the fields file_name and text.")
        _check_twice(where, row)
        out, of = {"where": where}, dict[str, str]()
        said = {_plain(c): words(v, f"{where}: '{c}'") for c, v in row.items() if _known(c)}
        for column in row:
            known, name = _known(column), _plain(column)
            if not known:
                unknown[str(column)] = None
            elif name == "caption" and said.get("text"):
                passed_over = passed_over or said[name] not in ("", said["text"])
            elif told := said[name]:
                told = str(row[column]).strip() if known == "file" else told  # a name keeps its white space
                if out.get(known, told) != told:
                    raise DataError(f"{where}: '{of[known]}' and '{column}' differ, and mean the same. Take one out.")
                out[known], of[known] = told, name
        if "file" not in out:
            raise DataError(f"{where} names no file. A table of pictures needs a column 'file' (or 'file_name').")
        rows.append(out)
    notes = [f"Columns of {path.name} that mean nothing here: {', '.join(unknown)}."] if unknown else []
    if passed_over:
        notes.append(f"Where {path.name} has a text and a caption of one picture, the text was taken.")
    return rows, notes
