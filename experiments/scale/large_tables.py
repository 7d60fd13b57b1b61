"""Made-up tables: how long a million rows take to answer, and what a row and a name weigh."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from experiments.scale import made_up
from guda_core.scoring import parts, places
from guda_core.scoring.asking import Asked, Results
from guda_core.scoring.listing import Listing
from guda_core.scoring.summary_page import page

PAGE = 50


def measure(work: Path, rows: int) -> dict[str, Any]:
    """Seconds of questions to a made-up table of so many rows; bytes of a row. work: a folder for it."""
    pictures = made_up.make(work / "made-up", rows)
    began = time.perf_counter()
    found = Results(str(work / "made-up"))
    text = page(found.summary(), "made up")
    summary = time.perf_counter() - began
    began = time.perf_counter()
    found.rows(Asked(group="group-3", method="guda", text="77"), order="score", limit=PAGE, start=PAGE)
    search = time.perf_counter() - began
    began = time.perf_counter()
    found.rows(Asked(picture=f"made/{pictures // 2:07d}.png"))
    one = time.perf_counter() - began
    size = sum(Path(p).stat().st_size for p in places.files(str(work / "made-up" / parts.FOLDER), parts.ENDING))
    return {
        "rows": found.count(Asked()),
        "pictures": pictures,
        "summary_s": round(summary, 3),
        "search_s": round(search, 3),
        "one_picture_s": round(one, 3),
        "bytes_per_row": round(size / rows, 1),
        "page_bytes": len(text),
    }


def listing(work: Path, names: int) -> float:
    """Seconds until a table of so many names of pictures is read and written as the list of a run."""
    table = work / "names.csv"
    with table.open("w", encoding="utf-8") as f:
        f.write("file,prompt\n")
        f.writelines(f"pictures/{i:08d}.png,a made-up caption {i % 97}\n" for i in range(names))
    began = time.perf_counter()
    Listing([str(table)]).write(str(work / "listed"), 3907)
    return round(time.perf_counter() - began, 3)
