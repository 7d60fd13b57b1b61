"""Pictures in a folder, as people keep them, and in a table that names files.

    FOLDER/Ann Lee/cat.jpg          group "Ann Lee"
    FOLDER/Cubism/Dogs/1.png        group "Cubism", object "Dogs"
    FOLDER/Ann Lee/cat.txt          the caption of cat.jpg (also .caption)
    FOLDER/metadata.csv or .jsonl   file_name, text; also group, object, author, licence, licence_link, link
    FOLDER/12_Ann Lee/cat.jpg       group "Ann Lee", where every subfolder begins with a number of repeats (kohya)

A `.txt` goes before a metadata file. Hidden files and what systems leave behind (Thumbs.db, ._x.jpg, __MACOSX) are no
files here. Links to folders are followed; a folder that comes up again is passed over.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

from guda_core.data.images import OWN, read_file
from guda_core.data.left_behind import BESIDE, is_left_behind
from guda_core.data.own.found import NAMED, RIGHTS, Candidate, Found, counted, some, words
from guda_core.data.own.tables import read_table
from guda_core.errors import DataError
from guda_core.paths import below, is_file, is_folder

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp")
CAPTIONS = (".txt", ".caption")
NO_CAPTIONS = ("readme", "license", "licence", "notice", "credits")  # text files that are none, without suffix
METADATA = ("metadata.jsonl", "metadata.csv")
SPLITS = {"train", "test", "val", "valid", "validation"}
REPEATS = re.compile(r"\d+_(?=.*\w)")


def files_below(folder: Path, found: Found) -> Iterator[Path]:
    """All files below a folder that are not hidden, folder by folder, by name. Those behind links come last, because a
    folder belongs to where it lies; else to the link that is nearest to the top. What is passed over is noted."""
    seen, links = set[Path](), {folder: folder.resolve()}
    while links:
        path = min(links, key=lambda p: (len(p.parts), -len(links[p].parts)))  # of two, the one that leads to less
        if links.pop(path) in seen:
            found.notes.append(f"{path} leads to a folder that was read already; it was passed over.")
        else:
            yield from _files_in(path, found, seen, links)


def _files_in(folder: Path, found: Found, seen: set[Path], links: dict[Path, Path]) -> Iterator[Path]:
    """Those that lie in it. links: hears of its links to folders (Windows' junctions too), and where they lead."""
    whole = folder.resolve()
    seen.add(whole)
    try:
        entries = sorted(folder.iterdir(), key=lambda p: p.name)
    except OSError as e:
        raise DataError(f"The folder {folder} cannot be opened: {e.strerror or e}.") from e
    for path in entries:
        if is_left_behind(path.name):
            continue
        if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where a link's target cannot be looked at)
            leads_to = path.resolve()
            if leads_to != whole / path.name:
                links[path] = leads_to
            elif leads_to in seen:
                found.notes.append(f"{path} leads to a folder that was read already; it was passed over.")
            else:
                yield from _files_in(path, found, seen, links)
        elif os.path.isfile(path) and not sayable(path):  # noqa: PTH113
            if path.suffix.lower() in PICTURES:
                found.missing.append(f"{path} (its name is no text; rename it)")
        elif os.path.isfile(path):  # noqa: PTH113
            yield path
        elif path.suffix.lower() in PICTURES or not path.suffix:
            found.notes.append(f"{path} is a link that leads nowhere; it was passed over.")


def sayable(path: Path) -> bool:
    """Whether the path can be written down: names may hold bytes that are no text."""
    return not any("\ud800" <= c <= "\udfff" for c in str(path))


def stored_path(folder: Path) -> str:
    """How a group set names a folder: by its whole path."""
    return str(folder.resolve())


def spelled_as(paths: Iterable[Path]) -> Callable[[Path], Path]:
    """A function that gives a path as these are spelled: systems write a letter with an accent in two ways, as one
    character or as two (Unicode's NFC and NFD), and for some, upper and lower case are the same: there the file is
    found under a name that is not listed. A path that is none of these in any way is given as it is."""
    known = {p: p for p in paths}
    same = {unicodedata.normalize("NFC", str(p)): p for p in known}
    alike: dict[str, list[Path]] = {}
    for text, p in same.items():
        alike.setdefault(text.casefold(), []).append(p)

    def spelled(path: Path) -> Path:
        text = unicodedata.normalize("NFC", str(path))
        if found := known.get(path) or same.get(text):
            return found
        near = alike.get(text.casefold(), [])
        return near[0] if len(near) == 1 and is_file(path) else path

    return spelled


def spelled_below(root: Path) -> Callable[[Path], Path]:
    """As `spelled_as`, with all that lies below a folder. Only folders on the way to what is asked for are listed, each
    once; one that cannot be listed holds nothing."""

    @cache
    def listed(folder: Path) -> Callable[[Path], Path]:
        try:
            return spelled_as(folder.iterdir())
        except OSError:
            return spelled_as(())

    def spelled(path: Path) -> Path:
        return reduce(lambda folder, part: listed(folder)(folder / part), path.relative_to(root).parts, root)

    return spelled


def _slashed(folder: Path, name: str) -> str:
    """A file's name with /, also where it was written with \\, as Windows does."""
    return name.replace("\\", "/") if "\\" in name and not is_file(folder / name) else name


def _stems(pictures: list[Path]) -> set[Path]:
    """What the path of a picture's caption file may be without its suffix."""
    return {p for path in pictures for p in (path, path.with_suffix(""))}


def _captions(files: list[Path], found: Found) -> dict[Path, str]:
    """Picture's path without its suffix -> text; files of several lines are noted. Raises DataError for files that are
    not UTF-8, all of them, and for others that cannot be read."""
    out, bad, wrong, several = {}, [], [], []
    for path in sorted(files, key=lambda p: p.suffix.lower()):  # .txt goes before .caption
        try:
            whole = path.read_text(encoding="utf-8-sig")
            text = words(whole, str(path))
            out[path.with_suffix("")] = text or out.get(path.with_suffix(""), "")
            if len([line for line in whole.splitlines() if line.strip()]) > 1:
                several.append(f"{path.parent.name}/{path.name}")
        except UnicodeDecodeError:
            bad.append(path)
        except OSError as e:
            wrong.append(f"{path} cannot be opened: {e.strerror or e}.")
        except DataError as e:
            wrong.append(str(e))
    said = wrong[:NAMED]
    if len(wrong) > NAMED:
        said.append(f"{counted(len(wrong) - NAMED, 'more caption file')} cannot be read.")
    if bad:
        them = "it" if len(bad) == 1 else "them"
        said.append(
            f"{counted(len(bad), 'caption file is', 'caption files are')} not readable as UTF-8 text: {some(bad)}. "
            f"Save {them} again as UTF-8."
        )
    if said:
        raise DataError(" ".join(said))
    if several:
        n = counted(len(several), "caption file has", "caption files have")
        found.notes.append(f"{n} several lines, which were joined to one caption: {some(several)}.")
    return out


def _metadata(files: list[Path], pictures: list[Path], found: Found) -> dict[Path, dict[str, str]]:
    """Picture's path -> its row, of every metadata file. Of rows that say different things of one picture, the last."""
    out: dict[Path, dict[str, str]] = {}
    spelled, twice = spelled_as(pictures), []
    for path in files:
        if path.name.lower() == METADATA[1] and path.with_name(METADATA[0]) in files:
            found.notes.append(f"{path.name} was passed over, because {METADATA[0]} is beside it.")
            continue
        rows, notes = read_table(path)
        found.notes += notes
        for row in rows:
            picture = spelled(Path(os.path.normpath(path.parent / _slashed(path.parent, row["file"]))))
            before = out.get(picture, row)
            if any(before.get(k) != row.get(k) for k in (before.keys() | row.keys()) - {"file", "where"}):
                twice.append(f"{row['file']} ({before['where']}, and {row['where']})")
            out[picture] = row
            if not is_file(picture):
                found.missing.append(f"{row['file']} (not there; named in {row['where']})")
    if twice:
        n = counted(len(twice), "picture has", "pictures have")
        found.notes.append(f"{n} two different rows of metadata, of which the last was taken: {some(twice)}.")
    return out


def _repeats(pictures: list[Path], folder: Path, found: Found) -> bool:
    """Whether all groups' subfolders begin with kohya's number of repeats; notes that, and subfolders without pictures.

    Raises:
        DataError: the subfolders are the splits of a data set.
    """
    tops = {parts[0] for p in pictures if len(parts := p.relative_to(folder).parts) > 1}
    if tops and {t.lower() for t in tops} <= SPLITS:
        train = next((t for t in sorted(tops) if t.lower() == "train"), "")
        raise DataError(
            f"The subfolders {', '.join(sorted(tops))} look like the splits of a data set, not like groups. Name the "
            f"one that the model was trained on{f': {folder / train}' if train else ''}."
        )
    repeats = bool(tops) and all(REPEATS.match(t) for t in tops)
    if repeats:
        found.notes.append("All subfolders begin with a number and _ ; it was taken as kohya's repeats and left out.")
    empty = [p.name for p in sorted(folder.iterdir()) if not is_left_behind(p.name) and os.path.isdir(p)]  # noqa: PTH112
    empty = [n for n in empty if n not in tops]
    if empty:
        found.notes.append(f"Subfolders without pictures are no groups: {some(empty)}.")
    return repeats


def find_in_folder(folder: Path) -> Found:
    """The pictures of a folder and what is known of each; none is opened.

    Raises:
        DataError: there is no such folder, or no group of pictures in it; or a caption or metadata file is unreadable.
    """
    if is_file(folder):
        one = "one picture" if folder.suffix.lower() in PICTURES else "a file of a kind that is not read here"
        do = "Name" if folder.suffix.lower() in PICTURES else "Unpack it, and name"
        raise DataError(f"'{folder}' is {one}. {do} the folder that holds one subfolder for each group.")
    if not is_folder(folder):
        raise DataError(f"There is no folder '{folder}'. Name the folder that holds one subfolder for each group.")
    folder = Path(os.path.normpath(folder.absolute()))
    found = Found(str(folder), {"id": "listed", "path": stored_path(folder)})
    files = list(files_below(folder, found))
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    stems = spelled_as(_stems(pictures))
    captions_of = {p: stems(p.with_suffix("")) for p in files if p.suffix.lower() in CAPTIONS}
    alone = set(captions_of.values()) - _stems(pictures)
    told = _metadata([p for p in files if p.name.lower() in METADATA], pictures, found)
    stray = [p for p in pictures if len(p.relative_to(folder).parts) == 1 and "group" not in told.get(p, {})]
    pictures = sorted(set(pictures) - set(stray), key=lambda p: p.parts)  # not in Windows' own order
    _note_others(files, stray, found)
    if not pictures:
        raise DataError(
            f"There are no groups of pictures in {folder}. Put the pictures into one subfolder for each group, as "
            f"{', '.join(PICTURES)}."
            + (
                f" The pictures there lie in no subfolder. If it is a group itself, name {folder.parent}."
                if stray
                else ""
            )
        )
    own = _stems(pictures)
    captions = {
        stems(p): text for p, text in _captions([p for p in captions_of if captions_of[p] in own], found).items()
    }
    if of_none := [p for p, stem in captions_of.items() if stem in alone and p.stem.lower() not in NO_CAPTIONS]:
        n = counted(len(of_none), "caption file belongs", "caption files belong")
        found.notes.append(f"{n} to no picture: {some([str(p.relative_to(folder)) for p in of_none])}.")
    repeats = _repeats(pictures, folder, found)
    tops, otherwise = defaultdict[str, set[str]](set), list[str]()
    for path in pictures:
        parts, row = path.relative_to(folder).parts, told.get(path, {})
        top = REPEATS.sub("", parts[0]) if repeats else parts[0]
        own = row.get("group") or words(top.replace("_", " "), str(path)) or top
        if not own.strip():
            raise DataError(f"{folder} holds a subfolder whose name is spaces alone ('{top}'). Give it a name.")
        if "group" not in row:
            tops[own].add(parts[0])
        shows = row.get("object") or (words(parts[1].replace("_", " "), str(path)) if len(parts) > 2 else "")
        beside = captions.get(path.with_suffix("")) or captions.get(path) or ""
        text = beside or row.get("text", "")
        if text != (row.get("text") or text):
            otherwise.append(f"{'/'.join(parts)} ({row['where']})")
        found.candidates.append(
            Candidate("/".join(parts), own, partial(read_file, path, OWN), text, shows, **_rights(row))
        )
    if otherwise:
        n = counted(len(otherwise), "picture has", "pictures have")
        found.notes.append(
            f"{n} one caption in a text file and another in the metadata; that of the text file was taken: "
            f"{some(otherwise)}."
        )
    for name, several in tops.items():
        if len(several) > 1:
            found.notes.append(_joined(name, several, repeats=repeats))
    return found


def _joined(name: str, subfolders: set[str], *, repeats: bool) -> str:
    """What is said of subfolders that are one group. Raises DataError where that is not kohya's way."""
    them = ", ".join(sorted(subfolders))
    if repeats:
        return f"The subfolders {them} are one group, '{name}'."
    alike = len({unicodedata.normalize("NFC", n) for n in subfolders}) < len(subfolders)
    how = " (they look the same: an accented letter is one character in one of them, and two in another)" * alike
    raise DataError(f"The subfolders {them}{how} would be one group, '{name}'. Rename one of them, or join them.")


def _rights(row: dict[str, str]) -> dict[str, str]:
    return {k: row[k] for k in RIGHTS if k in row}


def _note_others(files: list[Path], stray: list[Path], found: Found) -> None:
    others = Counter(p.suffix.lower() or p.name for p in files if p.suffix.lower() not in (*PICTURES, *BESIDE))
    if others:
        kinds = some([f"{kind} {n:,}" for kind, n in others.most_common()], 5)
        found.notes.append(f"Files that are no {', '.join(PICTURES)} were passed over: {kinds}.")
    if stray:
        names = some([p.name for p in stray])
        found.notes.append(f"{counted(len(stray), 'picture')} in no subfolder and so of no group: {names}.")


def _file_of(path: Path, picture: str) -> tuple[Any, ...]:
    """What stands for the file of a picture's name: the same for two names that some disks take for one, which differ
    in upper and lower case or in how an accent is spelled."""
    try:
        at = path.stat()
    except (OSError, ValueError):
        return (picture,)
    return (unicodedata.normalize("NFC", picture).casefold(), at.st_dev, at.st_ino) if at.st_ino else (picture,)


def find_in_table(table: Path, folder: Path | None = None) -> Found:
    """The pictures that a table names: columns file and group, and text, object, author, licence, licence_link, link.

    folder: where the files lie, and may lie; default: beside the table.

    Raises:
        DataError: the table cannot be read, has no group for a picture, or names a file outside the folder or twice.
    """
    root = Path(os.path.normpath((folder or table.parent).absolute()))
    rows, notes = read_table(table)
    found = Found(str(table), {"id": "listed", "path": stored_path(root)})
    found.looked_in = f"beside the table, in {root}" if folder is None else f"in {root}"
    found.notes += notes
    seen: dict[tuple[Any, ...], str] = {}
    spelled = spelled_below(root)
    for row in rows:
        if "group" not in row:
            raise DataError(f"{row['where']} has no group. A table of pictures needs a column 'group'.")
        path = below(root, _slashed(root, row["file"]))
        if path is None:
            raise DataError(
                f"{row['where']}: '{row['file']}' lies outside {root}. Name the pictures' folder: --folder."
            )
        if not is_file(path):
            path = spelled(path)
        picture = path.relative_to(root).as_posix()
        if (where := seen.setdefault(_file_of(path, picture), row["where"])) is not row["where"]:
            raise DataError(f"{row['where']}: '{row['file']}' was named already in {where}.")
        if not is_file(path):
            found.missing.append(f"{row['file']} (not there; named in {row['where']})")
            found.away.append(row["file"])
            continue
        told = Candidate(
            picture, row["group"], partial(read_file, path, OWN), row.get("text", ""), row.get("object", ""),
            **_rights(row),
        )  # fmt: skip
        found.candidates.append(told)
    return found
