"""Colours against published matrices, and against another library: what a viewer shows is what is scored."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageCms

from guda_core.data.colour import PRIMARIES, SRGB, _to_xyz, from_srgb, from_video, matrix_of, to_srgb
from guda_core.data.containers import MOST_PARTS
from guda_core.data.images import read_picture
from guda_core.data.metadata import coded_colours
from guda_core.errors import ImageError
from tests.test_imaging import BLUE, EXACT, NOISE, RED, SIZE, WHITE, chunk, encoded, flat, png_16

ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290))
GREEN = (0, 255, 0)
CONVERTED = "Its colours were converted to sRGB as its colour profile says."


def profile(space: Sequence[Sequence[float]] = SRGB, gamma: float = 2.2, *, kind: bytes = b"RGB ") -> bytes:
    """An ICC profile (version 2) of these primaries and gamma, written by hand; kind b"GRAY": of grey values."""
    d50 = np.array([0.9642, 1.0, 0.8249])
    ours = _to_xyz(space)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    columns = np.linalg.solve(bradford, np.diag((bradford @ d50) / (bradford @ ours.sum(axis=1))) @ bradford) @ ours

    def xyz(v: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(v * 65536).astype(int))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"wtpt": xyz(d50),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 1) + bytes(83),
    }
    if kind == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {n + b"XYZ": xyz(columns[:, i]) for i, n in enumerate((b"r", b"g", b"b"))}
        tags |= {n + b"TRC": curve for n in (b"r", b"g", b"b")}
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s12x4s", at + len(body), 0x02400000, b"mntr", kind, b"XYZ ", b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">3i", *np.round(d50 * 65536).astype(int))
    return head.ljust(128, b"\0") + table + body


EXCHANGED = profile((SRGB[1], SRGB[0], SRGB[2], SRGB[3]))


def tagged(im: Image.Image, *chunks: bytes) -> bytes:
    """A PNG with chunks put in behind its header."""
    data = encoded(im)
    return data[:33] + b"".join(chunks) + data[33:]


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(space: Sequence[Sequence[float]]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for p in (space[3], *space[:3]) for v in p)))


def read(data: bytes):
    return read_picture(data, size=SIZE)


def near(pixels: np.ndarray, colour: Sequence[int], most: int = 2) -> bool:
    return bool(np.abs(pixels.astype(int) - colour).max() <= most)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (SRGB, np.eye(3)),
        (ADOBE, [[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04293, 1.04293]]),
        (PRIMARIES[12], [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]),
        (PRIMARIES[9], [[1.66049, -0.58764, -0.07285], [-0.12455, 1.13290, -0.00835], [-0.01815, -0.10058, 1.11873]]),
    ],
    ids=["sRGB", "Adobe RGB", "Display P3", "BT.2020"],
)  # fmt: skip
def test_matrices_are_the_published_ones(space, expected):
    np.testing.assert_allclose(matrix_of(space), expected, atol=1e-3)


def test_another_white_stays_white():
    np.testing.assert_allclose(matrix_of(PRIMARIES[11]).sum(axis=1), 1.0, atol=1e-9)
    with pytest.raises(ValueError, match="no colours"):
        matrix_of((SRGB[0], SRGB[0], SRGB[0], SRGB[3]))


def test_curves_undo_themselves_and_are_the_standards():
    v = np.linspace(0, 1, 256)
    np.testing.assert_allclose(to_srgb(from_srgb(v)), v, atol=1e-7)
    assert to_srgb(np.array(0.214041)) == pytest.approx(0.5, abs=1e-5)  # IEC 61966-2-1
    assert from_video(np.array(0.5)) == pytest.approx(((0.5 + 0.099) / 1.099) ** (1 / 0.45))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_profile_that_exchanges_red_and_green_does_so(kind):
    options = EXACT[kind]
    done = read(encoded(flat(RED), kind, icc_profile=EXCHANGED, **options))
    assert near(done.pixels, GREEN) and done.preparation == (CONVERTED,)
    assert near(read(encoded(flat(BLUE), kind, icc_profile=EXCHANGED, **options)).pixels, BLUE)
    assert near(read(encoded(flat(WHITE), kind, icc_profile=EXCHANGED, **options)).pixels, WHITE)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_see_through_and_palette_pictures_have_profiles_too(mode):
    im = flat((255, 0, 0, 255), "RGBA") if mode == "RGBA" else flat(RED).quantize(2)
    if mode == "RGBA":
        im.paste((255, 0, 0, 0), (0, 0, SIZE, SIZE // 2))
    done = read(encoded(im, icc_profile=EXCHANGED))
    assert near(done.pixels[SIZE // 2 + 4 :], GREEN) and CONVERTED in done.preparation
    assert mode == "P" or near(done.pixels[: SIZE // 2 - 4], WHITE)


def test_grey_pictures_are_read_by_grey_profiles():
    grey = read(encoded(flat((128,), "L"), icc_profile=profile(gamma=1.0, kind=b"GRAY"))).pixels
    assert near(grey, [round(255 * float(to_srgb(np.array(128 / 255))))] * 3)


def test_a_profile_for_other_colours_or_a_broken_one_is_ignored_and_said():
    for icc, words in (
        (profile(kind=b"GRAY"), "for other colours"),
        (b"no profile", "is broken"),
        (EXCHANGED[:300], "is broken"),
    ):
        done = read(encoded(Image.fromarray(NOISE), icc_profile=icc))
        assert (done.pixels == NOISE).all() and words in done.preparation[0] and "ignored" in done.preparation[0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_srgbs_own_profile_changes_no_bit(kind):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    done = read(
        encoded(Image.fromarray(NOISE), kind, icc_profile=icc, **({"lossless": True} if kind == "WEBP" else {}))
    )
    assert (done.pixels == NOISE).all() and done.preparation == ()


def test_gamma_and_corners_look_as_the_same_profile_does():
    """Our own conversion against LittleCMS's, for the same colours said in two ways."""
    ours = read(tagged(Image.fromarray(NOISE), gama(1 / 2.2), chrm(ADOBE)))
    theirs = read(encoded(Image.fromarray(NOISE), icc_profile=profile(ADOBE, 2.2)))
    assert "gAMA and cHRM" in ours.preparation[0] and theirs.preparation == (CONVERTED,)
    assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 3
    assert np.abs(ours.pixels.astype(int) - NOISE).max() > 20


def test_gamma_alone_brightens_as_browsers_do():
    done = read(tagged(flat((64, 128, 255)), gama(1.0)))
    assert near(done.pixels, [round(255 * (v / 255) ** (1 / 2.2)) for v in (64, 128, 255)])
    assert done.preparation == ("Its brightness was converted as its gAMA chunk says.",)
    assert near(read(tagged(flat((64,), "L"), gama(1.0))).pixels, [round(255 * (64 / 255) ** (1 / 2.2))] * 3)


@pytest.mark.parametrize("said", [gama(1.0) + chrm((*SRGB[:3], (0.3457, 0.3585))), chunk(b"cICP", bytes([1, 8, 0, 1]))])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_16_bits_of_linear_light_keep_their_dark_steps(said, colour):
    values = np.linspace(0, 3000, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    parts = [values] * (3 if colour & 2 else 1) + [np.full_like(values, 65535)] * (colour > 2)
    done = read(png_16(np.stack(parts, axis=2), colour, said))
    assert near(done.pixels, np.round(to_srgb(values / 65535) * 255).astype(int)[:, :, None], 0)
    assert "scaled to 8 bits" in done.preparation[0] and "converted" in done.preparation[1]


def test_a_crowded_png_is_decoded_in_a_process_of_its_own_alone(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("it is decoded here"))
    done = read(png_16(np.full((SIZE, SIZE), 3000), 0, gama(1.0) + MOST_PARTS * chunk(b"prVt", b"")))
    assert done.preparation[-1] == "Its brightness was converted as its gAMA chunk says."


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(0.45455)],
        [gama(0.45455), chrm(SRGB)],
        [chrm(ADOBE)],  # without a curve there is nothing to convert by
        [chunk(b"sRGB", b"\0"), gama(1.0), chrm(ADOBE)],  # sRGB comes first
        [chunk(b"cICP", bytes([1, 13, 0, 1])), gama(1.0)],
    ],
    ids=["usual gamma", "usual gamma and corners", "corners alone", "sRGB", "cICP of sRGB"],
)
def test_what_says_srgb_changes_no_bit(chunks):
    done = read(tagged(Image.fromarray(NOISE), *chunks))
    assert (done.pixels == NOISE).all() and done.preparation == ()


@pytest.mark.parametrize(
    ("code", "colour", "expected"),
    [
        ((12, 13, 0, 1), (255, 0, 0), (255, 0, 0)),  # Display P3 red lies outside sRGB
        ((12, 13, 0, 1), (128, 128, 128), (128, 128, 128)),
        ((12, 13, 0, 1), (100, 150, 100), (83, 152, 95)),
        ((1, 8, 0, 1), (55, 55, 55), (128, 128, 128)),  # linear light
        ((1, 4, 0, 1), (128, 128, 128), (129, 129, 129)),
    ],
)
def test_cicp_is_applied(code, colour, expected):
    done = read(tagged(flat(colour), chunk(b"cICP", bytes(code)), chunk(b"sRGB", b"\0")))
    assert near(done.pixels, expected) and "cICP" in done.preparation[0]


@pytest.mark.parametrize(
    ("code", "words"),
    [((9, 16, 0, 1), "HDR"), ((9, 18, 0, 1), "HDR"), ((99, 13, 0, 1), "not known"), ((1, 13, 0, 0), "not known")],
)
def test_what_cannot_be_converted_is_said(code, words):
    done = read(tagged(Image.fromarray(NOISE), chunk(b"cICP", bytes(code))))
    assert (done.pixels == NOISE).all() and words in done.preparation[0] and "read as sRGB" in done.preparation[0]


def by_nclx(colour: tuple[int, int, int], *codes: int) -> bytes:
    """An AVIF with these codes of primaries and transfer."""
    data = encoded(flat(colour), "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", *codes) + data[at + 4 :]


@pytest.mark.parametrize(
    ("codes", "colour", "expected", "said"),
    [
        ((12, 13), (100, 150, 100), (83, 152, 95), "converted to sRGB as its codes say (nclx 12/13)"),
        ((12, 1), (100, 150, 100), (83, 152, 95), "converted"),
        ((1, 8), (55, 55, 55), (128, 128, 128), "converted"),
        ((9, 16), (200, 60, 40), (200, 60, 40), "HDR (nclx 9/16) and were read as sRGB"),
        *(((p, t), (200, 60, 40), (200, 60, 40), "") for p, t in ((1, 13), (2, 2), (1, 1), (1, 6))),
    ],
)
def test_the_codes_of_an_avif_are_applied(codes, colour, expected, said):
    done = read(by_nclx(colour, *codes))
    assert near(done.pixels, expected, 3) and (said in " ".join(done.preparation) if said else not done.preparation)


def box(name: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(b"".join(parts)), name) + b"".join(parts)


@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize("long", [0, 1])
def test_the_codes_are_those_of_the_main_picture(wide, long):
    """Not of its thumbnail, its gain map or its HDR rendition."""
    ids, indices = (">H", ">I")[long], (">B", ">H")[wide]
    colr = [box(b"colr", b"nclx", struct.pack(">HHHB", n, 13, 6, 128)) for n in (9, 12)]
    links = ((1, (1, 2)), (7, (2, 3)), (8, (1,)))
    table = b"".join(
        struct.pack(ids, id) + bytes([len(of)]) + b"".join(struct.pack(indices, i | (0x80, 0x8000)[wide]) for i in of)
        for id, of in links
    )
    ipma = box(b"ipma", struct.pack(">BBBBI", long, 0, 0, wide, len(links)), table)
    pitm = box(b"pitm", bytes([long, 0, 0, 0]), struct.pack(ids, 7))
    iprp = box(b"iprp", box(b"ipco", colr[0], box(b"ispe", bytes(12)), colr[1]), ipma)
    data = box(b"ftyp", b"avif", bytes(4)) + box(b"meta", bytes(4), box(b"hdlr", bytes(20)), pitm, iprp)
    assert coded_colours(data) == (12, 13)
    for end in range(len(data) - 40):
        assert coded_colours(data[:end]) in (None, (12, 13))


@pytest.mark.parametrize("body", [gama(0.0), chunk(b"gAMA", struct.pack(">I", 2**32 - 1))])
def test_a_gamma_that_makes_no_sense_is_ignored(body):
    done = read(tagged(Image.fromarray(NOISE), body))
    assert (done.pixels == NOISE).all() and "makes no sense" in done.preparation[0]


def test_corners_that_make_no_sense_are_ignored():
    for corners in (chunk(b"cHRM", bytes(32)), chrm((SRGB[0], SRGB[0], SRGB[0], SRGB[3]))):
        done = read(tagged(Image.fromarray(NOISE), gama(1.0), corners))
        assert (done.pixels == NOISE).all() and "cHRM chunk makes no sense" in done.preparation[0]


def spoilt(data: bytes, name: bytes) -> bytes:
    """The PNG with one bit of a chunk's checksum turned over."""
    at = data.index(name)
    length = struct.unpack(">I", data[at - 4 : at])[0]
    crc = at + 4 + length
    return data[:crc] + bytes([data[crc] ^ 1]) + data[crc + 1 :]


PASSED = "Parts of the file that the picture does not need are broken and were passed over."


def text_chunk(size: int) -> bytes:
    return chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * size))


HARMLESS = {
    "text with a wrong checksum": spoilt(tagged(Image.fromarray(NOISE), chunk(b"tEXt", b"a\0b")), b"tEXt"),
    "time with a wrong checksum": spoilt(tagged(Image.fromarray(NOISE), chunk(b"tIME", bytes(7))), b"tIME"),
    "a text that unpacks to 2 MB": tagged(Image.fromarray(NOISE), text_chunk(2_000_000)),
    "dots per inch cut short": tagged(Image.fromarray(NOISE), chunk(b"pHYs", b"\0\0\1")),
    "an animation cut short": tagged(Image.fromarray(NOISE), chunk(b"acTL", b"\0")),
    "EXIF with a wrong checksum": spoilt(tagged(Image.fromarray(NOISE), chunk(b"eXIf", b"II*\0")), b"eXIf"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_parts_that_a_picture_does_not_need_cannot_refuse_it(case):
    done = read(HARMLESS[case])
    assert (done.pixels == NOISE).all() and done.preparation == (PASSED,)


@pytest.mark.parametrize("name", ["gAMA", "cHRM", "sRGB", "iCCP", "cICP"])
def test_broken_colour_chunks_are_ignored_and_named(name):
    icc = b"x\0\0" + zlib.compress(EXCHANGED)
    bodies = {"gAMA": bytes(4), "cHRM": bytes(32), "sRGB": b"\0", "iCCP": icc, "cICP": b"\1\1\0\1"}
    own = chunk(name.encode(), bodies[name])
    short = chunk(name.encode(), bodies[name][:-1] if name != "iCCP" else icc[:40])
    for data in (spoilt(tagged(Image.fromarray(NOISE), own), name.encode()), tagged(Image.fromarray(NOISE), short)):
        done = read(data)
        assert (done.pixels == NOISE).all()
        assert f"Its {name} chunk is broken and was ignored." in done.preparation


def test_damage_of_pixels_is_still_refused():
    palette = Image.fromarray(NOISE).quantize(16)
    clear = encoded(palette, transparency=3)
    for data in (spoilt(encoded(palette), b"PLTE"), spoilt(encoded(palette), b"IHDR"), spoilt(clear, b"tRNS")):
        with pytest.raises(ImageError, match="damaged or cut off"):
            read(data)


def segment(kind: int, body: bytes, length: int | None = None) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2 if length is None else length) + body


JUNK = {
    "EXIF whose length is too short": segment(0xE1, b"Exif\0\0" + b"II*\0" + bytes(40), 12),
    "a broken index of further pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "a comment whose length is too long": segment(0xFE, b"hello", 9),
    "Photoshop's cut short": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's own word
@pytest.mark.parametrize("case", JUNK)
def test_broken_metadata_of_a_jpeg_is_passed_over(case):
    plain = encoded(Image.fromarray(NOISE), "JPEG", quality=95)
    done = read(plain[:2] + JUNK[case] + plain[2:])
    assert (done.pixels == read(plain).pixels).all()


def webp(*more: bytes, flags: int = 0x0C) -> bytes:
    """A lossless WebP in the extended layout with chunks behind its picture."""
    inner = encoded(Image.fromarray(NOISE), "WEBP", lossless=True)[12:]
    head = struct.pack("<4sIB3x", b"VP8X", 10, flags) + struct.pack("<I", SIZE - 1)[:3] * 2
    body = b"WEBP" + head + inner + b"".join(more)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [webp(struct.pack("<4sI", b"EXIF", 500) + b"cut"), webp(struct.pack("<4sI", b"XMP ", 10**6) + b"<x")],
    ids=["EXIF", "XMP"],
)
def test_metadata_of_a_webp_that_is_cut_off_is_passed_over(data):
    done = read(data)
    assert (done.pixels == NOISE).all() and done.preparation == (PASSED,)


def test_an_animations_first_frame_has_the_profile():
    out = io.BytesIO()
    flat(RED).save(out, "WEBP", save_all=True, append_images=[flat(BLUE)], lossless=True, icc_profile=EXCHANGED)
    assert near(read(out.getvalue()).pixels, GREEN)


def test_cmyk_with_a_broken_profile_is_converted_as_without():
    im = Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0))
    done = read(encoded(im, "JPEG", quality=100, icc_profile=b"no profile"))
    assert near(done.pixels, RED) and done.preparation[-1] == "CMYK colours were converted to RGB."
