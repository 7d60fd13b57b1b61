"""The live oracle: what is drawn, and that the distilled adapter answers as the retrained model does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from guda_core import adapters, elbo, oracle
from guda_core.distill import DistillConfig, distill, draw_pictures, draw_times
from guda_core.methods.counterfactual import Budget
from guda_core.methods.logo import Logo
from guda_core.models.cards import load_model
from guda_core.pipeline import LocalService
from guda_core.records import Query
from guda_core.training import stages
from guda_core.training.loop import LoopConfig
from guda_core.training.unet import UnetConfig
from tests.test_pipeline import service  # noqa: F401  (a fixture)
from tests.test_unlearn import make_group_set
from tests.tiny import save_tiny

LOOP = LoopConfig(steps=60, batch=16, lr=2e-2, warmup=5, weight_decay=0.0, seed=5)
CONFIG = DistillConfig(lora=adapters.LoraSpec(rank=8, alpha=8), loop=LOOP)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, pictures of two groups, and "retrained" weights that differ in the attentions."""
    from guda_core.data import Pictures

    model = load_model(save_tiny(tmp_path_factory.mktemp("tiny")))
    g = torch.Generator().manual_seed(0)
    groups = tuple("ab"[i % 2] for i in range(16))
    pictures = Pictures(np.zeros((16, 16, 16, 3), np.uint8), groups, ("cat",) * 16)
    latents = torch.randn(16, *model.latent_shape, generator=g)
    state = {n: p.clone() for n, p in model.denoiser.state_dict().items()}
    for n, p in state.items():
        if "to_v.weight" in n or "to_out.0.weight" in n:
            p += 2 * p.std() * torch.randn(p.shape, generator=g)
    return model, state, make_group_set(), pictures, latents


def test_half_of_the_timesteps_follow_the_strata(world):
    strata = elbo.make_strata(world[0].schedule, 24)
    t = draw_times(strata, 1000, 20_000, torch.Generator().manual_seed(0)).numpy()
    assert t.min() >= 1 and t.max() <= 999
    edges = np.asarray(strata.edges)
    found = np.histogram(t, bins=edges)[0] / len(t)
    expected = 0.5 / 24 + 0.5 * np.diff(edges) / 999
    np.testing.assert_allclose(found, expected, atol=0.006)


def test_a_batch_has_its_share_of_the_left_out_group():
    groups = ("a",) * 3 + ("b",) * 7
    config = dataclasses.replace(CONFIG, own_share=0.25)
    at = draw_pictures(groups, "a", config, torch.Generator().manual_seed(0))
    assert len(at) == 16 and sum(groups[i] == "a" for i in at.tolist()) == 4


def test_the_adapter_answers_as_the_retrained_model(world, tmp_path):
    model, state, group_set, pictures, latents = world
    teacher = load_model(model.card).denoiser
    teacher.load_state_dict(state)
    folder = tmp_path / "a"
    list(distill(model, state, group_set, pictures, latents, "a", config=CONFIG, folder=folder, meta={}))
    adapter = adapters.load(tmp_path / "a", base_sha256=model.sha256, group="a")
    assert adapter.meta["kind"] == "logo"
    g = torch.Generator().manual_seed(9)
    t, eps = torch.arange(0, 1000, 63), torch.randn(16, *model.latent_shape, generator=g)
    x_t, cond = model.schedule.add_noise(latents, eps, t), model.embed(["cat, red"] * 16)
    with torch.no_grad():
        wanted, before = model.predict_eps(x_t, t, cond, teacher), model.predict_eps(x_t, t, cond)
        with adapters.applied(model.denoiser, adapter):
            after = model.predict_eps(x_t, t, cond)
    far, near = (float((v - wanted).square().mean()) for v in (before, after))
    assert near < 0.4 * far


def test_the_service_offers_the_oracle_where_its_models_are(service, tmp_path):  # noqa: F811
    assert "logo" not in service.methods()
    own = LocalService(service.model, service.group_set, service.clip, service.guda.folder, oracle=service.guda.folder)
    assert list(own.methods())[-1] == "logo" and isinstance(own.logo, Logo)
    assert own.estimate(["logo", "guda"], "quick") > own.estimate(["guda"], "quick")
    z = torch.zeros(1, *own.model.latent_shape)
    query = Query(np.zeros((16, 16, 3), np.uint8), z, "", "h")
    assert own.logo is not None
    *_, a = own.logo.attribute(query, Budget(draws=2))
    assert a.method == "logo" and a.unit == "nats"


def test_only_finished_trainings_without_an_adapter_are_distilled(service, tmp_path):  # noqa: F811
    class Base:
        group_set, model, card = service.group_set, service.model, service.model.card

    base, config = Base(), UnetConfig()
    assert oracle.to_distill(base, config, tmp_path) == []  # type: ignore[arg-type]
    for g in ("twemoji", "openmoji"):
        folder = stages.work_dir() / f"unet-without-{g}-s{config.loop.seed}"
        folder.mkdir(parents=True)
        stages.finish(folder, {}, folder.name)
    (tmp_path / "openmoji").mkdir()
    for f in (service.guda.folder / "openmoji").iterdir():
        (tmp_path / "openmoji" / f.name).write_bytes(f.read_bytes())
    assert oracle.to_distill(base, config, tmp_path) == ["twemoji"]  # type: ignore[arg-type]
