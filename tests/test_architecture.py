"""The one-way flow of the house: who may import whom, and where third-party libraries live."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From top to bottom. A module may import only what stands above it, and its neighbours in a row with a star. A row that
# nothing matches yet is fine; a module that no row matches is not: add it here, where its arrows all point up.
TABLE = (
    "guda_core",
    "errors",
    "records",
    "groups",
    "metrics",
    "imaging",
    "data",
    "captions",
    "models",
    "models.base",
    "models.stable_diffusion",
    "models.unconditional",
    "models.cards",
    "datasets",
    "clip",
    "coding",
    "adapters",
    "examples",
    "claims",
    "store",
    "memory",
    "elbo",
    "breakdown",
    "losses",
    "gradients",
    "shipped",
    "training",
    "training.*",
    "unlearn",
    "live",
    "unlearn_unconditional",
    "methods.*",
    "methods",
    "report",
    "scope",
    "pipeline",
    "zero",
    "charts",
    "evidence",
    "reading",
    "recall",
    "replay",
    "batch",
    "forgetting",
    "oracle",
    "benchmark",
    "benchmark.tables",
    "benchmark.clock",
    "benchmark.baselines",
    "benchmark.queries",
    "benchmark.scores",
    "benchmark.kept",
    "benchmark.rows",
    "benchmark.benches",
    "benchmark.models",
    "benchmark.styles",
    "benchmark.intervals",
    "benchmark.costs",
    "benchmark.scope",
    "benchmark.classes",
    "benchmark.*",
    "sanity",
    "plots",
    "terminal",
    "cli_reports",
    "cli_measures",
    "cli",
    "ui.*",
    "ui",
    "__main__",
)

# Where alone a library, or a call of print, may appear.
PLACES = {
    "diffusers": ("models.stable_diffusion", "models.unconditional", "training.*"),
    "peft": ("adapters",),
    "plotly": ("plots",),
    "matplotlib": ("charts",),
    "jsonschema": ("reading",),
    "gradio": ("ui", "ui.*", "app"),
    "typer": ("cli", "cli_reports", "cli_measures", "terminal"),
    "print": ("cli", "cli_reports", "cli_measures"),
}


def modules(root: Path) -> dict[str, ast.Module]:
    """Name within guda_core -> syntax tree; "guda_core" is the package itself, "app" the app.py beside it."""
    found = {}
    for path in sorted((root / "guda_core").rglob("*.py")):
        parts = path.relative_to(root / "guda_core").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "guda_core"
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
                here = ["guda_core", *(name.split(".") if name != "guda_core" else [])]
                up = node.level - is_package
                base = ".".join([*here[: len(here) - up], *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own(dotted: str, known: set[str]) -> str | None:
    """The module of ours that a dotted name stands for, None when it is not ours."""
    parts = dotted.split(".")
    if parts[0] != "guda_core":
        return None
    for n in range(len(parts), 1, -1):
        if ".".join(parts[1:n]) in known:
            return ".".join(parts[1:n])
    return "guda_core"


def row(name: str) -> int | None:
    return next((i for i, pattern in enumerate(TABLE) if fnmatchcase(name, pattern)), None)


def arrows(root: Path) -> dict[str, set[str]]:
    trees = modules(root)
    packages = {name.rpartition(".")[0] for name in trees} | {"guda_core", "models", "training", "methods", "ui"}
    return {
        name: {to for dotted in imported(name, tree, name in packages) if (to := own(dotted, set(trees)))} - {name}
        for name, tree in trees.items()
    }


def faults(root: Path) -> list[str]:
    """A sentence for every arrow that points down, module without a row, and library out of its place."""
    out = []
    trees = modules(root)
    for name, targets in arrows(root).items():
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
        TopologicalSorter(arrows(root)).prepare()
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
        ("guda_core/models/base.py", "from .cards import x", "models.base imports models.cards, which stands below"),
        ("guda_core/models/base.py", "from ..ui import x", "models.base imports ui, which stands below"),
        ("guda_core/methods/trak.py", "from guda_core.methods.das import x", "a circle of imports"),
        ("guda_core/helpers.py", "", "helpers is in no row: add it to TABLE"),
        ("guda_core/plots.py", "from peft import LoraConfig", "plots uses peft, which belongs to adapters alone"),
        ("guda_core/report.py", "import plotly.graph_objects as go", "report uses plotly"),
        ("guda_core/adapters.py", "from diffusers.utils import x", "adapters uses diffusers"),
        ("guda_core/pipeline.py", "import gradio as gr", "pipeline uses gradio"),
        ("guda_core/ui/panel.py", "import typer", "ui.panel uses typer"),
        ("guda_core/elbo.py", "print('hello')", "elbo uses print"),
        ("app.py", "import diffusers", "app uses diffusers"),
    ],
)
def test_a_planted_fault_is_found(path, text, fault, tmp_path):
    house = {
        "guda_core/__init__.py": "__version__ = '1'",
        "guda_core/errors.py": "",
        "guda_core/records.py": "from guda_core import __version__\nfrom guda_core.errors import E",
        "guda_core/models/__init__.py": "",
        "guda_core/models/base.py": "from guda_core.errors import E",
        "guda_core/models/cards.py": "from guda_core.models.base import x\nimport torch",
        "guda_core/methods/das.py": "from guda_core.methods.trak import x",
        "guda_core/methods/trak.py": "",
        "guda_core/training/loop.py": "import diffusers",
        "guda_core/cli.py": "import typer\nprint('hello')",
        "guda_core/ui/__init__.py": "import gradio\nfrom guda_core.ui.parts import x",
        "guda_core/ui/parts.py": "",
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


LIGHT = ("errors", "records", "groups", "metrics", "imaging", "data", "plots")
LIGHT += ("report", "charts", "evidence", "reading", "replay", "batch")


@pytest.mark.parametrize("name", [n for n in LIGHT if (ROOT / "guda_core" / f"{n}.py").is_file()])
def test_light_modules_do_not_load_torch(name):
    code = f"import sys, guda_core.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
