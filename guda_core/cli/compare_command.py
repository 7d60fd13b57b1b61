"""`guda compare`: two reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guda_core.amounts import score_said
from guda_core.cli.terminal import columned, note, say, show

if TYPE_CHECKING:
    from guda_core.reports.two_reports import Row


def compare(
    first: Annotated[Path, typer.Argument(help="The zip of a report.")],
    second: Annotated[Path, typer.Argument(help="The zip of another report.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found here.")] = None,
) -> None:
    """Compare two reports: the same picture, model, groups and settings? Which groups changed place, which scores?

    Nothing is computed again: `guda replay` does that.
    """
    from guda_core.reports import bundle
    from guda_core.reports.read import read_report
    from guda_core.reports.restore import told
    from guda_core.reports.two_reports import away
    from guda_core.reports.two_reports import compare as run

    a, b = (told(read_report(path)) for path in (first, second))
    found = run(a, b)
    for sentence in found.said:
        say(sentence)
    out = away(a, b) is not None
    if out:
        note("The scores are in --json. About such a picture they say little.")
    for method, rows in () if out else found.methods.items():
        unit = found.units.get(method, "different units")
        _table(f"{a.methods[method].name}: scores ({unit}) of the first and the second report", rows, unit)
    for method, where in found.only.items():
        said, one = ("first", a) if where == "a" else ("second", b)
        say(f"Only the {said} report has {one.methods[method].name}.")
    if json_file is not None:
        bundle.write(json_file, bundle.json_text(found.plain()).encode())
        say(f"Written: {json_file}")


def _table(title: str, rows: tuple[Row, ...], unit: str) -> None:
    table = columned(title, "group", "ranks", "first", "second", "difference", "95% interval")
    for r in rows:
        numbers = ["-" if v is None else score_said(v, unit) for v in (r.score_a, r.score_b, r.difference)]
        span = [score_said(v, unit) for v in (r.low, r.high) if v is not None]
        ranks = [str(v) if v else "-" for v in (r.rank_a, r.rank_b)]
        ranked = ranks[0] if ranks[0] == ranks[1] else " to ".join(ranks)
        table.add_row(r.name, ranked, *numbers, " to ".join(span) or "-")
    show(table)
