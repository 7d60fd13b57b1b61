"""The README's figures are those of the committed files, and the files it names exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from guda_core.attribution.guda import WEIGHT

ROOT = Path(__file__).resolve().parent.parent
MARKER = r"<!-- figures:(\w+) -->"


@pytest.fixture(scope="module")
def readme():
    from experiments.tables import readme as module

    return module


def test_figures_are_those_of_the_files(readme):
    for name in readme.FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert readme.filled(text) == text, f"{name}: run `python -m experiments.tables.readme`"


def test_no_figure_is_lost(readme):
    shown = {m for name in readme.FILES for m in re.findall(MARKER, (ROOT / name).read_text(encoding="utf-8"))}
    assert shown == set(readme.RENDER)


def test_figures_change_with_the_files(readme, monkeypatch):
    original = readme.read("assets/benchmarks/sanity.json")
    changed = {**original, "date": "1999-01-01"}
    monkeypatch.setattr(readme, "read", lambda name: changed)
    assert "1999-01-01" in readme.sanity()


@pytest.mark.parametrize("name", ["CHANGELOG.md", "docs/results/offset.md"])
def test_the_general_parts_weight_is_the_one_in_use(name):
    said = re.findall(r"([\d.]+) times", (ROOT / name).read_text(encoding="utf-8"))
    assert f"{WEIGHT:g}" in said


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_links_and_named_files_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:guda_core|experiments|assets|docs|style_groups|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or re.search(r"/[A-Z]+/", path), path  # MODEL stands for any


def named_commands() -> list[str]:
    """Every `guda COMMAND [COMMAND]` and `python -m MODULE` that a page names, once."""
    found: set[str] = set()
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        found |= {f"python -m {m}" for m in re.findall(r"python -m ([\w.]+)", text)}
        starts = re.findall(
            r"(?:^|`)\s*(?:[A-Z_]+=\w+ )*(?:guda|python -m guda_core) ([a-z]+)(?: ([a-z]+)\b(?![./]))?",
            text,
            re.MULTILINE,
        )
        found |= {" ".join(("guda", *filter(None, words))) for words in starts}
    return sorted(found)


@pytest.mark.parametrize("command", [c for c in named_commands() if c.startswith("python -m")])
def test_named_modules_can_be_run(command):
    name = command.removeprefix("python -m ")
    spec = find_spec(name)
    assert spec is not None, name
    if spec.submodule_search_locations is not None:
        assert find_spec(f"{name}.__main__") is not None, name


def test_named_commands_of_guda_exist():
    import typer.main

    from guda_core.cli import app

    tree = typer.main.get_command(app).commands
    named = [c.split()[1:] for c in named_commands() if c.startswith("guda ")]
    assert ["attribute"] in named and ["groups", "check"] in named
    for command, *rest in named:
        assert command in tree, command
        more = getattr(tree[command], "commands", None)
        assert not more or not rest or rest[0] in more, (command, rest)
