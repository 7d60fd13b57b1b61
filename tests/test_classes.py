"""The digits bench in miniature: pictures, trainings, and every row of the benchmark from a few steps of each."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from guda_core.training.digits import DigitsConfig, Job
from sklearn.datasets import load_digits

from guda_core import elbo
from guda_core.benchmark import digits as bench
from guda_core.benchmark.scores import ScoreConfig
from guda_core.errors import DataError, TrainingError
from guda_core.gradients import FeatureConfig
from guda_core.methods.instance import InstanceConfig
from guda_core.methods.kernel import KernelConfig
from guda_core.training import digits, stages
from guda_core.training.classifier import ClassifierConfig
from guda_core.training.loop import LoopConfig
from guda_core.unlearn_unconditional import UnconditionalConfig

LOOP = LoopConfig(steps=3, batch=8, lr=1e-3, warmup=1, ema=0.9, weight_decay=0.0, seed=3)
SMALL = DigitsConfig(channels=(16, 16), head=8, held_out=1, per_class=3, loop=LOOP)
CONFIG = bench.BenchConfig(
    digits=SMALL,
    scores=ScoreConfig(strata=4, draws=2),
    unlearning={"guda-retrack": UnconditionalConfig(loop=dataclasses.replace(LOOP, ema=0.0))},
    kernels={k: KernelConfig(FeatureConfig(timesteps=2, dim=64)) for k in ("trak", "dtrak", "das")},
    instance=InstanceConfig(timesteps=2),
    classifier=ClassifierConfig(width=8, channels=(4, 4), loop=LOOP),
    generated=2,
    ddim_steps=2,
)


def test_the_pictures_are_sklearns_split_by_class():
    config = DigitsConfig()
    train, held = (digits.pictures(config, s) for s in ("train", "held_out"))
    assert len(train) == 1697 and len(held) == 100 and train.pixels.shape == (1697, 8, 8, 3)
    assert [held.groups.count(g) for g in digits.group_set().groups] == [10] * 10
    assert not set(train.objects) & set(held.objects)
    raw = load_digits()
    for p, g, o in zip(held.pixels, held.groups, held.objects, strict=True):
        assert str(raw.target[int(o)]) == g
        np.testing.assert_allclose(p[..., 0], raw.images[int(o)] * 255 / 16, atol=0.51)
    z = digits.encode_all(held)
    model = digits.wrap(digits.make_unet(SMALL))
    assert torch.allclose(z, torch.cat([model.encode(p) for p in held.pixels]), atol=1e-6)
    assert float(z.min()) == -1 and float(z.max()) == 1
    with pytest.raises(TrainingError, match="train, held_out"):
        digits.pictures(config, "test")


def test_the_network_is_of_the_stated_size():
    assert 0.6e6 < sum(p.numel() for p in digits.make_unet(DigitsConfig()).parameters()) < 0.8e6


CHANGES = [
    {"channels": (16, 24)},
    {"head": 4},
    {"held_out": 2},
    {"split_seed": 1},
    {"per_class": 4},
    {"loop": dataclasses.replace(LOOP, seed=4)},
]


def weights(config, exclude=None):
    of = digits.pictures(config, "train")
    *_, (_, unet) = digits.train(digits.encode_all(of), of.groups, config, None, exclude)
    return torch.cat([p.detach().flatten() for p in unet.parameters()])


def test_training_repeats_itself_and_every_setting_and_class_matters():
    plain = weights(SMALL)
    assert torch.equal(plain, weights(SMALL)) and not torch.equal(plain, weights(SMALL, "3"))
    for change in CHANGES:
        other = weights(dataclasses.replace(SMALL, **change))
        assert change == {"head": 4} or other.shape != plain.shape or not torch.equal(other, plain), change
    heads = [digits.make_unet(dataclasses.replace(SMALL, head=h)).mid_block.attentions[0].heads for h in (4, 8)]
    assert heads == [4, 2]
    assert {f.name for f in dataclasses.fields(DigitsConfig)} == {k for c in CHANGES for k in c}
    with pytest.raises(TrainingError, match="'x' is no class"):
        weights(SMALL, "x")


def test_the_queue():
    jobs = digits.queue(DigitsConfig(), 4)
    assert len(jobs) == 22 and jobs[0] == Job(None, 3) and jobs[11] == Job(None, 4)
    assert jobs[1].name == "digits-without-0-s3" and len(digits.queue(DigitsConfig(), None)) == 11


def test_a_stage_is_written_and_loaded_again():
    job = Job("7", 3)
    with pytest.raises(TrainingError, match="not trained yet"):
        bench.full_model(CONFIG)
    steps = list(digits.stage(SMALL, job))
    assert job.done and steps[0].step == 1
    record = json.loads((stages.work_dir() / job.name / "stage.json").read_text())
    assert record["exclude"] == "7" and record["config"]["loop"]["steps"] == 3
    model = bench.load_model(digits.card(job.name), device="cpu")
    assert torch.equal(torch.cat([p.flatten() for p in model.denoiser.parameters()]), weights(SMALL, "7"))


def test_the_whole_benchmark_in_miniature(monkeypatch):
    names = [what for what, fraction in bench.run(CONFIG) if fraction == 1.0]
    assert "train digits-without-9-s4" in names and "unlearn guda-retrack/9" in names and "score das" in names
    model = bench.full_model(CONFIG)
    of, sets = bench.queries(model, CONFIG)
    assert len(of) == 12 and sets == ["held_out"] * 10 + ["generated"] * 2
    found = bench.arrays(model, of, CONFIG)
    rows = {"logo", "logo-2", "guda-retrack", "trak", "dtrak", "das", "instance", "classifier"}
    assert set(found) == rows and all(v.shape == (12, 10) and np.isfinite(v).all() for v in found.values())
    with np.load(bench.cache(model) / "scores.npz") as z:
        assert all(np.array_equal(z[k], found[k]) for k in rows)

    logo = bench.load_model(digits.card("digits-without-4-s3"), device="cpu")
    strata = elbo.make_strata(model.schedule, 4)
    draws = elbo.draw_times(of[0].image_hash, strata, 2)
    full, without = (elbo.kl_values(m, of[0].latent, m.embed([""]), draws, [0, 1]) for m in (model, logo))
    direct = elbo.elbo_drop(full=full, without=without, strata=strata).value
    assert found["logo"][0, 4] == pytest.approx(direct, rel=1e-3, abs=1e-3)

    again = [what for what, _ in bench.run(CONFIG)]  # nothing is trained, unlearned or scored a second time
    assert all(what.startswith("score ") for what in again) and len(again) == len(bench.sources(model, CONFIG))


def test_queries_and_baselines_follow_their_settings(tmp_path):
    model = digits.wrap(digits.make_unet(SMALL))
    hashes = [q.image_hash for q in bench.queries(model, CONFIG)[0]]
    for change in ({"generated": 3}, {"ddim_steps": 3}, {"query_seed": 7}, {"digits": DigitsConfig(split_seed=2)}):
        assert [q.image_hash for q in bench.queries(model, dataclasses.replace(CONFIG, **change))[0]] != hashes
    of = bench.queries(model, CONFIG)[0][:2]
    method, own = bench.baselines(model, CONFIG)["trak"]
    path = tmp_path / "trak.npy"
    assert list(bench.score_baseline(method, own, of, path)) == [0.5, 1.0]
    kept = np.load(path)
    assert list(bench.score_baseline(method, own, of, path)) == []
    assert list(bench.score_baseline(method, KernelConfig(ridge=1.0), of, path)) == [0.5, 1.0]
    assert np.array_equal(kept, np.load(path))  # the method itself was the same


def test_without_values_there_are_no_arrays():
    model = digits.wrap(digits.make_unet(SMALL))
    with pytest.raises(DataError, match="no values yet"):
        bench.arrays(model, bench.queries(model, CONFIG)[0], CONFIG)


def test_a_stopped_training_is_resumed():
    stopped = list(bench.train_all(CONFIG, minutes=0))
    assert len(stopped) == 1 and not stopped[0][0].done
    resumed = next(bench.train_all(CONFIG))
    assert resumed[1].step == 2
