"""Figures as plain HTML: rows of bars or points with 95% intervals, one figure a method, so that units never mix.

No script draws them: they come with the page, follow its theme and width, can be printed, and say in words what they
show. A row's place on the axis is (value - left) / (right - left), as a percentage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from guda_core.answers import sentences
from guda_core.answers.markup import MOST_TEXT, Html, safe
from guda_core.records import Attribution, GroupSet

TICKS = 4  # steps of an axis, at most about
OFFSET, DROP, INTERVAL = "offset, added for every picture", "drop, measured on this picture", "95% interval"
BACK = "thin: the drop goes the other way than the offset"
FIRST = "same first group as the oracle: 0 never, 1 always"
HOLLOW = "hollow: score not clearly above 0"
HOLLOW_PART = "hollow: drop or score not clearly above 0"  # of scores that have an offset


@dataclass(frozen=True)
class Row:
    """One row. value: None where there is none; `word` then says why. low, high: its interval, None for none.

    base: the part of the value that is added for every picture. hollow: the value, or the rest of it, is not clearly
    above 0.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    base: float = 0.0
    hollow: bool = False
    word: str = ""

    @property
    def back(self) -> bool:
        """Whether the rest runs back over the base."""
        return self.value is not None and (self.value - self.base) * self.base < 0


def bars(a: Attribution, group_set: GroupSet, name: str = "") -> Html:
    """One method's scores as bars, best first, in the method's own unit. Groups without a score come last, named so.

    Where scores have offsets, a bar has two parts: the offset, added for every picture, and the drop, measured on this
    one.
    """
    ranked = a.ranked()
    rows = []
    for g in ranked:
        s = a.groups[g]
        hollow = a.unit == "nats" and (s.high or 0.0) >= 0 and not a.stands_out(g)
        rows.append(Row(group_set.groups[g].name, s.score, *(s.span or (None, None)), a.offset(g), hollow))
    for g in [g for g in a.groups if a.groups[g].score is None]:
        word = "unavailable" if a.groups[g].status == "unavailable" else "no score"
        rows.append(Row(group_set.groups[g].name, None, word=word))
    keys = [("added", OFFSET), ("measured", DROP)] if a.has_offset else []
    keys += [("measured back", BACK)] if any(r.back for r in rows) else []
    keys += [("hollow", HOLLOW_PART if a.has_offset else HOLLOW)] if any(r.hollow for r in rows) else []
    return chart(rows, f"Scores by {name or a.method}", a.unit, keys=keys)


def steps(labels: Sequence[str], values: Sequence[float], halves: Sequence[float]) -> Html:
    """What each stratum of timesteps adds to a score, in nats, with 95% intervals (half widths)."""
    rows = [Row(f, v, v - h, v + h) for f, v, h in zip(labels, values, halves, strict=True)]
    return chart(rows, "What each range of timesteps adds, from little noise to much", "nats", css="guda-dense")


def narrowing(draws: Sequence[int], values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Html:
    """A score and its 95% interval, in nats, after more and more draws."""
    rows = [Row(f"{d} draws", v, lo, hi) for d, v, lo, hi in zip(draws, values, low, high, strict=True)]
    return chart(rows, "The score after more and more noise draws", "nats", points=True)


def agreement(names: Sequence[str], values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Html:
    """How often each method names the oracle's first group, 0 to 1, first at the top, with 95% intervals."""
    rows = [Row(name, v, lo, hi) for name, v, lo, hi in zip(names, values, low, high, strict=True)]
    title, keys = "Agreement with the oracle, 0 to 1", [("dot", FIRST)]
    return chart(rows, title, "agreement", keys=keys, points=True, ends=(0.0, 1.0))


def chart(
    rows: Sequence[Row],
    title: str,
    unit: str,
    *,
    keys: Sequence[tuple[str, str]] = (),
    points: bool = False,
    ends: tuple[float, float] | None = None,
    css: str = "",
) -> Html:
    """Rows on one axis that holds 0, with a legend. keys: (class, meaning) of the legend. points: dots, no bars. ends:
    of the axis, where they are given."""
    at = Axis(rows, ends)
    body = "".join(_row(r, at, unit, points=points) for r in rows)
    shown = [*keys, *([("span", INTERVAL)] if any(r.low is not None for r in rows) else [])]
    legend = "".join(f'<span class="guda-key"><i class="{k}"></i>{safe(v)}</span>' for k, v in shown)
    return Html(
        f'<figure class="guda-chart {css}"><div role="img" aria-label="{escape(described(rows, title, unit))}">'
        f"{body}{_ticks(at, unit)}</div><figcaption>{legend}</figcaption></figure>"
    )


class Axis:
    """From values to percentages of the width. All values and 0 lie between the ends; the ticks are round numbers."""

    def __init__(self, rows: Sequence[Row], ends: tuple[float, float] | None = None) -> None:
        from matplotlib.ticker import MaxNLocator

        found = [v for r in rows for v in (r.value, r.low, r.high, r.base) if v is not None]
        low, high = ends or (min([0.0, *found]), max([0.0, *found]))
        self.left, self.right = low, high if high > low else low + 1.0
        every = MaxNLocator(nbins=TICKS, min_n_ticks=2).tick_values(self.left, self.right)
        self.ticks = [float(t) for t in every if self.left <= t <= self.right]

    def __call__(self, value: float) -> float:
        return 100.0 * (value - self.left) / (self.right - self.left)


def described(rows: Sequence[Row], title: str, unit: str) -> str:
    """What a figure shows, in words."""
    said = []
    for r in rows:
        name = r.name[:MOST_TEXT]
        if r.value is None:
            said.append(f"{name} {r.word}")
            continue
        span = [] if r.low is None or r.high is None else [f"{_number(r.low, r, unit)} to {_number(r.high, r, unit)}"]
        if r.base:
            span.append(f"offset {_number(r.base, r, unit)}, drop {_number(r.value - r.base, r, unit)}")
        said.append(f"{name} {_number(r.value, r, unit)}" + (f" ({'; '.join(span)})" if span else ""))
    return f"{title}, in {unit}: {'; '.join(said) or 'nothing'}."


def _number(value: float, r: Row, unit: str) -> str:
    width = None if r.low is None or r.high is None else r.high - r.low
    return f"{value:.2f}" if unit == "agreement" else sentences.number(value, unit, width)


def _row(r: Row, at: Axis, unit: str, *, points: bool) -> str:
    name = f'<span class="guda-name">{safe(r.name)}</span>'
    if r.value is None:
        return f'<div class="guda-bar">{name}<span class="guda-word">{safe(r.word)}</span></div>'
    parts = f'<i class="zero" style="left:{at(0.0):.2f}%"></i>'
    if points:
        parts += f'<i class="dot" style="left:{at(r.value):.2f}%"></i>'
    else:
        if r.base:
            parts += _part("added", at(0.0), at(r.base))
        css = f"measured{' hollow' if r.hollow else ''}{' back' if r.back else ''}"
        parts += _part(css, at(r.base), at(r.value))
    if r.low is not None and r.high is not None:
        parts += _part("span", at(r.low), at(r.high))
    value = f'<span class="guda-value">{_number(r.value, r, unit)}</span>'
    return f'<div class="guda-bar">{name}<span class="guda-track">{parts}</span>{value}</div>'


def _part(css: str, a: float, b: float) -> str:
    return f'<i class="{css}" style="left:{min(a, b):.2f}%;width:{abs(b - a):.2f}%"></i>'


def _tick(value: float) -> str:
    """A round number, not as a power of ten where it has few digits: 0.00005."""
    short = f"{value:g}"
    return f"{value:.6f}".rstrip("0") if "e-" in short and abs(value) >= 1e-5 else short


def _ticks(at: Axis, unit: str) -> str:
    shown = "".join(f'<i style="left:{at(t):.2f}%"><b>{_tick(t)}</b></i>' for t in at.ticks)
    track = f'<span class="guda-track">{shown}</span>'
    shown_unit = "" if unit == "agreement" else safe(unit)
    return f'<div class="guda-bar guda-axis"><span></span>{track}<span>{shown_unit}</span></div>'
