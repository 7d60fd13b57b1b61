"""Figures of answers: horizontal bars with 95% intervals, one figure a method, so that units never mix on an axis."""

from __future__ import annotations

import plotly.graph_objects as go

from guda_core.records import Attribution, GroupSet

TEXT = "#7d7d7d"  # mid grey: readable on white and on near black
BAR, PALE, EDGE = "rgba(59, 130, 246, 0.55)", "rgba(59, 130, 246, 0.16)", "#3b82f6"
LINE = "#c2600c"  # of the intervals: seen on the bars, on white and on near black
GRID = "rgba(125, 125, 125, 0.22)"
ROW, FRAME = 30, 78  # pixels: of one bar; of the axis and its title


def bars(a: Attribution, group_set: GroupSet) -> go.Figure:
    """One method's scores as bars, best first, in the method's own unit. Groups without a score come last, named so.

    In nats, a bar whose interval includes 0 is pale. The figure has no background of its own.
    """
    ranked = a.ranked()
    rest = [g for g in a.groups if g not in ranked]
    labels = [group_set.groups[g].name for g in (*ranked, *rest)]
    scores = [a.groups[g] for g in ranked]
    x = [s.score or 0.0 for s in scores]
    low, high = [s.low or 0.0 for s in scores], [s.high or 0.0 for s in scores]
    pale = [a.unit == "nats" and lo <= 0 <= hi for lo, hi in zip(low, high, strict=True)]
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
    figure.update_xaxes(
        title={"text": f"{a.unit}, with 95% interval", "font": {"size": 12}, "standoff": 8},
        zeroline=True, zerolinecolor=TEXT, zerolinewidth=2, gridcolor=GRID, fixedrange=True, nticks=7,
        rangemode="tozero",
    )  # fmt: skip
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=labels, range=[len(labels) - 0.5, -0.5], automargin=True,
        fixedrange=True, ticks="", ticklabelstandoff=6,
    )  # fmt: skip
    if not ranked:
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
    return figure
