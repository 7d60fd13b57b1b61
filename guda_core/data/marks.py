"""Marks in a picture's file that say "made by AI" or "not for training AI". They are told, not judged.

    XMP     Iptc4xmpExt:DigitalSourceType   http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia, ...
            plus:DataMining                 http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING, ...
    C2PA    Content Credentials             (`credentials`)

(IPTC Photo Metadata Standard 2023.1; PLUS License Data Format; C2PA and CAWG specifications.) A mark changes no score
and no verdict: anybody can write one into a file, or take it out. XMP is searched as text; no XML is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from guda_core.data.credentials import Credentials, credentials_of
from guda_core.data.decoding import kind_of
from guda_core.data.metadata import metadata_of

PROPERTY = re.compile(rb":(DigitalSourceType|DataMining)(?=[\s=>])")
VALUE = re.compile(rb"""\s*=\s*["']([^"']*)["']|[^<>]*?\bresource\s*=\s*["']([^"']*)["']|[^<>]*>([^<]*)<""")
MOST_FOUND, WINDOW = 64, 500  # properties that are looked at, and bytes after each
COMMENT = b"<!--"
PASSED_OVER = (  # comments, and what is told of other pictures
    (COMMENT, b"-->"),
    (b"<xmpMM:Pantry", b"</xmpMM:Pantry"),
    (b"<xmpMM:Ingredients", b"</xmpMM:Ingredients"),
)

MADE = {  # digital source type -> what the file says
    "trainedAlgorithmicMedia": "was made by AI",
    "compositeWithTrainedAlgorithmicMedia": "was made in part by AI",
    "compositeSynthetic": "was put together from parts, some of them made by a computer",
    "algorithmicMedia": "was made by an algorithm that learned from no pictures",
}
TERMS = "is not used for data mining, such as training AI, except under its owner's terms"
ASKED = {  # value of plus:DataMining -> what the file asks
    "DMI-PROHIBITED": "is not used for data mining, such as training AI",
    "DMI-PROHIBITED-AIMLTRAINING": "is not used to train AI",
    "DMI-PROHIBITED-GENAIMLTRAINING": "is not used to train generative AI",
    "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING": "is used by no machine but search engines, so not to train AI",
    "DMI-PROHIBITED-SEECONSTRAINT": TERMS,
    "DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR": TERMS,
    "DMI-PROHIBITED-SEELINKEDRIGHTSEXPR": TERMS,
}
TRAINED = {"ai_training": "to train AI", "ai_generative_training": "to train generative AI"}
TOLD = (
    "Such marks are told, not judged: anybody can write them into a file, or take them out. No score depends on them."
)


@dataclass(frozen=True)
class Marks:
    """said: a sentence for each mark, () where there is none; the last one says how marks are meant. asks: whether one
    asks that the picture is not used to train AI, or only under terms of its own."""

    said: tuple[str, ...] = ()
    asks: bool = False


def marks_of(data: bytes) -> Marks:
    """The marks in the bytes of a picture's file, whatever its kind; of a damaged file, those that can be read."""
    found = metadata_of(data, kind_of(data))
    sources, mining = _in_xmp(found.xmp)
    known = credentials_of(found.store)
    said = [f"The file says that it {MADE[s]} (IPTC digital source type)." for s in MADE if s in sources]
    said += [f"The file asks that it {ASKED[v]} (PLUS data mining)." for v in ASKED if v in mining]
    if "DMI-ALLOWED" in mining:
        said.append("The file allows data mining, such as training AI (PLUS data mining).")
    said += list(_by_credentials(known))
    strict = [k for k, use in (known.training or {}).items() if k in TRAINED and use != "allowed"]
    return Marks((*said, TOLD), bool(strict or mining & set(ASKED))) if said else Marks()


def _by_credentials(known: Credentials) -> Iterator[str]:
    if not known.there:
        return
    yield "The file carries Content Credentials (C2PA). Their signature was not checked."
    yield from (f"They say that it {MADE[s]}." for s in MADE if s in known.sources)
    if not known.sources and known.before & {"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"}:
        yield "They name AI among what it was made from or with."
    if known.training is None:
        return
    uses = {k: known.training[k] for k in TRAINED if k in known.training}
    if not uses:
        yield "They have a statement on data mining, in which nothing on training AI could be read."
    for key, use in uses.items():
        if key == "ai_generative_training" and use == uses.get("ai_training"):
            continue  # said already
        what = "ask that it is not used" if use == "notAllowed" else "allow that it is used"
        only = " only under terms that they name" if use == "constrained" else ""
        yield f"They {what} {TRAINED[key]}{only}."


def _in_xmp(xmp: bytes) -> tuple[set[str], set[str]]:
    """Values of the digital source type and of data mining, each without the address before its name."""
    xmp = xmp.replace(b"\0", b"")  # of UTF-16
    for begin, end in PASSED_OVER:
        xmp = _without(xmp, begin, end)
    found: dict[bytes, set[str]] = {b"DigitalSourceType": set(), b"DataMining": set()}
    for name in islice(PROPERTY.finditer(xmp), MOST_FOUND):
        value = VALUE.match(xmp[name.end() : name.end() + WINDOW])
        if value is not None:
            text = next(v for v in value.groups() if v is not None).decode("utf-8", "replace")
            found[name[1]].add(re.split("[/:]", text.strip())[-1])
    return found[b"DigitalSourceType"], found[b"DataMining"]


def _without(text: bytes, begin: bytes, end: bytes) -> bytes:
    """The text without all that stands between two marks; to its end, where the second is missing."""
    kept, at = [], 0
    while (start := text.find(begin, at)) >= 0:
        kept.append(text[at:start])
        closed = text.find(b">", start)
        if begin != COMMENT and text[closed - 1 : closed] == b"/":  # an element without content
            at = closed + 1
            continue
        over = text.find(end, start)
        if over < 0:
            return b"".join(kept)
        at = over + len(end)
    return b"".join([*kept, text[at:]])
