"""`guda groups`: check a group set, fetch its training pictures, list the sets that are there."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from guda_core.cli.loading import group_set_of
from guda_core.cli.terminal import HomeOption, SetOption, commands, progress_bar, say, show

app = commands("Group sets: which groups there are, and their training pictures.")


@app.command()
def check(name: SetOption = None, home: HomeOption = None) -> None:
    """Check a group set and show its groups."""
    gs = group_set_of(name)
    objects = f": {len(gs.train_objects)} objects trained on, {len(gs.held_out_objects)} held out"
    table = Table(title=gs.name + (objects if gs.train_objects else ""))
    for column in ("id", "name", "author", "licence", "source", "words"):
        table.add_column(column, overflow="fold")
    for g in gs.groups.values():
        source = "@".join(g.source.values()) or gs.source
        table.add_row(g.id, g.name, g.author, g.licence, source, ", ".join(g.descriptors) or g.phrase)
    show(table)


@app.command()
def fetch(
    name: SetOption = None,
    home: HomeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to npm packages by others than Iconify.")] = False,
) -> None:
    """Fetch the training pictures into the cache folder (GUDA_CACHE). Icon sets come as npm packages.

    Says first what will be installed.
    """
    from guda_core.data.sources.source import open_dataset

    dataset = open_dataset(group_set_of(name))
    for line in dataset.plan():
        say(f"To install: {line}")
    with progress_bar() as bar:
        task = bar.add_task("pictures", note="", total=1.0)
        for fraction, doing in dataset.fetch(yes=yes):
            bar.update(task, completed=fraction, note=doing)
    say(f"The pictures of '{dataset.group_set.id}' are here. SHA-256 of the training pictures: {dataset.fingerprint()}")


@app.command("list")
def list_(home: HomeOption = None) -> None:
    """List the group sets that are there."""
    from guda_core.data.groups import list_group_sets

    for name in list_group_sets():
        say(name)
