"""Small changes of sound inputs: of bytes, of what JSON can hold, of texts, of the headers of safetensors files."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import count
from random import Random
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

DEEP, HUGE, ENDLESS = "@deep@", "@huge@", "@endless@"  # stand for what `json_text` puts in their place
RAW = {DEEP: "[" * 5000 + "]" * 5000, HUGE: "9" * 6000, ENDLESS: "1e999"}
ODD = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "\0", "\n", "a\nb", "a" * 300, "a" * 100_000, "\ud800", "\u202e", "٣", "..", "../../x", "/etc/passwd",
    "~nobody/x", "[/b]", "{name}", "{0.__class__}", "https://example.org/a", "=1+1", "-", [], {}, [[]], [None],
    {"": ""}, {"a": [1]}, [1] * 1000, DEEP, HUGE, ENDLESS,
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "cp037")


def packed(files: Mapping[str, bytes]) -> bytes:
    """Several files as one input."""
    return json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}).encode()


def unpacked_files(data: bytes) -> dict[str, bytes]:
    """What `packed` packed."""
    return {name: base64.b64decode(text) for name, text in json.loads(data).items()}


def bent_bytes(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes of bytes: bits, runs, cuts, copies, and parts of other inputs."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return bytes(out)
        at, n = rng.randrange(len(out)), rng.choice((1, 2, 4, 16, 256))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + n] = bytes(rng.choice((0, 255, 0x7F)) for _ in out[at : at + n])
        elif kind == 2:
            out[at : at + n] = rng.randbytes(n)
        elif kind == 3:
            del out[at : len(out) if rng.random() < 0.5 else at + n]
        elif kind == 4:
            out[at:at] = out[at : at + n] * rng.choice((1, 1, 50))
        elif kind == 5:
            out[at:at] = rng.randbytes(n)
        elif kind == 6 and others:
            other = rng.choice(others)
            start = rng.randrange(max(1, len(other)))
            out[at : at + n] = other[start : start + rng.choice((n, 4096))]
        else:
            form = rng.choice(("<I", ">I", "<H", ">H", "<Q"))
            most = 2 ** (8 * struct.calcsize(form)) - 1
            value = struct.pack(form, min(most, rng.choice((0, 1, 255, 65535, 2**31 - 1, 2**32 - 1, most))))
            out[at : at + len(value)] = value
    return bytes(out)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, v in inner:
        yield from _places(v, (*path, key))


def bent_value(rng: Random, value: Any, odd: Sequence[Any] = ODD) -> Any:
    """A copy of what JSON can hold with one to three changes of its places."""
    out = json.loads(json.dumps(value))

    def strange() -> Any:
        return deepcopy(rng.choice(odd))  # a copy: a later change must not reach the list itself

    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [p for p in _places(out) if p]
        if not places or rng.random() < 0.01:
            return strange()
        path = rng.choice(places)
        parent: Any = out
        for key in path[:-1]:
            parent = parent[key]
        last, kind = path[-1], rng.randrange(10)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, dict):
            parent[str(strange())[:2000]] = parent.pop(last)
        elif kind == 2 and isinstance(parent, dict):
            parent[str(strange())[:2000]] = strange()
        elif kind == 3 and isinstance(parent, list):
            parent.extend(deepcopy(parent[last]) for _ in range(rng.choice((1, 3, 100))))
        elif kind == 4 and isinstance(parent[last], str) and parent[last]:
            text = parent[last]
            parent[last] = rng.choice((text[:-1], text + text, text.upper(), f"{text}\n", f"\0{text}", text[::-1]))
        elif kind == 5 and isinstance(parent[last], int | float):
            parent[last] = rng.choice((-parent[last], parent[last] * 10**9, parent[last] + 0.5, str(parent[last])))
        else:
            parent[last] = strange()
    return out


def json_text(value: Any, *, indent: int | None = None) -> str:
    """As JSON, with NaN, numbers without end and deep nests where the marks for them stand."""
    text = json.dumps(value, indent=indent)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def bent_text(rng: Random, text: str, tokens: Sequence[str]) -> bytes:
    """Tokens put in, lines dropped, doubled and exchanged; then written in some encoding."""
    lines = text.split("\n")
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(lines)), rng.randrange(6)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 2:
            lines.insert(at, rng.choice(tokens))
        elif kind == 3:
            lines[at] += rng.choice(tokens)
        else:
            cut = rng.randrange(len(lines[at]) + 1)
            keep = rng.choice((0, 1, len(lines[at])))
            lines[at] = lines[at][:cut] + rng.choice(tokens) + lines[at][cut + keep :]
    return rng.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode(rng.choice(ENCODINGS), "replace")


def bent_safetensors(rng: Random, data: bytes) -> bytes:
    """A safetensors file with a changed header, changed bytes, or changed values."""
    kind = rng.randrange(4)
    if kind == 0:
        return bent_bytes(rng, data)
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if kind == 1 and len(body) >= 4:
        for _ in range(rng.randint(1, 50)):
            at = rng.randrange(len(body) // 4) * 4
            body[at : at + 4] = rng.choice((b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", b"\0\x7c\0\x7c", b"\xff\x7b\xff\x7b"))
    elif kind == 2:
        names = [n for n in header if n != "__metadata__"]
        for name in rng.sample(names, min(len(names), rng.randint(1, 3))):
            entry = header[name]
            change = rng.randrange(5)
            if change == 0:
                entry["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X"))
            elif change == 1:
                entry["shape"] = rng.choice(([], [0], [-1], entry["shape"][::-1], [1, *entry["shape"]], [2**40, 2**40]))
            elif change == 2:
                header[name + rng.choice(("x", ".weight", "\0", ""))] = header.pop(name)
            elif change == 3:
                entry["data_offsets"] = [rng.choice((0, -1, 2**63, len(body))), rng.choice((0, 8, len(body) * 2))]
            else:
                del header[name]
    else:
        header = bent_value(rng, header)
    text = json_text(header).encode()
    return struct.pack("<Q", rng.choice((len(text),) * 9 + (2**62,))) + text + bytes(body)


def plain_safetensors(
    tensors: Mapping[str, tuple[str, list[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file of zeros. tensors: name -> (type, shape, bytes of one value)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (kind, shape, width) in tensors.items():
        n = width
        for side in shape:
            n *= side
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def drawn(strategy: st.SearchStrategy[Any], seed: int) -> Iterator[Any]:
    """What hypothesis draws from a strategy, without end, the same for the same seed."""
    for batch in count():
        yield from _batch(strategy, seed * 1_000_003 + batch)


def _batch(strategy: st.SearchStrategy[Any], seed: int) -> list[Any]:
    found: list[Any] = []

    @hypothesis.settings(
        max_examples=100,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)
    @hypothesis.given(value=strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found
