"""The record of an answer: everything needed to check it or compute it again, as plain JSON."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from guda_core import __version__
from guda_core.records import Attribution, GroupSet, Query

FORMAT = 1
LIMITS = (
    "A score is a difference of ELBOs in nats (or a cosine for CLIP), not a share: scores do not sum to anything.",
    "It says how the model would change without a group, not who owns a picture; it is not a legal finding.",
    "The interval covers the sampling error of the estimate, not the gap between unlearning and true retraining.",
)
PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python, this project and the libraries that a score depends on."""
    return {"guda_core": __version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}}


def method_record(a: Attribution) -> dict[str, Any]:
    """One method's part of the record: unit, and per group score, low, high, status, reason and rank (1 = first)."""
    ranks = {g: i + 1 for i, g in enumerate(a.ranked())}
    groups = {g: {**asdict(s), "rank": ranks.get(g)} for g, s in a.groups.items()}
    return {
        "unit": a.unit,
        "groups": groups,
        "separable": a.separable,
        "runner_up": a.runner_up,
        "settings": dict(a.settings),
    }


def to_json(
    query: Query, attributions: Sequence[Attribution], group_set: GroupSet, *, model: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON of `attribute`: `methods: {name: {unit, groups: {id: {score, low, high, status}}}}` and its context."""
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "picture": {
            "file_sha256": query.file_hash,
            "pixels_sha256": query.image_hash,
            "preparation": list(query.preparation),
            "prompt": query.prompt,
        },
        "model": model,
        "group_set": group_set.id,
        "seed": {"rule": "SHA-256 of the prepared pixels, timestep and draw", "picture": query.image_hash},
        "settings": dict(settings),
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "system": platform.system()},
        "methods": {a.method: method_record(a) for a in attributions},
        "limits": list(LIMITS),
    }
