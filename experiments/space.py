"""Is this repository a Hugging Face Space? `python -m experiments.space` checks the rules, `--run` also starts it.

Checked: the README's front matter, the sizes and kinds of the committed files, that the requirements hold what is
imported. With --run the committed files alone are cloned into an empty folder, `python app.py` is started there with a
home of its own on two CPUs, and it must answer within a minute, make a picture, attribute it, and leave the clone as it
was. What was measured goes to assets/benchmarks/space.json. (Rules: https://huggingface.co/docs/hub/spaces-config-reference
and https://huggingface.co/docs/hub/spaces-zerogpu, read in 2026.)
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from experiments.commands import keep_record
from experiments.speed import cold_start, free_port
from guda_core.paths import ROOT

KEYS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license",
    "short_description", "tags", "models", "suggested_hardware", "pinned", "startup_duration_timeout", "fullWidth",
    "header", "thumbnail", "datasets", "preload_from_hub", "disable_embedding",
}  # fmt: skip
NEEDED = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license")
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
HARDWARE = {
    "cpu-basic",
    "cpu-upgrade",
    "zero-a10g",
    "t4-small",
    "t4-medium",
    "l4x1",
    "l40sx1",
    "a10g-small",
    "a100-large",
}
MOST_FILE, MOST_ALL, MOST_WORDS = 10_000_000, 1_000_000_000, 60  # bytes without Xet, bytes in all, characters
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")
ZERO_TORCH, ZERO_PYTHON = "2.11.0", ("3.10", "3.12")  # ZeroGPU's newest torch, and its Pythons
PROVIDED = {"spaces"}  # on a Space, by the platform
LIMIT_S = 60.0  # until the first answer
CPUS = 2


def front_matter(readme: str) -> dict[str, Any]:
    """The YAML between the first two lines of three dashes; {} when there is none."""
    found = re.match(r"---\n(.*?)\n---\n", readme, re.DOTALL)
    read = yaml.safe_load(found[1]) if found else None
    return read if isinstance(read, dict) else {}


def check_front_matter(meta: dict[str, Any], root: Path) -> Iterator[str]:
    """What is wrong with the front matter, in sentences."""
    yield from (f"README.md: the front matter lacks {k}." for k in NEEDED if not meta.get(k))
    yield from (f"README.md: {k} is no key of a Space." for k in set(meta) - KEYS)
    for k in ("colorFrom", "colorTo"):
        if meta.get(k) not in COLOURS:
            yield f"README.md: {k} is none of {', '.join(sorted(COLOURS))}."
    if meta.get("sdk") != "gradio":
        yield "README.md: sdk is not gradio."
    if meta.get("suggested_hardware", "cpu-basic") not in HARDWARE:
        yield "README.md: suggested_hardware is unknown."
    if len(str(meta.get("short_description", ""))) > MOST_WORDS:
        yield f"README.md: short_description has more than {MOST_WORDS} characters."
    if not (root / str(meta.get("app_file", ""))).is_file():
        yield f"README.md: there is no app_file {meta.get('app_file')}."
    for k in ("sdk_version", "python_version"):
        if k in meta and not isinstance(meta[k], str):
            yield f"README.md: {k} must stand in quotes, or YAML makes a number of it."
    asked = re.search(r'requires-python = ">=([\d.]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"))
    if asked is None or Version(str(meta.get("python_version", "0"))) < Version(asked[1]):
        yield "README.md: python_version is older than pyproject.toml allows."
    if str(meta.get("python_version")) not in ZERO_PYTHON:
        yield f"README.md: python_version is none of {', '.join(ZERO_PYTHON)}, which ZeroGPU has."


def tracked(root: Path) -> list[str]:
    """The committed files."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [n for n in done.stdout.split("\0") if n and (root / n).exists()]


def uncommitted(root: Path) -> str:
    """Which files are changed or new since the last commit, in a sentence; "" for none."""
    asked = ["git", "status", "--porcelain", "--untracked-files=all"]
    lines = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    return f"Not committed, so no part of the Space: {', '.join(n[3:] for n in lines)}." if lines else ""


def check_files(root: Path, names: list[str]) -> Iterator[str]:
    """What is wrong with the files, in sentences."""
    total = 0
    for n in names:
        size = (root / n).stat().st_size
        total += size
        if size > MOST_FILE:
            yield f"{n}: {size} bytes; a file over {MOST_FILE} needs Xet or LFS."
        if n.endswith(PICKLES):
            yield f"{n}: weights are committed as safetensors only."
        if (root / n).is_symlink():
            yield f"{n}: a link; a Space holds plain files."
    if total > MOST_ALL:
        yield f"The files have {total} bytes in all; a Space holds {MOST_ALL}."


def imports(root: Path, names: list[str]) -> set[str]:
    """Top-level names that app.py and guda_core import from elsewhere."""
    found: set[str] = set()
    for n in names:
        if n != "app.py" and not (n.startswith("guda_core/") and n.endswith(".py")):
            continue
        for node in ast.walk(ast.parse((root / n).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"guda_core"}


def requirements(root: Path) -> dict[str, Requirement]:
    """Normalised name -> line of requirements.txt."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    read = [Requirement(s.partition("#")[0].strip()) for s in lines if s.partition("#")[0].strip()]
    return {r.name.lower().replace("_", "-"): r for r in read}


OPTIONAL = {"datasets", "ray", "cryptography", "pillow_heif"}  # what needs one of these says what to install


def check_requirements(root: Path, names: list[str], meta: dict[str, Any]) -> Iterator[str]:
    """What is wrong with requirements.txt, in sentences."""
    known, owners = requirements(root), packages_distributions()
    for module in sorted(imports(root, names) - PROVIDED - OPTIONAL):
        if not {d.lower().replace("_", "-") for d in owners.get(module, [])} & set(known):
            yield f"requirements.txt: nothing in it brings {module}, which is imported."
    for name, wanted in (("gradio", meta.get("sdk_version")), ("torch", ZERO_TORCH)):
        if name not in known or not known[name].specifier.contains(str(wanted)):
            yield f"requirements.txt: {name} does not admit {wanted}."
    for name, r in known.items():
        if not any(s.operator in ("<", "<=", "==", "~=") for s in r.specifier):
            yield f"requirements.txt: {name} has no upper bound."


def problems(root: Path) -> list[str]:
    """Everything that a Space would stumble over."""
    names = tracked(root)
    meta = front_matter((root / "README.md").read_text(encoding="utf-8"))
    checks = (check_front_matter(meta, root), check_files(root, names), check_requirements(root, names, meta))
    return [sentence for check in checks for sentence in check]


def snapshot(folder: Path) -> dict[str, str]:
    """File -> hash, without what Python itself leaves when it imports."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not {".git", "__pycache__"} & set(p.parts))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@contextmanager
def as_space(clone: Path, home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The app as a Space starts it: only the clone, a fresh home, two CPUs, no variable of this machine."""
    kept = {k: os.environ[k] for k in ("PATH", "LANG") if k in os.environ}
    own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "SYSTEM": "spaces", "SPACE_ID": "someone/guda"}
    (home / "tmp").mkdir(parents=True)
    served = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    cpus = sorted(os.sched_getaffinity(0))[:CPUS]
    with (home / "log.txt").open("wb") as log:
        app = subprocess.Popen(
            [sys.executable, "app.py"], cwd=clone, env={**kept, **own, **served}, stdout=log, stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )  # fmt: skip
        try:
            yield app
        finally:
            app.terminate()
            app.wait()


def peak_memory(pid: int) -> int:
    """The most memory a process has held, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return int(found[1]) // 1000 if found else 0


def run_as_space(root: Path, limit_s: float) -> dict[str, Any]:
    """Clone, start, ask; what was measured. Raises SystemExit with what went wrong."""
    from gradio_client import Client

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        clone, home, port = Path(folder) / "space", Path(folder) / "home", free_port()
        subprocess.run(["git", "clone", "--quiet", "--no-local", "--depth=1", f"file://{root}", str(clone)], check=True)
        before, url = snapshot(clone), f"http://127.0.0.1:{port}/"
        with as_space(clone, home, port) as app:
            start = cold_start(app, url, limit_s)
            began = time.perf_counter()
            client = Client(url, verbose=False)
            groups = client.predict(api_name="/groups")
            record = client.predict(
                "rocket, artistic style featuring thick black outline", 1, 20, 2.5, ["guda", "clip"], "quick",
                api_name="/generate_and_attribute",
            )  # fmt: skip
            first = time.perf_counter() - began
            memory = peak_memory(app.pid)
        scored = [g for g, s in record["methods"]["guda"]["groups"].items() if s["status"] == "ok"]
        if sorted(scored) != sorted(groups["groups"]):
            raise SystemExit(f"Only {', '.join(scored) or 'no group'} got a score.")
        changed = sorted(set(before.items()) ^ set(snapshot(clone).items()))
        if changed:
            raise SystemExit(f"The app wrote beside its code: {changed[0][0]}.")
        wrote = sorted({"/".join(p.relative_to(home).parts[:2]) for p in home.rglob("*") if p.is_file()})
    return {
        "cold_start_s": round(start, 1),
        "first_answer_s": round(first, 1),
        "peak_memory_mb": memory,
        "wrote": wrote,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="Also start it as a Space and write what was measured.")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "benchmarks" / "space.json")
    options = parser.parse_args()
    if options.run and sys.platform != "linux":
        raise SystemExit("--run needs Linux, as a Space has it. Without --run the rules are checked on any system.")
    found = problems(ROOT)
    if found:
        raise SystemExit("\n".join(found))
    print("The repository keeps a Space's rules.", uncommitted(ROOT))
    if not options.run:
        return
    load = os.getloadavg()[0]
    measured = run_as_space(ROOT, LIMIT_S)
    settings = {"cpus": CPUS, "limit_s": LIMIT_S, "load_before": round(load, 2)}
    record = {
        "command": "python -m experiments.space --run", "config": settings, **measured,
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
    }  # fmt: skip
    keep_record(options.out, record, gradio=version("gradio"))
    print(json.dumps(measured), f"\nWritten: {options.out}")


if __name__ == "__main__":
    main()
