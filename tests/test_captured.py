"""Training ahead of the device: without a graph it is `loop.run`, up to rounding; the graph's own check."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from experiments.train import captured
from experiments.train.captured import Drawn, Step
from guda_core.errors import TrainingError
from guda_core.unlearning import loop
from guda_core.unlearning.loop import LoopConfig

CONFIG = LoopConfig(steps=17, batch=8, lr=3e-2, warmup=4, ema=0.9, seed=3)
WORDS = ("a", "bb", "ccc")


def draw(step: int, g: torch.Generator) -> Drawn:
    x = torch.randn(CONFIG.batch, 3, generator=g)
    prompts = [WORDS[i] for i in torch.randint(3, (CONFIG.batch,), generator=g).tolist()]
    return Drawn((x, 2 * x + 0.1 * torch.randn(x.shape, generator=g)), prompts)


def embed(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([[[float(len(p))]] for p in prompts])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_by(module: nn.Module):
    def loss(*of: torch.Tensor) -> torch.Tensor:
        x, y, condition = of
        return (module(torch.cat([x, condition[:, 0]], dim=1)) - y).square().mean()

    return loss


def one_by_one(config: LoopConfig) -> tuple[nn.Module, list[loop.Progress]]:
    module = network()
    loss = loss_by(module)

    def loss_of(step, g):
        drawn = draw(step, g)
        return loss(*drawn.tensors, embed(list(drawn.prompts)))

    return module, list(loop.run(module, loss_of, config))


@pytest.mark.parametrize("steps", [3, 6, 17, 60])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_and_losses_are_those_of_the_plain_loop(steps, ema, monkeypatch):
    monkeypatch.setattr(captured, "CHUNK", 5)
    config = dataclasses.replace(CONFIG, steps=steps, ema=ema)
    module = network()
    told = list(captured.run(module, draw, embed, loss_by(module), config))
    plain, steps_told = one_by_one(config)
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert told[-1].step == steps == told[-1].steps
    by_step = {p.step: p.loss for p in steps_told}
    assert [p.loss for p in told] == pytest.approx([by_step[p.step] for p in told], rel=1e-5)
    assert not torch.equal(next(module.parameters()), next(network().parameters()))


def test_a_loss_that_is_not_finite_ends_it():
    module = network()
    with pytest.raises(TrainingError, match="The loss is nan at step 0"):
        list(captured.run(module, draw, embed, lambda *of: loss_by(module)(*of) * float("nan"), CONFIG))


def test_a_step_that_moves_elsewhere_is_found_and_undone():
    """The check that a graph has to pass, on steps without one."""
    module = network()
    drawn = draw(0, loop.step_generator(3, 0))
    step = Step(module, loss_by(module), CONFIG, [*drawn.tensors, embed(list(drawn.prompts))])
    step.set(4)
    step.take()
    before = [t.clone() for t in step.state()]
    assert len(before) == 4 * 5  # weights, averages; two moments and a count of each
    step.take()
    moved = [p.detach().clone() for p in step.params]
    step.restore(before)
    assert all(torch.equal(a, b) for a, b in zip(step.state(), before, strict=True))
    assert step.off(before, moved) == 0
    step.restore(before)
    assert step.off(before, before[:4]) == pytest.approx(1)
    step.restore(before)
    assert 0.1 < step.off(before, [m + 0.3 * (m - b) for m, b in zip(moved, before, strict=False)]) < 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_takes_the_same_steps():
    module = network().cuda()
    told = list(captured.run(module, draw, lambda p: embed(p).cuda(), loss_by(module), CONFIG))
    assert told[-1].note == "as a graph"
    plain, _ = one_by_one(CONFIG)
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-2, atol=1e-3)
