"""The check of a Space's rules passes here and finds what is planted; every variable that is read is documented."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from experiments import space

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_this_repository_keeps_the_rules():
    assert space.problems(ROOT) == []
    assert "mcp-server" not in space.front_matter(README)["tags"]  # MCP is off, and its package is not there


def test_what_is_not_committed_is_named(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=tmp_path, check=True)

    git("init", "--quiet")
    for name in ("app.py", ".gitignore"):
        (tmp_path / name).write_text("*.log\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    (tmp_path / "run.log").touch()
    assert space.uncommitted(tmp_path) == ""
    (tmp_path / "app.py").write_text("2")
    (tmp_path / "rocket.png").touch()
    assert space.uncommitted(tmp_path) == "Not committed, so no part of the Space: app.py, rocket.png."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sdk": "docker"}, "sdk is not gradio"),
        ({"colorFrom": "mauve"}, "colorFrom is none of"),
        ({"app_file": "main.py"}, "there is no app_file main.py"),
        ({"python_version": 3.1}, "python_version must stand in quotes"),
        ({"python_version": "3.10"}, "python_version is older"),
        ({"python_version": "3.11"}, "python_version is none of 3.10, 3.12, which ZeroGPU has"),
        ({"short_description": "x" * 61}, "more than 60 characters"),
        ({"sdkversion": "1"}, "sdkversion is no key"),
        ({"title": ""}, "lacks title"),
        ({"suggested_hardware": "abacus"}, "suggested_hardware is unknown"),
    ],
)
def test_faults_of_the_front_matter_are_found(change, sentence):
    meta = {**space.front_matter(README), **change}
    assert any(sentence in s for s in space.check_front_matter(meta, ROOT))


def test_a_page_without_front_matter_lacks_everything():
    assert space.front_matter("# Title\n") == {}
    assert len(list(space.check_front_matter({}, ROOT))) > len(space.NEEDED)


def test_large_files_pickles_and_links_are_found(tmp_path):
    (tmp_path / "big.png").write_bytes(b"0" * 10_000_001)
    (tmp_path / "weights.pt").write_bytes(b"0")
    (tmp_path / "link").symlink_to("big.png")
    found = " ".join(space.check_files(tmp_path, ["big.png", "weights.pt", "link"]))
    assert "big.png: 10000001 bytes" in found and "weights.pt: weights" in found and "link: a link" in found
    assert list(space.check_files(tmp_path, [])) == []


def test_missing_and_unbounded_requirements_are_found(tmp_path):
    (tmp_path / "app.py").write_text("import yaml\nimport numpy as np\nfrom gradio import Blocks\nimport os\n")
    (tmp_path / "requirements.txt").write_text("numpy>=2\ngradio>=5,<6  # old\n")
    found = " ".join(space.check_requirements(tmp_path, ["app.py"], {"sdk_version": "6.31.0"}))
    assert "brings yaml" in found and "gradio does not admit 6.31.0" in found and "numpy has no upper bound" in found
    assert "torch does not admit" in found and "brings numpy" not in found and "brings os" not in found


def test_a_file_written_beside_the_code_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = space.snapshot(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("2")
    assert space.snapshot(tmp_path) == before
    (tmp_path / "out.txt").write_text("3")
    assert space.snapshot(tmp_path) != before


def test_every_variable_that_is_read_stands_in_the_table():
    files = subprocess.run(
        ["git", "ls-files", "app.py", "guda_core", "experiments"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    code = "".join((ROOT / f).read_text(encoding="utf-8") for f in files.split() if f.endswith(".py"))
    read = set(re.findall(r"\bGUDA_[A-Z0-9]+\b", code))
    table = set(re.findall(r"\bGUDA_[A-Z0-9]+\b", (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")))
    assert read == table
