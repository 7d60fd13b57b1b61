"""The one door for pictures from outside.

A picture is accepted by its content, never by its name: PNG, JPEG or WebP, at most 10 MB, at most 24 megapixels, at
least 16 pixels on each side and at most 8:1. Its size is checked from the header, before a pixel is decoded. What comes
out is a square of `size` pixels and a sentence for everything that was done to it. It is made square as the training
pictures were: fitted into a white square ("pad"), or cut to its middle ("crop"). Colours are those that a viewer shows
(`colour`). Parts of the file that the picture does not need cannot refuse it (`containers`). The same bytes always give
the same pixels. The user's own training pictures may be larger files (`OWN`).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from guda_core.data.colour import Coloured, by_png, by_profile
from guda_core.data.containers import needed
from guda_core.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 10_000_000
MAX_PIXELS = 24_000_000
MIN_SIDE = 16
MAX_RATIO = 8

Fit = Literal["pad", "crop"]

SIGNATURES = (  # how a file of a kind begins, so that a refusal can name it
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"%!PS", "EPS"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG or another XML"),
)
ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
METADATA = {
    "exif": "EXIF",
    "xmp": "XMP",
    "XML:com.adobe.xmp": "XMP",
    "photoshop": "Photoshop data",
    "comment": "comment",
}


@dataclass(frozen=True)
class Limits:
    """The most that is taken. bytes: of a file. pixels: of a picture."""

    bytes: int
    pixels: int


UPLOADS = Limits(MAX_BYTES, MAX_PIXELS)  # from strangers
OWN = Limits(200_000_000, 89_000_000)  # the user's own; Pillow warns of more pixels


@dataclass(frozen=True)
class Prepared:
    """A picture made ready.

    pixels: (size, size, 3) uint8, RGB, what was transparent on white. file_hash: SHA-256 of the bytes
    read. image_hash: that of the pixels.
    preparation: sentences that say what was done, in order.
    """

    pixels: np.ndarray
    file_hash: str
    image_hash: str
    preparation: tuple[str, ...]


class _Damaged(ImageError):
    """A file of a known kind that cannot be decoded."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"This {kind} file is damaged or cut off. Save it anew and upload that.")


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
        ImageError: there is no such file, it cannot be read, or it is too large.
    """
    try:
        if not path.is_file():
            raise ImageError("There is no such picture. Choose a file on your own device and upload it.")
        with path.open("rb") as f:
            data = f.read(limits.bytes + 1)
    except (OSError, ValueError) as e:
        raise ImageError("This file could not be read. Upload it again.") from e
    _check_bytes(data, limits)
    return data


def read_picture(data: bytes, *, size: int, fit: Fit = "pad", limits: Limits = UPLOADS) -> Prepared:
    """Read, check and prepare the bytes of one picture from outside as (size, size, 3) uint8.

    fit: how a picture that is not square becomes one: "pad" puts it on a white square, "crop" keeps its middle.

    Raises:
        ImageError: the picture is refused; the message says why and what would be accepted.
    """
    notes: list[str] = []
    im, metadata = _upright(data, limits, notes)
    pixels = _fit_on_white(_middle(im, notes) if fit == "crop" else im, size, notes)
    if metadata:
        notes.append(f"Metadata was left out ({', '.join(metadata)}).")
    return Prepared(pixels, hashlib.sha256(data).hexdigest(), hash_pixels(pixels), tuple(notes))


def _upright(data: bytes, limits: Limits, notes: list[str]) -> tuple[Image.Image, list[str]]:
    """The checked picture, upright, in sRGB, RGB or RGBA; and the kinds of its metadata."""
    _check_bytes(data, limits)
    im, kind = _decoded(data, limits, notes)
    metadata = _metadata(im)
    turn = _orientation(im, notes)
    profile = im.info.get("icc_profile")
    try:
        im = _plain(im, deep=kind == "PNG" and data[24] == 16, notes=notes)
    except Exception as e:  # such as a palette that is not there; the decoders see it only now
        raise _Damaged(kind) from e
    im = _coloured(im, data if kind == "PNG" else None, profile, notes)
    if turn is not None:
        im = im.transpose(turn)
        notes.append("It was turned upright as its EXIF orientation says.")
    return im, metadata


def _check_bytes(data: bytes, limits: Limits) -> None:
    if not data:
        raise ImageError("This file is empty (0 bytes). The upload may have been cut off; try again.")
    if len(data) > limits.bytes:
        most = limits.bytes // 10**6
        raise ImageError(f"This file is larger than {most} MB. Save a smaller version and upload that.")


def _decoded(data: bytes, limits: Limits, notes: list[str]) -> tuple[Image.Image, str]:
    """The picture with its pixels decoded, and its kind. Where the file cannot be read as it is, it is tried without
    the parts that the picture does not need."""
    kind = _kind(data)
    try:
        im = _loaded(data, kind, limits)
    except _Damaged as e:
        bare = needed(data, kind)
        if bare == data:
            raise
        try:
            im = _loaded(bare, kind, limits)
        except ImageError:
            raise e from None
        notes.append("Parts of the file that the picture does not need are broken and were passed over.")
    frames = getattr(im, "n_frames", 1)
    if frames > 1:
        notes.append(f"Only the first of its {frames} frames is used.")
    return im, kind


def _loaded(data: bytes, kind: str, limits: Limits) -> Image.Image:
    im = _open(data, kind, limits)
    _check_size(*im.size, limits)
    try:
        im.load()
    except Exception as e:  # the decoders raise a dozen kinds of error for damaged files
        raise _Damaged(kind) from e
    return im


def _kind(data: bytes) -> str:
    """The file's kind by its first bytes, "" when unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or video"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for magic, kind in SIGNATURES if data.startswith(magic) or start.startswith(magic)), "")


def _open(data: bytes, kind: str, limits: Limits) -> Image.Image:
    """The picture with only its header read."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageError(
            f"This picture is a decompression bomb: its header claims far more than {limits.pixels // 10**6} "
            "megapixels."
        ) from e
    except Exception as e:  # as above: a damaged header can raise nearly anything
        if kind in FORMATS:
            raise _Damaged(kind) from e
        seems = f"It looks like a {kind} file" if kind else "Its content is of no kind known here"
        raise ImageError(f"Only PNG, JPEG and WebP pictures are accepted. {seems}, whatever its name says.") from e


def _check_size(width: int, height: int, limits: Limits) -> None:
    what = f"This picture is {width} x {height} pixels"
    if width * height > limits.pixels:
        raise ImageError(f"{what}; at most {limits.pixels // 10**6} megapixels are accepted. Save a smaller version.")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{what}; at least {MIN_SIDE} pixels on each side are needed.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"{what}; at most {MAX_RATIO} times as long as wide is accepted. Crop it.")


def _metadata(im: Image.Image) -> list[str]:
    found = {name for key, name in METADATA.items() if im.info.get(key)}
    if set(getattr(im, "text", {})) - set(METADATA):
        found.add("text")
    return sorted(found)


def _orientation(im: Image.Image, notes: list[str]) -> Image.Transpose | None:
    """What turns the picture upright, None when it already is. A broken EXIF block counts as none, with a note."""
    try:
        if "exif" in im.info:
            Image.Exif().load(im.info["exif"])  # Pillow's own reading keeps quiet about a broken block the second time
        return UPRIGHT.get(im.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever Pillow trips over in there, the picture itself is sound
        notes.append("Its EXIF data is broken and was ignored.")
        return None


def _plain(im: Image.Image, *, deep: bool, notes: list[str]) -> Image.Image:
    """As mode L, RGB or CMYK, or LA or RGBA when anything is transparent. deep: the file holds 16-bit values."""
    if deep:
        notes.append("16-bit values were scaled to 8 bits.")
    if im.mode.startswith("I"):  # 16-bit grey; Pillow scales 16-bit colours by itself, with the same upper byte
        values = np.asarray(im)
        grey, clear = Image.fromarray((values >> 8).astype(np.uint8)), im.info.get("transparency")
        if clear is None:
            return grey
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255)))))
    if im.mode == "CMYK":
        return im
    if im.mode in ("P", "PA"):
        notes.append("Its colour palette was converted to RGB.")
    grey = im.mode in ("1", "L", "LA")
    if im.has_transparency_data:
        return im.convert("LA" if grey else "RGBA")
    return im.convert("L" if grey else "RGB")


def _coloured(im: Image.Image, png: bytes | None, profile: bytes | None, notes: list[str]) -> Image.Image:
    """As sRGB, mode RGB or RGBA. png: the file's bytes, of a PNG. profile: an ICC profile, of other files."""
    done = by_png(im, png) if png is not None else by_profile(im, profile) if profile else Coloured(im)
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


def _fit_on_white(im: Image.Image, size: int, notes: list[str]) -> np.ndarray:
    """RGB or RGBA of any shape -> (size, size, 3) uint8: resized to fit, centred, on white."""
    width, height = im.size
    scale = size / max(width, height)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = im.resize(fitted, Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas = Image.new("RGB", (size, size), "white")
    corner = ((size - fitted[0]) // 2, (size - fitted[1]) // 2)
    if im.mode == "RGBA":
        if np.asarray(im.getchannel("A")).min() < 255:
            notes.append("Its transparent parts were put on white.")
        canvas.paste(small, corner, mask=small.getchannel("A"))
    else:
        canvas.paste(small, corner)
    if fitted != im.size:
        notes.append(f"It was resized from {width} x {height} to {fitted[0]} x {fitted[1]} pixels.")
    if fitted[0] != fitted[1]:
        notes.append("It is not square, so it was centred on a white square.")
    return np.array(canvas)
