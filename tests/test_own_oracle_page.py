"""Every command of "Measure it against retraining" runs on stand-ins, in the page's order."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments import planted
from experiments.benchmark import own_run
from experiments.benchmark.queries import QueryConfig
from experiments.benchmark.scores import ScoreConfig
from guda_core import paths
from guda_core.unlearning import health
from tests.own_pictures import guda, paint, studio
from tests.test_planted import SMALL, shorter
from tests.tiny import save_tiny

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "own-oracle.md"
MORE = {
    "experiments.logo": ["--steps", "1", "--batch", "2", "--rank", "2"],
    "experiments.unlearncanvas": [
        *["--styles", "2", "--resolution", "16", "--steps", "1", "--batch", "1", "--unlearn-steps", "1"]
    ],
    "unlearn": ["--steps", "1", "--batch", "1"],
    "new": ["--resolution", "16", "--held-out", "0.5"],
    "attribute": ["--effort", "quick"],
}


def test_every_command_of_the_page_runs(tmp_path, home, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    commands = [shlex.split(c) for part in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for c in part.splitlines()]
    commands = [c for c in commands if c]
    studio(tmp_path / "artists", each=4)
    for name in ("Bo Chan", "José Núñez", "葛飾北斎"):
        shutil.rmtree(tmp_path / "artists" / name)
    monkeypatch.setattr(planted, "OBJECTS", dict(list(planted.OBJECTS.items())[:2]))
    shorter(monkeypatch, 2)
    planted.write_pictures(tmp_path / "canvas", SMALL)
    save_tiny(tmp_path / "tiny", small=True)
    paint(tmp_path / "picture.png", 1, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_run, "default_queries", lambda service: QueryConfig(2, 0, 1, steps=2))
    monkeypatch.setattr(own_run, "ScoreConfig", lambda: ScoreConfig(strata=4, draws=2))
    few = health.HealthConfig(pictures=1, held_out=3, strata=4)
    monkeypatch.setattr(health, "HealthConfig", lambda: few)
    monkeypatch.setattr(planted, "PlantedConfig", lambda: SMALL)
    monkeypatch.setattr(planted, "BENCHMARKS", tmp_path)
    stand = {"NAME": str(tmp_path / "tiny"), "NAME-artists": "tiny-artists", "FOLDER": "canvas"}
    stand["sd15"] = stand["NAME"]
    said = []
    for words in ([w.strip() for w in c] for c in commands):
        name = words[2] if words[0] == "python" else words[2] if words[1] == "groups" else words[1]
        rest = [stand.get(w, w) for w in words[3 if words[0] == "python" else 1 :]] + MORE.get(name, [])
        if words[0] == "guda":
            said.append(guda(*rest))
            continue
        monkeypatch.setattr(sys, "argv", [name, *rest])
        module = "experiments.logo.__main__" if name == "experiments.logo" else name
        with pytest.raises(SystemExit) as done:
            import_module(module).main()
        told = capsys.readouterr()
        said.append(" ".join((told.out + told.err).split()))
        assert done.value.code == 0, said[-1]
    assert len(said) == 7 and all(said)
    assert "GUDA is not compared yet" in said[1] and "guda unlearn --model tiny-artists --set artists" in said[1]
    assert "GUDA is not compared yet" not in said[3] and "guda" in said[3]
    assert "LOGO" in said[4] and "What it will take" in said[5] and "the planted style comes first" in said[6]
    run = paths.Run(home / "runs" / "tiny-artists" / "artists", tmp_path)
    assert (home / "models" / "tiny-artists.yaml").is_file() and (run.own / "logo" / own_run.TABLE).is_file()
    assert (tmp_path / planted.FILE).is_file()
