"""The one-way flow of the house: who may import whom, and where third-party libraries live."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From top to bottom. A module may import only what stands above it, and its neighbours in a row with a star. A row that
# nothing matches yet is fine; a module that no row matches is not: add it here, where its arrows all point up.
TABLE = (
    "guda_core",
    "errors",
    "clean_log",
    "amounts",
    "python_words",
    "held_files",
    "machine",
    "file_names",
    "picture_records",
    "records",
    "versions",
    "registry",
    "strict",
    "from_hub",
    "paths",
    "proxies",
    "stored_figures",
    "work_queue",
    "jobs",
    "jobs.*",
    "service",
    "kept_services",
    "diffusion",
    "diffusion.*",
    "libraries",
    "data",
    "data.*",
    "given",
    "unlearning",
    "unlearning.*",
    "attribution",
    "attribution.*",
    "answers",
    "answers.*",
    "reports",
    "reports.*",
    "publishing",
    "publishing.*",
    "scoring",
    "scoring.*",
    "local",
    "named",
    "api",
    "offline",
    "many",
    "opened_reports",
    "zero_gpu",
    "ui.*",
    "ui",
    "cli.*",
    "cli",
    "__main__",
    "experiments*",  # the laboratory may import everything, and nothing above imports it
)

# Where alone a library, or a call of print, may appear. The laboratory trains with diffusers and prints.
PLACES = {
    "diffusers": ("diffusion.*", "experiments.*"),
    "peft": ("unlearning.lora",),
    "matplotlib": ("reports.figures", "answers.plots", "experiments.foreign_drawn"),
    "jsonschema": ("reports.read",),
    "duckdb": ("scoring.*",),
    "ray": ("jobs.ray_pool", "experiments.scale.*"),
    "cryptography": ("reports.signature",),
    "gradio": ("ui", "ui.*", "app"),
    "typer": ("cli", "cli.*", "experiments.*"),
    "print": ("cli", "cli.*", "experiments.*"),
}


def modules(root: Path) -> dict[str, ast.Module]:
    """Name within guda_core -> syntax tree; "guda_core" is the package itself, "app" the app.py beside it."""
    found = {}
    for path in sorted([*(root / "guda_core").rglob("*.py"), *(root / "experiments").rglob("*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join(parts[1:] if parts[0] == "guda_core" else parts) or "guda_core"
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    if (root / "app.py").is_file():
        found["app"] = ast.parse((root / "app.py").read_text(encoding="utf-8"))
    return found


def imported(name: str, tree: ast.Module, is_package: bool) -> Iterator[str]:
    """Dotted names of everything imported anywhere in the file; `from a import b` gives "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                outside = name.split(".")[0] in ("guda_core", "experiments")
                here = name.split(".") if outside else ["guda_core", *name.split(".")]
                up = node.level - is_package
                base = ".".join([*here[: len(here) - up], *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own(dotted: str, known: set[str]) -> str | None:
    """The module of ours that a dotted name stands for, None when it is not ours."""
    parts = dotted.split(".")
    if parts[0] == "experiments":
        return next((n for i in range(len(parts), 0, -1) if (n := ".".join(parts[:i])) in known), None)
    if parts[0] != "guda_core":
        return None
    for n in range(len(parts), 1, -1):
        if ".".join(parts[1:n]) in known:
            return ".".join(parts[1:n])
    return "guda_core"


@cache
def row(name: str) -> int | None:
    return next((i for i, pattern in enumerate(TABLE) if fnmatchcase(name, pattern)), None)


def arrows(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    known = set(trees)
    packages = {name.rpartition(".")[0] for name in trees} | {"guda_core", "diffusion", "data", "unlearning", "ui"}
    return {
        name: {to for dotted in imported(name, tree, name in packages) if (to := own(dotted, known))} - {name}
        for name, tree in trees.items()
    }


def faults(root: Path) -> list[str]:
    """A sentence for every arrow that points down, module without a row, and library out of its place."""
    out = []
    trees = modules(root)
    found = arrows(trees)
    for name, targets in found.items():
        if name == "app":
            continue
        if row(name) is None:
            out.append(
                f"{name} is in no row: add it to TABLE in tests/test_architecture.py, below all that it imports."
            )
            continue
        for to in sorted(targets):
            here, there = row(name), row(to)
            beside = here == there and TABLE[here].endswith("*")
            if there is not None and there >= here and not beside:
                out.append(f"{name} imports {to}, which stands below it.")
    try:
        TopologicalSorter(found).prepare()
    except CycleError as e:
        out.append(f"a circle of imports: {' <- '.join(e.args[1])}.")
    for name, tree in trees.items():
        used = {dotted.split(".")[0] for dotted in imported(name, tree, False)}
        used |= {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} & {
            "print"
        }
        for what in sorted(used & set(PLACES)):
            if not any(fnmatchcase(name, place) for place in PLACES[what]):
                out.append(f"{name} uses {what}, which belongs to {', '.join(PLACES[what])} alone.")
    return out


def test_every_import_points_up_and_every_library_is_in_its_place():
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("guda_core/errors.py", "from guda_core.records import Query", "errors imports records, which stands below"),
        ("guda_core/errors.py", "from guda_core import records", "errors imports records, which stands below"),
        ("guda_core/errors.py", "from . import records", "errors imports records, which stands below"),
        ("guda_core/errors.py", "def f():\n    import guda_core.records", "errors imports records, which stands below"),
        (
            "guda_core/diffusion/base_model.py",
            "from ..ui import x",
            "diffusion.base_model imports ui, which stands below",
        ),
        ("guda_core/data/groups.py", "from guda_core.local import x", "data.groups imports local, which stands below"),
        ("guda_core/attribution/trak.py", "from guda_core.attribution.das import x", "a circle of imports"),
        ("guda_core/helpers.py", "", "helpers is in no row: add it to TABLE"),
        ("guda_core/cli/more.py", "from peft import LoraConfig", "cli.more uses peft, which belongs to"),
        ("guda_core/reports/record.py", "import matplotlib.figure", "reports.record uses matplotlib"),
        ("guda_core/unlearning/adapters.py", "from diffusers.utils import x", "unlearning.adapters uses diffusers"),
        ("guda_core/local.py", "import gradio as gr", "local uses gradio"),
        ("guda_core/ui/panel.py", "import typer", "ui.panel uses typer"),
        ("guda_core/errors.py", "print('hello')", "errors uses print"),
        ("guda_core/local.py", "def f():\n    from experiments import speed", "local imports experiments.speed"),
        ("experiments/speed.py", "import gradio", "experiments.speed uses gradio"),
        ("app.py", "import diffusers", "app uses diffusers"),
    ],
)
def test_a_planted_fault_is_found(path, text, fault, tmp_path):
    house = {
        "guda_core/__init__.py": "__version__ = '1'",
        "guda_core/errors.py": "",
        "guda_core/records.py": "from guda_core import __version__\nfrom guda_core.errors import E",
        "guda_core/diffusion/__init__.py": "",
        "guda_core/diffusion/base_model.py": "from guda_core.errors import E",
        "guda_core/diffusion/cards.py": "from guda_core.diffusion.base_model import x\nimport torch, diffusers",
        "guda_core/data/__init__.py": "",
        "guda_core/data/groups.py": "",
        "guda_core/attribution/das.py": "from guda_core.attribution.trak import x",
        "guda_core/attribution/trak.py": "",
        "guda_core/local.py": "from guda_core.attribution import das",
        "guda_core/cli/__init__.py": "import typer\nprint('hello')",
        "guda_core/ui/__init__.py": "import gradio\nfrom guda_core.ui.parts import x",
        "guda_core/ui/parts.py": "",
        "experiments/__init__.py": "",
        "experiments/speed.py": "from guda_core.local import x\nprint('hello')\nimport diffusers",
        "app.py": "import gradio\nfrom guda_core.ui import build_ui",
    }
    for name, body in {**house, path: text}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")
    found = faults(tmp_path)
    assert any(fault in sentence for sentence in found), found
    (tmp_path / path).write_text(house.get(path, ""), encoding="utf-8")
    if path not in house:
        (tmp_path / path).unlink()
    assert faults(tmp_path) == []


def test_no_environment_is_in_the_repository():
    """A link named .venv gets past `.venv/` in .gitignore; merged, it replaces the real folder, which is then lost.

    Take it out with `git rm --cached .venv && git commit --amend`, of the commit that added it.
    """
    found = subprocess.run(["git", "ls-files", ".venv"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""


LIGHT = ("errors", "records", "versions", "paths", "service", "data.groups", "data.images", "data.sources.iconify")
LIGHT += ("reports.record", "reports.figures", "reports.bundle", "reports.read", "reports.replay", "reports.batch")
LIGHT += ("stored_figures", "attribution", "scoring.table_run", "scoring.asking", "scoring.again")
LIGHT += ("reports.page", "reports.two_reports")


def test_light_modules_do_not_load_torch():
    """One after the other in one process; the first that loads it is named."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'guda_core.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *LIGHT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_two_files_share_a_name():
    """A name in an error, a search or a tab of an editor means one file."""
    names = Counter(
        path.name
        for folder in ("guda_core", "experiments", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    assert [n for n, times in names.items() if times > 1] == []
