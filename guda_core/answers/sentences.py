"""An answer in plain sentences. Plain text throughout: whoever puts it into HTML escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import floor, inf, log10
from unicodedata import bidirectional

from guda_core.records import VERDICTS, Attribution, GroupScore, GroupSet, Scope

STATUS = {"ok": "ok", "unavailable": "unavailable", "no_score": "no score"}

TITLE = "Which pictures made this picture possible?"
READING = "A score is not a share: scores do not add up to anything."
ALL_THE_SAME = "Show the scores all the same"  # of a picture that is out of scope
EXACT = 1e15  # from about here on a float is not exact to the whole number
ENDED_EARLY = "Its draws are as exact as this effort asks, so it ended early."

PLAIN_UNITS = ("nats", "standard scores")  # whose scores are no smaller than two digits after the point show
MOST_DIGITS = 6  # after the point


def number(value: float, unit: str, width: float | None = None) -> str:
    """A score with as many digits as are worth reading: 41, 3.2 or 0.04 nats; 0.712 cosine; 0.0011 in a unit whose
    scale is a method's own; 1e+20 where no digit of the whole number would mean anything. width: of its 95% interval,
    where it has one: its last digit is then a fifth of that or less."""
    size, fifth = abs(value), abs(width or 0.0) / 5  # somebody else's file may say anything
    digits = max(0, -floor(log10(fifth))) if 0 < fifth < inf else None
    if size >= EXACT:
        text = f"{value:.3g}"
    elif unit == "cosine":
        text = f"{value:.3f}"
    elif digits is not None and digits <= MOST_DIGITS:
        text = f"{value:.{digits}f}"
    elif unit not in PLAIN_UNITS and 0 < size < 1:
        digits = 1 - floor(log10(size))
        text = f"{value:.{digits}f}" if digits <= MOST_DIGITS else f"{value:.1e}"
    elif unit not in PLAIN_UNITS and not value:
        text = "0"
    else:
        text = f"{value:.0f}" if size >= 9.95 else f"{value:.1f}" if size >= 0.995 else f"{value:.2f}"
    return text if float(text) else text.lstrip("-")


def _width(s: GroupScore) -> float | None:
    return s.span[1] - s.span[0] if s.span else None


def score(s: GroupScore, unit: str) -> str:
    """A group's score, as exact as its interval."""
    return number(s.score or 0.0, unit, _width(s))


def interval(s: GroupScore, unit: str) -> str:
    """The 95% interval, e.g. "35 to 47"; "" when there is none."""
    return " to ".join(number(v, unit, _width(s)) for v in s.span or ())


def beyond(a: Attribution, ranked: list[str]) -> str | None:
    """Of the groups that stand out, the first by the score less the offset, where that is above 0; None for none."""
    clear = [g for g in ranked if a.stands_out(g)]
    return max(clear, key=lambda g: (a.groups[g].score or 0.0) - max(0.0, a.offset(g)), default=None)


def places(share: float) -> str:
    """How many of 100 places a share is, which is above 0."""
    return "fewer than 1" if share <= 0.005 else f"{100 * share:.0f}"  # 0.5 is rounded to 0


def remarks(a: Attribution) -> str:
    """The heading of the column that says why a group has no score or fewer draws; "" where there is nothing to say."""
    if any(s.score is not None and s.reason for s in a.groups.values()):
        return "Remark"
    return "Not scored" if len(a.ranked()) < len(a.groups) else ""


def called(group_set: GroupSet, group: str) -> str:
    """A group's name as a sentence holds it."""
    return apart(group_set.groups[group].name)


def apart(name: str) -> str:
    """A name that is read from right to left is set apart, else it would draw the figures beside it to another one."""
    return f"\u2068{name}\u2069" if any(bidirectional(c) in ("R", "AL") for c in name) else name


def scored_with(prompt: str) -> str:
    """Which caption a picture was scored with."""
    return f"Scored with the caption: {prompt}" if prompt else "Scored without a caption."


def short(name: str, most: int) -> str:
    """A long name's begin and end."""
    return name if len(name) <= most else f"{name[: most - 20]}...{name[-17:]}"


def rows(a: Attribution, group_set: GroupSet) -> list[tuple[str, ...]]:
    """The table of an Attribution, best first: rank, group, score, 95% interval, offset and drop (if scores
    include an offset), and, where a group has no score or fewer draws, a last column with the reason."""
    ranked, offset, remarked = a.ranked(), a.has_offset, bool(remarks(a))
    out: list[tuple[str, ...]] = []
    for i, g in enumerate(dict.fromkeys([*ranked, *a.groups])):
        s = a.groups[g]
        if s.score is None:
            cells = ["-", group_set.groups[g].name, "-", "-", *(["-", "-"] if offset else [])]
        else:
            both = (a.offset(g), s.score - a.offset(g)) if offset else ()
            parts = [number(v, a.unit, _width(s)) for v in both]
            cells = [str(i + 1), group_set.groups[g].name, score(s, a.unit), interval(s, a.unit) or "-", *parts]
        why = STATUS[s.status] + (f": {s.reason}" if s.reason else "")
        out.append((*cells, *([why if s.score is None else s.reason] if remarked else [])))
    return out


def strip(a: Attribution, group_set: GroupSet) -> str:
    """Whom a method puts where, as one line: "1 OpenMoji, 2 Noto Emoji, 3 Twemoji"."""
    named = [f"{i} {called(group_set, g)}" for i, g in enumerate(a.ranked(), 1)]
    return ", ".join(named) or "no group could be scored"


def scope_note(scope: Scope) -> str:
    """Whether the model could have made the picture, for a line below the answer; with the kinds of foreign pictures
    that the check calls out of scope less than half of the time."""
    missed = ""
    if scope.verdict == "in scope":
        kinds = [k for k in scope.settings.get("kinds", {}).values() if not k["belongs"]]
        often = [k for k in kinds if k["out_of_scope"]["value"] < 0.5]
        often.sort(key=lambda k: k["out_of_scope"]["value"])
        told = [f"{k['about']} ({100 * k['out_of_scope']['value']:.0f}% are found)" for k in often]
        missed = f"This check misses most of these: {', '.join(told)}." if told else ""
    return f"{VERDICTS[scope.verdict]} {scope.reason} {missed}".strip()


def first_of(a: Attribution, group_set: GroupSet) -> str:
    """Whom an answer puts first, as one cell of a table says it."""
    ranked = a.ranked()
    if not ranked:
        return "no group could be scored"
    name = called(group_set, ranked[0])
    if a.unit == "nats" and not a.stands_out(ranked[0]):
        most = beyond(a, ranked)
        if most is None:
            return "no group stands out"
        return f"{name}; {called(group_set, most)} stands out"
    if a.separable is False and a.runner_up:
        return f"{name} or {called(group_set, a.runner_up)}: not separable"
    return name


def captions_agree(answers: Sequence[Attribution], group_set: GroupSet) -> str:
    """Do the answers to one picture under different captions put the same group first?"""
    firsts = [first_of(a, group_set) for a in answers]
    if len(firsts) < 2:
        return "There was no other caption to try."
    leaders = {next(iter(a.ranked()), "") for a in answers}
    if "" in leaders:
        which = "With some caption" if len(leaders) > 1 else "Under these captions"
        return f"{which} no group could be scored, so it cannot be said whether the answer depends on it."
    if len(set(firsts)) == 1:
        return f"The answer does not depend on the caption: each one gives {firsts[0]}."
    if len(leaders) == 1:
        name = called(group_set, next(iter(leaders)))
        return f"{name} comes first with each caption, but not always clearly. Trust this less than a clear answer."
    return "The captions disagree about the first group. Do not rely on any one of these answers alone."


def shared_ranks(answers: Sequence[Attribution]) -> dict[str, dict[str, int]]:
    """Method -> group -> rank from 1, of the methods that score any group, among the groups that they all score: ranks
    among each one's own groups would differ by those that only some of them score."""
    ranked = {a.method: a.ranked() for a in answers if a.ranked()}
    shared = set[str].intersection(*map(set, ranked.values())) if ranked else set()
    return {m: {g: i for i, g in enumerate((g for g in own if g in shared), 1)} for m, own in ranked.items()}


def compared(answers: Sequence[Attribution], group_set: GroupSet, names: Mapping[str, str]) -> list[str]:
    """Where the methods agree and disagree, in plain sentences."""
    if len(answers) < 2:
        return ["Only one method has answered, so there is nothing to compare. Choose a second one and score again."]
    ranks = shared_ranks(answers)
    silent = [names[a.method] for a in answers if a.method not in ranks]
    said = [f"No group could be scored by {' or '.join(silent)}."] if silent else []
    if len(ranks) < 2:
        return [*said, "So there is nothing to compare."]
    shared = next(iter(ranks.values()))
    if not shared:
        return [*said, "No group was scored by all of these methods, so their orders cannot be compared."]
    if left_out := dict.fromkeys(g for a in answers for g in a.ranked() if g not in shared):
        by_name = ", ".join(called(group_set, g) for g in left_out)
        said.append(f"Only groups that all of these methods score are compared. Left out: {by_name}.")
    first = {m: next(iter(r)) for m, r in ranks.items()}
    shown = {g: called(group_set, g) for g in shared}
    if len(set(first.values())) == 1:
        who = "All methods" if not silent else " and ".join(names[m] for m in first)
        said.append(f"{who} put {shown[next(iter(first.values()))]} first.")
    else:
        by = {g: ", ".join(names[m] for m, f in first.items() if f == g) for g in first.values()}
        said.append("The methods disagree: " + "; ".join(f"{shown[g]} is first by {m}" for g, m in by.items()) + ".")
    spread = {g: max(r[g] for r in ranks.values()) - min(r[g] for r in ranks.values()) for g in shared}
    most = max(spread, key=lambda g: spread[g], default=None)
    if most is not None and spread[most] > 1:
        places = ", ".join(f"{ordinal(r[most])} by {names[m]}" for m, r in ranks.items())
        said.append(f"They differ most about {shown[most]}: {places}.")
    unsure = [names[a.method] for a in answers if a.separable is False]
    if unsure:
        said.append(f"The first two groups are not separable by {' or '.join(unsure)}.")
    return said


def moment(date: str) -> str:
    """When something was, for people: "2026-11-29 10:28 UTC"; a date of another form as it is."""
    try:
        return f"{datetime.fromisoformat(date).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return date


def ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
