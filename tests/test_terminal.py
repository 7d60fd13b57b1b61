"""Text from outside on the terminal: shown as it is, never as markup, never as a command to the terminal, in any
encoding."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.table import Table

from guda_core.clean_log import log_cleaned, server_log_cleaned
from guda_core.cli import assets_command, attribute_command, terminal
from guda_core.cli.groups_check import counts_table
from guda_core.cli.terminal import clean, listed, note, progress_bar, say, show
from guda_core.cli.unlearn_command import _tell_health
from guda_core.data.groups import load_group_set
from guda_core.unlearning import group_jobs
from guda_core.unlearning.health import KINDS
from tests.light import draw
from tests.own_pictures import guda
from tests.test_cli import run  # noqa: F401  (a fixture)
from tests.test_pipeline import service  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parent.parent
NASTY = ["a [/b].png", "cat [red] dog.png", "[bold", ":rocket:", "x[link=http://y]z", "{task.fields[z]}"]


@pytest.mark.parametrize("text", NASTY)
def test_markup_of_others_is_shown_as_it_is(text, capsys):
    say(text)
    note(text)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    show(table)
    said = capsys.readouterr()
    assert said.out.count(text) == 4 and said.err.count(text) == 1


def test_a_tables_title_is_one_line_however_narrow_the_table_is(capsys):
    show(counts_table(load_group_set("emoji"), [], []))
    assert capsys.readouterr().out.startswith("0 pictures trained on, 0 held out, made square by: pad\n")


def test_the_heads_of_a_health_table_break_between_words_at_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(terminal.OUT, "_width", 80)
    kinds = {k: {"mean": -100.0, "se": 1.0, "n": 16} for k in KINDS}
    _tell_health(dict.fromkeys(load_group_set("emoji").groups, kinds), load_group_set("emoji"))
    heads = {w for line in capsys.readouterr().out.splitlines() if "┃" in line for w in re.split(r"[┃\s]+", line)}
    assert heads == {"", "group", *" ".join(KINDS.values()).split()}


def test_a_bar_shows_names_as_they_are(capsys):
    with progress_bar() as bar:
        bar.add_task("[/b]", note="[red]\x1b[2J", total=1.0)
    said = capsys.readouterr().err
    assert "[/b]" in said and "[red]\\u001b[2J" in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\u001b[31mred\\u001b[0m"),
        ("ring\x07", "ring\\u0007"),
        ("ab\rcd", "ab\\u000dcd"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        (os.fsdecode(b"\xff.png"), "\\udcff.png"),
        ("two\nlines", "two\nlines"),
        ("\u2068رسوم ١\u2069", "رسوم ١"),
        ("火箭 🚀 Ateliér", "火箭 🚀 Ateliér"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text, shown, capsys):
    assert clean(text) == shown
    say(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_long_lines_are_not_broken_where_nobody_reads_them_on_a_screen(capsys):
    say("/very/long" * 60)
    assert capsys.readouterr().out == "/very/long" * 60 + "\n"


def test_lists_of_an_option():
    assert listed("--x", " a, b ,,c,a") == ["a", "b", "c"] and listed("--x", None) == []


@pytest.mark.parametrize("words", ["unlearn --groups", "attribute p.png --methods", "assets features --methods"])
@pytest.mark.parametrize("given", ["", " , "])
def test_an_option_that_lists_nothing_does_not_mean_all(words, given, monkeypatch):
    def begun(*_):
        raise AssertionError("begun")

    monkeypatch.setattr(group_jobs, "open_asked", begun)
    for command in (assets_command, attribute_command):
        monkeypatch.setattr(command, "service_of", begun)
    assert f"{words.split()[-1]} names nothing." in guda(*words.split(), given, code=2)


def test_a_place_whose_name_is_markup_is_written_to_and_said(run, tmp_path):  # noqa: F811
    out = tmp_path / "a [/b].png"
    done = run("generate", "--prompt", "cat", "--steps", 1, "--out", out)
    assert done.exit_code == 0 and out.is_file() and f"Written: {out}" in done.output


def test_pictures_whose_names_are_markup_are_named(run, tmp_path):  # noqa: F811
    names = ["cat [red] dog.png", "[bold].png", "\x1b[2J.png"]
    for name in names[:2]:
        draw(tmp_path / name)
    (tmp_path / names[2]).write_bytes(b"no picture")
    done = run("attribute", *[tmp_path / n for n in names[:2]], "--methods", "clip", "--effort", "quick")
    assert done.exit_code == 0 and all(f"{tmp_path / n}:" in done.output for n in names[:2])
    done = run("attribute", tmp_path, "--out", tmp_path / "out [/b]", "--methods", "clip", "--effort", "quick")
    assert done.exit_code == 1 and "\\u001b[2J.png: " in done.output and "\x1b[2J" not in done.output
    assert "out [/b]" in done.output and (tmp_path / "out [/b]" / "batch.json").is_file()


@pytest.mark.parametrize("name", ["none [/b].png", "--no[/b]such"])
def test_errors_name_what_was_given(run, name):  # noqa: F811
    done = run("attribute", name)
    assert done.exit_code == 2 and name in done.output and "Traceback" not in done.output


def test_a_group_whose_name_is_markup_is_listed(run, monkeypatch):  # noqa: F811
    gs = load_group_set("emoji")
    groups = {k: replace(g, name="Studio [/b]", author="\x1b]0;title\x07") for k, g in gs.groups.items()}
    monkeypatch.setattr("guda_core.data.groups.load_group_set", lambda *a: replace(gs, groups=groups))
    done = run("groups", "check")
    assert done.exit_code == 0 and "Studio [/b]" in done.output and "\x1b" not in done.output


PLAIN = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TABLE = """
import contextlib
from rich.table import Table
from guda_core.cli import app
from guda_core.cli.terminal import show
with contextlib.suppress(SystemExit):
    app(["--version"])
table = Table("name", title="Ateliers \\u706b\\u7bad")
table.add_row("Ateli\\xe9r [/b] \\U0001f680")
show(table)
"""


def program(folder: Path, environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[bytes]:
    """Python in a process of its own."""
    env = {**os.environ, "GUDA_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, check=False)


def check_table(done: subprocess.CompletedProcess[bytes]) -> None:
    """It holds the name, with what the terminal lacks escaped, and lines that it has."""
    assert done.returncode == 0, done.stderr
    assert b"[/b]" in done.stdout and b"\\U0001f680" in done.stdout and b"\xe2" not in done.stdout


def test_the_command_as_a_program_of_its_own_shows_a_set_that_no_ascii_terminal_can_show(tmp_path):
    folder = tmp_path / "home" / "sets" / "ateliers"
    for group in ("a", "b"):
        (folder / "pictures" / group).mkdir(parents=True)
        for i in range(3):
            draw(folder / "pictures" / group / f"{i}.png", seed=i)
    (folder / "group_set.yaml").write_text(
        "id: ateliers\nname: Ateliers 火箭\nsource: {id: folder, path: pictures}\ncaption: '{content}, {phrase}'\n"
        "groups:\n  a: {name: 'Ateliér [/b] 🚀', phrase: by A}\n  b: {name: B, phrase: by B}\n",
        encoding="utf-8",
    )
    check_table(program(tmp_path, PLAIN, "-m", "guda_core", "groups", "check", "--set", "ateliers"))


@pytest.mark.parametrize("encoding", [PLAIN, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}])
def test_a_terminal_that_lacks_the_characters_gets_them_escaped(encoding, tmp_path):
    check_table(program(tmp_path, encoding, "-c", TABLE))
    bad = program(tmp_path, encoding, "-m", "guda_core", "attribute", "火 [/b].png")
    assert bad.returncode == 2 and b"There is no file" in bad.stderr and b"Traceback" not in bad.stderr
    assert b"\\u" in bad.stderr and bad.stderr.isascii()


def test_only_the_terminal_writes_to_the_streams():
    for path in (ROOT / "guda_core" / "cli").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "typer.echo" not in text and not re.search(r"(?<![\w.])print\(", text)
        assert path.name == Path(terminal.__file__).name or "Console" not in text


@contextmanager
def logging_to(*handlers: logging.Handler) -> Iterator[list[logging.Handler]]:
    """Within the block the root logger has these handlers, and not pytest's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", list(handlers))
        yield logging.root.handlers


def test_log_messages_of_a_command_steer_no_terminal(capsys):
    log = logging.getLogger("guda_core.somewhere")

    def score() -> None:
        log.warning("%s is not offered. %s", "GUDA", "It is of the group set '\x1b]0;title\x07'.")
        try:
            raise ValueError("of a library: \x1b[2J")
        except ValueError:
            log.exception("%s failed", "\x1b[31mred.png")

    program = terminal.commands("Nothing.")
    program.command()(score)
    program.command("other")(score)
    with logging_to(), pytest.raises(SystemExit):
        typer.main.get_command(program)(["score"])
    said = capsys.readouterr().err
    assert said.startswith(
        "GUDA is not offered. It is of the group set '\\u001b]0;title\\u0007'.\n\\u001b[31mred.png failed\n"
    )
    assert said.endswith("ValueError: of a library: \\u001b[2J\n") and "\x1b" not in said


def test_who_has_set_up_logging_keeps_it(capsys):
    with logging_to() as handlers:
        log_cleaned("%(levelname)s %(name)s: %(message)s")
        logging.getLogger("guda_core.somewhere").warning("\x1b[2J")
        assert len(handlers) == 1 and capsys.readouterr().err == "WARNING guda_core.somewhere: \\u001b[2J\n"
    own = logging.NullHandler()
    with logging_to(own) as handlers:
        log_cleaned()
        assert handlers == [own]


def test_a_command_that_is_broken_off_says_so(capsys):
    def stopped() -> None:
        raise KeyboardInterrupt

    program = terminal.commands("Nothing.")
    program.command()(stopped)
    program.command("other")(stopped)
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(program)(["stopped"])
    assert ended.value.code == terminal.BROKEN_OFF and capsys.readouterr().err.strip() == "Stopped."


def test_a_dropped_connection_leaves_no_traceback_and_other_errors_do(caplog):
    """As Windows' event loop logs it."""
    log, lost = (
        logging.getLogger("asyncio"),
        "Exception in callback _ProactorBasePipeTransport._call_connection_lost(None)",
    )
    server_log_cleaned()
    for said, error in (
        (lost, ConnectionResetError(10054, "reset")),
        (lost, KeyError("a")),
        ("other", ConnectionResetError()),
    ):
        log.error(said, exc_info=error)
    assert [(r.getMessage(), type(r.exc_info[1])) for r in caplog.records if r.exc_info] == [
        (lost, KeyError), ("other", ConnectionResetError),
    ]  # fmt: skip


def test_what_the_server_logs_steers_no_terminal(capsys):
    """uvicorn, below gradio, has set up a handler of its own."""
    server = logging.getLogger("uvicorn")
    before, server.handlers = server.handlers, [logging.StreamHandler()]
    propagated, server.propagate = server.propagate, False
    try:
        server_log_cleaned()
        logging.getLogger("uvicorn.error").error("Exception in \x1b]0;PWNED\x07 application")
    finally:
        server.handlers, server.propagate = before, propagated
    assert "\\u001b]0;PWNED\\u0007" in (said := capsys.readouterr().err) and "\x1b" not in said
