"""Pictures of every group on one sheet, cut or padded as the model will see them; held-out ones have a frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guda_core.data.dataset import Item
from guda_core.errors import DataError
from guda_core.records import GroupSet

SIDE, GAP, LINE, FRAME = 128, 8, 22, 4  # pixels: of a picture, between pictures, of a line of text, of a frame
TRAINED, HELD = 6, 2  # pictures of a group
INK, HELD_OUT = (40, 40, 40), (194, 96, 12)


def _spread(items: Sequence[Item], n: int) -> list[Item]:
    """n of the items, evenly from first to last."""
    at = np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)
    return [items[i] for i in at]


def _small(item: Item, resolution: int) -> Image.Image:
    """The picture in a square of SIDE pixels; one that the model sees in another shape keeps it."""
    if item.whole is None:
        return Image.fromarray(item.image(SIDE))
    seen = Image.fromarray(item.seen(resolution))
    scale = SIDE / max(seen.size)
    return seen.resize((round(seen.width * scale), round(seen.height * scale)), Image.Resampling.LANCZOS)


def contact_sheet(group_set: GroupSet, train: Sequence[Item], held_out: Sequence[Item]) -> Image.Image:
    """The sheet, RGB: a row for each group, six pictures of its training and two held-out ones.

    Raises:
        DataError: a picture cannot be read.
    """
    width, row = GAP + (TRAINED + HELD) * (SIDE + GAP), LINE + SIDE + GAP
    sheet = Image.new("RGB", (width, GAP + LINE + row * len(group_set.groups)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    pen.text((GAP, GAP), f"{group_set.id}: orange frame = held out", fill=INK, font=font)
    for i, gid in enumerate(group_set.groups):
        top = GAP + LINE + i * row
        own, held = [t for t in train if t.group == gid], [h for h in held_out if h.group == gid]
        pen.text((GAP, top), f"{gid}: {len(own):,} trained on, {len(held):,} held out", fill=INK, font=font)
        shown = [(item, False) for item in _spread(own, TRAINED)] + [(item, True) for item in _spread(held, HELD)]
        for j, (item, framed) in enumerate(shown):
            left = GAP + j * (SIDE + GAP)
            sheet.paste(_small(item, group_set.resolution), (left, top + LINE))
            if framed:
                box = (left, top + LINE, left + SIDE - 1, top + LINE + SIDE - 1)
                pen.rectangle(box, outline=HELD_OUT, width=FRAME)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet as PNG. Raises DataError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as e:
        raise DataError(f"The contact sheet cannot be written to {path}: {e.strerror or e}.") from e
