"""What a record says, as the objects that answers are shown from: groups, methods, scope.

A record from outside follows its schema (`read`), but its names need not belong together: what does not fit is left
out, so that showing a report cannot fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from guda_core.answers import other_captions
from guda_core.picture_records import Shown
from guda_core.records import VERDICTS, Attribution, Group, GroupScore, GroupSet, MethodInfo, Scope, Tried

SCORE = ("score", "low", "high", "status", "reason")
KNOWN = ("value", "threshold", "p_value")


@dataclass(frozen=True)
class Told:
    """A record made ready to be shown. answers: in the order of the record. asked: ids of methods, the main one first
    where there is one. methods: what is said of each. scope: None where the record has none. tried: the picture's
    caption, then others, where others were tried; without the values behind them."""

    record: Mapping[str, Any]
    group_set: GroupSet
    answers: Mapping[str, Attribution]
    asked: tuple[str, ...]
    methods: Mapping[str, MethodInfo]
    scope: Scope | None
    shown: Shown = field(default_factory=Shown)
    tried: tuple[Tried, ...] = ()

    @property
    def main(self) -> Attribution | None:
        """The answer that the verdict is about."""
        return self.answers.get(self.asked[0]) if self.asked else None


def tell(
    record: Mapping[str, Any],
    answers: Sequence[Attribution],
    known: Mapping[str, MethodInfo],
    shown: Shown | None = None,
) -> Told:
    """Put together what a record, its answers and its pictures say. known: what is said of methods; one that is not
    among them goes by its id."""
    group_set = groups_of(record)
    found = {a.method: _fitting(a, group_set) for a in answers}
    asked = list(dict.fromkeys([*record["settings"]["methods"], *found]))
    asked = [m for m in asked if m in known or m in found]
    methods = {m: known.get(m) or MethodInfo(m, m, found[m].unit, "") for m in asked}
    first = [m for m in asked if methods[m].main and m in found] or [m for m in asked if m in found]
    asked = [*first[:1], *(m for m in asked if m not in first[:1])]
    pictures = _pictured(shown or Shown(), group_set)
    tried = tuple(_captions(record, group_set, found))
    return Told(record, group_set, found, tuple(asked), methods, scope_of(record["scope"]), pictures, tried)


def groups_of(record: Mapping[str, Any]) -> GroupSet:
    """The group set of a record: its names, authors and licences."""
    told = record["group_set"]
    named = ("name", "author", "licence", "licence_link", "link")
    groups = {g: Group(g, **{k: v[k] for k in named}) for g, v in told["groups"].items()}
    return GroupSet(told["id"], told["name"], groups)


def _captions(record: Mapping[str, Any], group_set: GroupSet, found: Mapping[str, Attribution]) -> Iterator[Tried]:
    """The picture's own caption, then the others, all by one method (`read`)."""
    others = record.get("captions", ())
    method = others[0]["method"] if others else ""
    if method not in found:
        return
    prompt = record["picture"]["prompt"]
    yield Tried(other_captions.GIVEN if prompt else other_captions.NONE, prompt, found[method])
    for told in others:
        if told["answer"]["unit"] == found[method].unit:
            answer = _fitting(answer_of(method, told["answer"]), group_set)
            yield Tried(told["label"], told["prompt"], answer)


def answer_of(method: str, told: Mapping[str, Any]) -> Attribution:
    """A method's part of a record as an Attribution, without the values behind it."""
    groups = {g: GroupScore(**{k: s[k] for k in SCORE}) for g, s in told["groups"].items()}
    reached = (told["sampling"] or {}).get("reached")
    return Attribution(
        method, told["unit"], groups, told["progress"], told["separable"], told["runner_up"],
        settings=told["settings"], reached=reached,
    )  # fmt: skip


def _fitting(a: Attribution, group_set: GroupSet) -> Attribution:
    groups = {g: s for g, s in a.groups.items() if g in group_set.groups}
    runner_up = a.runner_up if a.runner_up in groups and groups[a.runner_up].score is not None else None
    return replace(a, groups=groups, runner_up=runner_up)


def _pictured(shown: Shown, group_set: GroupSet) -> Shown:
    strip = shown.strip
    if strip is not None:
        known = [g for g in strip.pictures if g in group_set.groups]
        pictures = {g: strip.pictures[g] for g in known}
        strip = replace(strip, pictures=pictures, distances={g: strip.distances[g] for g in known})
    where, near = (tuple(t for t in part if t.group in group_set.groups) for part in (shown.where, shown.near))
    return replace(shown, strip=strip, where=where, near=near)


def scope_of(told: Any) -> Scope | None:
    """The verdict on scope that a record tells; None where it tells none that is known."""
    if not isinstance(told, Mapping) or told.get("verdict") not in list(VERDICTS):
        return None
    verdict: Literal["in scope", "out of scope", "not assessed"] = told["verdict"]
    numbers = {k: v if isinstance(v := told.get(k), int | float) else None for k in KNOWN}
    settings = told.get("settings")
    kinds = settings.get("kinds") if isinstance(settings, Mapping) else None
    kept = {k: v for k, v in kinds.items() if _is_kind(v)} if isinstance(kinds, Mapping) else {}
    unit, reason = (str(told.get(k) or "") for k in ("unit", "reason"))
    return Scope(verdict, numbers["value"], numbers["threshold"], unit, reason, {"kinds": kept},
                 numbers["p_value"])  # fmt: skip


def _is_kind(told: Any) -> bool:
    """Whether this is a kind's figures, as `answers.sentences.scope_note` reads them."""
    if not isinstance(told, Mapping) or not {"about", "belongs", "out_of_scope"} <= set(told):
        return False
    share = told["out_of_scope"]
    return isinstance(share, Mapping) and isinstance(share.get("value"), int | float)
