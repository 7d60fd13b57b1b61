"""`guda groups new`: a group set from a folder, a table or a data set, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from guda_core.cli.terminal import HomeOption, bar_of, columned, note, say, show
from guda_core.data.own.found import some
from guda_core.records import NOT_STATED

if TYPE_CHECKING:
    from guda_core.data.own.new_set import Draft


def new(
    place: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="A folder with one subfolder for each group; a table (.csv, .json, .jsonl) of files and groups; or a "
            "data set: hub:user/name, a .parquet file, a folder that `datasets` reads.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the set. Default: the folder's.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of each group that is held out. Default: 0.1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which pictures are held out. Default: 0.")] = None,
    phrase: Annotated[
        str | None,
        typer.Option(help='How captions say a group: "by {name}". Default: as most captions do; "" for no captions.'),
    ] = None,
    fit: Annotated[
        Literal["crop", "pad", "bucket"] | None,
        typer.Option(
            help="How pictures become square: crop to the middle, or pad with white. bucket: they keep their shape, as "
            "nearly as a few sizes allow. Default: crop."
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=8, help="Side of the pictures, in pixels. Default: 512.")
    ] = None,
    broken: Annotated[float, typer.Option(help="Share of unreadable pictures that may be left out.")] = 0.01,
    folder: Annotated[Path | None, typer.Option(help="Of a table: where the files lie. Default: beside it.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Of a data set: the column of pictures.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Of a data set: the column of groups.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Of a data set: the column of captions.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set: this split alone. Default: train.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a data set: its configuration.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Write a set anew that is there already.")] = False,
    home: HomeOption = None,
) -> None:
    """Make a group set of your own pictures, in the workspace, and say what was found.

    A set that is there is not written anew without --again. What you wrote into it is kept then.
    """
    given = {"name": name, "held_out": held_out, "seed": seed, "phrase": phrase, "fit": fit, "resolution": resolution}
    given |= {"broken": broken}
    rows = {"image_column": image_column, "group_column": group_column, "text_column": text_column}
    rows |= {"split": split, "config": config}
    make(place, {k: v for k, v in given.items() if v is not None}, rows, folder=folder, again=again)


def make(
    place: str, given: dict[str, Any], rows: dict[str, str | None], *, folder: Path | None = None, again: bool = False
) -> None:
    """Find, check, compare with the set that is there, and write; see `own.prepared`."""
    from guda_core.data.own import set_files
    from guda_core.data.own.prepared import prepare

    with bar_of("pictures") as tell:
        made = prepare(place, given, rows, folder=folder, tell=lambda n, done: tell(done, f"{n:,}"))
    for line in made.draft.notes:
        note(f"Note: {line}")
    _tell(made.draft)
    if not made.changes:
        say(f"The group set '{made.draft.id}' is there already, and nothing has changed since.")
        return
    for line in made.differing:
        say(f"Changed: {line}")
    written = made.write(again=again)
    say(f"Written: {written / set_files.SET}")
    say(f"Write authors and licences there where you know them. Then: guda groups check {made.draft.id}")


def _tell(made: Draft) -> None:
    """A row for every group of a set that is about to be written, and what holds for all of them."""
    groups, pictures = made.entry["groups"], made.pictures
    title = f"{len(groups):,} groups, {len(pictures):,} pictures"
    table = columned(title, "id", "name", "trained on", "held out", "with a caption")
    for gid, n in made.counts().items():
        table.add_row(gid, groups[gid]["name"], f"{n.trained:,}", f"{n.held_out:,}", f"{n.captions:,}")
    show(table)
    first = next(iter(groups.values()))
    how = first.get("phrase") or made.entry.get("caption")
    say(f'How captions say a group: "{how}".' if how else "The set has no captions.")
    silent = [gid for gid, g in groups.items() if NOT_STATED in (g["author"], g["licence"])]
    if silent:
        say(f"Author or licence not stated: {some(silent, 10)}.")
