"""The one door for what visitors bring: pictures, prompts and the options of a generation.

A picture is accepted by its content, never by its name: PNG, JPEG or WebP, at most 10 MB, at most 24 megapixels, at
least 16 pixels on each side and at most 8:1. Its size is checked from the header, before a pixel is decoded. What comes
out is a white square of `size` pixels with the picture fitted into its middle, because the training pictures are drawn
on white, and a sentence for everything that was done to it. The same bytes always give the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from guda_core.errors import ImageError, OptionError, PromptError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 10_000_000
MAX_PIXELS = 24_000_000
MIN_SIDE = 16
MAX_RATIO = 8
MAX_PROMPT = 300  # characters
SEEDS, STEPS, GUIDANCE = (0, 2**32 - 1), (1, 200), (1.0, 20.0)

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
    "icc_profile": "colour profile",
    "xmp": "XMP",
    "XML:com.adobe.xmp": "XMP",
    "photoshop": "Photoshop data",
    "comment": "comment",
}


@dataclass(frozen=True)
class Prepared:
    """A picture made ready.

    pixels: (size, size, 3) uint8, RGB on white. file_hash: SHA-256 of the bytes read. image_hash: that of the pixels.
    preparation: sentences that say what was done, in order.
    """

    pixels: np.ndarray
    file_hash: str
    image_hash: str
    preparation: tuple[str, ...]


def hash_pixels(pixels: np.ndarray) -> str:
    """SHA-256 of the bytes of (H, W, 3) uint8 pixels, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def read_picture(path: Path, *, size: int) -> Prepared:
    """Read, check and prepare one picture from outside as (size, size, 3) uint8.

    Raises:
        ImageError: the picture is refused; the message says why and what would be accepted.
    """
    data = _read_bytes(path)
    im = _open(data)
    _check_size(*im.size)
    notes: list[str] = []
    frames = getattr(im, "n_frames", 1)
    if frames > 1:
        notes.append(f"Only the first of its {frames} frames is used.")
    try:
        im.load()
    except Exception as e:  # the decoders raise a dozen kinds of error for damaged files
        raise _damaged(_kind(data)) from e
    metadata = _metadata(im)
    turn = _orientation(im, notes)
    im = _to_rgb(im, deep=_kind(data) == "PNG" and data[24] == 16, notes=notes)
    if turn is not None:
        im = im.transpose(turn)
        notes.append("It was turned upright as its EXIF orientation says.")
    pixels = _fit_on_white(im, size, notes)
    if metadata:
        notes.append(f"Metadata was left out ({', '.join(metadata)}).")
    return Prepared(pixels, hashlib.sha256(data).hexdigest(), hash_pixels(pixels), tuple(notes))


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError("There is no such picture. Choose a file on your own device and upload it.")
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise ImageError("This file could not be read. Upload it again.") from e
    if not data:
        raise ImageError("This file is empty (0 bytes). The upload may have been cut off; try again.")
    if len(data) > MAX_BYTES:
        raise ImageError(f"This file is larger than {MAX_BYTES // 10**6} MB. Save a smaller version and upload that.")
    return data


def _kind(data: bytes) -> str:
    """The file's kind by its first bytes, "" when unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or video"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for magic, kind in SIGNATURES if data.startswith(magic) or start.startswith(magic)), "")


def _open(data: bytes) -> Image.Image:
    """The picture with only its header read."""
    kind = _kind(data)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageError(
            f"This picture is a decompression bomb: its header claims far more than {MAX_PIXELS // 10**6} megapixels."
        ) from e
    except Exception as e:  # as above: a damaged header can raise nearly anything
        if kind in FORMATS:
            raise _damaged(kind) from e
        seems = f"It looks like a {kind} file" if kind else "Its content is of no kind known here"
        raise ImageError(f"Only PNG, JPEG and WebP pictures are accepted. {seems}, whatever its name says.") from e


def _damaged(kind: str) -> ImageError:
    return ImageError(f"This {kind} file is damaged or cut off. Save it anew and upload that.")


def _check_size(width: int, height: int) -> None:
    what = f"This picture is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageError(f"{what}; at most {MAX_PIXELS // 10**6} megapixels are accepted. Save a smaller version.")
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


def _to_rgb(im: Image.Image, *, deep: bool, notes: list[str]) -> Image.Image:
    """As mode RGB, or RGBA when anything is transparent. deep: the file holds 16-bit values."""
    if deep:
        notes.append("16-bit values were scaled to 8 bits.")
    if im.mode.startswith("I"):  # 16-bit grey; Pillow scales 16-bit colours by itself, with the same upper byte
        values = np.asarray(im)
        grey, clear = Image.fromarray((values >> 8).astype(np.uint8)), im.info.get("transparency")
        if clear is None:
            return grey.convert("RGB")
        im = Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255)))))
    if im.mode == "CMYK":
        notes.append("CMYK colours were converted to RGB.")
    if im.mode in ("P", "PA"):
        notes.append("Its colour palette was converted to RGB.")
    return im.convert("RGBA" if im.has_transparency_data else "RGB")


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


def check_prompt(prompt: str) -> str:
    """The prompt with white space (newlines and tabs too) reduced to single spaces; "" is allowed.

    Raises:
        PromptError: it is not text, longer than 300 characters, or holds NUL, control or half (surrogate) characters.
    """
    if not isinstance(prompt, str):
        raise PromptError("The prompt must be text.")
    if len(prompt.strip()) > MAX_PROMPT:
        raise PromptError(
            f"The prompt has {len(prompt.strip())} characters; at most {MAX_PROMPT} are accepted. Shorten it."
        )
    for c in prompt:
        if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n":
            raise PromptError(f"The prompt holds the control character U+{ord(c):04X}. Type it in again without it.")
    return " ".join(prompt.split())


def check_options(*, seed: int, steps: int, guidance: float) -> None:
    """Check the options of a generation: seed 0 .. 2^32-1 and steps 1 .. 200 whole, guidance 1 .. 20.

    Raises:
        OptionError: one is out of its range, not a number, or not whole where it must be.
    """
    for name, value, (low, high) in (("seed", seed, SEEDS), ("number of steps", steps, STEPS)):
        if type(value) is not int or not low <= value <= high:
            raise OptionError(f"The {name} must be a whole number from {low} to {high}.")
    low, high = GUIDANCE
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not low <= guidance <= high:  # NaN is not
        raise OptionError(f"The guidance must be a number from {low:g} to {high:g}.")
