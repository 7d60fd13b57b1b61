"""How much memory a reader of EXIF takes: a hostile block of some kilobytes can ask for gigabytes.

EXIF is a TIFF without pixels: directories of entries, each of which names a place in the block and how much of it is
its value. Nothing keeps a thousand entries from naming the whole block, and Pillow copies every value. (TIFF 6.0,
section 2; Exif 2.32, section 4.6. A multi-picture JPEG has such a block too: CIPA DC-007.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

MOST = 1_000_000  # bytes; a JPEG has room for 64 KB in one segment
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes, by type
PLAIN = (1, 2, 7)  # types that stay bytes or text; each number of another becomes an object
OBJECT = 16  # times its size
BELOW, PLACES = 0x8769, ((4, 1), (13, 1))  # the entry that names the second directory that is read: type and count
HEAD = b"Exif\0\0"
RAW_PROFILE = "Raw profile type exif"  # a PNG's text with the block in hexadecimal digits, after three lines


def exif_of(info: Mapping[Any, Any]) -> bytes:
    """The block that Pillow found in a picture. Raises ValueError: its hexadecimal digits are none."""
    if "exif" in info:
        return bytes(info["exif"] or b"")
    return bytes.fromhex("".join(str(info.get(RAW_PROFILE, "")).split("\n")[3:]))


def is_heavy(block: bytes) -> bool:
    """Whether a block's values take more memory than `MOST` bytes, and more than if each byte were named once; or
    whether it is laid out as no program does."""
    start = 0
    while block.startswith(HEAD, start):
        start += len(HEAD)
        if start > 2 * len(HEAD):
            return True
    total, most = 0, max(MOST, len(block))
    for size in _sizes(block[start:]):
        total += size
        if total > most:
            return True
    return False


def _sizes(block: bytes) -> Iterator[int]:
    """What the entries and the values outside them take, as far as the block can be read."""
    order, big = ">" if block[:2] == b"MM" else "<", block[2:3] == b"\x2b"
    count, entry, place = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")  # big: BigTIFF
    count, entry, place = (struct.Struct(order + form) for form in (count, entry, place))
    ahead, seen = [8 if big else 4], set[int]()  # where a directory's place is written
    while ahead:
        try:
            (at,) = place.unpack_from(block, ahead.pop())
            if at in seen:
                continue
            seen.add(at)
            (entries,) = count.unpack_from(block, at)
            at += count.size
            for _ in range(entries):
                tag, kind, n = entry.unpack_from(block, at)
                size, value = n * SIZES.get(kind, 0), at + entry.size
                yield entry.size
                if tag == BELOW and (kind, n) not in PLACES:
                    yield len(block) + MOST + 1
                elif tag == BELOW:
                    ahead.append(value)
                if size > place.size:
                    (value,) = place.unpack_from(block, value)
                    if value + size > len(block):  # there a reader ends
                        break
                    yield size if kind in PLAIN else OBJECT * size
                at += entry.size + place.size
        except struct.error:  # cut off
            continue
