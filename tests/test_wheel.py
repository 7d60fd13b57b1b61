"""The package as others get it: built, installed into an environment of its own, used from an empty folder."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.light import draw

ROOT = Path(__file__).resolve().parent.parent
NOT_SHIPPED = ("experiments/", "tests/", "docs/", "assets/benchmarks/oracle/", "assets/runs/emoji/emoji/oracle/")
STORED = "--compression=stored"  # what is in a wheel does not depend on how small it is


def python(code: str, *, cwd: Path) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The committed files and those of now, without what is not shipped: builders write beside what they build."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("source")
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(NOT_SHIPPED):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in NOT_SHIPPED:  # a stand-in, to see that it stays out
        (folder / name / "noto").mkdir(parents=True)
        (folder / name / "noto" / "adapter.json").write_text("{}")
        (folder / name / "secret.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
         f"--config-settings=--build-option={STORED}", "-w", out, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel; what it depends on comes from this one."""
    env = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    bins = env / "bin"
    there = subprocess.run(
        [bins / "python", "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    pip = [sys.executable, "-m", "pip", "--python", bins / "python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--no-compile", "-q", wheel], check=True)
    (Path(there) / "others.pth").write_text("\n".join(p for p in site.getsitepackages() if Path(p).is_dir()))
    return bins


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env = {**kept, "HOME": str(cwd.parent), "GUDA_CACHE": str(cwd.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    env.pop("GUDA_HOME", None)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_scores_a_picture_and_not_the_laboratory(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {n.removeprefix("guda_core/shipped/") for n in names if n.startswith("guda_core/shipped/")}
    assert {"style_groups/emoji/group_set.yaml", "assets/clip/model.safetensors", "assets/MODEL_CARD.md"} <= inside
    run = "assets/runs/emoji/emoji"
    assert {f"{run}/bank.safetensors", f"{run}/scope.json", f"{run}/features/das/features.json"} <= inside
    assert any(n.startswith(f"{run}/adapters/noto/") for n in inside)
    assert any(n.startswith("assets/model/unet/") and n.endswith(".safetensors") for n in inside)
    assert {"guda_core/reports/report.schema.json", "guda_core/py.typed", "guda_core/__init__.pyi"} <= set(names)
    assert "guda_core/diffusion/cards.yaml" in names
    assert not [n for n in names if n.startswith(("experiments", "tests", "assets", "style_groups", "docs"))]
    assert not [n for n in names if "oracle" in n or n.endswith((".npz", "secret.py", "setup.py"))]
    tracked = subprocess.run(["git", "ls-files", "guda_core"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {n for n in tracked.stdout.split() if (ROOT / n).is_file()} <= set(names)


def test_the_source_package_is_enough_to_build_the_wheel(source, wheel, tmp_path):
    python(f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})", cwd=source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as tar:
        names = {n.partition("/")[2] for n in tar.getnames()}
        assert not [n for n in names if n.startswith(("experiments", "tests")) or "oracle" in n or n.endswith(".npz")]
        tar.extractall(tmp_path / "unpacked", filter="data")
    own = next((tmp_path / "unpacked").iterdir())
    (tmp_path / "wheel").mkdir()
    asked = f"{str(tmp_path / 'wheel')!r}, {{'--build-option': [{STORED!r}]}}"
    python(f"from setuptools import build_meta; build_meta.build_wheel({asked})", cwd=own)
    again = next((tmp_path / "wheel").glob("*.whl"))
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_installed_command_and_the_library_attribute_a_picture_from_an_empty_folder(installed, tmp_path):
    """The command's own file runs in the library's process, which spares one start."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(installed / "guda", "--version", cwd=empty).stdout.startswith("guda ")
    draw(tmp_path / "p.png", side=64)
    command = ["guda", "attribute", str(tmp_path / "p.png"), "--methods", "clip,das"]
    code = (
        "import runpy, sys\n"
        f"import guda_core\nanswer = guda_core.attribute({str(tmp_path / 'p.png')!r}, effort='quick')\n"
        "assert '/shipped' in str(guda_core.paths.ROOT)\n"
        "assert all(s.status == 'ok' for s in answer.methods['guda'].groups.values())\n"
        "print(answer.best, answer.scope.verdict, len(answer.record()['health']))\n"
        f"try:\n    guda_core.attribute({str(tmp_path / 'p.png')!r}, methods='logo')\n"
        "except guda_core.GudaError as e:\n"
        "    assert 'copy assets/runs/emoji/emoji/oracle of the repository' in str(e), e\n"
        "else:\n    raise AssertionError('the wheel holds an oracle')\n"
        f"print('The command:', flush=True)\nsys.argv = {command!r}\n"
        f"runpy.run_path({str(installed / 'guda')!r}, run_name='__main__')\n"
    )
    done = run(installed / "python", "-c", code, cwd=empty)
    assert done.returncode == 0 and "torchvision" not in done.stderr, done.stderr
    of_library, _, of_command = done.stdout.partition("The command:")
    best, *verdict, n = of_library.split()
    assert best and " ".join(verdict) in ("in scope", "out of scope") and n == "8"
    said = {"in scope": "OpenMoji", "out of scope": "This model could not have made this picture"}
    assert said[" ".join(verdict)] in of_command and list(empty.iterdir()) == []
