"""Marks "made by AI" and "not for training AI" in a picture's file are told, wherever it keeps them."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

from guda_core.data.credentials import MOST_DEPTH, cbor, credentials_of
from guda_core.data.images import read_picture
from guda_core.data.marks import ASKED, MADE, TOLD, marks_of
from guda_core.data.metadata import C2PA_BOX, JPEG_MORE_XMP, JPEG_XMP, coded_colours, metadata_of
from tests.test_imaging import NOISE, chunk, encoded

PICTURE = Image.fromarray(NOISE)
IPTC, PLUS = "http://cv.iptc.org/newscodes/digitalsourcetype/", "http://ns.useplus.org/ldf/vocab/"
MADE_BY_AI = "The file says that it was made by AI (IPTC digital source type)."
NO_TRAINING = "The file asks that it is not used to train AI (PLUS data mining)."
OLDER = "c2pa.training-mining"
CARRIES = "The file carries Content Credentials (C2PA). Their signature was not checked."


def packet(inside: str = "", **properties: str) -> bytes:
    """An XMP packet: properties as attributes, `inside` as elements."""
    attributes = " ".join(f'{k.replace("_", ":")}="{v}"' for k, v in properties.items())
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
        f'{attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


XMP = packet(
    f"<plus:DataMining>\n {PLUS}DMI-PROHIBITED-AIMLTRAINING\n</plus:DataMining>",
    Iptc4xmpExt_DigitalSourceType=f"{IPTC}trainedAlgorithmicMedia",
)


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, name) + body


def superbox(label: str, *parts: bytes, kind: bytes = b"c2as") -> bytes:
    """A JUMBF superbox with its description box."""
    uuid = kind + bytes.fromhex("00110010800000aa00389b71")
    return box(b"jumb", box(b"jumd", uuid + b"\x03" + label.encode() + b"\0") + b"".join(parts))


def packed(value: object) -> bytes:
    """The few kinds of CBOR (RFC 8949) that the tests need."""
    if isinstance(value, dict):
        return bytes([0xA0 + len(value)]) + b"".join(packed(k) + packed(v) for k, v in value.items())
    if isinstance(value, list):
        return bytes([0x80 + len(value)]) + b"".join(map(packed, value))
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    text = str(value).encode()
    return (bytes([0x60 + len(text)]) if len(text) < 24 else b"\x78" + bytes([len(text)])) + text


def actions(source: str) -> bytes:
    told = {"actions": [{"action": "c2pa.created", "digitalSourceType": IPTC + source, "when": "now"}]}
    return superbox("c2pa.actions.v2", box(b"cbor", packed(told)))


def training(label: str = "cawg.training-mining", **uses: str) -> bytes:
    entries = {f"{label[:4]}.{k}": {"use": v} for k, v in uses.items()}
    return superbox(label, box(b"cbor", packed({"entries": entries})))


def manifest(*assertions: bytes) -> bytes:
    parts = superbox("c2pa.assertions", *assertions), superbox("c2pa.claim.v2", box(b"cbor", packed({"alg": "sha256"})))
    return superbox("urn:c2pa:1", *parts, kind=b"c2ma")


def store(*manifests: bytes) -> bytes:
    return superbox("c2pa", *manifests, kind=b"c2pa")


STORE = store(manifest(actions("trainedAlgorithmicMedia"), training(ai_training="notAllowed", data_mining="allowed")))


def png(xmp: bytes = b"", held: bytes = b"", *, squeezed: bool = False) -> bytes:
    data = encoded(PICTURE)
    text = zlib.compress(xmp) if squeezed else xmp
    parts = chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([squeezed, 0]) + b"\0\0" + text) if xmp else b""
    parts += chunk(b"caBX", held) if held else b""
    return data[:-12] + parts + data[-12:]  # behind the pixels, where some programs put them


def segment(kind: int, body: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(body) + 2) + body


def jpeg(xmp: bytes = b"", held: bytes = b"", *, piece: int = 60_000) -> bytes:
    """The store in pieces of so many bytes, each with the head of its box again; before it, another JUMBF box."""
    data, head = encoded(PICTURE, "JPEG"), held[:8]
    parts = segment(0xE1, JPEG_XMP + xmp) if xmp else b""
    if held:
        parts += segment(0xEB, b"JP\0\x01\0\0\0\x01" + superbox("other", kind=b"json"))
    for i, at in enumerate(range(8, len(held), piece), 1):
        parts += segment(0xEB, b"JP\0\x02" + struct.pack(">I", i) + head + held[at : at + piece])
    return data[:2] + parts + data[2:]


def webp(xmp: bytes = b"", held: bytes = b"") -> bytes:
    body = encoded(PICTURE, "WEBP")[8:]
    for name, part in ((b"XMP ", xmp), (b"C2PA", held)):
        body += struct.pack("<4sI", name, len(part)) + part + b"\0" * (len(part) % 2) if part else b""
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(xmp: bytes = b"", held: bytes = b"", *, big: bool = False) -> bytes:
    tags = Image.Exif()
    for tag, part in ((700, xmp), (52545, held)):
        if part:
            tags[tag] = part
    return encoded(PICTURE, "TIFF", exif=tags, big_tiff=big)


def avif(xmp: bytes = b"", held: bytes = b"") -> bytes:
    data = encoded(PICTURE, "AVIF", **({"xmp": xmp} if xmp else {}))
    return data + (box(b"uuid", C2PA_BOX + bytes(4) + b"manifest\0" + bytes(8) + held) if held else b"")


FILES = {"PNG": png, "JPEG": jpeg, "WEBP": webp, "TIFF": tiff, "BigTIFF": partial(tiff, big=True), "AVIF": avif}


@pytest.mark.parametrize("kind", FILES)
def test_marks_are_found_where_a_kind_of_file_keeps_them_and_told_with_what_was_done(kind):
    plain = read_picture(FILES[kind](), size=64)
    marked = read_picture(FILES[kind](XMP, STORE), size=64)
    assert marked.image_hash == plain.image_hash  # the picture is the same
    assert not any("AI" in s for s in plain.preparation)
    assert [s for s in marked.preparation if s not in plain.preparation and "Metadata" not in s] == [
        MADE_BY_AI,
        NO_TRAINING,
        CARRIES,
        "They say that it was made by AI.",
        "They ask that it is not used to train AI.",
        TOLD,
    ]
    assert marks_of(FILES[kind](XMP, STORE)).asks and not marks_of(FILES[kind]()).asks
    assert marks_of(FILES[kind](XMP)).said == (MADE_BY_AI, NO_TRAINING, TOLD)
    assert marks_of(FILES[kind](held=STORE)).asks


@pytest.mark.parametrize("source", MADE)
def test_every_source_that_is_made_is_told(source):
    said = marks_of(png(packet(Iptc4xmpExt_DigitalSourceType=IPTC + source))).said
    assert said == (f"The file says that it {MADE[source]} (IPTC digital source type).", TOLD)
    assert f"They say that it {MADE[source]}." in marks_of(png(held=store(manifest(actions(source))))).said


@pytest.mark.parametrize("value", ASKED)
def test_every_value_of_data_mining_that_asks_something_is_told(value):
    found = marks_of(png(packet(plus_DataMining=PLUS + value)))
    assert found.said == (f"The file asks that it {ASKED[value]} (PLUS data mining).", TOLD) and found.asks


@pytest.mark.parametrize(
    ("xmp", "said"),
    [
        (packet(plus_DataMining=f"{PLUS}DMI-ALLOWED"), "The file allows data mining, such as training AI"),
        (packet(f'<plus:DataMining rdf:resource="{PLUS}DMI-PROHIBITED-AIMLTRAINING"/>'), NO_TRAINING),
        (packet(plus_DataMining=f"{PLUS}DMI-PROHIBITED-AIMLTRAINING").replace(b'"', b"'"), NO_TRAINING),
        (XMP.decode().encode("utf-16"), MADE_BY_AI),
        (packet(plus_DataMining=f"{PLUS}DMI-UNSPECIFIED"), ""),
        (packet(plus_DataMining="no thanks"), ""),
        (packet(Iptc4xmpExt_DigitalSourceType=f"{IPTC}digitalCapture"), ""),
        (packet(dc_title=f"{IPTC}trainedAlgorithmicMedia"), ""),
        (packet(f"<!-- <plus:DataMining>{PLUS}DMI-PROHIBITED</plus:DataMining> -->"), ""),
        (packet(f'<xmpMM:Pantry/><plus:DataMining rdf:resource="{PLUS}DMI-PROHIBITED-AIMLTRAINING"/>'), NO_TRAINING),
        (packet(f"<xmpMM:Pantry><plus:DataMining>{PLUS}DMI-PROHIBITED</plus:DataMining></xmpMM:Pantry>"), ""),
    ],
)
def test_what_xmp_says_is_read_in_each_of_its_forms_and_nothing_else(xmp, said):
    found = marks_of(webp(xmp)).said
    assert found[0].startswith(said) if said else not found


def test_squeezed_and_extended_xmp_are_read():
    assert MADE_BY_AI in marks_of(png(XMP, squeezed=True)).said
    part = segment(0xE1, JPEG_MORE_XMP + b"0" * 32 + bytes(8) + XMP)
    data = jpeg(packet())
    assert MADE_BY_AI in marks_of(data[:2] + part + data[2:]).said


def test_a_store_in_many_segments_is_put_together():
    large = store(manifest(actions("trainedAlgorithmicMedia"), superbox("c2pa.thumbnail", box(b"bidb", bytes(999)))))
    data = jpeg(held=large, piece=100)
    assert metadata_of(data, "JPEG").store == large and "They say that it was made by AI." in marks_of(data).said


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (store(manifest(actions("digitalCapture"))), ()),
        (
            store(manifest(actions("trainedAlgorithmicMedia")), manifest(actions("digitalCapture"))),
            ("They name AI among what it was made from or with.",),
        ),
        (
            store(manifest(training(ai_training="notAllowed")), manifest()),  # another picture's wish
            (),
        ),
        (
            store(manifest(training(OLDER, ai_generative_training="notAllowed", ai_training="allowed"))),
            ("They allow that it is used to train AI.", "They ask that it is not used to train generative AI."),
        ),
        (
            store(manifest(training(ai_training="constrained", ai_generative_training="constrained"))),
            ("They allow that it is used to train AI only under terms that they name.",),
        ),
        (
            store(manifest(training(ai_training="allowed"), training(OLDER, ai_training="notAllowed"))),
            ("They ask that it is not used to train AI.",),  # the stricter one
        ),
        (
            store(manifest(superbox("cawg.training-mining", box(b"cbor", b"\xbf\xff")))),
            ("They have a statement on data mining, in which nothing on training AI could be read.",),
        ),
        (
            store(
                manifest(
                    superbox(
                        OLDER,
                        box(b"json", json.dumps({"entries": {"c2pa.ai_training": {"use": "notAllowed"}}}).encode()),
                    )
                )
            ),
            ("They ask that it is not used to train AI.",),
        ),
    ],
)
def test_what_content_credentials_say_is_told_as_far_as_it_can_be_read(held, said):
    assert marks_of(png(held=held)).said == (CARRIES, *said, TOLD)


@pytest.mark.parametrize(
    "held", [b"no box", superbox("other", kind=b"json"), box(b"jumb", b""), STORE[:20], b"\0" * 99]
)
def test_what_is_no_store_is_none(held):
    assert not credentials_of(held).there and marks_of(png(held=held)).said == ()


def test_cbor_is_read_and_bounded():
    assert cbor(packed({"a": [True, {"b": "x" * 40}], "c": False})) == {"a": [True, {"b": "x" * 40}], "c": False}
    assert cbor(bytes.fromhex("830120c1f6")) == [1, -1, None]
    for bad in (
        b"",
        b"\x9b" + b"\xff" * 8,
        b"\x81" * (MOST_DEPTH + 2),
        b"\x98\xff" + b"\0" * 20,
        b"\x9f\0\xff",
        b"\x1e",
    ):
        with pytest.raises(ValueError, match=r"cut off|too much|no length"):
            cbor(bad)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_metadata_never_raises(kind):
    rng, whole = np.random.default_rng(0), np.frombuffer(FILES[kind](XMP, STORE), np.uint8)
    for _ in range(300):
        bad = whole.copy()
        bad[rng.integers(0, len(bad), 20)] = rng.integers(0, 256, 20)
        data = bad[: rng.integers(1, len(bad) + 1)].tobytes()
        marks_of(data)
        metadata_of(data, kind)


def nested(n: int) -> bytes:
    """A superbox in a superbox, n deep."""
    inner = b""
    for _ in range(n):
        inner = superbox("c2pa.assertions", inner)
    return inner


def said_of(n: int) -> bytes:
    """A statement with so many entries of their own."""
    entries = {f"cawg.{i}": {"use": "notAllowed"} for i in range(n)}
    return superbox("cawg.training-mining", box(b"json", json.dumps({"entries": entries}).encode()))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "statements of many entries": lambda: png(held=store(manifest(*[said_of(1500)] * 380))),
    "statements of many values": lambda: png(
        held=store(manifest(*[superbox("c2pa.training-mining", box(b"cbor", b"\x99\x27\x06" + b"\xf5" * 9990))] * 2400))
    ),
    "XMP that unpacks to 60 MB": lambda: png(b" " * 60_000_000, squeezed=True),
    "XMP of nothing but names": lambda: webp(b"<a:DataMining " * 1_700_000),
    "comments that do not end": lambda: webp(b"<!--" * 6_000_000),
    "boxes of no length": lambda: png(held=store(box(b"jumb", b"") * 3_000_000)),
    "boxes in boxes": lambda: png(held=store(nested(3000))),
    "many chunks": lambda: encoded(PICTURE)[:33] + chunk(b"caBX", b"") * 2_000_000,
    "many segments": lambda: jpeg()[:2] + segment(0xEB, b"JP") * 3_000_000,
    "many packets": lambda: jpeg()[:2] + segment(0xE1, JPEG_XMP) * 700_000,
    "many markers": lambda: jpeg()[:2] + b"\xff\xd0" * 12_000_000,
    "a large AVIF": lambda: avif() + b"<rdf:RDF" * 3_000_000,
    "a TIFF of tags": lambda: (
        b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 700, 7, 2**31, 1) * 65_535 + bytes(24_000_000)
    ),
}


@pytest.mark.parametrize("link", [b"\0\0\0", struct.pack(">HB", 9, 0), struct.pack(">HB", 7, 255)])
def test_an_avif_of_many_links_takes_no_time(link):
    links, kinds = b"\0\0\0\0\xff\xff\xff\xff" + link * 3_000_000, box(b"colr", b"prof") * 900_000
    iprp = box(b"iprp", box(b"ipco", kinds) + box(b"ipma", links))
    data = box(b"meta", bytes(4) + box(b"pitm", bytes(4) + b"\0\7") + iprp)
    began = time.process_time()
    assert coded_colours(data) is None and time.process_time() - began < 1.0


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_of_25_mb_take_no_time(what):
    data = HOSTILE[what]()
    began = time.process_time()
    marks_of(data)
    assert time.process_time() - began < 1.0


def test_a_usual_upload_is_not_slowed():
    data = encoded(PICTURE)
    large = data[:-12] + chunk(b"IDAT", bytes(8192)) * 3000 + chunk(b"caBX", STORE) + data[-12:]
    began = time.process_time()
    assert marks_of(large).said
    assert time.process_time() - began < 0.2


def test_heic_files_are_read_too():
    pillow_heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    pillow_heif.from_pillow(PICTURE).save(out, xmp=XMP)
    said = marks_of(out.getvalue() + box(b"uuid", C2PA_BOX + bytes(4) + b"manifest\0" + bytes(8) + STORE)).said
    assert said[:3] == (MADE_BY_AI, NO_TRAINING, CARRIES)
