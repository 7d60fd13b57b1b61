"""Where a picture's file keeps its XMP packet and its C2PA manifest store. No pixel is decoded.

                  XMP                                    C2PA
    PNG           iTXt chunk "XML:com.adobe.xmp"         chunk caBX
    JPEG          APP1, going on in "extended" APP1      APP11: a JUMBF box in pieces (ISO 19566-5, D.2)
    WebP          chunk "XMP "                           chunk "C2PA"
    TIFF          tag 700                                tag 52545
    AVIF, HEIC    a packet anywhere in the file          box uuid d8fec3d6-1b0e-483c-9297-5828877ec481

And where AVIF and HEIC keep the codes of their colours. (XMP specification, part 3; C2PA specification, "Embedding
manifests".) Whatever is damaged counts as not there: nothing here raises, goes through more than `MOST_PARTS` parts, or
gives more than `MOST_XMP` and `MOST_STORE` bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from guda_core.data.containers import MOST_PARTS, jpeg_segments, png_places

MOST_XMP, MOST_STORE = 1_000_000, 32_000_000  # bytes that are looked at
PNG_XMP = b"XML:com.adobe.xmp\0"
JPEG_XMP, JPEG_MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
MORE_HEAD = len(JPEG_MORE_XMP) + 40  # before a part of extended XMP: also its hash, the whole length, its place
APP1, APP11 = 0xE1, 0xEB
TIFF_XMP, TIFF_C2PA, TIFF_BYTES = 700, 52545, (1, 7)
C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
RDF, RDF_END = b"<rdf:RDF", b"</rdf:RDF>"


@dataclass(frozen=True)
class Metadata:
    """xmp: the XMP packet. store: the C2PA manifest store, a JUMBF box. Both b"" where there is none."""

    xmp: bytes = b""
    store: bytes = b""


def metadata_of(data: bytes, kind: str) -> Metadata:
    """What the file of a picture holds. kind: as `decoding.kind_of` says."""
    readers = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "TIFF": _tiff, "AVIF": _boxed, "HEIC": _boxed}
    found = readers[kind](data) if kind in readers else Metadata()
    return Metadata(found.xmp[:MOST_XMP], found.store[:MOST_STORE])


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content starts, where it ends) of the boxes of ISO BMFF and of JUMBF that lie side by side."""
    at, end = start, len(data) if end is None else end
    for _ in range(MOST_PARTS):
        if at + 8 > end:
            return
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or end - at  # 0: to the end
        if size < head:
            return
        yield data[at + 4 : at + 8], at + head, min(at + size, end)
        at += size


def _png(data: bytes) -> Metadata:
    xmp = store = b""
    for at in islice(png_places(data), MOST_PARTS):
        name, start, length = data[at + 4 : at + 8], at + 8, int.from_bytes(data[at : at + 4], "big")
        if name == b"iTXt" and not xmp and data.startswith(PNG_XMP, start):
            xmp = _international(data[start + len(PNG_XMP) : start + length])
        elif name == b"caBX" and not store:
            store = data[start : start + length]
    return Metadata(xmp, store)


def _international(body: bytes) -> bytes:
    """The text of an iTXt chunk, after its keyword: a flag, a method, language, translated keyword, text."""
    _, _, rest = body[2:].partition(b"\0")
    _, _, text = rest.partition(b"\0")
    if body[:1] != b"\1":
        return text
    try:
        return zlib.decompressobj().decompress(text, MOST_XMP)
    except zlib.error:
        return b""


def _jpeg(data: bytes) -> Metadata:
    xmp: list[bytes] = []
    more: list[bytes] = []
    stores: dict[bytes, list[bytes]] = {}  # by the number of the box
    for at in islice(jpeg_segments(data), MOST_PARTS):
        body, end = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == APP1 and data.startswith(JPEG_XMP, body, end):
            xmp.append(data[body + len(JPEG_XMP) : end])
        elif data[at + 1] == APP1 and data.startswith(JPEG_MORE_XMP, body, end):
            more.append(data[body + MORE_HEAD : end])
        elif data[at + 1] == APP11 and data.startswith(b"JP", body, end):
            pieces = stores.setdefault(data[body + 2 : body + 4], [])
            head = 16 if data[body + 8 : body + 12] == b"\0\0\0\1" else 8  # of the box, which each piece repeats
            pieces.append(data[body + 8 + (head if pieces else 0) : end])
    joined = (b"".join(pieces) for pieces in stores.values())
    return Metadata(b"".join(xmp + more), next((s for s in joined if s[16:20] == b"c2pa"), b""))


def _webp(data: bytes) -> Metadata:
    found: dict[bytes, bytes] = {}
    at = 12
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            break
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in (b"XMP ", b"C2PA"):
            found.setdefault(name, data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return Metadata(found.get(b"XMP ", b""), found.get(b"C2PA", b""))


def _tiff(data: bytes) -> Metadata:
    """By the tags of the first page."""
    found: dict[int, bytes] = {}

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little" if data[:2] == b"II" else "big")

    wide, count = (8, 8) if data[2:3] == b"+" else (4, 2)  # of a BigTIFF, and of another
    first, step = number(wide, wide), 4 + 2 * wide
    start = first + count
    for at in range(start, min(start + step * number(first, count), len(data) - step + 1, start + step * 65_535), step):
        tag, kind, length = number(at, 2), number(at + 2, 2), number(at + 4, wide)
        if tag in (TIFF_XMP, TIFF_C2PA) and tag not in found and kind in TIFF_BYTES and length > wide:
            place = number(at + 4 + wide, wide)
            found[tag] = data[place : place + length]
    return Metadata(found.get(TIFF_XMP, b""), found.get(TIFF_C2PA, b""))


def _boxed(data: bytes) -> Metadata:
    """AVIF and HEIC: their XMP lies in one piece, wherever their tables say; it is found by its own first words."""
    start = data.find(RDF)
    end = data.find(RDF_END, start, start + MOST_XMP) if start >= 0 else -1
    store = b""
    for name, at, after in boxes(data):
        if name == b"uuid" and data.startswith(C2PA_BOX, at):
            jumb = data.find(b"jumb", at, min(at + 80, after))  # after the version, what it is for, and an offset
            store = store or (data[jumb - 4 : after] if jumb >= 0 else b"")
    return Metadata(data[start:end] if end >= 0 else b"", store)


def coded_colours(data: bytes) -> tuple[int, int] | None:
    """The primaries and the transfer, as H.273 numbers them, of an AVIF's or HEIC's main picture: what the box "colr"
    says that "ipma" gives to the picture of "pitm". None where there is none. (ISO 14496-12, 23008-12.)"""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "big")

    def box(name: bytes, start: int, end: int) -> tuple[int, int]:
        return next(((at, after) for found, at, after in boxes(data, start, end) if found == name), (end, end))

    start, end = box(b"meta", 0, len(data))
    iprp, main = box(b"iprp", start + 4, end), box(b"pitm", start + 4, end)[0]
    id = number(main + 4, 4 if number(main, 1) else 2)
    parts = [*boxes(data, *box(b"ipco", *iprp))]
    at, end = box(b"ipma", *iprp)
    of_id, of_part, at = (4 if number(at, 1) else 2), 1 + number(at + 3, 1) % 2, at + 8
    for _ in range(MOST_PARTS):
        if at >= end:
            return None
        first, n = at + of_id + 1, number(at + of_id, 1)
        if number(at, of_id) == id:
            break
        at = first + n * of_part
    else:
        return None
    for place in range(first, first + n * of_part, of_part):
        i = number(place, of_part) % (0x80, 0x8000)[of_part - 1]  # without the bit that says: essential
        name, body, _ = parts[i - 1] if 0 < i <= len(parts) else (b"", 0, 0)
        if name == b"colr" and data.startswith(b"nclx", body):
            return number(body + 4, 2), number(body + 6, 2)
    return None
