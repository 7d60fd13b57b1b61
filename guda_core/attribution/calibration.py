"""The weight of GUDA's offset for one model and group set: `calibration.json`, fitted to retrained models.

    {"offset_weight": 1.04, "fitted": how, "command": ..., "date": ..., "base_sha256": ..., "group_set": ...}

It holds for that model and that set alone. Where there is none, the score is the paper's, without an offset.
`python -m experiments.offset` fits it and writes the file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from guda_core.errors import CacheError
from guda_core.unlearning.adapter_files import read_json

FILE = "calibration.json"
MEND = "Fit it again with `python -m experiments.offset`, or remove the file: the score is then the paper's."


def read_weight(path: Path | None, *, base_sha256: str, group_set: str) -> float | None:
    """The offset's weight, >= 0; None where there is no file.

    Raises:
        CacheError: the file is damaged, or of another model or group set.
    """
    if path is None or not path.is_file():
        return None
    try:
        found = read_json(path)
    except (ValueError, OSError) as e:
        raise CacheError(f"{path.name} cannot be read ({e}). {MEND}") from e
    weight = found.get("offset_weight")
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < math.inf:
        raise CacheError(f"{path.name} holds no usable offset_weight, but {weight!r}. {MEND}")
    own = {"base_sha256": base_sha256, "group_set": group_set}
    for name in [k for k, v in own.items() if found.get(k) != v]:
        raise CacheError(f"{path.name} was fitted for another {name.removesuffix('_sha256').replace('_', ' ')}. {MEND}")
    return float(weight)


def write_weight(path: Path, weight: float, *, base_sha256: str, group_set: str, **how: Any) -> None:
    """Write the file. how: `fitted`, `command`, `date` and what else tells where the weight comes from."""
    record = {"offset_weight": weight, **how, "base_sha256": base_sha256, "group_set": group_set}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
