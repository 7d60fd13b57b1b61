"""`guda groups`: make a group set of pictures, check one, fetch its training pictures, list the sets that are there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guda_core.cli.groups_new import new
from guda_core.cli.loading import group_set_of
from guda_core.cli.terminal import HomeOption, SetOption, bar_of, columned, commands, note, say, show, write_json
from guda_core.errors import DataError, OptionError
from guda_core.libraries import set_up_libraries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guda_core.cli.groups_check import Sizes
    from guda_core.data.dataset import Item
    from guda_core.data.own.near import Copies
    from guda_core.records import GroupSet

app = commands("Group sets: which groups there are, and their training pictures.")
app.command()(new)


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The group set, as --set.")] = None,
    set_name: SetOption = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Where the contact sheet goes, a PNG. Default: beside a set of your own.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Your model: captions are checked against its length, and warnings use its settings."),
    ] = None,
    copies: Annotated[
        bool,
        typer.Option(
            "--copies/--no-copies",
            help="Open every picture: find copies, count marks against AI training and, with fit bucket, sizes.",
        ),
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found here.")] = None,
    home: HomeOption = None,
) -> None:
    """Check a group set: its groups, what is trained on and held out, captions and their anchors, and what is weak.

    Every picture is opened, to find one that stands in two groups, or is both trained on and held out, also where it
    was scaled or saved again. Pictures whose files ask not to be used to train AI are counted.
    """
    if name and set_name and name != set_name:
        raise OptionError(f"Two sets are named, '{name}' and '{set_name}'. Name one.")
    gs = group_set_of(name or set_name, model=model)
    objects = f": {len(gs.train_objects)} objects trained on, {len(gs.held_out_objects)} held out"
    title = gs.name + (objects if gs.train_objects else "")
    table = columned(title, "id", "name", "author", "licence", "source", "words")
    for g in gs.groups.values():
        source = "@".join(g.source.values()) or gs.source
        table.add_row(g.id, g.name, g.author, g.licence, source, ", ".join(g.descriptors) or g.phrase)
    show(table)
    _check_pictures(gs, sheet, model, copies=copies, json_file=json_file)


def _check_pictures(
    gs: GroupSet, sheet: Path | None, model: str | None, *, copies: bool, json_file: Path | None
) -> None:
    """The part of the check that needs the pictures; where they are not there, that is said."""
    from guda_core.cli import groups_check
    from guda_core.data.own.contact_sheet import contact_sheet, save_sheet
    from guda_core.data.own.found import counted, some
    from guda_core.data.sources.listed import AGAIN, ListedFiles
    from guda_core.data.sources.source import open_dataset
    from guda_core.paths import sets

    if model is not None:
        set_up_libraries()  # before the libraries are imported
    dataset = open_dataset(gs)
    try:
        train, held = dataset.split("train"), dataset.split("held_out")
    except DataError as e:
        if sheet is not None or json_file is not None:
            raise
        note(f"The pictures were not looked at. {e}")
        return
    gone = dataset.missing() if isinstance(dataset, ListedFiles) else []
    if gone and isinstance(dataset, ListedFiles):
        dataset.check_there()
        raise DataError(
            f"{counted(len(gone), 'listed picture is', 'listed pictures are')} not there: {some(gone)}. {AGAIN}"
        )
    show(groups_check.counts_table(gs, train, held))
    if gs.caption:
        show(groups_check.anchors_table(list(groups_check.anchors(gs, train))))
    of_shape = groups_check.Sizes(gs) if gs.fit == "bucket" and copies else None
    found = _copies(train, held, of_shape) if copies else None
    by_size = of_shape.counts(train, held) if of_shape else {}
    if by_size:
        show(groups_check.sizes_table(by_size, gs.resolution))
    said = groups_check.warnings(gs, train, held, *_of_model(model))
    said += groups_check.copies_said(found) if found else ()
    for line in said:
        say(f"Warning: {line}")
    asks = _asking([*train, *held]) if copies else None
    if asks:
        say(groups_check.asking_said(asks, len(train) + len(held)))
    own = False
    with suppress(OptionError):  # a workspace that is read only gets no sheet
        own = gs.folder is not None and gs.folder == sets().own(gs.id)
    path = sheet or (gs.folder / "contact-sheet.png" if own and gs.folder else None)
    if path is not None:
        save_sheet(contact_sheet(gs, train, held), path)
        say(f"Contact sheet: {path}")
    if json_file is not None:
        write_json(json_file, groups_check.record(gs, train, held, said, found, by_size, asks))


@app.command()
def caption(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A group set of your own.")],
    by: Annotated[
        str, typer.Option("--with", help="A network that captions pictures (BLIP, GIT): a folder, or USER/NAME.")
    ],
    again: Annotated[bool, typer.Option("--again", help="Also in place of captions that a network made.")] = False,
    home: HomeOption = None,
) -> None:
    """Let a network write captions of the pictures that have none, into the set's list.

    Captions that people wrote are kept. Read some of what it wrote: guda groups check.
    """
    set_up_libraries()

    from guda_core.data.own.picture_captions import PictureCaptioner, captioned

    gs = group_set_of(name)
    say_what = PictureCaptioner(by)
    with bar_of("captions") as tell:
        made, kept = captioned(gs, say_what, say_what.name, again=again, tell=tell)
    say(f"Captions by {say_what.name}: {made:,}. There before: {kept:,}. Read some: guda groups check {gs.id}")
    if made:
        say("Adapters, features or banks that this set has were made with other captions. Make them again.")


def _copies(train: Sequence[Item], held: Sequence[Item], of_shape: Sizes | None) -> Copies:
    """Look for pictures that stand in two groups, or on both sides of one, with a bar. of_shape: hears their sizes."""
    from guda_core.data.own.near import find_copies

    with bar_of("look for copies") as tell:
        return find_copies(train, held, tell, **({"thumbnail": of_shape.thumbnail} if of_shape else {}))


def _asking(items: Sequence[Item]) -> list[str]:
    """Pictures whose files ask not to be used to train AI, with a bar."""
    from guda_core.cli.groups_check import asking

    with bar_of("read marks") as tell:
        return asking(items, tell)


def _of_model(model: str | None) -> tuple[Callable[[str], tuple[int, int]] | None, tuple[int, int] | None]:
    """What counts the tokens of a prompt for a model, and the steps of its unlearning with the
    group's pictures in each; (None, None) where no model is named.

    Raises:
        ModelError: its card names a setting of unlearning that there is not.
    """
    if model is None:
        return None, None

    from guda_core.diffusion.cards import chosen_card, load_model
    from guda_core.unlearning.defaults import settings_of

    loaded = load_model(chosen_card(model))
    loop = settings_of(loaded).loop
    return loaded.tokens, (loop.steps, loop.batch)


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
    with bar_of("pictures") as tell:
        for fraction, doing in dataset.fetch(yes=yes):
            tell(fraction, doing)
    say(f"The pictures of '{dataset.group_set.id}' are here. SHA-256 of the training pictures: {dataset.fingerprint()}")


@app.command("list")
def list_(home: HomeOption = None) -> None:
    """List the group sets that are there."""
    from guda_core.data.groups import list_group_sets

    for name in list_group_sets():
        say(name)
