"""The answer that is read first: a headline, a chip or two, one line in plain words, then the figures.

It is about the main method. While that computes, the headline names no group: what another method says, or a first
guess, could be another one. Plain text throughout: whoever puts it into HTML escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from guda_core.answers import sentences
from guda_core.records import Attribution, GroupSet, MethodInfo, Scope

CLEAR, CLOSE, NONE, OUT, LIKENESS = "clear of the second", "close", "no group", "out of scope", "likeness"
WORKING, CANCELLED, UNSURE = "working", "cancelled", "not compared"
NOTHING_YET = "Nothing is scored yet"
OUT_OF_SCOPE = "This model could not have made this picture: no attribution"
OUT_PLAIN = (
    "This picture does not look like something this model made. What it would miss without a group says little then. "
    "So the scores are shown only on request."
)
NO_DROP = "its drop, measured on this picture, is not clearly above 0"
IN_WORK = "Computing"
IN_WORK_PLAIN = "The bars still move. The answer stands here when they have settled."


@dataclass(frozen=True)
class Chip:
    """A word beside the headline. kind: what colour it has: "good", "unsure" or "quiet"."""

    text: str
    kind: str = "quiet"


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of an answer. The first chip is its state."""

    headline: str
    plain: str = ""
    figures: str = ""
    chips: tuple[Chip, ...] = ()


WORKING_VERDICT = Verdict(IN_WORK, IN_WORK_PLAIN, chips=(Chip(WORKING),))
FIRST_VISIT = Verdict(NOTHING_YET, "Press an example to see an answer.")
NO_EXAMPLES = Verdict(NOTHING_YET, "Let the model draw a picture, or upload one.")
CANCELLED_EARLY = Verdict("Cancelled", "There was no score yet.", chips=(Chip(CANCELLED, "unsure"),))


def is_out(scope: Scope | None) -> TypeGuard[Scope]:
    """Whether a picture is out of scope, so that no group is named unasked."""
    return scope is not None and scope.verdict == "out of scope"


def verdict(
    found: Mapping[str, Attribution],
    group_set: GroupSet,
    asked: Sequence[str],
    methods: Mapping[str, MethodInfo],
    *,
    scope: Scope | None = None,
    over: bool = False,
) -> Verdict:
    """The verdict on one picture.

    found: method id -> its latest answer. asked: as in an `Answer`. scope: None until it was looked at. over: that no
    more will come, because the visitor cancelled.
    """
    first = next((m for m in asked if methods[m].main), next(iter(asked), ""))
    a = found.get(first)
    if a is None or not a.groups:
        return CANCELLED_EARLY if over else WORKING_VERDICT
    if is_out(scope):
        return Verdict(OUT_OF_SCOPE, OUT_PLAIN, scope.reason, (Chip(OUT, "unsure"),))
    if a.progress < 1 and not over:
        return WORKING_VERDICT
    said = _of(a, group_set, methods[first].name)
    more = _oracle(a, found, group_set, asked, methods, over=over) if methods[first].main else None
    figures = said.figures if more is None else f"{said.figures} {more[0]}".strip()
    chips = (*said.chips, *(more[1] if more is not None else ()))
    if a.progress < 1:
        plain = f"So far: {said.headline}. {said.plain}"
        return Verdict("Cancelled before the answer was done", plain, figures, (Chip(CANCELLED, "unsure"),))
    if over and any(m not in found or found[m].progress < 1 for m in asked):
        chips = (*chips, Chip("others cancelled", "unsure"))
    return Verdict(said.headline, said.plain, figures, chips)


def _of(a: Attribution, group_set: GroupSet, method: str) -> Verdict:
    """What one Attribution says, whether it is final or not."""
    ranked = a.ranked()
    names = {g: sentences.called(group_set, g) for g in a.groups}
    missing = [names[g] for g in a.groups if g not in ranked]
    if not ranked:
        return Verdict("No group could be scored", "The table says why.", chips=(Chip(NONE, "unsure"),))
    if a.unit == "nats":
        said = _needed(a, names, ranked, method)
    elif a.unit == "cosine":
        plain = "It looks most like the pictures of this group. That is likeness, and no more."
        said = Verdict(f"Looks most like: {names[ranked[0]]}", plain, _figures(a, names, ranked), (Chip(LIKENESS),))
    else:
        plain = f"{method} puts this group first."
        said = Verdict(f"First: {names[ranked[0]]}", plain, _figures(a, names, ranked), (_lead(a),))
    left = f" Not scored: {', '.join(missing)}." if missing else ""
    if a.reached == "width" and a.progress == 1:
        left = f" {sentences.ENDED_EARLY}{left}"
    return Verdict(said.headline, said.plain, said.figures + left, said.chips)


def _needed(a: Attribution, names: Mapping[str, str], ranked: list[str], method: str) -> Verdict:
    """Of scores in nats."""
    first, figures = ranked[0], _figures(a, names, ranked)
    if not a.stands_out(first):
        beyond, why = sentences.beyond(a, ranked), _why_not(a, first)
        if beyond is None:
            plain = f"{names[first]} comes first, but {why}."
            return Verdict("No group stands out", plain, figures, (Chip(NONE, "unsure"),))
        its = "its drop is" if why == NO_DROP else "its interval does not"
        plain = f"{names[first]} comes first, but {why}. {names[beyond]} stands out most: {its}."
        return Verdict(f"{names[first]} or {names[beyond]}: two readings", plain, figures, (Chip(CLOSE, "unsure"),))
    if a.separable is False and a.runner_up is not None:
        both = f"{names[first]} and {names[a.runner_up]}"
        low = a.groups[first].low
        more = any(low is not None and (a.groups[g].high or 0.0) >= low for g in ranked[2:])
        others = "Others may be as close. " if more else ""
        plain = f"The scores of {both} are too close to say which the model needed more. {others}More effort may tell."
        return Verdict(f"Two groups cannot be told apart: {both}", plain, figures, (Chip(CLOSE, "unsure"),))
    plain = f"By {method}, the model explains this picture worst without {names[first]}."
    by_drop = max(ranked, key=lambda g: (a.groups[g].score or 0.0) - a.offset(g))
    if by_drop != first:
        plain = (
            f"By {method}, {names[first]} has the highest score. By the drop on this picture alone, "
            f"{names[by_drop]} would come first."
        )
    return Verdict(f"Most needed: {names[first]}", plain, figures, (_lead(a),))


def lead_said(a: Attribution, group_set: GroupSet) -> str:
    """What an answer says of its first group beside the second, in short, where there is no verdict; "" for nothing."""
    ranked, names = a.ranked(), {g: sentences.called(group_set, g) for g in group_set.groups}
    if not ranked:
        return ""
    if a.unit == "nats" and not a.stands_out(ranked[0]):
        found = _needed(a, names, ranked, a.method)
        return f"{found.headline}. {found.plain}"
    if a.separable is None or a.runner_up is None:
        return ""
    first, second = names[ranked[0]], names[a.runner_up]
    return f"{first} is ahead of {second}." if a.separable else f"{first} and {second} are not separable."


def _why_not(a: Attribution, first: str) -> str:
    if a.offset(first) > 0 and (a.groups[first].low or 0.0) > 0:
        return NO_DROP
    return "its interval reaches down to 0" if (a.groups[first].high or 0.0) >= 0 else "its score is below 0"


def _lead(a: Attribution) -> Chip:
    """Whether the first is ahead of the second, where that was tested."""
    if a.runner_up is None or a.separable is None:
        return Chip(UNSURE)
    return Chip(CLEAR, "good") if a.separable else Chip(CLOSE, "unsure")


def _figures(a: Attribution, names: Mapping[str, str], ranked: list[str]) -> str:
    """The first group's score with its interval, and the next group's."""
    first, s = ranked[0], a.groups[ranked[0]]
    said = f"{names[first]}: {sentences.score(s, a.unit)} {a.unit}"
    said += f" (95% interval {span})" if (span := sentences.interval(s, a.unit)) else ""
    if ranked[1:]:
        said += f". Next: {names[ranked[1]]}, {sentences.score(a.groups[ranked[1]], a.unit)}"
    return f"{said}."


def _oracle(
    a: Attribution,
    found: Mapping[str, Attribution],
    group_set: GroupSet,
    asked: Sequence[str],
    methods: Mapping[str, MethodInfo],
    *,
    over: bool,
) -> tuple[str, tuple[Chip, ...]]:
    """Whether the retrained models agree with the main method: a sentence, and a chip where they answered."""
    oracle = next((m for m, info in methods.items() if info.oracle), None)
    if oracle is None:
        return "No retrained models (the oracle) checked this answer.", ()
    b = found.get(oracle)
    if oracle not in asked:
        return "The retrained models (the oracle) were not asked.", ()
    if b is None or b.progress < 1:
        return ("" if over else "The retrained models (the oracle) are asked next."), ()
    ours, theirs = a.ranked(), b.ranked()
    if not ours or not theirs:
        return "The retrained models could not be compared.", ()
    name = sentences.called(group_set, theirs[0])
    if ours[0] not in theirs:
        said = f"There is no score without {sentences.called(group_set, ours[0])} by the retrained models (the oracle)."
        others = (
            f"They put {name} first of the others." if b.stands_out(theirs[0]) else "None of the others stands out."
        )
        return f"{said} {others}", (Chip("oracle: not checked", "unsure"),)
    if not b.stands_out(theirs[0]):
        if (most := sentences.beyond(b, theirs)) is not None:
            other = sentences.called(group_set, most)
            said = f"With the retrained models (the oracle), {name} comes first, but it is {other} that stands out."
            return said, (Chip("oracle: two readings", "unsure"),)
        return "With the retrained models (the oracle), no group stands out.", (Chip(f"oracle: {NONE}", "unsure"),)
    if b.separable is False and b.runner_up is not None:
        second = sentences.called(group_set, b.runner_up)
        said = f"The retrained models (the oracle) cannot tell {name} and {second} apart."
        return said, (Chip("oracle: close", "unsure"),)
    alone = a.separable is not False and a.stands_out(ours[0])
    if alone and theirs[0] == ours[0]:
        return "The retrained models (the oracle) put the same group first.", (Chip("oracle agrees", "good"),)
    said = f"{'But the' if alone else 'The'} retrained models (the oracle) put {name} first."
    return said, (Chip(f"oracle: {name}", "unsure"),)
