"""Reads a zip that came from outside, in memory. Nothing is ever written, and nothing in it is believed.

Sizes are bounded before anything is read. A path that leads out of the zip, a name twice, encryption and rare kinds of
compression are refused. A zip that a file manager packed again is read: a folder around the files does not matter, and
what the system added (`__MACOSX`, `.DS_Store`, `Thumbs.db`, `desktop.ini`) is never opened.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence

from guda_core.data.left_behind import is_left_behind
from guda_core.errors import ReportError
from guda_core.reports.record import plain

MAX_ZIP = 32_000_000  # bytes, of the zip and of all that it holds
MAX_FILES = 4096
ENTRY = b"PK\x01\x02"  # begins the entry of a file in a zip's directory
TOO_MUCH = "This zip unpacks to far more data than any report."

Places = list[tuple[str, zipfile.ZipInfo]]


def unzip(data: bytes, names: Sequence[str] | None = None, optional: Sequence[str] = ()) -> dict[str, bytes]:
    """Name -> bytes of the files in a zip. names: what it must hold, all of it and nothing else;
    None: anything. optional: what it may hold beside that.

    Raises:
        ReportError: the zip is damaged, too large, or holds what no report holds.
    """
    if data.count(ENTRY) > 2 * MAX_FILES:  # files in a zip that is in it, as it is, are counted too
        raise ReportError(TOO_MUCH)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            infos = z.infolist()
            if infos and min(i.header_offset for i in infos) > 0:  # cut off: this is the end of a zip within it
                raise zipfile.BadZipFile
            if len(infos) > MAX_FILES or sum(i.file_size for i in infos) > MAX_ZIP:
                raise ReportError(TOO_MUCH)
            for info in infos:
                _check_path(info.filename)
            places = [(i.filename, i) for i in infos] if names is None else list(_reached(infos, (*names, *optional)))
            out = _read(z, places)
    except ReportError:
        raise
    except Exception as e:  # zipfile and zlib raise a dozen kinds of error for damaged files
        raise ReportError("This zip is damaged or cut off. Make the report again, or fetch it again.") from e
    for name in names or ():
        if name not in out:
            raise ReportError(f"This zip holds no {name}, so it is no complete report.")
    return out


def _check_path(path: str) -> None:
    if path.startswith(("/", "\\")) or ":" in path or ".." in path.replace("\\", "/").split("/"):
        raise ReportError(f"This zip holds '{plain(path, 80)}', a path that leads out of it. It is no report.")


def _parts(info: zipfile.ZipInfo) -> tuple[str, ...]:
    """Folders and name of a file; () for a folder and for what a system or a file manager adds."""
    path = info.filename.replace("\\", "/")
    parts = tuple(p for p in path.split("/") if p != ".")
    hidden = any(is_left_behind(p) for p in parts)
    return () if hidden or path.endswith("/") else parts


def _reached(infos: Sequence[zipfile.ZipInfo], names: Sequence[str]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """(name, entry) of every file, all of which must lie in one folder and be among the names."""
    found = [(parts, i) for i in infos if (parts := _parts(i))]
    folder = next((parts[:-1] for parts, _ in found if parts[-1] in names), ())
    for parts, info in found:
        if parts[:-1] != folder or parts[-1] not in names:
            raise ReportError(f"This zip holds '{plain(info.filename, 80)}', which is no part of a report.")
        yield parts[-1], info


def _read(z: zipfile.ZipFile, places: Places) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    for name, info in places:
        told = plain(info.filename, 80)
        if name in out:
            raise ReportError(f"This zip holds '{told}' twice.")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ReportError(f"'{told}' is encrypted, or packed in a way that reports are not.")
        with z.open(info) as f:
            out[name] = f.read(info.file_size + 1)
        if len(out[name]) != info.file_size:
            raise ReportError("This zip unpacks to another size than it says. It is no report.")
    return out
