"""What the committed score arrays were made from, so that rows need not be computed again on another machine.

    <folder>/made-from/<arrays>.json    base_sha256 and queries_sha256 of all rows; made: role -> {from, rows};
                                        dtypes: role -> the number types it was scored in (not there: float32)

`from` says all that a row's scores depend on beside the full model and the queries: hashes of weights or features, and
settings. A row whose `from` is still the same stands as it is; any other is computed anew. A row also stands where the
model now runs in another type, since methods may be scored in several: `dtypes` says in which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def plain(made_from: Any) -> Any:
    """As JSON holds it, to be compared with what is read back."""
    return json.loads(json.dumps(made_from))


def note(arrays: Path) -> Path:
    """Where the record of an `.npz` of arrays lies."""
    return arrays.parent / "made-from" / f"{arrays.stem}.json"


def write(
    arrays: Path,
    scores: Mapping[str, np.ndarray],
    common: Mapping[str, str],
    made: Mapping[str, Any],
    **more: Mapping[str, Any],
) -> None:
    """Write the arrays and, last, their record. common: hashes of base and queries; made: role -> what it is from;
    more: what else is worth a record.

    A row belongs to the role that its name begins with (`guda/mse`, `guda/2-draws`) or ends with (`separable/guda`,
    `se/guda`).
    """
    note(arrays).unlink(missing_ok=True)
    np.savez_compressed(arrays, **scores)  # type: ignore[arg-type]  (names, not allow_pickle)
    note(arrays).parent.mkdir(exist_ok=True)
    record = {r: {"from": plain(of), "rows": of_role(scores, r)} for r, of in made.items()}
    note(arrays).write_text(json.dumps({**common, **more, "made": record}, indent=1), encoding="utf-8")


def of_role(names: Mapping[str, Any] | Sequence[str], role: str) -> list[str]:
    """The names of a role's rows."""
    own = (role, f"separable/{role}", f"se/{role}")
    return [n for n in names if n in own or n.startswith((f"{role}/", f"separable/{role}/"))]


def recorded(arrays: Path, common: Mapping[str, str], key: str = "made") -> dict[str, Any]:
    """role -> what its committed rows were made from, or their "dtypes"; {} where they are of another base or other
    queries."""
    if not arrays.is_file() or not note(arrays).is_file():
        return {}
    record = json.loads(note(arrays).read_text(encoding="utf-8"))
    return record.get(key, {}) if {k: record.get(k) for k in common} == dict(common) else {}


def standing(arrays: Path, common: Mapping[str, str], wanted: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """role -> its rows, of the roles whose rows are there and were made from just what is wanted; and of roles that are
    not wanted here at all, as of adapters that another machine had."""
    made = recorded(arrays, common)
    if not made:
        return {}
    fit = {r: m["rows"] for r, m in made.items() if r not in wanted or m["from"] == plain(wanted[r])}
    with np.load(arrays, allow_pickle=False) as z:
        return {r: {n: z[n] for n in names} for r, names in fit.items() if set(names) <= set(z.files)}
