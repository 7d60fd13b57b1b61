"""Files here or anywhere that fsspec knows: a place is a path, or a URL such as s3://bucket/pictures."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from guda_core.data.images import MAX_BYTES, read_file
from guda_core.errors import OptionError, PassingError, ReportError, UnreadError
from guda_core.held_files import FULL, PART, mend, remove_file, write_anywhere
from guda_core.paths import cache_dir
from guda_core.scoring import data_set_rows

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
SCHEME, CLAIMS = "://", "claims"
AGAIN = "Try it again: nothing is lost."
ABSENT = (errno.ENOENT, errno.ENOTDIR)
LASTING = (  # what a system says of places that cannot be written to another time either
    *FULL, *ABSENT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL
)  # fmt: skip
ODD = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # what a system says of names that no file here can have


def is_url(place: str) -> bool:
    """Whether a place is a URL that only fsspec can open; file:// is a path."""
    return SCHEME in place and not place.startswith(("file://", data_set_rows.PREFIX))


def as_path(place: str) -> Path:
    """A place on this machine: of file:///C:/x, Windows' C:/x. %20 stands for itself, as for fsspec."""
    path = place.removeprefix("file://")
    slash_and_drive = path != place and path.startswith("/") and Path(path[1:]).drive
    return Path(path[1:] if slash_and_drive else path)


def on_windows() -> bool:
    """Whether paths here have drives and backslashes."""
    return isinstance(Path("/"), PureWindowsPath)


def absolute(place: str) -> str:
    """The place, whatever folder a program works in."""
    return place if is_url(place) else os.path.abspath(as_path(place))  # noqa: PTH100  (links stay as they are named)


def real(place: str) -> str:
    """The place that links lead to; URLs as they are."""
    return place if is_url(place) else os.path.realpath(as_path(place))


def joined(folder: str, name: str) -> str:
    """The place of a name in a folder; a name that is a place of its own stays. Lists on a server name no file here."""
    if is_url(name) or (not is_url(folder) and (name.startswith("file://") or Path(name).is_absolute())):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(as_path(folder) / name)


def name_of(place: str) -> str:
    """The last name in a place; "" for the top of a disk."""
    return place.rstrip("/").rpartition("/")[2] if is_url(place) else as_path(place).name


def parent_of(place: str) -> str:
    """The folder that a place is in, whatever folder a program works in."""
    return place.rpartition("/")[0] if is_url(place) else str(Path(absolute(place)).parent)


def begin_of(folder: str) -> str:
    """A folder with the mark at its end that parts names: the places of all that is in it begin so."""
    return f"{folder}/" if is_url(folder) else os.path.join(as_path(folder), "")  # noqa: PTH118  (Path drops the end)


def is_within(place: str, folder: str) -> bool:
    """Whether a place is a folder or below it, wherever links lead."""
    here, top = real(place), real(folder)
    if is_url(place) or is_url(folder):
        return f"{here}/".startswith(f"{top.rstrip('/')}/")
    return Path(here).is_relative_to(top)


def opened(place: str) -> tuple[AbstractFileSystem, str]:
    """(file system, path in it) of a URL.

    Raises:
        OptionError: nothing that is installed opens such places.
        ReportError: the place cannot be reached now.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as e:
        raise OptionError(f"'{place}' cannot be opened. {e}") from e
    except Exception as e:  # some ask their server at once
        raise _not_now(place, e, "opened") from e
    return fs, path


def _not_now(place: str, e: Exception, done: str = "read") -> PassingError:
    return PassingError(f"'{place}' cannot be {done} now ({e}). {AGAIN}")


def _fresh(place: str) -> tuple[AbstractFileSystem, str]:
    """Likewise; what it remembers of its folders is forgotten."""
    fs, path = opened(place)
    fs.invalidate_cache()
    return fs, path


def _told(place: str, ask: Callable[[], T]) -> T | None:
    """What is answered about a place; None where nothing is there.

    Raises:
        ReportError: there is no answer now, such as where a connection is lost.
    """
    try:
        return ask()
    except Exception as e:  # libraries of stores raise kinds of their own
        code, here = getattr(e, "errno", None), not is_url(place)
        absent = isinstance(e, FileNotFoundError | NotADirectoryError) or code in ABSENT
        if absent or (here and (isinstance(e, ValueError) or code in ODD)):
            return None
        raise _not_now(place, e) from e


def is_folder(place: str) -> bool:
    """Whether there is such a folder."""
    if not is_url(place):
        return os.path.isdir(as_path(place))  # noqa: PTH112  (any name)
    fs, path = _fresh(place)
    return fs.isdir(path)


def is_file(place: str) -> bool:
    """Whether there is such a file; a row of a data set is taken for one. Raises ReportError: it cannot be seen now."""
    if place.startswith(data_set_rows.PREFIX):
        return True
    if not is_url(place):
        return bool(_told(place, lambda: stat.S_ISREG(as_path(place).stat().st_mode)))
    fs, path = _fresh(place)
    return _told(place, lambda: fs.info(path)["type"]) == "file"


def content(place: str) -> bytes | None:
    """The bytes of a file, None where there is none. Raises ReportError: it cannot be read now."""
    if is_url(place):
        _fresh(place)
    return _told(place, lambda: read(place))


def read(place: str) -> bytes:
    """The bytes of a file. Raises OSError."""
    if not is_url(place):
        return as_path(place).read_bytes()
    fs, path = opened(place)
    with fs.open(path, "rb") as f:
        data: Any = f.read()
    return data


def text_of(place: str) -> IO[str]:
    """A file of UTF-8 text, opened, its line ends as they are. Raises OSError."""
    if not is_url(place):
        return as_path(place).open(encoding="utf-8-sig", newline="")
    fs, path = opened(place)
    found: Any = fs.open(path, "rt", encoding="utf-8-sig", newline="")
    return found


def read_tail(place: str, n: int) -> bytes:
    """The last n bytes of a file, fewer where it is shorter. Raises OSError."""
    if is_url(place):
        fs, path = opened(place)
        tail: Any = fs.tail(path, n)
        return tail
    with as_path(place).open("rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - n))
        return f.read(n)


def read_picture_file(place: str) -> bytes:
    """The bytes of a picture's file; no more than the door takes are read.

    Raises:
        UnreadError: there is no such file, or it cannot be read. ImageError: it is too large.
    """
    if place.startswith(data_set_rows.PREFIX):
        return data_set_rows.read(place)
    if not is_url(place):
        return read_file(as_path(place))
    try:
        fs, path = opened(place)
        with fs.open(path, "rb") as f:
            data: bytes = f.read(MAX_BYTES + 1)  # type: ignore[assignment]
    except Exception as e:  # libraries of stores raise kinds of their own where a connection is lost
        raise UnreadError("This file could not be read. See that it is there, and that you may read it.") from e
    return data


def write(place: str, data: bytes) -> None:
    """Write a file in one go: a reader sees the old one or the new one, never a part.

    Raises:
        ReportError: the disk is full, or the place cannot be written to. PassingError: another time it may.
    """
    fs, path = opened(place) if is_url(place) else (None, "")
    try:
        if fs is None:
            write_anywhere(as_path(place), [data])
        elif _is_written_into(fs):
            _replace(fs, path, data)
        else:
            fs.pipe_file(path, data)  # stores of objects show a file when all of it is there
    except Exception as e:  # libraries of stores raise kinds of their own
        if fs is None and not isinstance(e, OSError):
            raise
        why = getattr(e, "strerror", None) or e
        if isinstance(e, OSError) and e.errno in LASTING:
            raise ReportError(f"{place} cannot be written ({why}). {mend(e)}") from e
        raise PassingError(f"{place} cannot be written now ({why}). {AGAIN}") from e


def _is_written_into(fs: AbstractFileSystem) -> bool:
    """Whether a file grows while it is written, and can be renamed, as with sftp, smb, hdfs and ftp."""
    from fsspec import AbstractFileSystem as Plain

    into = getattr(fs.pipe_file, "__func__", None) is Plain.pipe_file
    return into and type(fs).mv is not Plain.mv


def _replace(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file beside another one, whose name it then takes, and its folders."""
    folder = path.rpartition("/")[0]
    aside = f"{folder}/{PART}{uuid4().hex}"
    with suppress(Exception):  # what is missing then, the next line says
        fs.makedirs(folder, exist_ok=True)
    try:
        fs.pipe_file(aside, data)
        try:
            fs.mv(aside, path)
        except OSError as e:
            if not (isinstance(e, FileExistsError) or e.errno == errno.EEXIST):
                raise
        is_left = _told(aside, lambda: fs.info(aside))
    except BaseException:
        with suppress(Exception):
            fs.rm_file(aside)
        raise
    if is_left:  # smb refuses a name that is taken, and webhdfs does nothing; then it is gone for a moment
        fs.rm_file(path)
        fs.mv(aside, path)


def claim_of(out: str, name: str) -> Path:
    """The file that keeps others off something in the results: in them; where they are no folder here, in this
    machine's cache."""
    if not is_url(out):
        return as_path(out) / CLAIMS / name
    return cache_dir() / "locks" / f"{hashlib.sha256(out.encode()).hexdigest()[:16]}-{name}"


def no_room(e: Exception) -> PassingError:
    """Why a file that goes into the results could not be made beforehand, in the folder for such files."""
    return PassingError(
        f"Files cannot be made in '{tempfile.gettempdir()}', where they are prepared. Free some space there, or set "
        f"TMPDIR to another folder. {e}"
    )


def remove(place: str) -> None:
    """Remove a file, if it is there. Raises OSError."""
    if not is_url(place):
        remove_file(as_path(place))
        return
    fs, path = opened(place)
    if fs.exists(path):
        fs.rm_file(path)


def files(folder: str, ending: str) -> list[str]:
    """The places of the files in a folder that end so, by name; none where there is no such folder. Raises ReportError:
    it cannot be read now."""
    if not is_url(folder):
        return [str(p) for p in sorted(as_path(folder).glob(f"*{ending}")) if not p.name.startswith(".")]
    fs, path = _fresh(folder)
    found = _told(folder, lambda: fs.ls(path, detail=False)) or []
    return [fs.unstrip_protocol(p) for p in sorted(found) if p.endswith(ending)]


CHANGES = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")  # what stores tell of a file


def marks(folder: str, ending: str) -> dict[str, str]:
    """Place -> what is otherwise once the file is written again, of the files in a folder that end so, by name. Raises
    ReportError: it cannot be read now."""
    if not is_url(folder):
        return {p: _mark(as_path(p)) for p in files(folder, ending)}
    fs, path = _fresh(folder)
    found = _told(folder, lambda: fs.ls(path, detail=True)) or []
    told = {f["name"]: repr([f.get("size"), *map(f.get, CHANGES)]) for f in found if f["name"].endswith(ending)}
    return {fs.unstrip_protocol(name): told[name] for name in sorted(told)}


def _mark(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # it is gone
        return ""
    return f"{found.st_mtime_ns} {found.st_size}"


def register(connection: Any, place: str) -> None:
    """Let a DuckDB connection read URLs of that kind."""
    if not is_url(place):
        return
    fs = opened(place)[0]
    known = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not known & set(connection.list_filesystems()):
        connection.register_filesystem(fs)
