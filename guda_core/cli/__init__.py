"""The command line of the product: `guda`, or `python -m guda_core`. `guda --help` explains itself."""

from __future__ import annotations

from typing import Annotated

import typer

from guda_core import __version__
from guda_core.cli import (
    assets_command,
    attribute_command,
    compare_command,
    generate_command,
    groups_command,
    replay_command,
    results_command,
    sign_command,
    start,
    unlearn_command,
)
from guda_core.cli.jobs_progress import CommandOnRay
from guda_core.cli.terminal import commands, say

app = commands(
    "Which groups of training pictures made a diffusion model able to make this picture? A positive score in nats "
    "means that the model explains the picture worse without the group. Scores are not shares."
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"guda {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("app")(start.start)
app.command()(attribute_command.attribute)
app.command()(generate_command.generate)
app.command()(replay_command.replay)
app.command()(results_command.results)
app.command()(compare_command.compare)
app.command()(sign_command.sign)
app.command()(sign_command.verify)
app.add_typer(groups_command.app, name="groups")
app.command(cls=CommandOnRay)(unlearn_command.unlearn)
app.add_typer(assets_command.app, name="assets")
