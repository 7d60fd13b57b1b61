"""Brings the record of an earlier format to today's.

    format 2 (version 0.1)   a method's settings call the offset "general"; other words for the rule of the seed
    format 3 (version 0.2)   they call it "offset"

So reports that were written before can be read and computed again.
"""

from __future__ import annotations

from typing import Any

from guda_core.errors import ReportError
from guda_core.reports.record import FORMAT, SEED_RULE

FIRST = 2  # the earliest format that is read
SEED_RULE_2 = (
    "Timesteps and noise are drawn from generators seeded by SHA-256 of the picture's hash (pixels_sha256), timestep "
    "and draw; nothing else is random."
)


def upgraded(record: Any) -> Any:
    """A parsed report.json in today's format, not checked against its schema yet. The argument is left as it is.

    Raises:
        ReportError: its format is none that this version reads.
    """
    number = record.get("format") if isinstance(record, dict) else None
    if type(number) is not int:
        return record  # the schema says what is wrong
    if not FIRST <= number <= FORMAT:
        raise ReportError(
            f"This report is of format {number}; this version of the project reads formats {FIRST} to {FORMAT}. Use "
            "the version that the report names."
        )
    return _from_2(record) if number == 2 else record


def _from_2(record: dict[str, Any]) -> dict[str, Any]:
    out, methods, seed = {**record, "format": 3}, record.get("methods"), record.get("seed")
    if isinstance(methods, dict):
        out["methods"] = {m: _offset(found) for m, found in methods.items()}
    if isinstance(seed, dict) and seed.get("rule") == SEED_RULE_2:
        out["seed"] = {**seed, "rule": SEED_RULE}
    return out


def _offset(found: Any) -> Any:
    """A method's part of the record, or the settings of one in another's, with "general" as "offset"."""
    if not isinstance(found, dict):
        return found
    out = {("offset" if k == "general" else k): v for k, v in found.items()}
    for inner in ("settings", "parts"):
        if isinstance(out.get(inner), dict):
            own = out[inner]
            out[inner] = _offset(own) if inner == "settings" else {m: _offset(part) for m, part in own.items()}
    return out
