"""Which adapters are wanted, and making them: settings that fit, runs that were killed, other sets' adapters."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from guda_core import held_files
from guda_core.attribution.guda import Guda, offset_of
from guda_core.attribution.method import Budget
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels
from guda_core.diffusion import likelihood
from guda_core.errors import AdapterError, DataError, InHandError, OptionError, TrainingError
from guda_core.paths import SHIPPED_RUN, Layers, cache_dir
from guda_core.records import Query
from guda_core.unlearning import adapter_files, adapters, health, loop, run, switching
from guda_core.unlearning.forget import config_of
from guda_core.unlearning.run import Forgetting
from tests.tiny import save_tiny, save_tiny_unconditional

GROUPS = load_group_set("emoji")
CONFIG = config_of(steps=4, batch=4, rank=2)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Of a tiny model, with two pictures of every group in each split."""
    card = save_tiny(tmp_path / "model")
    rng, n = np.random.default_rng(0), 2 * len(GROUPS.groups)
    pixels = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    pictures = Pictures(pixels, tuple(g for g in GROUPS.groups for _ in "ab"), GROUPS.train_objects[:2] * (n // 2))
    monkeypatch.setattr(run, "chosen_card", lambda name: card)
    monkeypatch.setattr(run, "load_pictures", lambda gs, split, seen: pictures)
    monkeypatch.setattr(health, "load_pictures", lambda gs, split, seen: pictures)
    return Forgetting(GROUPS, folder=tmp_path / "adapters")


def test_an_adapter_made_with_other_settings_does_not_fit(job):
    with pytest.raises(OptionError, match="no group 'z'"):
        job.pending(["z"], config=CONFIG)
    assert job.pending(["noto", "openmoji"], config=CONFIG) == ["noto", "openmoji"]
    for _ in job.unlearn("noto", CONFIG):
        pass
    meta = adapters.read_meta(job.folder / "noto")
    assert meta["group_set"] == "emoji" and meta["settings_sha256"] == CONFIG.sha256() and "clip_sha256" not in meta
    assert job.pending(["noto"], config=CONFIG) == job.pending(["noto"], config=None) == []
    assert job.pending(["noto"], config=CONFIG, again=True) == ["noto"]
    seldom = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, checkpoint_s=5.0))
    assert job.pending(["noto"], config=seldom) == []
    for other, said in (
        (config_of(steps=5, batch=4, rank=2, seed=9), "steps 5 (before: 4), seed 9 (before: 5)"),
        (config_of("esd", steps=4, batch=4, rank=2), "forget loss esd (before: guda_c)"),
    ):
        assert job.pending(["noto", "openmoji"], config=other) == ["noto", "openmoji"]
        assert job.replaced(["noto", "openmoji"], other) == [f"Made again with other settings: {said}. Groups: noto."]
    assert job.replaced(["noto", "openmoji"], CONFIG) == []  # as with --again
    record = {**meta, "group_set": "artists"}
    adapter_files.meta_file(job.folder / "noto").write_text(json.dumps(record))
    assert job.pending(["noto"], config=None) == ["noto"]


def test_what_another_process_has_made_meanwhile_is_not_made_again(job):
    assert [p.step for p in job.unlearn("noto", CONFIG, again=False)] == [1, 2, 3, 4]
    assert list(job.unlearn("noto", CONFIG, again=False)) == []
    assert [p.step for p in job.unlearn("noto", CONFIG)] == [1, 2, 3, 4]


def test_a_stopped_run_goes_on_with_its_own_encoder_alone(job):
    def place(sha256, **changes):
        job.__dict__["clip"] = SimpleNamespace(sha256=sha256)
        return job.checkpoint("noto", config_of(**changes), "0")

    assert place("a", selection="weighted") != place("b", selection="weighted")
    assert place("a", selection="uniform") == place("b", selection="uniform")


def test_a_stopped_run_is_left_where_steps_draw_in_another_way_now(job, monkeypatch):
    steps = job.unlearn("noto", CONFIG)
    assert [next(steps).step, next(steps).step] == [1, 2]
    steps.close()
    monkeypatch.setattr(run, "DRAWS", run.DRAWS + 1)
    assert next(job.unlearn("noto", CONFIG)).step == 1


def test_the_shipped_adapters_fit_the_default_settings():
    shipped = Forgetting(GROUPS)
    assert shipped.config() == config_of() and shipped.folder / "noto" == SHIPPED_RUN / "adapters" / "noto"
    assert shipped.pending([], config=config_of()) == []
    assert shipped.pending([], config=config_of(lr=2e-3)) == list(GROUPS.groups)


def test_a_killed_run_goes_on_and_other_work_does_not_take_it_up(job):
    for _ in job.unlearn("openmoji", CONFIG):
        pass
    whole = adapters.read_meta(job.folder / "openmoji")["sha256"]
    steps = job.unlearn("openmoji", CONFIG)
    assert next(steps).step == 1 and next(steps).step == 2
    steps.close()  # as when the process ends
    kept = list((cache_dir() / "unlearn").iterdir())
    assert len(kept) == 1 and "openmoji" in kept[0].name
    assert job.fits("openmoji", CONFIG)  # what was there before stays until the new one is finished
    other = dataclasses.replace(CONFIG, lam=2.0)
    data = job.training_pictures()[0].sha256()
    paths = {job.checkpoint(g, c, d) for g in ("noto", "openmoji") for c in (CONFIG, other) for d in (data, "x")}
    assert len(paths) == 8 and kept[0] in paths
    assert next(job.unlearn("openmoji", other)).step == 1
    assert [p.step for p in job.unlearn("openmoji", CONFIG)] == [3, 4]
    assert adapters.read_meta(job.folder / "openmoji")["sha256"] == whole and not kept[0].exists()
    timing = json.loads((job.folder / "openmoji" / adapter_files.TIMING).read_text())
    assert timing["from_step"] == 2 and timing["cpu_seconds"] > 0


def test_runs_into_two_folders_do_not_share_a_checkpoint(job, tmp_path):
    """One that is stopped does not go on in another folder, and one that ends leaves the other's alone."""
    other = Forgetting(GROUPS, folder=tmp_path / "others")
    steps = job.unlearn("noto", CONFIG)
    assert [next(steps).step, next(steps).step] == [1, 2]
    steps.close()
    assert [p.step for p in other.unlearn("noto", CONFIG)] == [1, 2, 3, 4]
    assert [p.step for p in job.unlearn("noto", CONFIG)] == [3, 4]
    both = [adapters.read_meta(j.folder / "noto")["sha256"] for j in (job, other)]
    assert both[0] == both[1]


def test_the_rate_counts_both_halves_of_a_step(job, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(seconds)))
    (first, *_) = job.unlearn("noto", CONFIG)
    assert first.rate == 2 * CONFIG.loop.batch / 2  # the clock was read twice since


def test_the_offset_is_measured_however_many_groups_there_are():
    groups = tuple(f"g{i:03}" for i in range(40))
    held = Pictures(np.zeros((80, 4, 4, 3), np.uint8), tuple(g for g in groups for _ in "ab"), ("a", "b") * 40)

    def of(n: int) -> list[str]:
        return [held.groups[i] for i in health.held_out_of_all(held, groups, health.HealthConfig(held_out=n))]

    assert of(80) == list(held.groups) and of(79) == of(40) == list(groups)
    assert len(of(39)) == len(set(of(39))) == 39 and len(set(of(7))) == 7 and set(of(7)) != set(groups[:7])


def test_a_disk_that_is_full_while_health_and_time_are_written_is_told_and_tears_nothing(job, monkeypatch):
    def full(aside, path):
        if path.name in (adapter_files.HEALTH, adapter_files.TIMING):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(aside, path)

    replace_file = held_files.replace_file
    monkeypatch.setattr(held_files, "replace_file", full)
    for _ in job.unlearn("noto", CONFIG):
        pass
    folder = job.folder / "noto"
    assert job.fits("noto", CONFIG) and not (folder / adapter_files.TIMING).exists()
    measured = health.Health(job, health.HealthConfig(pictures=1, held_out=8, strata=4))
    with pytest.raises(AdapterError, match=r"health\.json cannot be written \(No space left on device\)\. Free some"):
        list(measured.measure("noto"))
    assert not list(folder.glob(".part-*")) and measured.unmeasured(["noto"]) == ["noto"]


def test_answers_say_where_a_gpu_had_no_room_to_merge(job, monkeypatch):
    for _ in job.unlearn("noto", CONFIG):
        pass
    pixels = job.pictures().pixels[0]
    query = Query(pixels, job.model.encode(pixels), "", hash_pixels(pixels))
    for free, told in ((None, None), (10**9, None), (0, "live")):
        monkeypatch.setattr("guda_core.unlearning.switching._free", lambda device, free=free: free)
        *_, last = Guda(job.model, GROUPS, job.folder).attribute(query, Budget(draws=1, per_pass=1, strata=4))
        assert last.settings.get("switching") == told


def test_what_a_whole_network_loses_by_rounding_is_said_and_not_looked_for_in_its_health(job, monkeypatch):
    for _ in job.unlearn("noto", config_of(steps=4, batch=4, whole=True)):
        pass
    assert Guda(job.model, GROUPS, job.folder).rounded == {}
    assert adapters.read_meta(job.folder / "noto")["kept"] == pytest.approx(1, abs=0.01)
    sha256 = adapters.read_meta(job.folder / "noto")["sha256"]
    health_file = {"adapter_sha256": sha256, "dtype": "bfloat16"}
    (job.folder / "noto" / "health.json").write_text(json.dumps(health_file))
    loaded, real = [], job.load
    monkeypatch.setattr(job, "load", lambda group: loaded.append(group) or real(group))
    assert health.Health(job).unmeasured(["noto"]) == []
    assert loaded == ["noto"]  # whether it fits; it is not read again for what only a LoRA can be
    for share, left in ((0.276, "28%"), (1e-9, "almost nothing")):
        adapter_files.note(job.folder / "noto", {"kept": share})
        said = (
            f"from the models without each group (in the worst one, {left} is left), so their scores are too near to 0."
        )
        assert said in Guda(job.model, GROUPS, job.folder).caveat()
    adapter_files.note(job.folder / "noto", {"dtype": "bfloat16"})  # made in another type than it runs in now
    assert not Guda(job.model, GROUPS, job.folder).rounded


def test_health_is_measured_once_an_adapter(job):
    for _ in job.unlearn("noto", CONFIG):
        pass
    measured = health.Health(job, health.HealthConfig(pictures=2, held_out=8, strata=4), apart={("twemoji", "x")})
    assert measured.unmeasured(["noto", "openmoji"]) == ["noto"]
    *_, last = measured.measure("noto")
    found = measured.read()["noto"]
    assert last == 1 and measured.unmeasured(["noto"]) == [] and set(health.KINDS) <= set(found)
    assert found["held_out_others_empty"]["n"] == 7 and found["left_out"] == 1
    for _ in job.unlearn("noto", config_of(steps=3, batch=4, rank=2)):
        pass
    assert measured.unmeasured(["noto"]) == ["noto"] and measured.read() == {}


def test_health_is_measured_again_where_other_pictures_of_ones_own_are_held_out(job, tmp_path, monkeypatch):
    for _ in job.unlearn("noto", CONFIG):
        pass
    held, config = job.pictures(), health.HealthConfig(pictures=2, held_out=8, strata=4)
    own = dataclasses.replace(GROUPS, folder=tmp_path / "emoji")

    def asked(held, group_set=own, config=config, apart=()):
        monkeypatch.setattr(health, "load_pictures", lambda gs, split, seen: held)
        return health.Health(Forgetting(group_set, folder=tmp_path / "adapters"), config, apart)

    def is_asked_again(*a, **k):
        return asked(*a, **k).unmeasured(["noto"]) == ["noto"]

    for _ in asked(held).measure("noto"):
        pass
    other, renamed = (dataclasses.replace(held, **c) for c in ({"pixels": 255 - held.pixels}, {"names": "no" * 8}))
    assert not is_asked_again(held) and not is_asked_again(renamed)
    assert not is_asked_again(other, GROUPS)  # an included set's pictures do not change, and may not be here
    assert not is_asked_again(other, config=dataclasses.replace(config, strata=8))  # measured in somebody's own way
    assert is_asked_again(other)
    assert is_asked_again(held, apart={(g, held.names[0]) for g in GROUPS.groups})
    assert list(asked(other).measure("noto"))[-1] == 1 and not is_asked_again(other) and is_asked_again(held)
    lost = asked(held)
    monkeypatch.setattr(health, "load_pictures", raising(DataError("They are on a disk that is not here.")))
    assert lost.unmeasured(["noto"]) == []


def raising(error):
    def fails(*_, **__):
        raise error

    return fails


def test_the_list_of_an_adapter_that_another_process_just_replaces_is_left_to_it(job, monkeypatch):
    monkeypatch.setattr(job, "listed", lambda: {adapter_files.LISTED: "0" * 64})
    monkeypatch.setattr(job, "load", raising(AdapterError("There is no finished adapter in noto.")))
    with pytest.raises(AdapterError, match="no finished adapter"):
        job.note_list(["noto"])
    monkeypatch.setattr(job, "claim", raising(InHandError("Another process is unlearning it.")))
    job.note_list(["noto"])


def health_of(job):
    """Of an adapter that was just made."""
    for _ in job.unlearn("noto", CONFIG):
        pass
    return health.Health(job, health.HealthConfig(pictures=2, held_out=8, strata=8))


def test_a_drop_is_the_difference_of_the_two_elbos_to_the_last_bit(job):
    measured, item, model = health_of(job), job.pictures()[0], job.model
    adapter, strata, pixels = job.load("noto"), likelihood.make_strata(job.model.schedule, 8), item.seen(16)
    draws = likelihood.draw_times(hash_pixels(pixels), strata, 1)
    asked = (model, model.encode(pixels), model.embed([""]), draws, [0])
    full = likelihood.kl_values(*asked)
    with switching.applied(model.network, adapter):
        without = likelihood.kl_values(*asked)
    drop = likelihood.elbo_drop(full=full, without=without, strata=strata).value
    assert drop != 0 and measured._drops(adapter, health.OFFSET, [(item, "")] * 3, strata) == [drop] * 3


def test_health_finds_out_once_how_many_pictures_fit(job, monkeypatch):
    measured, predict, failed = health_of(job), job.model.predict, []

    def short(x_t, *more):
        if len(x_t) > 3:
            failed.append(len(x_t))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(x_t, *more)

    monkeypatch.setattr(job.model, "predict", short)
    assert list(measured.measure("noto"))[-1] == 1 and failed == [8, 4]


@pytest.mark.parametrize("first", [10**9, 0], ids=["merged", "live"])
def test_health_puts_an_adapter_in_in_one_way_whatever_becomes_of_the_memory(job, monkeypatch, first):
    measured, free, branches = health_of(job), itertools.chain([first], itertools.repeat(10**9 - first)), []
    branched = switching.branched
    monkeypatch.setattr(switching, "_free", lambda device: next(free))
    monkeypatch.setattr(switching, "branched", lambda *a: branches.append(a) or branched(*a))
    kinds = len(list(measured.measure("noto")))
    found = measured.read()["noto"]
    assert (len(branches), found.get("switching")) == ((0, None) if first else (kinds, "live"))
    assert kinds == len(health.KINDS)
    assert found["dtype"] == "float32" and not measured._switching._spare  # the memory is given back


def test_the_held_out_pictures_are_read_once_whatever_the_number_of_groups(job, monkeypatch):
    read, plain = [], health.load_pictures
    monkeypatch.setattr(health, "load_pictures", lambda *a, **k: read.append(a) or plain(*a, **k))
    measured = health.Health(job, health.HealthConfig(pictures=2, held_out=8, strata=4))
    assert set(measured.passes(list(GROUPS.groups))) == set(GROUPS.groups) and len(read) == 1


def test_of_later_groups_only_what_is_new_is_asked_and_the_plan_says_so(job, monkeypatch):
    """Each kind of at most 8 pictures merges once; nothing is encoded or embedded twice for the offset."""
    for g in ("noto", "openmoji"):
        for _ in job.unlearn(g, CONFIG):
            pass
    measured = health.Health(job, health.HealthConfig(pictures=2, held_out=8, strata=4))
    counts = dict.fromkeys(("encode", "embed", "merge", "pass"), 0)

    def counted(name, real, of=lambda *a: 1):
        def call(*a, **k):
            counts[name] += of(*a)
            return real(*a, **k)

        return call

    monkeypatch.setattr(job.model, "encode", counted("encode", job.model.encode))
    monkeypatch.setattr(job.model, "embed", counted("embed", job.model.embed))
    monkeypatch.setattr(job.model, "predict", counted("pass", job.model.predict, lambda x, *a: len(x)))
    monkeypatch.setattr(switching.Switching, "_changed", counted("merge", switching.Switching._changed))
    for g in ("noto", "openmoji"):
        counts.update(dict.fromkeys(counts, 0))
        planned = measured.passes([g])[g]
        for _ in measured.measure(g):
            pass
        assert counts["pass"] == planned
    # 5 kinds of 2, and the held-out picture of "noto"; 4 captions
    assert counts == {"encode": 11, "embed": 4, "merge": 6, "pass": planned}


@pytest.mark.parametrize("whole", [True, False])
def test_the_health_of_whole_networks_is_measured_too(job, whole):
    for _ in job.unlearn("noto", config_of(steps=2, batch=2, whole=whole)):
        pass
    measured = health.Health(job, health.HealthConfig(pictures=1, held_out=8, strata=4))
    assert measured.unmeasured(["noto"]) == ["noto"]
    for _ in measured.measure("noto"):
        pass
    assert measured.unmeasured(["noto"]) == []
    assert offset_of(job.folder, {"noto": job.load("noto")}, 1.0)[0]


def test_a_health_that_was_cut_off_does_not_count(job):
    for _ in job.unlearn("noto", CONFIG):
        pass
    (job.folder / "noto" / "health.json").write_text('{"forgotten_pro')
    measured = health.Health(job)
    assert measured.read() == {} and measured.unmeasured(["noto"]) == ["noto"]


def test_an_adapter_of_other_pictures_of_ones_own_does_not_fit(job, tmp_path, monkeypatch):
    for _ in job.unlearn("noto", CONFIG):
        pass
    now = job.pictures()
    other = dataclasses.replace(now, pixels=255 - now.pixels)
    for of, fits in ((now, True), (other, False)):
        monkeypatch.setattr(run, "load_pictures", lambda gs, split, seen, of=of: of)
        own = Forgetting(dataclasses.replace(GROUPS, folder=tmp_path / "emoji"), folder=tmp_path / "adapters")
        assert own.pending(["noto"], config=CONFIG) == ([] if fits else ["noto"])
        said = ["Made again from other pictures or captions. Groups: noto."]
        assert own.replaced(["noto"], CONFIG) == ([] if fits else said)
        assert own.pending(["noto"], config=None) == []


def test_an_adapter_of_other_captions_of_ones_own_does_not_fit_and_no_run_goes_on_with_them(job, tmp_path, monkeypatch):
    def own(**changes):
        return Forgetting(
            dataclasses.replace(GROUPS, folder=tmp_path / "emoji", **changes), folder=job.folder.folders[0]
        )

    first, other = own(), own(caption="{object}, {descriptors}, drawn")
    for begun in (first, other):
        steps = begun.unlearn("noto", CONFIG)
        assert next(steps).step == 1  # the second has other prompts, so it does not go on from the first's step
        steps.close()
    assert [p.step for p in first.unlearn("noto", CONFIG)] == [2, 3, 4]
    assert first.pending(["noto"], config=CONFIG) == [] and other.pending(["noto"], config=CONFIG) == ["noto"]
    shown = dataclasses.replace(job.pictures(), concepts=("something else",) * len(job.pictures()))
    monkeypatch.setattr(run, "load_pictures", lambda gs, split, seen: shown)
    assert own().pending(["noto"], config=CONFIG) == ["noto"]
    assert Guda(job.model, first.group_set, job.folder).outdated == []
    assert Guda(job.model, other.group_set, job.folder).outdated == ["noto"]


def test_an_adapter_that_could_not_be_written_does_not_hide_that_of_another_layer(job, tmp_path, monkeypatch):
    for _ in job.unlearn("noto", CONFIG):
        pass
    layers = Layers((tmp_path / "mine", job.folder.folders[0]))
    adapter, spec = adapters.load(layers / "noto", model=job.model, group="noto"), CONFIG.lora

    def full(tensors, path, metadata):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(adapter_files, "save_file", full)
    with pytest.raises(AdapterError, match="what was there before is still there"):
        adapters.save_factors({}, layers.own("noto"), spec=spec, meta=adapter.meta)
    assert adapters.load(layers / "noto", model=job.model, group="noto").meta == adapter.meta


def test_two_processes_do_not_unlearn_one_group_at_once(job):
    steps, beside = job.unlearn("noto", CONFIG), job.unlearn("noto", CONFIG)
    assert next(steps).step == 1
    with pytest.raises(TrainingError, match="Another process is unlearning 'noto'"):
        next(beside)
    steps.close()
    assert [p.step for p in job.unlearn("noto", CONFIG)] == [2, 3, 4]


@pytest.mark.parametrize("locks", [True, False])
def test_two_machines_do_not_unlearn_one_group_at_once_where_the_disk_knows_locks(job, tmp_path, monkeypatch, locks):
    real = run.claimed

    def claims(path):
        if not locks and path.is_relative_to(tmp_path / "adapters"):
            raise OptionError("Nothing can be claimed there.")
        return real(path)

    monkeypatch.setattr(run, "claimed", claims)
    with job.claim("noto"):
        monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "another machine's"))
        refused = pytest.raises(InHandError, match="Another process is unlearning 'noto'")
        with refused if locks else nullcontext(), job.claim("noto"):
            pass


def test_a_model_without_prompts_is_unlearned_by_the_same_job(job, tmp_path, monkeypatch):
    card = save_tiny_unconditional(tmp_path / "u")
    monkeypatch.setattr(run, "chosen_card", lambda name: card)
    own = Forgetting(GROUPS, folder=tmp_path / "u-adapters")
    config = own.config()
    assert config.operator == "retrack"
    short = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=2, batch=4))
    for _ in own.unlearn("noto", short):
        pass
    assert own.fits("noto", short) and own.load("noto").whole
    assert torch.isfinite(next(iter(own.load("noto").whole.values()))).all()


def test_what_retrack_takes_can_be_told_before_its_bandwidth_is_known(job, tmp_path, monkeypatch):
    """None: the likeliest of the pictures, which a plan does not encode."""
    card = save_tiny_unconditional(tmp_path / "u")
    monkeypatch.setattr(run, "chosen_card", lambda name: card)
    own = Forgetting(GROUPS, folder=tmp_path / "u-adapters")
    given = own.config(steps=2, batch=2)
    config = dataclasses.replace(given, bandwidth=None)
    assert own.costs(["noto"], config) == own.costs(["noto"], given) != {"noto": 0}
    assert own.plan(["noto"], config, {"noto": 0}).groups["noto"].seconds > 0
    assert len(list(own.unlearn("noto", config))) == 2
