"""`guda groups`: check a group set, fetch its training pictures, list the sets that are there."""

from __future__ import annotations

from rich.table import Table

from guda_core.cli.loading import group_set_of
from guda_core.cli.terminal import SetOption, commands, progress_bar, say, show

app = commands("Group sets: which groups there are, and their training pictures.")


@app.command()
def check(name: SetOption = None) -> None:
    """Check a group set and show its groups."""
    gs = group_set_of(name)
    table = Table(title=f"{gs.name}: {len(gs.train_objects)} objects trained on, {len(gs.held_out_objects)} held out")
    for column in ("id", "name", "author", "licence", "package", "descriptors"):
        table.add_column(column, overflow="fold")
    for g in gs.groups.values():
        package = f"{g.package}@{g.version}"
        table.add_row(g.id, g.name, g.author, g.licence, package, ", ".join(g.descriptors))
    show(table)


@app.command()
def fetch(name: SetOption = None) -> None:
    """Fetch (npm) and render the training pictures into the cache folder (GUDA_CACHE)."""
    from guda_core.data.sources import iconify as pictures

    with progress_bar() as bar:
        task = bar.add_task("pictures", note="", total=1.0)
        path = pictures.build(group_set_of(name), lambda f, s: bar.update(task, completed=f, note=s))
    say(f"Pictures and their hashes: {path}")


@app.command("list")
def list_() -> None:
    """List the group sets that are there."""
    from guda_core.data.groups import list_group_sets

    for name in list_group_sets():
        say(name)
