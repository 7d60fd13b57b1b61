"""Data sets that the library `datasets` reads: of the Hub, saved by `save_to_disk`, parquet files, folders of those.

A picture stays as the bytes of its file until it is asked for, and then goes through the same door as every other
(`data.images`). No code of a data set is run: the library knows no such data sets any more (from version 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from guda_core.data.images import OWN, read_file
from guda_core.data.own.found import RIGHTS, Candidate, Found, words
from guda_core.errors import DataError
from guda_core.paths import below, cache_dir, is_file, is_there

HUB = "hub:"
GROUPS = ("group", "artist", "style", "label")  # columns that are taken where none is named, the first that is there
TEXTS = ("text", "caption", "prompt")  # also of tables and data sets that are scored


def is_data_set(place: str) -> bool:
    """Whether a place can only be a data set: of the Hub, parquet, or saved by `save_to_disk`."""
    path = Path(place)
    saved = any(is_file(path / name) for name in ("dataset_dict.json", "dataset_info.json", "state.json"))
    return place.startswith(HUB) or path.suffix.lower() == ".parquet" or saved


def _load(place: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as e:
        raise DataError("Data sets are read by the package datasets. Install it: pip install datasets.") from e
    kept = str(cache_dir() / "datasets")
    if place.startswith(HUB):
        name, _, revision = place.removeprefix(HUB).partition("@")
        if not name:
            raise DataError(f"'{place}' names no data set. One of the Hub is written hub:user/name.")
        if is_there(name):
            raise DataError(
                f"The folder '{name}' here has the name of the data set on the Hub and would be read in its place. "
                "Run the command in another folder."
            )
        return datasets.load_dataset(name, config, revision=revision or None, cache_dir=kept)
    path = Path(place)
    if not is_there(path):
        raise DataError(f"There is no data set '{place}'. One of the Hub is written hub:user/name.")
    if any(is_file(path / name) for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(str(path))
    if is_file(path):
        return datasets.load_dataset("parquet", data_files={"train": [str(path)]}, cache_dir=kept)
    return datasets.load_dataset(str(path), config, cache_dir=kept)


def open_data_set(place: str, config: str | None = None) -> dict[str, Any]:
    """Split -> its rows, of `hub:user/name`, `hub:user/name@revision`, or a path.

    Raises:
        DataError: `datasets` is not installed, or the data set is not there or cannot be read.
    """
    try:
        found = _load(place, config)
    except DataError:
        raise
    except Exception as e:  # the library raises dozens of kinds for a missing hub, folder, file or configuration
        said = str(e).strip().split("\n")[0] or type(e).__name__
        raise DataError(f"The data set '{place}' cannot be read: {said}") from e
    return dict(found) if hasattr(found, "keys") else {"train": found}


def undecoded(rows: Any, image_column: str) -> Any:
    """The rows with that column alone, each picture as {"bytes", "path"} of its file."""
    import datasets

    return rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))


def file_of(place: str, cell: Any) -> bytes:
    """The bytes of a picture's file. A path is followed only into the data set's folder and the libraries' caches:
    a data set of a stranger must not read other files of this machine.

    Raises:
        DataError: there is no picture in the cell. ImageError: its file cannot be read, or is too large.
    """
    inside, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if inside:
        return bytes(inside)
    if not path:
        raise DataError("There is no picture in this row.")
    from datasets import config
    from huggingface_hub import constants

    own = [] if place.startswith(HUB) else [Path(place) if Path(place).is_dir() else Path(place).parent]
    caches = (cache_dir() / "datasets", Path(str(config.HF_DATASETS_CACHE)), Path(constants.HF_HUB_CACHE))
    whole = next((p for folder in (*own, *caches) if (p := below(folder, Path(path).absolute()))), None)
    if whole is None:
        raise DataError(f"'{path}' lies outside the data set; save it with the pictures in it")
    return read_file(whole, OWN)


def _column(features: Mapping[str, Any], named: str | None, usual: list[str], what: str, *, needed: bool) -> str | None:
    """The named column, else the first of the usual ones that is there.

    Raises:
        DataError: the named one is not there, or one is needed and none is.
    """
    if named is None:
        named = next((c for c in usual if c in features), None)
        if named is None and needed:
            raise DataError(f"Say which column is the {what}: --{what}-column. There are {', '.join(features)}.")
    elif named not in features:
        raise DataError(f"There is no column '{named}'. There are {', '.join(features)}.")
    return named


def text_of(feature: Any, value: Any, what: str) -> str:
    """A cell as text; a class's number by its name, of several captions the first."""
    if value is not None and hasattr(feature, "int2str"):
        return feature.int2str(value).replace("_", " ") if value >= 0 else ""
    return words(next(iter(value), None) if isinstance(value, list) else value, what)


def find_in_data_set(
    place: str,
    *,
    image_column: str | None = None,
    group_column: str | None = None,
    text_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
) -> Found:
    """The pictures of a data set by its columns; none is opened. split: that one alone; default: "train", because a
    model was trained on no other; all where none has that name.

    Raises:
        DataError: it cannot be read, or has no such split or column, or a picture has no group.
    """
    path = place if place.startswith(HUB) else str(Path(place).resolve())
    opened = open_data_set(path, config)
    if split is not None and split not in opened:
        raise DataError(f"There is no split '{split}' in '{place}'. There are {', '.join(opened)}.")
    features = next(iter(opened.values())).features
    pictures = [c for c, f in features.items() if type(f).__name__ == "Image"]
    image = _column(features, image_column, pictures or ["image"], "image", needed=True)
    group = _column(features, group_column, list(GROUPS), "group", needed=True)
    text = _column(features, text_column, list(TEXTS), "text", needed=False)
    rights = {k: c for k in (*RIGHTS, "license") for c in features if c.lower() == k}
    assert image is not None and group is not None
    source = {"id": "datasets", "path": path, "image": image, **({"config": config} if config else {})}
    found = Found(place, source)
    chosen = {"image": (image_column, image), "group": (group_column, group), "text": (text_column, text)}
    if took := [f"'{c}' ({what})" for what, (named, c) in chosen.items() if named is None and c is not None]:
        found.notes.append(
            f"Columns that were taken: {', '.join(took)}. --image-column, --group-column and --text-column take others."
        )
    taken = [split] if split else ["train"] if "train" in opened else list(opened)
    others = [f"{name} ({len(rows):,})" for name, rows in opened.items() if name not in taken]
    if others:
        found.notes.append(f"Splits that were not taken: {', '.join(others)}. --split takes another one.")
    for name in taken:
        found.candidates += _candidates(path, name, opened[name], image, group, text, rights)
    return found


def _candidates(
    place: str, split: str, rows: Any, image: str, group: str, text: str | None, rights: Mapping[str, str]
) -> Iterator[Candidate]:
    told = rows.select_columns(list(dict.fromkeys([group, *([text] if text else []), *rights.values()])))
    cells = undecoded(rows, image)
    for i, row in enumerate(told):
        where = f"{split}/{i}"
        own = text_of(rows.features[group], row[group], f"Row {where}: '{group}'")
        if not own:
            raise DataError(f"Row {where} has no group: its column '{group}' is empty.")
        said = {k: text_of(rows.features[c], row[c], f"Row {where}: '{c}'") for k, c in rights.items()}
        said["licence"] = said.pop("license", "") or said.get("licence", "")
        caption = text_of(rows.features[text], row[text], f"Row {where}: '{text}'") if text else ""
        yield Candidate(where, own, partial(_cell, place, cells, image, i), caption, **said)


def _cell(place: str, cells: Any, image: str, i: int) -> bytes:
    return file_of(place, cells[i][image])
