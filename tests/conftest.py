"""What every test stands on: a cache of its own, no hub, no telemetry."""

from __future__ import annotations

import functools
import gc
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chromium import ARGS, NAMES, SLOW, chromium_path
from tests.once import PLACE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.stage import Stage

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers are the threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
gc.disable()  # while the tests are collected: what is imported then stays to the end
os.environ["SSL_CERT_DIR"] = os.devnull  # nothing here speaks TLS, and each client would read a hundred authorities
os.environ.pop("SSL_CERT_FILE", None)
os.environ["COLUMNS"] = "200"  # the consoles read their width once, when they are first imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files in an order by chance, always the same: what waits for a browser and what computes are mixed, and no
    file can rely on the one before it in the alphabet."""
    items.sort(key=lambda item: zlib.crc32(item.path.stem.encode()))


def pytest_collection_finish() -> None:
    """From here on garbage is collected again; the millions of objects of the libraries are not walked any more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # seldom: each round asks hypothesis, too
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder of `tests.once`: one for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"))
        (base / "temporary").mkdir()
        patch.setattr(tempfile, "tempdir", str(base / "temporary"))  # gradio's client leaves folders there
        yield


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing a test does reads or leaves anything outside its own folder, and nothing is asked of the network. Numbers
    that a training rounds to zero are there again afterwards, and what the laboratory adds to a list is gone. So is the
    state that accelerate keeps one of a process: an `Accelerator` is made in the test that uses it."""
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
    if "experiments.ablations.members" in sys.modules:
        sys.modules["experiments.ablations.members"].forget()


DRAWN: dict[str, bytes] = {}
SEES_BARS = ("tests.test_report", "tests.test_plots", "tests.test_old_reports")


@pytest.fixture(autouse=True)
def drawn_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer has the same bars (`test_report` sees to that), so they are drawn once; for tests that do not see
    bars, the first ones stand for all."""
    figures = sys.modules.get("guda_core.reports.figures")
    if figures is None:
        return
    draw = figures.bars_png

    def bars(answers: Sequence[Any], group_set: Any, names: Any = None) -> bytes:
        named = {g: v.name for g, v in group_set.groups.items()}
        key = repr(([(a.method, a.unit, a.groups, a.settings) for a in answers], named, names))
        key = key if request.module.__name__ in SEES_BARS else "any"
        if key not in DRAWN:
            DRAWN[key] = draw(answers, group_set, names)
        return DRAWN[key]

    monkeypatch.setattr(figures, "bars_png", bars)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """The tree of commands is made once for all runs within this process, not for each."""
    with pytest.MonkeyPatch.context() as patch:
        if "typer" in sys.modules:
            import typer.main
            import typer.testing

            once = functools.cache(typer.main.get_command)
            patch.setattr(typer.main, "get_command", once)
            patch.setattr(typer.testing, "_get_command", once)
        yield


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One app for a file of tests; the file's `SERVICE` makes its service."""
    from tests.stage import staged

    yield from staged(request.module.SERVICE, tmp_path_factory.mktemp("served"))


@pytest.fixture
def stage(served: Stage) -> Stage:
    """That app, as new."""
    return served.renewed()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all screen tests, which are skipped where there is none."""
    path = chromium_path()
    if path is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on the PATH")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SLOW)
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=list(ARGS))
        yield chromium
        chromium.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The workspace; it is not made."""
    return tmp_path / "home"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with the pictures of six artists."""
    from tests.own_pictures import studio

    return studio(tmp_path / "artists")
