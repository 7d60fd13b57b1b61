"""The workspace: the user's own before the shipped one, what is made goes to the user's, and no place depends on the
working directory."""

from __future__ import annotations

import contextlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from guda_core import paths
from guda_core.cli import app
from guda_core.data.groups import list_group_sets, load_group_set
from guda_core.diffusion.cards import find_card

ROOT = Path(__file__).resolve().parent.parent
SET = {
    "id": "mine",
    "name": "My artists",
    "source": {"id": "folder", "path": "pictures"},
    "caption": "{content}, {phrase}",
    "groups": {"ann": {"name": "Ann", "phrase": "by Ann"}, "bo": {"name": "Bo", "phrase": "by Bo"}},
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A workspace with a group set of its own; its pictures lie beside the set's file."""
    folder = tmp_path / "my home"
    for group in ("ann", "bo"):
        (folder / "sets" / "mine" / "pictures" / group).mkdir(parents=True)
        for i in range(3):
            (folder / "sets" / "mine" / "pictures" / group / f"{i}.png").write_bytes(b"read when it is needed")
    (folder / "sets" / "mine" / "group_set.yaml").write_text(yaml.safe_dump(SET), encoding="utf-8")
    monkeypatch.setenv("GUDA_HOME", str(folder))
    return folder


def test_the_users_workspace_comes_first_and_takes_what_is_written(home):
    run = paths.run("emoji", "emoji")
    assert run.adapters / "noto" == paths.SHIPPED_RUN / "adapters" / "noto"
    assert run.adapters.own("noto") == home / "runs" / "emoji" / "emoji" / "adapters" / "noto"
    assert run.adapters / "of-nobody" == run.adapters.own("of-nobody")
    run.adapters.own("noto").mkdir(parents=True)
    assert run.adapters / "noto" == run.adapters.own("noto")
    assert run.adapters / "openmoji" == paths.SHIPPED_RUN / "adapters" / "openmoji"
    assert run.scope == paths.SHIPPED_RUN / "scope.json"
    (run.own / "scope.json").write_text("{}")
    assert run.scope == run.own / "scope.json"


def test_files_of_both_workspaces_are_found_once(home):
    own = paths.run("emoji", "emoji").adapters.own("noto")
    own.mkdir(parents=True)
    (own / "health.json").write_text("{}")
    found = list(paths.run("emoji", "emoji").adapters.glob("*/health.json"))
    assert own / "health.json" in found and len(found) == len({p.parent.name for p in found}) > 1


def test_a_model_and_a_set_that_nothing_was_made_for_have_nothing():
    run = paths.run("sd15", "artists")
    assert not run.features.is_dir() and not run.bank.exists() and run.bank.parent == run.own


def test_own_sets_stand_beside_the_shipped_ones_and_before_one_of_the_same_name(home):
    assert {"mine", "emoji"} <= set(list_group_sets()) and load_group_set("mine").name == "My artists"
    again = {**SET, "id": "emoji", "name": "Mine too"}
    (home / "sets" / "emoji").mkdir()
    (home / "sets" / "mine" / "pictures").rename(home / "sets" / "emoji" / "pictures")
    (home / "sets" / "emoji" / "group_set.yaml").write_text(yaml.safe_dump(again), encoding="utf-8")
    assert load_group_set("emoji").name == "Mine too" and list_group_sets().count("emoji") == 1


def test_own_cards_are_known_and_their_folders_are_meant_from_their_file(home):
    (home / "models").mkdir()
    card = {"kind": "stable_diffusion", "name": "Mine", "source": "folder", "path": "weights", "resolution": 64}
    card |= {"prediction_type": "epsilon", "gpu_dtype": "float32", "group_set": "mine", "licence": "mine"}
    (home / "models" / "mine.yaml").write_text(yaml.safe_dump({"mine": card}), encoding="utf-8")
    assert find_card("mine").path == str(home / "models" / "weights")
    assert find_card("emoji").group_set == "emoji"


def test_a_checkout_stands_for_the_shipped_workspace(monkeypatch):
    monkeypatch.setenv("GUDA_HOME", str(ROOT))
    run = paths.run("emoji", "emoji")
    assert run.own == run.shipped and run.adapters.own("noto") == paths.SHIPPED_RUN / "adapters" / "noto"
    assert "emoji" in list_group_sets()


def test_the_option_comes_before_the_variable_and_the_variable_before_the_card(home, tmp_path, monkeypatch):
    def said(*arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("GUDA_HOME", str(home))  # --home sets it for its own process
        done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
        return done.exit_code, done.output

    assert "OpenMoji" in said("groups", "check")[1]
    monkeypatch.setenv("GUDA_GROUP_SET", "mine")
    assert "My artists" in said("groups", "check")[1]
    assert "OpenMoji" in said("groups", "check", "--set", "emoji")[1]
    assert "There is no group set 'mine'" in said("groups", "check", "--home", str(tmp_path / "other"))[1]
    code, text = said("groups", "check", "--home", str(home / "sets" / "mine" / "group_set.yaml"))
    assert code == 2 and "--home must be a folder" in text


@pytest.mark.parametrize(
    "command",
    [
        ["attribute", "p.png"],
        ["generate", "--prompt", "cat", "--out", "p.png"],
        ["unlearn"],
        ["groups", "check"],
        ["assets", "features"],
        ["assets", "scope"],
        ["assets", "bank"],
    ],
)
def test_every_command_follows_one_rule_for_the_model(command, tmp_path, monkeypatch):
    """`unlearn` used to take emoji whatever GUDA_MODEL said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("guda_core.diffusion.opening.quieten_libraries", lambda: None)
    (tmp_path / "p.png").write_bytes(b"never opened")
    monkeypatch.setenv("GUDA_MODEL", "from-the-variable")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "There is no model 'from-the-variable'" in " ".join(done.output.split())
    if command[0] != "groups":
        done = CliRunner().invoke(app, [*command, "--model", "from-the-option"])
        assert done.exit_code == 2 and "There is no model 'from-the-option'" in " ".join(done.output.split())


def test_no_path_is_taken_from_the_working_directory_or_a_modules_own_place():
    """Only what lies beside its module in the package (a schema, a style sheet) is found by that module; and by the
    program that decodes pictures, which is started by its file, the package."""
    beside = re.compile(r"__file__\)\.(with_name|parent / \"static\")|Path\(__file__\)\.name")
    for path in [*ROOT.glob("guda_core/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number}"
            assert not re.search(r"\bPath\((\"(assets|docs|style_groups)[\"/]|\)|\"\.\")|getcwd|Path\.cwd", line), where
            assert "__file__" not in line or beside.search(line) or path.name in ("paths.py", "apart_worker.py"), where


def test_commands_work_from_an_empty_folder(tmp_path, monkeypatch, capsys):
    """Each as `python -m` runs it."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for command in ("guda_core groups list", "experiments.logo --status", "experiments.space"):
        module, *words = command.split()
        for name in (module, f"{module}.__main__"):
            if not hasattr(sys.modules.get(name), "__path__"):  # a program, which another test may have imported
                monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "argv", [module, *words])
        with contextlib.ExitStack() as stack:
            ended = module == "experiments.space" or stack.enter_context(pytest.raises(SystemExit))
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert ended is True or ended.value.code == 0, command
    assert list(empty.iterdir()) == []
    said = capsys.readouterr().out
    assert "emoji" in said and "kept  unet-without-noto-s3" in said
