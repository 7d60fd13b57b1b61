"""The table's columns, and the rows of one picture: one for each method and group, or one that says why there is none.

A row names everything that its score was computed from, so that it can be computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guda_core import __version__
from guda_core.records import Attribution, GroupSet, Provenance, Query, Scope
from guda_core.reports.record import circumstances, method_record
from guda_core.scoring.listing import Wanted

COLUMNS = {  # name -> DuckDB's type
    "picture": "VARCHAR",
    "method": "VARCHAR",
    "group_id": "VARCHAR",
    "group_name": "VARCHAR",
    "rank": "INTEGER",
    "score": "DOUBLE",
    "low": "DOUBLE",
    "high": "DOUBLE",
    "unit": "VARCHAR",
    "status": "VARCHAR",
    "reason": "VARCHAR",
    "told_apart": "BOOLEAN",
    "scope": "VARCHAR",
    "scope_p": "DOUBLE",
    "prompt": "VARCHAR",
    "place": "VARCHAR",
    "file_sha256": "VARCHAR",
    "pixels_sha256": "VARCHAR",
    "effort": "VARCHAR",
    "draws": "INTEGER",
    "seed": "VARCHAR",
    "model_sha256": "VARCHAR",
    "adapter_sha256": "VARCHAR",
    "device": "VARCHAR",
    "guda_version": "VARCHAR",
}
REFUSED, FAILED = "refused", "failed"  # of a picture: for a reason that is known, or not; both are tried again
Row = dict[str, Any]


def identity(group_set: GroupSet, *, provenance: Provenance, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the rows of one table, whatever machine a part is computed on."""
    found = circumstances(group_set, provenance=provenance, settings=settings)
    del found["hardware"]
    made_from = {m: provenance.made_from.get(m, {}) for m in settings["methods"]}
    return {**found, "fit": group_set.fit, "scope": provenance.scope_sha256 or None, "made_from": made_from}


def _blank(wanted: Wanted, file_sha256: str | None, provenance: Provenance, effort: str) -> Row:
    known = {
        "picture": wanted.picture,
        "place": wanted.place,
        "prompt": wanted.prompt,
        "file_sha256": file_sha256,
        "effort": effort,
        "model_sha256": provenance.sha256,
        "device": provenance.device,
        "guda_version": __version__,
    }
    return {c: known.get(c) for c in COLUMNS}


def scored(
    wanted: Wanted,
    query: Query,
    answers: Sequence[Attribution],
    scope: Scope,
    *,
    group_set: GroupSet,
    provenance: Provenance,
    effort: str,
) -> list[Row]:
    """The rows of a picture that was scored: method by method, groups in the order of their set."""
    shared = {
        **_blank(wanted, query.file_hash, provenance, effort),
        "pixels_sha256": query.image_hash,
        "seed": query.image_hash,
        "scope": scope.verdict,
        "scope_p": scope.p_value,
    }
    rows = []
    for a in answers:
        models = provenance.models.get(a.method)
        for g, found in method_record(a)["groups"].items():
            without = a.kl.without.get(g) if a.kl is not None else None
            rows.append(
                {
                    **shared,
                    **{k: found[k] for k in ("rank", "score", "low", "high", "status", "reason")},
                    "method": a.method,
                    "unit": a.unit,
                    "group_id": g,
                    "group_name": group_set.groups[g].name,
                    "told_apart": a.separable,
                    "draws": int(without.shape[1]) if without is not None else None,
                    "adapter_sha256": models.hashes.get(g) if models is not None else None,
                }
            )
    return rows


def without_scores(
    wanted: Wanted, file_sha256: str | None, status: str, reason: str, *, provenance: Provenance, effort: str
) -> list[Row]:
    """The row of a picture that has no scores, and why."""
    return [{**_blank(wanted, file_sha256, provenance, effort), "status": status, "reason": reason}]
