"""Unlearning makes bit for bit what version 0.1 made: its steps written down once more, plainly, and compared.

Only one thread computes, so that sums have one order.
"""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from guda_core.diffusion.cards import load_model
from guda_core.unlearning import adapters, losses
from guda_core.unlearning.config import UNET_LORA
from guda_core.unlearning.forget import config_of
from guda_core.unlearning.loop import learning_rate, step_generator
from guda_core.unlearning.one_group import unlearn
from tests import test_unconditional as unconditional
from tests.test_unconditional import card  # noqa: F401  (a fixture)
from tests.test_unlearn import features, make_group_set, planted, task_of
from tests.tiny import save_tiny

STEPS, BATCH = 3, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny random model and pictures of three groups."""
    pictures, z = planted(6)
    model = load_model(save_tiny(tmp_path_factory.mktemp("tiny"), tokens=6, pooled=True, small=True))
    return SimpleNamespace(model=model, group_set=make_group_set(), pictures=pictures, z=z)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(student, params, loop, loss_of):
    """AdamW with clipped gradients, step by step."""
    opt = torch.optim.AdamW(params, lr=loop.lr, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    for step in range(loop.steps):
        opt.param_groups[0]["lr"] = learning_rate(loop, step)
        opt.zero_grad(set_to_none=True)
        loss_of(student, step_generator(loop.seed, step)).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
    return student.state_dict()


def fresh(model, config):
    student = copy.deepcopy(model.network).train()
    if config.lora is None:
        return student, list(student.requires_grad_(True).parameters())
    return student, adapters.attach(student, config.lora, config.loop.seed)


def of_0_1_with_prompts(task, config):
    """GUDA-C and ESD."""
    model, captioner, ids = task.model, task.captioner, list(task.captioner.group_set.groups)
    own, others = (torch.tensor([n for n, i in enumerate(task.items) if (i.group == "a") == mine]) for mine in (1, 0))
    cosines = torch.stack([features(list(captioner.phrases(g))).mean(dim=0) for g in ids])
    cosines = torch.nn.functional.normalize(cosines, dim=1)
    weighted = config.selection == "weighted"
    beta, eta = (2.0, 0.3) if weighted else (0.0, 1.0)
    pi = losses.anchor_probabilities(cosines @ cosines[0], beta=beta, eta=eta, exclude=0)

    def loss_of(student, g):
        at = torch.cat([of[torch.randint(len(of), (BATCH,), generator=g)] for of in (own, others)])
        x_0 = task.latents[at]
        t = torch.randint(len(model.schedule), (2 * BATCH,), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        x_t = model.schedule.add_noise(x_0, eps, t)
        items = [task.items[i] for i in at.tolist()]
        prompts = [captioner.caption(i, g) for i in items[:BATCH]]
        groups = [ids[s] for s in torch.multinomial(pi, BATCH, replacement=True, generator=g).tolist()]
        if config.selection == "removed":
            anchors = [i.concept for i in items[:BATCH]]
        else:
            anchors = [captioner.anchor(i, s, g) for i, s in zip(items[:BATCH], groups, strict=True)]
        kept = [captioner.caption(i, g) for i in items[BATCH:]]
        gone_kept, gone = ((torch.rand(BATCH, generator=g) < config.empty_share).tolist() for _ in range(2))
        seen = ["" if e else p for p, e in zip(prompts + kept, gone + gone_kept, strict=True)]
        kept = seen[BATCH:]
        with torch.no_grad():
            asked = [""] * BATCH if config.operator == "esd" else anchors
            target = model.predict_eps(x_t, t, model.embed(asked + kept))
            if config.operator == "esd":
                prompted = model.predict_eps(x_t[:BATCH], t[:BATCH], model.embed(prompts))
                target[:BATCH] = target[:BATCH] - config.esd_strength * (prompted - target[:BATCH])
        out = model.predict_eps(x_t, t, model.embed(seen), student)
        forgot, preserved = ((out[p] - target[p]).square().mean() for p in (slice(BATCH), slice(BATCH, None)))
        return forgot + config.lam * preserved

    student, params = fresh(model, config)
    return trained(student, params, config.loop, loss_of)


def of_0_1_without_prompts(task, config):
    """ReTrack of all neighbours, and ESD by a copy that is fine-tuned first."""
    model, z = task.model, task.latents
    mine = torch.tensor([i.group == "a" for i in task.items])
    own, others = z[mine], z[~mine]
    empty = [""] * BATCH

    def draw(of, g):
        x_0 = of[torch.randint(len(of), (BATCH,), generator=g)]
        t = torch.randint(len(model.schedule), (BATCH,), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        return x_0, model.schedule.add_noise(x_0, eps, t), t, eps

    def ask(x_t, t, network=None):
        return model.predict_eps(x_t, t, model.embed(empty), network)

    expert = None
    if config.operator == "esd_fine_tuned":
        expert, params = fresh(model, config)
        loop = dataclasses.replace(config.loop, steps=config.expert_steps, seed=config.loop.seed + 1)

        def copy_loss(student, g):
            _, x_t, t, eps = draw(own, g)
            return (ask(x_t, t, student) - eps).square().mean()

        trained(expert, params, loop, copy_loss)
        expert.requires_grad_(False).eval()

    def loss_of(student, g):
        _, x_t, t, _ = draw(own, g)
        _, x_r, t_r, _ = draw(others, g)
        with torch.no_grad():
            if expert is not None:
                full, forgot = ask(x_t, t), ask(x_t, t, expert)
                target = full - config.esd_strength * (forgot - full)
            else:
                alpha_bar = model.schedule.alpha[t].square().float()
                target = losses.retrack_target(x_t, others, alpha_bar, bandwidth=config.bandwidth)
            kept = ask(x_r, t_r)
        out = model.predict_eps(torch.cat([x_t, x_r]), torch.cat([t, t_r]), model.embed(empty * 2), student)
        return config.forget_weight * (out[:BATCH] - target).square().mean() + (out[BATCH:] - kept).square().mean()

    student, params = fresh(model, config)
    return trained(student, params, config.loop, loss_of)


def assert_unchanged(task, config, folder, state):
    """The stored values are those of `state`, in the type that is stored."""
    for _ in unlearn(task, config=config, folder=folder, meta={}):
        pass
    adapter = adapters.load(folder, model=task.model, group="a")
    if config.lora is None:
        assert all(torch.equal(w, state[n].to(config.WHOLE_TYPE).float()) for n, w in adapter.whole.items())
        assert any(not torch.equal(state[n], p) for n, p in task.model.network.state_dict().items())
        return
    moved = 0.0
    for name, (b, a, _) in adapter.factors.items():
        module = name.removesuffix(".weight")
        for factor, ours in (("lora_A", a), ("lora_B", b)):
            assert torch.equal(ours, state[f"{module}.{factor}.default.weight"].half().float().flatten(1)), name
        moved = max(moved, float(b.abs().max()))
    assert moved > 0


WITH_PROMPTS = {
    "default": {},
    "weighted": {"selection": "weighted"},
    "removed": {"selection": "removed"},
    "esd": {"operator": "esd", "esd_strength": 2.0},
    "lam, empty_share": {"lam": 0.5, "empty_share": 0.25},
    "whole": {"whole": True},
}


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_models_with_prompts(world, tmp_path, name):
    changes = {"operator": "guda_c", "steps": STEPS, "batch": BATCH, **WITH_PROMPTS[name]}
    config, task = config_of(**changes), task_of(world)
    assert_unchanged(task, config, tmp_path, of_0_1_with_prompts(task, config))


WITHOUT_PROMPTS = {
    "retrack": {"operator": "retrack", "forget_weight": 0.1, "bandwidth": 0.3, "rank": 2},
    "esd": {"operator": "esd_fine_tuned", "forget_weight": 0.3, "expert_steps": 2},
}


@pytest.mark.parametrize("name", WITHOUT_PROMPTS)
def test_models_without_prompts(tmp_path, card, name):  # noqa: F811
    model = load_model(card)
    g = torch.Generator().manual_seed(0)
    groups = [k for k in unconditional.SPOTS for _ in range(6)]
    z = torch.stack([unconditional.drawing(k, g) for k in groups])
    task = unconditional.task_of(SimpleNamespace(model=model, z=z, groups=groups), "a")
    changes = {"steps": STEPS, "batch": BATCH, "lr": 1e-3, "warmup": 1, **WITHOUT_PROMPTS[name]}
    config = config_of(**changes)
    if name == "retrack":
        config = dataclasses.replace(config, neighbours=None)
        assert config.lora is not None and config.lora.targets == UNET_LORA.targets
    assert_unchanged(task, config, tmp_path, of_0_1_without_prompts(task, config))
