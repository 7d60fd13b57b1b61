"""The files for clusters, as far as they can be checked without one: they parse, and their commands are commands."""

from __future__ import annotations

import os
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
    return [
        shlex.split(found)
        for found in re.findall(r"(?m)(?:^|\s)guda (?!-)((?:unlearn|assets|attribute)[^\n|;#]*)", joined)
    ]


def test_the_rayjob_has_what_kuberay_needs():
    job = yaml.safe_load((DEPLOY / "kuberay-rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec = job["spec"]["rayClusterSpec"]
    (words,) = commands(job["spec"]["entrypoint"])
    assert parsed(words)["ray"] == AUTO
    other = re.findall(r"(?m)^ +# (entrypoint: .*)$", (DEPLOY / "kuberay-rayjob.yaml").read_text())
    (words,) = commands(yaml.safe_load(other[0])["entrypoint"])
    assert (scored := parsed(words))["ray"] == AUTO and scored["table"] and (scored["model"], scored["group_set"])
    assert scored["names"][0].startswith("/guda/") and scored["out_folder"].startswith("/guda/")
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
    assert "ray symmetric-run" in text and "--ntasks-per-node=1" in text
    assert re.search(r"export .*RAY_AUTH_MODE=token", text)


@pytest.mark.parametrize("work", [(), ("attribute", "/x/my pictures", "--out", "/x/results", "--table")])
def test_the_slurm_script_runs_the_command_that_is_named(tmp_path, work):
    for name, does in (
        ("scontrol", "echo host1; echo host2"),
        ("srun", 'shift 2; "$@"'),
        ("ray", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "JOB_NODELIST": "host[1-2]",
        "JOB_ID": "7",
        "JOB_NUM_NODES": "2",
        "CPUS_PER_TASK": "4",
        "GPUS_ON_NODE": "1",
    }
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        **{f"SLURM_{k}": v for k, v in slurm.items()},
    }
    command = ["bash", DEPLOY / "slurm.sh", "my model", "artists", *work]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "symmetric-run" and said[said.index("--") + 1] == "guda"
    words = said[said.index("--") + 2 :]
    found = parsed(words)
    assert words[0] == (work[0] if work else "unlearn") and found["ray"] == "host1:20007"
    assert (found["model"], found["group_set"]) == ("my model", "artists")
    assert not work or (found["names"] == ["/x/my pictures"] and found["table"])


def test_the_skypilot_task_runs_the_command_on_the_first_machine(tmp_path):
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert {"name", "num_nodes", "resources", "volumes", "envs", "secrets", "setup", "run"} <= set(task)
    assert task["envs"]["GUDA_HOME"] in task["volumes"] and task["envs"]["RAY_AUTH_MODE"] == "token"
    (words,) = commands(task["run"].replace("$COMMAND", task["envs"]["COMMAND"]))
    assert words[0] == "unlearn" and parsed(words)["ray"] == "$first:6379"
    assert "sky_templates/ray/start_cluster" in task["run"]
    told = re.findall(r'--env COMMAND="(.*)"', (DEPLOY / "skypilot.yaml").read_text())
    scored = parsed(commands(task["run"].replace("$COMMAND", told[0]))[0])
    assert scored["table"] and scored["ray"] == "$first:6379" and scored["model"] == "$MODEL"
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
