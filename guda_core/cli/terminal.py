"""What the commands share on the terminal: where they write, their bars, and options that several take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out, err = Console(), Console(stderr=True)
ModelOption = Annotated[
    str | None, typer.Option("--model", help="A card of models/cards.yaml. Default: GUDA_MODEL, else emoji.")
]
EffortOption = Annotated[str, typer.Option(help="quick, standard or full.")]
MethodsOption = Annotated[
    str, typer.Option(help="Comma-separated: guda, clip; where shipped, trak, dtrak, das, combined, logo.")
]


def progress_bar() -> Progress:
    """A bar on stderr; tasks need the field `note`."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
        TimeRemainingColumn(), console=err,
    )  # fmt: skip


def listed(text: str) -> list[str]:
    """The words of a comma-separated option."""
    return [word.strip() for word in text.split(",") if word.strip()]


def show(works: Iterator[tuple[str, float]]) -> None:
    """A bar for every work of an iterator of (what, fraction done)."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}
        for what, fraction in works:
            if what not in tasks:
                tasks[what] = bar.add_task(what, note="", total=1.0)
            bar.update(tasks[what], completed=fraction)
