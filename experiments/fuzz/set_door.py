"""Group sets that people write: `group_set.yaml`, and the list of its pictures beside it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from PIL import Image

from experiments.fuzz.mutations import bent_bytes, bent_text, bent_value, json_text, packed, unpacked_files
from experiments.fuzz.trial import Door
from guda_core.paths import STYLE_GROUPS

SET, LIST = "group_set.yaml", "pictures.jsonl"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_TOKENS = (
    "&a", "*a", "<<: *a", "<<: [1]", "!!python/object/apply:os.system ['true']", "!!binary x", "!!int x", "!!float x",
    "!!timestamp x", "!!bool x", "!!set {a}", "!!omap [a]", "!!int ''", "2026-13-45", "2026-11-26 99:99:99", "0o9",
    "1:99", ".nan", ".inf", "9" * 5000, "? ", "? [a]\n: b", "{[a]: b}", "---", "...", "%YAML 9.9", "%TAG", "\t", "|",
    ">", "'", '"', "@", "`", "\0", "\x85", "\ud7ff", "{", "}", "[" * 500, "- " * 500, ": ", "#", "yes", "~", "name: a",
    "{x!r}", "{0}",
)  # fmt: skip
LISTED = """id: mine
name: Mine
source: {id: listed, path: pictures, held_out: 0.1, seed: 0}
resolution: 64
fit: crop
caption: "{content}, {phrase}"
author: Ann
licence: MIT
link: https://example.org/a
groups:
  ann-lee: {name: Ann Lee, phrase: by Ann Lee}
  bo-chan:
    name: Bo Chan
    phrase: by Bo Chan
    licence: CC0
"""


@cache
def picture(seed: int) -> bytes:
    """A small PNG."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


PICTURES = {f"{group}/{i}.png": i + 3 * (group == "Bo Chan") for group in ("Ann Lee", "Bo Chan") for i in range(3)}


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "picture": place, "group": place.split("/")[0].lower().replace(" ", "-"),
            "sha256": hashlib.sha256(picture(seed)).hexdigest(), "held_out": place.endswith("2.png"),
            "text": "a cat on a wall", "author": "Ann",
        }
        for place, seed in PICTURES.items()
    ]  # fmt: skip


def _listing(rows: list[Any]) -> bytes:
    return "".join(json_text(r) + "\n" for r in rows).encode("utf-8", "surrogatepass")


@cache
def _sets() -> tuple[str, ...]:
    folder = LISTED.replace("id: listed", "id: folder").replace("ann-lee: {", "ann-lee: {source: {folder: Ann Lee}, ")
    return (LISTED, LISTED, folder, *(p.read_text(encoding="utf-8") for p in sorted(STYLE_GROUPS.glob(f"*/{SET}"))))


def _bent_set(rng: Random) -> bytes:
    text = rng.choice(_sets())
    kind = rng.randrange(5)
    if kind < 2:
        return bent_text(rng, text, YAML_TOKENS)
    if kind < 4:
        value = bent_value(rng, yaml.safe_load(text))
        try:
            return yaml.safe_dump(value, allow_unicode=True).encode()
        except (yaml.YAMLError, UnicodeEncodeError):
            return json_text(value).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        use = rng.choice(
            ("source: *i", "name: *i", "link: *i", "groups: {a-b: *i, c: *i}", "resolution: *i", "x: *i", "fit: *i")
        )
        head, _, groups = LISTED.partition("groups:")
        lines = [line for line in head.split("\n") if not line.startswith(use.split(":")[0])]
        kept = "" if use.startswith("groups") else f"groups:{groups}"
        return (LAUGHS + "\n".join(lines) + f"{use}\n{kept}").encode()
    return bent_bytes(rng, text.encode())


def inputs(seed: int) -> Iterator[bytes]:
    """The sound sets, then changed ones, or a changed list."""
    rng = Random(seed)
    for text in _sets():
        yield packed({SET: text.encode(), LIST: _listing(_rows())})
    while True:
        if rng.random() < 0.7:
            yield packed({SET: _bent_set(rng), LIST: _listing(_rows())})
            continue
        rows: Any = bent_value(rng, _rows())
        data = _listing(rows if isinstance(rows, list) else [rows])
        yield packed({SET: LISTED.encode(), LIST: data if rng.random() < 0.8 else bent_bytes(rng, data)})


def laid_out(folder: Path) -> None:
    """The pictures of two groups below a folder."""
    for place, seed in PICTURES.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(picture(seed))


def start(folder: Path) -> Callable[[bytes], None]:
    """A set is read, its captions are written, its pictures are listed, and some are opened."""
    from guda_core.cli import groups_check
    from guda_core.data.captions import captioner_of
    from guda_core.data.groups import load_group_set
    from guda_core.data.sources.source import open_dataset

    place = folder / "sets" / "mine"
    laid_out(place / "pictures")

    def tried(data: bytes) -> None:
        for name, content in unpacked_files(data).items():
            (place / name).write_bytes(content)
        found = load_group_set("mine", folder / "sets")
        if found.caption:
            captioner_of(found).examples()
        dataset = open_dataset(found)
        train, held = dataset.split("train"), dataset.split("held_out")
        dataset.fingerprint("train")
        groups_check.counts_table(found, train, held)
        groups_check.warnings(found, train, held, None)
        for item in [*train[:2], *held[:1]]:
            item.image(32)

    return tried


DOOR = Door("sets", inputs, start, memory_mb=300)
