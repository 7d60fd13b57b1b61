"""What a picture's file holds besides the picture: parts that are not needed can be left out.

A library that meets a broken part of a file, such as a text with a wrong checksum, may refuse the whole file, though no
viewer does. `needed` gives the same picture without the parts that are not its pixels; only sound EXIF (which way is
up) and, outside PNG, sound colour profiles stay. The pixels' own parts are passed on untouched: damage stays damage.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

from guda_core.data import exif

PNG = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR = (b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP")
PNG_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
PASS, MOST_PASSES = b"\xff\xda", 64  # what begins a pass of a JPEG over its pixels (SOS); a usual one has ten
FILL = b"\xff" * 65536  # bytes between segments that say nothing
MORE_PICTURES = b"MPF\0"
ALONE = (0x01, 0xC8, 0xCC, *range(0xD0, 0xDA), *range(0xF0, 0xFE))  # JPEG's markers without a length
MOST_PARTS = 100_000  # chunks or segments of a file that are looked at
MAX_PROFILE = 4_000_000  # bytes of an unpacked colour profile


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(name, content, whether its checksum is right) of every chunk; what is cut off at the end is given as far as it
    goes, with a wrong checksum. After `MOST_PARTS` it ends."""
    at = len(PNG)
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            return
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body, crc = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        yield name, body, len(crc) == 4 and struct.unpack(">I", crc)[0] == zlib.crc32(name + body)
        at += 12 + length


def is_crowded(data: bytes, kind: str) -> bool:
    """Whether a PNG or JPEG has so many parts, or a JPEG so many passes over its pixels, that reading it takes long, or
    so much in the blocks that are read when it is opened."""
    if kind == "JPEG":
        many = data.count(PASS) > MOST_PASSES or FILL in data or _goes_on(jpeg_segments(data))
        return many or any(exif.is_heavy(block) for block in _jpeg_blocks(data))
    return kind == "PNG" and _goes_on(png_places(data))


def _goes_on(parts: Iterator[int]) -> bool:
    return next(islice(parts, MOST_PARTS, None), None) is not None


def _jpeg_blocks(data: bytes) -> Iterator[bytes]:
    """The EXIF of a JPEG, which may go on in several segments, and its lists of more pictures."""
    parts = []
    for at in jpeg_segments(data):
        start, end = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data.startswith(exif.HEAD, start):
            parts.append(data[start + len(exif.HEAD) : end])
        elif data[at + 1] == 0xE2 and data.startswith(MORE_PICTURES, start):
            yield data[start + len(MORE_PICTURES) : end]
    yield b"".join(parts)


def jpeg_segments(data: bytes) -> Iterator[int]:
    """Where each segment of a JPEG begins, before the picture itself."""
    found = MARKER.search(data, 2)
    while found is not None and found[0] != PASS:
        yield (at := found.start())
        length = 0 if data[at + 1] in ALONE else int.from_bytes(data[at + 2 : at + 4], "big")
        found = MARKER.search(data, at + 2 + length)


def png_places(data: bytes) -> Iterator[int]:
    """Where each chunk of a PNG begins: its length, its name, its content."""
    at = len(PNG)
    while at + 8 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def unpacked(body: bytes) -> bytes | None:
    """The colour profile in the content of an iCCP chunk, None when it is broken or unpacks to over 4 MB."""
    _, end, packed = body.partition(b"\0")
    if not end or packed[:1] != b"\0":
        return None
    reader = zlib.decompressobj()
    try:
        profile = reader.decompress(packed[1:], MAX_PROFILE)
    except zlib.error:
        return None
    return profile if reader.eof else None


def _png(data: bytes) -> bytes:
    """PNG: the chunks of the pixels, and EXIF with a right checksum. (Colours are read from the file itself.)"""
    out = [PNG]
    for name, body, right in png_chunks(data):
        if name in PNG_PIXELS or (name == b"eXIf" and right):
            crc = zlib.crc32(name + body) ^ (0 if right else 1)  # what was wrong stays wrong
            out.append(struct.pack(">I4s", len(body), name) + body + struct.pack(">I", crc))
    return b"".join(out)


def _jpeg(data: bytes) -> bytes:
    """JPEG: of the segments before the picture, those of decoding, JFIF, Adobe, EXIF and colour profile. Metadata whose
    length is wrong is left out up to the next marker, as libjpeg does."""
    out, at = [data[:2]], 2
    for _ in range(MOST_PARTS):
        found = MARKER.search(data, at)
        if found is None or (marker := found.start()) + 4 > len(data):
            break
        kind = data[marker + 1]
        if kind == 0xDA:  # the picture itself, to the end
            return b"".join([*out, data[marker:]])
        end = marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big")
        fits = end >= len(data) - 1 or data[end] == 0xFF
        metadata = 0xE0 <= kind <= 0xEF or kind == 0xFE
        kept = kind in (0xE0, 0xEE) or data.startswith((b"Exif\0\0", b"ICC_PROFILE\0"), marker + 4, end)
        if not metadata or (kept and fits):
            out.append(data[marker:end])
        at = end if fits or not metadata else marker + 2
    return data


def _webp(data: bytes) -> bytes:
    """WebP: the chunks of the picture, and EXIF and colour profile where they are whole."""
    chunks, at = [], 12
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            break
        name, length = struct.unpack("<4sI", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        metadata = name not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
        if not metadata or (name in (b"ICCP", b"EXIF") and len(body) == length):
            chunks.append((name, length, body))
        at += 8 + length + length % 2
    names, out = [n for n, _, _ in chunks], []
    for name, length, body in chunks:
        if name == b"VP8X" and body:  # flags: profile 0x20, EXIF 0x08, XMP 0x04
            gone = 0x04 | (0 if b"ICCP" in names else 0x20) | (0 if b"EXIF" in names else 0x08)
            body = bytes([body[0] & ~gone]) + body[1:]
        out.append(struct.pack("<4sI", name, length) + body + b"\0" * (len(body) % 2))
    inside = b"WEBP" + b"".join(out)
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def needed(data: bytes, kind: str) -> bytes:
    """The file of a PNG, JPEG or WebP without the parts that its picture does not need."""
    return {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[kind](data)
