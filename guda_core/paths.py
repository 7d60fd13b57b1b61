"""Where things lie. Every other module asks here; no path is built from a module's own place or the working
directory."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"  # the embedded model, its adapters and figures
BENCHMARKS = ASSETS / "benchmarks"  # figures, and the arrays and queries that they come from
STYLE_GROUPS = ROOT / "style_groups"  # group sets
DOCS = ROOT / "docs"  # pages and their pictures


def cache_dir() -> Path:
    """The folder for everything that can be made again: `GUDA_CACHE`, or ~/.cache/guda."""
    return Path(os.environ.get("GUDA_CACHE") or Path.home() / ".cache" / "guda")
