"""The answer in plain sentences. Plain text throughout: whoever puts it into HTML escapes it."""

from __future__ import annotations

from collections.abc import Mapping

from guda_core.records import Attribution, GroupScore, GroupSet

MAIN = "guda"  # the method the first sentence is about, when it was asked
STATUS = {"ok": "ok", "unavailable": "unavailable", "no_score": "no score"}

TITLE = "Which pictures made this picture possible?"
PURPOSE = (
    "A diffusion model learned to draw from several groups of training pictures. This tool asks, for one picture, "
    "which group the model needed: it compares the model with copies of it that have unlearned one group each."
)
FIRST_VISIT = "Nothing is scored yet. Choose an object and a style to let the model draw a picture, or upload your own."
WAITING = "Waiting for a free place."
WORKING = "Working on it: the scores appear here as soon as there are any."
CANCELLING = "Cancelling."
CANCELLED = "Cancelled. Whatever is shown was computed up to then."
CANCELLED_EARLY = "Cancelled before there was any score."
NOT_STARTED = "Not started. See the message, and try again."
SCORING = "Scoring."
DONE = "Done."
PICTURE_GONE = "The picture is no longer kept here. Draw or upload it again."
NO_PICTURE = "There is no picture yet. Upload one first."
NOT_UPLOADED = "Only a picture uploaded on this page is accepted: no web address, no data and no path on the server."
FAULT = "Something went wrong on the server. It was logged; please try again."


def number(value: float, unit: str) -> str:
    """A score with as many digits as are worth reading: 41, 3.2 or 0.04 nats; 0.712 cosine."""
    if unit == "cosine":
        text = f"{value:.3f}"
    else:
        text = f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
    return text if float(text) else text.lstrip("-")


def interval(s: GroupScore, unit: str) -> str:
    """The 95% interval, e.g. "35 to 47"; "" when there is none."""
    if s.low is None or s.high is None:
        return ""
    return f"{number(s.low, unit)} to {number(s.high, unit)}"


def seconds(value: float) -> str:
    """A duration, e.g. "about 8 s" or "about 3 min"."""
    return f"about {max(1, round(value))} s" if value < 90 else f"about {round(value / 60)} min"


def sentence(a: Attribution, group_set: GroupSet) -> str:
    """What one Attribution says, in one or two sentences; "" while it has no groups."""
    if not a.groups:
        return ""
    ranked = a.ranked()
    names = {g: group_set.groups[g].name for g in a.groups}
    missing = [names[g] for g in a.groups if g not in ranked]
    if not ranked:
        return "No group could be scored; the table says why."
    said = _likeness(a, names, ranked) if a.unit == "cosine" else _drop(a, names, ranked)
    if a.progress < 1:
        said = f"So far: {said}"
    if missing:
        said += f" Not scored: {', '.join(missing)}."
    return said


def _figures(a: Attribution, group: str) -> str:
    s = a.groups[group]
    return f"{number(s.score or 0.0, a.unit)} {a.unit}, 95% interval {interval(s, a.unit)}"


def _drop(a: Attribution, names: Mapping[str, str], ranked: list[str]) -> str:
    first = ranked[0]
    low, high = a.groups[first].low or 0.0, a.groups[first].high or 0.0
    if low <= 0:
        where = "includes 0" if high >= 0 else "lies below 0"
        return f"No group stands out: the interval of the first, {names[first]}, {where} ({_figures(a, first)})."
    second = a.runner_up
    if second is not None and a.separable is False:
        return (
            f"The first two, {names[first]} and {names[second]}, cannot be told apart: {_figures(a, first)}, and "
            f"{_figures(a, second)}. More effort narrows the intervals."
        )
    ahead = f"; clearly ahead of {names[second]}" if second is not None and a.separable else ""
    return (
        f"Without {names[first]} in the training data, this picture would be explained worst: "
        f"{_figures(a, first)}{ahead}."
    )


def _likeness(a: Attribution, names: Mapping[str, str], ranked: list[str]) -> str:
    then = f"; next is {names[ranked[1]]} at {number(a.groups[ranked[1]].score or 0.0, a.unit)}" if ranked[1:] else ""
    return f"It looks most like the pictures of {names[ranked[0]]}: {_figures(a, ranked[0])}{then}. Likeness only."


def headline(answers: Mapping[str, Attribution], group_set: GroupSet, asked: list[str]) -> str:
    """The first sentence on the screen: that of GUDA when asked, else that of the first method with an answer."""
    main = MAIN if MAIN in asked else next(iter(asked), "")
    said = sentence(answers[main], group_set) if main in answers else ""
    if said:
        return said
    others = [s for a in answers.values() if (s := sentence(a, group_set))]
    return " ".join([WORKING, *others])


def rows(a: Attribution, group_set: GroupSet) -> list[tuple[str, str, str, str, str]]:
    """The table of an Attribution, best first: rank, group, score, 95% interval, status with its reason."""
    ranked = a.ranked()
    out = []
    for i, g in enumerate([*ranked, *(g for g in a.groups if g not in ranked)]):
        s = a.groups[g]
        rank = str(i + 1) if g in ranked else "-"
        score = number(s.score, a.unit) if s.score is not None else "-"
        status = STATUS[s.status] + (f": {s.reason}" if s.reason else "")
        out.append((rank, group_set.groups[g].name, score, interval(s, a.unit) or "-", status))
    return out
