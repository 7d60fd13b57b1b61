"""Many pictures from Python: the rows are those of the command, here and by workers, and the page's example runs."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import guda_core
from guda_core import api, many
from guda_core.attribution import METHODS
from guda_core.attribution.method import Method
from guda_core.errors import GudaError, OptionError
from guda_core.named import Named
from guda_core.scoring.asking import Asked
from tests.light import LightService
from tests.table_works import Made, folder_of, pids, rows, run
from tests.test_pipeline import service  # noqa: F401  (a fixture)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "many-pictures.md"


def test_the_rows_are_those_of_one_picture_at_a_time(service, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(api, "_service", lambda *a: service)
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    (folder / "empty.png").write_bytes(b"")
    results = guda_core.attribute_many(folder, out, "cat", service.model, methods="guda", effort="quick")
    summary = results.summary()
    assert (summary.scored, summary.refused) == (2, 1) and (out / "summary.html").is_file()
    one = guda_core.attribute(folder / "000.png", "cat", effort="quick").methods["guda"]
    found = {r["group_id"]: r["score"] for r in results.rows(Asked(picture="000.png"))}
    assert found == {g: s.score for g, s in one.groups.items()}
    again = guda_core.attribute_many([str(folder)], str(out), "cat", service.model, methods=["guda"], effort="quick")
    assert again.rows(Asked()) == results.rows(Asked())


def test_workers_make_the_same_rows(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "in", 9)
    monkeypatch.setattr(many, "Named", lambda model, groups: Made(tmp_path))
    guda_core.attribute_many(folder, tmp_path / "many", effort="quick", workers=2)
    assert pids(tmp_path) and len(rows(tmp_path / "many")) == 9 * 16
    run(folder, tmp_path / "here", LightService)
    assert rows(tmp_path / "many") == rows(tmp_path / "here")


def test_a_script_without_a_guard_is_told_so(tmp_path):
    folder_of(tmp_path / "in", 2)
    script = (  # what `attribute_many` does once it has asked for workers, without what else it imports
        "from functools import partial\nfrom pathlib import Path\nfrom guda_core.jobs.local_pool import LocalPool\n"
        "from guda_core.scoring.part_jobs import by_pool\nfrom tests.table_works import Made, run\n"
        "run('in', 'out', Made(Path('.')), partial(by_pool, pool=LocalPool(1, devices=[])))\n"
    )
    (tmp_path / "script.py").write_text(script)
    more = {**os.environ, "PYTHONPATH": str(PAGE.parent.parent.parent)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=more, capture_output=True, text=True)
    assert done.returncode == 1 and "Put the call below a line `if __name__ == '__main__':`" in done.stderr
    assert "An attempt has been made to start a new process" not in done.stderr and not (tmp_path / "diary").exists()


def test_what_other_processes_cannot_have_is_refused(service, tmp_path):  # noqa: F811
    folder = folder_of(tmp_path / "in", 1)
    for more in ({"model": service.model}, {"groups": service.group_set}):
        with pytest.raises(OptionError, match="give model and groups by their names"):
            guda_core.attribute_many(folder, tmp_path / "out", workers=2, **more)
    with pytest.raises(OptionError, match="at least one worker"):
        guda_core.attribute_many(folder, tmp_path / "out", workers=0)
    with pytest.raises(OptionError, match="another folder"):
        guda_core.attribute_many(folder, folder / "out")
    for empty in ("", [""]):  # no name of the folder that the program works in
        with pytest.raises(OptionError, match="pictures must be a path; got an empty text"):
            guda_core.attribute_many(empty, tmp_path / "out")
    with pytest.raises(OptionError, match="There is nothing to score"):
        guda_core.attribute_many((tmp_path / "nothing").glob("*.png"), tmp_path / "out")
    for wrong, why in (
        ({"pictures": []}, "There is nothing to score"), ({"pictures": None}, "Pictures are a folder, paths"),
        ({"pictures": [Image.new("RGB", (16, 16))]}, "texts or paths"), ({"groups": 5}, "given by its name"),
        ({"prompt": None}, "must be text"),
    ):  # fmt: skip
        with pytest.raises(GudaError, match=why):
            guda_core.attribute_many(**{"pictures": folder, "out": tmp_path / "out", **wrong})
    assert hash(Named("a", None)) == hash(Named("a", None))  # so a process loads it once for all its parts


def test_workers_are_not_asked_for_a_method_that_they_cannot_know(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "in", 1)
    METHODS.add("random", Method)
    script = ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    try:
        many._check_known(["random", "clip"], on_ray=False)  # a script's, which workers run again
        with pytest.raises(OptionError, match=r"do not know 'random', which was added .* installed on all machines\."):
            guda_core.attribute_many(folder, tmp_path / "out", methods="random", ray="auto")
        monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # of a notebook
        with pytest.raises(
            OptionError, match=r"do not know 'random', .* or add it in a script and call this from there"
        ):
            guda_core.attribute_many(folder, tmp_path / "out", methods=["clip", "random"], workers=1)
        many._check_known(["clip"], on_ray=False)
    finally:
        METHODS.remove("random")
    assert not METHODS.added and not (tmp_path / "out").exists()


def test_a_models_path_is_written_out_for_another_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    there = [pickle.loads(pickle.dumps(Named(name, "artists"))) for name in ("mine", "emoji", "user/name", None)]
    assert there == [Named(name, "artists") for name in (str(tmp_path / "mine"), "emoji", "user/name", None)]


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    folder_of(tmp_path / "pictures", 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(many, "Named", lambda model, groups: LightService)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    (example,) = re.findall(r"```python\n(import logging\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, PAGE.name, "exec"), {})
    assert capsys.readouterr().out.startswith("3 0\n") and (tmp_path / "results" / "summary.html").is_file()
