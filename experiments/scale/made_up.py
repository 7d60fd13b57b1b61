"""A made-up table of scores, of any size, in the layout of a real one: to see how fast large tables answer.

The scores are hash values and mean nothing. Everything about the folder says so: the model is called "made up".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guda_core.scoring import parts
from guda_core.scoring.listing import LARGEST, connect, quoted
from guda_core.scoring.scorer import MADE_FROM
from guda_core.scoring.table_rows import COLUMNS
from guda_core.scoring.table_run import FORMAT, TABLE

METHODS = ("guda", "clip")
GROUPS = 9
NAME = "made up: scores are hash values"
PICTURES = """
CREATE TABLE pictures AS SELECT p, printf('made/%07d.png', p) AS picture, hash(p) % 50 = 0 AS bad,
  hash(p) % 3 = 0 AS apart, hash(p) % 11 = 0 AS away, sha256(CAST(p AS VARCHAR)) AS sha FROM range({pictures}) a(p)
"""
ROWS = """
CREATE TABLE made AS
SELECT picture, ['guda', 'clip'][m + 1] AS "method", printf('group-%d', g) AS group_id,
  printf('Group %d', g) AS group_name,
  CAST(row_number() OVER (PARTITION BY p, m ORDER BY score DESC) AS INTEGER) AS rank, score, score - 3 AS low,
  score + 3 AS high, 'nats' AS unit, 'ok' AS status, '' AS reason, CASE WHEN m = 0 THEN apart END AS told_apart,
  CASE WHEN away THEN 'out of scope' ELSE 'in scope' END AS scope, CAST(0.5 AS DOUBLE) AS scope_p, '' AS prompt,
  picture AS place, sha AS file_sha256, sha AS pixels_sha256, 'quick' AS effort, 2 AS draws, sha AS seed,
  'made up' AS model_sha256, 'made up' AS adapter_sha256, 'cpu' AS device, 'made up' AS guda_version, p
FROM (SELECT *, hash(p * 1000 + m * 100 + g) / 18446744073709551615.0 * 40 - 10 AS score
      FROM pictures, range({methods}) b(m), range({groups}) c(g) WHERE NOT bad)
UNION ALL BY NAME
SELECT picture, 'refused' AS status, 'made up: a picture without a reason' AS reason, p FROM pictures WHERE bad
"""


def make(out: Path, rows: int) -> int:
    """Write a made-up table of at least so many rows; gives the number of its pictures."""
    pictures = -(-rows // (len(METHODS) * GROUPS)) * 53 // 50  # about a fiftieth has one row each
    n_parts = -(-pictures // LARGEST)
    (out / parts.FOLDER).mkdir(parents=True)
    with connect() as connection:
        connection.execute(PICTURES.format(pictures=pictures))
        connection.execute(ROWS.format(methods=len(METHODS), groups=GROUPS))
        connection.execute("SET threads = 1")  # one file a part
        chosen = f"SELECT {', '.join(COLUMNS)}, p // {LARGEST} AS part FROM made ORDER BY picture"
        connection.execute(
            f"COPY ({chosen}) TO {quoted(str(out / 'split'))} (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (part))"
        )
    for part in range(n_parts):
        (file,) = (out / "split" / f"part={part}").iterdir()
        file.rename(parts.place_of(str(out), part))
        file.parent.rmdir()
    (out / "split").rmdir()
    head: dict[str, Any] = {"format": FORMAT, "parts": n_parts, "begun": NAME, "guda_version": "made up"}
    (out / TABLE).write_text(json.dumps(head))
    made: dict[str, Any] = {"model": {"id": "made-up", "name": NAME}, "group_set": {"id": "made-up", "name": NAME}}
    made["settings"] = {"effort": "quick", "methods": list(METHODS)}
    (out / MADE_FROM).write_text(json.dumps(made))
    return pictures
