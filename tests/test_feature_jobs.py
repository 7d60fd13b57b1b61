"""Gradient features as jobs: what the command makes, found when it is there, made again when it is not just that."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from guda_core.attribution.gradient import feature_plan, projection
from guda_core.attribution.gradient.feature_jobs import AskedFeatures, config_of, feature_jobs
from guda_core.attribution.gradient.feature_plan import MethodPlan
from guda_core.attribution.gradient.features import FeatureConfig, Gradients
from guda_core.attribution.gradient.projection import Projection
from guda_core.attribution.gradient.quantised import META, WEIGHTS
from guda_core.cli import features_plan
from guda_core.diffusion import pace
from guda_core.jobs.job import perform
from guda_core.local import load_service
from guda_core.paths import cache_dir, run
from tests.linear import linear_world
from tests.own_pictures import guda
from tests.own_workspace import own_workspace


@pytest.fixture
def there(home):
    """A workspace whose features of D-TRAK the command has made."""
    own_workspace(home)
    guda("assets", "features", "--methods", "dtrak", "--dim", "16", "--set", "artists", "--model", "brush")
    return run("brush", "artists").features / "dtrak"


def test_a_job_makes_what_the_command_makes(there):
    def kinds(**changes):
        asked = AskedFeatures(**{"group_set": "artists", "model": "brush", "dim": 16, **changes})
        return [perform(job, lambda told: None).kind for job in feature_jobs(asked, "brush", ["dtrak"])]

    def meta():
        return {k: v for k, v in json.loads((there / META).read_text()).items() if k != "date"}

    weights, told = (there / WEIGHTS).read_bytes(), meta()
    assert kinds() == ["found"]
    (there / WEIGHTS).write_bytes(weights[:-1])
    assert kinds() == ["done"] and (there / WEIGHTS).read_bytes() == weights
    assert meta() == told
    assert kinds(dim=8) == ["done"] and kinds(dim=8) == ["found"] and kinds() == ["done"]
    assert kinds(parts=("to_k",)) == ["done"] and kinds(parts=("to_k",)) == ["found"] and kinds() == ["done"]
    told = json.loads((there / META).read_text())
    (there / META).write_text(json.dumps({**told, "pictures_sha256": "of files saved anew, with the same pixels"}))
    assert kinds() == ["done"] and kinds() == ["found"]
    del told["pictures_sha256"]  # as older features
    (there / META).write_text(json.dumps(told))
    assert kinds() == ["found"]


def test_features_of_some_weights_are_made_by_the_command_and_answer(there):
    asked = ("--methods", "dtrak", "--dim", "16", "--set", "artists", "--model", "brush")
    guda("assets", "features", *asked, "--parts", "to_k,to_v")
    told = json.loads((there / META).read_text())
    assert told["config"]["parts"] == ["to_k", "to_v"] and told["command"].endswith("--dim 16 --parts to_k,to_v")
    service = load_service("brush", group_set="artists")
    assert "dtrak" in service.methods()
    bank: Any = service.offered["dtrak"]
    assert list(bank.config.features.parts) == ["to_k", "to_v"]
    assert "none of the parts nothing" in guda("assets", "features", *asked, "--parts", "nothing", code=2)


def test_what_is_there_is_in_no_plan_and_is_not_made_again(there, home, tmp_path):
    asked = ("assets", "features", "--dim", "16", "--set", "artists", "--model", "brush")
    both = ("--methods", "dtrak,trak", "--plan", "--json", tmp_path / "plan.json")

    def planned(*more):
        said = guda(*asked, *both, *more)
        told = json.loads((tmp_path / "plan.json").read_text())
        assert ("there already" in said) == bool(told["there"])
        return told

    first = planned()
    one = first["methods"]["trak"]
    assert first["there"] == ["dtrak"] and first["methods"]["dtrak"] == {
        "gradients": 0,
        "seconds": 0.0,
        "disk_bytes": 0,
    }
    assert first["gradients"] == one["gradients"] > 0 and first["encode_s"] > 0
    assert planned("--dim", "8")["there"] == planned("--parts", "to_k")["there"] == []
    weights = (there / WEIGHTS).stat().st_mtime_ns
    said = guda(*asked, "--methods", "dtrak,trak")
    assert f"There already: {there}" in said and f"Written: {there.parent / 'trak'}" in said
    assert (there / WEIGHTS).stat().st_mtime_ns == weights
    everything = planned()
    assert everything["there"] == ["dtrak", "trak"] and everything["seconds"] == everything["disk_bytes"] == 0
    path = home / "sets" / "artists" / "group_set.yaml"
    path.write_text(path.read_text().replace("by Dee", "in the manner of Dee"))
    assert planned()["there"] == []  # other captions are other features


# What it will take


def test_the_plan_is_passes_times_what_one_takes_and_stays_with_the_disk(monkeypatch):
    """A clock on which encoding takes 2 s, a pass with gradients 3 s, and a block of the projection 0.5 s."""
    linear = linear_world()
    now, model = [0.0], linear.model
    model.card.resolution, model.latent_shape = 8, (1, 2, 2)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])

    def slow(owner, name, seconds):
        plain = getattr(owner, name)

        def call(*args):
            now[0] += seconds(args) if callable(seconds) else seconds
            return plain(*args)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(model, "encode", lambda pixels: now.__setitem__(0, now[0] + 2.0), raising=False)
    slow(Gradients, "at", lambda args: 3.0 * args[0].config.timesteps)
    slow(Projection, "_made", 0.5)
    monkeypatch.setattr(projection, "BLOCK", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(feature_plan, "at_once", lambda size: 5)
    size = Gradients(model, FeatureConfig()).size
    configs = {"one": FeatureConfig(timesteps=2, dim=8), "two": FeatureConfig(timesteps=1, dim=0)}
    plan = feature_plan.make_plan(model, configs, 12)
    blocks = -(-size // 2)
    assert plan.encode_s == 24.0 and plan.pass_s == 3.0
    assert plan.methods["one"] == MethodPlan(24, 24 * 3.0 + 3 * blocks * 0.5, 12 * (4 * 8 + 4 + 8 + 8))
    assert plan.methods["two"] == MethodPlan(12, 12 * 3.0, 12 * (4 * size + 4 + size + 8))
    assert plan.seconds == 24.0 + sum(m.seconds for m in plan.methods.values())
    told = plan.to_json()
    assert told["gradients"] == 36 and told["seconds"] == plan.seconds and told["disk_bytes"] == plan.disk_bytes


def test_the_disk_that_is_planned_is_what_the_features_take(there):
    card = run("brush", "artists")
    service = load_service("brush", group_set="artists")
    config = config_of("dtrak", 16).features
    n = len(json.loads((there / META).read_text())["groups"])
    planned = feature_plan.make_plan(service.model, {"dtrak": config}, n).methods["dtrak"].disk_bytes
    kept = [*cache_dir().rglob("*.npy"), card.features / "dtrak" / WEIGHTS]
    heads = 128 * 2 + 1000  # of two .npy files and a safetensors file
    assert planned <= sum(p.stat().st_size for p in kept) <= planned + heads


def test_what_takes_long_is_asked_first(home, tmp_path, monkeypatch):
    own_workspace(home)
    asked = ("assets", "features", "--methods", "dtrak", "--dim", "16", "--set", "artists", "--model", "brush")
    out = run("brush", "artists").features / "dtrak" / META
    said = guda(*asked, "--plan", "--json", tmp_path / "plan.json")
    n = json.loads((tmp_path / "plan.json").read_text())["pictures"]
    steps = config_of("dtrak", 16).features.timesteps
    assert f"What features of {n} pictures will take" in said and f"{n * steps:,}" in said and not out.exists()
    assert "use it with --plan" in guda(*asked, "--json", tmp_path / "plan.json", code=2)
    assert "leave out --workers" in guda(*asked, "--plan", "--workers", "2", code=2)
    monkeypatch.setattr(features_plan, "ASKED_S", 0.0)
    assert "To begin, add --yes." in guda(*asked, code=2) and not out.exists()
    assert "Written" in guda(*asked, "--yes") and out.exists()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_in_a_terminal_the_answer_decides(home, monkeypatch, answer):
    own_workspace(home, adapters_too=False)
    service = load_service("brush", group_set="artists")
    monkeypatch.setattr(features_plan, "ASKED_S", 0.0)
    monkeypatch.setattr(features_plan.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(features_plan.typer, "confirm", lambda text, **more: answer == "y")
    assert features_plan.agreed(service, ["dtrak"], 16, only=False, json_file=None) == (answer == "y")
