"""Pictures: files of every accepted format, made in memory, whole and changed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from experiments.fuzz.mutations import bent_bytes
from experiments.fuzz.trial import Door
from guda_core.data.containers import PNG, png_chunks

SIDES = (0, 1, 15, 16, 17, 128, 4096, 65535, 2**24, 2**31 - 1, 2**32 - 1)  # of a header that lies
COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"tEXt", b"zTXt", b"iTXt", b"acTL")


def _noise(size: tuple[int, int] = (40, 24), channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(channels)
    return rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)


def _saved(im: Image.Image, kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    im.save(out, kind, **more)  # type: ignore[arg-type]
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its right checksum."""
    return struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))


def _deep_png() -> bytes:
    """16 bits a channel, RGB, which Pillow reads and does not write."""
    rows = b"".join(b"\0" + np.random.default_rng(y).bytes(24 * 6) for y in range(20))
    head = struct.pack(">IIBBBBB", 24, 20, 16, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _pngs() -> Iterator[bytes]:
    rgb = Image.fromarray(_noise())
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat, Steps: 20")
    info.add_itxt("XML:com.adobe.xmp", "<x/>")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        im = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)) if mode == "I;16" else rgb.convert(mode)
        yield _saved(im, "PNG")
    yield _saved(rgb.convert("P"), "PNG", transparency=3)
    yield _saved(rgb, "PNG", icc_profile=profile, exif=exif, pnginfo=info)
    yield _saved(rgb, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    yield _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)], duration=40)
    yield _deep_png()
    chunks = list(png_chunks(_saved(rgb, "PNG")))
    corners = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    for extra in (
        chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cHRM", struct.pack(">8I", *corners)),
        chunk(b"cICP", bytes((12, 13, 0, 1))),
        chunk(b"cICP", bytes((9, 16, 0, 1))),
    ):
        yield PNG + chunk(*chunks[0][:2]) + extra + b"".join(chunk(n, b) for n, b, _ in chunks[1:])


@cache
def sound() -> tuple[bytes, ...]:
    """Sound pictures of every accepted format."""
    rgb, exif = Image.fromarray(_noise()), Image.Exif()
    exif[0x0112], exif[0x010F] = 8, "a camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk = Image.fromarray(_noise(channels=4), "CMYK")
    jpegs = [
        _saved(rgb, "JPEG", exif=exif, icc_profile=profile, comment=b"a comment"),
        _saved(rgb.convert("L"), "JPEG"),
        _saved(rgb, "JPEG", progressive=True, quality=95, subsampling=0),
        _saved(cmyk, "JPEG"),
        _saved(cmyk, "JPEG", icc_profile=profile),
    ]
    webps = [
        _saved(rgb, "WEBP", exif=exif, icc_profile=profile, xmp=b"<x/>"),
        _saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], duration=40),
    ]
    return (*_pngs(), *jpegs, *webps, *_apart(rgb, exif, profile))


def _apart(rgb: Image.Image, exif: Image.Exif, profile: bytes) -> Iterator[bytes]:
    """Formats that are decoded in a process of their own; HEIC where its package is there."""
    yield _saved(rgb, "AVIF", exif=exif, icc_profile=profile)
    yield _saved(rgb.convert("RGBA"), "AVIF", quality=100, subsampling="4:4:4")
    for packed in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        yield _saved(rgb, "TIFF", compression=packed, exif=exif, icc_profile=profile)
    yield _saved(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)), "TIFF")
    yield _saved(Image.fromarray(_noise(channels=4), "CMYK"), "TIFF")
    yield _saved(rgb.convert("P"), "TIFF", save_all=True, append_images=[rgb.rotate(180)])
    if find_spec("pillow_heif") is not None:
        from pillow_heif import from_pillow

        for im in (rgb, rgb.convert("RGBA")):
            out = io.BytesIO()
            from_pillow(im).save(out, exif=exif.tobytes())
            yield out.getvalue()


@cache
def large() -> tuple[bytes, ...]:
    """Pictures near the limits, and some that unpack to far more than they say."""
    wide = Image.new("RGBA", (4898, 4898), (10, 20, 30, 128))
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    chunks = list(png_chunks(_saved(wide, "PNG")))
    dull = chunk(*chunks[0][:2])
    rest = b"".join(chunk(n, b) for n, b, _ in chunks[1:])
    bomb = zlib.compress(bytes(300_000_000), 9)
    small = list(png_chunks(_saved(Image.new("RGB", (20, 20)), "PNG")))
    head, tail = chunk(*small[0][:2]), b"".join(chunk(n, b) for n, b, _ in small[1:])
    return (
        PNG + dull + gamma + rest,
        PNG + dull + rest,
        _saved(Image.new("CMYK", (4898, 4898), (9, 99, 9, 0)), "JPEG"),
        PNG + head + chunk(b"iCCP", b"p\0\0" + bomb) + tail,
        PNG + head + chunk(b"zTXt", b"p\0\0" + bomb) + tail,
        PNG + head + chunk(b"iTXt", b"p\0\1\0\0\0" + bomb) + tail,
        PNG + head + chunk(b"IDAT", bomb) + chunk(b"IEND", b""),
        _saved(Image.new("RGB", (8000, 6200), (10, 20, 30)), "JPEG"),
        _saved(Image.new("RGBA", (8000, 6200), (10, 20, 30, 128)), "PNG"),
        _saved(Image.new("RGBA", (8000, 6200), (10, 20, 30, 128)), "TIFF", compression="tiff_deflate"),
        _saved(Image.new("RGB", (5200, 4600), (10, 20, 30)), "AVIF", speed=10),
    )


def _bent_png(rng: Random, data: bytes) -> bytes:
    """A PNG whose chunks are changed, exchanged, doubled or left out, mostly with right checksums."""
    chunks = [(n, b) for n, b, _ in png_chunks(data)]
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(len(chunks)), rng.randrange(6)
        name, body = chunks[at]
        if kind == 0:
            chunks[at] = (name, bent_bytes(rng, body))
        elif kind == 1:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[rng.randrange(len(chunks))])
        elif kind == 2 and len(chunks) > 1:
            del chunks[at]
        elif kind == 3:
            chunks.insert(1, (rng.choice(COLOUR), rng.randbytes(rng.choice((0, 1, 4, 32, 100)))))
        elif kind == 4:
            size = struct.pack(">II", rng.choice(SIDES), rng.choice(SIDES))
            chunks[0] = (chunks[0][0], rng.choice((size + body[8:], body[:8] + rng.randbytes(5))))
        else:
            rng.shuffle(chunks)
    return PNG + b"".join(chunk(n, b) if rng.random() < 0.95 else chunk(n, b)[:-1] + b"x" for n, b in chunks)


def inputs(seed: int) -> Iterator[bytes]:
    """Whole ones first, then changed ones; now and then a large one."""
    rng = Random(seed)
    yield from sound()
    while True:
        data = rng.choice(large() if rng.random() < 0.004 else sound())
        if data.startswith(PNG) and rng.random() < 0.5:
            yield _bent_png(rng, data)
        else:
            yield bent_bytes(rng, data, sound()) if rng.random() < 0.98 else data


def start(folder: Path) -> Callable[[bytes], None]:
    """A file as an upload, padded or cropped; half of them also as a training picture."""
    from guda_core.data.images import hash_picture, read_file, read_picture

    def tried(data: bytes) -> None:
        place = folder / "picture.png"
        place.write_bytes(data)
        made = read_picture(read_file(place), size=64, fit="crop" if len(data) % 2 else "pad")
        assert made.pixels.shape == (64, 64, 3)
        if len(data) % 4 > 1:
            hash_picture(data)

    return tried


DOOR = Door("pictures", inputs, start, memory_mb=700)
