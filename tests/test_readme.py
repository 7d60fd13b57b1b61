"""The README's figures are those of the committed files, and the files it names exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import guda_core
from guda_core.attribution.calibration import FILE
from guda_core.cli import groups_check
from guda_core.diffusion.cards import find_card
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


def test_the_questions_are_answered_from_the_files():
    text = (ROOT / "docs/explanation/questions.md").read_text(encoding="utf-8")
    gpu = json.loads((ROOT / "assets/benchmarks/gpu.json").read_text(encoding="utf-8"))["parts"]
    step, scoring = gpu["unlearning"]["float16, checkpointing"]["step_s"], gpu["scoring"]
    steps = find_card("sd15").unlearning["steps"]
    minutes = round(steps * step / 60)
    said = f"takes {step:.2f} seconds, and {steps} steps are the default: about {['', 'one', 'two'][minutes]} minutes"
    assert said in " ".join(text.split())
    quick, full = (round(scoring[e]["seconds"]) for e in ("quick", "full"))
    assert f"{quick} seconds at effort *quick* and {full} at *full*, with {scoring['groups']} groups" in text


@pytest.mark.parametrize("name", ["explanation/questions.md", "how-to/own-groups.md"])
def test_pages_warn_of_as_few_pictures_as_the_check_does(name):
    text = " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())
    assert f"fewer than {groups_check.FEW} pictures to train on" in text and "fewer than five" not in text


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == guda_core.__version__ and cited["license"] == "MIT" and cited["cff-version"] == "1.2.0"
    paper, theirs = cited["references"]
    assert paper["url"].endswith(paper["identifiers"][0]["value"].removeprefix("arXiv:")) and len(paper["authors"]) == 7
    said = [(ROOT / p).read_text(encoding="utf-8") for p in ("README.md", "docs/explanation/questions.md")]
    assert all(theirs["repository-code"] in s and "not endorsed by them" in " ".join(s.split()) for s in said)
