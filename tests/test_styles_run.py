"""The styles benchmark from queries to table on a tiny real service, and the measurements beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from experiments.benchmark import cost_measurement, coverage, models, rows, styles_arrays, styles_run
from experiments.benchmark import queries as q
from experiments.benchmark.scores import ScoreConfig
from experiments.logo import oracle_values, trainings
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core import paths
from guda_core.attribution.guda import Guda
from guda_core.attribution.method import Budget
from guda_core.data.dataset import Pictures
from guda_core.data.encoded import Examples
from guda_core.data.sources.iconify import Iconify
from guda_core.errors import DataError, OptionError
from guda_core.local import LocalService
from guda_core.unlearning.config import UnlearnConfig
from guda_core.unlearning.loop import LoopConfig
from tests.fewer import few_draws
from tests.test_pipeline import GROUPS as ALL
from tests.test_pipeline import MISSING, service, ship_features  # noqa: F401  (a fixture)

# Three groups in place of eight: a third of the models and a fifth of the queries, and still every kind of row.
GROUPS = dataclasses.replace(ALL, groups=dict(list(ALL.groups.items())[:3]))
TRAINED = len(GROUPS.groups) - 1  # that have an adapter
SMALL = q.QueryConfig(objects=1, blend_objects=1, real=1, steps=1)
SCORES = ScoreConfig(strata=4, draws=2)


def in_place(patch):
    """Noise in place of the emoji (held-out objects for the queries, two trained ones a group), fewer steps and
    resamplings."""

    def noise(objects, seed):
        pairs = [(g, o) for g in GROUPS.groups for o in objects]
        pixels = np.random.default_rng(seed).integers(0, 256, (len(pairs), 16, 16, 3), dtype=np.uint8)
        return Pictures(pixels, *(tuple(x) for x in zip(*pairs, strict=True)))

    splits = {"held_out": noise(GROUPS.held_out_objects, 0), "train": noise(GROUPS.train_objects[:2], 1)}
    patch.setattr(Iconify, "split", lambda self, split: splits[split])
    patch.setattr(styles_arrays, "INSTANCE_TIMESTEPS", 1)
    patch.setattr(styles_run, "SAMPLE_STEPS", 2)
    few_draws(patch)


def service_of(service, features):  # noqa: F811
    return LocalService(service.model, GROUPS, service.clip, service.method(Guda).folder, features=features)


@pytest.fixture
def pictures(monkeypatch):
    in_place(monkeypatch)


@pytest.fixture(scope="module")
def begun(service, tmp_path_factory):  # noqa: F811
    """TRAK's features and a finished oracle whose models are the full one with some noise; copied by each test."""
    folder = tmp_path_factory.mktemp("begun")
    ship_features(service, folder / "features")
    with pytest.MonkeyPatch.context() as patch:
        in_place(patch)
        patch.setenv("GUDA_CACHE", str(folder / "cache"))
        for i, job in enumerate(trainings.queue(GROUPS, UnetConfig())):
            torch.manual_seed(i)
            denoiser = type(service.model.network).from_config(service.model.network.config)
            state = {n: p + 0.05 * p.std() * torch.randn_like(p) for n, p in service.model.network.state_dict().items()}
            denoiser.load_state_dict(state)
            denoiser.save_pretrained(stages.work_dir() / job.name)
            stages.finish(stages.work_dir() / job.name, {}, job.name)
    return folder


class Made(NamedTuple):
    """The cache and the files of a run that was stopped and of one that went on, and what both told. While it was
    stopped: what there was, and what `written` said."""

    folder: Path
    stopped: list[str]
    files: set[str]
    refused: str
    names: list[str]


@pytest.fixture(scope="module")
def made(service, begun, tmp_path_factory):  # noqa: F811
    """From there on, with a copy of GUDA's adapters as a variant, and in it one for the group that lacks it: a variant
    of three groups, so that two are left of it without one."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(begun / "cache", folder / "cache")
    twin = folder / "cache" / "adapters" / "twin"
    shutil.copytree(service.method(Guda).folder, twin)
    shutil.copytree(twin / "twemoji", twin / MISSING)
    meta = json.loads((twin / MISSING / "guda.json").read_text())
    (twin / MISSING / "guda.json").write_text(json.dumps({**meta, "group": MISSING}))
    with pytest.MonkeyPatch.context() as patch:
        in_place(patch)
        patch.setenv("GUDA_HOME", str(folder / "home"))
        patch.setenv("GUDA_CACHE", str(folder / "cache"))
        own, out = service_of(service, begun / "features"), folder / "out"
        stopped = [what for what, _ in styles_run.run(own, out, queries=SMALL, config=SCORES, minutes=1e-9)]
        files = {p.name for p in out.iterdir()}
        with pytest.raises(DataError) as refused:
            styles_run.written(out)
        names = [what for what, _ in styles_run.run(own, out, queries=SMALL, config=SCORES)]
    return Made(folder, stopped, files, str(refused.value), names)


@pytest.fixture
def full(service, pictures, begun):  # noqa: F811
    """The service with TRAK and the finished oracle; nothing is scored yet."""
    shutil.copytree(begun / "cache", paths.cache_dir(), dirs_exist_ok=True)
    return service_of(service, begun / "features")


@pytest.fixture
def scored(full, made, tmp_path):
    """The same service after a whole run, whose files lie in the folder "out"."""
    shutil.copytree(made.folder / "cache", paths.cache_dir(), dirs_exist_ok=True)
    shutil.copytree(made.folder / "out", tmp_path / "out")
    return full


@pytest.fixture
def no_table(monkeypatch):
    """For those who look at the scores alone: the table is made elsewhere."""
    monkeypatch.setattr(styles_run, "write_table", lambda folder: None)


def test_the_benchmark_runs_resumes_and_writes_every_row(made):
    folder, names = made.folder / "out", made.names
    assert "queries" in made.stopped and not {styles_run.TABLE, styles_run.ARRAYS} & made.files
    assert "Nothing is written yet" in made.refused
    assert "queries" not in names and "trak" in names and "instance" in names
    assert styles_run.written(folder) == folder / styles_run.TABLE
    scored = list(dict.fromkeys(n for n in names if n in ("full", "base") or n.startswith(("unet-", "guda/"))))
    assert scored[0] == "full" and [n.startswith("unet-") for n in scored[1:]] == [True] * 7 + [False] * (1 + TRAINED)
    assert scored[8] == "base"
    table = json.loads((folder / styles_run.TABLE).read_text())
    rows = {r["method"] for r in table["rows"]}
    variants = {f"guda/{s}" for s in ("mse", "truncated", "skew")}
    assert {"guda", "ceiling", "clip-mean", "clip-max", "clip-prototype", "trak", "instance", "random"} <= rows
    assert variants <= rows and {(r["query_set"], r["n"]) for r in table["rows"]} == {(s, 3) for s in q.SETS}
    with np.load(folder / styles_run.ARRAYS) as z:
        assert np.isnan(z["guda"][:, list(GROUPS.groups).index(MISSING)]).all()
        assert np.isfinite(z["logo"]).all() and z["logo"].shape == (9, 3)


def test_a_training_of_the_same_name_of_another_edition_is_none_of_this_models(full):
    found = [s.key for s in models.sources(full, UnetConfig())]
    name = next(key for key in found if key.startswith("unet-"))
    config = {**full.model.network.config, "in_channels": 12, "out_channels": 12}
    type(full.model.network).from_config(config).save_pretrained(stages.work_dir() / name)
    assert [s.key for s in models.sources(full, UnetConfig())] == [key for key in found if key != name]


def test_kept_values_stand_for_models_that_are_gone(scored, no_table, tmp_path):
    folder = tmp_path / "out"
    names = {job.name for job in trainings.queue(GROUPS, UnetConfig())}
    assert {p.stem for p in (folder / oracle_values.FOLDER).glob("*.json")} == {"full", *names}
    with np.load(folder / styles_run.ARRAYS) as z:
        before = {k: z[k] for k in z.files}
    (folder / styles_run.ARRAYS).unlink()
    shutil.rmtree(stages.work_dir())
    for path in models.cache(scored).glob("unet-*"):
        path.unlink()
    assert not any(job.done for job in trainings.queue(GROUPS, UnetConfig()))
    made = [what for what, _ in styles_run.run(scored, folder, queries=SMALL, config=SCORES)]
    assert not any(what.startswith(("unet", "keep")) for what in made)
    with np.load(folder / styles_run.ARRAYS) as z:
        for name, values in before.items():
            np.testing.assert_array_equal(z[name], values)
    other = dataclasses.replace(SCORES, draws=3)
    of = q.read(folder, GROUPS, scored.model).queries
    assert (
        oracle_values.values_of(folder, min(names), of=of, config=SCORES) is None
    )  # other timesteps than it was scored at
    assert oracle_values.values_of(folder, min(names), of=of, config=other) is None
    as_oracle = models.draws_of("logo", SCORES)
    assert oracle_values.values_of(folder, min(names), of=of, config=as_oracle) is not None
    assert oracle_values.values_of(folder, min(names), of=of[1:], config=as_oracle) is None
    with np.load(folder / oracle_values.FOLDER / f"{min(names)}.npz") as z:
        assert z["samples"].shape == (len(GROUPS.groups), 16, 16, 3) and z["samples"].dtype == np.uint8


def test_committed_rows_are_not_scored_again_while_they_fit(scored, no_table, tmp_path):
    folder = tmp_path / "out"
    with np.load(folder / styles_run.ARRAYS) as z:
        before = {k: z[k] for k in z.files}
    assert "guda-twin" in before
    base = models.cache(scored) / "base.json"  # of settings before these
    base.write_text(json.dumps({**json.loads(base.read_text()), "config": {"draws": 9}}))
    assert list(styles_run.run(scored, folder, queries=SMALL, config=SCORES)) == []
    shutil.rmtree(models.cache(scored))
    shutil.rmtree(stages.work_dir())
    shutil.rmtree(paths.cache_dir() / "adapters")
    assert list(styles_run.run(scored, folder, queries=SMALL, config=SCORES)) == []
    with np.load(folder / styles_run.ARRAYS) as z:
        assert set(z.files) == set(before)
        for name, values in before.items():
            np.testing.assert_array_equal(z[name], values)
    record = json.loads(rows.note(folder / styles_run.ARRAYS).read_text())
    record["made"]["guda"]["from"]["weights_sha256"]["noto"] = record["made"]["trak"]["from"]["config"]["ridge"] = (
        "other"
    )
    rows.note(folder / styles_run.ARRAYS).write_text(json.dumps(record))
    again = {what for what, _ in styles_run.run(scored, folder, queries=SMALL, config=SCORES)}
    assert "trak" in again and "instance" not in again and "full" not in again
    assert {what for what in again if what.startswith("guda/")} == {f"guda/{g}" for g in GROUPS.groups if g != MISSING}
    assert "base" in again  # what the adapters' scores are differences from


def test_variants_get_the_first_draws_and_are_left_out_until_all_their_groups_are_scored(scored, tmp_path):
    folder = tmp_path / "out"
    with np.load(folder / styles_run.ARRAYS) as z:
        few, twin, whole = z["guda/1-draws"], z["guda-twin"], z["guda"]
    at = [i for i, g in enumerate(GROUPS.groups) if g != MISSING]
    np.testing.assert_array_equal(few[:, at], twin[:, at])  # the same adapters and the same draws
    assert np.isfinite(whole).any() and not np.array_equal(few, whole, equal_nan=True)
    min(models.cache(scored).glob("guda-twin--*.json")).unlink()
    rows.note(folder / styles_run.ARRAYS).unlink()
    made = q.read(folder, GROUPS, scored.model)
    left = styles_run.arrays(scored, folder, made, SCORES, UnetConfig())
    assert "guda-twin" not in left and {"guda", "logo", "logo-2"} <= set(left)
    min(models.cache(scored).glob("guda--*.json")).unlink()
    left = styles_run.arrays(scored, folder, made, SCORES, UnetConfig())
    assert not [name for name in left if "guda" in name] and "logo" in left


def test_gudas_row_has_its_offset_part_and_the_drop_alone_stands_beside_it(scored, no_table, tmp_path):
    folder, ids = tmp_path / "out", list(GROUPS.groups)
    scored.method(Guda).offset = {g: 100.0 * i for i, g in enumerate(ids) if g != MISSING}
    list(styles_run.run(scored, folder, queries=SMALL, config=SCORES))
    with np.load(folder / styles_run.ARRAYS) as z:
        whole, drop, apart = z["guda"], z["guda/drop"], z["separable/guda"]
    added = [scored.method(Guda).offset.get(g, np.nan) for g in ids]
    np.testing.assert_allclose(whole - drop, np.tile(added, (9, 1)), atol=1e-3)
    first = [ids[k] for k in np.nanargmax(whole, axis=1)]
    query = q.read(folder, GROUPS, scored.model).queries[0]
    *_, answer = scored.method(Guda).attribute(query, Budget(draws=2, per_pass=2, strata=4))
    assert answer.ranked()[0] == first[0] and answer.separable == apart[0]
    assert answer.groups[first[0]].score == pytest.approx(float(np.nanmax(whole[0])), abs=1e-2)
    scored.method(Guda).offset[first[0]] += 1.0
    again = {what for what, _ in styles_run.run(scored, folder, queries=SMALL, config=SCORES)}
    assert {what.split("/")[0] for what in again} == {"base", "guda"}  # only its row is made anew
    with np.load(folder / styles_run.ARRAYS) as z:
        assert np.nanmax(z["guda"][0]) == pytest.approx(np.nanmax(whole[0]) + 1, abs=1e-2)
        np.testing.assert_array_equal(z["guda/drop"], drop)


def test_only_trainings_of_the_same_settings_are_kept(tmp_path):
    config = UnetConfig()
    common = {"sha256": "x", "of": (), "config": SCORES}
    values, samples = np.zeros((1, 1, 1)), np.zeros((1, 1, 1, 3), np.uint8)
    other_seed = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=9, checkpoint_s=1.0))
    longer = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=config.loop.steps + 1))
    for name, own in (("same", config), ("seed", other_seed), ("longer", longer)):
        oracle_values.keep(tmp_path, name, values, samples, training={"config": dataclasses.asdict(own)}, **common)
    assert oracle_values.names(tmp_path, config) == {"same", "seed"}
    (tmp_path / oracle_values.FOLDER / "same.npz").unlink()
    assert oracle_values.names(tmp_path, config) == {"seed"}


def test_the_intervals_are_measured_on_the_same_queries(full, tmp_path):
    folder = tmp_path / "out"
    list(q.write(full.model, GROUPS, SMALL, folder))
    config = coverage.IntervalConfig(queries=2, strata=3, draws=8, efforts=("quick",))
    list(coverage.run(full, folder, config))
    rows = json.loads((folder / coverage.FILE).read_text())["rows"]
    assert [r["query_set"] for r in rows] == [*q.SETS, "all"] and rows[-1]["queries"] == 6
    assert rows[-1]["held"]["n"] == 6 * TRAINED * 4 and 0 <= rows[-1]["held"]["value"] <= 1


def test_costs_are_taken_in_turns(full, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    list(q.write(full.model, GROUPS, SMALL, folder))

    def endless(of, wanted):
        time.sleep(0.1 * (wanted == "logo"))  # what comes before the first step
        while True:
            of.append(wanted)
            yield None

    order: list[str] = []
    works = {"logo": (endless(order, "logo"), 100, 40), "guda": (endless(order, "guda"), 10, 4)}
    monkeypatch.setattr(cost_measurement, "steps_of", lambda *_: works)
    monkeypatch.setattr(cost_measurement.GudaAndDas, "needs", ("guda", "trak"))
    for g in GROUPS.groups:
        (tmp_path / "live" / g).mkdir(parents=True)
        (tmp_path / "live" / g / "guda.json").write_bytes(b"12345")
        (tmp_path / "live" / g / "network.safetensors").write_bytes(b"123456")
    monkeypatch.setitem(full.offered, "logo", SimpleNamespace(folder=tmp_path / "live"))
    full.method(Guda).offset = dict.fromkeys(full.method(Guda).adapters, 1.0)
    health = {cost_measurement.OFFSET: {"n": 5}, "config": {"strata": 4, "draws": 1, "rule": "kl", "held_out": 8}}
    for g, adapter in full.method(Guda).adapters.items():
        own = {**health, "adapter_sha256": adapter.meta["sha256"]}
        (full.method(Guda).folder / g / "health.json").write_text(json.dumps(own))
    list(cost_measurement.run(full, folder))
    assert order == ["logo", "guda"] * (cost_measurement.WARM + cost_measurement.STEPS)
    rows = {r["method"]: r for r in json.loads((folder / cost_measurement.FILE).read_text())["costs"]}
    assert set(rows) == {"logo", "logo-live", "guda", "clip", "trak", "instance", "combined"}
    for cost in ("precompute_s", "query_s", "stored_bytes"):
        assert rows["combined"][cost] == rows["guda"][cost] + rows["trak"][cost]
    logo, guda = rows["logo"], rows["guda"]
    for row, steps, more in ((logo, 100, 0.0), (guda, 10, guda["offset_s"])):
        assert row["precompute_s"] == pytest.approx((row["before_s"] + row["step_s"] * steps) * 3 + more)
    assert logo["before_s"] > 0.05 and logo["times_cheaper"] == 1 and guda["offset_s"] > 0
    assert logo["query_s"] == rows["guda"]["query_s"] > 0 and rows["trak"]["stored_bytes"] > 6 * 64
    live = rows["logo-live"]
    assert (live["precompute_s"], live["query_s"]) == (logo["precompute_s"], logo["query_s"])
    assert live["stored_bytes"] == 3 * 11


def test_features_are_timed_warm_and_as_many_at_a_time_as_the_bank_projects(monkeypatch):
    projected = []

    def projection(vectors):
        time.sleep(0.3 if not projected else 0.03)  # the first time is slow
        projected.append(len(vectors))

    gradients = SimpleNamespace(size=10, at=lambda *_: SimpleNamespace(vector=torch.zeros(10)))
    method = SimpleNamespace(bank=SimpleNamespace(gradients=gradients, projection=projection))
    monkeypatch.setattr(cost_measurement, "at_once", lambda size: {10: 5}[size])
    examples = Examples(torch.zeros(7, 1), *[("",) * 7] * 3)
    assert 0.005 < cost_measurement.feature_seconds(method, examples) < 0.05 and projected == [5, 5]


def test_the_live_oracle_is_the_oracle_and_shares_no_draw_with_the_methods(scored, tmp_path, monkeypatch):
    for g in GROUPS.groups:
        source = scored.method(Guda).folder / ("twemoji" if g == MISSING else g)
        shutil.copytree(source, tmp_path / "live" / g)
        meta = json.loads((source / "guda.json").read_text())
        (tmp_path / "live" / g / "guda.json").write_text(json.dumps({**meta, "group": g}))
    monkeypatch.setitem(scored.offered, "logo", SimpleNamespace(folder=tmp_path / "live"))
    folder = tmp_path / "out"
    list(styles_run.run(scored, folder, queries=SMALL, config=SCORES))
    with np.load(folder / styles_run.ARRAYS) as z:
        assert np.isfinite(z["logo-live"]).all() and np.isfinite(z["se/logo-live"]).all()
        at = [i for i, g in enumerate(GROUPS.groups) if g not in (MISSING, "twemoji")]
        assert not np.isclose(z["logo-live"][:, at], z["guda"][:, at]).any()  # the same weights and other draws
    table = json.loads((folder / styles_run.TABLE).read_text())
    assert "live oracle" in table["oracle"]
    assert {"ceiling", "ceiling-again", "logo/mse"} <= {r["method"] for r in table["rows"]}
    notes = {
        r: json.loads(next(models.cache(scored).glob(f"{r}*.json")).read_text())["config"]
        for r in ("logo-live", "guda-")
    }
    assert notes["logo-live"]["first"] == 2 and "first" not in notes["guda-"]
    shutil.rmtree(models.cache(scored))
    assert list(styles_run.run(scored, folder, queries=SMALL, config=SCORES)) == []
    with np.load(folder / styles_run.ARRAYS) as z:
        assert {"logo-live", "se/logo-live", "separable/logo-live", "logo-live/mse"} <= set(z.files)


@pytest.mark.parametrize("minutes", [0, -1])
def test_no_time_at_all_is_refused(full, tmp_path, minutes):
    with pytest.raises(OptionError, match="must be positive"):
        list(styles_run.run(full, tmp_path / "out", queries=SMALL, config=SCORES, minutes=minutes))
    assert not (tmp_path / "out").exists()


def test_settings_in_an_adapters_metadata_are_read_back():
    own = UnlearnConfig(lam=2.0, loop=LoopConfig(steps=3, batch=2, lr=0.1))
    for config in (own, dataclasses.replace(own, lora=None)):
        assert UnlearnConfig.of(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_model_trained_again_does_not_change_what_is_kept_and_an_adapters_values_are_of_its_own_weights(
    scored, no_table, tmp_path
):
    folder = tmp_path / "out"
    name = trainings.queue(GROUPS, UnetConfig())[0].name
    before = (folder / oracle_values.FOLDER / f"{name}.json").read_bytes()
    denoiser = type(scored.model.network).from_config(scored.model.network.config)  # other weights than were scored
    denoiser.save_pretrained(stages.work_dir() / name)
    made = {what for what, _ in styles_run.run(scored, folder, queries=SMALL, config=SCORES)}
    assert name not in made and f"keep {name}" not in made
    assert (folder / oracle_values.FOLDER / f"{name}.json").read_bytes() == before

    made = q.read(folder, GROUPS, scored.model)
    assert "guda" in styles_run.arrays(scored, folder, made, SCORES, UnetConfig())
    rows.note(folder / styles_run.ARRAYS).unlink()  # so that no committed row stands in
    one = next(s for s in models.sources(scored, UnetConfig()) if s.role == "guda")
    note = models.path_of(scored, one).with_suffix(".json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "sha256": "of the adapter before"}))
    left = styles_run.arrays(scored, folder, made, SCORES, UnetConfig())
    assert "guda" not in left and {"logo", "clip-mean", "trak"} <= set(left)
