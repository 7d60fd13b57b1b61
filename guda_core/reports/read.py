"""Reads a report that came from outside. Nothing in it is believed: sizes are bounded before anything is read, names
are those of `bundle.FILES` and nothing else, hashes and the schema are checked, and no array may hold objects.

The page for people (report.html) is only hashed here, and never shown by the app, which draws its own from the record.
Hashes show damage, not a forger who corrects them too: whoever wants to know whether an answer is true replays it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from jsonschema.exceptions import best_match

from guda_core.answers.other_captions import NONE
from guda_core.errors import ReportError
from guda_core.given import path_of
from guda_core.records import KLValues
from guda_core.reports.bundle import (
    COLUMNS,
    FILES,
    OPTIONAL,
    ORIGINALS,
    PICTURE,
    RECORD,
    SCORES,
    VALUES,
    csv_lines,
    score_rows,
)
from guda_core.reports.opened import answer_of
from guda_core.reports.record import plain
from guda_core.reports.unzip import MAX_ZIP, unzip
from guda_core.reports.upgrade import upgraded

SCHEMA = Path(__file__).with_name("report.schema.json")
MAX_RECORD = 4_000_000  # bytes
MAX_AXES = 2  # of an array: strata and draws
MAX_KEY = 300  # characters of a name in it; the longest are paths in `absent`
MAX_DEEP = 50  # objects and lists within each other
MAX_PARTS = 200_000  # members of all objects and lists: 4 MB of a true record hold about 130,000
MAX_PATHS = 16_000_000  # characters of all paths to them; of a true record about as many as bytes
MAX_NUMBER = 1e150  # so that sums and squares of such stay finite where they are drawn
DTYPES = (np.dtype("<i8"), np.dtype("<f8"))


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Report:
    """A report that was read and found whole.

    record: the JSON. picture: bytes of picture.png, not decoded yet. values: name -> array, {} without a zip.
    sha256: of the file that was read. more: name -> bytes of the optional files, not decoded yet. is_bare: it was no
    zip, but a report.json beside its picture.
    """

    record: Mapping[str, Any] = field(repr=False)
    picture: bytes = field(repr=False)
    values: Mapping[str, np.ndarray] = field(repr=False)
    sha256: str
    more: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    is_bare: bool = False

    @property
    def original(self) -> bytes | None:
        """The uploaded file, not decoded; None where it was not put in."""
        return next((self.more[name] for name in ORIGINALS.values() if name in self.more), None)

    def arrays(self, method: str) -> dict[str, np.ndarray]:
        """The arrays of one method, by their names within it; {} without a zip."""
        return _of_method(self.values, method)


def read_report(path: str | Path) -> Report:
    """Read a report zip, or a report.json that lies beside its picture.png.

    Raises:
        ReportError: it is missing, too large, damaged, altered, of another version, or holds what no report holds.
        OptionError: that is no path.
    """
    path = path_of(path, "path")
    data = _read(path, MAX_ZIP)
    sha256 = hashlib.sha256(data).hexdigest()
    if not data.startswith(b"PK"):
        if not data.lstrip().startswith(b"{"):
            raise ReportError(f"'{path.name}' is no report: it is damaged, cut off or another file.")
        record = parse_record(data)
        beside = path.with_name(PICTURE)
        if not beside.is_file():
            raise ReportError(f"There is no {PICTURE} beside {path.name}. Give the report's zip, or put it there.")
        picture = _read(beside, MAX_RECORD)
        if record["files"] and hashlib.sha256(picture).hexdigest() != record["files"][PICTURE]:
            raise _altered(PICTURE)
        more = {n: _read(p, MAX_ZIP) for n in ORIGINALS.values() if (p := path.with_name(n)).is_file()}
        more = {n: data for n, data in more.items() if n in record["files"]}
        for name, data in more.items():
            if hashlib.sha256(data).hexdigest() != record["files"][name]:
                raise _altered(name)
        _check_original(record, more)
        return Report(record, picture, {}, sha256, more, is_bare=True)
    files = unzip(data, FILES, OPTIONAL)
    record = parse_record(files[RECORD])
    more = {name: files[name] for name in OPTIONAL if name in files}
    for name in (*FILES[1:], *more):
        if hashlib.sha256(files[name]).hexdigest() != record["files"].get(name):
            raise _altered(name)
    for name in OPTIONAL:
        if name in record["files"] and name not in more:
            raise ReportError(f"This zip holds no {name}, which the report names. It was altered.")
    _check_original(record, more)
    values = read_values(files[VALUES])
    _check_values(record, values)
    if not _is_table(files[SCORES], record):
        raise ReportError(f"{SCORES} does not say what {RECORD} says. It was altered.")
    return Report(record, files[PICTURE], values, sha256, more)


def _check_original(record: Mapping[str, Any], more: Mapping[str, bytes]) -> None:
    for name in more.keys() & set(ORIGINALS.values()):
        if record["files"][name] != record["picture"]["file_sha256"]:
            raise ReportError(f"{name} is not the file that was scored: its SHA-256 is another.")


def _check_captions(record: Mapping[str, Any]) -> None:
    """Are the other captions by one method that the record has, each there once, and none the picture's own?"""
    told = record.get("captions", [])
    prompts = [record["picture"]["prompt"], *(t["prompt"] for t in told)]
    if len({t["method"] for t in told} - set(record["methods"])) or len({t["method"] for t in told}) > 1:
        raise ReportError(f"{RECORD} has captions by another method than its answers. It was altered.")
    if len(set(prompts)) < len(prompts):
        raise ReportError(f"{RECORD} tells of one caption twice. It was altered.")
    if any((t["label"] == NONE) == bool(t["prompt"]) for t in told):
        raise ReportError(f"{RECORD} calls a caption what it is not. It was altered.")


def _check_order(record: Mapping[str, Any]) -> None:
    """Are ranks those of the scores, best first and ties by id, and is the second group the one of rank 2?"""
    for found in (*record["methods"].values(), *(t["answer"] for t in record.get("captions", ()))):
        ranked = answer_of("", found).ranked()
        told = {g: s["rank"] for g, s in found["groups"].items() if s["rank"] is not None}
        if told != {g: i for i, g in enumerate(ranked, 1)} or found["runner_up"] not in (None, *ranked[1:2]):
            raise ReportError(f"{RECORD} ranks groups otherwise than by their scores. It was altered.")


def _is_table(data: bytes, record: Mapping[str, Any]) -> bool:
    """Whether this is the table of a record's scores. No row is made beyond the first that differs."""
    at = 0
    for line in csv_lines(COLUMNS, score_rows(record)):
        row = line.encode()
        if not data.startswith(row, at):
            return False
        at += len(row)
    return at == len(data)


def _altered(name: str) -> ReportError:
    return ReportError(f"{name} is not the file that the report names: its SHA-256 differs. It was altered or damaged.")


def _too_large(name: str) -> ReportError:
    return ReportError(f"{name} is too large to be part of a report.")


def _read(path: Path, most: int) -> bytes:
    try:
        if not path.is_file():
            raise ReportError(f"There is no file '{path}'.")
        with path.open("rb") as f:
            data = f.read(most + 1)
    except OSError as e:
        raise ReportError(f"{path} cannot be read ({e.strerror}).") from e
    if len(data) > most:
        raise _too_large(path.name)
    return data


def _no_constant(text: str) -> None:
    raise ReportError(f"{RECORD} holds {text}, which is no number. It was altered or damaged.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _no_constant(text[:40])
    if abs(value) > MAX_NUMBER:
        raise ReportError(f"{RECORD} holds the number {text[:40]}, larger than any in a report.")
    return value


def _whole(text: str) -> int:
    if len(text) > 18:
        raise ReportError(f"{RECORD} holds the number {text[:18]}..., larger than any in a report.")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ReportError(f"{RECORD} says the same thing twice, in one place. It was altered.")
    if max(map(len, out), default=0) > MAX_KEY:
        raise ReportError(f"{RECORD} holds a name of more than {MAX_KEY} characters. It was altered.")
    return out


def _check_size(record: Any) -> None:
    """Is a parsed record small enough to be worked on? Its schema and its paths are only then looked at."""
    parts = written = 0
    ahead: list[tuple[Any, int, int]] = [(record, 0, 0)]  # value, how deep it lies, length of its path
    while ahead:
        value, deep, path = ahead.pop()
        if not isinstance(value, dict | list):
            continue
        parts += len(value)
        written += sum(map(len, value)) + len(value) * (path + 1) if isinstance(value, dict) else 0
        if deep >= MAX_DEEP or parts > MAX_PARTS or written > MAX_PATHS:
            raise ReportError(f"{RECORD} holds far more parts, or parts within parts, than any report. It was altered.")
        named = value.items() if isinstance(value, dict) else (("", v) for v in value)
        ahead += [(v, deep + 1, path + len(k) + 1) for k, v in named]


def parse_record(data: bytes) -> dict[str, Any]:
    """The record in the bytes of a report.json, in today's format and checked against the schema.

    Raises:
        ReportError: it is no JSON, of another version, holds NaN or infinity, or does not follow the schema.
    """
    if len(data) > MAX_RECORD:
        raise _too_large(RECORD)
    try:
        text = data.decode("utf-8")
        record = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once
        )
    except (ValueError, RecursionError) as e:
        raise ReportError(f"{RECORD} is not the JSON of a report: it is damaged, cut off or another file.") from e
    _check_size(record)
    record = upgraded(record)
    error = best_match(islice(_validator().iter_errors(record), 100))  # one is told; each takes long to be made
    if error is not None:
        where = plain("/".join(str(p) for p in error.absolute_path), 120) or "as a whole"
        raise ReportError(f"{RECORD} does not follow the report's schema ({where}): {plain(error.message, 200)}")
    _check_captions(record)
    _check_order(record)
    return record


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def read_values(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a values.npz, int64 or float64 and finite, without ever unpickling.

    Raises:
        ReportError: it is no npz, or an array holds objects, another type, values that are not finite, or too few.
    """
    out = {}
    for name, raw in unzip(data).items():
        shown = f"{VALUES} ('{plain(name, 80)}')"
        f = io.BytesIO(raw)
        try:
            if np.lib.format.read_magic(f) != (1, 0):
                raise ReportError(f"{shown} is no array of a report.")
            shape, columns_first, dtype = np.lib.format.read_array_header_1_0(f)
        except Exception as e:  # as above: numpy evaluates what the header says, and anything can stand there
            raise ReportError(f"{shown} is no array of a report.") from e
        if dtype.hasobject:
            raise ReportError(f"{shown} holds Python objects (a pickle), which are never read.")
        sound = dtype in DTYPES and not columns_first and len(shape) <= MAX_AXES and all(n > 0 for n in shape)
        if not sound or math.prod(shape) * dtype.itemsize != len(raw) - f.tell():
            raise ReportError(f"{shown} is not of the type or size of a report's values.")
        array = np.frombuffer(raw, dtype, offset=f.tell()).reshape(shape)
        if not np.isfinite(array).all():
            raise ReportError(f"{shown} holds values that are not finite.")
        out[name.removesuffix(".npy")] = array
    return out


def _of_method(values: Mapping[str, np.ndarray], method: str) -> dict[str, np.ndarray]:
    return {k.partition("/")[2]: v for k, v in values.items() if k.startswith(f"{method}/")}


def _check_values(record: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Do the arrays belong to the record: of each method that sampled, KL values of every scored group at all draws; of
    any other, one-dimensional ones at most, e.g. a value of every training picture?"""
    strange = ReportError(f"{VALUES} does not contain the values that {RECORD} names.")
    left = len(values)
    for method, found in record["methods"].items():
        own, s = _of_method(values, method), found["sampling"]
        left -= len(own)
        if set(found["groups"]) - set(record["group_set"]["groups"]):
            raise ReportError(f"{RECORD} scores groups that its group set does not have.")
        if s is None:
            if any(v.ndim != 1 for v in own.values()):
                raise strange
            continue
        try:
            kl = KLValues.from_arrays(own)
        except ReportError as e:
            raise strange from e
        ok = {g for g, score in found["groups"].items() if score["status"] == "ok"}
        whole = kl.t.shape == (s["strata"], s["draws"]) and kl.fewer == s.get("fewer", {})
        if not whole or set(kl.without) != ok or set(kl.to_arrays()) != set(own):
            raise strange
    if left:
        raise strange
