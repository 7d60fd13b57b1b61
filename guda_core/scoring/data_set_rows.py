"""Pictures that are rows of a data set: `hub:user/name@revision`, or a folder that `save_to_disk` of `datasets` wrote.

A row's place is data-set:<data set>#<column of pictures>#<split>/<number>#<state of the split>. Its prompt is what its
text column says. A process opens a data set once, and reads the rows that it is asked for. A data set that was written
anew after its rows were listed is refused: its row of that number may be another picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guda_core.data.own.data_sets import HUB, TEXTS, file_of, is_data_set, open_data_set, text_of, undecoded
from guda_core.errors import DataError, GudaError, ImageError, UnreadError

PREFIX, MARK = "data-set:", "#"
COMMIT = re.compile("[0-9a-f]{40}")
# (data set, column, state that is meant) -> split -> (its state, its pictures), of this process
_opened: dict[tuple[str, str, str], dict[str, tuple[str, Any]]] = {}


def is_rows(source: str) -> bool:
    """Whether a source is a data set, and not a table of names."""
    return source.startswith(HUB) or (not source.lower().endswith(".parquet") and is_data_set(source))


def listed(source: str, prompt: str) -> tuple[str, list[str], Iterator[tuple[str, str, str]]]:
    """(the column of captions, "" for none; columns that are called so, but hold no texts; name, place and prompt of
    every row). prompt: of rows in a data set without captions.

    Raises:
        DataError: it cannot be read, or has no column of pictures.
    """
    source = source if source.startswith(HUB) else str(Path(source).resolve())
    _opened.clear()  # it may have been written anew since
    splits = open_data_set(source)
    states = {split: _state(source, of) for split, of in splits.items()}
    if source.startswith(HUB) and COMMIT.fullmatch(commit := next(iter(states.values()))):
        source = f"{source.partition('@')[0]}@{commit}"  # for all who read it, whatever comes meanwhile
    features = next(iter(splits.values())).features
    image = next((c for c, f in features.items() if type(f).__name__ == "Image"), None)
    if image is None or MARK in source + image:
        raise DataError(f"There is no column of pictures in '{source}'. There are {', '.join(features)}.")
    called = [c for c in TEXTS if c in features]
    textless = [c for c in called if not _holds_texts(features[c])]
    text = next((c for c in called if c not in textless), "")

    def rows() -> Iterator[tuple[str, str, str]]:
        for split, of in splits.items():
            told = of.select_columns([text]) if text else None
            for i in range(len(of)):
                cell = prompt if told is None else told[i][text]
                said = cell if isinstance(cell, str) else text_of(features[text], cell, f"{split}/{i}: '{text}'")
                yield f"{split}/{i}", MARK.join([PREFIX + source, image, f"{split}/{i}", states[split]]), said

    return text, textless, rows()


def _state(source: str, rows: Any) -> str:
    """What is otherwise once the rows are others: of the Hub the commit, by which `datasets` calls the folder that they
    are kept in (offline it takes the newest there, whichever is asked for); else the fingerprint."""
    kept = rows.cache_files if source.startswith(HUB) else []
    return Path(kept[0]["filename"]).parent.name if kept else rows._fingerprint


def _holds_texts(feature: Any) -> bool:
    """Whether its cells are texts, lists of texts, of which the first is taken, or classes, which have names."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    return getattr(inner, "dtype", None) in ("string", "large_string") or hasattr(feature, "int2str")


def read(place: str) -> bytes:
    """The bytes of a row's picture.

    Raises:
        UnreadError: there is no such row or no picture in it, it cannot be read, or the data set is another one now.
        ImageError: it is too large.
    """
    source, image, row, *more = place.removeprefix(PREFIX).split(MARK)
    state = "".join(more)  # none in tables of older versions
    split, _, number = row.rpartition("/")
    try:
        if (key := (source, image, state)) not in _opened:
            _opened[key] = {s: (_state(source, of), undecoded(of, image)) for s, of in open_data_set(source).items()}
        now, cells = _opened[key][split]
        if state not in ("", now):
            raise DataError(
                "The data set is another one than when its rows were listed. Run the command that scores them again."
            )
        return file_of(source, cells[int(number)][image])
    except (GudaError, KeyError, IndexError) as e:
        kind = ImageError if type(e) is ImageError else UnreadError
        raise kind(f"Row {row} of '{source}' cannot be read. {e}") from e
