"""The report as one zip: the record, its scores as a table and as bars, values behind them, and the picture.

    report.json   the record (report.schema.json), with the SHA-256 of the files below
    scores.csv    a row per method and group
    bars.png      every method's bars with intervals, each method on its own axis
    values.npz    <method>/t (K, M), /edges (K + 1,), /kl_full (K, M) and /kl_without/<group> (K, M), nats; a score is
                  sum_k n_k mean_j (kl_without - kl_full), n_k timesteps in stratum k, and settings.offset of the group.
                  TRAK, D-TRAK and DAS: <method>/pictures (N,), of each training picture. Other methods have none
    picture.png   the prepared pixels, without metadata
    without.png, where.png   strip and maps, where they were asked for (`picture_files`)
    report.html   the answer as a page for people (`page`)
    original.png  (or .jpg, .webp, ...) the uploaded file as it is, where that was asked for

Nothing is compressed by the zip and its times are fixed: the same answer gives the same bytes, apart from the date.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from guda_core.data.decoding import FORMATS, kind_of
from guda_core.errors import ReportError
from guda_core.held_files import mend, write_anywhere
from guda_core.picture_records import Shown
from guda_core.records import Attribution, GroupSet, Provenance, Query, Tried
from guda_core.reports import picture_files
from guda_core.reports.opened import tell
from guda_core.reports.page import page
from guda_core.reports.page_tables import PAGE
from guda_core.reports.record import to_json
from guda_core.reports.unzip import MAX_ZIP

RECORD, SCORES, BARS, VALUES, PICTURE = "report.json", "scores.csv", "bars.png", "values.npz", "picture.png"
FILES = (RECORD, SCORES, BARS, VALUES, PICTURE)
ORIGINALS = {kind: f"original.{kind.lower().replace('jpeg', 'jpg')}" for kind in FORMATS}  # of the uploaded file
OPTIONAL = (picture_files.WITHOUT, picture_files.WHERE, PAGE, *ORIGINALS.values())
COLUMNS = ("method", "unit", "group", "name", "rank", "score", "low", "high", "status", "reason")
TOO_LARGE = (
    f"With the uploaded file, the report would be larger than {MAX_ZIP // 10**6} MB, and could not be read again."
)
NO_PICTURES = {  # part of `pictures` -> why a report has none
    "without": "What the models draw without each group was not asked for, or could not be drawn.",
    "where": "Maps of where the scores come from were not asked for, or could not be made.",
    "near": "The training pictures most alike were not looked up, or there is no encoder here to look them up with.",
}
SPARE = 100_000  # bytes for names and for what the record gets last
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")  # what makes a spreadsheet run a cell
WITHIN = re.compile(r"([;\t]\s*)(?=[=+\-@＝＋－＠])")  # where a cell begins, if these part cells


def cell(value: Any) -> str:
    """One cell of a CSV: None is empty, numbers are exact, and a text that a spreadsheet would run gets a "'"."""
    if value is None:
        return ""
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).encode("utf-8", "backslashreplace").decode()  # names of files may hold bytes that are no text
    text = WITHIN.sub(r"\1'", text)
    return f"'{text}" if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA[:8]) else text


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV of the columns, with a line of their names."""
    return "".join(csv_lines(columns, rows))


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What `csv_text` is put together from: a row after the other, each made when it is asked for."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    for cells in chain([columns], ([cell(row[c]) for c in columns] for row in rows)):
        table.writerow(cells)
        yield out.getvalue()
        out.seek(0)
        out.truncate()


def score_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `scores.csv` from a record: method by method, best group first, those without a score last."""
    names, rows = record["group_set"]["groups"], []
    for method, found in record["methods"].items():
        groups = found["groups"]
        for g in sorted(groups, key=lambda g: groups[g]["rank"] or len(groups) + 1):
            rows.append({"method": method, "unit": found["unit"], "group": g, "name": names[g]["name"], **groups[g]})
    return rows


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip whose bytes depend on nothing but names, order and contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            z.writestr(info, data)
    return out.getvalue()


def _npz(attributions: Sequence[Attribution]) -> bytes:
    files = {}
    for a in attributions:
        for name, values in a.arrays().items():
            out = io.BytesIO()
            np.lib.format.write_array(out, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
            files[f"{a.method}/{name}.npy"] = out.getvalue()
    return zipped(files)


def json_text(record: Mapping[str, Any]) -> str:
    """Plain JSON, readable, without NaN. Raises ReportError when a value is not finite."""
    try:
        return json.dumps(record, indent=1, allow_nan=False) + "\n"
    except ValueError as e:
        raise ReportError("The answer holds a value that is not finite, so there is no report.") from e


def make(
    query: Query,
    attributions: Sequence[Attribution],
    group_set: GroupSet,
    *,
    provenance: Provenance,
    settings: Mapping[str, Any],
    scope: Mapping[str, Any] | None = None,
    shown: Shown | None = None,
    tried: Sequence[Tried] = (),
    original: bytes | None = None,
) -> bytes:
    """The report of one answer as the bytes of a zip. Arguments as of `record.to_json`; shown: its pictures; original:
    the bytes of the file that was scored, to be put in.

    Raises:
        ReportError: a value is not finite; the original is not the file that was scored, or too large for a report.
    """
    from guda_core.reports import figures  # matplotlib, which the start of the app does not need

    about: dict[str, Any] = {"provenance": provenance, "settings": settings, "scope": scope, "tried": tried}
    record = to_json(query, attributions, group_set, **about)
    files = {
        SCORES: csv_text(COLUMNS, score_rows(record)).encode(),
        BARS: figures.bars_png(attributions, group_set, {m: i.name for m, i in provenance.methods.items()}),
        VALUES: _npz(attributions),
        PICTURE: picture_files.png(query.pixels),
    }
    if shown:
        files |= picture_files.files(shown)
        record["pictures"] = picture_files.record(shown)
    del record["absent"]["files"]
    told = record.get("pictures", {})
    said = {"without": shown.missing, "where": shown.missing} if shown is not None else {}
    record["absent"] |= {f"pictures/{p}": said.get(p) or why for p, why in NO_PICTURES.items() if p not in told}
    _put_original(files, record, original)
    record["files"] = _hashes(files)
    written = len(json_text(record).encode())  # before the page: it shows no number that is not finite
    made = page(tell(record, attributions, provenance.methods, shown), query.pixels)
    if written + len(made) + sum(map(len, files.values())) + SPARE <= MAX_ZIP:
        files[PAGE] = made
        record["files"] = _hashes(files)
    else:
        record["absent"][f"files/{PAGE}"] = "With the page, the zip would be too large to be read again."
    return zipped({RECORD: json_text(record).encode(), **files})


def _put_original(files: dict[str, bytes], record: dict[str, Any], original: bytes | None) -> None:
    """Put the uploaded file among the files. Raises ReportError when it is another file, or too large."""
    if original is None:
        if record["picture"]["file_sha256"] is not None:
            record["absent"]["files/original"] = "The uploaded file was not put in: that was not asked for."
        return
    if hashlib.sha256(original).hexdigest() != record["picture"]["file_sha256"]:
        raise ReportError("The file that is to be put into the report is not the one that was scored.")
    if len(json_text(record)) + len(original) + sum(map(len, files.values())) + SPARE > MAX_ZIP:
        raise ReportError(TOO_LARGE)
    files[ORIGINALS[kind_of(original)]] = original


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def write(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file in one go: a reader sees the old one or the new one, never a part. data: the whole, or its pieces,
    which need not fit into memory together.

    Raises:
        ReportError: the disk is full, or the place cannot be written to.
    """
    try:
        write_anywhere(path, [data] if isinstance(data, bytes) else data)
    except OSError as e:
        raise ReportError(f"{path} cannot be written ({e.strerror}). {mend(e)}") from e
