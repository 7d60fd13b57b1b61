"""What Content Credentials (C2PA) in a picture's file say of AI. Their signature is not checked.

    store     JUMBF superbox "c2pa"             one manifest after the other; the last one is the picture's own
    manifest  its superbox "c2pa.assertions"    one superbox for each assertion, named by its label
    actions   "digitalSourceType": an address of IPTC's list, found as text
    training  assertion c2pa.training-mining or cawg.training-mining, CBOR (or JSON):
              {"entries": {"cawg.ai_training": {"use": "notAllowed"}, ...}}

JUMBF: ISO 19566-5. A box begins with its length and type; a superbox with a box "jumd": 16 bytes of type, a byte of
flags, its label. CBOR: RFC 8949. Nothing here raises, whatever the bytes are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from guda_core.data.metadata import boxes

SOURCES = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic", "algorithmicMedia")
SOURCE = re.compile(rb"/digitalsourcetype/(" + "|".join(SOURCES).encode() + rb")")
ASSERTIONS, TRAINING = "c2pa.assertions", ("c2pa.training-mining", "cawg.training-mining")
USES = ("notAllowed", "constrained", "allowed")  # the strictest first
ABOUT = ("ai_training", "ai_generative_training", "data_mining", "ai_inference")
MOST_STATEMENTS = 8  # on training that are looked at
MOST_BOXES, MOST_TRAINING = 10_000, 65_536  # boxes side by side, and bytes of an assertion, that are looked at
MOST_VALUES, MOST_DEPTH = 10_000, 16  # of CBOR


@dataclass(frozen=True)
class Credentials:
    """there: whether there is a manifest store. sources: digital source types that name AI or an algorithm, in the
    picture's own manifest; before: in those of what it was made from. training: what is said of the training of AI:
    one of `ABOUT` -> the strictest of `USES`; None where there is no such statement, {} where it cannot be read."""

    there: bool = False
    sources: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    training: Mapping[str, str] | None = field(default=None)


def credentials_of(store: bytes) -> Credentials:
    """What a manifest store says. store: a JUMBF box; anything else counts as none."""
    root = next(_superboxes(store, 0, len(store)), None)
    if root is None or root[0] != "c2pa":
        return Credentials()
    _, start, end = root
    own = start
    for _, own, _ in _superboxes(store, start, end):  # noqa: B007  (the last one counts)
        pass
    said: dict[str, str] | None = None
    for first, last in islice(_statements(store, own, end), MOST_STATEMENTS):
        said = said or {}
        for about, use in _training(store, first, last):
            said[about] = min(said.get(about, use), use, key=USES.index)
    return Credentials(True, _sources(store, own, end), _sources(store, start, own), said)


def _statements(store: bytes, own: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the assertions on training in the picture's own manifest lie."""
    for part, at, after in _superboxes(store, own, end):
        for label, first, last in _superboxes(store, at, after) if part == ASSERTIONS else ():
            if label.partition("__")[0] in TRAINING:
                yield first, last


def _superboxes(data: bytes, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """(label, where its content starts, where it ends) of the superboxes side by side."""
    for name, at, after in islice(boxes(data, start, end), MOST_BOXES):
        first = next(boxes(data, at, after), None) if name == b"jumb" else None
        if first is not None and first[0] == b"jumd":
            _, told, over = first
            label = data[told + 17 : min(over, told + 17 + 200)].partition(b"\0")[0]
            yield label.decode("utf-8", "replace"), over, after


def _sources(data: bytes, start: int, end: int) -> frozenset[str]:
    return frozenset(m[1].decode() for m in SOURCE.finditer(data, start, end))


def _training(data: bytes, start: int, end: int) -> Iterator[tuple[str, str]]:
    """(what, one of `USES`) of an assertion; nothing where it cannot be read."""
    for name, at, after in islice(boxes(data, start, end), 2):
        body = data[at : min(after, at + MOST_TRAINING)]
        try:
            told = cbor(body) if name == b"cbor" else json.loads(body) if name == b"json" else None
        except (ValueError, RecursionError):
            continue
        entries = told.get("entries") if isinstance(told, dict) else None
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            use, about = entry.get("use") if isinstance(entry, dict) else None, key.rpartition(".")[2]
            if use in USES and about in ABOUT:
                yield about, str(use)


def cbor(data: bytes) -> Any:
    """The first value in CBOR: numbers, bytes, text, lists, objects by text, true, false; None for anything else.

    Raises:
        ValueError: it is cut off, nested too deeply, too large, or in a form without lengths, which C2PA does not use.
    """
    return _Cbor(data).value(0)


class _Cbor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.left = data, 0, MOST_VALUES

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise ValueError("cut off")
        self.at += n
        return self.data[self.at - n : self.at]

    def value(self, depth: int) -> Any:
        self.left -= 1
        if depth > MOST_DEPTH or self.left < 0:
            raise ValueError("too much")
        head = self.take(1)[0]
        major, n = head >> 5, head & 31
        if n > 27:
            raise ValueError("no length")
        if n > 23:
            n = int.from_bytes(self.take(1 << (n - 24)), "big")
        match major:
            case 0 | 1:
                return n if major == 0 else -1 - n
            case 2:
                return self.take(n)
            case 3:
                return self.take(n).decode("utf-8", "replace")
            case 4:
                return [self.value(depth + 1) for _ in range(n)]
            case 5:
                pairs = [(self.value(depth + 1), self.value(depth + 1)) for _ in range(n)]
                return {k: v for k, v in pairs if isinstance(k, str)}
            case 6:  # a tag says how a value is meant
                return self.value(depth + 1)
        return {20: False, 21: True}.get(n) if head < 0xF8 else None  # null, and floats
