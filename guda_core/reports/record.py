"""The record of an answer: everything needed to check it or compute it again, as plain JSON (report.schema.json).

What is absent is null, empty or left out, and `absent` says why under the path of its place, e.g. "health/noto".
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from guda_core.attribution import METHODS
from guda_core.records import Attribution, GroupSet, Provenance, Query, Tried
from guda_core.versions import today, versions

FORMAT = 3  # what earlier ones were like, and how they are read: reports/upgrade.py
FROM_NPM = ("package", "version")  # of a group's source, what a report repeats; a folder's name is private
LIMITS = (
    (
        "A score in nats is a difference of ELBOs. Where the method's settings name an offset, it includes that: it is "
        "the same for every picture. Other methods have their own units. A score is not a share: scores do not add up "
        "to anything."
    ),
    (
        "A score says how the model would change without a group. It does not say who owns a picture, and it is not a "
        "legal finding."
    ),
)
SEED_RULE = (
    "Timesteps and noise come from random generators. Their seed is the SHA-256 of the picture's hash (pixels_sha256), "
    "timestep and draw. Nothing else is random."
)
ALONE = "This record was written without the files of a report."
NOT_ASKED = "This method was not asked, or was stopped early."
NOT_TRIED = "No other caption was tried."
FROM_A_FILE = "It came from a file."
NOT_TOLD = "It is not known how the model drew it."
NOT_ASSESSED = "Not assessed: it was not checked whether the model could have made this picture."


def plain(text: str, most: int) -> str:
    """A text from outside, cut to `most` characters, with everything escaped that could steer a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:most])


def sampling(a: Attribution) -> dict[str, Any] | None:
    """Timesteps, strata and draws of a method that samples them, None for one that does not.

    edges: stratum k holds the timesteps edges[k] <= t < edges[k + 1]. The timesteps drawn are in values.npz. fewer:
    group id -> its draws, of groups that stopped early, left out where none did. reached: as of the Attribution, left
    out where it has none.
    """
    if a.kl is None:
        return None
    edges, t = a.kl.edges.tolist(), a.kl.t
    out = {"timesteps": [edges[0], edges[-1] - 1], "strata": t.shape[0], "draws": t.shape[1], "edges": edges}
    more = {"fewer": a.kl.fewer, "reached": a.reached}
    return {**out, **{k: v for k, v in more.items() if v}}


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


def limits(methods: Iterable[str], provenance: Provenance) -> list[str]:
    """What a reader must know: what is to be said of this model and its adapters, what holds for all scores, and what
    the score and interval of each method mean."""
    said = [provenance.methods[m] for m in methods if m in provenance.methods]
    return [*provenance.said_of(methods), *LIMITS, *(f"{info.name}: {info.note}" for info in said)]


def circumstances(group_set: GroupSet, *, provenance: Provenance, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the record that is the same for every picture scored with the same things and settings."""
    p, shown = provenance, ("name", "author", "licence", "licence_link", "link")
    return {
        "model": {"id": p.model, "name": p.name, "sha256": p.sha256, "dtype": p.dtype},
        "clip": {"sha256": p.clip_sha256 or None, "bank_sha256": p.bank_sha256 or None},
        "adapters": {g: p.unlearned.hashes.get(g) for g in group_set.groups},
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
            **({"drawn": asdict(query.drawn)} if query.drawn is not None else {}),
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
    tried: Sequence[Tried] = (),
) -> dict[str, Any]:
    """The JSON of `attribute`: `methods: {name: {unit, groups: {id: {score, low, high, status}}}}` and its context.

    settings: `methods` and `effort` as asked for. scope: the verdict on whether the model could have made this picture.
    tried: other captions of it.
    """
    methods = {a.method: method_record(a) for a in attributions}
    unlearned = provenance.unlearned
    health = {g: unlearned.figures.get(g, "Its health was not measured.") for g in group_set.groups}
    known = {**health, **{g: f"There is no usable adapter. {why}" for g, why in unlearned.unavailable.items()}}
    return {
        "format": FORMAT,
        "date": today(),
        **context(query, group_set, provenance=provenance, settings=settings),
        "scope": dict(scope) if scope is not None else None,
        "methods": methods,
        **({"captions": captions} if (captions := _captions(query, tried)) else {}),
        "health": {g: dict(h) if not isinstance(h, str) else None for g, h in known.items()},
        "validation": {n: dict(v) for n, v in provenance.validation.items() if not isinstance(v, str)} or None,
        "limits": limits(methods, provenance),
        "files": {},
        "absent": _absent(query, methods, provenance, known, scoped=scope is not None)
        | ({} if captions else {"captions": NOT_TRIED}),
    }


def _captions(query: Query, tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """What the captions that are not the picture's own gave."""
    return [
        {"label": t.label, "prompt": t.caption, "method": t.answer.method, "answer": method_record(t.answer)}
        for t in tried
        if t.caption != query.prompt
    ]


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
    if query.drawn is None:
        out["picture/drawn"] = NOT_TOLD if query.file_hash is None else FROM_A_FILE
    if query.file_hash is None:
        out["picture/file_sha256"] = "There was no uploaded file: the picture was generated."
    if not provenance.clip_sha256:
        out["clip/sha256"] = provenance.not_offered.get("clip") or "There is no encoder of likeness here."
    if not provenance.bank_sha256:
        out["clip/bank_sha256"] = provenance.not_offered.get("clip") or "There is no feature bank here."
    if not query.prompt:
        out["picture/prompt"] = "No prompt was given: the unconditional model was asked."
    for m in {**dict.fromkeys(METHODS), **provenance.methods}:
        if m not in methods:
            why = provenance.not_offered.get(m)
            out[f"methods/{m}"] = f"It is not offered here. {why}" if why else NOT_ASKED
    for m, found in methods.items():
        if found["sampling"] is None:
            out[f"methods/{m}/sampling"] = "This method draws no timesteps, or was stopped before it had scores."
    out |= {f"adapters/{g}": why for g, why in provenance.unlearned.unavailable.items()}
    out |= {f"health/{g}": h for g, h in health.items() if isinstance(h, str)}
    out |= {f"validation/{n}": v for n, v in provenance.validation.items() if isinstance(v, str)}
    if not any(not isinstance(v, str) for v in provenance.validation.values()):
        out["validation"] = "No validation figures of this model and group set were found (assets/benchmarks)."
    return out
