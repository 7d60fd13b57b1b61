"""The weight of GUDA's offset for one model and group set: `calibration.json`, fitted to retrained models.

    {"offset_weight": 1.04, "fitted": how, "command": ..., "date": ..., "base_sha256": ..., "group_set": ...}

It holds for that model and that set alone. Where there is none, the score is the paper's, without an offset.
`python -m experiments.offset` fits it and writes the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from guda_core.attribution import run_files

FILE = "calibration.json"
MEND = "Fit it again with `python -m experiments.offset`, or remove the file: the score is then the paper's."


class Calibration(run_files.RunFile):
    """offset_weight: >= 0. fitted, command, date: where it comes from. queries: that it was fitted to."""

    offset_weight: Annotated[float, Field(ge=0)]
    fitted: str = ""
    command: str = ""
    date: str = ""
    queries: Annotated[int, Field(ge=0)] | None = None
    unrounded: float | None = None


def read_calibration(path: Path, *, base_sha256: str, group_set: str) -> Calibration:
    """The file, checked.

    Raises:
        CacheError: it is damaged, or of another model or group set.
    """
    found = run_files.read_object(path, MEND)
    return run_files.checked(Calibration, path.name, found, base_sha256=base_sha256, group_set=group_set, mend=MEND)


def read_weight(path: Path | None, *, base_sha256: str, group_set: str) -> float | None:
    """The offset's weight, >= 0; None where there is no file.

    Raises:
        CacheError: the file is damaged, or of another model or group set.
    """
    if path is None or not path.is_file():
        return None
    return float(read_calibration(path, base_sha256=base_sha256, group_set=group_set).offset_weight)


def write_weight(path: Path, weight: float, *, base_sha256: str, group_set: str, **how: Any) -> None:
    """Write the file. how: `fitted`, `command`, `date` and what else tells where the weight comes from.

    Raises:
        CacheError: it cannot be written; the one of before stays.
    """
    record = {"offset_weight": weight, **how, "base_sha256": base_sha256, "group_set": group_set}
    with run_files.in_place_of(path) as aside:
        aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
