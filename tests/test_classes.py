"""The classes bench in miniature: pictures, trainings, and every row of the benchmark from a few steps of each."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from sklearn.datasets import load_digits

from experiments.baselines.instance import InstanceConfig
from experiments.benchmark import benches, classes_table
from experiments.benchmark import classes_run as bench
from experiments.benchmark import clock as clock_module
from experiments.benchmark.baseline_scores import read_scores, score_baseline
from experiments.benchmark.benches import BenchConfig
from experiments.benchmark.clock import Clock
from experiments.benchmark.models import Source
from experiments.benchmark.scores import ScoreConfig
from experiments.train import class_models, stages
from experiments.train.class_models import ClassesConfig, Job
from experiments.train.classifier import ClassifierConfig
from guda_core.attribution.gradient.features import FeatureConfig
from guda_core.attribution.gradient.kernel import KernelConfig
from guda_core.data.dataset import Pictures
from guda_core.data.sources.labelled import Cifar10, Labelled, read_cifar10
from guda_core.diffusion import likelihood
from guda_core.diffusion.unconditional import Unconditional
from guda_core.errors import DataError, GroupSetError, OptionError, TrainingError
from guda_core.records import GroupSet
from guda_core.unlearning.config import UnconditionalConfig
from guda_core.unlearning.loop import LoopConfig, Progress
from tests.alike import alike
from tests.fewer import few_draws

LOOP = LoopConfig(steps=3, batch=8, lr=1e-3, warmup=1, ema=0.9, weight_decay=0.0, seed=3)
SMALL = ClassesConfig(channels=(16, 16), head=8, held_out=1, per_class=3, loop=LOOP)
CONFIG = BenchConfig(
    name="small",
    models=SMALL,
    scores=ScoreConfig(strata=4, draws=2),
    unlearning={"guda-retrack": UnconditionalConfig(loop=dataclasses.replace(LOOP, ema=0.0))},
    kernels={k: KernelConfig(FeatureConfig(timesteps=1, dim=64)) for k in ("trak", "dtrak", "das")},
    instance=InstanceConfig(timesteps=1),
    instance_examples=2,
    classifier=ClassifierConfig(width=8, channels=(4, 4), loop=LOOP),
    generated=2,
    ddim_steps=2,
)
ROWS = {"logo", "logo-2", "guda-retrack", "trak", "dtrak", "das", "instance", "classifier", "random"}


@pytest.fixture
def three(monkeypatch) -> Callable[[], None]:
    """From its call on there are the first three classes alone: a third of the models, and every kind of row; and fewer
    resamplings."""
    group_set, split = class_models.group_set, Labelled.split

    def groups_of(config: ClassesConfig) -> GroupSet:
        whole = group_set(config)
        return dataclasses.replace(whole, groups=dict(list(whole.groups.items())[:3]))

    def split_of(self: Labelled, name: str) -> Pictures:
        whole = split(self, name)
        return whole.at([i for i, g in enumerate(whole.groups) if g in self.group_set.groups])

    def begin() -> None:
        monkeypatch.setattr(class_models, "group_set", groups_of)
        monkeypatch.setattr(Labelled, "split", split_of)
        few_draws(monkeypatch)

    return begin


def small_model() -> Unconditional:
    """A network in memory as a base model."""
    network, scheduler = class_models.make_unet(SMALL), class_models.make_scheduler(SMALL)
    return Unconditional(class_models.card(SMALL, SMALL.key), denoiser=network, scheduler=scheduler)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock.json")


def test_the_pictures_are_sklearns_split_by_class():
    config = ClassesConfig()
    train, held = (class_models.pictures(config, s) for s in ("train", "held_out"))
    assert len(train) == 1697 and len(held) == 100 and train.pixels.shape == (1697, 8, 8, 3)
    assert [held.groups.count(g) for g in class_models.group_set(config).groups] == [10] * 10
    assert not set(train.names) & set(held.names)
    raw = load_digits()
    for p, g, o in zip(held.pixels, held.groups, held.names, strict=True):
        at = int(o.removeprefix("train-"))
        assert str(raw.target[at]) == g
        np.testing.assert_allclose(p[..., 0], raw.images[at] * 255 / 16, atol=0.51)
    z = class_models.encode_all(held, config)
    model = small_model()
    assert torch.allclose(z, torch.cat([model.encode(p) for p in held.pixels]), atol=1e-6)
    assert float(z.min()) == -1 and float(z.max()) == 1
    with pytest.raises(DataError, match="train, held_out"):
        class_models.pictures(config, "test")
    with pytest.raises(GroupSetError, match=r"no group set 'mnist'.*Known: cifar10, digits"):
        class_models.pictures(ClassesConfig(dataset="mnist"), "train")


def test_the_network_is_of_the_stated_size():
    assert 0.6e6 < sum(p.numel() for p in class_models.make_unet(ClassesConfig()).parameters()) < 0.8e6


CHANGES = [
    {"channels": (16, 24)},
    {"attention": (True, True)},
    {"layers": 2},
    {"head": 4},
    {"norm_groups": 4},
    {"timesteps": 500},
    {"schedule": "cosine"},
    {"held_out": 2},
    {"split_seed": 1},
    {"per_class": 4},
    {"loop": dataclasses.replace(LOOP, seed=4)},
]
ELSEWHERE = {"dataset", "mixed_precision"}  # see the tests of CIFAR-10 and of accelerate


def weights(config, exclude=None, accelerator=None):
    of = class_models.pictures(config, "train")
    *_, (_, unet) = class_models.train(
        class_models.encode_all(of, config), of.groups, config, exclude, accelerator=accelerator
    )
    return torch.cat([p.detach().flatten() for p in unet.parameters()])


def test_training_repeats_itself_and_every_setting_and_class_matters():
    plain = weights(SMALL)
    assert torch.equal(plain, weights(SMALL)) and not torch.equal(plain, weights(SMALL, "3"))
    for change in CHANGES:
        other = weights(dataclasses.replace(SMALL, **change))
        assert change == {"head": 4} or other.shape != plain.shape or not torch.equal(other, plain), change
        assert "loop" in change or dataclasses.replace(SMALL, **change).key != SMALL.key
    heads = [class_models.make_unet(dataclasses.replace(SMALL, head=h)).mid_block.attentions[0].heads for h in (4, 8)]
    assert heads == [4, 2]
    assert {f.name for f in dataclasses.fields(ClassesConfig)} == {k for c in CHANGES for k in c} | ELSEWHERE
    with pytest.raises(TrainingError, match="'x' is no class"):
        weights(SMALL, "x")
    with pytest.raises(OptionError, match="linear, cosine"):
        ClassesConfig(schedule="x")
    with pytest.raises(OptionError, match="every one of the channels"):
        ClassesConfig(attention=(True,))


def test_accelerate_takes_the_same_steps_and_its_precision_matters():
    plain = weights(SMALL)
    assert torch.allclose(weights(SMALL, accelerator=Accelerator(cpu=True)), plain, atol=1e-6)
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one state a process
    half = weights(SMALL, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    assert not torch.allclose(half, plain, atol=1e-6) and torch.allclose(half, plain, atol=0.1)


def test_the_queue():
    jobs = class_models.queue(ClassesConfig(), 4)
    assert len(jobs) == 22 and jobs[0] == Job(ClassesConfig(), None, 3) and jobs[11] == Job(ClassesConfig(), None, 4)
    assert (
        jobs[1].name == f"{ClassesConfig().key}-without-0-s3" and len(class_models.queue(ClassesConfig(), None)) == 11
    )


def test_a_stage_is_written_and_loaded_again():
    job = Job(SMALL, "7", 3)
    with pytest.raises(TrainingError, match="not trained yet"):
        bench.full_model(CONFIG)
    steps = list(class_models.stage(job))
    assert job.done and steps[0].step == 1
    record = json.loads((stages.work_dir() / job.name / "stage.json").read_text())
    assert record["exclude"] == "7" and record["config"]["loop"]["steps"] == 3
    assert record["cpu_seconds"] > 0 and record["seconds"] > 0
    model = bench.load_model(class_models.card(SMALL, job.name), device="cpu")
    assert torch.equal(torch.cat([p.flatten() for p in model.network.parameters()]), weights(SMALL, "7"))


def test_the_whole_benchmark_in_miniature(tmp_path, three):
    three()
    with pytest.raises(TrainingError, match=r"experiments\.small"):
        classes_table.write(CONFIG, tmp_path, tmp_path)
    names = [what for what, fraction in classes_table.run_all(CONFIG, tmp_path, tmp_path) if fraction == 1.0]
    assert f"train {SMALL.key}-without-2-s4" in names and "unlearn guda-retrack/2" in names and "score das" in names
    model = bench.full_model(CONFIG)
    of, sets = bench.queries(model, CONFIG)
    assert len(of) == 5 and sets == ["held_out"] * 3 + ["generated"] * 2
    found = bench.arrays(model, of, CONFIG)
    assert set(found) == ROWS and all(v.shape == (5, 3) and np.isfinite(v).all() for v in found.values())
    with np.load(tmp_path / "small-scores.npz") as z:
        assert all(np.array_equal(z[k], found[k]) for k in ROWS)

    logo = bench.load_model(class_models.card(SMALL, f"{SMALL.key}-without-2-s3"), device="cpu")
    strata = likelihood.make_strata(model.schedule, 4)
    draws = likelihood.draw_times(of[0].image_hash, strata, 4)  # the first two are the methods'
    full, without = (likelihood.kl_values(m, of[0].latent, m.embed([""]), draws, [2, 3]) for m in (model, logo))
    direct = likelihood.elbo_drop(full=full, without=without, strata=strata).value
    assert found["logo"][0, 2] == pytest.approx(direct, rel=1e-3, abs=1e-3)

    table = json.loads((tmp_path / "small.json").read_text())
    assert {r["method"] for r in table["rows"]} == ROWS - {"logo", "logo-2"} | {"ceiling"}
    costs = {r["method"]: r for r in table["costs"]}
    assert set(costs) == ROWS - {"logo-2", "random"} and costs["logo"]["times_cheaper"] == 1
    assert all(r["precompute_cpu_s"] > 0 and r["query_cpu_s"] > 0 for r in table["costs"])
    trained = sum(v for k, v in table["trainings_cpu_s"].items() if "without" in k and k.endswith("s3"))
    assert costs["logo"]["precompute_cpu_s"] == pytest.approx(trained)
    with Image.open(tmp_path / "small-samples.png") as picture:
        assert min(picture.size) > 300

    again = [what for what, _ in bench.run(CONFIG)]  # nothing is trained, unlearned or scored a second time
    assert all(what.startswith("score ") for what in again) and len(again) == len(bench.sources(model, CONFIG))
    (tmp_path / "small.json").write_text(json.dumps({**table, "rows": []}))
    assert json.loads(classes_table.write_table(tmp_path, "small").read_text())["rows"] == table["rows"]
    with pytest.raises(DataError, match="There is no other-scores"):
        classes_table.write_table(tmp_path, "other")


def test_queries_and_baselines_follow_their_settings(tmp_path, clock):
    model = small_model()
    hashes = [q.image_hash for q in bench.queries(model, CONFIG)[0]]
    other_split = dataclasses.replace(SMALL, split_seed=2)
    for change in ({"generated": 3}, {"ddim_steps": 3}, {"query_seed": 7}, {"models": other_split}):
        assert [q.image_hash for q in bench.queries(model, dataclasses.replace(CONFIG, **change))[0]] != hashes
    of, ids = bench.queries(model, CONFIG)[0][:2], bench.group_ids(CONFIG)
    made = dict(bench.baselines(model, CONFIG, clock))
    assert len(made["instance"].examples) == 20 and len(made["trak"].bank.examples) == 30
    assert set(made) == set(bench.made_from(CONFIG))
    method, own = made["trak"], bench.made_from(CONFIG)["trak"]
    path = tmp_path / "trak.npy"
    assert list(score_baseline("trak", method, own, of, ids, path, clock))[-2:] == [0.75, 1.0]
    kept = np.load(path)
    assert list(score_baseline("trak", method, own, of, ids, path, clock)) == []
    assert set(read_scores(tmp_path, of, {"trak": own, "das": own})) == {"trak"}
    other = dataclasses.asdict(KernelConfig(ridge=1.0))
    assert read_scores(tmp_path, of, {"trak": other}) == {} == read_scores(tmp_path, of[:1], {"trak": own})
    assert list(score_baseline("trak", method, other, of, ids, path, clock))[-1] == 1.0
    assert np.array_equal(kept, np.load(path))  # the method itself was the same
    assert set(clock.spent) == {"prepare/trak", "score/trak", "prepare/classifier"}


def test_what_other_settings_cost_is_not_counted(clock, monkeypatch):
    model, sha256 = small_model(), "w"
    monkeypatch.setattr(bench, "sources", lambda *_: [Source("full", "full", None, sha256, nullcontext)])
    monkeypatch.setattr(bench, "unlearn", lambda *_, **__: iter(()))
    row, g = next(iter(CONFIG.unlearning)), bench.group_ids(CONFIG)[0]
    of, names = bench.queries(model, CONFIG)[0][:2], ("score/full/None", f"unlearn/{row}/{g}")

    def cost(config):
        clock._new = {n: {"wall": 1e6, "cpu": 1e6} for n in names}
        clock.save()  # so much was spent before
        list(bench.collect(model, of, config, clock))
        list(bench.unlearn_all(model, config, clock))
        return [clock.spent[n]["cpu"] > 1e5 for n in names]

    more = dataclasses.replace(CONFIG, scores=dataclasses.replace(CONFIG.scores, draws=CONFIG.scores.draws + 1))
    assert cost(CONFIG) == [False, False] and cost(CONFIG) == [True, False] and cost(more) == [False, False]


def test_without_values_there_are_no_arrays():
    model = small_model()
    with pytest.raises(DataError, match="no values yet"):
        bench.arrays(model, bench.queries(model, CONFIG)[0], CONFIG)


def test_a_stopped_training_is_resumed():
    stopped = list(bench.train_all(CONFIG, minutes=1e-9))
    assert len(stopped) == 1 and not stopped[0][0].done
    resumed = next(bench.train_all(CONFIG))
    assert resumed[1].step == 2


def test_a_training_that_another_process_gave_up_is_taken_up_last(monkeypatch):
    first, *others = bench.queue(CONFIG)
    trained = []

    def stage(job, accelerator):
        yield Progress(1, 1, 0.0, 0.0)

    monkeypatch.setattr(class_models, "stage", stage)
    with ExitStack() as elsewhere:
        elsewhere.enter_context(stages.in_hand(first.name))
        for job, _ in bench.train_all(CONFIG):
            trained.append(job)
            if job == others[-1]:
                elsewhere.close()  # without having finished it
    assert trained == [*others, first]


def test_a_clock_adds_up_the_work_and_not_its_receiver(tmp_path, monkeypatch):
    now = [0.0]
    told = SimpleNamespace(monotonic=lambda: 10 * now[0], process_time=lambda: now[0])
    monkeypatch.setattr(clock_module, "time", told)

    def work():
        for i in range(3):
            now[0] += 1
            yield i

    clock = Clock(tmp_path / "c.json")
    assert list(clock.timed("a", work())) == [0, 1, 2]
    for _ in clock.timed("b", iter(range(3))):
        now[0] += 100
    assert clock.spent == {"a": {"wall": 30.0, "cpu": 3.0}, "b": {"wall": 0.0, "cpu": 0.0}}
    list(Clock(tmp_path / "c.json").timed("a", work()))
    assert Clock(tmp_path / "c.json").cpu("a") == 6


def test_a_benchmark_names_the_command_that_runs_it():
    assert benches.find("digits").command == "python -m experiments.digits"
    assert benches.find("digits-quick").command == "python -m experiments.digits --quick"
    one_seed = dataclasses.replace(benches.find("digits"), second_seed=None)
    assert one_seed.command == "python -m experiments.digits --no-ceiling"
    quick = dataclasses.replace(benches.find("digits-quick"), second_seed=None)
    assert quick.command == "python -m experiments.digits --quick --no-ceiling"


def test_clocks_of_two_processes_lose_nothing(tmp_path):
    one, two = Clock(tmp_path / "c.json"), Clock(tmp_path / "c.json")
    list(one.timed("score/a", range(3)))
    list(two.timed("score/b", range(3)))
    list(one.timed("prepare/a", range(3)))
    assert set(Clock(tmp_path / "c.json").spent) == {"score/a", "score/b", "prepare/a"}
    two.forget("score/")
    assert set(Clock(tmp_path / "c.json").spent) == {"prepare/a"}


def save_cifar10(folder: Path, n: int = 4) -> Path:
    """A stand-in for CIFAR-10's files: the same columns, shapes and folder, `n` random pictures a class."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Column

    rng = np.random.default_rng(0)
    features = Features({"img": Column(), "label": ClassLabel(num_classes=10)})
    for split, count in (("train", n), ("test", 2)):
        labels = list(range(10)) * count
        pictures = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in labels]
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        rows = Dataset.from_dict({"img": pictures, "label": labels}, features=features)
        rows.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


def test_cifar10_runs_end_to_end_on_stand_in_data(tmp_path, monkeypatch, three, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("GUDA_CIFAR10", str(save_cifar10(tmp_path / "cifar10")))
    paper = benches.find("cifar10")
    one = dataclasses.replace(LOOP, steps=1)
    assert paper.scores.strata == 400 and paper.generated == 2048 and paper.models.timesteps == 4000
    models = dataclasses.replace(
        paper.models, channels=(8, 8, 8, 8), layers=1, head=8, norm_groups=4, loop=one, per_class=3, timesteps=40
    )
    config = dataclasses.replace(
        paper,
        name="cifar-small",
        models=models,
        scores=ScoreConfig(strata=2, draws=1),
        unlearning={"guda-retrack": UnconditionalConfig(loop=dataclasses.replace(one, ema=0.0))},
        kernels=CONFIG.kernels,
        instance=CONFIG.instance,
        instance_examples=2,
        classifier=CONFIG.classifier,
        generated=2,
        ddim_steps=2,
        second_seed=None,
    )
    train = class_models.pictures(models, "train")
    assert train.pixels.shape == (30, 32, 32, 3) and len(class_models.pictures(models, "held_out")) == 0
    held = class_models.pictures(dataclasses.replace(models, held_out=1), "held_out")
    assert len(held) == 10 and all(o.startswith("test-") for o in held.names)
    monkeypatch.setattr(Cifar10, "read", staticmethod(functools.cache(read_cifar10)))
    three()
    classes_table.command(config, tmp_path, 1e-9, table_only=False)
    monkeypatch.setattr(classes_table, "DOCS", tmp_path)
    classes_table.command(config, tmp_path, None, table_only=False)
    said = capsys.readouterr().out.splitlines()
    assert said == ["Stopped. The same command goes on from here.", f"Written: {tmp_path / 'cifar-small.json'}"]
    table = json.loads((tmp_path / "cifar-small.json").read_text())
    assert {r["method"] for r in table["rows"]} == ROWS - {"logo", "logo-2"}
    assert all(r["n"] == 2 for r in table["rows"])
    monkeypatch.setenv("RANK", "1")  # of several processes that `accelerate launch` started, one writes
    assert not bench.trained(config) and not list(classes_table.run_all(config, tmp_path / "no", tmp_path))
    assert not (tmp_path / "no").exists()
    monkeypatch.delenv("RANK")

    monkeypatch.setenv("GUDA_CIFAR10", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="Set GUDA_CIFAR10"):
        read_cifar10()


def test_the_committed_tables_are_those_of_the_committed_scores(tmp_path):
    folder = Path(__file__).resolve().parent.parent / "assets" / "benchmarks"
    names = [n for n in ("digits", "digits-quick", "cifar10") if (folder / f"{n}.json").is_file()]
    if not names:
        pytest.skip("no classes benchmark has been run yet")
    for name in names:
        for path in (folder / f"{name}.json", classes_table.scores_file(folder, name)):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        before = json.loads((folder / f"{name}.json").read_text())
        assert alike(json.loads(classes_table.write_table(tmp_path, name).read_text()), before)
