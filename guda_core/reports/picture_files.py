"""Strips and maps as PNG files without any words, as optional members of a report's zip. (`figures.sheets` has words.)

    without.png   the reference, then the picture without each group, side by side, in the order of the record
    where.png     the maps of some groups over the picture, side by side, in the order of the record

Orange: the model explains this place worse without the group. Blue: better. No colour: the map says nothing here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from guda_core.data.containers import is_crowded, png_chunks
from guda_core.diffusion.sizes import LONGEST
from guda_core.errors import ReportError
from guda_core.picture_records import Near, PlaceMap, Shown, Strip, Tile

WITHOUT, WHERE = "without.png", "where.png"
NEEDED, HINDERED = (234, 88, 12), (37, 99, 235)  # RGB of places with a drop above and below 0
STRONGEST = 0.8  # opacity of the strongest place
SIDE = 192  # pixels of an overlay, at least
MOST = 50_000_000  # pixels of a sheet that is read
CHUNKS = {b"IHDR", b"IDAT", b"IEND"}  # of a PNG that `png` makes


def overlay(pixels: np.ndarray, m: PlaceMap) -> np.ndarray:
    """The map over the picture, greyed, uint8: colour where a place is above the noise, by its strength.

    pixels: (H, W, 3) uint8. H and W are multiplied by a whole number, so that H is at least `SIDE`.
    """
    times = max(1, -(-SIDE // pixels.shape[0]))
    size = (pixels.shape[1] * times, pixels.shape[0] * times)
    back = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).convert("L").convert("RGB")
    strength = np.abs(m.smooth) / max(float(np.abs(m.smooth).max()), 1e-12) * m.clear
    opacity = Image.fromarray((255 * STRONGEST * strength).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    sign = Image.fromarray(((m.smooth > 0) * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    colour = Image.composite(Image.new("RGB", size, NEEDED), Image.new("RGB", size, HINDERED), sign)
    return np.asarray(Image.composite(colour, back, opacity))


def tile(pixels: np.ndarray, m: PlaceMap) -> Tile:
    """A map as it is shown."""
    return Tile(m.group, overlay(pixels, m), m.share, float(m.drop.sum()), m.strongest)


def shown(pixels: np.ndarray, strip: Strip | None, order: Sequence[str], found: Mapping[str, PlaceMap]) -> Shown:
    """Strip and maps of one picture as they are shown. order: group ids, first first; found: group id -> map."""
    at = [found[g] for g in order if g in found]
    tiles = tuple(tile(pixels, m) for m in at)
    return Shown(strip, tiles, at[0].draws, at[0].width) if at else Shown(strip)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG without metadata."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def pixels_of(data: bytes, most: int = MOST) -> np.ndarray:
    """(H, W, 3) uint8 of a PNG as `png` makes it, of so many pixels at most. Any viewer shows just these: nothing is
    transparent, turned, coloured otherwise or moving.

    Raises:
        ValueError: it is another kind of PNG. What else Pillow raises: it is damaged.
    """
    if is_crowded(data, "PNG") or {name for name, *_ in png_chunks(data)} - CHUNKS:
        raise ValueError("more than pixels")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode != "RGB" or image.width * image.height > most:
            raise ValueError(f"{image.mode}, {image.width} by {image.height} pixels")
        return np.array(image)


def files(shown: Shown) -> dict[str, bytes]:
    """Name -> PNG of what there is."""
    out = {}
    s = shown.strip
    if s is not None and s.pictures:
        out[WITHOUT] = png(np.hstack([s.reference, *(s.pictures[g] for g in s.ranked())]))
    if shown.where:
        out[WHERE] = png(np.hstack([t.overlay for t in shown.where]))
    return out


def record(shown: Shown) -> dict[str, Any]:
    """What the record says of the files, by part: "without", "where"; and "near"."""
    out: dict[str, Any] = {}
    s = shown.strip
    if s is not None and s.pictures:
        groups = [{"group": g, "distance": s.distances[g]} for g in s.ranked()]
        out["without"] = {"method": s.method, "level": s.level, "pictures": groups}
    if shown.where:
        tiles = [{"group": t.group, "share": t.share, "drop": t.drop, "strongest": t.strongest} for t in shown.where]
        out["where"] = {"draws": shown.draws, "width": shown.width, "maps": tiles}
    if shown.near:  # without the pictures, which are their authors'
        out["near"] = [{"group": n.group, "name": n.name, "cosine": n.cosine} for n in shown.near]
    return out


def restored(told: Mapping[str, Any], found: Mapping[str, bytes]) -> Shown:
    """The pictures of a report that was read. told: its record's part; found: its files.

    Raises:
        ReportError: a file does not hold as many pictures as the record says.
    """
    strip, where, draws, width = None, (), 0, 0.0
    if "without" in told and WITHOUT in found:
        part = told["without"]
        first, *others = _split(found[WITHOUT], 1 + len(part["pictures"]), WITHOUT)
        ids = [p["group"] for p in part["pictures"]]
        distances = {p["group"]: float(p["distance"]) for p in part["pictures"]}
        strip = Strip(part["method"], first, dict(zip(ids, others, strict=True)), distances, part["level"])
    if "where" in told and WHERE in found:
        part = told["where"]
        each = _split(found[WHERE], len(part["maps"]), WHERE)
        where = tuple(
            Tile(t["group"], p, t["share"], t["drop"], t.get("strongest", 0.0))
            for t, p in zip(part["maps"], each, strict=True)
        )
        draws, width = part["draws"], part["width"]
    near = tuple(Near(n["group"], n["cosine"], n["name"]) for n in told.get("near", ()))
    return Shown(strip, where, draws, width, near)


def _split(data: bytes, n: int, name: str) -> Sequence[np.ndarray]:
    """The pictures of one size side by side in a PNG."""
    try:
        sheet = pixels_of(data)
        height, width = sheet.shape[:2]
        wide = width / max(1, n * height)  # of one of them; a shape beyond is none that a model saw
        if n < 1 or width % n or not 1 / LONGEST <= wide <= LONGEST:
            raise ValueError(f"{width} by {height} pixels are not {n} pictures")
    except Exception as e:  # Pillow raises a dozen kinds of error for damaged files
        raise ReportError(f"{name} does not hold the pictures that the report names. It was altered or damaged.") from e
    return np.split(sheet, n, axis=1)
