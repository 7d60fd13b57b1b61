"""The second edition's trainings step by step: what they draw, where they go on, and that they learn."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from experiments.second import __main__ as second
from experiments.second import fast_loop, fast_trainings
from experiments.second.fast_loop import How, orders
from experiments.train import captured
from experiments.train import clip as clip_training
from experiments.train import unet as unet_training
from experiments.train import vae as vae_training
from guda_core.diffusion import precision
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import TrainingError
from guda_core.unlearning.loop import LoopConfig, learning_rate, run
from tests.test_training import SMALL, make_group_set, make_pictures

CONFIG = LoopConfig(steps=12, batch=4, lr=0.05, warmup=3, ema=0.9, seed=7)
CPU, EACH = How(), How(every=1)


def draw(step: int, g: torch.Generator):
    return {"x": torch.randn(4, 3, generator=g)}


def plane(loop_run, *args, stop: int | None = None) -> nn.Linear:
    """Fit a plane by a loop; with `stop`, close the training after so many steps."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    with closing(loop_run(net, *args)) as steps:
        for p in steps:
            if p.step == stop:
                break
    return net


def fast(config: LoopConfig, checkpoint=None, stop: int | None = None) -> nn.Linear:
    def of(net, *args):
        def loss_of(b):
            return (net(b["x"]) - b["x"].sum(dim=1, keepdim=True)).square().mean()

        return fast_loop.run(net, draw, loss_of, config, EACH, checkpoint)

    return plane(of, stop=stop)


def test_the_fast_loop_takes_the_steps_of_the_loop():
    """On a CPU both draw from the same generator, so that their weights agree to rounding."""

    def of(net):
        def loss_of(step, g):
            x = draw(step, g)["x"]
            return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()

        return run(net, loss_of, CONFIG)

    slow, quick = plane(of), fast(CONFIG)
    torch.testing.assert_close(quick.weight, slow.weight, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(fast(dataclasses.replace(CONFIG, ema=0.0)).weight, quick.weight)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    fast(CONFIG, tmp_path / "c.pt", stop=5)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5
    assert torch.equal(fast(CONFIG, tmp_path / "c.pt").weight, fast(CONFIG).weight)
    with pytest.raises(TrainingError, match="other settings"):
        fast(dataclasses.replace(CONFIG, lr=0.1), tmp_path / "c.pt")


def test_a_broken_loss_is_told():
    net = nn.Linear(3, 1)
    with pytest.raises(TrainingError, match="loss is nan"):
        list(fast_loop.run(net, draw, lambda b: net(b["x"]).sum() * float("nan"), CONFIG, EACH))


def test_orders_are_those_of_the_first_edition():
    found = orders(10, 4, 7, seed=3)
    assert all(torch.equal(found[s], unet_training.epoch_batch(10, 4, s, 3)) for s in range(7))


def test_pictures_are_moved_as_the_first_edition_moves_them():
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = clip_training.jitter(x, 2, torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)
    flip, moves = torch.rand(5, generator=g) < 0.5, torch.randint(5, (5, 2), generator=g)
    assert torch.equal(fast_trainings.jittered(x, flip, moves, 2), wanted)


def test_autocast_is_used_where_it_is_asked_for():
    net, seen = nn.Linear(3, 1), []

    def loss_of(b):
        out = net(b["x"])
        seen.append(out.dtype)
        return out.float().square().mean()

    for bf16 in (False, True):
        list(fast_loop.run(net, draw, loss_of, dataclasses.replace(CONFIG, steps=1), How(bf16=bf16)))
    assert seen == [torch.float32, torch.bfloat16] and net.weight.dtype == torch.float32


def test_a_graph_is_not_asked_for_without_a_gpu():
    """The switch is there, and a CPU takes plain steps whatever it says."""
    net = nn.Linear(3, 1)
    *_, last = fast_loop.run(net, draw, lambda b: net(b["x"]).square().mean(), CONFIG, How(graph=True))
    assert last.note == "without a graph" and How.on("cuda").graph and How.on("cuda").bf16 and How.on("cpu") == CPU


def small_unet():
    return unet_training.make_unet(SMALL, latent_channels=4, latent_size=8, context=8)


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_takes_bfloat16_only_where_it_has_it(monkeypatch, fast):
    """Elsewhere a step takes half a minute."""
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: fast)
    asked = second._asked("cpu", 1.0, False, compiled=True)
    assert asked.how.bf16 == fast and asked.how.compiled and not second._asked("cpu", 1.0, False).how.bf16


def test_a_unet_is_compiled_for_its_training_alone(monkeypatch):
    """Within the block it is as it was asked for; afterwards it is what it was."""
    unet, asked = small_unet(), []
    monkeypatch.setattr(type(unet), "compile", lambda net: asked.append(net))
    before = {n: type(p) for n, p in unet.attn_processors.items()}
    with fast_trainings.suited(unet, CPU):
        assert not asked and {n: type(p) for n, p in unet.attn_processors.items()} == before
    with fast_trainings.suited(unet, How("cuda", bf16=True)):
        assert not asked and {n: type(p) for n, p in unet.attn_processors.items()} == before
    with fast_trainings.suited(unet, How(bf16=True, compiled=True)):
        assert asked == [unet] and {type(p) for p in unet.attn_processors.values()} == {AttnProcessor}
    assert {n: type(p) for n, p in unet.attn_processors.items()} == before and AttnProcessor not in before.values()


def test_attention_written_out_is_the_same_attention():
    unet, z = small_unet(), torch.randn(2, 4, 8, 8)
    asked = (z, torch.tensor([3, 400]), torch.randn(2, 5, 8))
    wanted = unet(*asked).sample
    unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(unet(*asked).sample, wanted, rtol=1e-4, atol=1e-5)


def test_fast_convolutions_are_searched_for_on_a_gpu_alone():
    was = torch.backends.cudnn.benchmark
    with fast_loop.searching(How("cuda")):
        assert torch.backends.cudnn.benchmark
    with fast_loop.searching(CPU):
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == was


class Words:
    """Stands for the text encoder: a text is its length."""

    def __call__(self, texts):
        return torch.stack([torch.full((2, 8), len(t) / 50) for t in texts])


def bank(pictures):
    return fast_trainings.bank_of(pictures, make_group_set(), Words(), 3, 0, CPU)  # type: ignore[arg-type]


def test_the_captions_of_a_picture_are_its_own():
    pictures = make_pictures()
    found = bank(pictures)
    assert found.places.shape == (6, 3) and found.empty.abs().max() == 0
    assert (
        len({int(i) for row in found.places[:3] for i in row} & {int(i) for row in found.places[3:] for i in row}) == 0
    )


def trained(latents, exclude=None):
    pictures = make_pictures()
    *_, (_, unet) = fast_trainings.train_unet(latents, pictures.groups, bank(pictures), SMALL, CPU, exclude=exclude)
    return torch.cat([p.detach().flatten() for p in unet.parameters()])


def test_a_group_left_out_is_never_seen():
    z = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    spoiled = z.clone()
    spoiled[3:] = 1e6  # the pictures of "two"
    without = trained(z, "two")
    assert torch.equal(trained(spoiled, "two"), without) and not torch.equal(trained(z), without)


def test_the_loss_of_a_silent_unet_is_the_mean_weight(monkeypatch):
    """A UNet that says nothing errs by the noise, whose variance is 1: the loss is the mean of the weights."""
    make = unet_training.make_unet

    def silent(*args, **more):
        unet = make(*args, **more)
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        return unet

    monkeypatch.setattr(unet_training, "make_unet", silent)
    loop = dataclasses.replace(SMALL.loop, steps=1, batch=100)
    pictures, z = make_pictures(), torch.zeros(6, 4, 8, 8)
    steps = fast_trainings.train_unet(z, pictures.groups, bank(pictures), dataclasses.replace(SMALL, loop=loop), CPU)
    mean = unet_training.min_snr(Schedule.ddpm(unet_training.make_scheduler().alphas_cumprod), SMALL.gamma).mean()
    assert next(steps)[0].loss == pytest.approx(float(mean), rel=0.06)


def test_the_vae_of_four_levels_learns_and_is_standardised():
    config = vae_training.VaeConfig(
        channels=(8, 8, 8, 8), latent_channels=6,
        loop=LoopConfig(steps=100, batch=4, lr=3e-3, warmup=2, ema=0.5, weight_decay=0.0, seed=1),
    )  # fmt: skip
    pictures = make_pictures()
    flat = dataclasses.replace(pictures, pixels=np.repeat(np.repeat(pictures.pixels[:, :2, :2], 8, 1), 8, 2))
    made = list(fast_trainings.train_vae(flat, config, CPU))
    assert made[1][0].loss < made[0][0].loss
    z = vae_training.latents(made[-1][1], flat.pixels)
    assert z.shape == (6, 6, 2, 2)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.05 and (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05


def test_the_clip_learns_to_match():
    config = clip_training.ClipConfig(
        vocabulary=200, max_tokens=24, text_width=32, text_layers=1, image_width=48, image_layers=1, patch=8,
        projection=16, shift=1, loop=LoopConfig(steps=100, batch=6, lr=3e-3, warmup=2, seed=2),
    )  # fmt: skip
    made = list(fast_trainings.train_clip(make_pictures(), make_group_set(), config, CPU))
    assert made[1][0].loss < made[0][0].loss
    assert made[-1][2].model_max_length == 24


def test_the_clip_learns_the_same_with_attention_written_out(monkeypatch):
    """In bfloat16 on a CPU, where the fused one is slow; the model is as usual afterwards. The two are compared in
    float32: bfloat16's rounding grows from step to step, so it is compared before the first step alone."""
    config = clip_training.ClipConfig(
        vocabulary=200, max_tokens=24, text_width=32, text_layers=1, image_width=48, image_layers=1, patch=8,
        projection=16, shift=1, loop=LoopConfig(steps=6, batch=6, lr=3e-3, warmup=2, seed=2),
    )  # fmt: skip
    tokenizer = clip_training.tokenizer_for(make_pictures(), make_group_set(), config)
    monkeypatch.setattr(clip_training, "tokenizer_for", lambda *_: tokenizer)  # its training breaks ties at random

    def losses(how):
        *steps, last = fast_trainings.train_clip(make_pictures(), make_group_set(), config, how)
        assert last[1].config._attn_implementation == "sdpa"
        return [p.loss for p, _, _ in steps]

    assert How(bf16=True).writes_attention_out and not EACH.writes_attention_out
    fused, half = losses(EACH), losses(How(bf16=True, every=1))
    monkeypatch.setattr(How, "writes_attention_out", True)
    np.testing.assert_allclose(losses(EACH), fused, rtol=1e-4)
    assert half[0] == pytest.approx(fused[0], rel=0.02)
    assert min(half) < half[0]  # it learns; where just the last step ends depends on the tokens that tied


@pytest.mark.parametrize("told", ["as a graph", "without a graph: not permitted"])
def test_a_graph_is_captured_once_after_some_steps(told, monkeypatch, tmp_path):
    """Whatever comes of it, the steps are the plain ones, and the progress says what came of it."""
    wanted, asked = fast(CONFIG), []
    monkeypatch.setattr(How, "captures", True)
    monkeypatch.setattr(captured.Step, "capture", lambda step: asked.append(float(step.rate)) or told)
    notes: list[str] = []
    run_fast = fast_loop.run

    def noted(*args):
        for p in run_fast(*args):
            notes.append(p.note)
            yield p

    monkeypatch.setattr(fast_loop, "run", noted)
    assert torch.equal(fast(CONFIG).weight, wanted.weight)
    assert asked == [pytest.approx(learning_rate(CONFIG, captured.EAGER))]
    assert set(notes[: captured.EAGER]) == {"without a graph"} and set(notes[captured.EAGER :]) == {told}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_graph_learns_what_plain_steps_learn():
    """On a GPU: the same UNet, by graphs and by plain steps, ends at nearly the same loss."""
    pictures, z = make_pictures(), torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    config = dataclasses.replace(SMALL, loop=dataclasses.replace(SMALL.loop, steps=40))
    found = {}
    for graph in (True, False):
        how, made = How("cuda", bf16=True, graph=graph, every=10), bank(pictures)
        on_gpu = fast_trainings.Bank(*(t.to("cuda") for t in (made.embedded, made.places, made.empty)))
        said = [p for p, _ in fast_trainings.train_unet(z, pictures.groups, on_gpu, config, how)]
        assert said[-2].note == ("as a graph" if graph else "without a graph")
        found[graph] = said[-2].loss
    assert found[True] == pytest.approx(found[False], rel=0.05)
