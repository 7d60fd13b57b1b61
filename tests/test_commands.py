"""Every command that stands beside a figure exists, has the options that are named, and explains itself."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guda_core.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "assets/MODEL_CARD.md", *sorted(str(p) for p in ROOT.glob("docs/**/*.md")))
COMMAND = re.compile(
    r"(?:(?:python|accelerate launch) -m (?:guda_core|experiments)|(?<=`)guda |^ *(?:[A-Z_]+=\w+ )*guda (?!=))[^`\n]*",
    re.M,
)


def fields(value: object) -> list[str]:
    """Every "command" of a JSON file, however deep it lies."""
    if isinstance(value, list):
        return [c for v in value for c in fields(v)]
    if not isinstance(value, dict):
        return []
    own = [value["command"]] if isinstance(value.get("command"), str) else []
    return own + [c for v in value.values() for c in fields(v)]


def named() -> set[str]:
    """The commands of the pages and of the committed records."""
    texts = [(ROOT / p).read_text(encoding="utf-8") for p in PAGES]
    found = {m.replace("\\|", " ").strip(" \\") for t in texts for m in COMMAND.findall(t)}
    for path in (ROOT / "assets").rglob("*.json"):
        found |= set(fields(json.loads(path.read_text(encoding="utf-8"))))
    return found


def words(command: str) -> tuple[str, list[str]]:
    """The program ("guda", or a module of the laboratory) and the rest."""
    rest = [w for w in shlex.split(re.sub(r"[\[\]]", " ", command)) if not re.fullmatch(r"[A-Z_]+=\w+", w)]
    if rest[0] != "guda":
        rest = rest[rest.index("-m") + 1 :]
    return ("guda" if rest[0] in ("guda", "guda_core") else rest[0]), rest[1:]


@cache
def product_help(*subcommands: str) -> str:
    done = CliRunner().invoke(app, [*subcommands, "--help"])
    assert done.exit_code == 0, done.output
    return done.output


def subcommands(rest: list[str]) -> list[str]:
    """The leading words that are commands."""
    out: list[str] = []
    for word in rest:
        if not re.search(rf"^  {re.escape(word)}(  |$)", product_help(*out), re.MULTILINE):
            break
        out.append(word)
    return out


COMMANDS = sorted(named())


def test_commands_are_found():
    programs = {words(c)[0] for c in COMMANDS}
    assert len(COMMANDS) > 25
    assert programs >= {"guda", "experiments.styles", "experiments.digits", "experiments.logo", "experiments.sanity"}


def test_commands_can_be_pasted_into_any_shell():
    """cmd knows no single quotes, and neither it nor PowerShell a backslash at the end of a line."""
    for path in (*(ROOT / p for p in PAGES), *ROOT.glob("guda_core/**/*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"pip install '.*|-N ''.*", text), path
        assert path.suffix == ".py" or not re.findall(r"^(?:[A-Z_]+=\S+ )*guda .*\\$", text, re.M), path


@pytest.mark.parametrize("command", [c for c in COMMANDS if words(c)[0] == "guda"])
def test_a_product_command_exists_with_its_options(command):
    _, rest = words(command)
    own = subcommands(rest)
    assert own or not rest or rest[0].startswith("-"), f"there is no command {rest[0]}"
    text = product_help(*own)
    for option in [w for w in rest if w.startswith("--")]:
        assert re.search(rf"(^|\s|,){option}\b", text), f"{command}: {option} is no option"


@pytest.mark.parametrize("command", [c for c in COMMANDS if words(c)[0] != "guda"])
def test_a_command_of_the_laboratory_exists_with_its_options(command, monkeypatch, capsys):
    module, rest = words(command)
    spec = find_spec(module)
    assert spec is not None, f"there is no {module}"
    if spec.submodule_search_locations is not None:
        module = f"{module}.__main__"

    def said(*own: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *own, "--help"])
        with pytest.raises(SystemExit) as done:
            import_module(module).main()
        text = capsys.readouterr().out
        assert not done.value.code and "--help" in text
        return text

    text = said()
    if rest and re.search(rf"^  {re.escape(rest[0])}(  |$)", text, re.MULTILINE):
        text = said(rest[0])
    for option in [w for w in rest if w.startswith("--")]:
        assert re.search(rf"(^|\s|,|\[){option}\b", text), f"{command}: {option} is no option"


@pytest.mark.parametrize("command", ["python -m guda_core sanity --parts real", "python -m experiments.nothing"])
def test_an_old_command_is_found_out(command):
    """This test's own check: what was renamed is reported."""
    program, rest = words(command)
    assert (program == "guda" and subcommands(rest) == []) or find_spec(program) is None


def test_the_site_gives_every_commands_summary_whole():
    said = runpy.run_path(str(ROOT / "docs" / "conf.py"))["commands"]()
    assert "* `results`: Ask the results of `guda attribute --table`: a summary, or the rows" in said
    assert not re.findall(r"^\* `.*\.\.\.$", said, re.MULTILINE)
