"""The training loop and its parts: resuming, schedules, sampling, and that a group left out is really left out."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from experiments.train import __main__ as command
from experiments.train import clip as clip_training
from experiments.train import stages
from experiments.train import unet as unet_training
from experiments.train import vae as vae_training
from guda_core.data.dataset import Pictures
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import TrainingError
from guda_core.records import Group, GroupSet
from guda_core.unlearning import loop
from guda_core.unlearning.loop import LoopConfig, Progress, learning_rate, run

CONFIG = LoopConfig(steps=12, batch=4, lr=0.05, warmup=3, ema=0.9, seed=7)


def make_group_set() -> GroupSet:
    groups = {k: Group(k, k, descriptors=tuple(f"{k}{i} stroke" for i in range(5))) for k in ("one", "two")}
    return GroupSet(
        "toy", "Toy", groups, resolution=16, caption="{object}, {descriptors}", descriptors_per_caption=2,
        train_objects=("cat", "sun"), held_out_objects=("owl",),
    )  # fmt: skip


def make_pictures(n: int = 3, size: int = 16) -> Pictures:
    rng = np.random.default_rng(0)
    ids = ("one",) * n + ("two",) * n
    return Pictures(rng.integers(0, 256, (2 * n, size, size, 3), dtype=np.uint8), ids, ("cat", "sun", "cat")[:n] * 2)


def regression(config: LoopConfig, checkpoint=None, stop: int | None = None) -> nn.Linear:
    """Fit a plane; with `stop`, close the training after so many steps."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1)

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        x = torch.randn(config.batch, 3, generator=g)
        return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()

    with closing(run(net, loss_of, config, checkpoint)) as steps:
        for p in steps:
            if p.step == stop:
                break
    return net


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = regression(CONFIG)
    regression(CONFIG, tmp_path / "c.pt", stop=5)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5
    resumed = regression(CONFIG, tmp_path / "c.pt")
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert not torch.equal(whole.weight, regression(dataclasses.replace(CONFIG, ema=0.0)).weight)


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    often = dataclasses.replace(CONFIG, checkpoint_s=-1.0)
    regression(often, tmp_path / "c.pt", stop=5)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save({**saved, "step": 5}, tmp_path / "c.pt")
    (tmp_path / ".part-c.pt").write_bytes(b"torn")  # the kill came while a checkpoint was being written
    assert torch.equal(regression(CONFIG, tmp_path / "c.pt").weight, regression(CONFIG).weight)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]  # what is torn is as large as a model, and does not pile up


def test_training_learns():
    net = regression(LoopConfig(steps=300, batch=16, lr=0.05, warmup=3, weight_decay=0.0))
    assert torch.allclose(net.weight, torch.ones(1, 3), atol=0.02)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    regression(CONFIG, tmp_path / "c.pt", stop=5)
    with pytest.raises(TrainingError, match=r"other settings \(lr, seed\)"):
        regression(dataclasses.replace(CONFIG, lr=0.1, seed=8), tmp_path / "c.pt")


def test_a_loss_that_is_not_finite_stops_the_training():
    net = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        for _ in run(net, lambda step, g: net(torch.full((1, 1), math.nan)).sum(), CONFIG):
            pass


@pytest.mark.parametrize("accelerated", [False, True], ids=["alone", "accelerated"])
def test_a_gradient_that_is_not_finite_stops_the_training_and_gets_into_no_checkpoint(tmp_path, accelerated):
    net, config = nn.Linear(2, 1), dataclasses.replace(CONFIG, checkpoint_s=0.0)
    accelerator = Accelerator(cpu=True) if accelerated else None

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        loss = net(torch.ones(1, 2)).square().mean()
        if step == 2:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    steps = run(net, loss_of, config, tmp_path / "c.pt", accelerator=accelerator)
    seen = [next(steps).loss for _ in range(2)]
    with pytest.raises(TrainingError, match=rf"gradients are not finite at step 2\. .* than {CONFIG.lr} may help"):
        next(steps)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    assert np.isfinite(seen).all() and kept["step"] == 2 and torch.equal(kept["module"]["weight"], net.weight)
    assert net.weight.isfinite().all()


def test_a_training_that_is_stopped_just_after_a_checkpoint_writes_no_other(tmp_path, monkeypatch):
    net, kept = nn.Linear(2, 1), []
    monkeypatch.setattr(loop.checkpoints, "write", lambda path, state: kept.append(state["step"]))
    for between, wanted in ((0.0, [1, 2]), (1e9, [2])):
        kept.clear()
        config = dataclasses.replace(CONFIG, checkpoint_s=between)
        steps = run(net, lambda step, g: net(torch.ones(1, 2)).square().mean(), config, tmp_path / "c.pt")
        next(steps), next(steps)
        steps.close()
        assert kept == wanted


@pytest.mark.parametrize(
    ("write_s", "saved"), [(1.0, [60, 120, 180, 240, 300]), (12.0, [60, 180, 300]), (31.0, [60, 300])], ids=str
)
def test_checkpoints_that_take_long_to_write_are_written_seldom(tmp_path, monkeypatch, write_s, saved):
    """300 steps of a second, and a checkpoint a minute wanted."""
    now, kept = [0.0], []

    def write(path, state):
        now[0] += write_s
        kept.append(state["step"])

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        now[0] += 1.0
        return net(torch.ones(1, 2)).square().mean()

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop.checkpoints, "write", write)
    net = nn.Linear(2, 1)
    for _ in run(net, loss_of, LoopConfig(steps=300, batch=1, lr=1e-3, checkpoint_s=60.0), tmp_path / "c.pt"):
        pass
    assert kept == saved


def test_learning_rate_rises_and_falls_to_zero():
    config = LoopConfig(steps=100, batch=1, lr=2.0, warmup=10)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 9) == learning_rate(config, 10) == 2.0
    assert learning_rate(config, 55) == pytest.approx(1.0)
    assert learning_rate(config, 99) < 0.01
    short = [learning_rate(dataclasses.replace(config, steps=4), step) for step in range(4)]
    assert short == pytest.approx([1.0, 2.0, 2.0, 1.0])
    assert learning_rate(dataclasses.replace(config, steps=1), 0) == 2.0


def test_every_epoch_sees_every_item_once_in_a_new_order():
    at = torch.cat([unet_training.epoch_batch(10, 4, s, seed=1) for s in range(5)])
    assert sorted(at[:10].tolist()) == sorted(at[10:].tolist()) == list(range(10))
    assert at[:10].tolist() != at[10:].tolist()
    assert torch.equal(unet_training.epoch_batch(10, 4, 2, seed=1), at[8:12])
    assert not torch.equal(torch.cat([unet_training.epoch_batch(10, 5, s, seed=2) for s in range(2)]), at[:10])


def test_timesteps_are_spread_over_the_whole_range():
    t = unet_training.stratified_times(10, 1000, torch.Generator().manual_seed(0))
    assert sorted(i // 100 for i in t.tolist()) == list(range(10))
    assert t.tolist() != sorted(t.tolist())


def test_min_snr_weights():
    ab = torch.tensor([0.99, 5 / 6, 0.5, 0.1], dtype=torch.float64)  # SNR 99, 5, 1, 1/9
    weights = unet_training.min_snr(Schedule.ddpm(ab), gamma=5.0)
    assert weights.tolist() == pytest.approx([5 / 99, 1, 1, 1])


SMALL = unet_training.UnetConfig(
    channels=(32, 32), heads=2, loop=LoopConfig(steps=3, batch=4, lr=1e-3, warmup=1, ema=0.9, seed=3)
)


def train_unet(tmp_path, name, exclude=None, latents=None, seen=None):
    group_set, pictures = make_group_set(), make_pictures()

    def embed(captions: list[str]) -> torch.Tensor:
        if seen is not None:
            seen.update(captions)
        return torch.stack([torch.full((2, 8), (len(c) % 7) / 7) for c in captions])

    z = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1)) if latents is None else latents
    *_, (_, unet) = unet_training.train(z, pictures, group_set, embed, SMALL, tmp_path / f"{name}.pt", exclude)
    return unet


def test_a_group_left_out_is_never_seen(tmp_path):
    seen: set[str] = set()
    z = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    a = train_unet(tmp_path, "a", exclude="two", latents=z, seen=seen)
    assert seen and not any("two" in c for c in seen)
    spoiled = z.clone()
    spoiled[3:] = 1e6  # the pictures of "two"
    b = train_unet(tmp_path, "b", exclude="two", latents=spoiled)
    full = train_unet(tmp_path, "c", latents=z)
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), full.parameters(), strict=True)]
    assert all(same) and not all(other)


def test_leaving_out_a_group_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"'three' is no group.*one, two"):
        train_unet(tmp_path, "a", exclude="three")


def test_psnr():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0] += 255
    b[1, 0] += 16
    expected = (0 + 10 * math.log10(255**2 / (16**2 / 4))) / 2
    assert vae_training.psnr(a, b) == pytest.approx(expected)


def test_the_vae_trains_and_its_latents_are_standardised(tmp_path):
    config = vae_training.VaeConfig(
        channels=(8, 8, 8), loop=LoopConfig(steps=60, batch=4, lr=3e-3, warmup=2, weight_decay=0.0, seed=1)
    )
    pictures = make_pictures()
    flat = Pictures(
        np.repeat(np.repeat(pictures.pixels[:, :4, :4], 4, axis=1), 4, axis=2), pictures.groups, pictures.names
    )
    made = list(vae_training.train(flat, config, tmp_path / "vae.pt"))
    assert made[-2][0].loss < made[0][0].loss
    vae = made[-1][1]
    z = vae_training.latents(vae, flat.pixels)
    assert z.shape == (6, 4, 4, 4)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.05 and (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    assert float(vae.config["scaling_factor"]) == 1.0


def test_the_clip_learns_to_match(tmp_path):
    config = clip_training.ClipConfig(
        vocabulary=200, max_tokens=24, text_width=32, text_layers=1, image_width=48, image_layers=1, patch=8,
        projection=16, shift=1, loop=LoopConfig(steps=60, batch=6, lr=3e-3, warmup=2, seed=2),
    )  # fmt: skip
    made = list(clip_training.train(make_pictures(), make_group_set(), config, tmp_path / "clip.pt"))
    assert made[-2][0].loss < made[0][0].loss
    _, model, tokenizer = made[-1]
    assert tokenizer.model_max_length == 24
    f = clip_training.image_features(model, make_pictures().pixels)
    t = clip_training.text_features(model, tokenizer, ["cat, one0 stroke, one1 stroke", "x" * 300])
    assert f.shape == (6, 16) and t.shape == (2, 16)
    assert torch.allclose(f.norm(dim=1), torch.ones(6), atol=1e-5)


def test_any_word_can_be_spelled():
    tokenizer = clip_training.train_tokenizer(["cat, flat colours", "sun"], clip_training.ClipConfig(vocabulary=80))
    unknown = set(tokenizer.tokenize("zebra 42, quick fox")) - set(tokenizer.get_vocab())
    assert not unknown
    assert tokenizer.decode(tokenizer("Zebra quick").input_ids, skip_special_tokens=True).strip() == "zebra quick"


def test_a_line_of_progress_says_a_loss_only_where_a_step_was_taken():
    assert str(Progress(3, 8, 0.12345, 41.6)) == "3/8  loss 0.1235  42 pictures/s"
    assert str(Progress(8, 8, math.nan, 0.0)) == "8/8"


def test_seconds_add_up_over_a_stop_and_the_next_training_of_the_name_begins_at_none(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(stages.time, "monotonic", lambda: float(next(clock)))
    folder = stages.work_dir() / "toy"

    def seconds(parts: int) -> float:
        for _ in range(parts):
            list(stages.timed("toy", iter_of(())))
        folder.mkdir(exist_ok=True)
        stages.finish(folder, {}, "toy")
        return json.loads((folder / "stage.json").read_text())["seconds"]

    def iter_of(steps):
        yield from steps

    once = seconds(1)
    assert once > 0 and seconds(2) == 2 * once and seconds(1) == once


def test_a_finished_training_of_other_settings_or_of_another_set_does_not_count(monkeypatch, capsys):
    config, folder = unet_training.UnetConfig(), stages.work_dir() / "unet-full-s3"
    often = dataclasses.replace(config, loop=dataclasses.replace(config.loop, checkpoint_s=1.0))
    folder.mkdir(parents=True)
    for told, config_told, said in (
        ({"group_set": "emoji"}, often, "already done"),
        ({}, config, "already done"),  # as older records are
        ({"group_set": "other"}, config, "on another group set"),
        ({}, dataclasses.replace(config, gamma=1.0), "with other settings"),
    ):
        stages.finish(folder, config_told, "unet-full-s3", **told)
        monkeypatch.setattr("sys.argv", ["train", "unet"])
        with pytest.raises(SystemExit):
            command.main()
        assert said in " ".join("".join(capsys.readouterr()).split())
