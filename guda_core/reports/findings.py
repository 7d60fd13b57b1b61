"""What a replay finds: one place that differs, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guda_core.reports.record import plain

MISSING = "nothing"
MOST = 200  # changes of a kind that are told
SCOPE = "Whether the model could have made the picture (shown, not judged)"
AROUND = "Versions, hardware, what is said beside the scores, and what was not checked (shown, not judged)"

Path = tuple[str, ...]  # keys of objects within each other; one may hold "/"
Outcome = Literal["equal", "within tolerance", "different"]


@dataclass(frozen=True)
class Change:
    """One place where a report and its repetition differ. where: its path, e.g. "guda/noto/score".

    within: the two are numbers within the tolerance, or follow from such numbers.
    """

    where: str
    before: Any
    now: Any
    within: bool = False

    def sentence(self) -> str:
        """What differs and by how much; hashes are cut to 12 digits."""
        said = f"{plain(self.where, 120)}: {_shown(self.before)} in the report, {_shown(self.now)} now"
        if isinstance(self.before, float) and isinstance(self.now, float):
            said += f", {self.now - self.before:+.3g}"
        return f"{said}{' (within tolerance)' if self.within else ''}."


@dataclass(frozen=True)
class Verdict:
    """Is the answer the same? scores: what moved in it. inputs: what it was computed from and is another now.

    environment: versions and hardware that differ, and what was not looked at. scope: whether the model could have made
    the picture, where the report does not say, or another rule said it. These two are told, not judged.
    """

    outcome: Outcome
    scores: tuple[Change, ...] = ()
    inputs: tuple[Change, ...] = ()
    environment: tuple[Change, ...] = ()
    scope: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Doing:
    """What a replay is at. progress: of that, in [0, 1]. method: its id; "" where none is asked."""

    what: str
    progress: float
    method: str = ""


def flat(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Leaves of nested objects by their path; a list is one leaf, and so is an empty object."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {p: v for k, x in value.items() for p, v in flat(x, (*path, str(k))).items()}


def differing(before: Mapping[Path, Any], now: Mapping[Path, Any]) -> dict[Path, Change]:
    """What is not the same in the leaves of two objects, by path. An object that is there only now and empty says
    nothing, nor does one that only became full: its leaves do."""
    full = {p[:i] for p in now for i in range(len(p))}
    out = {}
    for p in dict.fromkeys([*before, *now]):
        same = now[p] == before.get(p, {}) if p in now else before[p] == {} and p in full
        if not same:
            out[p] = Change("/".join(p), before.get(p, MISSING), now.get(p, MISSING))
    return out


def differences(changes: Sequence[Change]) -> list[str]:
    """What differs, in sentences: the first `MOST`, those beyond the tolerance before others, and how many more there
    are."""
    first = sorted(changes, key=lambda c: c.within)[:MOST]
    more = [f"And {len(changes) - MOST:,} more."] if len(changes) > MOST else []
    return [*(c.sentence() for c in first), *more]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 and not set(text) - set("0123456789abcdef") else plain(text, 120)
