"""One picture's rows computed again, with their report, and whether the numbers are the same.

equal             every score, interval, rank and status is bitwise what the table says
within tolerance  every number is, to what other hardware or half precision does to it (`reports.replay`); ranks, and
                  whether scores are told apart, may follow from that
different         anything else
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guda_core.errors import OptionError, ReportError
from guda_core.reports import bundle
from guda_core.reports.replay import is_close, is_coarse
from guda_core.scoring import places, table_rows
from guda_core.scoring.asking import Results
from guda_core.scoring.listing import Wanted
from guda_core.scoring.table_rows import Row
from guda_core.service import Service, scope_or_why

SAME = ("rank", "score", "low", "high", "status", "told_apart", "scope", "draws", "pixels_sha256")
NUMBERS = ("score", "low", "high")
FOLLOW = ("rank", "told_apart")  # from numbers, and may move where these did within tolerance


@dataclass(frozen=True)
class Again:
    """outcome: "equal", "within tolerance" or "different". changes: sentences, one for each value that moved."""

    outcome: str
    changes: tuple[str, ...]
    report: bytes


def rows_of(results: Results, picture: str) -> list[Row]:
    """The rows of a picture.

    Raises:
        OptionError: there is no such picture, or it was refused, so that there is nothing to compute.
    """
    found = results.of_picture(picture)
    if not found:
        raise OptionError(f"There is no picture '{picture}' in these results.")
    if found[0]["method"] is None:
        raise OptionError(f"'{picture}' has no scores. {found[0]['reason']}")
    return found


def again(service: Service, made_from: dict[str, Any], found: Sequence[Row]) -> Again:
    """Compute the rows of one picture again with this service, and make its report.

    Raises:
        ReportError: the picture is not there any more, or another one is.
        GudaError: the picture is refused.
    """
    first, settings = found[0], made_from["settings"]
    if not places.is_file(first["place"]):
        raise ReportError(
            f"'{first['picture']}' is not at {first['place']} any more. Run the command that made the results, with "
            "the place where the pictures are now: its rows are kept."
        )
    data = places.read_picture_file(first["place"])
    if hashlib.sha256(data).hexdigest() != first["file_sha256"]:
        raise ReportError(f"'{first['picture']}' at {first['place']} is another picture than the one that was scored.")
    query = service.prepare(data, prompt=first["prompt"])
    asked = service.attribute(query, methods=settings["methods"], effort=settings["effort"])
    final = {a.method: a for a in asked}  # the last one of each
    answers, scope = [final[m] for m in settings["methods"]], scope_or_why(service, query)
    about: dict[str, Any] = {"provenance": service.provenance(), "settings": settings, "scope": scope.plain()}
    wanted = Wanted(first["picture"], first["place"], first["prompt"])
    now = table_rows.scored(
        wanted, query, answers, scope,
        group_set=service.group_set, provenance=about["provenance"], effort=settings["effort"],
    )  # fmt: skip
    coarse = is_coarse(made_from["model"]["dtype"], about["provenance"].dtype)
    outcome, changes = compare(found, now, coarse=coarse)
    return Again(outcome, tuple(changes), bundle.make(query, answers, service.group_set, **about))


def compare(before: Sequence[Row], now: Sequence[Row], *, coarse: bool = False) -> tuple[str, list[str]]:
    """(outcome, what differs in sentences) of two lists of rows of one picture, in any order. coarse: the model ran in
    half precision, then or now."""
    a, b = ({(r["method"], r["group_id"]): r for r in found} for found in (before, now))
    changes = [f"{m}/{g} is only {'in the table' if (m, g) in a else 'there now'}." for m, g in a.keys() ^ b.keys()]
    small, follows = {m: [not changes] * bool(changes) for m, _ in a}, set[str]()
    for m, g in (k for k in a if k in b):
        old, new = a[m, g], b[m, g]
        moved = [c for c in SAME if old[c] != new[c]]
        changes += [f"{m}/{g}/{c}: {old[c]} in the table, {new[c]} now." for c in moved]
        small[m] += [c in NUMBERS and _close(old, new, c, coarse=coarse) for c in moved if c not in FOLLOW]
        follows |= {m for c in moved if c in FOLLOW}
    if not changes:
        return "equal", changes
    explained = all(all(found) for found in small.values()) and all(small[m] for m in follows)
    return "within tolerance" if explained else "different", changes


def _close(old: Row, new: Row, column: str, *, coarse: bool) -> bool:
    if old[column] is None or new[column] is None:
        return False
    sizes = [abs(old[c] or 0.0) for c in NUMBERS]
    width = old["high"] - old["low"] if coarse and None not in (old["low"], old["high"]) else 0.0
    scale = 0.0 if old["unit"] == "cosine" else max(sizes)
    return is_close(old[column], new[column], old["unit"], scale=scale, width=width)
