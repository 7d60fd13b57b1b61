"""What a replay says of a report's verdict on scope: whether the model could have made the picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from guda_core import __version__
from guda_core.records import Scope
from guda_core.reports.findings import MISSING, Change, Path, differing, flat

RELATIVE = 1e-3
NEAR, COARSE_NEAR = 1e-3, 0.2  # of the statistic, a logarithm of odds; and in half precision (tests/test_scope.py)
NEAR_P = 0.05  # of its p-value, which counts pictures, often few
RULE, WORDS = ("settings", "sha256"), ("reason",)
TOLD = (RULE, WORDS, ("verdict",), ("value",), ("threshold",), ("p_value",))  # where the rule is another
NUMBER = re.compile(r"none looks|[\d.]+ looks?|[\d.]+")  # in the reason (`attribution.scope`)


def of_scope(record: Mapping[str, Any], now: Scope, *, coarse: bool = False) -> dict[str, tuple[Change, ...]]:
    """What differs in the verdict on scope, by its kind. Where the report has none, or one by another rule than there
    is now, it is told and not judged; and so are the words of another version. coarse: the model ran in half precision,
    then or now."""
    picture, before, after = record["picture"], record["scope"], json.loads(json.dumps(asdict(now)))
    told = []
    if picture["file_sha256"] is None and "drawn" not in picture:
        told.append(Change("picture", "from no file, and not said how it was drawn", now.verdict))
    elif before is None and now.verdict != "not assessed":
        told.append(Change("scope/verdict", MISSING, now.verdict))
    if before is None:
        return {"scope": tuple(told)}
    differ = {p[1:]: c for p, c in differing(*(flat(s, ("scope",)) for s in (before, after))).items()}
    if now.verdict == "not assessed" or RULE in differ:
        return {"scope": (*told, *(c for p, c in differ.items() if p in TOLD))}
    if WORDS in differ and record["versions"]["guda_core"] != __version__:
        told.append(differ.pop(WORDS))
    return {"scope": tuple(told), "scores": _followed(differ, before, after, COARSE_NEAR if coarse else NEAR)}


def _followed(
    differ: Mapping[Path, Change], before: Mapping[str, Any], now: Mapping[str, Any], near: float
) -> tuple[Change, ...]:
    """Changes of a verdict on scope by one rule: what follows from a statistic that moved within tolerance does so
    itself; the verdict, only where the threshold is as near."""
    moved = ("value",) in differ and _near(before.get("value"), now["value"], near)
    follows: dict[Path, bool] = {
        ("value",): True,
        ("verdict",): _near(now["threshold"], now["value"], near),
        ("p_value",): _near(before.get("p_value"), now["p_value"], NEAR_P),
        WORDS: NUMBER.sub("", str(before.get("reason"))) == NUMBER.sub("", now["reason"]),
    }
    return tuple(replace(c, within=moved and follows.get(p, False)) for p, c in differ.items())


def _near(a: Any, b: Any, by: float) -> bool:
    numbers = all(isinstance(x, int | float) for x in (a, b))
    return numbers and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=by)
