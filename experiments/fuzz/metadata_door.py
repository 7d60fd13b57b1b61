"""What `guda groups new` reads: tables of pictures, metadata files and captions beside pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from experiments.fuzz.mutations import bent_bytes, bent_text, bent_value, json_text, packed, unpacked_files
from experiments.fuzz.set_door import PICTURES, laid_out
from experiments.fuzz.trial import Door

HEAD = "file_name,text,group,author,licence,link"
CSV = "\n".join(
    [HEAD, *(f'{p},"a cat, on a wall",{p.split("/")[0]},Ann,MIT,https://example.org/a' for p in PICTURES), ""]
)
ROWS: list[dict[str, Any]] = [
    {"file_name": p, "text": "a cat", "group": p.split("/")[0], "author": "Ann", "licence": "MIT", "object": "cat"}
    for p in PICTURES
]
TOKENS = (
    ",", ";", "\t", '"', '""', "'", "\0", "\n", "\r", "\x0b", "\u2028", "a" * 200_000,
    "../../x.png", "/etc/passwd", "=1+1",
    "~nobody/x.png", "a" * 300 + ".png", "é", "猫", "\u202e", "[/b]", "{name}", "{", "NaN", "1e999", "9" * 5000, "null",
)  # fmt: skip
CAPTION = "a cat on a wall by Ann Lee\n"


def inputs(seed: int) -> Iterator[bytes]:
    """Sound tables and metadata files, then changed ones, in several encodings."""
    rng, lines = Random(seed), "".join(json_text(r) + "\n" for r in ROWS)
    sound = {
        "metadata.csv": CSV,
        "metadata.jsonl": lines,
        "table.csv": CSV,
        "table.jsonl": lines,
        "table.json": json_text(ROWS),
    }
    for name, text in sound.items():
        yield packed({name: text.encode()})
    while True:
        name, kind = rng.choice(sorted(sound)), rng.randrange(4)
        if kind == 0:
            data = bent_bytes(rng, sound[name].encode())
        elif kind == 1 or name.endswith(".csv"):
            data = bent_text(rng, sound[name], TOKENS)
        else:
            rows: Any = bent_value(rng, ROWS)
            rows = rows if isinstance(rows, list) else [rows]
            text = json_text(rows) if name.endswith(".json") else "".join(json_text(r) + "\n" for r in rows)
            data = text.encode("utf-8", "surrogatepass")
        files = {name: data}
        if rng.random() < 0.2:
            files["Ann Lee/0.txt"] = bent_text(rng, CAPTION, TOKENS)
        yield packed(files)


def start(folder: Path) -> Callable[[bytes], None]:
    """`guda groups new` without the terminal: found, opened, written into a workspace, and read back."""
    from guda_core.data.groups import load_group_set
    from guda_core.data.own import set_files
    from guda_core.data.own.in_folder import find_in_folder, find_in_table
    from guda_core.data.own.new_set import NewSet, draft
    from guda_core.data.sources.source import open_dataset
    from guda_core.paths import home

    place, sound = folder / "pictures", folder / "sound"
    laid_out(sound)

    def tried(data: bytes) -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(home(), ignore_errors=True)
        shutil.copytree(sound, place)
        files = unpacked_files(data)
        for name, content in files.items():
            (place / name).write_bytes(content)
        table = next(iter(files))
        found = find_in_table(place / table) if table.startswith("table") else find_in_folder(place)
        made = draft(found, NewSet("Mine", resolution=32, broken=1.0))
        written = set_files.write(made)
        old = set_files.existing("mine")
        assert old is not None
        set_files.differences(set_files.kept(made, old, phrases=True), old)
        open_dataset(load_group_set("mine", written.parent)).split("train")

    return tried


DOOR = Door("metadata", inputs, start, memory_mb=300)
