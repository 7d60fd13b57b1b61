"""One part of the table: a Parquet file, written in one go and checked when it is read.

What is beside the rows in the file names how many there are and their SHA-256. So a part that was cut short, or whose
bytes changed, is found, and its pictures are scored again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guda_core.scoring import places
from guda_core.scoring.listing import exact, json_rows, quoted, shared
from guda_core.scoring.table_rows import COLUMNS, Row

log = logging.getLogger(__name__)
FOLDER, ENDING = "parts", ".parquet"
MAGIC = b"PAR1"  # the last bytes of a Parquet file
KEY = "guda"


def place_of(out: str, part: int) -> str:
    """Where a part of the results is."""
    return places.joined(places.joined(out, FOLDER), f"{part:06d}{ENDING}")


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows' values, in order."""
    return hashlib.sha256(json.dumps([list(r.values()) for r in rows]).encode()).hexdigest()


def write(place: str, rows: Sequence[Row]) -> None:
    """Write a part.

    Raises:
        ReportError: the disk is full, or the place cannot be written to.
    """
    told = json.dumps({"rows": len(rows), "sha256": digest(rows)})
    with tempfile.TemporaryDirectory(prefix="guda-") as folder, shared() as connection:
        path = Path(folder) / f"part{ENDING}"
        options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{KEY}: '{told}'}}"
        into = f"COPY (SELECT * FROM given) TO {quoted(str(path))} ({options})"
        json_rows(connection, COLUMNS, iter(rows), into)
        places.write(place, path.read_bytes())


def read(place: str) -> list[Row]:
    """The rows of a part; none where there is no such part, or it is not whole (which is logged)."""
    import duckdb

    if not places.is_file(place):
        return []
    try:
        with shared() as connection:
            places.register(connection, place)
            ((_, told),) = connection.execute(
                "SELECT key, value FROM parquet_kv_metadata(?) WHERE key = ?", [exact(place), KEY.encode()]
            ).fetchall()
            found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM read_parquet(?)", [exact(place)]).fetchall()
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in found]
        if json.loads(told) != {"rows": len(rows), "sha256": digest(rows)}:
            raise ValueError("its rows are not those that were written")
    except (OSError, ValueError, duckdb.Error) as e:
        log.warning("%s is not whole, so its pictures are scored again (%s).", place, str(e)[:200])
        return []
    return rows


def whole(places_of_parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(parts that end as Parquet files do, parts that were cut short)."""
    good, cut = [], []
    for place in places_of_parts:
        try:
            (good if places.read_tail(place, len(MAGIC)) == MAGIC else cut).append(place)
        except OSError:
            cut.append(place)
    return good, cut
