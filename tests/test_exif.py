"""EXIF of little size that asks a reader for much: it costs no memory, and the picture is read all the same."""

from __future__ import annotations

import io
import struct
import tracemalloc

import pytest
from PIL import Image

from guda_core.data import apart, containers, decoding, exif
from guda_core.data.images import UPLOADS
from guda_core.data.written_prompts import written_prompt
from guda_core.errors import ImageError

COMMENT = 0x9286


def directory(entries: list[tuple[int, int, int, int]], size: int, at: int = 8, order: str = "<") -> bytes:
    """A block of so many bytes: entries (tag, type, count, place or value)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    body = struct.pack(order + "H", len(entries)) + b"".join(struct.pack(order + "HHII", *e) for e in entries)
    return (head + b"\0" * (at - 8) + body).ljust(size, b"\0")


def bomb(size: int, entries: int) -> bytes:
    """Each entry's value is nearly the whole block."""
    return directory([(tag, 7, size - 16, 8) for tag in range(0x8000, 0x8000 + entries)], size)


def big(size: int, entries: int) -> bytes:
    """The same as BigTIFF."""
    rows = b"".join(struct.pack("<HHQQ", 0x8000 + i, 7, size - 32, 16) for i in range(entries))
    return (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, entries) + rows).ljust(size, b"\0")


def below(size: int, entries: int) -> bytes:
    """The same in the second directory."""
    inner = directory([(tag, 7, size - 16, 8) for tag in range(0x8000, 0x8000 + entries)], 0)[8:]
    first = directory([(exif.BELOW, 4, 1, 64)], 64)
    return (first + inner).ljust(size, b"\0")


def picture(kind: str, block: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(out, kind, exif=exif.HEAD + block)
    return out.getvalue()


def in_pieces(block: bytes, head: bytes, kind: int) -> bytes:
    """A JPEG with a block that goes on in several segments."""
    plain, parts = picture("JPEG", b""), [block[i : i + 60_000] for i in range(0, len(block), 60_000)]
    segments = (bytes([0xFF, kind]) + struct.pack(">H", 2 + len(head) + len(p)) + head + p for p in parts)
    return plain[:2] + b"".join(segments) + plain[2:]


def as_text(block: bytes) -> bytes:
    """A PNG whose EXIF is a text, as older programs write it."""
    from PIL.PngImagePlugin import PngInfo

    info, out = PngInfo(), io.BytesIO()
    info.add_text(exif.RAW_PROFILE, f"\nexif\n{len(block)}\n{block.hex()}", zip=True)
    Image.new("RGB", (64, 64), "teal").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def peak(of, *args) -> tuple[int, object]:
    """Bytes of memory that Python took at most, and what came of it."""
    tracemalloc.start()
    try:
        found = of(*args)
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [bomb, big, below])
def test_a_block_whose_values_overlap_is_heavy(make):
    assert exif.is_heavy(make(20_000, 100)) and exif.is_heavy(exif.HEAD + make(20_000, 100))
    assert not exif.is_heavy(make(20_000, 3))


def test_what_no_program_writes_is_heavy():
    """A reader follows it, or spends long on it, and it would not be counted."""
    small = directory([(0x0112, 3, 1, 6)], 64)
    assert not exif.is_heavy(2 * exif.HEAD + small) and exif.is_heavy(3 * exif.HEAD + small)
    many = exif.HEAD * 500_000
    took, heavy = peak(exif.is_heavy, many)
    assert heavy and took < 10_000
    for kind, n in ((3, 1), (16, 1), (8, 1), (4, 2)):
        assert exif.is_heavy(directory([(exif.BELOW, kind, n, 64)], 128))
    assert not exif.is_heavy(directory([(exif.BELOW, 13, 1, 64)], 128))


def test_numbers_weigh_more_than_text_and_a_large_block_may_be_read_once():
    assert exif.is_heavy(directory([(0x9000, 3, 50_000, 64)], 110_000))
    assert not exif.is_heavy(directory([(0x010F, 2, 3_000_000, 64)], 3_100_000))  # a workflow with pictures in it
    assert exif.is_heavy(directory([(0x010F, 2, 3_000_000, 64), (0x0110, 2, 3_000_000, 64)], 3_100_000))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_block_of_usual_size_is_not_heavy(order):
    maker_note = directory([(0x0112, 3, 1, 6), (0x927C, 7, 500_000, 64)], 600_000, order=order)
    assert not exif.is_heavy(maker_note)
    twice = [(0x927C, 7, 600_000, 64), (0x927D, 7, 600_000, 64)]
    assert exif.is_heavy(directory(twice, 700_000, order=order))


@pytest.mark.parametrize("cut", [0, 3, 7, 9, 15, 21])
def test_a_block_that_is_cut_or_goes_in_circles_ends(cut):
    assert not exif.is_heavy(bomb(20_000, 100)[:cut])
    assert not exif.is_heavy(directory([(exif.BELOW, 4, 1, 8)], 64))
    assert not exif.is_heavy(directory([(0x8000, 7, 2**31, 8)], 64))


@pytest.mark.filterwarnings("ignore:Possibly corrupt EXIF data|Truncated|Corrupt EXIF")  # Pillow's own words
@pytest.mark.parametrize("data", [picture("PNG", bomb(60_000, 2_000)), picture("WEBP", bomb(60_000, 2_000)),
                                  picture("PNG", below(60_000, 2_000)), as_text(bomb(60_000, 2_000))],
                         ids=["PNG", "WebP", "second directory", "text"])  # fmt: skip
def test_heavy_exif_is_passed_over(data):
    took, read = peak(apart.decoded, data, UPLOADS)
    assert took < 4_000_000 and read.image.size == (64, 64) and read.turn is None
    took, prompt = peak(written_prompt, data)
    assert took < 4_000_000 and prompt is None


@pytest.mark.parametrize("data", [picture("JPEG", bomb(60_000, 2_000)), in_pieces(bomb(200_000, 50), exif.HEAD, 0xE1),
                                  in_pieces(bomb(60_000, 2_000), b"MPF\0", 0xE2)],
                         ids=["one segment", "several segments", "list of pictures"])  # fmt: skip
def test_a_jpeg_whose_opening_takes_much_is_opened_apart(data, monkeypatch):
    monkeypatch.setattr(apart, "_in_a_process", lambda data, kind, limits: kind)
    took, read = peak(apart.decoded, data, UPLOADS)
    assert read == "JPEG" and took < 4_000_000
    took, prompt = peak(written_prompt, data)
    assert prompt is None and took < 4_000_000
    assert not containers.is_crowded(picture("JPEG", bomb(60_000, 10)), "JPEG")


def test_a_jpeg_that_is_read_without_its_broken_parts_is_looked_at_again(monkeypatch):
    """A part with a wrong length hides what comes after it, until such parts are left out."""
    block = bomb(60_000, 2_000)
    heavy = b"\xff\xe1" + struct.pack(">H", 2 + len(exif.HEAD) + len(block)) + exif.HEAD + block
    hides = b"\xff\xe5" + struct.pack(">H", 2 + len(heavy)) + b"\0\0"
    plain = picture("JPEG", b"")
    broken = b"Photoshop 3.0\x008BIM\x04\x04"  # Pillow gives up here
    data = plain[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(broken)) + broken + hides + heavy + plain[2:]
    if containers.is_crowded(data, "JPEG") or not containers.is_crowded(containers.needed(data, "JPEG"), "JPEG"):
        pytest.fail("the parts do not hide it")
    with pytest.raises(ImageError, match="damaged"):
        decoding.raw(data, UPLOADS)
    monkeypatch.setattr(apart, "_in_a_process", lambda data, kind, limits: kind)
    assert apart.decoded(data, UPLOADS) == "JPEG"


def test_no_exif_is_no_broken_exif():
    assert exif.exif_of({"exif": None}) == exif.exif_of({}) == b""


def test_a_prompt_of_usual_length_is_found():
    text = "a house, " * 20_000 + "\nSteps: 20, Sampler: DDIM"
    tags, out = Image.Exif(), io.BytesIO()
    tags.get_ifd(exif.BELOW)[COMMENT] = b"ASCII\0\0\0" + text.encode()
    Image.new("RGB", (64, 64)).save(out, "WEBP", exif=tags.tobytes())
    assert written_prompt(out.getvalue()).prompt.startswith("a house, a house")
