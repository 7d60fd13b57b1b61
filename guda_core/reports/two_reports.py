"""Two reports side by side: the same picture? computed from the same things? which groups changed place, which scores?

    difference = score(b) - score(a), half of its 95% interval = sqrt(h_a^2 + h_b^2), h half of a score's interval

as of independent errors. Where both reports used the same draws of noise, the true interval is narrower. Scores of two
pictures are never subtracted, nor are those of units whose scale belongs to one model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from guda_core.answers import sentences
from guda_core.answers.verdict import is_out
from guda_core.records import Attribution, GroupScore, Scope
from guda_core.reports.opened import Told

ANY_MODEL = ("nats", "cosine")  # units that mean the same for every model
DECIDING = ("picture", "caption", "model", "groups", "adapters", "likeness", "effort", "settings")
PARTS = (*DECIDING, "names", "versions", "hardware")  # the last three do not decide scores
CREDITS = ("name", "author", "licence")  # of a group
ENDED = {"width": "the width reached", "draws": "the number of draws", None: "no rule"}  # what ends draws
LEAD = {True: "told apart", False: "not told apart", None: "not compared"}


@dataclass(frozen=True)
class Row:
    """One group by one method. ranks from 1, None where there is no score. difference: b - a with its 95% interval,
    None where the two cannot be compared."""

    group: str
    name: str
    rank_a: int | None
    rank_b: int | None
    score_a: float | None
    score_b: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def exact(self) -> bool:
        """Whether score and interval are the same to the last bit."""
        return self.difference == self.low == self.high == 0

    @property
    def lost(self) -> bool:
        """Whether just one report has a score."""
        return (self.score_a is None) != (self.score_b is None)


@dataclass(frozen=True)
class Compared:
    """same: part of the computation -> whether it is the same. methods: id -> a row for each group of either report.
    only: method id -> "a" or "b", of those that one report has. units: of the methods in both, where it is the same.
    """

    said: tuple[str, ...]
    same: Mapping[str, bool]
    methods: Mapping[str, tuple[Row, ...]] = field(repr=False)
    units: Mapping[str, str]
    only: Mapping[str, str]

    def plain(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        rows = {m: [{**asdict(r), "clear": r.clear} for r in found] for m, found in self.methods.items()}
        return {"said": list(self.said), "same": dict(self.same), "units": dict(self.units), "methods": rows,
                "only": dict(self.only)}  # fmt: skip


def compare(a: Told, b: Told) -> Compared:
    """Compare two reports."""
    same = same_parts(a.record, b.record)
    both = [m for m in a.asked if m in a.answers and m in b.answers]
    only = {m: "a" for m in a.answers if m not in b.answers} | {m: "b" for m in b.answers if m not in a.answers}
    units = {m: a.answers[m].unit for m in both if a.answers[m].unit == b.answers[m].unit}
    methods = {}
    for m in both:
        of_any = units.get(m) in ANY_MODEL or (m in units and same["model"] and same["groups"])
        methods[m] = rows(a, b, m, comparable=same["picture"] and of_any)
    said = _said(a, b, same, methods)
    return Compared(tuple(said), same, methods, units, only)


def away(a: Told, b: Told) -> Scope | None:
    """The scope of a report whose picture is out of scope, so that no group is named unasked; None for neither."""
    return next((told.scope for told in (a, b) if is_out(told.scope)), None)


def same_parts(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, bool]:
    """Part of a record -> whether both say the same of it."""
    told, credits = [], _credits(a, b)
    for i, r in enumerate((a, b)):
        common = {m: f["settings"] for m, f in r["methods"].items() if m in a["methods"] and m in b["methods"]}
        told.append((
            r["picture"]["pixels_sha256"], r["picture"]["prompt"], r["model"]["sha256"],
            (r["group_set"]["id"], sorted(r["group_set"]["groups"])), r["adapters"], r["clip"], r["settings"]["effort"],
            common, credits[i], r["versions"], (r["hardware"], r["model"]["dtype"]),
        ))  # fmt: skip
    return {part: x == y for part, x, y in zip(PARTS, *told, strict=True)}


def _credits(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each record says of the groups that both have."""
    x, y = (r["group_set"]["groups"] for r in (a, b))
    first, second = ({g: [told[g][k] for k in CREDITS] for g in x if g in y} for told in (x, y))
    return first, second


def rows(a: Told, b: Told, method: str, *, comparable: bool) -> tuple[Row, ...]:
    """The groups of either report by one method, in the order of the first, then of the second."""
    x, y = a.answers[method], b.answers[method]
    ranks = [{g: i for i, g in enumerate(f.ranked(), 1)} for f in (x, y)]
    groups = {**b.group_set.groups, **a.group_set.groups}
    out = []
    for g in dict.fromkeys([*x.ranked(), *y.ranked(), *x.groups, *y.groups]):
        found = _difference(x, y, g) if comparable else (None, None, None)
        scores = [f.groups[g].score if g in f.groups else None for f in (x, y)]
        out.append(Row(g, groups[g].name, ranks[0].get(g), ranks[1].get(g), scores[0], scores[1], *found))
    return tuple(out)


def _difference(x: Attribution, y: Attribution, group: str) -> tuple[float | None, float | None, float | None]:
    p, q = x.groups.get(group), y.groups.get(group)
    if p is None or q is None or p.score is None or q.score is None:
        return None, None, None
    d = q.score - p.score
    if (p.score, p.low, p.high) == (q.score, q.low, q.high):
        return d, d, d
    if p.span is None or q.span is None:
        return d, None, None
    half = math.hypot(*((high - low) / 2 for low, high in (p.span, q.span)))
    return d, d - half, d + half


def _said(a: Told, b: Told, same: Mapping[str, bool], methods: Mapping[str, tuple[Row, ...]]) -> list[str]:
    """What changed, in plain sentences: about the picture, what was computed with, the verdict on scope, the first
    method of both, and which others gave the same."""
    said = ["Both reports are about the same picture."]
    if not same["picture"]:
        said = ["The reports are about two pictures. Scores of two pictures cannot be compared, so read the ranks."]
    other = [part for part in DECIDING[1:] if not same[part]]
    if other:
        said.append(f"Not the same: {', '.join(other)}. Anything below may come from that.")
    else:
        said.append("They were computed with the same model, groups, adapters and settings.")
    if not same["names"]:
        x, y = _credits(a.record, b.record)
        others = ", ".join(sentences.called(a.group_set, g) for g in x if x[g] != y[g])
        said.append(f"Not with the same name, author or licence: {others}.")
    scopes = [told.scope.verdict if told.scope else "not assessed" for told in (a, b)]
    if scopes[0] != scopes[1]:
        said.append(f"Could the model have made it? First report: {scopes[0]}. Second: {scopes[1]}.")
    elif same["picture"] and a.record["scope"] != b.record["scope"]:
        said.append(f"Could the model have made it? Both reports: {scopes[0]}, but with other numbers, words or rules.")
    elif scopes[0] == "out of scope":
        said.append("Could the model have made it? Both reports: out of scope.")
    if not methods:
        return [*said, "No method is in both reports."]
    (method, found), *others = methods.items()
    name, out = a.methods[method].name, away(a, b) is not None
    said += [] if out else _firsts(found, name, a, b)
    if not same["picture"]:
        return said
    for m in methods:
        x, y = a.answers[m], b.answers[m]
        if x.separable != y.separable:
            ways = f"{LEAD[x.separable]} in the first report, {LEAD[y.separable]} in the second"
            said.append(f"{a.methods[m].name}: the first two groups are {ways}.")
        if x.reached != y.reached:
            ways = f"{ENDED[x.reached]} ended its draws in the first report, {ENDED[y.reached]} in the second"
            said.append(f"{a.methods[m].name}: {ways}.")
    if a.answers.keys() == b.answers.keys() and all(map(_equal, methods.values())):
        return [*said, "Every score is the same to the last bit."]
    if out:
        others = list(methods.items())
    else:
        said += _scores(found, name, a.answers[method].unit)
    if equal := [a.methods[m].name for m, rows in others if _equal(rows)]:
        said.append(f"Every score by {', '.join(equal)} is the same to the last bit.")
    if near := [a.methods[m].name for m, rows in others if not _differing(rows) and _otherwise_wide(rows)]:
        said.append(f"Every score by {', '.join(near)} is the same to the last bit, but intervals differ.")
    if other := [a.methods[m].name for m, rows in others if _differing(rows)]:
        said.append(f"Scores by {', '.join(other)} differ.")
    return said


def _equal(found: tuple[Row, ...]) -> bool:
    """Whether both reports have the same scores and intervals of a method."""
    return all(r.exact or (r.score_a is None and r.score_b is None) for r in found)


def _otherwise_wide(found: tuple[Row, ...]) -> bool:
    """Whether a score is the same, but its interval is not."""
    return any(r.difference == 0 and not r.exact for r in found)


def _differing(found: tuple[Row, ...]) -> bool:
    """Whether a score is known to be another, or is in one report alone."""
    return any(r.difference or r.lost for r in found)


def _firsts(found: tuple[Row, ...], name: str, a: Told, b: Told) -> list[str]:
    places = [{r.rank_a: r.group for r in found}, {r.rank_b: r.group for r in found}]
    ids = [p.get(1) for p in places]
    firsts = [sentences.called(told.group_set, g) if g else "no group" for told, g in zip((a, b), ids, strict=True)]
    if ids[0] == ids[1]:
        known = "" if firsts[0] == firsts[1] else f", which the second report calls {firsts[1]}"
        said = [f"{name}: both put {firsts[0]} first{known}."]
    else:
        said = [f"{name}: the first report puts {firsts[0]} first, the second {firsts[1]}."]
    moved = [r for r in found if r.rank_a != r.rank_b]
    if not moved:
        return [*said, "No group changed place."]
    places = ", ".join(f"{sentences.apart(r.name)} ({_place(r.rank_a)} to {_place(r.rank_b)})" for r in moved)
    return [*said, f"Changed place: {places}."]


def _place(rank: int | None) -> str:
    return sentences.ordinal(rank) if rank else "none"


def _scores(found: tuple[Row, ...], name: str, unit: str) -> list[str]:
    """Of the scores that both reports have; one that a report lost is told with its place."""
    told = [r for r in found if r.difference is not None]
    if not told:
        return []
    if all(r.difference == 0 for r in told):
        both = " that both reports have" if any(r.lost for r in found) else ""
        wide = ", but intervals differ" if _otherwise_wide(found) else ""
        return [f"{name}: every score{both} is the same to the last bit{wide}."]
    clear = [
        f"{sentences.apart(r.name)} ({sentences.score(s, unit)}, {sentences.interval(s, unit) or 'exactly'})"
        for r in told
        if r.clear and (s := GroupScore(r.difference, r.low, r.high)).low is not None
    ]
    if clear:
        second = f"second minus first in {unit} with 95% interval"
        return [f"{name}: scores that differ clearly, {second}: {', '.join(clear)}."]
    spans = sum(r.low is not None for r in told)
    if not spans:
        return [f"{name}: scores differ. Their differences have no interval."]
    each = "each difference's 95% interval" if spans == len(told) else "where a difference has a 95% interval, it"
    return [f"{name}: no score differs clearly: {each} includes 0."]
