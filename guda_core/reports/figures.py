"""Pictures made of numbers, as PNG: bars with 95% intervals for the report, one axis a method, so that units never mix;
rows of samples; and strips and maps with the name and the figure of each picture below it.

Drawn with matplotlib's Agg: no browser, no display, no pyplot state. The same answer gives the same bytes.
"""

from __future__ import annotations

import io
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from guda_core.answers import sentences
from guda_core.picture_records import Shown, Tile
from guda_core.records import Attribution, GroupSet
from guda_core.reports.picture_files import HINDERED, NEEDED, WHERE, WITHOUT

BAR, PALE, EDGE, LINE, GREY = "#9cc0fa", "#e7effe", "#3b82f6", "#a14f08", "#595959"
TICK = "#6d28d9"  # of the offset
FONT = "DejaVu Sans"  # comes with matplotlib
WIDTH, ROW, FRAME, DPI = 8.0, 0.3, 1.15, 120  # inches: of the picture; of one bar; of an axis' title and numbers
LONGEST, LONGEST_ADDED = 36, 12  # characters of a name, and of an id behind it
NOTE = (
    "nats: positive = the model explains the picture worse without the group; pale = {parts} not clearly above 0.\n"
    "{tick}Scores are not shares: they do not add up to anything."
)
TICK_SAYS = (
    "From 0 to the tick: the offset, added for every picture. From the tick on: the drop, measured on this picture.\n"
)
ACROSS, CELL, BELOW, SCALE = 5, 1.7, 0.62, 0.07  # pictures in a row; inches of one, of its words, of its scale
WRAP = 22  # characters of a line below a picture
STRIP_TITLE = "What the model draws without each group"
STRIP_NOTE = "The number: how far a picture is from the first one, in the model's own latents (RMS; 0: the same)."
MAP_TITLE = "Where in the picture the score comes from"
MAP_NOTE = (
    "Nats of one place. Orange: without the group, the model explains it worse. Blue: better. "
    "Each map has its own scale."
)
_lock = threading.Lock()  # matplotlib shares fonts between figures and is not made for threads


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure of so many inches, to be drawn by one thread at a time, and where its PNG is afterwards."""
    out = io.BytesIO()
    with _lock:
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, out
        figure.savefig(out, format="png", metadata={"Software": None})


def bars_png(attributions: Sequence[Attribution], group_set: GroupSet, names: Mapping[str, str] | None = None) -> bytes:
    """All methods' scores below each other, best group first; groups without a score come last and are named so.

    names: method id -> name as shown; the id where there is none."""
    answered = [a for a in attributions if a.groups]
    heights = [FRAME + ROW * len(a.groups) for a in answered] or [FRAME]
    with _figure(WIDTH, sum(heights) + 0.4) as (figure, out):
        two = any(a.has_offset for a in answered)
        note = NOTE.format(parts="score or drop" if two else "score", tick=TICK_SAYS if two else "")
        figure.supxlabel(note if answered else "No method has answered.", fontsize=8, color=GREY, fontfamily=FONT)
        if answered:
            grid = figure.subplots(len(answered), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
            for a, axes in zip(answered, grid[:, 0], strict=True):
                _draw(axes, a, group_set, (names or {}).get(a.method, a.method))
    return out.getvalue()


def _draw(axes: Axes, a: Attribution, group_set: GroupSet, name: str) -> None:
    ranked, labels = a.ranked(), _labels(group_set)
    rest = [g for g in a.groups if g not in ranked]
    for row, g in enumerate(ranked):
        s = a.groups[g]
        score, low, high = s.score or 0.0, s.low or 0.0, s.high or 0.0
        colour = PALE if a.unit == "nats" and high >= 0 and not a.stands_out(g) else BAR
        axes.barh(row, score, height=0.62, color=colour, edgecolor=EDGE, linewidth=0.8, zorder=2)
        if offset := a.offset(g):
            axes.plot([offset] * 2, [row - 0.31, row + 0.31], color=TICK, linewidth=2, zorder=3)
        if s.span is not None:
            error = [[max(0.0, score - low)], [max(0.0, high - score)]]
            axes.errorbar(score, row, xerr=error, fmt="none", ecolor=LINE, elinewidth=1.6, capsize=3, zorder=3)
    for row, g in enumerate(rest, len(ranked)):
        word = "unavailable" if a.groups[g].status == "unavailable" else "no score"
        axes.text(0.01, row, word, transform=axes.get_yaxis_transform(), va="center", **_text(8.5, GREY))
    if not ranked:
        axes.set_xticks([])
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(a.groups)), labels=[labels[g] for g in (*ranked, *rest)], parse_math=False)
    axes.set_ylim(len(a.groups) - 0.4, -0.6)
    axes.set_title(name, loc="left", parse_math=False, **_text(11, "black"))
    marked = "; tick: the offset" if a.has_offset else ""
    axes.set_xlabel(f"{a.unit}, with 95% interval{marked}", parse_math=False, **_text(9, "black"))
    axes.grid(axis="x", color="#dddddd", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, labelcolor="black", length=0, labelfontfamily=FONT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def agreement_png(rows: Sequence[Mapping[str, Any]], metric: str, title: str, *, ours: str) -> bytes:
    """One panel a query set, one line a method: a metric in [0, 1] with its interval. rows: of a benchmark's table;
    those whose method begins with `ours` are set off by a colour."""
    sets = list(dict.fromkeys(r["query_set"] for r in rows))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    with _figure(WIDTH + 2, 0.26 * len(methods) + 1.3) as (figure, out):
        figure.suptitle(title, x=0.01, ha="left", parse_math=False, **_text(12, "black"))
        for axes, query_set in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
            for r in [r for r in rows if r["query_set"] == query_set]:
                v, y = r[metric], methods.index(r["method"])
                error = [[v["value"] - v["low"]], [v["high"] - v["value"]]]
                colour = EDGE if r["method"].startswith(ours) else (LINE if r["method"].startswith("ceiling") else GREY)
                axes.errorbar(v["value"], y, xerr=error, fmt="o", color=colour, markersize=5, elinewidth=1.6, capsize=2)
            axes.set(xlim=(0, 1), ylim=(len(methods) - 0.4, -0.6))
            axes.set_yticks(range(len(methods)), labels=methods, parse_math=False)
            axes.set_title(query_set, loc="left", parse_math=False, **_text(10, "black"))
            axes.grid(axis="x", color="#dddddd", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=9, length=0, labelfontfamily=FONT)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
    return out.getvalue()


def samples_png(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str]) -> bytes:
    """Pictures in rows, each with its label, and columns with the titles above; a cell is (N, H, W, 3) uint8."""
    with _figure(WIDTH + 1, 0.56 * len(rows) + 0.4) as (figure, out):
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, parse_math=False, **_text(10, "black"))
        for line, (label, cells) in zip(grid, rows.items(), strict=True):
            line[0].set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False, **_text(9, "black"))
            for axes, pictures in zip(line, cells, strict=True):
                axes.imshow(np.concatenate(list(pictures), axis=1), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.set_frame_on(False)
    return out.getvalue()


def sheets(shown: Shown, group_set: GroupSet) -> dict[str, bytes]:
    """Name, as in a report's zip, -> PNG of the strip and the maps, with the words that belong to each picture."""
    out, s, labels = {}, shown.strip, _labels(group_set)
    if s is not None and s.pictures:
        told = [(s.pictures[g], f"Without {labels[g]}", f"{s.distances[g]:.2f}") for g in s.ranked()]
        out[WITHOUT] = _sheet([(s.reference, "Full model", ""), *told], STRIP_TITLE, STRIP_NOTE)
    if shown.where:
        told = [(t.overlay, labels[t.group], _said(t)) for t in shown.where]
        out[WHERE] = _sheet(told, MAP_TITLE, MAP_NOTE, [t.strongest * (t.share > 0) for t in shown.where])
    return out


def _said(t: Tile) -> str:
    return f"{t.drop:.3g} nats in all" if t.share else "the map says nothing"


def _sheet(
    cells: Sequence[tuple[np.ndarray, str, str]], title: str, note: str, scales: Sequence[float] | None = None
) -> bytes:
    """Pictures with their name and figure below each. scales: of maps, nats of full colour; 0: no scale is drawn."""
    lines = -(-len(cells) // ACROSS)
    with _figure(CELL * ACROSS, lines * (CELL + BELOW) + 0.7) as (figure, out):
        figure.suptitle(title, x=0.01, ha="left", parse_math=False, **_text(12, "black"))
        figure.supxlabel(note, fontsize=8, color=GREY, fontfamily=FONT, parse_math=False)
        figure.get_layout_engine().set(hspace=0.0, h_pad=0.02)  # type: ignore[union-attr]
        ratios = [1.0, SCALE / CELL] * lines
        grid = figure.subplots(2 * lines, ACROSS, squeeze=False, gridspec_kw={"height_ratios": ratios})
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(False)
        for i, (pixels, name, said) in enumerate(cells):
            axes, bar = grid[2 * (i // ACROSS), i % ACROSS], grid[2 * (i // ACROSS) + 1, i % ACROSS]
            axes.imshow(pixels, interpolation="nearest")
            if scales is not None and scales[i]:
                _scale(bar, scales[i])
            words = "\n".join([*textwrap.wrap(name, WRAP), said])
            bar.set_xlabel(words, parse_math=False, **_text(8.5, "black"))
    return out.getvalue()


def _scale(axes: Axes, strongest: float) -> None:
    """The colours of a map from -strongest to strongest, in nats."""
    ends = np.array([HINDERED, (200, 200, 200), NEEDED]) / 255
    at = np.linspace(0, 2, 65)
    colours = np.stack([np.interp(at, [0, 1, 2], ends[:, c]) for c in range(3)], axis=-1)
    axes.imshow(colours[None], extent=(-1, 1, 0, 1), aspect="auto")
    axes.set_xticks([-1, 0, 1], labels=[f"{v:.2g}" for v in (-strongest, 0, strongest)])
    axes.tick_params(labelsize=7, length=2, labelfontfamily=FONT)


def _text(size: float, colour: str) -> dict[str, Any]:
    return {"fontsize": size, "color": colour, "fontfamily": FONT}


@cache
def _letters() -> frozenset[int]:
    """The letters that the font has."""
    return frozenset(get_font(findfont(FontProperties(family=[FONT]))).get_charmap())


def _labels(group_set: GroupSet) -> dict[str, str]:
    """Group id -> its name, cut when long; its id when the font lacks one of the name's letters; where another one
    looks the same, with its id, or its place in the set where that is long."""
    known = _letters()
    shown = {
        g: sentences.short(group.name if known.issuperset(map(ord, group.name)) else g, LONGEST)
        for g, group in group_set.groups.items()
    }
    often = Counter(shown.values())
    added = {g: g if len(g) <= LONGEST_ADDED else i for i, g in enumerate(shown, 1)}
    return {g: name if often[name] == 1 else f"{name} ({added[g]})" for g, name in shown.items()}
