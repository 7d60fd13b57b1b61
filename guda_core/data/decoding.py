"""From the bytes of a file to its decoded picture, not turned upright yet and in the file's own colours.

Accepted by content, whatever the name says: PNG, JPEG, WebP, AVIF, TIFF and, with `pillow-heif`, HEIC. The size is
checked from the header, before a pixel is decoded. A picture of more pixels than `Limits.whole` is read at half its
size, where its format allows that within the same memory. Which files are decoded in a process of their own, `apart`
says.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from guda_core.data import exif
from guda_core.data.containers import is_crowded, needed
from guda_core.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIC")
PASSED_OVER = ("PNG", "JPEG", "WEBP")  # whose needless parts may be broken
SAID = "PNG, JPEG, WebP, AVIF, TIFF and HEIC"
MIN_SIDE = 16
MAX_RATIO = 8
HALVED = ("PNG", "JPEG", "TIFF", "HEIC")  # at half their size where they are large; the others need too much memory
ROWS = 512  # of a large picture that are halved at a time
AVIF_BRANDS, HEIC_BRANDS = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NO_HEIC = (
    'HEIC pictures need one more package on this machine: pip install "guda-core[heic]". Or save the picture as JPEG.'
)

SIGNATURES = (  # how a file of a kind begins, so that a refusal can name it
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0\x10\0\0\0CR", "camera's raw"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF, which Pillow reads in this order of bytes alone
    (b"MM\0+", "big-endian BigTIFF"),
    (b"BM", "BMP"),
    (b"%!PS", "EPS"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG or another XML"),
)
UNREAD = (
    "This TIFF file holds pixels of a kind that is not read here. Save it as RGB with 8 or 16 bits for each channel."
)
RARE = ("lzma", "webp", "zstd")  # compressions of a TIFF that not every build of its library reads
PAGE, WHITE_OR_BLACK, PLANES, DNG = 254, 262, 284, 50706  # tags of a TIFF
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
    """The most that is taken. bytes: of a file. pixels: of a picture. whole: of a picture that is not halved. memory:
    bytes of a process that decodes one picture."""

    bytes: int
    pixels: int
    whole: int
    memory: int


@dataclass
class Raw:
    """A decoded picture. image: mode L, LA, RGB, RGBA or CMYK. metadata: kinds of it. turn: what makes it upright.
    profile: its ICC profile. notes: sentences of what was done."""

    image: Image.Image
    kind: str
    metadata: list[str]
    turn: Image.Transpose | None
    profile: bytes | None
    notes: list[str]


class Damaged(ImageError):
    """A file of a known kind that cannot be decoded."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"This {kind} file is damaged or cut off. Save it anew and upload that.")


def kind_of(data: bytes) -> str:
    """The file's kind by its first bytes, "" when unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(64, int.from_bytes(data[:4], "big")), 4))]
        if any(b in AVIF_BRANDS for b in brands):
            return "AVIF"
        return "HEIC" if any(b in HEIC_BRANDS for b in brands) else "video"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for magic, kind in SIGNATURES if data.startswith(magic) or start.startswith(magic)), "")


def can_read(kind: str) -> bool:
    """Whether what reads files of a kind in `FORMATS` is installed here."""
    return kind != "HEIC" or find_spec("pillow_heif") is not None


def check_kind(kind: str) -> None:
    """Raises ImageError unless files of that kind can be read here."""
    if kind not in FORMATS:
        article = "an" if kind.startswith(("SVG", "EPS")) else "a"
        seems = f"It looks like {article} {kind} file" if kind else "Its content is of no kind known here"
        raise ImageError(f"Only {SAID} pictures are accepted. {seems}.")
    if not can_read(kind):
        raise ImageError(NO_HEIC)


def raw(data: bytes, limits: Limits) -> Raw:
    """Decode a picture in this process. Where the file cannot be read as it is, it is tried without the parts that the
    picture does not need.

    Raises:
        ImageError: the picture is refused.
    """
    kind, notes = kind_of(data), []
    check_kind(kind)
    try:
        im = _loaded(data, kind, limits, notes)
    except Damaged as e:
        bare = needed(data, kind) if kind in PASSED_OVER else data
        if bare == data or is_crowded(bare, kind):
            raise
        notes.clear()
        try:
            im = _loaded(bare, kind, limits, notes)
        except ImageError:
            raise e from None
        notes.append("Parts of the file that the picture does not need are broken and were passed over.")
    frames = getattr(im, "n_frames", 1)
    if frames > 1:
        notes.append(f"Only the first of its {frames} {'pages' if kind == 'TIFF' else 'frames'} is used.")
    metadata, turn, profile = _metadata(im), _orientation(im, notes), im.info.get("icc_profile")
    depth = data[24] if kind == "PNG" else max(_bits(im), default=8)
    try:
        im = _halved(_plain(im, depth, notes), limits, notes)
    except ImageError:
        raise
    except Exception as e:  # such as a palette that is not there; the decoders see it only now
        raise Damaged(kind) from e
    return Raw(im, kind, metadata, turn, profile, notes)


def size_of(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height by the header, checked. Raises ImageError as `raw` does."""
    kind = kind_of(data)
    check_kind(kind)
    with _open(data, kind, limits) as im:
        check_size(*im.size, limits, kind)
        return im.size


def _loaded(data: bytes, kind: str, limits: Limits, notes: list[str]) -> Image.Image:
    im = _open(data, kind, limits)
    width, height = im.size
    check_size(width, height, limits, kind)
    if kind == "JPEG" and width * height > limits.whole:
        im.draft(im.mode, (-(-width // 2), -(-height // 2)))  # the decoder makes half the size by itself
        notes.append(half_said(width, height, *im.size))
    try:
        load(im, data)
    except (ImageError, MemoryError):
        raise
    except Exception as e:  # the decoders raise a dozen kinds of error for damaged files
        if kind == "TIFF" and im.info.get("compression") in RARE:
            raise ImageError(UNREAD) from e
        raise Damaged(kind) from e
    return im


def load(im: Image.Image, data: bytes) -> None:
    """Load the pixels of a picture that Pillow opened, with what it reads wrongly of TIFF and PNG put right. data: the
    file of a PNG; b"" where it is not known. Raises ImageError as `raw` does, and whatever the decoders raise."""
    if isinstance(im, TiffImageFile):
        _look_at_tags(im)
    im.load()
    if data and isinstance(im, PngImageFile):
        _see_through(im, data)


def _open(data: bytes, kind: str, limits: Limits) -> Image.Image:
    """The picture with only its header read."""
    try:
        if kind == "HEIC":
            from pillow_heif import HeifImageFile

            return HeifImageFile(io.BytesIO(data))
        return Image.open(io.BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageError(
            f"This picture is a decompression bomb: its header claims far more than {limits.pixels // 10**6} "
            "megapixels."
        ) from e
    except MemoryError:
        raise
    except Exception as e:  # as above: a damaged header can raise nearly anything
        if kind == "TIFF" and _is_unread(data):
            raise ImageError(UNREAD) from e
        raise Damaged(kind) from e


def _is_unread(data: bytes) -> bool:
    """Whether a TIFF that cannot be opened has pixels, or a compression, that Pillow's tables do not list."""
    try:
        TiffImageFile(io.BytesIO(data))
    except Exception as e:
        return isinstance(e.__cause__, KeyError)
    return False


def _look_at_tags(im: TiffImageFile) -> None:
    """Refuse a camera's raw file, whose first page is a preview. Uncompressed planes of 16 bits, which Pillow takes for
    planes of 8, are read as what they are."""
    if im.tag_v2.get(PAGE) in (1, 3, 5, 7) or DNG in im.tag_v2:
        raise ImageError("This is a camera's raw file, or its first page is only a preview. Save it as JPEG.")
    if im.tag_v2.get(PLANES) == 2 and 16 in _bits(im) and any(t.codec_name == "raw" for t in im.tile):
        if im.mode not in ("RGB", "RGBA"):
            raise ImageError(UNREAD)
        order = "B" if im.tag_v2.prefix == b"MM" else "L"
        named = [(tile, tuple(tile.args or ())) for tile in im.tile]
        im.tile = [tile._replace(args=(f"{band};16{order}", *rest)) for tile, (band, *rest) in named]


def _see_through(im: Image.Image, data: bytes) -> None:
    """Make Pillow's key of the transparent colour that of its pixels: it leaves the key as the PNG holds it, and scales
    grey values of 2 and 4 bits to 8, and colours of 16 bits by their upper bytes."""
    key, depth = im.info.get("transparency"), data[24]
    if im.mode == "L" and isinstance(key, int):
        im.info["transparency"] = key * {2: 85, 4: 17}.get(depth, 1)
    elif im.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        low = Image.open(io.BytesIO(data), formats=["PNG"])
        low.tile = [t._replace(args="RGB;16L") for t in low.tile]  # the lower bytes in place of the upper ones
        same = Image.new("L", im.size, 255)
        for i, value in enumerate(key):
            for part, byte in ((im, value >> 8), (low, value & 255)):
                same = ImageChops.darker(same, part.getchannel(i).point([255 * (v == byte) for v in range(256)]))
        im.putalpha(ImageChops.invert(same))
        del im.info["transparency"]


def check_size(width: int, height: int, limits: Limits, kind: str) -> None:
    """Raises ImageError for a picture that is too large, too small or too long."""
    what = f"This picture is {width} x {height} pixels"
    most, of = (limits.pixels, "") if kind in HALVED else (limits.whole, f" of {kind}")
    if width * height > most:
        raise ImageError(f"{what}; at most {most // 10**6} megapixels{of} are accepted. Save a smaller version.")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{what}; at least {MIN_SIDE} pixels on each side are needed.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"{what}; at most {MAX_RATIO} times as long as wide is accepted. Crop it.")


def _bits(im: Image.Image) -> tuple[int, ...]:
    """Bits of each channel, as a TIFF says."""
    return tuple(getattr(im, "tag_v2", {}).get(258, ()))


def half_said(width: int, height: int, half_width: int, half_height: int) -> str:
    """The note on a picture that was read at half its size."""
    return f"It is large, and was read as {half_width} x {half_height} of {width} x {height} pixels."


def _halved(im: Image.Image, limits: Limits, notes: list[str]) -> Image.Image:
    """The picture at half its size, where it has more pixels than are kept whole; some rows at a time."""
    width, height = im.size
    if width * height <= limits.whole:
        return im
    half = Image.new(im.mode, (-(-width // 2), -(-height // 2)))
    for top in range(0, height, ROWS):
        half.paste(im.crop((0, top, width, min(height, top + ROWS))).reduce(2), (0, top // 2))
    notes.append(half_said(width, height, *half.size))
    return half


def _metadata(im: Image.Image) -> list[str]:
    found = {name for key, name in METADATA.items() if im.info.get(key)}
    if set(getattr(im, "text", {})) - set(METADATA):
        found.add("text")
    return sorted(found)


def _orientation(im: Image.Image, notes: list[str]) -> Image.Transpose | None:
    """What turns the picture upright, None when it already is. A broken EXIF block counts as none, with a note."""
    try:
        if exif.is_heavy(block := exif.exif_of(im.info)):
            notes.append("Its EXIF data is very large and was ignored.")
            return None
        own = Image.Exif()
        if block:
            own.load(block)  # Pillow's own reading keeps quiet about a broken block the second time
        turn = UPRIGHT.get(im.getexif().get(ORIENTATION, 1))  # where EXIF says nothing, XMP is asked
        if turn is not None:
            notes.append(f"It was turned upright as its {'EXIF' if ORIENTATION in own else 'XMP'} orientation says.")
        return turn
    except Exception:  # whatever Pillow trips over in there, the picture itself is sound
        notes.append("Its EXIF data is broken and was ignored.")
        return None


def grey_16(im: Image.Image) -> np.ndarray:
    """The values of a picture of mode I;16, 0 black and 65535 white: Pillow leaves those of a TIFF as they are, of 12
    bits too, and where 0 is white."""
    values = np.asarray(im)
    if isinstance(im, TiffImageFile):
        values = values << (16 - max(_bits(im)))
        values = 65535 - values if im.tag_v2.get(WHITE_OR_BLACK) == 0 else values
    return values


def _plain(im: Image.Image, depth: int, notes: list[str]) -> Image.Image:
    """As mode L, RGB or CMYK, or LA or RGBA when anything is transparent. depth: bits of a channel in the file."""
    if im.mode in ("I", "F"):
        raise ImageError(UNREAD)
    if depth > 8:
        notes.append(f"{depth}-bit values were scaled to 8 bits.")
    if im.mode.startswith("I"):  # 16-bit grey; Pillow scales 16-bit colours by itself, with the same upper byte
        values = grey_16(im)
        grey, clear = Image.fromarray((values >> 8).astype(np.uint8)), im.info.get("transparency")
        if clear is None:
            return grey
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255)))))
    if im.mode == "CMYK":
        return im
    if im.mode in ("P", "PA"):
        notes.append("Its colour palette was converted to RGB.")
    mode = "L" if im.mode in ("1", "L", "LA") else "RGB"
    mode += "A" if im.has_transparency_data else ""
    return im if im.mode == mode else im.convert(mode)  # a copy would double a large picture
