"""The answer in plain sentences. Plain text throughout: whoever puts it into HTML escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from guda_core.records import VERDICTS, Attribution, GroupScore, GroupSet, MethodInfo, Scope

STATUS = {"ok": "ok", "unavailable": "unavailable", "no_score": "no score"}

TITLE = "Which pictures made this picture possible?"
READING = "A score is not a share. A pale bar's interval includes 0 or reaches down to the tick (the offset)."
PURPOSE = (
    "A diffusion model learned to draw from several groups of training pictures. For one picture, this tool asks which "
    "group the model needed. It compares the model with copies of it, each of which has unlearned one group."
)
STEPS = (
    "Press an example, let the model draw a picture, or upload one of your own.",
    "The tool compares the model with copies of it, each of which has unlearned one group of training pictures.",
    "You read without which group the model would explain the picture worst, how certain that is, and who drew it.",
)
FIRST_VISIT = "Nothing is scored yet. Press an example to see an answer."
TRY_CAPTIONS = "Also try other captions"
CAPTIONS_INFO = "Scores the picture again with the best caption that CLIP finds, and without a caption."
WAITING = "Waiting in the queue."
WORKING = "Computing. The scores appear here as they come."
CANCELLING = "Cancelling."
CANCELLED = "Cancelled. What you see was computed before that."
CANCELLED_EARLY = "Cancelled. There was no score yet."
NOT_STARTED = "Not started. Too many visitors are waiting, or an input was refused. Try again in a minute."
SCORING = "Scoring."
SCOPING = "Checking whether this model could have made the picture."
DONE = "Done."
STORED = "Done. This example was computed earlier and stored. Score it again to compute it now."
PICTURE_GONE = "The picture is no longer stored here. Draw or upload it again."
NO_PICTURE = "There is no picture yet. Upload one first."
NO_REPORT = "There is no report yet. Choose a report's zip first."
NO_ANSWER = "Nothing is scored yet. Score a picture on the first tab. Its details then appear here."
NOT_UPLOADED = (
    "Only a picture that you upload on this page is accepted. A web address, data or a path on the server is not."
)
ABORTED = "The GPU was taken back before the work was done. Try again, with less effort or fewer methods."
FAULT = "Something went wrong on the server. The error was logged. Please try again."
DISK = "The file could not be written. The server's disk is full or read-only. Try again later."
OUT_OF_SCOPE = VERDICTS["out of scope"] + " Read the bars below with that in mind."
OWN_PICTURE = "Not needed: the model made this picture itself."
SAME_CAPTION = "the same caption as above"
REPLAYED = {
    "equal": "Equal. Computed again here, every score is the same to the last bit.",
    "within tolerance": "Within tolerance. Computed again here, every number is the same to one part in a thousand (or "
    "0.001 nats). Other hardware or versions cause such differences.",
    "different": "Different. Computed again here, something is not as the report says. The tables show what.",
}


PLAIN_UNITS = ("nats", "standard scores")  # whose scores are no smaller than two digits after the point show


def number(value: float, unit: str) -> str:
    """A score with as many digits as are worth reading: 41, 3.2 or 0.04 nats; 0.712 cosine; 0.0011 in a unit whose
    scale is a method's own."""
    if unit == "cosine":
        text = f"{value:.3f}"
    elif unit not in PLAIN_UNITS and abs(value) < 1:
        text = f"{value:.2g}"
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


def sentence(a: Attribution, group_set: GroupSet, name: str = "") -> str:
    """What one Attribution says, in one or two sentences; "" while it has no groups. name: of its method, as shown."""
    if not a.groups:
        return ""
    ranked = a.ranked()
    names = {g: group_set.groups[g].name for g in a.groups}
    missing = [names[g] for g in a.groups if g not in ranked]
    if not ranked:
        return "No group could be scored. The table says why."
    if a.unit == "nats":
        said = _drop(a, names, ranked)
    elif a.unit == "cosine":
        said = _likeness(a, names, ranked)
    else:
        said = _first(a, names, ranked, name or a.method)
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
    offset = a.offset(first)
    if offset > 0 and not a.stands_out(first):
        said = f"{names[first]} comes first, but not clearly above its offset, the {number(offset, a.unit)} {a.unit} "
        said += f"that it gives to any picture ({_figures(a, first)})."
        beyond = _beyond(a, ranked)
        if beyond is None:
            return f"No group stands out: {said}"
        return f"{said} Above the offsets, {names[beyond]} is needed most: {_figures(a, beyond)}."
    if low <= 0:
        where = "includes 0" if high >= 0 else "lies below 0"
        return f"No group stands out: the interval of the first, {names[first]}, {where} ({_figures(a, first)})."
    second = a.runner_up
    if second is not None and a.separable is False:
        return (
            f"The first two, {names[first]} and {names[second]}, are not separable: {_figures(a, first)}, and "
            f"{_figures(a, second)}. More effort narrows the intervals."
        )
    ahead = f"; clearly ahead of {names[second]}" if second is not None and a.separable else ""
    return (
        f"Without {names[first]} in the training data, the model would explain this picture worst: "
        f"{_figures(a, first)}{ahead}."
    )


def _beyond(a: Attribution, ranked: list[str]) -> str | None:
    """The group that gives this picture most beyond what it gives to any, clearly; None where none does."""
    clear = [g for g in ranked if a.stands_out(g)]
    return max(clear, key=lambda g: (a.groups[g].score or 0.0) - max(0.0, a.offset(g)), default=None)


def _likeness(a: Attribution, names: Mapping[str, str], ranked: list[str]) -> str:
    then = f"; next is {names[ranked[1]]} at {number(a.groups[ranked[1]].score or 0.0, a.unit)}" if ranked[1:] else ""
    return (
        f"It looks most like the pictures of {names[ranked[0]]}: {_figures(a, ranked[0])}{then}. This is only likeness."
    )


def _first(a: Attribution, names: Mapping[str, str], ranked: list[str], method: str) -> str:
    """Of methods whose scores are not differences of ELBOs: whom they put first, and no more."""
    said = f"By {method}, {names[ranked[0]]} comes first: {_figures(a, ranked[0])}"
    if a.runner_up is None or a.separable is None:
        return f"{said}."
    second = names[a.runner_up]
    return f"{said}; {'clearly ahead of' if a.separable else 'not separable from'} {second}."


def headline(
    answers: Mapping[str, Attribution], group_set: GroupSet, asked: Sequence[str], methods: Mapping[str, MethodInfo]
) -> str:
    """The first sentence on the screen: that of the main method when asked, else of the first one that was asked."""
    said = {m: sentence(a, group_set, methods[m].name) for m, a in answers.items()}
    first = next((m for m in asked if methods[m].main), next(iter(asked), ""))
    if said.get(first):
        return said[first]
    return " ".join([WORKING, *(s for s in said.values() if s)])


def rows(a: Attribution, group_set: GroupSet) -> list[tuple[str, ...]]:
    """The table of an Attribution, best first: rank, group, score, 95% interval, offset (if scores include one), status
    with its reason."""
    ranked, offset = a.ranked(), a.has_offset
    out: list[tuple[str, ...]] = []
    for i, g in enumerate([*ranked, *(g for g in a.groups if g not in ranked)]):
        s = a.groups[g]
        rank = str(i + 1) if g in ranked else "-"
        score = number(s.score, a.unit) if s.score is not None else "-"
        status = STATUS[s.status] + (f": {s.reason}" if s.reason else "")
        part = [number(a.offset(g), a.unit) if g in ranked else "-"] if offset else []
        out.append((rank, group_set.groups[g].name, score, interval(s, a.unit) or "-", *part, status))
    return out


def scope_note(scope: Scope) -> str:
    """Whether the model could have made the picture, for a line below the sentence; the warning is `OUT_OF_SCOPE`."""
    told = {**VERDICTS, "out of scope": "How this was decided:"}
    return f"{told[scope.verdict]} {scope.reason}".strip()


def first_of(a: Attribution, group_set: GroupSet) -> str:
    """Whom an answer puts first, as one cell of a table says it."""
    ranked = a.ranked()
    if not ranked:
        return "no group could be scored"
    name = group_set.groups[ranked[0]].name
    if a.unit == "nats" and not a.stands_out(ranked[0]):
        beyond = _beyond(a, ranked) if a.offset(ranked[0]) > 0 else None
        if beyond is None:
            return "no group stands out"
        return f"{name}; above the offsets: {group_set.groups[beyond].name}"
    if a.separable is False and a.runner_up:
        return f"{name} or {group_set.groups[a.runner_up].name}: not separable"
    return name


def captions_agree(answers: Sequence[Attribution], group_set: GroupSet) -> str:
    """Do the answers to one picture under different captions put the same group first?"""
    firsts = [first_of(a, group_set) for a in answers]
    if len(firsts) < 2:
        return "There was no other caption to try."
    if len(set(firsts)) == 1:
        return f"The answer does not depend on the caption: each one gives {firsts[0]}."
    leaders = {a.ranked()[0] for a in answers if a.ranked()}
    if len(leaders) == 1:
        name = group_set.groups[next(iter(leaders))].name
        return f"{name} comes first with each caption, but not always clearly. Trust this less than a clear answer."
    return "The captions disagree about the first group. Do not rely on any one of these answers alone."


def compared(answers: Sequence[Attribution], group_set: GroupSet, names: Mapping[str, str]) -> list[str]:
    """Where the methods agree and disagree, in plain sentences."""
    ranks = {a.method: {g: i + 1 for i, g in enumerate(a.ranked())} for a in answers if a.ranked()}
    if len(ranks) < 2:
        return ["Only one method has answered, so there is nothing to compare. Choose a second one and score again."]
    first = {m: next(iter(r)) for m, r in ranks.items()}
    shown = {g: group_set.groups[g].name for r in ranks.values() for g in r}
    if len(set(first.values())) == 1:
        said = [f"All methods put {shown[next(iter(first.values()))]} first."]
    else:
        by = {g: ", ".join(names[m] for m, f in first.items() if f == g) for g in first.values()}
        said = ["The methods disagree: " + "; ".join(f"{shown[g]} is first by {m}" for g, m in by.items()) + "."]
    common = [g for g in shown if all(g in r for r in ranks.values())]
    spread = {g: max(r[g] for r in ranks.values()) - min(r[g] for r in ranks.values()) for g in common}
    most = max(spread, key=lambda g: spread[g], default=None)
    if most is not None and spread[most] > 1:
        places = ", ".join(f"{ordinal(r[most])} by {names[m]}" for m, r in ranks.items())
        said.append(f"They differ most about {shown[most]}: {places}.")
    unsure = [names[a.method] for a in answers if a.separable is False]
    if unsure:
        said.append(f"The first two groups are not separable by {' or '.join(unsure)}.")
    return said


def ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
