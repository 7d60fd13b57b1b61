"""`guda results`: asks a table that `guda attribute --table` made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guda_core.amounts import score_said
from guda_core.cli.terminal import HomeOption, LoraOption, columned, note, say, show, write, write_json
from guda_core.errors import OptionError

if TYPE_CHECKING:
    from guda_core.scoring.asking import Asked, Results
    from guda_core.scoring.summary import Summary
    from guda_core.scoring.table_rows import Row

SHOWN = 20
NOTHING = "-"
SAID_ONCE = ("picture", "method", "group", "scope", "status")  # below the table, where all its rows have the same
SAID = {
    "equal": "Equal: every score is bitwise what the table says.",
    "within tolerance": "Within tolerance: every number is the same to one part in a thousand (or 0.001 nats).",
    "different": "Different.",
}


def results(
    folder: Annotated[str, typer.Argument(metavar="RESULTS", help="The folder of the results, or its URL.")],
    group: Annotated[str, typer.Option(help="Rows of this group, highest score first.")] = "",
    picture: Annotated[str, typer.Option(help="Rows of this picture.")] = "",
    status: Annotated[str, typer.Option(help="Rows of this kind: ok, unavailable, no_score, refused or failed.")] = "",
    scope: Annotated[str, typer.Option(help='Rows of this verdict: "in scope", "out of scope", "not assessed".')] = "",
    method: Annotated[str, typer.Option(help="Rows of this method.")] = "",
    first: Annotated[
        bool, typer.Option("--first", help="Only the first group of each picture, or why there is none.")
    ] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the rows here, all of them.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the summary here; where rows are asked for, the rows.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Write the summary as an HTML page here.")] = None,
    report: Annotated[
        tuple[str, Path] | None,
        typer.Option("--report", metavar="PICTURE OUT.zip", help="Compute a picture again and write its report."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="With --report: the model, if it is no card: the folder, file or Hub id."),
    ] = None,
    lora: LoraOption = None,
    home: HomeOption = None,
) -> None:
    """Ask the results of `guda attribute --table`: a summary, or the rows that the options name.

    With --report, one picture is computed again and compared with its rows: equal, within tolerance, or different.
    Exit code 1 when different.
    """
    from guda_core.scoring.asking import SCOPES, STATUSES, Asked, Results
    from guda_core.scoring.summary import left_out

    for given, known, name in ((status, STATUSES, "--status"), (scope, SCOPES, "--scope")):
        if given and given not in known:
            raise OptionError(f"{name} must be one of {', '.join(known)}; got '{given}'.")
    if report is not None and (csv_file or json_file or page or group or picture or status or scope or method or first):
        raise OptionError("--report names its picture, and stands alone: leave out the options for rows and files.")
    if report is None and (model or lora):
        raise OptionError("--model and --lora go with --report: nothing else here needs the model.")
    found = Results(folder)
    if found.cut:
        note(left_out(found.cut))
    if report is not None:
        _again(found, *report, model=model)
        return
    with found.at_once():
        name = found.spelled(picture) if picture else ""
        asked = Asked(group=group, picture=name, status=status, scope=scope, method=method, first=first)
        _tell(found, asked, csv_file, json_file)
        if page is not None:
            from guda_core.scoring import summary_page

            summary_page.write(found, str(page))
            say(f"Written: {page}")


def _tell(found: Results, asked: Asked, csv_file: Path | None, json_file: Path | None) -> None:
    """Show the wanted rows, or the whole where none are named, and write what is asked for."""
    if asked.names_some:
        found.check(asked)
        _rows(found, asked, csv_file, json_file)
        return
    summary = found.summary()
    _show_summary(summary)
    if csv_file is not None:
        _write_csv(found, asked, csv_file)
    if json_file is not None:
        write_json(json_file, summary.plain())


def _show_summary(s: Summary) -> None:
    from guda_core.data.own.found import counted

    say(f"{s.pictures:,} pictures: {s.scored:,} scored, {s.refused:,} refused, {s.failed:,} failed. {s.rows:,} rows.")
    for said in s.told():
        note(said)
    for verdict, n in s.scopes.items():
        say(f"{verdict}: {n:,}")
    for m, found in s.firsts.items():
        total = sum(f.pictures for f in found)
        base = f"{counted(total, 'picture')} that it has scored and that the model could have made"
        table = columned(f"First group by {m}, of {base}", "group", "first in", "share", "clearly first", fold=False)
        for f in found:
            share = f"{100 * f.pictures / total:.1f}%" if total else "-"
            table.add_row(f.name, f"{f.pictures:,}", share, "-" if f.apart is None else f"{f.apart:,}")
        show(table)
    for (status, reason), n in s.reasons.items():
        say(f"{n:,} {status}: {reason}")
    for name, why in s.unavailable.items():
        say(f"{name} has no scores: {why}")


def _rows(found: Results, asked: Asked, csv_file: Path | None, json_file: Path | None) -> None:
    """Show the first of the wanted rows, and write all of them where that is asked for."""
    from guda_core.data.own.found import counted

    count = found.count(asked)
    rows = [_cells(asked.unasked(r)) for r in found.rows(asked, order=asked.order, limit=SHOWN)]
    same = {c: rows[0][c] for c in SAID_ONCE if len(rows) > 1 and len({r[c] for r in rows}) == 1}
    kept = [c for c in rows[0] if c not in same and any(r[c] != NOTHING for r in rows)] if rows else []
    table = columned(counted(count, "row"), *kept)
    for r in rows:
        table.add_row(*(r[c] for c in kept))
    if rows:
        show(table)
    else:
        say("There are no such rows.")
    if told := "; ".join(f"{c}: {v}" for c, v in same.items() if v != NOTHING):
        say(f"In each of these rows: {told}.")
    if count > SHOWN and csv_file is None and json_file is None:
        note(f"These are the first {SHOWN}. --csv FILE or --json FILE writes all.")
    if csv_file is not None:
        _write_csv(found, asked, csv_file)
    if json_file is not None:
        write_json(json_file, [r for chunk in found.all_rows(asked, order=asked.order) for r in chunk])


def _cells(r: Row) -> dict[str, str]:
    """A row as the table on the terminal shows it."""
    ok = r["score"] is not None
    clear = ok and r["low"] < r["high"]
    return {
        "picture": r["picture"],
        "method": r["method"] or NOTHING,
        "rank": NOTHING if r["rank"] is None else str(r["rank"]),
        "group": r["group_name"] or NOTHING,
        "score": score_said(r["score"], r["unit"]) if ok else NOTHING,
        "95% interval": " to ".join(score_said(r[k], r["unit"]) for k in ("low", "high")) if clear else NOTHING,
        "scope": r["scope"] or NOTHING,
        "status": r["status"] if not r["reason"] else f"{r['status']}: {r['reason']}",
    }


def _write_csv(found: Results, asked: Asked, path: Path) -> None:
    """Write rows as a CSV, a chunk at a time: any number of them fits into memory."""
    from guda_core.reports import bundle
    from guda_core.scoring.table_rows import COLUMNS

    rows = (row for chunk in found.all_rows(asked, order=asked.order) for row in chunk)
    write(path, (line.encode() for line in bundle.csv_lines(tuple(COLUMNS), rows)))


def _again(found: Results, picture: str, path: Path, *, model: str | None) -> None:
    """Compute a picture again, write its report, and say whether the table is right."""
    from guda_core.cli.loading import service_as_made
    from guda_core.reports import bundle
    from guda_core.scoring.again import again, rows_of

    rows, made = rows_of(found, picture), found.made_from()
    own, device = made["model"], rows[0]["device"]
    service = service_as_made(
        model, own["id"], made["group_set"]["id"], "These results are", device=device, dtype=own["dtype"]
    )
    if (now := service.provenance().sha256) != own["sha256"]:
        note(f"This model is not the one of the results ({now[:12]}, theirs is {own['sha256'][:12]}).")
    done = again(service, made, rows)
    bundle.write(path, done.report)
    say(SAID[done.outcome])
    for change in done.changes:
        say(f"  {change}")
    say(f"Written: {path}")
    if done.outcome == "different":
        raise typer.Exit(1)
