"""Figures of answers: one figure a method, with 95% intervals, so that units never mix on an axis."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from guda_core.records import Attribution, GroupSet

TEXT = "#7d7d7d"  # mid grey: readable on white and on near black
BAR, PALE, EDGE = "rgba(59, 130, 246, 0.55)", "rgba(59, 130, 246, 0.16)", "#3b82f6"
TICK = "#7c3aed"  # of the offset
LINE = "#c2600c"  # of the intervals: seen on the bars, on white and on near black
GRID = "rgba(125, 125, 125, 0.22)"
ROW, FRAME = 30, 78  # pixels: of one bar; of the axis and its title


def bars(a: Attribution, group_set: GroupSet) -> go.Figure:
    """One method's scores as bars, best first, in the method's own unit. Groups without a score come last, named so.

    In nats, a tick marks a score's offset, if there is one, and a bar is pale whose interval includes 0 or
    reaches down to the tick. The figure has no background of its own.
    """
    ranked = a.ranked()
    rest = [g for g in a.groups if g not in ranked]
    labels = [group_set.groups[g].name for g in (*ranked, *rest)]
    scores = [a.groups[g] for g in ranked]
    x = [s.score or 0.0 for s in scores]
    low, high = [s.low or 0.0 for s in scores], [s.high or 0.0 for s in scores]
    pale = [a.unit == "nats" and hi >= 0 and not a.stands_out(g) for g, hi in zip(ranked, high, strict=True)]
    figure = go.Figure(
        go.Bar(
            x=[*x, *(None for _ in rest)],
            y=labels,
            orientation="h",
            marker={"color": [PALE if p else BAR for p in pale], "line": {"color": EDGE, "width": 1}},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [h - v for h, v in zip(high, x, strict=True)],
                "arrayminus": [v - lo for v, lo in zip(x, low, strict=True)],
                "color": LINE,
                "thickness": 1.8,
                "width": 4,
            },
            customdata=list(zip(low, high, strict=True)),
            hovertemplate="%{y}: %{x:.4g} " + a.unit + "<br>95% interval %{customdata[0]:.4g} to "
            "%{customdata[1]:.4g}<extra></extra>",
        )
    )
    for g in rest:
        word = "unavailable" if a.groups[g].status == "unavailable" else "no score"
        figure.add_annotation(
            x=0, y=group_set.groups[g].name, text=word, showarrow=False, xanchor="left", xshift=6,
            font={"color": TEXT, "size": 12},
        )  # fmt: skip
    if a.has_offset:
        _add_ticks(figure, a, group_set)
    _frame(figure, a, labels)
    return figure


def _add_ticks(figure: go.Figure, a: Attribution, group_set: GroupSet) -> None:
    """A tick on the bar of every group whose score has an offset."""
    marked = [g for g in a.ranked() if a.offset(g)]
    figure.add_scatter(
        x=[a.offset(g) for g in marked],
        y=[group_set.groups[g].name for g in marked],
        mode="markers",
        marker={"symbol": "line-ns", "size": 15, "line": {"color": TICK, "width": 2.5}},
        hovertemplate="offset of %{y}: %{x:.4g} " + a.unit + "<extra></extra>",
    )


def _frame(figure: go.Figure, a: Attribution, labels: Sequence[str]) -> None:
    """Axes and layout of the bars, whose names from top to bottom are the labels."""
    axis = f"{a.unit}, with 95% interval" + ("; tick: the offset" if a.has_offset else "")
    figure.update_xaxes(
        title={"text": axis, "font": {"size": 12}, "standoff": 8},
        zeroline=True, zerolinecolor=TEXT, zerolinewidth=2, gridcolor=GRID, fixedrange=True, nticks=5, tickangle=0,
        rangemode="tozero",
    )  # fmt: skip
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=labels, range=[len(labels) - 0.5, -0.5], automargin=True,
        fixedrange=True, ticks="", ticklabelstandoff=6,
    )  # fmt: skip
    if not a.ranked():
        figure.update_xaxes(range=[0, 1], showticklabels=False)
    figure.update_layout(
        height=FRAME + ROW * len(labels),
        margin={"l": 8, "r": 12, "t": 6, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT, "family": "system-ui, sans-serif", "size": 13},
        bargap=0.35,
        dragmode=False,
        showlegend=False,
    )


def _axes(figure: go.Figure, *, x: str, y: str, height: int) -> go.Figure:
    """The frame of an upright figure: titles with units, no background, nothing to drag."""
    small = {"size": 12}
    figure.update_xaxes(title={"text": x, "font": small}, gridcolor=GRID, fixedrange=True, automargin=True)
    figure.update_yaxes(
        title={"text": y, "font": small}, gridcolor=GRID, zeroline=True, zerolinecolor=TEXT, fixedrange=True,
        automargin=True,
    )  # fmt: skip
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 6, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT, "family": "system-ui, sans-serif", "size": 13},
        dragmode=False,
        showlegend=False,
    )
    return figure


def _error(array: Sequence[float], minus: Sequence[float] | None = None) -> dict[str, object]:
    return {
        "type": "data", "array": list(array), "arrayminus": list(array if minus is None else minus), "symmetric": False,
        "color": LINE, "thickness": 1.8, "width": 4,
    }  # fmt: skip


def steps(labels: Sequence[str], values: Sequence[float], halves: Sequence[float]) -> go.Figure:
    """What each stratum of timesteps adds to a score, in nats, with 95% intervals (half widths)."""
    bar = {"color": BAR, "line": {"color": EDGE, "width": 1}}
    figure = go.Figure(go.Bar(x=list(labels), y=list(values), marker=bar, error_y=_error(halves)))
    figure.update_traces(hovertemplate="timesteps %{x}: %{y:.3g} nats<extra></extra>")
    _axes(figure, x="timesteps, from little noise to much", y="nats", height=300)
    return figure.update_xaxes(type="category", tickangle=-60, tickfont={"size": 10})


def narrowing(draws: Sequence[int], values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> go.Figure:
    """A score and its 95% interval, in nats, after more and more draws."""
    up = [h - v for h, v in zip(high, values, strict=True)]
    down = [v - lo for lo, v in zip(low, values, strict=True)]
    at = [str(d) for d in draws]
    mark = {"color": EDGE, "size": 9}
    figure = go.Figure(go.Scatter(x=at, y=list(values), mode="markers", marker=mark, error_y=_error(up, down)))
    figure.update_traces(hovertemplate="%{x} draws: %{y:.3g} nats<extra></extra>")
    _axes(figure, x="noise draws in each range of timesteps", y="nats, with 95% interval", height=260)
    return figure.update_xaxes(type="category")


def agreement(names: Sequence[str], values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> go.Figure:
    """A measure of agreement with the oracle, 0 to 1, one point a method, first at the top, with 95% intervals."""
    right = [h - v for h, v in zip(high, values, strict=True)]
    left = [v - lo for lo, v in zip(low, values, strict=True)]
    mark = {"color": EDGE, "size": 9}
    figure = go.Figure(
        go.Scatter(x=list(values), y=list(names), mode="markers", marker=mark, error_x=_error(right, left))
    )
    figure.update_traces(hovertemplate="%{y}: %{x:.2f}<extra></extra>")
    _axes(figure, x="agreement with the oracle, 0 to 1, with 95% interval", y="", height=FRAME + 26 * len(names))
    figure.update_xaxes(range=[0, 1.02])
    return figure.update_yaxes(type="category", range=[len(names) - 0.5, -0.5], zeroline=False)
