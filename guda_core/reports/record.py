"""The record of an answer: everything needed to check it or compute it again, as plain JSON (report.schema.json).

What is absent is null, empty or left out, and `absent` says why under the path of its place, e.g. "health/noto".
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guda_core.attribution import METHODS
from guda_core.records import Attribution, GroupSet, Provenance, Query
from guda_core.versions import today, versions

FORMAT = 2
FROM_NPM = ("package", "version")  # of a group's source, what a report repeats; a folder's name is private
LIMITS = (
    (
        "A score of GUDA or LOGO is a difference of ELBOs, in nats. GUDA's includes the offset that its settings name, "
        "which is the same for every picture. Other methods have their own units. A score is not a share: scores do "
        "not add up to anything."
    ),
    (
        "A score says how the model would change without a group. It does not say who owns a picture, and it is not a "
        "legal finding."
    ),
    (
        "The interval of GUDA and LOGO covers the sampling error of the estimate. It does not cover the gap between "
        "unlearning and retraining, or the gap between one retraining and another."
    ),
    (
        "The interval of CLIP similarity, TRAK, D-TRAK and DAS is the spread over a group's pictures. The interval of "
        "GUDA and DAS combined includes both kinds."
    ),
    "CLIP similarity measures likeness, not influence.",
)
SEED_RULE = (
    "Timesteps and noise come from random generators. Their seed is the SHA-256 of the picture's hash (pixels_sha256), "
    "timestep and draw. Nothing else is random."
)
ALONE = "This record was written without the files of a report."
NOT_ASSESSED = "Not assessed: it was not checked whether the model could have made this picture."
MAX_FIGURES = 256_000  # bytes of one file of figures, as it is repeated
MAX_FILE = 8_000_000  # bytes of one that is read
NO_FIGURES = ("queries.json", "soak.json")  # what lies beside the figures and tells nothing of answers
DIGEST = ("command", "oracle", "base_sha256", "versions", "date")  # of a table of agreement, beside its rows


def plain(text: str, most: int) -> str:
    """A text from outside, cut to `most` characters, with everything escaped that could steer a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:most])


def read_figures(path: Path) -> dict[str, Any] | str:
    """The JSON object in a file of figures measured earlier, with the file's `sha256`; or why there is none.

    Values that are not finite become null. Of a table of agreement with the oracle only a digest is given: Top-1 and
    MRR over the queries that are held for the report.
    """
    try:
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_FILE else b""
        figures = json.loads(data, parse_constant=lambda _: None) if data else None
    except (OSError, ValueError, RecursionError):
        return f"{path.name} is damaged."
    if isinstance(figures, dict):
        told = _digest(figures)
        if len(json.dumps(told)) > MAX_FIGURES:
            return f"{path.name} is too large to be repeated here; its SHA-256 is {hashlib.sha256(data).hexdigest()}."
        return {**told, "sha256": hashlib.sha256(data).hexdigest()}
    if data:
        return f"{path.name} is damaged."
    return (
        f"{path.name} is too large."
        if path.is_file() and path.stat().st_size
        else (f"There is no {path.name}: this was not measured.")
    )


def _digest(figures: dict[str, Any]) -> dict[str, Any]:
    rows = figures.get("rows_report")
    if not isinstance(rows, list):
        return figures
    kept = ("method", "query_set", "n", "groups", "top1", "mrr")
    report = [{k: r[k] for k in kept if k in r} for r in rows if isinstance(r, dict)]
    return {**{k: figures[k] for k in DIGEST if k in figures}, "rows_report": report}


def read_validation(folder: Path, *, base_sha256: str) -> dict[str, dict[str, Any] | str]:
    """The figures of every JSON file of the folder that names the base model it measured; of those that name another,
    only that they do."""
    found = {p.name: read_figures(p) for p in sorted(folder.glob("*.json")) if p.name not in NO_FIGURES}
    for name, figures in list(found.items()):
        base = figures.get("base_sha256") if isinstance(figures, dict) else base_sha256
        if base is None:
            del found[name]
        elif base != base_sha256:
            found[name] = f"{name} measured another base model ({str(base)[:12]})."
    return found


def sampling(a: Attribution) -> dict[str, Any] | None:
    """Timesteps, strata and draws of a method that samples them, None for one that does not.

    edges: stratum k holds the timesteps edges[k] <= t < edges[k + 1]. The timesteps drawn are in values.npz.
    """
    if a.kl is None:
        return None
    edges, t = a.kl.edges.tolist(), a.kl.t
    return {"timesteps": [edges[0], edges[-1] - 1], "strata": t.shape[0], "draws": t.shape[1], "edges": edges}


def method_record(a: Attribution) -> dict[str, Any]:
    """One method's part of the record: unit, and per group score, low, high, status, reason and rank (1 = first)."""
    ranks = {g: i + 1 for i, g in enumerate(a.ranked())}
    groups = {g: {**asdict(s), "rank": ranks.get(g)} for g, s in a.groups.items()}
    return {
        "unit": a.unit,
        "groups": groups,
        "separable": a.separable,
        "runner_up": a.runner_up,
        "progress": a.progress,
        "sampling": sampling(a),
        "settings": dict(a.settings),
    }


def circumstances(group_set: GroupSet, *, provenance: Provenance, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the record that is the same for every picture scored with the same things and settings."""
    p, shown = provenance, ("name", "author", "licence", "licence_link", "link")
    return {
        "model": {"id": p.model, "name": p.name, "sha256": p.sha256, "dtype": p.dtype},
        "clip": {"sha256": p.clip_sha256, "bank_sha256": p.bank_sha256},
        "adapters": {g: p.adapters.get(g) for g in group_set.groups},
        "group_set": {
            "id": group_set.id,
            "name": group_set.name,
            "groups": {
                g: {k: getattr(group, k) for k in shown} | {k: v for k, v in group.source.items() if k in FROM_NPM}
                for g, group in group_set.groups.items()
            },
        },
        "settings": {**settings},
        "versions": versions(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "device": p.device,
            "cpus": os.cpu_count(),
            "threads": p.threads,
        },
    }


def context(
    query: Query, group_set: GroupSet, *, provenance: Provenance, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of the record that is known before anything is computed: all that the answer will depend on."""
    return {
        "picture": {
            "file_sha256": query.file_hash,
            "pixels_sha256": query.image_hash,
            "size": [query.pixels.shape[1], query.pixels.shape[0]],
            "preparation": list(query.preparation),
            "prompt": query.prompt,
        },
        "seed": {"rule": SEED_RULE, "picture": query.image_hash},
        **circumstances(group_set, provenance=provenance, settings=settings),
    }


def to_json(
    query: Query,
    attributions: Sequence[Attribution],
    group_set: GroupSet,
    *,
    provenance: Provenance,
    settings: Mapping[str, Any],
    scope: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of `attribute`: `methods: {name: {unit, groups: {id: {score, low, high, status}}}}` and its context.

    settings: `methods` and `effort` as asked for. scope: the verdict on whether the model could have made this picture.
    """
    methods = {a.method: method_record(a) for a in attributions}
    health = {g: provenance.health.get(g, "Its health was not measured.") for g in group_set.groups}
    known = {**health, **{g: f"There is no usable adapter. {why}" for g, why in provenance.unavailable.items()}}
    return {
        "format": FORMAT,
        "date": today(),
        **context(query, group_set, provenance=provenance, settings=settings),
        "scope": dict(scope) if scope is not None else None,
        "methods": methods,
        "health": {g: dict(h) if not isinstance(h, str) else None for g, h in known.items()},
        "validation": {n: dict(v) for n, v in provenance.validation.items() if not isinstance(v, str)} or None,
        "limits": list(LIMITS),
        "files": {},
        "absent": _absent(query, methods, provenance, known, scoped=scope is not None),
    }


def _absent(
    query: Query,
    methods: Mapping[str, Mapping[str, Any]],
    provenance: Provenance,
    health: Mapping[str, Mapping[str, Any] | str],
    *,
    scoped: bool,
) -> dict[str, str]:
    """Path -> why it is absent, for everything that a record could hold and this one does not."""
    out = {"files": ALONE} if scoped else {"files": ALONE, "scope": NOT_ASSESSED}
    if query.file_hash is None:
        out["picture/file_sha256"] = "There was no uploaded file: the picture was generated."
    if not query.prompt:
        out["picture/prompt"] = "No prompt was given: the unconditional model was asked."
    out |= {f"methods/{m}": "This method was not asked, or was stopped early." for m in METHODS if m not in methods}
    for m, found in methods.items():
        if found["sampling"] is None:
            out[f"methods/{m}/sampling"] = "This method draws no timesteps, or was stopped before it had scores."
    out |= {f"adapters/{g}": why for g, why in provenance.unavailable.items()}
    out |= {f"health/{g}": h for g, h in health.items() if isinstance(h, str)}
    out |= {f"validation/{n}": v for n, v in provenance.validation.items() if isinstance(v, str)}
    if not any(not isinstance(v, str) for v in provenance.validation.values()):
        out["validation"] = "No validation figures of this model and group set were found (assets/benchmarks)."
    return out
