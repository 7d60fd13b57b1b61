"""The oracle from several seeds on a tiny model, from the packed file to its tables, and those from a planted truth."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from experiments.benchmark import queries as q
from experiments.benchmark.scores import ScoreConfig, hash_state
from experiments.logo.trainings import Job as Training
from experiments.second import __main__ as second_command
from experiments.seeds import __main__ as command
from experiments.seeds import collected, packed, seed_trainings, seeds_figures
from experiments.seeds.seed_trainings import Asked
from experiments.tables import committed, seeds_table
from experiments.train import stages
from experiments.train.unet import UnetConfig, make_unet
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.sources.iconify import Iconify
from guda_core.diffusion.cards import load_model
from guda_core.errors import DataError, OptionError
from guda_core.jobs.job import perform
from guda_core.unlearning.loop import LoopConfig
from tests import job_works
from tests.tiny import save_tiny

IDS = ("twemoji", "noto", "openmoji")
UNET = UnetConfig(channels=(32, 32), heads=2, loop=LoopConfig(steps=4, batch=4, lr=1e-3, warmup=1, ema=0.5, seed=3))
SCORES = ScoreConfig(strata=3, draws=2, first=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of the embedded one's layout, its packed file, and the patches under which it is the embedded one."""
    root = tmp_path_factory.mktemp("seeds")
    card = save_tiny(root / "model", tokens=24)
    make_unet(UNET, latent_channels=4, latent_size=8, context=16).save_pretrained(root / "model" / "unet")
    model: Any = load_model(card, device="cpu")
    emoji = load_group_set("emoji")
    group_set = dataclasses.replace(
        emoji, groups={g: emoji.groups[g] for g in IDS}, held_out_objects=emoji.held_out_objects[:16]
    )

    def noise(objects, seed):
        pairs = [(g, o) for g in IDS for o in objects]
        pixels = np.random.default_rng(seed).integers(0, 256, (len(pairs), 16, 16, 3), dtype=np.uint8)
        return Pictures(pixels, *(tuple(x) for x in zip(*pairs, strict=True)))

    splits = {"held_out": noise(group_set.held_out_objects, 0), "train": noise(emoji.train_objects[:4], 1)}
    model.pipe.text_encoder.save_pretrained(root / "clip")
    model.pipe.tokenizer.save_pretrained(root / "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Iconify, "split", lambda self, split: splits[split])
        patch.setattr(stages, "autoencoder", lambda: model.pipe.vae)
        patch.setattr(stages, "text_encoder", lambda device="cpu": stages.TextEncoder(root / "clip", device))
        patch.setattr(seed_trainings, "model_on", lambda device: model)
        patch.setattr(collected, "model_on", lambda device: model)
        patch.setattr(packed, "load_group_set", lambda name: group_set)
        seed_trainings.opened.cache_clear()
        list(q.write(model, group_set, q.QueryConfig(objects=1, blend_objects=1, real=1, steps=1), root / "figures"))
        packed.write(root / "packed.npz", model, group_set, root / "figures")
        yield model, group_set, root, splits
    seed_trainings.opened.cache_clear()


def asked_of(root, **more) -> Asked:
    return Asked(root / "packed.npz", root / "out", (5,), unet=UNET, scores=SCORES, **more)


def test_what_is_packed_is_what_the_trainings_and_the_scoring_need(tiny):
    model, group_set, root, splits = tiny
    own = packed.read(root / "packed.npz")
    assert own.base_sha256 == model.sha256 and own.hashes["train"] == splits["train"].sha256()
    for split, pictures in splits.items():
        assert own.pictures[split].groups == pictures.groups and own.pictures[split].names == pictures.names
        z = torch.cat(
            [
                model.pipe.vae.encode(x[None].permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
                for x in torch.from_numpy(pictures.pixels)
            ]
        )
        torch.testing.assert_close(own.latents[split], z.detach(), rtol=1e-4, atol=1e-5)
    asked = q.read(root / "figures", group_set, model).queries
    assert [(x.prompt, x.image_hash) for x in own.queries["first"]] == [(x.prompt, x.image_hash) for x in asked]
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(own.queries["first"], asked, strict=True))


def test_what_is_packed_small_is_the_same_but_for_rounding(tiny):
    model, group_set, root, splits = tiny
    packed.write(root / "small.npz", model, group_set, root / "figures", small=True)
    own, small = packed.read(root / "packed.npz"), packed.read(root / "small.npz")
    assert small.hashes == own.hashes and small.pictures["train"].names == own.pictures["train"].names
    assert small.pictures["held_out"].names == splits["held_out"].names[:: packed.THIN]
    torch.testing.assert_close(small.latents["train"], own.latents["train"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(small.latents["held_out"], own.latents["held_out"][:: packed.THIN], rtol=1e-3, atol=1e-4)
    for a, b in zip(small.queries["first"], own.queries["first"], strict=True):
        assert (a.prompt, a.image_hash) == (b.prompt, b.image_hash) and a.latent.dtype == torch.float32


@pytest.fixture(scope="module")
def trained(tiny):
    """All trainings of seed 5, done as jobs; the last word on each."""
    asked = asked_of(tiny[2])
    return asked, [perform(job, lambda told: None) for job in seed_trainings.jobs_of(asked)]


def test_every_training_is_done_once_and_recorded(tiny, trained):
    asked, told = trained
    assert [(t.kind, t.note) for t in told] == [("done", "")] * 4
    assert [t.job for t in told] == ["unet-full-s5", *[f"unet-without-{g}-s5" for g in IDS]]
    assert {perform(job, lambda told: None).kind for job in seed_trainings.jobs_of(asked)} == {"found"}
    record = json.loads((asked.out / "unet-full-s5" / "training.json").read_text())
    assert record["key"]["config"]["loop"]["seed"] == 5 and record["device"] == "CPU" and not record["tf32"]
    assert 0.3 < record["held_out"] < 3 and record["held_out_embedded"] != record["held_out"]
    other = dataclasses.replace(asked, unet=dataclasses.replace(UNET, gamma=4.0))
    assert not seed_trainings.is_trained(other, Training(None, 5))


def test_the_training_is_that_of_the_cpu_command(tiny, trained):
    """Step by step the same as `experiments.train` makes: only where it runs differs."""
    _, group_set, root, _ = tiny
    record = json.loads((root / "out" / f"unet-without-{IDS[0]}-s5" / "training.json").read_text())
    *_, (_, unet) = stages.unet_steps(group_set, asked_of(root).config(5), IDS[0], None)
    stages.round_to_half(unet)
    assert hash_state(unet.state_dict()) == record["weights_sha256"]


def test_steps_taken_ahead_make_the_same_model_without_a_checkpoint(tiny, trained, tmp_path):
    asked, _ = trained
    own = dataclasses.replace(asked, ahead=True, out=tmp_path)
    training = Training(IDS[0], 5)
    for _ in seed_trainings.train(own, training):
        assert not list(tmp_path.rglob("checkpoint*"))
    assert seed_trainings.is_trained(own, training) and seed_trainings.complete(own, training)
    a, b = (np.load(f / training.name / "first.npy").astype(float) for f in (asked.out, tmp_path))
    np.testing.assert_allclose(a, b, rtol=1e-2)


def test_scores_are_the_elbo_differences_of_the_trained_models(tiny, trained, tmp_path):
    model = tiny[0]
    asked, _ = trained
    (path,) = collected.collect(asked, tmp_path)
    found = collected.read(path)
    assert found.seed == 5 and found.groups == IDS and found.scores["first"].shape == (len(IDS) * 2 + 3, 3)
    full, without = (
        np.load(asked.out / n / "first.npy").astype(float) for n in ("unet-full-s5", f"unet-without-{IDS[1]}-s5")
    )
    sizes = collected.make_strata(model.schedule, 3, SCORES.rule).sizes
    drop = ((without - full).mean(axis=2) * sizes).sum(axis=1)
    np.testing.assert_allclose(found.scores["first"][:, 1], drop, rtol=1e-5)
    assert (found.se["first"] > 0).all() and (np.ptp(found.scores["first"], axis=0) > 0).all()
    assert not collected.collect(dataclasses.replace(asked, seeds=(6,)), tmp_path)  # not trained


def test_the_held_out_loss_of_a_model_that_says_nothing_is_the_noises_variance(tiny):
    own, embed = packed.read(tiny[2] / "packed.npz"), stages.text_encoder()
    silent: Any = UNet2DConditionModel.from_config(tiny[0].network.config)
    torch.nn.init.zeros_(silent.conv_out.weight)
    torch.nn.init.zeros_(silent.conv_out.bias)
    assert seed_trainings.held_out_loss(silent, own, embed, "cpu") == pytest.approx(1.0, abs=0.04)


def test_the_commands_train_collect_and_keep(tiny, trained, tmp_path, monkeypatch):
    asked, _ = trained
    monkeypatch.setattr(command, "_asked", lambda *given: asked)
    run = CliRunner().invoke
    said = run(command.app, ["trial", "--seconds", "0", "--workers", "2"])
    assert said.exit_code == 0 and "pictures a second" in said.stdout and "4 trainings" in said.stdout
    assert run(command.app, ["collect", str(tmp_path / "c")]).exit_code == 0
    assert (
        run(command.app, ["keep", str(tmp_path / "c" / "seed-5.npz"), "--folder", str(tmp_path / "f")]).exit_code == 0
    )
    assert [s.seed for s in collected.kept(tmp_path / "f")] == [5]
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="not what"):
        collected.read(tmp_path / "x.npz")
    with pytest.raises(DataError, match="Train some"):
        seeds_figures.make(tmp_path)


def test_the_minutes_end_a_training_and_the_next_call_goes_on(tmp_path, monkeypatch):
    asked, jobs = SimpleNamespace(device="cpu", out=tmp_path), job_works.jobs(tmp_path, ["a", "b"], 0.6)
    monkeypatch.setattr(command, "_asked", lambda *given: asked)
    monkeypatch.setattr(seed_trainings, "jobs_of", lambda asked: jobs)
    run = ["train", "--workers", "1"]
    cut = CliRunner().invoke(command.app, [*run, "--minutes", "0.0001"])
    assert cut.exit_code == 0 and "0 of 2 trainings are done" in cut.stdout and not list(tmp_path.glob("*.made"))
    whole = CliRunner().invoke(command.app, [*run, "--minutes", "5"])
    assert whole.exit_code == 0 and "are done" not in whole.stdout and len(list(tmp_path.glob("*.made"))) == 2


def test_seeds_that_make_no_sense_are_refused(tmp_path):
    for seeds, why in (((), "one seed or more"), ((5, 5), "one seed or more"), ((3,), "that of the embedded model")):
        with pytest.raises(OptionError, match=why):
            Asked(tmp_path, tmp_path, seeds)


@pytest.mark.parametrize("of", [command, second_command])
def test_a_wrong_device_is_told_in_one_line(of, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "trial", "--device", "banana"])
    with pytest.raises(SystemExit) as ended:
        of.main()
    assert ended.value.code
    assert capsys.readouterr().err.strip().splitlines()[-1] == "Error: --device is cpu or cuda, not 'banana'."


def test_the_page_shows_trainings_ceiling_and_methods(tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    assert {render() for render in seeds_table.RENDER.values()} == {committed.UNKNOWN}
    v = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"method": "seed 5", "query_set": "real", "variation": v, "top1": v, "spearman": v}
    draws = {"fresh": {"ceiling": [row], "rows_mean": [{**row, "method": "guda"}]}}
    one = {"device": "a card", "seconds": {"training": 61.4}, "loss": 0.1, "held_out": 0.2}
    trainings = {"unet-full-s5": {**one, "held_out_embedded": 0.21}, "unet-without-noto-s5": one}
    record = {"command": "c", "date": "2026-01-02", "draws": draws, "trainings": trainings}
    (tmp_path / "seeds.json").write_text(json.dumps(record))
    text = seeds_table.RENDER["seeds_trainings"]()
    assert "| unet-full-s5 | a card | 61 | 0.1000 | 0.2000 | 0.2100 |" in text and "| 0.2000 |  |" in text
    assert "| fresh queries, real | seed 5 | 0.50 (0.40 to 0.60) |" in seeds_table.RENDER["seeds_ceiling"]()
    assert "| fresh queries, real | guda | 0.50" in seeds_table.RENDER["seeds_mean"]()


def test_figures_tell_the_ceiling_and_methods_against_the_mean():
    """A planted truth with noise of known size: what one seed tells of another follows from it in closed form."""
    rng = np.random.default_rng(0)
    n, noise = 500, 0.5
    truth = rng.normal(size=(n, 4))
    by_seed = {s: truth + noise * rng.normal(size=(n, 4)) for s in (3, 5, 6)}
    scores = {"logo": by_seed[3], "guda": truth, "random": rng.normal(size=(n, 4)), "logo/mse": truth, "logo-2": truth}
    made = [[f"g{i % 4}"] for i in range(n)]
    found = seeds_figures.figures(scores, by_seed, ["generated"] * n, made, np.ones((n, 4), bool))
    assert found["seeds"] == [3, 5, 6]

    def variation(rows, name):
        (row,) = [r for r in found[rows] if r["method"] == name]
        return row["variation"]["value"]

    one_mean = 1 / np.sqrt((1 + noise**2) * (1 + noise**2 / 2))  # one seed against the mean of two
    assert variation("ceiling", "seed 5") == pytest.approx(one_mean, abs=0.04)
    assert variation("pairs", "5 and 6") == pytest.approx(1 / (1 + noise**2), abs=0.04)
    assert variation("rows_mean", "guda") == pytest.approx(1 / np.sqrt(1 + noise**2 / 3), abs=0.04)
    assert variation("rows_new", "guda") == pytest.approx(1 / np.sqrt(1 + noise**2 / 2), abs=0.04)
    assert {r["method"] for r in found["rows_mean"]} == {"guda", "random"}
    assert {(d["first"], d["second"]) for d in found["differences_mean"]} == {("guda", "random")}
