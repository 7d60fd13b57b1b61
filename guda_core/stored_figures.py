"""Figures that were measured earlier and lie in JSON files: read as they are repeated in reports and on screens."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

MAX_FIGURES = 256_000  # bytes of one file of figures, as it is repeated
MAX_FILE = 8_000_000  # bytes of one that is read
NO_FIGURES = (
    "queries.json",
    "soak.json",
    "engine.json",
    "held-back.json",
    "sizes.json",
    "timesteps.json",
)  # what lies beside the figures and tells nothing of answers
FRESH = "fresh/styles.json"  # agreement on pictures that no setting was ever tried on
DIGEST = ("command", "oracle", "base_sha256", "versions", "date")  # of a table of agreement, beside its rows


def read_figures(path: Path) -> dict[str, Any] | str:
    """The JSON object in a file of figures measured earlier, with the file's `sha256`; or why there is none.

    Values that are not finite become null. Of a table of agreement with the oracle only a digest is given: Top-1 and
    MRR over the queries that are held for the report; of the fresh queries' table, over all.
    """
    try:
        at = path.stat() if path.is_file() else None
    except OSError:
        at = None
    return json.loads(_read(path, (at.st_mtime_ns, at.st_size, at.st_ino) if at else None))


@lru_cache(maxsize=256)
def _read(path: Path, stamp: tuple[int, int, int] | None) -> str:
    """What `read_figures` gives, as JSON: a server reads the same large files for every answer. stamp: another one for
    another file."""
    try:
        data = path.read_bytes() if stamp and stamp[1] <= MAX_FILE else b""
        figures = json.loads(data, parse_constant=lambda _: None) if data else None
        json.dumps(figures, allow_nan=False)  # 1e999 is read as infinite
    except (OSError, ValueError, RecursionError):
        return json.dumps(f"{path.name} is damaged.")
    sha256 = hashlib.sha256(data).hexdigest()
    if isinstance(figures, dict):
        told = json.dumps({**_digest(figures), "sha256": sha256})
        too_large = f"{path.name} is too large to be repeated here; its SHA-256 is {sha256}."
        return told if len(told) <= MAX_FIGURES else json.dumps(too_large)
    if data:
        return json.dumps(f"{path.name} is damaged.")
    if stamp and stamp[1]:
        return json.dumps(f"{path.name} is too large.")
    return json.dumps(f"There is no {path.name}: this was not measured.")


def _digest(figures: dict[str, Any]) -> dict[str, Any]:
    name = "rows_report" if "rows_report" in figures else "rows"
    rows = figures.get(name)
    if not isinstance(rows, list) or (name == "rows" and "differences" not in figures):
        return figures
    kept = ("method", "query_set", "n", "groups", "top1", "mrr", *(("variation",) if name == "rows" else ()))
    report = [{k: r[k] for k in kept if k in r} for r in rows if isinstance(r, dict)]
    return {**{k: figures[k] for k in DIGEST if k in figures}, name: report}


def read_validation(folder: Path, *, base_sha256: str) -> dict[str, dict[str, Any] | str]:
    """The figures of every JSON file of the folder that names the base model it measured; of those that name another,
    only that they do."""
    files = {p.name: p for p in sorted(folder.glob("*.json")) if p.name not in NO_FIGURES}
    if (folder / FRESH).is_file():
        files[FRESH] = folder / FRESH
    found = {name: read_figures(p) for name, p in files.items()}
    for name, figures in list(found.items()):
        base = figures.get("base_sha256") if isinstance(figures, dict) else base_sha256
        if base is None:
            del found[name]
        elif base != base_sha256:
            found[name] = f"{name} measured another base model ({str(base)[:12]})."
    return found
