"""The oracle of one's own: what is fine-tuned, what is written, and that the product finds it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.benchmark import own_run
from experiments.benchmark import queries as q
from experiments.benchmark.result_tables import LIVE, ORACLE
from experiments.benchmark.scores import ScoreConfig
from experiments.logo import fine_tuning, oracle_jobs, own_command, own_plan
from experiments.logo.__main__ import main as logo
from experiments.logo.fine_tuning import settings_for
from experiments.logo.oracle_jobs import AskedOracle
from experiments.logo.own_models import Job, OwnOracle
from guda_core.attribution.calibration import read_calibration
from guda_core.attribution.guda import Guda
from guda_core.attribution.logo import Logo
from guda_core.data.groups import load_group_set
from guda_core.errors import OptionError, TrainingError
from guda_core.jobs.job import perform
from guda_core.local import load_service
from guda_core.unlearning import adapters, health, switching
from guda_core.unlearning.run import Forgetting
from tests.own_pictures import guda, studio
from tests.tiny import save_tiny
from tests.tiny_families import save_family

SMALL = q.QueryConfig(objects=2, blend_objects=0, real=2, steps=2)
FEW = ScoreConfig(strata=4, draws=2)


@pytest.fixture
def made(tmp_path, home):
    """A set of three artists, and a tiny model."""
    studio(tmp_path / "artists")
    for name in ("Bo Chan", "José Núñez", "葛飾北斎"):
        shutil.rmtree(tmp_path / "artists" / name)
    guda("groups", "new", tmp_path / "artists", "--name", "artists", "--resolution", "16", "--held-out", "0.5")
    save_tiny(tmp_path / "tiny", small=True)
    return tmp_path / "tiny"


def oracle(model, *, seeds=(3,), name=None, groups=(), **changes) -> OwnOracle:
    base = Forgetting(load_group_set("artists"), model=str(model))
    return OwnOracle(
        base, settings_for(base.model, **{"steps": 3, "batch": 4, **changes}), seeds=seeds, groups=groups, name=name
    )


def run(own: OwnOracle) -> list[str]:
    """Work through the queue; the names of what was trained, in order."""
    return list(dict.fromkeys(job.name for job, _ in own.work()))


def trained(own: OwnOracle, group: str | None, seed: int = 3) -> dict[str, torch.Tensor]:
    """What a training gives, made apart from the queue."""
    steps = fine_tuning.fine_tune(own.base, own.config_of(Job(group, seed)), exclude=group)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_with_loras_the_products_method_answers_from_just_the_retrained_models(made, home):
    own = oracle(made, rank=2, seeds=(3, 4), groups=["dee", "ann-lee"])
    assert [j.name for j in own.queue()] == [
        "full-s3", "without-ann-lee-s3", "without-dee-s3", "without-ann-lee-s4", "without-dee-s4",
    ]  # fmt: skip
    assert run(own) == [j.name for j in own.queue()] and not own.missing() and run(own) == []
    service = load_service("tiny-artists", fall_back=False)
    assert service.group_set.id == "artists" and "logo" in service.not_offered  # a group has no retrained model
    assert service.model.sha256 == (own.tuned() or {})["sha256"] != own.base.model.sha256
    first, full = trained(own, "dee"), trained(own, None)
    before = own.base.model.network.state_dict()
    for folder, factors in ((own.oracle_folder(), first), (own.oracle_folder(second=True), trained(own, "dee", 4))):
        adapter = adapters.load(folder / "dee", model=service.model, group="dee", group_set="artists")
        with switching.applied(service.model.network, adapter):
            now = {n: p.clone() for n, p in service.model.network.state_dict().items()}
        for name in (n for n in factors if n.endswith("lora_A.weight")):
            a, b = factors[name].float().flatten(1), factors[name.replace("lora_A", "lora_B")].float().flatten(1)
            weight = name.replace(".lora_A.weight", ".weight")
            wanted = before[weight] + (b @ a).reshape(before[weight].shape)
            torch.testing.assert_close(now[weight], wanted, atol=1e-6, rtol=0)
    assert any(not torch.equal(first[n], full[n]) for n in first)


def test_a_whole_network_is_a_model_of_its_own_and_so_are_those_without_a_group(made, home):
    own = oracle(made, whole=True, name="whole")
    run(own)
    service = load_service("whole", fall_back=False)
    assert set(service.offered) == {"guda", "logo"} and not service.model.card.lora
    wanted = trained(own, "dee")
    with service.method(Logo).without("dee"):
        now = service.model.network.state_dict()
        assert all(torch.equal(now[n], wanted[n].float()) for n in wanted)
    assert any(not torch.equal(p, own.base.model.network.state_dict()[n]) for n, p in now.items())


def test_a_training_that_is_stopped_ends_with_the_same_weights(made):
    own = oracle(made, rank=2, steps=6, groups=["dee"])
    wanted = trained(own, None)
    for _, p in own.work():
        if p.step == 3:
            break  # closes the training
    assert own.checkpoint(Job(None, 3)).is_file() and own.tuned() is None
    again = oracle(made, rank=2, steps=6, groups=["dee"])
    steps = [p.step for job, p in again.work() if job.exclude is None]
    assert steps == [4, 5, 6] and not again.checkpoint(Job(None, 3)).exists()
    found = adapters.load(again.folder / "full", model=again.base.model, group="")
    for name in (n for n in wanted if n.endswith("lora_A.weight")):
        a, b = wanted[name].float().flatten(1), wanted[name.replace("lora_A", "lora_B")].float().flatten(1)
        weight = name.replace(".lora_A.weight", ".weight")
        torch.testing.assert_close(found.delta(weight, a.device), (b @ a).reshape(found.shapes[weight]))


def test_other_settings_or_pictures_are_another_model(made):
    run(oracle(made, rank=2, groups=["dee"]))
    with pytest.raises(TrainingError, match=r"other settings: rank 3 \(before: 2\), alpha 3.* --name"):
        oracle(made, rank=3).missing()
    with pytest.raises(TrainingError, match=r"other seed: seed 5 \(before: 3\)\. Use the same again,"):
        oracle(made, rank=2, seeds=(5,)).missing()
    assert len(oracle(made, rank=2).missing()) == 2  # the other groups
    for bad, sentence in (
        ({"name": "emoji"}, "a model 'emoji' already"),
        ({"name": "No Name"}, "cannot name a model"),
        ({"seeds": (3, 3)}, "two different ones"),
        ({"groups": ["x"]}, "There is no group 'x'"),
        ({"whole": True, "rank": 3}, "Leave one of them out"),
    ):
        with pytest.raises(OptionError, match=sentence):
            oracle(made, **bad)


@pytest.mark.parametrize("family", ["sd2", "xl", "sd3"])
def test_every_family_is_trained_on_its_own_target(family, tmp_path, home):
    """With no LoRA yet the loss of the first step is that of the plain model: made again from the definitions."""
    studio(tmp_path / "artists", each=3)
    guda("groups", "new", tmp_path / "artists", "--name", "artists", "--resolution", "16")
    save_family(tmp_path / family, family)
    own = oracle(tmp_path / family, rank=2)
    first = next(p.loss for _, p in own.work())
    model, (items, latents) = own.base.model, own.base.training_pictures()
    g = fine_tuning.step_generator(3, 0)
    at = fine_tuning.epoch_batch(len(items), 4, 0, 3)
    captions = [own.base.captioner.caption(items[int(i)], g) for i in at]
    captions = fine_tuning.drop(captions, 0.1, g)
    t = fine_tuning.stratified_times(4, len(model.schedule), g)
    eps = torch.randn(latents[at].shape, generator=g)
    s = model.schedule
    alpha, sigma = (v[t].float()[:, None, None, None] for v in (s.alpha, s.sigma))
    wanted = eps - latents[at] if family == "sd3" else alpha * eps - sigma * latents[at]
    wanted = eps if family == "xl" else wanted
    with torch.no_grad():
        out = model.predict(alpha * latents[at] + sigma * eps, t, model.embed(captions))
    assert first == pytest.approx(float((out - wanted).square().mean()), rel=1e-4)


@pytest.mark.parametrize("groups", [["a", "b"], ["a"]])
def test_a_weight_that_was_not_written_is_not_told_as_the_models(tmp_path, capsys, groups):
    record = {"groups": groups, "rows": [{"method": "guda"}], "rows_report": [], "calibration": {}}
    record["rows"][0] |= {"query_set": "x", "n": 3}
    record["rows"][0] |= {m: {"value": 0.5, "low": 0.4, "high": 0.6} for m in own_command.METRICS}
    record["calibration"] = {"offset_weight": 0.7, "queries": 9}
    (tmp_path / "logo.json").write_text(json.dumps(record))
    group_set = SimpleNamespace(id="s", groups={"a": None, "b": None})
    own_command.tell(SimpleNamespace(name="m", base=SimpleNamespace(group_set=group_set)), tmp_path / "logo.json")
    said = capsys.readouterr().out
    assert ("The offset's weight is 0.7" in said) == (len(groups) == 2) == ("it was not written" not in said)


def test_everything_is_compared_and_calibrated(made, home, monkeypatch):
    own = oracle(made, rank=2, seeds=(3, 4))
    run(own)
    monkeypatch.setattr(own_run, "default_queries", lambda service: SMALL)
    bench = own_run.OwnBench(
        load_service(own.name, fall_back=False), tuple(own.groups), own.oracle_folder(second=True), "command"
    )
    list(own_run.run(bench, config=FEW))
    table = json.loads((bench.folder / own_run.TABLE).read_text())
    assert "not complete" in table["calibration"]["none"]
    assert {r["method"] for r in table["rows"]} == {"ceiling", "label", "random"}
    monkeypatch.setattr(health, "HealthConfig", lambda: few)
    guda("unlearn", "--model", own.name, "--set", "artists", "--steps", "2", "--batch", "2")
    bench = dataclasses.replace(bench, service=load_service(own.name, fall_back=False))
    asked = {(i.groups[0], i.object) for i in q.read(bench.folder, bench.service.group_set, bench.service.model).items}
    told = adapters.read_health(own.run.adapters / "dee", adapters.read_meta(own.run.adapters / "dee")["sha256"])
    assert told["left_out"] == 6 and len({g for g, _ in asked}) == 3  # two real queries of each group
    again = [what for what, _ in own_run.run(bench, config=FEW)]
    assert set(again) == {f"guda/{g}" for g in own.groups}  # nothing else is scored again
    table = json.loads((bench.folder / own_run.TABLE).read_text())
    rows = {r["method"]: r for r in table["rows"]}
    assert {"guda", "ceiling", "label", "random"} <= set(rows) and rows["guda"]["groups"] == 3
    with np.load(bench.folder / own_run.SCORES) as z:
        drop = z["guda/drop"] if "guda/drop" in z.files else z["guda"]
        means = np.array([_offset(own, g) for g in own.groups])
        half = np.array([i % 2 == 0 for i in range(6)] * 2)
        a, b = _fitted(drop[half], means, z[ORACLE][half])
    if a > 0 and b >= 0:
        told = read_calibration(own.run.calibration, base_sha256=bench.service.model.sha256, group_set="artists")
        assert told is not None and (weight := told.offset_weight) == round(b / a, 2)
        found = load_service(own.name, fall_back=False).method(Guda).offset["dee"]
        assert found == weight * _offset(own, "dee")
    else:
        assert not own.run.calibration.exists() and f"{a:.3g}" in table["calibration"]["none"]
    assert {s.role for s in own_run.sources(bench)} == {"base", LIVE, "guda", "logo-2"}


few = health.HealthConfig(pictures=1, held_out=6, strata=4)


def _offset(own: OwnOracle, group: str) -> float:
    folder = own.run.adapters / group
    return adapters.read_health(folder, adapters.read_meta(folder)["sha256"])[adapters.OFFSET]["mean"]


def _fitted(drop: np.ndarray, means: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Least squares by the normal equations."""
    x, o, y = (v - v.mean(axis=1, keepdims=True) for v in (drop.astype(float), np.tile(means, (len(drop), 1)), truth))
    m = np.array([[(x * x).sum(), (x * o).sum()], [(x * o).sum(), (o * o).sum()]])
    a, b = np.linalg.solve(m, [(x * y).sum(), (o * y).sum()])
    return float(a), float(b)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "3"], "--steps needs --model"),
        (["--live", "--model", "x", "--rank", "2"], "--rank needs --model, without --live"),
        (["--model", "emoji", "--seeds", "a"], "--seeds takes whole numbers"),
        (["--model", "emoji", "--folder", "x"], "--folder and --groups need --live"),
        (["--plan"], "--plan needs --model"),
        (["--model", "emoji", "--plan", "--status"], "--plan makes a step in this process and stops"),
        (["--model", "emoji", "--minutes", "0"], "minutes must be positive"),
    ],
)
def test_options_that_contradict_are_refused(options, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["logo", *options])
    with pytest.raises(SystemExit) as done:
        logo()
    said = capsys.readouterr()
    assert done.value.code == 2 and sentence in " ".join((said.out + said.err).split())


def test_the_plan_counts_what_is_left_and_trains_nothing(made, home, monkeypatch, capsys):
    """Passes by hand: 4 trainings of 5 steps of 3; 2 x 60 drawn pictures of 25 steps."""
    options = ["--model", str(made), "--set", "artists", "--steps", "5", "--batch", "3", "--rank", "2", "--plan"]
    monkeypatch.setattr(sys, "argv", ["logo", *options])
    monkeypatch.setattr(own_plan, "step_seconds", lambda own: 720.0)
    with pytest.raises(SystemExit) as done:
        logo()
    said = capsys.readouterr().out
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in said.splitlines()]
    rows = {r[0]: r[1:] for r in cells if len(r) == 4}
    assert not done.value.code and rows["4 trainings"] == ["0", "60", "4.00"]
    drawn = q.QueryConfig().steps * 2 * 60
    assert rows["60 pictures to draw"][:2] == [f"{drawn:,}", "0"] and "guda unlearn --model tiny-artists" in said
    assert not (home / "runs").exists() and "tiny-artists" not in {p.stem for p in home.rglob("*.yaml")}


def files_of(home):
    """The retrained models' weights, and the full model's, by file."""
    folder = home / "runs" / "tiny-artists" / "artists"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("adapter_model.safetensors"))}


def test_the_trainings_as_jobs_make_what_the_queue_makes(made, home):
    run(oracle(made, rank=2, groups=["dee"]))
    wanted = files_of(home)
    assert len(wanted) == 2
    shutil.rmtree(home / "runs" / "tiny-artists")
    (home / "models" / "tiny-artists.yaml").unlink()
    asked = AskedOracle("artists", str(made), (("batch", 4), ("rank", 2), ("steps", 3)), (3,), ("dee",))
    looked = oracle_jobs.first_job(asked)
    trainings = perform(looked, lambda told: None).answer
    assert [t.name for t in trainings] == ["full-s3", "without-dee-s3"]
    jobs, told = oracle_jobs.jobs_of(asked, trainings), []
    with oracle(made, rank=2, groups=["dee"]).in_hand(trainings[1]):  # as a process without jobs would
        assert [perform(job, told.append).kind for job in jobs] == ["done", "held"]
    assert [perform(job, told.append).kind for job in jobs] == ["found", "done"]
    assert files_of(home) == wanted and any(0 < t.fraction < 1 for t in told)
    assert perform(looked, lambda told: None).answer == []
