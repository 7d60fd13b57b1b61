"""Results in files small enough to come back: zip archives, each whole by itself, of at most LIMIT bytes.

What is of use only together (a unit) goes whole or not at all, its record last. Parcels are filled one after the other.
A file that meets the end of one is cut into parts, whose names end in .part-from-0 and so on (the byte); `take_back`
puts them together. What went out before, unchanged, is not packed again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

from guda_core.errors import DataError
from guda_core.held_files import replacing

LIMIT = 15 * 2**20  # bytes of a parcel; what comes back may have 16 MiB
MOST = 4  # parcels: 64 MiB may come back at once
NAME = "second-{}.zip"
PART = re.compile(r"(.+)\.part-from-(\d+)")
LIST = "contents.json"  # of a parcel: the units that it holds something of
ROOM = 2**16  # for the archive's own entries
SENT = "sent.json"  # in the folder of work: what went out, and the number of the next parcel

Unit = dict[str, str]  # name of a file -> its hash


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _number(path: Path) -> int:
    found = path.stem.rpartition("-")[2]
    return int(found) if found.isdecimal() else 0


def _opened(folder: Path) -> tuple[list[Unit], dict[tuple[str, str], bytes]]:
    """The units that the parcels in a folder name, the newest last, and what is there whole: (name, hash) -> content.

    Raises:
        DataError: a parcel is damaged.
    """
    units: list[Unit] = []
    parts: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
    for path in sorted(folder.glob(NAME.format("*")), key=_number):
        try:
            with zipfile.ZipFile(path) as z:
                listed: list[Unit] = json.loads(z.read(LIST))
                hashes = {name: sha256 for unit in listed for name, sha256 in unit.items()}
                for entry in set(z.namelist()) - {LIST}:
                    cut = PART.fullmatch(entry)
                    name, start = (cut[1], int(cut[2])) if cut else (entry, 0)
                    parts.setdefault((name, hashes[name]), []).append((start, z.read(entry)))
        except (OSError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as e:
            raise DataError(f"{path} is no parcel of the second edition, or is damaged.") from e
        units += [u for u in listed if u not in units]
    joined = {of: _joined(found) for of, found in parts.items()}
    return units, {of: data for of, data in joined.items() if _sha256(data) == of[1]}


def _joined(parts: Sequence[tuple[int, bytes]]) -> bytes:
    """A file of its parts, up to the first gap; they may overlap, as what went out twice is cut in other places."""
    data = bytearray()
    for start, part in sorted(parts):
        if start <= len(data):
            data[start : start + len(part)] = part
    return bytes(data)


def known(folder: Path) -> dict[str, str]:
    """Name -> hash of every file that the parcels in a folder hold whole. Raises DataError: one is damaged."""
    return dict(list(_opened(folder)[1]))


def next_number(*folders: Path) -> int:
    """The number after those of all parcels in these folders, so that all of them can lie in one folder."""
    return 1 + max((_number(p) for folder in folders for p in folder.glob(NAME.format("*"))), default=0)


def sent(work: Path) -> tuple[dict[str, str], int]:
    """Name -> hash of what went out of this work already, and the number of the next parcel."""
    path = work / SENT
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"files": {}, "next": 1}
    return found["files"], found["next"]


def note_sent(work: Path, files: Mapping[str, str], following: int) -> None:
    """Keep what `sent` gives."""
    work.mkdir(parents=True, exist_ok=True)
    with replacing(work / SENT) as aside:
        aside.write_text(json.dumps({"files": dict(files), "next": following}), encoding="utf-8")


@dataclass
class _Parcel:
    pieces: list[tuple[str, bytes]] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)


def _pieces(name: str, data: bytes, begins: int, each: int) -> list[tuple[int, str, bytes]]:
    """(parcel, name, piece) of a file that begins at this byte of all parcels; each: bytes of a parcel."""
    ends = begins + len(data)
    cuts = [begins, *range((begins // each + 1) * each, ends, each), ends]
    names = [f"{name}.part-from-{a - begins}" for a in cuts] if len(cuts) > 2 else [name]
    return [(a // each, n, data[a - begins : b - begins]) for n, (a, b) in zip(names, pairwise(cuts), strict=False)]


def send(
    units: Iterable[Sequence[Path]],
    root: Path,
    to: Path,
    *,
    before: Mapping[str, str],
    first: int = 1,
    limit: int = LIMIT,
) -> tuple[dict[str, str], list[str]]:
    """Write units of files that lie below root into parcels in `to`, in order, in place of those that are there; gives
    name -> hash of what they hold, and the names of what did not fit into MOST parcels. before: what went out already;
    first: the number of the first parcel; those below it stay."""
    parcels: dict[int, _Parcel] = {}
    out: dict[str, str] = {}
    left, at, each = [], 0, limit - ROOM
    for unit in units:
        files = {p.relative_to(root).as_posix(): p.read_bytes() for p in unit}
        hashes = {name: _sha256(data) for name, data in files.items()}
        new = {name: data for name, data in files.items() if before.get(name) != hashes[name]}
        size = sum(map(len, new.values()))
        if at + size > MOST * each:
            left += new
            continue
        for name, data in new.items():
            for k, entry, piece in _pieces(name, data, at, each):
                parcel = parcels.setdefault(k, _Parcel())
                parcel.pieces.append((entry, piece))
                if hashes not in parcel.units:
                    parcel.units.append(hashes)
            at += len(data)
            out[name] = hashes[name]
    to.mkdir(parents=True, exist_ok=True)
    for k, parcel in parcels.items():
        with replacing(to / NAME.format(first + k)) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as z:
            for name, data in parcel.pieces:
                z.writestr(name, data)
            z.writestr(LIST, json.dumps(parcel.units))
    for old in to.glob(NAME.format("*")):
        if _number(old) >= first and _number(old) - first not in parcels:
            old.unlink()
    return out, left


def take_back(folder: Path, root: Path) -> list[str]:
    """Put what the parcels in a folder hold below root; gives what became of it, in words.

    Of a unit whose record is there already, only missing files are put, and none if it is another record. A unit that
    is not whole is left out.

    Raises:
        DataError: a parcel is damaged, or names a file outside root.
    """
    units, whole = _opened(folder)
    written, said = 0, []
    for unit in reversed(units):
        places = {name: PurePosixPath(name) for name in unit}
        for name, place in places.items():
            if place.is_absolute() or ".." in place.parts:
                raise DataError(f"A parcel in {folder} names a file outside its folder: {name}.")
        there = {n: _sha256((root / p).read_bytes()) for n, p in places.items() if (root / p).is_file()}
        record = list(unit)[-1]
        if there.get(record, unit[record]) != unit[record]:
            continue
        wanted = [name for name in unit if there.get(name) != unit[name]]
        if lost := [name for name in wanted if (name, unit[name]) not in whole]:
            said.append(f"{record} is left out: {', '.join(lost)} did not come back whole.")
            continue
        for name in wanted:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(root / name) as aside:
                aside.write_bytes(whole[name, unit[name]])
        written += len(wanted)
    return [f"{written} files came back.", *said]
