"""AVIF, TIFF, HEIC and large pictures: decoded in a process apart, within its memory; hostile ones are refused."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guda_core.data import apart, decoding
from guda_core.data.apart import _in_a_process, decoded
from guda_core.data.decoding import Limits, kind_of, raw
from guda_core.data.images import OWN, UPLOADS, hash_picture, read_picture
from guda_core.errors import ImageError
from guda_core.given import picture_bytes
from tests.test_imaging import BLUE, NOISE, RED, SIZE, TURNED, encoded, halves, png_claiming, quarters

heif = pytest.importorskip("pillow_heif")
KINDS = ("AVIF", "TIFF", "HEIC")
BEST = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "TIFF": {"compression": "tiff_lzw"}, "PNG": {}}


def made(im: Image.Image, kind: str, **more: object) -> bytes:
    """A file of that kind, with colours as near as it can."""
    if kind != "HEIC":
        return encoded(im, kind, **(BEST.get(kind, {}) | more))
    out = io.BytesIO()
    heif.from_pillow(im).save(out, quality=-1, chroma=444, **more)
    return out.getvalue()


def read(data: bytes):
    return read_picture(data, size=SIZE)


def told(data: bytes) -> str:
    return " ".join(read(data).preparation)


def boxes(data: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC whose header claims another size than its picture has."""
    out, at = bytearray(data), -1
    while (at := out.find(b"ispe", at + 1)) >= 0:
        struct.pack_into(">II", out, at + 8, width, height)
    return bytes(out)


def tiff(**tags: tuple[int, int]) -> bytes:
    """A TIFF of 64 x 64 grey pixels with some tags changed: name -> (tag, value)."""
    entries = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096} | dict(tags.values())
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 8 + 4096) + bytes(4096) + struct.pack("<H", len(entries)) + body + bytes(4)


RAMP = np.random.default_rng(5).integers(0, 65536, (SIZE, SIZE, 3), np.uint16)


def deep_tiff(values: np.ndarray, order: str = "<", *, light: int = 2, apart: bool = False, big: bool = False,
              bits: tuple[int, ...] = (), formats: tuple[int, ...] = ()) -> bytes:  # fmt: skip
    """An uncompressed TIFF of (H, W, C) 16-bit values in two strips. light: how values stand for light (0: 0 is white).
    apart: one plane after the other. big: as a BigTIFF. bits, formats: of each channel."""
    h, w, n = values.shape
    stored = values.astype(f"{order}u2")
    body = (stored.transpose(2, 0, 1) if apart else stored).tobytes()
    strips, head = (2 * n if apart else 2), 16 if big else 8
    size = len(body) // strips
    tags = {256: (w,), 257: (h,), 258: bits or (16,) * n, 259: (1,), 262: (light,), 277: (n,), 278: (h // 2,),
            273: tuple(head + i * size for i in range(strips)), 279: (size,) * strips,
            284: (2 if apart else 1,), 339: formats or (1,) * n}  # fmt: skip
    if n == 4 and light == 2:
        tags[338] = (2,)
    count, place = ("Q", "Q") if big else ("H", "I")
    room, at = struct.calcsize(place), head + len(body)
    table, more = struct.pack(order + count, len(tags)), at + struct.calcsize(f"={count}{place}")
    more, beside = more + len(tags) * (4 + 2 * room), b""
    for tag, numbers in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(value) > room:
            value, beside = struct.pack(order + place, more + len(beside)), beside + value
        table += struct.pack(f"{order}HH{place}", tag, 4, len(numbers)) + value.ljust(room, b"\0")
    mark, version = (b"II", b"MM")[order == ">"], struct.pack(order + "H", 43 if big else 42)
    start = struct.pack(order + ("HHQ" if big else "I"), *((8, 0, at) if big else (at,)))
    return mark + version + start + body + table + bytes(room) + beside


@pytest.mark.parametrize(("order", "apart", "big"), [("<", True, False), (">", True, False), ("<", False, True)])
def test_tiffs_of_16_bits_show_what_they_hold(order, apart, big):
    """Pillow reads uncompressed planes of 16 bits as planes of 8: as noise."""
    found = raw(deep_tiff(RAMP, order, apart=apart, big=big), UPLOADS)
    assert (np.asarray(found.image) == RAMP >> 8).all() and found.notes == ["16-bit values were scaled to 8 bits."]
    if not big:
        in_memory = Image.open(io.BytesIO(deep_tiff(RAMP, order, apart=apart)))
        assert (read(picture_bytes(in_memory)).pixels == RAMP >> 8).all()
    four = np.concatenate([RAMP, RAMP[:, :, :1]], 2)
    assert (np.asarray(raw(deep_tiff(four, order, apart=apart, big=big), UPLOADS).image) == four >> 8).all()


def test_grey_tiffs_of_12_and_16_bits_are_not_dark_nor_negatives():
    """Pillow leaves 12 bits as they are, and 16 bits where 0 is white."""
    grey = RAMP[:, :, :1]
    assert (read(deep_tiff(65535 - grey, light=0)).pixels == grey >> 8).all()
    assert (read(deep_tiff(grey, light=1)).pixels == grey >> 8).all()
    held = picture_bytes(Image.open(io.BytesIO(deep_tiff(65535 - grey, light=0))))
    assert (read(held).pixels == grey >> 8).all()
    twelve = tiff(bits=(258, 12), long=(279, 4032), high=(257, 42), rows=(278, 42))
    found = raw(twelve[:8] + b"\xab\xca\xbc" * 1344 + twelve[4040:], UPLOADS)
    assert (np.asarray(found.image) == 0xAB).all() and found.notes == ["12-bit values were scaled to 8 bits."]


@pytest.mark.parametrize("kind", KINDS)
def test_the_formats_are_read_by_content_and_show_what_they_hold(kind):
    data = made(halves(), kind)
    assert kind_of(data) == kind
    done = read(data)
    assert np.abs(done.pixels[32, 4].astype(int) - RED).max() <= 3 and done.preparation == ()
    assert np.abs(done.pixels[32, 60].astype(int) - BLUE).max() <= 3
    assert done.file_hash != done.image_hash == read(data).image_hash
    assert len(hash_picture(data, OWN)) == 64


def test_odd_tiffs_are_accepted_with_a_word():
    grey = Image.fromarray(np.full((SIZE, SIZE), 128 * 257, np.uint16))
    assert "16-bit" in told(encoded(grey, "TIFF")) and (read(encoded(grey, "TIFF")).pixels == 128).all()
    cmyk = Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0))
    assert "CMYK" in told(encoded(cmyk, "TIFF")) and read(encoded(cmyk, "TIFF")).pixels[0, 0, 0] == 255
    pages = encoded(Image.new("RGB", (SIZE, SIZE), RED), "TIFF", save_all=True, append_images=[halves()])
    assert "first of its 2 pages" in told(pages) and (read(pages).pixels == RED).all()
    assert "palette" in told(encoded(halves().quantize(2), "TIFF"))
    lab = encoded(Image.new("LAB", (SIZE, SIZE), (137, 208, 195)), "TIFF")  # L = 54, a = 80, b = 67
    assert np.abs(read(lab).pixels.astype(int) - RED).max() <= 12
    for mode in ("F", "I"):
        with pytest.raises(ImageError, match="not read here"):
            read(encoded(Image.new(mode, (SIZE, SIZE)), "TIFF"))


@pytest.mark.parametrize("kind", ["AVIF", "HEIC", "TIFF"])
def test_alpha_is_put_on_white(kind):
    data = made(Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0)), kind)
    assert "transparent" in told(data) and (read(data).pixels == 255).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_they_stand_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](quarters())))
    pixels = read(made(stored, kind, exif=exif.tobytes() if kind == "HEIC" else exif)).pixels
    assert np.abs(pixels.astype(int) - quarters()).mean() < 4


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_scribbled_files_give_a_picture_or_a_sentence(kind):
    data = made(Image.fromarray(NOISE), kind)
    for part in (0.02, 0.3, 0.9):
        with pytest.raises(ImageError, match="damaged or cut off"):
            read(data[: max(16, int(len(data) * part))])
    rng, whole = np.random.default_rng(3), np.frombuffer(data, np.uint8)
    for _ in range(6):
        bad = whole.copy()
        bad[rng.integers(16, len(bad), 12)] = rng.integers(0, 256, 12)
        with contextlib.suppress(ImageError):
            assert read(bad.tobytes()).pixels.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + bytes(99), "looks like a video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC file is damaged"),
        (boxes(made(halves(), "HEIC"), 60_000, 60_000), "50 megapixels"),
        (boxes(made(halves(), "HEIC"), 15, 15), r"at least 16|damaged"),
        (boxes(made(halves(), "AVIF"), 5500, 5500), "24 megapixels of AVIF"),
        (tiff(wide=(256, 60_000), high=(257, 60_000)), r"50 megapixels|bomb"),
        (tiff(wide=(256, 2**31), high=(257, 2**31)), r"50 megapixels|bomb|damaged"),
        (tiff(bits=(258, 64)), "of a kind that is not read here. Save it as RGB"),
        (tiff(compression=(259, 34887)), "not read here"),  # LERC
        (tiff(planes=(284, 2), bits=(258, 16)), "not read here"),
        (deep_tiff(RAMP, bits=(32, 32, 32)), "not read here"),
        (deep_tiff(RAMP, formats=(3, 3, 3)), "not read here"),
        (deep_tiff(RAMP[:, :, :1], formats=(2,)), "not read here"),
        (deep_tiff(np.concatenate([RAMP, RAMP[:, :, :1]], 2), light=5, apart=True), "not read here"),
        (deep_tiff(RAMP, ">", big=True), "looks like a big-endian BigTIFF"),
        (tiff(page=(254, 1)), "a camera's raw file"),  # NEF, ARW and most DNG: a preview comes first
        (tiff(dng=(50706, 1)), "a camera's raw file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "looks like a camera's raw file"),
        (encoded(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True), "24 megapixels of WEBP"),
        (png_claiming(7100, 7100), "50 megapixels"),
    ],
)
def test_what_is_too_large_or_no_picture_is_refused(data, said):
    with pytest.raises(ImageError, match=said):
        read(data)
    if said == "a camera's raw file":
        with pytest.raises(ImageError, match=said):
            picture_bytes(Image.open(io.BytesIO(data)))


def test_heic_without_its_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"guda-core\[heic\]"):
        read(made(halves(), "HEIC"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_large_pictures_are_read_at_half_their_size(kind):
    wide = Image.new("RGB", (5600, 4500), RED)
    wide.paste(BLUE, (2800, 0, 5600, 4500))
    done = read(encoded(wide, kind, **BEST.get(kind, {})))
    assert "read as 2800 x 2250 of 5600 x 4500 pixels" in " ".join(done.preparation)
    assert np.abs(done.pixels[32, 4].astype(int) - RED).max() <= 2
    assert np.abs(done.pixels[32, 60].astype(int) - BLUE).max() <= 2


def test_halving_some_rows_at_a_time_is_halving_the_whole(monkeypatch):
    monkeypatch.setattr(decoding, "ROWS", 6)
    for size, mode in (((31, 27), "RGB"), ((30, 26), "RGBA"), ((17, 64), "L")):
        channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
        rng = np.random.default_rng(1)
        im = Image.fromarray(rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8).squeeze(), mode)
        notes: list[str] = []
        half = decoding._halved(im, replace(UPLOADS, whole=99), notes)
        assert half.tobytes() == im.reduce(2).tobytes() and len(notes) == 1
        assert decoding._halved(im, UPLOADS, notes) is im


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signals here")
def test_a_process_that_is_stopped_while_it_writes_writes_all(monkeypatch):
    """Also where Python was asked not to buffer: a write to a pipe may then end early."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    command = [sys.executable, "-P", apart.WORKER, *map(str, (UPLOADS.bytes, UPLOADS.pixels, UPLOADS.whole, 10**9))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(Image.new("RGB", (900, 900), RED), "TIFF"))
        process.stdin.close()
        got = process.stdout.read(1)  # the pipe is full, and it waits
        time.sleep(0.2)
        for sent in (signal.SIGSTOP, signal.SIGCONT):
            process.send_signal(sent)
            time.sleep(0.05)
        got += process.stdout.read()
    assert process.returncode == 0 and got.partition(b"\n")[2] == bytes(RED) * 900**2


def test_a_picture_that_came_in_part_is_damaged(monkeypatch, tmp_path):
    said = {"mode": "RGB", "size": [4, 4], "metadata": [], "notes": [], "turn": None, "profile": None}
    (tmp_path / "w.py").write_text(f"print({json.dumps(said)!r}, end=chr(10) + 40 * 'x')")
    monkeypatch.setattr(apart, "WORKER", tmp_path / "w.py")
    with pytest.raises(decoding.Damaged):
        _in_a_process(b"", "TIFF", UPLOADS)
    (tmp_path / "w.py").write_text(f"print({json.dumps(said)!r}, end=chr(10) + 48 * 'x')")
    assert _in_a_process(b"", "TIFF", UPLOADS).image.size == (4, 4)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
def test_the_process_apart_says_the_same_as_this_one(mode):
    im = Image.fromarray(NOISE).convert(mode.replace("I;16", "L"))
    data = encoded(Image.fromarray(np.asarray(im).astype(np.uint16) * 200) if mode == "I;16" else im)
    here, there = raw(data, UPLOADS), _in_a_process(data, "PNG", UPLOADS)
    assert (there.image.mode, there.image.size) == (here.image.mode, here.image.size)
    assert there.image.tobytes() == here.image.tobytes()
    assert (there.metadata, there.turn, there.profile, there.notes) == (
        here.metadata, here.turn, here.profile, here.notes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "damaged or cut off"),
        ("print('no', 'json')", None),
        ("import time; time.sleep(30)", "took too long"),
        ("print('{}')", "damaged or cut off"),
    ],
)
def test_a_process_that_dies_or_hangs_refuses_that_picture(code, said, tmp_path, monkeypatch):
    (tmp_path / "w.py").write_text(code)
    monkeypatch.setattr(apart, "WORKER", tmp_path / "w.py")
    monkeypatch.setattr(apart, "SECONDS", 1.0)
    with pytest.raises(ImageError, match=said or "damaged or cut off"):
        read(made(halves(), "TIFF"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a bound on memory")
def test_memory_beyond_the_bound_is_one_sentence():
    data = encoded(Image.new("RGB", (5600, 4500)), "TIFF", compression="tiff_lzw")
    with pytest.raises(ImageError, match=r"too much memory|damaged"):
        decoded(data, Limits(*[UPLOADS.bytes, UPLOADS.pixels, UPLOADS.whole], memory=250_000_000))


PEAKS = """
import pathlib, resource, sys
from guda_core.errors import ImageError
from guda_core.data.images import read_picture

def own():  # KiB
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def theirs():
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

folder = pathlib.Path(sys.argv[1])
read_picture((folder / "warm.tif").read_bytes(), size=64)
before, usual = own(), theirs()
for path in sorted(folder.glob("*.bomb")):
    try:
        read_picture(path.read_bytes(), size=64)
    except ImageError:
        pass
print(own() - before, theirs() - usual)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_hostile_files_leave_memory_flat(tmp_path):
    """Headers that claim much over little, or little over much; tiles and strips of any size."""
    large = Image.new("RGB", (4000, 4000), RED)
    bombs = [
        boxes(made(halves(), "HEIC"), 60_000, 60_000),
        boxes(made(halves(), "AVIF"), 60_000, 60_000),
        boxes(encoded(large, "AVIF", quality=30, speed=10), 64, 64),
        tiff(wide=(256, 60_000), high=(257, 60_000)),
        tiff(tall=(278, 2**31), long=(279, 2**31)),
        tiff(tile=(322, 65_520), tiles=(323, 65_520), at=(324, 8), many=(325, 4096)),
        tiff(samples=(277, 60_000)),
    ]
    for i, data in enumerate(bombs):
        (tmp_path / f"{i}.bomb").write_bytes(data)
    (tmp_path / "warm.tif").write_bytes(made(halves(), "TIFF"))
    root = Path(apart.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True, check=True, cwd=root
    )
    ours, theirs = map(int, done.stdout.split())
    assert ours < 16 * 1024 and theirs < 100 * 1024
