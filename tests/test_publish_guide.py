"""docs/how-to/publish-a-space.md as a reader follows it: every command runs, on three artists and a tiny model. What
uploads copies into a hub on this machine; the app is built, not served."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import yaml

from experiments import space
from guda_core.cli import start
from guda_core.ui import build_ui
from guda_core.unlearning import health
from tests.loopback_hub import Hub, loopback_hub
from tests.own_pictures import guda, paint
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-to" / "publish-a-space.md").read_text(encoding="utf-8")
IDS = ("ann-lee", "dee", "group-d76f9f")
FEW = {"unlearn": ["--steps", "1", "--batch", "1"], "attribute": ["--effort", "quick"]}
CLONE = "../space"
RUN_THE_SPACE = "python -m experiments.space --run"  # minutes; `experiments.space` itself runs


def commands() -> list[list[str]]:
    found = re.findall(r"^ *```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for part in found for line in part.splitlines() if line.strip()]


def place(hub: Hub, words: list[str], home: Path) -> None:
    """What `hf` does on the hub."""
    if words[1:4] == ["repos", "create", "USER/SPACE"]:
        assert words[4:] == ["--type", "space", "--sdk", "gradio", "--flavor", "zero-a10g"]
    elif words[1] == "upload" and words[3] == CLONE:
        assert words[2] == "USER/SPACE" and words[4:] == ["--repo-type", "space", "--delete", "*"]
    else:
        assert words[1:3] == ["upload", "USER/artists"] and words[4:] == ["--delete", "*"]
        folder = home / words[3].removeprefix("~/guda/").replace("MODEL", "tiny")
        assert (folder / "README.md").is_file()
        names = [p.name for p in folder.rglob("*") if p.is_file()]
        assert not [n for n in names if n.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".jsonl"))]
        hub.upload("USER/artists", folder, delete=True)


def app(service_home: str, monkeypatch) -> None:
    """What `guda app --home` serves."""
    monkeypatch.setenv("GUDA_HOME", service_home)
    service = start._service(None, None)
    assert service.model_name == "tiny" and tuple(service.group_set.groups) == IDS and not service.banner
    assert {"guda", "clip"} <= set(service.methods()) and build_ui(service).title.startswith("tiny: ")


def test_every_command_of_the_page_runs_on_stand_ins(tmp_path, home, pictures, monkeypatch):
    for name in ("José Núñez", "Bo Chan", "Fay_Wu"):
        shutil.rmtree(pictures / name)
    save_tiny(tmp_path / "tiny", small=True)
    paint(tmp_path / "picture.png", 1, 3)
    monkeypatch.chdir(tmp_path)
    few = health.HealthConfig(pictures=1, held_out=3, strata=4)
    monkeypatch.setattr(health, "HealthConfig", lambda: few)
    ran, told = [], {}
    with loopback_hub(tmp_path) as hub:
        for words in commands():
            ran.append(" ".join(words[:2]))
            if words[0] == "hf" and words[1] == "spaces":
                (named,) = [w for w in words if w.startswith("GUDA_HOME=")]
                told["space"] = named.removeprefix("GUDA_HOME=")
            elif words[0] == "hf":
                place(hub, words, home)
            elif words[0] == "git":
                assert words[1:] == ["clone", ".", CLONE] and space.problems(ROOT) == []
            elif words[0] == "python":
                assert words[1:3] == ["-m", "experiments.space"] and " ".join(words) in (
                    RUN_THE_SPACE,
                    RUN_THE_SPACE[:-6],
                )
            elif words[1] == "app":
                app(words[-1], monkeypatch)
            else:
                words = [str(tmp_path / "tiny") if w == "NAME" else w for w in words[1:]]
                if "--model-on-hub" in words:  # the other of two ways: the card alone changes, and back
                    guda(*words)
                    card = yaml.safe_load((home / "published/tiny/artists/models/tiny.yaml").read_text())["tiny"]
                    assert (card["source"], card["path"]) == ("hub", "USER/MODEL")
                    words = [*words[:-2], "--with-model"]
                told[words[0]] = guda(*words, *FEW.get(words[0], []))
        assert {"guda groups", "guda unlearn", "guda assets", "guda attribute", "guda app", "hf upload"} <= set(ran)
        assert "Ready to publish" in told["unlearn"] and "Without" not in told["unlearn"]
        assert "Ann Lee" in told["attribute"] and told["space"] == "hub:USER/artists"
        app(told["space"], monkeypatch)
        assert any(p.startswith("/cdn/USER/artists/") for p in hub.asked)


def test_the_page_names_a_torch_that_zerogpu_has():
    assert re.findall(r"torch==([\d.]+)", PAGE) == [space.ZERO_TORCH]
