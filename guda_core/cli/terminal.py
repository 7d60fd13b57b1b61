"""What the commands share: how text reaches the terminal, bars, errors as one sentence, and options that several take.

All text goes through `OUT` and `ERR`, and log messages through `clean_log`. Texts from outside (names of files and
groups, prompts, authors) may hold anything: nothing in them is read as markup, and what could steer a terminal is
escaped. A terminal that cannot show a character gets its escaped form.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from guda_core.attribution import METHODS
from guda_core.clean_log import clean, log_cleaned
from guda_core.errors import GudaError, OptionError
from guda_core.from_hub import is_named, repository
from guda_core.held_files import is_stdout
from guda_core.paths import is_folder, is_there

BROKEN_OFF = 130  # the exit code of a command that Ctrl-C ended


class Terminal(Console):
    """A console that takes every string as plain text (see `clean`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(clean(text), **options)


OUT, ERR = Terminal(), Terminal(stderr=True)


def say(text: str) -> None:
    """One line of the answer, on stdout."""
    OUT.print(text, soft_wrap=True)


def note(text: str) -> None:
    """One line beside the answer, on stderr."""
    ERR.print(text, soft_wrap=True)


def columned(title: str, *columns: str, fold: bool = True) -> Table:
    """An empty table. fold: what is too long for its column goes on in the next line, else it ends in an ellipsis."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold" if fold else "ellipsis")
    return table


def show(table: Table) -> None:
    """A table of the answer, on stdout. Its title is a line above, which does not wrap where the table is narrow."""
    if table.title:
        say(str(table.title))
        table.title = None
    OUT.print(table)


def write(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write an answer's file (see `bundle.write`), and say where. Raises ReportError."""
    from guda_core.reports import bundle

    bundle.write(path, data)
    say(f"Written: {path}")


def write_json(path: Path, record: Any) -> None:
    """Write an answer as JSON, and say where. Raises ReportError where that is not possible."""
    write(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def _make_way(arguments: Iterable[str]) -> None:
    """Where a file of the answer goes to stdout, all else that is said goes to stderr."""
    OUT.stderr = any(is_stdout(Path(a.rpartition("=")[2])) for a in arguments)


def _any_encoding() -> None:
    """From here on characters that the streams' encoding lacks are written escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


class _OneSentence:
    """Errors of the project and of the options, and a lack of memory, as one sentence on stderr, exit code 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        _any_encoding()
        _make_way(args[0] if args and args[0] else more.get("args") or sys.argv[1:])
        log_cleaned()
        try:
            code = super().main(*args, standalone_mode=False, **more)  # type: ignore[misc]
            if code == BROKEN_OFF:  # so typer says that Ctrl-C was pressed
                _complain("Stopped.", BROKEN_OFF)
        except GudaError as e:
            code = _complain(f"Error: {e}", 2)
        except typer.Abort:
            code = _complain("Stopped.", BROKEN_OFF)
        except Exception as e:  # click's own errors; typer brings its own copy of click, or uses the installed one
            told = getattr(e, "format_message", None)
            if told is None:
                if not (said := _of_memory(e)):
                    raise
                code = _complain(f"Error: {said}", 2)
            else:
                usage = type(e).__name__ != "NoArgsIsHelpError"
                code = _complain(f"Error: {told()}" if usage else told(), getattr(e, "exit_code", 2))
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _of_memory(error: Exception) -> str:
    """The sentence where memory ran out; "" for any other error."""
    if "torch" not in sys.modules and not isinstance(error, MemoryError):
        return ""
    from guda_core.diffusion.memory import MEND, lacked_memory

    return f"There is not enough memory. {MEND}" if lacked_memory(error) else ""


def _complain(text: str, code: int) -> int:
    ERR.print(text, style="red" if text.startswith("Error") else None, soft_wrap=True)
    return code


class Commands(_OneSentence, TyperGroup):
    """Several commands."""


class Command(_OneSentence, TyperCommand):
    """A command that is a program of its own."""


def commands(help: str, **more: Any) -> typer.Typer:
    """An empty list of commands."""
    return typer.Typer(
        cls=Commands, help=help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None, **more,
    )  # fmt: skip


class _Plain(ProgressColumn):
    """A field of a task as plain text."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self.field = field

    def render(self, task: Task) -> Text:
        return Text(clean(task.description if self.field == "description" else str(task.fields[self.field])))


def progress_bar() -> Progress:
    """A bar on stderr; tasks need the field `note`."""
    columns = (_Plain("description"), BarColumn(), _Plain("note"), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=ERR)


def listed(option: str, text: str | None) -> list[str]:
    """The words of a comma-separated option, each once; [] where it was left out. Raises OptionError: it names none."""
    words = list(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))
    if text is not None and not words:
        raise OptionError(f"{option} names nothing. Name something, with commas between, or leave it out.")
    return words


@contextmanager
def bar_of(title: str) -> Iterator[Callable[..., None]]:
    """One bar within the block; gives what moves it: (fraction done, note)."""
    with progress_bar() as bar:
        task = bar.add_task(title, note="", total=1.0)
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def follow(works: Iterator[tuple[str, float]]) -> None:
    """A bar for every work of an iterator of (what, fraction done)."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}
        for what, fraction in works:
            if what not in tasks:
                tasks[what] = bar.add_task(what, note="", total=1.0)
            bar.update(tasks[what], completed=fraction)


def follow_steps(title: str, steps: Iterator[Any]) -> None:
    """A bar for an iterator of a training's progress."""
    with progress_bar() as bar:
        task = bar.add_task(title, note="", total=None)
        for p in steps:
            bar.update(task, completed=p.step, total=p.steps, note=str(p))


def _at_home(name: str | None) -> str | None:
    """From here on this program works in that workspace."""
    if name is not None and is_named(name):
        repository(name)
        os.environ["GUDA_HOME"] = name
    elif name is not None:
        folder = Path(name)
        if is_there(folder) and not is_folder(folder):
            raise OptionError(f"--home must be a folder or hub:USER/NAME; '{folder}' is a file.")
        os.environ["GUDA_HOME"] = str(folder.absolute())
    return name


def _in_dtype(name: str | None) -> str | None:
    """From here on this program's models run in that type."""
    if name is not None:
        os.environ["GUDA_DTYPE"] = name
    return name


def _with_lora(file: Path | None) -> Path | None:
    """From here on this program merges that LoRA into its model."""
    if file is not None:
        os.environ["GUDA_LORA"] = str(file.absolute())
    return file


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model card, folder, file or Hub id. Default: GUDA_MODEL, else the workspace's only card, else emoji.",
    ),
]
LoraOption = Annotated[
    Path | None,
    typer.Option("--lora", callback=_with_lora, help="A LoRA file, merged into the model. Default: GUDA_LORA."),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        callback=_in_dtype,
        help="Of the weights: float32, bfloat16, float16, or fastest. Default: GUDA_DTYPE, else float32 on a CPU, the "
        "card's on a GPU.",
    ),
]
SetOption = Annotated[
    str | None,
    typer.Option(
        "--set", help="Group set. Default: GUDA_GROUP_SET, else the model card's, else the workspace's only set."
    ),
]
HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home",
        callback=_at_home,
        help="Your workspace: a folder, or hub:USER/NAME@REVISION. Default: GUDA_HOME, else the folder guda at home.",
    ),
]
EffortOption = Annotated[str, typer.Option(help="quick, standard, full, or every (no early stop).")]
MethodsOption = Annotated[
    str | None,
    typer.Option(help=f"Comma-separated: {', '.join(METHODS)}. A model may not have all. Default: guda and clip."),
]
