"""What the pages' tables share: the committed records, and how a figure and its source are written."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from guda_core.paths import BENCHMARKS, SHIPPED_RUN

FOLDER = BENCHMARKS
ADAPTERS = SHIPPED_RUN / "adapters"
LIVE = SHIPPED_RUN / "oracle"
UNKNOWN = "Not measured yet."
Lines = Iterable[Sequence[Any] | str]  # the cells of a row, the heads first, or a text; "" parts two tables


def read(name: str) -> dict[str, Any] | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def value(v: dict[str, float], digits: int = 2) -> str:
    return f"{v['value']:z.{digits}f} ({ends(v, digits)})"


def ends(v: dict[str, float], digits: int = 2) -> str:
    """The ends of an interval. One that would read as 0 has one more digit, where that tells it from 0."""
    both = ([f"{v[k]:z.{n}f}" for n in (digits, digits + 1)] for k in ("low", "high"))
    return " to ".join(more if float(more) and not float(text) else text for text, more in both)


def source(record: dict[str, Any], name: str) -> str:
    return f"(`{record['command']}`, {record['date'][:10]}, `assets/benchmarks/{name}.json`.)"


def written(lines: Lines) -> str:
    """Tables and texts, an empty line between two."""
    parts: list[str] = []
    for is_text, found in groupby(lines, lambda line: isinstance(line, str)):
        if is_text:
            parts += [str(text) for text in found if text]
        else:
            heads, *rows = (f"| {' | '.join(map(str, cells))} |" for cells in found)
            heads = heads.replace("|  |", "| |")
            parts.append("\n".join([heads, "|" + "---|" * (heads.count(" | ") + 1), *rows]))
    return "\n\n".join(parts)


def table(name: str, *keys: str) -> Callable[[Callable[[Any], Lines]], Callable[[], str]]:
    """Makes of lines of a record, or of what lies under these keys in it, their text with the record's source: after
    the last line where that is a text. `UNKNOWN` where there is none."""

    def of(lines: Callable[[Any], Lines]) -> Callable[[], str]:
        def render() -> str:
            record = read(name) or {}
            part = functools.reduce(lambda d, k: d.get(k) or {}, keys, record)
            found = list(lines(part)) if part else []
            if not found:
                return UNKNOWN
            if isinstance(found[-1], str) and found[-1]:
                return written([*found[:-1], f"{found[-1]} {source(record, name)}"])
            return written([*found, source(record, name)])

        return render

    return of
