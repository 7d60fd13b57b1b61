"""The README's figures are those of the committed files, and the files it names exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guda_core.attribution.calibration import FILE
from guda_core.paths import SHIPPED_RUN

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
    weight = json.loads((SHIPPED_RUN / FILE).read_text(encoding="utf-8"))["offset_weight"]
    assert f"{weight:g}" in said


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_links_and_named_files_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:guda_core|experiments|assets|docs|style_groups|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or re.search(r"/[A-Z]+/", path), path  # MODEL stands for any
