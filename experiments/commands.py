"""What the laboratory's commands share: each is a small program of its own, with the product's bars and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from guda_core.cli.terminal import Command, say

MinutesOption = Annotated[
    float | None, typer.Option(help="Stop after this many minutes; the next call goes on from there.")
]
FolderOption = Annotated[
    Path | None, typer.Option(help="Where queries, arrays and figures go. Default: assets/benchmarks.")
]
TableOption = Annotated[bool, typer.Option("--table", help="Only make the table from the committed arrays.")]


def program(function: Callable[..., Any], *, cls: type[Command] = Command) -> Callable[[], None]:
    """The function as a program: its options are those of the command line, its docstring the help."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(cls=cls)(function)
    return app


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write what a command measured, with the libraries' versions and the date, and say so. A file that is there is
    replaced in one go."""
    from guda_core.reports import bundle
    from guda_core.versions import today, versions

    text = json.dumps({**record, "versions": versions(), "date": today()}, indent=1)
    bundle.write(path, (text + "\n").encode())
    say(f"Written: {path}")
