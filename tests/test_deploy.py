"""The files for clusters, as far as they can be checked without one: they parse, and their commands are commands."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer.main
import yaml

from experiments.logo.__main__ import logo
from guda_core.cli import app
from guda_core.cli.jobs_progress import AUTO, CommandOnRay

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "how-to" / "many-machines.md"


def parsed(words: Sequence[str]) -> dict[str, object]:
    """The options of a command as our own command line reads them. Raises its usage errors."""
    group = typer.main.get_command(app)
    name, rest = words[0], list(words[1:])
    command = group.get_command(group.make_context("guda", [], resilient_parsing=True), name)  # type: ignore[attr-defined]
    if name == "assets":
        command = command.get_command(command.make_context(name, [], resilient_parsing=True), rest.pop(0))
    assert command is not None, name
    return command.make_context(name, rest).params


def commands(text: str) -> list[list[str]]:
    """The words after `guda` of every command in a script, without what the shell does behind it."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(found) for found in re.findall(r"(?m)(?:^|\s)guda (?!-)((?:unlearn|assets)[^\n|;#]*)", joined)]


def test_the_rayjob_has_what_kuberay_needs():
    job = yaml.safe_load((DEPLOY / "kuberay-rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec = job["spec"]["rayClusterSpec"]
    (words,) = commands(job["spec"]["entrypoint"])
    assert parsed(words)["ray"] == AUTO
    wanted = (ROOT / "requirements-ray.txt").read_text()
    assert f">={spec['rayVersion'].rpartition('.')[0]}," in wanted
    assert f"ray:{spec['rayVersion']}-" in (DEPLOY / "ray.Dockerfile").read_text()
    assert spec["authOptions"] == {"mode": "token"}
    (workers,) = spec["workerGroupSpecs"]
    for pod in (spec["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]):
        (container,) = pod["containers"]
        env = {e["name"]: e["value"] for e in container["env"]}
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"] and volume["persistentVolumeClaim"]["claimName"]
        assert env["GUDA_HOME"] == mount["mountPath"] and env["GUDA_CACHE"].startswith(mount["mountPath"])
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_slurm_script_is_bash_and_starts_one_ray_on_each_machine():
    path = DEPLOY / "slurm.sh"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    text = path.read_text()
    (words,) = commands(text)
    assert parsed(words)["ray"] == "$first:$port" and "ray symmetric-run" in text and "--ntasks-per-node=1" in text
    assert re.search(r"export .*RAY_AUTH_MODE=token", text)


def test_the_skypilot_task_runs_the_command_on_the_first_machine(tmp_path):
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert {"name", "num_nodes", "resources", "volumes", "envs", "secrets", "setup", "run"} <= set(task)
    assert task["envs"]["GUDA_HOME"] in task["volumes"] and task["envs"]["RAY_AUTH_MODE"] == "token"
    (words,) = commands(task["run"])
    assert parsed(words)["ray"] == "$first:6379" and "sky_templates/ray/start_cluster" in task["run"]
    for part in ("setup", "run"):
        script = tmp_path / f"{part}.sh"
        script.write_text(task[part])
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_every_command_of_the_page_is_one():
    text = PAGE.read_text(encoding="utf-8")
    found = [parsed(words) for words in commands("\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)))]
    assert [(f["workers"], f["ray"]) for f in found] == [(4, None), (None, "HOST:6379")]
    for name in re.findall(r"deploy/[\w.-]+", text):
        assert (ROOT / name).is_file(), name


def test_ray_may_stand_without_an_address():
    assert parsed(["unlearn", "--ray"])["ray"] == AUTO == parsed(["unlearn", "--ray", "--again"])["ray"]
    assert parsed(["unlearn", "--ray", "h:1", "--again"])["ray"] == parsed(["unlearn", "--ray=h:1"])["ray"] == "h:1"
    assert parsed(["assets", "features", "--ray"])["ray"] == AUTO and parsed(["unlearn"])["ray"] is None
    with pytest.raises(Exception, match="No such option"):
        parsed(["unlearn", "--rays"])


def test_the_oracle_takes_them_too():
    own = typer.Typer()
    own.command(cls=CommandOnRay)(logo)
    command = typer.main.get_command(own)
    params = command.make_context("logo", ["--model", "m", "--ray", "--seeds", "3"]).params
    assert params["ray"] == AUTO and params["seeds"] == "3"
