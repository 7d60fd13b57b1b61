"""One part of the table: a Parquet file, written in one go and checked when it is read.

What is beside the rows in the file names how many there are and their SHA-256. So a part that was cut short, or whose
bytes changed, is found, and its pictures are scored again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from guda_core.scoring import places
from guda_core.scoring.listing import exact, json_rows, quoted, shared
from guda_core.scoring.table_rows import COLUMNS, Row

log = logging.getLogger(__name__)
FOLDER, ENDING, KEY = "parts", ".parquet", "guda"
MAGIC = b"PAR1"  # the last bytes of a Parquet file


def place_of(out: str, part: int) -> str:
    """Where a part of the results is."""
    return places.joined(places.joined(out, FOLDER), f"{part:06d}{ENDING}")


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows' values, in order."""
    return hashlib.sha256(json.dumps([list(r.values()) for r in rows]).encode()).hexdigest()


def origin(made_from: Mapping[str, Any], part: int, count: int) -> str:
    """Which part of which tables it is: SHA-256 of all that decides the scores, and of the part's number of `count`."""
    return hashlib.sha256(json.dumps([made_from, part, count], sort_keys=True).encode()).hexdigest()


def number_of(place: str) -> int:
    """The number of a part by its file's name; -1 where it has none."""
    name = places.name_of(place).removesuffix(ENDING)
    return int(name) if name.isascii() and name.isdigit() else -1


def origins(connection: Any, places_of_parts: Sequence[str]) -> dict[str, str | None]:
    """Place -> its `origin`; None where an older version wrote none. Parts that are damaged are missing."""
    import duckdb

    try:
        return _origins(connection, places_of_parts)
    except duckdb.Error:  # of which one, it does not say
        found: dict[str, str | None] = {}
        for place in places_of_parts:
            with suppress(duckdb.Error):
                found |= _origins(connection, [place])
        return found


def _origins(connection: Any, places_of_parts: Sequence[str]) -> dict[str, str | None]:
    """Likewise. Raises duckdb.Error: one of them is damaged."""
    if not places_of_parts:
        return {}
    listed = ", ".join(quoted(exact(p)) for p in places_of_parts)
    query = f"SELECT file_name, value FROM parquet_kv_metadata([{listed}]) WHERE key = '{KEY}'"
    # by their names, which differ: DuckDB may write the folder in another way
    told = {places.name_of(p): value for p, value in connection.cursor().execute(query).fetchall()}
    named = {p: told.get(places.name_of(p)) for p in places_of_parts}
    return {p: None if value is None else json.loads(value).get("of") for p, value in named.items()}


def write(place: str, rows: Sequence[Row], *, of: str = "") -> None:
    """Write a part. of: its `origin`.

    Raises:
        ReportError: the disk is full, or the place cannot be written to.
    """
    import duckdb

    told = json.dumps({"rows": len(rows), "sha256": digest(rows), **({"of": of} if of else {})})
    try:
        with tempfile.TemporaryDirectory(prefix="guda-", ignore_cleanup_errors=True) as folder, shared() as connection:
            path = Path(folder) / f"part{ENDING}"
            options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{KEY}: '{told}'}}"
            into = f"COPY (SELECT * FROM given) TO {quoted(str(path))} ({options})"
            json_rows(connection, COLUMNS, iter(rows), into)
            data = path.read_bytes()
    except (OSError, duckdb.Error) as e:
        raise places.no_room(e) from e
    places.write(place, data)


def read(place: str, *, of: str = "") -> list[Row]:
    """The rows of a part; none where there is no such part, it is not whole, or its `origin` is another one (which is
    logged).

    Raises:
        ReportError: it cannot be read now, and may be whole.
    """
    import duckdb

    data = places.content(place)
    if data is None:
        return []
    try:
        with tempfile.TemporaryDirectory(prefix="guda-", ignore_cleanup_errors=True) as folder, shared() as connection:
            path = Path(folder) / f"part{ENDING}"  # else DuckDB's errors would not tell damage from a lost connection
            path.write_bytes(data)
            name = exact(str(path))
            ((_, told),) = connection.execute(
                "SELECT key, value FROM parquet_kv_metadata(?) WHERE key = ?", [name, KEY.encode()]
            ).fetchall()
            found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM read_parquet(?)", [name]).fetchall()
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in found]
        said = json.loads(told)
        if of and said.get("of", of) != of:
            raise ValueError("it is another part, or of another table")
        if (said["rows"], said["sha256"]) != (len(rows), digest(rows)):
            raise ValueError("its rows are not those that were written")
    except OSError as e:
        raise places.no_room(e) from e
    except (ValueError, TypeError, KeyError, duckdb.Error) as e:
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
