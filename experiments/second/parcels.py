"""Results in files small enough to come back: zip archives, each whole by itself, of at most LIMIT bytes.

A file that is larger is cut into parts, whose names end in .part-1-of-2 and so on; `take_back` puts them together. What
an earlier parcel holds already, unchanged, is not packed again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from guda_core.errors import DataError
from guda_core.held_files import replacing

LIMIT = 15 * 2**20  # bytes of a parcel; what comes back may have 16 MiB
MOST = 4  # parcels: 64 MiB may come back at once
NAME = "second-{}.zip"
PART = re.compile(r"(.+)\.part-(\d+)-of-(\d+)")
LIST = "contents.json"  # of a parcel: name of a whole file -> its hash
ROOM = 2**16  # for the archive's own entries


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _whole(folder: Path) -> dict[str, bytes]:
    """Every file that the parcels in a folder hold whole, by name.

    Raises:
        DataError: a parcel is damaged.
    """
    wanted: dict[str, str] = {}
    parts: dict[tuple[str, int], dict[int, bytes]] = {}
    for path in sorted(folder.glob(NAME.format("*"))):
        try:
            with zipfile.ZipFile(path) as z:
                wanted |= json.loads(z.read(LIST))
                for name in z.namelist():
                    cut = PART.fullmatch(name)
                    whole, i, count = (cut[1], int(cut[2]), int(cut[3])) if cut else (name, 1, 1)
                    parts.setdefault((whole, count), {})[i] = z.read(name)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
            raise DataError(f"{path} is no parcel of the second edition, or is damaged.") from e
    joined = {name: b"".join(found[i] for i in sorted(found)) for (name, _), found in parts.items()}
    return {name: data for name, data in joined.items() if _sha256(data) == wanted.get(name)}


def known(folder: Path) -> dict[str, str]:
    """Name -> hash of every file that the parcels in a folder hold whole. Raises DataError: one is damaged."""
    return {name: _sha256(data) for name, data in _whole(folder).items()}


def next_number(*folders: Path) -> int:
    """The number after those of all parcels in these folders, so that all of them can lie in one folder."""
    found = [p.stem.rpartition("-")[2] for folder in folders for p in folder.glob(NAME.format("*"))]
    return 1 + max((int(n) for n in found if n.isdecimal()), default=0)


@dataclass
class _Parcel:
    pieces: list[tuple[str, bytes]] = field(default_factory=list)
    holds: dict[str, str] = field(default_factory=dict)
    size: int = ROOM


def _filled(files: Iterable[tuple[str, bytes]], limit: int) -> list[_Parcel]:
    """Files in order, each into the first parcel with room; large ones cut."""
    parcels: list[_Parcel] = []
    for name, data in files:
        most = limit - ROOM
        count = max(1, -(-len(data) // most))
        for i in range(count):
            piece = data[i * most : (i + 1) * most]
            to = next((p for p in parcels if p.size + len(piece) <= limit), None)
            if to is None:
                parcels.append(to := _Parcel())
            to.pieces.append((name if count == 1 else f"{name}.part-{i + 1}-of-{count}", piece))
            to.holds[name] = _sha256(data)
            to.size += len(piece)
    return parcels


def send(
    files: Iterable[Path], root: Path, to: Path, *, before: Mapping[str, str], first: int = 1, limit: int = LIMIT
) -> list[str]:
    """Write the files, which lie below root, into parcels in `to`, in order, in place of those that are there; gives
    the names of what did not fit into MOST parcels. before: what other parcels hold already (`known`); first: the
    number of the first parcel."""
    asked = [(p.relative_to(root).as_posix(), p.read_bytes()) for p in files]
    new = [(name, data) for name, data in asked if before.get(name) != _sha256(data)]
    parcels = _filled(new, limit)
    to.mkdir(parents=True, exist_ok=True)
    written = []
    for i, parcel in enumerate(parcels[:MOST]):
        path = to / NAME.format(first + i)
        with replacing(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as z:
            for name, data in parcel.pieces:
                z.writestr(name, data)
            z.writestr(LIST, json.dumps(parcel.holds))
        written.append(path)
    for old in to.glob(NAME.format("*")):
        number = old.stem.removeprefix("second-")
        if number.isdecimal() and int(number) >= first and old not in written:
            old.unlink()
    return sorted({name for parcel in parcels[MOST:] for name in parcel.holds})


def take_back(folder: Path, root: Path) -> int:
    """Put what the parcels in a folder hold below root, where it is not there yet; how many files were written. A file
    of which a part is missing is left out.

    Raises:
        DataError: a parcel is damaged, or names a file outside root.
    """
    written = 0
    for name, data in _whole(folder).items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise DataError(f"A parcel in {folder} names a file outside its folder: {name}.")
        to = root / place
        if not to.is_file():
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
            written += 1
    return written
