"""The one door for pictures from outside.

A picture is accepted by its content, never by its name: PNG, JPEG, WebP, AVIF, TIFF or HEIC, at most 25 MB, at most 50
megapixels (WebP and AVIF: 24), at least 16 pixels on each side and at most 8:1 (`decoding`). What comes out is a square
of `size` pixels and a sentence for everything that was done to it. It is made square as the training pictures were:
fitted into a white square ("pad"), or cut to its middle ("crop"). Or it keeps its shape, and gets the nearest of a few
sizes with as many pixels ("bucket", `diffusion.sizes`). Colours are those that a viewer shows (`colour`).
Parts of the file that the picture does not need cannot refuse it (`containers`). Marks in it such as "made by AI" or
"not for training AI" are told among the sentences (`marks`). Large pictures and rarer formats are decoded in a process
of their own (`apart`). The same bytes always give the same pixels. The user's own training pictures may be larger files
(`OWN`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from guda_core.data.apart import decoded
from guda_core.data.colour import Coloured, by_boxes, by_png, by_profile
from guda_core.data.decoding import Limits, Raw
from guda_core.data.marks import marks_of
from guda_core.diffusion.sizes import Size, nearest
from guda_core.errors import ImageError, UnreadError

MAX_BYTES = 25_000_000
MAX_PIXELS = 50_000_000

Fit = Literal["pad", "crop", "bucket"]
Square = Literal["pad", "crop"]

UPLOADS = Limits(MAX_BYTES, MAX_PIXELS, 24_000_000, 1_000_000_000)  # from strangers
OWN = Limits(200_000_000, 89_000_000, 89_000_000, 3_000_000_000)  # the user's own; Pillow warns of more pixels


class FromMemory(bytes):
    """A file that was made of a picture in memory: `Limits.bytes` is no bound of it, as nobody sent it."""


@dataclass(frozen=True)
class Prepared:
    """A picture made ready.

    pixels: (size, size, 3) uint8, or of another shape by "bucket"; RGB, what was transparent on white. file_hash:
    SHA-256 of the bytes read. image_hash: that of the pixels.
    preparation: sentences that say what was done, in order.
    """

    pixels: np.ndarray
    file_hash: str
    image_hash: str
    preparation: tuple[str, ...]


def hash_pixels(pixels: np.ndarray) -> str:
    """SHA-256 of the bytes of (H, W, 3) uint8 pixels, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def hash_picture(data: bytes, limits: Limits = OWN) -> str:
    """SHA-256 of a picture's shape and pixels at its own size: the same for two files that show the same.

    Raises:
        ImageError: the picture is refused.
    """
    im, _ = _upright(data, limits, [])
    if im.mode == "RGBA":
        im = Image.alpha_composite(Image.new("RGBA", im.size, "white"), im).convert("RGB")
    return hashlib.sha256(f"{im.size}".encode() + im.tobytes()).hexdigest()


def read_file(path: Path, limits: Limits = UPLOADS) -> bytes:
    """The bytes of a picture's file; no more than the door takes are read.

    Raises:
        UnreadError: there is no such file, or it cannot be read. ImageError: it is too large.
    """
    try:
        if not path.is_file():
            raise UnreadError("There is no such picture. Choose a file that is there.")
        with path.open("rb") as f:
            data = f.read(limits.bytes + 1)
    except (OSError, ValueError) as e:
        raise UnreadError("This file could not be read. See that it is there, and that you may read it.") from e
    _check_bytes(data, limits)
    return data


def read_picture(data: bytes, *, size: int, fit: Fit = "pad", limits: Limits = UPLOADS) -> Prepared:
    """Read, check and prepare the bytes of one picture from outside as (size, size, 3) uint8.

    fit: how a picture that is not square becomes one: "pad" puts it on a white square, "crop" keeps its middle. By
    "bucket" it keeps its shape: (h, w, 3), the one of the sizes of the resolution `size` that is nearest in shape.

    Raises:
        ImageError: the picture is refused; the message says why and what would be accepted.
    """
    notes: list[str] = []
    im, metadata = _upright(data, limits, notes)
    if fit == "bucket":
        pixels = _fit_into(im, nearest(*im.size, size), notes)
    else:
        pixels = _fit_on_white(_middle(im, notes) if fit == "crop" else im, size, notes)
    if metadata:
        notes.append(f"Metadata was left out ({', '.join(metadata)}).")
    notes += marks_of(data).said
    return Prepared(pixels, hashlib.sha256(data).hexdigest(), hash_pixels(pixels), tuple(notes))


def _upright(data: bytes, limits: Limits, notes: list[str]) -> tuple[Image.Image, list[str]]:
    """The checked picture, upright, in sRGB, RGB or RGBA; and the kinds of its metadata."""
    _check_bytes(data, limits)
    found = decoded(data, limits)
    notes.extend(found.notes)
    im = _coloured(found, data, notes)
    if found.turn is not None:
        im = im.transpose(found.turn)
    return im, found.metadata


def _check_bytes(data: bytes, limits: Limits) -> None:
    if not data:
        raise ImageError("This file is empty (0 bytes). The copy or upload may have been cut off; try again.")
    if len(data) > limits.bytes and not isinstance(data, FromMemory):
        most = limits.bytes // 10**6
        raise ImageError(f"This file is larger than {most} MB. Save a smaller version.")


def _coloured(found: Raw, data: bytes, notes: list[str]) -> Image.Image:
    """As sRGB, mode RGB or RGBA. data: the file's bytes."""
    im = found.image
    if found.kind == "PNG":
        done = by_png(im, data)
    elif found.profile:
        done = by_profile(im, found.profile)
    else:
        done = by_boxes(im, data) if found.kind in ("AVIF", "HEIC") else Coloured(im)
    notes.extend(done.notes)
    if im.mode == "CMYK" and done.image.mode == "CMYK":
        notes.append("CMYK colours were converted to RGB.")
    return done.image.convert("RGBA" if done.image.mode in ("LA", "RGBA") else "RGB")


def _middle(im: Image.Image, notes: list[str]) -> Image.Image:
    """The largest square in the middle of a picture."""
    (width, height), side = im.size, min(im.size)
    if width == height:
        return im
    left, top = (width - side) // 2, (height - side) // 2
    notes.append(
        f"Only its middle, {side} x {side} of {width} x {height} pixels, is used, as of the training pictures."
    )
    return im.crop((left, top, left + side, top + side))


def shaped(im: Image.Image, size: Size) -> Image.Image:
    """The middle of a picture that has the size's shape, as large as there is, resized to that size."""
    (width, height), (w, h) = im.size, size
    scale = min(width / w, height / h)
    across, down = min(width, round(w * scale)), min(height, round(h * scale))
    left, top = (width - across) // 2, (height - down) // 2
    cut = im.crop((left, top, left + across, top + down))
    return cut.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _fit_into(im: Image.Image, size: Size, notes: list[str]) -> np.ndarray:
    """RGB or RGBA of any shape -> (h, w, 3) uint8, on white; size: (w, h)."""
    (width, height), (w, h) = im.size, size
    lost = 1 - min(width * h / (height * w), height * w / (width * h))
    if lost >= 0.005:
        sides = "left and right" if width * h > height * w else "top and bottom"
        notes.append(f"Its {sides} edges were cut off, {lost:.0%} of it, to the nearest shape that the model is shown.")
    if im.size != size:
        notes.append(f"It was resized from {width} x {height} to {w} x {h} pixels.")
    canvas = Image.new("RGB", size, "white")
    _put(canvas, im, shaped(im, size), (0, 0), notes)
    return np.array(canvas)


def _put(canvas: Image.Image, im: Image.Image, small: Image.Image, corner: tuple[int, int], notes: list[str]) -> None:
    """Put a resized picture on the canvas. im: the picture before."""
    if im.mode == "RGBA":
        if np.asarray(im.getchannel("A")).min() < 255:
            notes.append("Its transparent parts were put on white.")
        canvas.paste(small, corner, mask=small.getchannel("A"))
    else:
        canvas.paste(small, corner)


def _fit_on_white(im: Image.Image, size: int, notes: list[str]) -> np.ndarray:
    """RGB or RGBA of any shape -> (size, size, 3) uint8: resized to fit, centred, on white."""
    width, height = im.size
    scale = size / max(width, height)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = im.resize(fitted, Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas = Image.new("RGB", (size, size), "white")
    _put(canvas, im, small, ((size - fitted[0]) // 2, (size - fitted[1]) // 2), notes)
    if fitted != im.size:
        notes.append(f"It was resized from {width} x {height} to {fitted[0]} x {fitted[1]} pixels.")
    if fitted[0] != fitted[1]:
        notes.append("It is not square, so it was centred on a white square.")
    return np.array(canvas)
