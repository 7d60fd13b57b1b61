"""What the pages' tables share: the committed records, and how a figure and its source are written."""

from __future__ import annotations

import json
from typing import Any

from guda_core.paths import BENCHMARKS, SHIPPED_RUN

FOLDER = BENCHMARKS
ADAPTERS = SHIPPED_RUN / "adapters"
LIVE = SHIPPED_RUN / "oracle"
UNKNOWN = "Not measured yet."


def read(name: str) -> dict[str, Any] | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def value(v: dict[str, float], digits: int = 2) -> str:
    return f"{v['value']:z.{digits}f} ({v['low']:z.{digits}f} to {v['high']:z.{digits}f})"


def source(record: dict[str, Any], name: str) -> str:
    return f"(`{record['command']}`, {record['date'][:10]}, `assets/benchmarks/{name}.json`.)"
