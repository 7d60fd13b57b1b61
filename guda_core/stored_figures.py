"""Figures that were measured earlier and lie in JSON files: read as they are repeated in reports and on screens."""

from __future__ import annotations

import hashlib
import json
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
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_FILE else b""
        figures = json.loads(data, parse_constant=lambda _: None) if data else None
    except (OSError, ValueError, RecursionError):
        return f"{path.name} is damaged."
    if isinstance(figures, dict):
        told = _digest(figures)
        if len(json.dumps(told)) > MAX_FIGURES:
            return f"{path.name} is too large to be repeated here; its SHA-256 is {hashlib.sha256(data).hexdigest()}."
        return {**told, "sha256": hashlib.sha256(data).hexdigest()}
    if data:
        return f"{path.name} is damaged."
    return (
        f"{path.name} is too large."
        if path.is_file() and path.stat().st_size
        else (f"There is no {path.name}: this was not measured.")
    )


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
