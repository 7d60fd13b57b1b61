"""What bad uploads are told and what is done to odd ones; the fixtures are made here."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guda_core.data.images import hash_pixels, read_file, read_picture
from guda_core.errors import ImageError
from guda_core.given import picture_bytes

SIZE = 64
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
EXACT = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}  # options that keep colours
NOISE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def encoded(im: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def halves(width: int = SIZE, height: int = SIZE) -> Image.Image:
    """Left half red, right half blue."""
    im = Image.new("RGB", (width, height), RED)
    im.paste(BLUE, (width // 2, 0, width, height))
    return im


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_16(rows: np.ndarray, colour: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG. rows: (H, W) grey (colour 0), (H, W, 3) RGB (2), (H, W, 2) grey and opacity (4), or RGBA (6)."""
    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, colour, 0, 0, 0)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )


def png_claiming(width: int, height: int) -> bytes:
    """A small file that claims to be of any size, with a body that unpacks to 30 MB of zeros."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(30_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_claiming(width: int, height: int) -> bytes:
    """A lossless WebP whose headers claim any size up to 16383 x 16383."""
    data = bytearray(encoded(halves(), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9  # after the name, the length and the signature byte
    old = struct.unpack_from("<I", data, at)[0]
    struct.pack_into("<I", data, at, (old & ~0xFFFFFFF) | (width - 1) | ((height - 1) << 14))
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(halves(), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.fixture
def read() -> Callable:
    return lambda data: read_picture(data, size=SIZE)


BAD = {
    "empty": (b"", "empty"),
    "random bytes": (np.random.default_rng(1).bytes(5000), "Only PNG, JPEG, WebP, AVIF, TIFF and HEIC"),
    "text": (b"just words", "no kind known"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', "looks like an SVG"),
    "svg with a preamble": (b'\xef\xbb\xbf\n<?xml version="1.0"?><svg/>', "looks like an SVG"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "looks like an EPS"),
    "gif": (encoded(halves(), "GIF"), r"looks like a GIF file\.$"),
    "bmp": (encoded(halves(), "BMP"), "looks like a BMP"),
    "ico": (encoded(halves(), "ICO"), "Only PNG, JPEG, WebP, AVIF, TIFF and HEIC"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(200), "video"),
    "larger than 25 MB": (encoded(halves()) + bytes(25_000_000), "larger than 25 MB"),
    "51 megapixels": (png_claiming(7200, 7100), "50 megapixels"),
    "a bomb that Pillow warns of": (png_claiming(10_000, 10_000), "50 megapixels"),
    "a bomb that Pillow refuses": (png_claiming(60_000, 60_000), "50 megapixels"),
    "a WebP bomb": (webp_claiming(16_383, 16_383), "50 megapixels"),
    "a JPEG bomb": (jpeg_claiming(65_000, 65_000), "50 megapixels"),
    "15 pixels high": (encoded(halves(64, 15)), "at least 16 pixels"),
    "1 pixel": (encoded(Image.new("RGB", (1, 1))), "at least 16 pixels"),
    "longer than 8:1": (encoded(halves(16 * 8 + 1, 16)), "at most 8 times"),
    "higher than 1:8": (encoded(halves(16, 16 * 8 + 1)), "at most 8 times"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_by_content_with_a_sentence_before_anything_is_decoded(case, read, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    data, words = BAD[case]
    with pytest.raises(ImageError, match=words) as e:
        read(data)
    assert str(e.value).endswith(".")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind, part, read):
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(ImageError, match="damaged or cut off"):
        read(data[: max(12, int(len(data) * part))])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_scribbled_files_give_a_picture_or_a_sentence(kind, read):
    data = np.frombuffer(encoded(Image.fromarray(NOISE[:32, :32]), kind), np.uint8)
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(40):
        bad = data.copy()
        bad[rng.integers(8, len(bad), 8)] = rng.integers(0, 256, 8)
        try:
            assert read(bad.tobytes()).pixels.shape == (SIZE, SIZE, 3)
        except ImageError:
            refused += 1
    assert refused > 0


FLAT = """
import pathlib, sys
from guda_core.errors import ImageError
from guda_core.data.images import read_picture

def peak():  # KiB; the process's own, while getrusage would start from that of the parent
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

folder = pathlib.Path(sys.argv[1])
read_picture((folder / "warm.png").read_bytes(), size=64)
before, refused = peak(), 0
for path in folder.glob("*.bomb"):
    try:
        read_picture(path.read_bytes(), size=64)
    except ImageError:
        refused += 1
print(refused, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_bombs_leave_memory_flat(tmp_path):
    """In a process of its own: its peak must not grow by what even the beginning of decoding would take."""
    for name in ("a bomb that Pillow warns of", "a bomb that Pillow refuses", "a WebP bomb", "a JPEG bomb"):
        (tmp_path / f"{name}.bomb").write_bytes(BAD[name][0])
    (tmp_path / "warm.png").write_bytes(encoded(halves()))
    done = subprocess.run([sys.executable, "-c", FLAT, str(tmp_path)], capture_output=True, text=True, check=True)
    refused, grown_kib = map(int, done.stdout.split())
    assert refused == 4
    assert grown_kib < 16 * 1024


@pytest.mark.parametrize(
    "path",
    ["https://example.org/a.png", "data:image/png;base64,AAAA", "missing.png", ".", "/dev/zero", "a\0b", "x" * 999],
)
def test_addresses_and_things_that_are_no_files_are_refused(path):
    with pytest.raises(ImageError, match=r"no such picture|could not be read"):
        read_file(Path(path))


def test_a_file_is_read_no_further_than_the_door_takes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x" * 25_000_001)
    with pytest.raises(ImageError, match="larger than 25 MB"):
        read_file(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"x")
    assert read_file(tmp_path / "a.png") == b"x"


def test_a_plain_square_picture_passes_through_untouched(read):
    data = encoded(Image.fromarray(NOISE))
    done = read(data)
    assert (done.pixels == NOISE).all()
    assert done.pixels.flags.writeable
    assert done.preparation == ()
    assert done.file_hash == hashlib.sha256(data).hexdigest()
    assert done.image_hash == hashlib.sha256(NOISE.tobytes()).hexdigest() == hash_pixels(NOISE)


def test_the_same_bytes_give_the_same_answer(read):
    data = encoded(Image.fromarray(NOISE).resize((300, 200)), "JPEG")
    a, b = read(data), read(data)
    assert (a.pixels == b.pixels).all()
    assert (a.file_hash, a.image_hash, a.preparation) == (b.file_hash, b.image_hash, b.preparation)


def flat(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIZE, SIZE), colour)


def palette_with_transparency() -> bytes:
    im = halves().quantize(2)
    return encoded(im, transparency=im.getpixel((SIZE - 1, 0)))  # the blue half


def deep_grey(extra: bytes = b"") -> bytes:
    return png_16(np.repeat([[128 * 257, 65535]], SIZE, 0).repeat(SIZE // 2, 1), 0, extra)


def deep_red() -> bytes:
    return png_16(np.broadcast_to(np.array([65535, 0, 0]), (SIZE, SIZE, 3)), 2)


ACCEPTED = {  # bytes, the words that must be said, the colours of the left and the right half
    "animated PNG": (
        encoded(flat(RED), save_all=True, append_images=[flat(BLUE)] * 2),
        ["first of its 3 frames"],
        (RED, RED),
    ),
    "animated WebP": (
        encoded(flat(RED), "WEBP", save_all=True, append_images=[flat(BLUE)], lossless=True),
        ["first of its 2 frames"],
        (RED, RED),
    ),
    "CMYK": (encoded(flat((0, 255, 255, 0), "CMYK"), "JPEG", quality=100), ["CMYK"], (RED, RED)),
    "16-bit grey": (deep_grey(), ["16-bit values were scaled"], ((128,) * 3, WHITE)),
    "16-bit grey, a see-through value": (
        deep_grey(chunk(b"tRNS", struct.pack(">H", 128 * 257))),
        ["16-bit", "transparent"],
        (WHITE, WHITE),
    ),
    "16-bit colour": (deep_red(), ["16-bit"], (RED, RED)),
    "alpha": (encoded(flat((255, 0, 0, 0), "RGBA")), ["transparent parts were put on white"], (WHITE, WHITE)),
    "half alpha": (encoded(flat((0, 0, 0, 128), "RGBA")), ["transparent"], ((127,) * 3, (127,) * 3)),
    "grey with alpha": (encoded(flat((0, 0), "LA")), ["transparent"], (WHITE, WHITE)),
    "palette": (encoded(halves().quantize(2)), ["palette"], (RED, BLUE)),
    "palette, one entry transparent": (palette_with_transparency(), ["palette", "transparent"], (RED, WHITE)),
    "grey": (encoded(flat((90,), "L")), [], ((90,) * 3, (90,) * 3)),
    "black and white": (encoded(Image.new("1", (SIZE, SIZE), 1)), [], (WHITE, WHITE)),
    "8:1 is still accepted": (encoded(halves(512, 64)), ["resized", "white square"], (RED, BLUE)),
    "24 megapixels": (encoded(halves(6000, 4000)), ["resized from 6000 x 4000 to 64 x 43"], (RED, BLUE)),
    "16 pixels": (encoded(halves(16, 16)), ["resized from 16 x 16 to 64 x 64"], (RED, BLUE)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_with_a_word_on_what_was_done(case, read):
    data, words, (left, right) = ACCEPTED[case]
    done = read(data)
    said = " ".join(done.preparation)
    assert all(w in said for w in words), said
    assert words or not said
    assert done.pixels.shape == (SIZE, SIZE, 3)
    assert done.pixels.dtype == np.uint8
    for x, colour in ((4, left), (SIZE - 5, right)):
        assert np.abs(done.pixels[SIZE // 2, x].astype(int) - colour).max() <= 2, case


def png_grey(bits: int, values: np.ndarray, key: int) -> bytes:
    """A PNG of grey values of 1, 2 or 4 bits, of which one is see-through."""
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    wide = np.unpackbits(values.astype(np.uint8)[:, :, None], axis=2)[:, :, -bits:]
    body = b"".join(b"\0" + np.packbits(row).tobytes() for row in wide)
    parts = ((b"IHDR", head), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def held(data: bytes) -> bytes:
    """What is made of a PIL image of a file; of one that was asked for before, too."""
    picture = Image.open(io.BytesIO(data))
    assert picture_bytes(picture) == picture_bytes(picture)
    return picture_bytes(picture)


@pytest.mark.parametrize("door", [bytes, held])
@pytest.mark.parametrize("bits", [1, 2, 4, 16])
def test_the_one_colour_that_is_see_through_is_the_one_that_the_file_names(bits, door, read):
    """Pillow compares the key as it is with values that it has scaled to 8 bits."""
    if bits < 16:
        values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 2**bits
        for key in range(2**bits):
            expected = np.where(values == key, 255, values * 255 // (2**bits - 1))
            assert (read(door(png_grey(bits, values, key))).pixels == expected[:, :, None]).all()
        return
    values = np.full((SIZE, SIZE, 3), 0x00FF)
    values[::2] = (0xFF00, 0, 0xFF00)
    values[::3] = 0
    for key in ((0, 0, 0), (0xFF00, 0, 0xFF00), (0x00FF, 0x00FF, 0x00FF), (1, 0, 0)):
        found = read(door(png_16(values, 2, chunk(b"tRNS", struct.pack(">HHH", *key))))).pixels
        assert (found == np.where((values == key).all(axis=2)[:, :, None], 255, values >> 8)).all()


@pytest.mark.parametrize("where", ["EXIF", "XMP"])
def test_what_turned_a_picture_is_named(where, read):
    """Pillow, and so those who train with it, turn a picture by its XMP where its EXIF says nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    how = {"exif": exif} if where == "EXIF" else {"xmp": xmp}
    done = read(encoded(Image.fromarray(np.ascontiguousarray(TURNED[6](quarters()))), "JPEG", quality=100, **how))
    assert f"It was turned upright as its {where} orientation says." in done.preparation
    assert np.abs(done.pixels.astype(int) - quarters()).mean() < 4


def test_opaque_alpha_is_not_called_transparent(read):
    assert read(encoded(flat((255, 0, 0, 255), "RGBA"))).preparation == ()


@pytest.mark.parametrize(("width", "height"), [(128, 64), (64, 128), (40, 20), (20, 40)])
def test_pictures_that_are_not_square_sit_in_the_middle_of_white(width, height, read):
    pixels = read(encoded(Image.new("RGB", (width, height), RED))).pixels
    pixels = pixels if width > height else pixels.transpose(1, 0, 2)
    assert (pixels[:16] == 255).all()
    assert (pixels[48:] == 255).all()
    assert (pixels[16:48] == RED).all()


def quarters() -> np.ndarray:
    """Four coloured quarters, (SIZE, SIZE, 3), which show how a picture was turned."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    for (y, x), colour in zip(((0, 0), (0, 32), (32, 0), (32, 32)), (RED, BLUE, WHITE, (0, 128, 0)), strict=True):
        pixels[y : y + 32, x : x + 32] = colour
    return pixels


TURNED = {  # what EXIF's orientation says the stored rows and columns are, per value
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, -1),
}


def turned(orientation: int, kind: str) -> bytes:
    """The quarters as a camera with that orientation would store them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    im = Image.fromarray(np.ascontiguousarray(TURNED[orientation](quarters())))
    return encoded(im, kind, exif=exif, **EXACT[kind])


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind, read):
    done = read(turned(orientation, kind))
    assert np.abs(done.pixels.astype(int) - quarters()).max() <= 3
    said = " ".join(done.preparation)
    assert ("turned upright" in said) == (orientation != 1)
    assert "Metadata was left out (EXIF)." in said


BROKEN_EXIF = (b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own word; nothing of ours
@pytest.mark.parametrize("block", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_is_ignored(block, kind, read):
    done = read(encoded(flat(RED), kind, exif=block, **EXACT[kind]))
    assert np.abs(done.pixels.astype(int) - RED).max() <= 2
    assert not any("upright" in s for s in done.preparation)


def test_broken_exif_is_said(read):
    said = read(encoded(flat(RED), "JPEG", exif=b"Exif\0\0garbage")).preparation
    assert "Its EXIF data is broken and was ignored." in said


def test_metadata_is_named_as_left_out(read):
    from PIL import ImageCms, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "made by hand")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    said = read(encoded(flat(RED), pnginfo=text, icc_profile=profile)).preparation
    assert said == ("Metadata was left out (text).",)  # the profile is what untagged pictures are read by
