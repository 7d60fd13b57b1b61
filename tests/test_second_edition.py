"""The whole way of the second edition at a tiny size, on the CPU: from the packed file to a folder of assets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from experiments import lossless
from experiments.benchmark import queries
from experiments.benchmark.queries import QueryConfig
from experiments.benchmark.scores import ScoreConfig
from experiments.logo.retrained_delta import LiveConfig
from experiments.logo.trainings import Job as Training
from experiments.second import __main__ as command
from experiments.second import (
    edition,
    in_order,
    one_file,
    parcels,
    second_assets,
    second_oracle,
    second_quality,
    second_stages,
    second_trial,
    timely,
)
from experiments.second.edition import Asked, Edition
from experiments.second.fast_loop import How
from experiments.second.timely import Timely
from experiments.seeds import collected, seed_trainings
from experiments.train.clip import ClipConfig
from experiments.train.unet import UnetConfig
from experiments.train.vae import VaeConfig
from guda_core import paths
from guda_core.data.embeddings import Clip
from guda_core.data.encoders import open_encoder
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model, read_cards
from guda_core.errors import DataError, OptionError, TrainingError
from guda_core.jobs import driver
from guda_core.jobs.job import Job, Told
from guda_core.unlearning import adapters
from guda_core.unlearning.loop import LoopConfig
from tests import job_works

SIZE, IDS = 32, ("twemoji", "noto")
TRAIN, HELD = ("cat", "sun", "bell"), tuple(f"thing-{i}" for i in range(90))  # the offset's own pictures are kept apart


def loop(steps: int, batch: int, **more) -> LoopConfig:
    return LoopConfig(steps=steps, batch=batch, lr=1e-3, warmup=1, **more)


TINY = Edition(
    vae=VaeConfig(channels=(8, 8, 8), latent_channels=4, loop=loop(2, 2, seed=1)),
    clip=ClipConfig(
        vocabulary=120, max_tokens=24, text_width=16, text_layers=1, image_width=48, image_layers=1, patch=16,
        projection=16, shift=2, loop=loop(2, 2, seed=2),
    ),
    unet=UnetConfig(channels=(32, 32), heads=2, loop=loop(2, 4, ema=0.5, seed=3)),
    classifier=loop(2, 4, seed=9),
    captions=2,
    seeds=(3, 4),
    first=QueryConfig(objects=1, blend_objects=1, real=1, steps=1),
    fresh=QueryConfig(objects=1, blend_objects=1, real=1, steps=1, seed=202),
    scores=ScoreConfig(strata=3, draws=2, first=4),
    quality=QueryConfig(objects=2, steps=1, seed=11),
    live=LiveConfig(megabytes=0.5, batches=1, batch=2),
    scored_at_once=7,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A workspace with a small group set of the kind, and a cache with its pictures, packed; the patches that hold."""
    root = tmp_path_factory.mktemp("second")
    whole = yaml.safe_load((edition.HOME / "sets" / edition.SET / "group_set.yaml").read_text(encoding="utf-8"))
    whole["groups"] = {g: whole["groups"][g] for g in IDS}
    whole |= {"id": "tiny", "resolution": SIZE, "objects": {"train": list(TRAIN), "held_out": list(HELD)}}
    (root / "home" / "sets" / "tiny").mkdir(parents=True)
    (root / "home" / "sets" / "tiny" / "group_set.yaml").write_text(
        yaml.safe_dump(whole, sort_keys=False), encoding="utf-8"
    )
    group_set = load_group_set("tiny", root / "home" / "sets")
    folder = root / "cache" / "data" / "tiny"
    folder.mkdir(parents=True)
    names, rng = [*TRAIN, *HELD, "other"], np.random.default_rng(0)
    pictures = {}
    for g in IDS:
        pixels = rng.integers(0, 256, (len(names), SIZE, SIZE, 3), dtype=np.uint8)
        np.savez_compressed(folder / f"{g}.npz", pixels=pixels, objects=names)
        pictures[g] = {n: one_file.hashlib.sha256(p.tobytes()).hexdigest() for n, p in zip(names, pixels, strict=True)}
    packages = {g.source["package"]: g.source["version"] for g in group_set.groups.values()}
    manifest = {"group_set": "tiny", "resolution": SIZE, "packages": packages, "pictures": pictures}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUDA_CACHE", str(root / "cache"))
        patch.setenv("GUDA_HOME", str(root / "home"))
        hashes = {s: load_pictures(group_set, s).sha256() for s in ("train", "held_out", "pretrain")}
        list(one_file.pack(group_set, root / "pictures.npz"))
        patch.setattr(edition, "HOME", root / "home")
        patch.setattr(second_assets, "HOME", root / "home")
        patch.setattr(seed_trainings, "HELD_OUT_TIMES", 1)
        patch.setattr(edition.at, "__defaults__", (root / "home",))
        edition.the_set.cache_clear()
        yield root, group_set, hashes
    edition.the_set.cache_clear()


ASKED = Asked(TINY, How(), "tiny")


def order_of(root, name: str, minutes: float = 5.0, **more) -> in_order.Order:
    said: list[str] = []
    return in_order.Order(
        ASKED, root / name, root / f"{name}-out", time.monotonic() + 60 * minutes, said.append, **more
    )


@pytest.fixture(scope="module")
def made(home):
    """Everything, in one go."""
    order = order_of(home[0], "work")
    done = in_order.everything(order, home[0] / "pictures.npz")
    assert done, order.failed
    return order


def test_the_packed_file_brings_every_picture_back(home):
    root, group_set, hashes = home
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUDA_CACHE", str(root / "elsewhere"))
        assert list(one_file.unpack(root / "pictures.npz", group_set))[-1] == 1.0
        for split, sha256 in hashes.items():
            assert load_pictures(group_set, split).sha256() == sha256
        patch.setenv("GUDA_CACHE", str(root / "cache"))
        list(one_file.pack(group_set, root / "small.npz", whole=False))
        patch.setenv("GUDA_CACHE", str(root / "small"))
        list(one_file.unpack(root / "small.npz", group_set))
        assert load_pictures(group_set, "pretrain").sha256() == hashes["train"]
        with pytest.raises(DataError, match="another group set"):
            list(one_file.unpack(root / "small.npz", dataclasses.replace(group_set, id="else")))
    with np.load(root / "pictures.npz") as z:
        whole = dict(z)
    for name, ends in (("fewer", whole["ends"][:-1]), ("cut", [*whole["ends"][:-1], whole["ends"][-1] - 9])):
        np.savez(root / f"{name}.npz", **{**whole, "ends": np.asarray(ends, np.int64)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GUDA_CACHE", str(root / name))
            with pytest.raises(DataError, match="does not hold the picture of"):
                list(one_file.unpack(root / f"{name}.npz", group_set))
    (root / "bad.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="is not what"):
        list(one_file.unpack(root / "bad.npz", group_set))


def test_a_held_out_picture_that_is_trained_on_under_another_name_is_not_packed(home, tmp_path, monkeypatch):
    root, group_set, _ = home
    shutil.copytree(root / "cache" / "data", tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "tiny" / "manifest.json").read_text())
    own = manifest["pictures"][IDS[0]]
    own[HELD[0]] = own["other"]
    (tmp_path / "data" / "tiny" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"held out, but other .* same picture"):
        list(one_file.pack(group_set, tmp_path / "p.npz"))


def test_everything_is_made_once(home, made):
    order = order_of(home[0], "work")
    assert in_order.everything(order, home[0] / "pictures.npz")
    assert set(order.seconds) == {"vae", "clip", "unet", "queries", "quality"}
    names = [t.name for t in second_oracle.trainings(ASKED)]
    assert names[:3] == ["unet-full-s3", "unet-without-twemoji-s3", "unet-without-noto-s3"] and len(names) == 6
    records = [json.loads((order.work / "logo" / n / "training.json").read_text()) for n in names]
    assert len({r["weights_sha256"] for r in records}) == 6 and records[0]["trained"] == "the embedded model"
    assert all(r["steps"] == "without a graph" and r["device"] == "CPU" for r in records[1:])


def test_the_figures_of_quality_are_there(made):
    found = json.loads((made.work / second_quality.FILE).read_text())
    assert found["recognition"]["style_top1"]["n"] == len(IDS) * 2
    assert 0 < found["nearest"]["held_out"]["least"] < found["nearest"]["held_out"]["median"] < 255
    assert 0 < found["held_out_psnr_db"] < 40


def test_values_are_those_that_the_product_scores_with(made):
    """The full model's values, made in large batches, against `likelihood.kl_values`, one query after the other."""
    model = second_oracle.model_of(ASKED, made.work)
    strata = second_oracle.make_strata(model.schedule, 3, TINY.scores.rule)
    with np.load(made.work / "logo" / "unet-full-s3" / "values.npz") as z:
        found = {k: z[k] for k in z.files}
    for draw, asked in second_oracle.opened(made.work).queries.items():
        assert found[draw].shape == (len(asked), 3, 2)
        q = asked[1]
        draws = likelihood.draw_times(q.image_hash, strata, TINY.scores.columns.stop)
        wanted = likelihood.kl_values(model, q.latent, model.embed([q.prompt]), draws, TINY.scores.columns)
        np.testing.assert_allclose(found[draw][1], wanted, rtol=1e-3)


def test_the_next_machine_goes_on_from_what_came_back(home, made):
    """Without checkpoints, and without one training: the model and the queries stay, and only that one is done."""
    root = home[0]
    back = root / "back"
    one = "logo/unet-without-noto-s4"
    units = [u for u in in_order.results(ASKED, made.work) if one not in u[-1].as_posix()]
    assert parcels.send(units, made.work, back, before={})[1] == []
    order = order_of(root, "second-machine", came_back=back)
    assert in_order.everything(order, root / "pictures.npz")
    assert set(order.seconds) == {"vae", "clip", "unet", "queries", "quality", "unet-without-noto-s4"}
    new = parcels.known(order.out)
    assert {n for n in new if one in n} == {f"{one}/training.json", f"{one}/values.npz"}
    assert not any("train/" in n or "figures/" in n for n in new) and (order.out / "second-2.zip").is_file()
    again = [json.loads((w / one / "training.json").read_text()) for w in (made.work, order.work)]
    assert again[0]["weights_sha256"] == again[1]["weights_sha256"] and again[0]["key"] == again[1]["key"]


def test_the_other_seeds_need_neither_model_nor_pictures(home, made):
    """On a machine that has the packed latents and the CLIP alone, the trainings are the same."""
    root = home[0]
    files, numbers = root / "oracle-files", {p.name for p in made.out.glob("*.zip")}
    in_order.for_other_seeds(ASKED, made.work, root / "pictures.npz", files, made.say, made.out)
    assert all("train/clip/" in n for n in parcels.known(files))
    order = order_of(root, "bare", given=files)
    assert in_order.other_seeds(order)
    names = [t.name for t in second_oracle.of_other_seeds(ASKED)]
    assert list(order.seconds) == names and len(names) == 3 and not (order.work / "data").exists()
    order.send()
    assert {n.split("/")[1] for n in parcels.known(order.out)} == set(names)
    of_each = [numbers, *({p.name for p in f.glob("*.zip")} for f in (files, order.out))]
    assert len(set().union(*of_each)) == sum(map(len, of_each)) >= 3  # they may lie in one folder
    for n in names:
        again = [json.loads((w / "logo" / n / "training.json").read_text()) for w in (made.work, order.work)]
        assert again[0]["weights_sha256"] == again[1]["weights_sha256"] and again[0]["key"] == again[1]["key"]
        with np.load(made.work / "logo" / n / "values.npz") as x, np.load(order.work / "logo" / n / "values.npz") as y:
            assert all(np.array_equal(x[d], y[d]) for d in x.files)
    (files / second_stages.PACKED).unlink()
    with pytest.raises(TrainingError, match="pack-oracle"):
        in_order.other_seeds(order)


def is_trained(work) -> bool:
    return second_oracle.is_trained(ASKED, work, second_oracle.trainings(ASKED)[1])


@pytest.mark.parametrize(
    ("lacks", "done"),
    [
        ("live/twemoji", is_trained),
        ("live/twemoji/network.safetensors", is_trained),
        ("figures/fresh/queries.npz", lambda work: second_stages.are_drawn(ASKED, work)),
        ("train/unet-full-s3/diffusion_pytorch_model.safetensors", lambda work: second_stages.full_done(ASKED, work)),
    ],
)
def test_what_is_there_in_half_is_made_again_and_is_not_sent(made, tmp_path, lacks, done):
    """The record is there, and what it is of is not."""
    units = list(in_order.results(ASKED, made.work))
    assert done(made.work)
    (made.work / lacks).rename(tmp_path / "aside")
    try:
        assert not done(made.work)
        left = list(in_order.results(ASKED, made.work))
        assert len(left) == len(units) - 1 and not any(lacks in p.as_posix() for u in left for p in u)
    finally:
        (tmp_path / "aside").rename(made.work / lacks)


def test_the_next_call_on_a_machine_sends_what_did_not_fit_before(home, made, monkeypatch):
    """Until everything went out, each file once, into parcels that may lie in one folder."""
    (made.work / parcels.SENT).unlink(missing_ok=True)
    everything = [p for u in in_order.results(ASKED, made.work) for p in u]
    each = sum(p.stat().st_size for p in everything) // (2 * parcels.MOST) + 50_000
    monkeypatch.setitem(parcels.send.__kwdefaults__, "limit", parcels.ROOM + each)
    found, names, said = [], [], []
    (home[0] / "calls").mkdir()
    for i in range(4):
        order, before = order_of(home[0], "work"), len(said)
        order.out, order.say = home[0] / f"call-{i}", said.append
        order.send()
        order.send()  # as after every stage: the same again
        found += parcels.known(order.out)
        names += [p.name for p in order.out.iterdir()]
        for p in order.out.iterdir():
            p.rename(home[0] / "calls" / p.name)
        assert (len(said) > before) == (len(found) < len(everything))
    assert len(found) == len(set(found)) == len(everything)
    assert parcels.MOST < len(names) == len(set(names))
    assert parcels.take_back(home[0] / "calls", home[0] / "joined") == [f"{len(found)} files came back."]
    assert all((home[0] / "joined" / p.relative_to(made.work)).read_bytes() == p.read_bytes() for p in everything)


def test_a_call_that_is_killed_while_it_sends_has_sent_nothing(home, made, monkeypatch):
    (made.work / parcels.SENT).unlink(missing_ok=True)
    order = order_of(home[0], "work")
    order.out = home[0] / "killed"
    order.send()
    files, following = parcels.sent(made.work)
    assert files == parcels.known(order.out) and following == 2
    monkeypatch.setattr(parcels.zipfile.ZipFile, "writestr", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        order.send()
    assert parcels.sent(made.work) == ({}, 1 + parcels.MOST)
    order_of(home[0], "never-begun").send()  # after an error of the first step: nothing else is to go wrong


def test_another_scale_is_refused(home, made):
    seldom = dataclasses.replace(TINY, vae=dataclasses.replace(TINY.vae, loop=loop(2, 2, seed=1, checkpoint_s=9.0)))
    assert second_stages.vae_done(dataclasses.replace(ASKED, edition=seldom), made.work)
    order = order_of(home[0], "work")
    order.asked = dataclasses.replace(ASKED, edition=TINY.scaled(1.5))
    assert not in_order.everything(order, home[0] / "pictures.npz")
    assert set(order.failed) == {"vae", "clip"} and all("`--scale`" in why for why in order.failed.values())
    with pytest.raises(TrainingError, match="'unet-full-s3' was trained with other settings"):
        second_stages.full_done(order.asked, made.work)


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_is_said_and_what_is_done_is_sent_on_the_way(workers, tmp_path, monkeypatch):
    """In this process and in two others."""
    monkeypatch.setattr(in_order, "TOLD_S", 0.1)
    monkeypatch.setattr(in_order, "SENT_S", 0.1)
    sent: list[int] = []
    monkeypatch.setattr(in_order.Order, "send", lambda self: sent.append(len(self.seconds)))
    said: list[str] = []
    order = in_order.Order(ASKED, tmp_path, tmp_path, time.monotonic() + 60, said.append, workers=workers)
    jobs = job_works.jobs(tmp_path, ["a", "b", "c"], 0.5)
    began = time.monotonic()
    with closing(Timely(order.pool(2), order.until + 60, 0.0, lambda name: None)) as pool:
        assert order.through(jobs, pool)
    took = time.monotonic() - began
    assert any(": step" in line for line in said) and sent and sent[0] < 3
    assert sum(order.seconds.values()) <= took * max(1, workers) and said[-1].endswith(" s")


def test_an_autoencoder_that_misses_its_target_ends_the_call(home, made):
    order, said = order_of(home[0], "work", least_db=99.0), []
    order.say = said.append
    with pytest.raises(TrainingError, match=r"reaches \d+\.?\d* dB .* 99 are asked .*`--least-db 0`.*_vae"):
        in_order.everything(order, home[0] / "pictures.npz")
    assert set(order.seconds) == {"vae", "clip"} and parcels.known(order.out)
    assert any(line.startswith("vae: ") and line.endswith(" dB on held-out pictures") for line in said)


@pytest.mark.parametrize(
    ("scale", "given", "least"), [("1", [], 30), ("0.5", [], 0), ("0.5", ["--least-db", "25"], 25)]
)
def test_the_target_stands_at_full_scale(scale, given, least, tmp_path, monkeypatch):
    orders: list[in_order.Order] = []
    monkeypatch.setattr(in_order, "everything", lambda order, file: orders.append(order) or True)
    monkeypatch.setattr(in_order.Order, "send", lambda self: None)
    asked = ["all", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--device", "cpu", "--scale", scale]
    assert CliRunner().invoke(command.app, [*asked, *given]).exit_code == 0
    assert orders[0].least_db == least


def test_an_interrupted_call_says_what_became_of_it(tmp_path):
    order = order_of(tmp_path, "work")

    def interrupted() -> bool:
        order.seconds["vae"] = 3.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command._worked(order, interrupted)
    found = json.loads((order.out / "all.json").read_text())
    assert found["done"] is False and found["seconds"] == {"vae": 3.0}


def test_when_the_minutes_are_over_the_rest_is_left(home):
    order = order_of(home[0], "short", minutes=-1)
    assert not in_order.everything(order, home[0] / "pictures.npz") and not order.failed
    assert not list(order.out.iterdir())
    each = dataclasses.replace(ASKED, how=How(every=1))
    stage = second_stages.vae(each, home[0] / "short")
    next(stage)
    stage.close()
    state = torch.load(home[0] / "short" / "train" / "vae.pt", weights_only=True)
    assert state["step"] == 1  # goes on from here


def test_the_assets_are_a_workspace(home, made):
    root = home[0]
    to = root / "assets"
    lines = list(second_assets.build(ASKED, made.out, root / "assembling", to))
    assert lines[-1] == "Complete seeds of the oracle: 3, 4."
    card = read_cards(to / "models" / "emoji-second.yaml")["emoji-second"]
    model = load_model(card, device="cpu")
    assert card.resolution == SIZE and model.generate(["cat"], seeds=[0], steps=1).shape == (1, SIZE, SIZE, 3)
    seen = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    clip, likeness = Clip(to / "clip"), open_encoder(card, to / "bank.safetensors")
    torch.testing.assert_close(likeness.image_features(seen), clip.image_features(seen), rtol=1e-3, atol=1e-4)
    live = adapters.load(to / "runs" / "emoji-second" / "tiny" / "oracle" / "noto", model=model, group="noto")
    assert live.group == "noto"
    seeds = collected.kept(to / "benchmarks")
    assert [s.seed for s in seeds] == [3, 4] and seeds[0].groups == IDS
    with (
        np.load(made.work / "logo" / "unet-without-noto-s4" / "values.npz") as z,
        np.load(made.work / "logo" / "unet-full-s4" / "values.npz") as f,
    ):
        sizes = second_oracle.make_strata(model.schedule, 3, TINY.scores.rule).sizes
        drop = ((z["fresh"].astype(float) - f["fresh"]).mean(axis=2) * sizes).sum(axis=1)
    np.testing.assert_allclose(seeds[1].scores["fresh"][:, 1], drop, rtol=1e-4)
    with pytest.raises(OptionError, match="is not empty"):
        second_assets.allowed(to)
    with pytest.raises(OptionError, match="first edition"):
        second_assets.allowed(paths.ASSETS / "new")


def test_results_are_cut_into_parcels(tmp_path):
    root, rng = tmp_path / "root", np.random.default_rng(0)
    sizes = {"a/large.bin": 400_000, "b.bin": 30_000, "c.bin": 50_000}
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rng.bytes(size))
    units, limit = [[root / n] for n in sizes], parcels.ROOM + 150_000
    out, left = parcels.send(units, root, tmp_path / "out", before={}, limit=limit)
    assert list(out) == list(sizes) and left == []
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert all(p.stat().st_size <= limit for p in (tmp_path / "out").iterdir())
    assert parcels.take_back(tmp_path / "out", tmp_path / "new") == ["3 files came back."]
    assert all((root / n).read_bytes() == (tmp_path / "new" / n).read_bytes() for n in sizes)
    (tmp_path / "out" / "second-2.zip").unlink()  # a part of the large one
    assert set(parcels.known(tmp_path / "out")) == {"b.bin", "c.bin"}
    _, left = parcels.send(units[::-1], root, tmp_path / "x", before={}, limit=parcels.ROOM + 40_000)
    assert left == ["a/large.bin"] and set(parcels.known(tmp_path / "x")) == {"b.bin", "c.bin"}
    assert not parcels.send(units, root, tmp_path / "x", before=parcels.known(tmp_path / "out"), first=2)[1]
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"second-1.zip", "second-2.zip"}


def test_what_is_of_use_only_together_comes_back_whole_or_not_at_all(tmp_path):
    root, rng = tmp_path / "root", np.random.default_rng(0)
    sizes = {"a/weights": 100_000, "a/record": 100, "b/weights": 400_000, "b/record": 100, "c": 200_000}
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rng.bytes(size))
    a, b, c = ([root / n for n in sizes if n.startswith(x)] for x in "abc")
    _, left = parcels.send([a, b, c], root, tmp_path / "out", before={}, limit=parcels.ROOM + 90_000)
    assert left == ["b/weights", "b/record"] and set(parcels.known(tmp_path / "out")) == {"a/weights", "a/record", "c"}
    (tmp_path / "out" / "second-1.zip").unlink()
    new = tmp_path / "new"
    said = parcels.take_back(tmp_path / "out", new)
    assert said == ["1 files came back.", "a/record is left out: a/weights did not come back whole."]
    assert [p.name for p in new.rglob("*")] == ["c"]
    before = parcels.known(tmp_path / "out")
    out, _ = parcels.send([a], root, tmp_path / "out", before=before, first=10)
    assert set(out) == {"a/weights"}
    assert parcels.take_back(tmp_path / "out", new) == ["2 files came back."]  # of two calls
    (new / "a/weights").unlink()
    assert parcels.take_back(tmp_path / "out", new) == ["1 files came back."]
    (new / "a/weights").unlink()
    (new / "a/record").write_text("of another training")
    assert parcels.take_back(tmp_path / "out", new) == ["0 files came back."]


def test_pictures_are_kept_in_half_the_room(tmp_path):
    seen = np.stack(list(queries.pictures(paths.BENCHMARKS)))[::25]  # of the first edition, as one array
    arrays = lossless.joined(map(lossless.coded, seen))
    np.savez(tmp_path / queries.PICTURES, pictures=arrays["pictures"], ends=arrays["ends"])
    np.savez_compressed(tmp_path / "pixels.npz", generated=seen)
    assert np.array_equal(np.stack(list(queries.pictures(tmp_path))), seen)
    assert (tmp_path / queries.PICTURES).stat().st_size < 0.7 * (tmp_path / "pixels.npz").stat().st_size


def test_the_nearest_picture_by_closed_form():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((3, 4, 4, 3), 30, np.uint8)
    grey[1] = 10
    np.testing.assert_allclose(second_quality.nearest(black, grey, "cpu"), [10, 10], rtol=1e-6)
    assert second_quality.nearest(grey, grey, "cpu").max() == 0


def test_a_pass_costs_what_it_did():
    """The UNet works on 16 x 16 places as before: the operations of a pass are within two percent."""
    full, context = Edition(), (32, 128)
    first = second_trial.gflop(VaeConfig(), UnetConfig(), 64, context)
    second = second_trial.gflop(full.vae, full.unet, 128, context)
    assert second["unet"] == pytest.approx(first["unet"], rel=0.02) and second["unet"] > 0.5
    assert full.scaled(0.5).unet.loop.steps == full.unet.loop.steps // 2 and full.scores.first == 4


def test_the_trial_says_what_everything_takes(home, tmp_path):
    root, said = home[0], []
    longer = {k: dataclasses.replace(getattr(TINY, k), loop=loop(6, 2)) for k in ("vae", "clip", "unet")}
    asked = dataclasses.replace(ASKED, edition=dataclasses.replace(TINY, **longer))
    record = second_trial.trial(asked, tmp_path / "work", root / "pictures.npz", 0.0, said.append)
    each = {part: record["parts"][part] for part in second_trial.PARTS}
    assert all(e["pictures_per_second"] > 0 and e["steps"] == "without a graph" for e in each.values())
    rate = each["unet"]["pictures_per_second"]  # to one decimal, which is much of it on a slow machine
    assert 6 * 2 / (rate + 0.05) - 0.06 <= each["unet"]["expected_s"] <= 6 * 2 / max(rate - 0.05, 1e-9) + 0.06
    wanted = each["vae"]["expected_s"] + each["clip"]["expected_s"] + 6 * each["unet"]["expected_s"]
    assert record["all_s"] == pytest.approx(wanted, abs=0.2) and len(said) == 3


def test_commands_refuse_what_makes_no_sense(home, tmp_path, monkeypatch):
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "empty"))
    run = CliRunner().invoke
    for arguments, why in (
        (["all", "--out", str(tmp_path / "o"), "--device", "tpu"], "cpu or cuda"),
        (["trial", "--scale", "0"], "above 0"),
        (["pack", "--file", str(tmp_path / "p.npz")], "groups fetch"),
    ):
        refused = run(command.app, arguments)
        assert refused.exit_code == 2 and "Traceback" not in refused.output
        assert refused.stderr.strip().startswith("Error: ") and why in refused.stderr
    with pytest.raises(TrainingError, match="comes first"):
        second_stages.need("vae")


class Card:
    """A pool of three processes on a clock that is set on. A process starts in 20 s; a training needs `alone` seconds
    of the card, which trainings share where it is `busy`, and 12 s to be scored; the full model is only scored."""

    about = "a card"

    def __init__(self, clock: list[float], alone: float, busy: bool) -> None:
        self.clock, self.alone, self.busy, self.started = clock, alone, busy, 0
        self.left: dict[str, list[float]] = {}  # to start, on the card, to score
        self.trained: dict[str, float] = {}  # seconds
        self.done: list[str] = []
        self.cut = 0

    def free(self) -> int:
        return 3 - len(self.left)

    def submit(self, job: Job) -> None:
        self.left[job.name] = [20.0 * (self.started < 3), self.alone * ("without" in job.name), 12.0]
        self.started += 1

    def told(self, timeout: float) -> list[Told]:
        self.clock[0] += timeout
        on_card = [n for n, (start, train, _) in self.left.items() if start <= 0 < train] if self.busy else [""]
        for name, parts in self.left.items():
            i = next(i for i in range(3) if parts[i] > 0 or i == 2)
            self.trained[name] = self.trained.get(name, 0) + timeout * (i == 1)
            parts[i] -= timeout / (len(on_card) if i == 1 else 1)
        ended = [n for n, parts in self.left.items() if parts[2] <= 0]
        self.done += ended
        words = [Told(n, "progress", 0.7 * (1 - max(0, p[1]) / self.alone)) for n, p in self.left.items()]
        self.left = {n: p for n, p in self.left.items() if n not in ended}
        return words + [Told(n, "done", 1.0) for n in ended]

    def close(self) -> None:
        self.cut, self.left = self.cut + len(self.left), {}

    def record(self, one: Training) -> dict | None:
        took = self.trained[one.name]
        rate = TINY.unet.loop.steps * TINY.unet.loop.batch / took if one.exclude else None
        return {"pictures_per_second": rate, "device": "CPU", "training_s": took, "all_s": took + 12}


@pytest.mark.parametrize("known", [True, False], ids=["rate known", "rate unknown"])
@pytest.mark.parametrize("busy", [True, False], ids=["busy card", "idle card"])
@pytest.mark.parametrize(("alone", "minutes"), [(45, 4), (16, 4), (31, 8)])
def test_trainings_begin_one_by_one_while_they_end_in_time(alone, minutes, busy, known, tmp_path, monkeypatch):
    clock = [0.0]
    card = Card(clock, alone, busy)
    timed = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: None)
    for module in (in_order, driver, timely):
        monkeypatch.setattr(module, "time", timed)
    monkeypatch.setattr(second_oracle, "is_trained", lambda *of: False)
    monkeypatch.setattr(second_oracle, "record_of", card.record)
    monkeypatch.setattr(in_order.Order, "pool", lambda self, workers: card)
    sent: list[float] = []
    monkeypatch.setattr(in_order.Order, "send", lambda self: sent.append(clock[0]))
    if known:
        folder = tmp_path / "train" / "unet-full-s3"
        folder.mkdir(parents=True)
        rate = TINY.unet.loop.steps * TINY.unet.loop.batch / alone
        (folder / "stage.json").write_text(json.dumps({"pictures_per_second": rate, "device": "CPU"}))
    said: list[str] = []
    order = in_order.Order(ASKED, tmp_path, tmp_path, 60.0 * minutes, said.append, workers=3)
    wanted = [Training(g, 3) for g in (None, *map(str, range(60)))]
    assert not in_order._oracle(order, wanted) and said[-1].startswith(f"{61 - len(card.done)} trainings are left")
    assert card.cut == 0 if known or busy else card.cut <= 2
    assert 60 * minutes - clock[0] < alone + 12 + 5
    assert len(card.done) >= (60 * minutes - 20) * (1 / alone if busy else 3 / (alone + 12)) - 3
    assert min(b - a for a, b in itertools.pairwise(sent[:-1])) >= in_order.SENT_S
