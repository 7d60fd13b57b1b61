"""Unconditional models under the contract of base models, and their unlearning: a planted group comes first."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from experiments.ablations import members
from guda_core.attribution.guda import Guda
from guda_core.attribution.method import Budget
from guda_core.data.captions import NoCaptions
from guda_core.data.dataset import described
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model
from guda_core.diffusion.unconditional import Unconditional
from guda_core.errors import ImageError, ModelError, OptionError, PromptError, TrainingError
from guda_core.records import Query
from guda_core.unlearning import adapters, losses
from guda_core.unlearning.config import UNET_LORA, UnconditionalConfig
from guda_core.unlearning.esd import EsdFineTuned
from guda_core.unlearning.forget import Task, config_of, read_config
from guda_core.unlearning.guda_u import Retrack
from guda_core.unlearning.loop import LoopConfig, run
from guda_core.unlearning.one_group import _half, draw_noised, unlearn
from tests.test_unlearn import make_group_set
from tests.tiny import save_tiny_unconditional, tiny_unet

SPOTS = {"a": (0, 0), "b": (0, 5), "c": (5, 2)}  # row and column of each group's bright spot


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return save_tiny_unconditional(tmp_path_factory.mktemp("tiny-u"))


@pytest.fixture(scope="module")
def model(card):
    return load_model(card)


def test_a_folder_and_the_same_modules_in_memory_are_one_model(card, model):
    memory = Unconditional(card, denoiser=tiny_unet(), scheduler=DDPMScheduler())
    assert memory.sha256 == model.sha256 and memory.latent_shape == model.latent_shape == (1, 8, 8)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    cond = model.embed(["", ""])
    assert torch.equal(memory.predict_eps(x, t, cond), model.predict_eps(x, t, cond))
    assert torch.equal(model.predict_eps(x, t, cond), model.network(x, t).sample)


def test_the_hash_is_of_weights_schedule_and_prediction_type(card, model):
    other = tiny_unet()
    with torch.no_grad():
        other.conv_in.bias[0] += 1e-6
    silent = dataclasses.replace(card, prediction_type=None)
    kinds = [
        Unconditional(card, denoiser=other, scheduler=DDPMScheduler()),
        Unconditional(card, denoiser=tiny_unet(), scheduler=DDPMScheduler(beta_end=0.03)),
        Unconditional(silent, denoiser=tiny_unet(), scheduler=DDPMScheduler(prediction_type="v_prediction")),
    ]
    assert len({model.sha256, *[m.sha256 for m in kinds]}) == 4


def test_pixels_in_and_out(card, model):
    grey = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8).repeat(3, axis=2)
    z = model.encode(grey)
    assert z.shape == (1, 1, 8, 8) and z.dtype == torch.float32
    assert torch.allclose(z[0, 0], torch.from_numpy(grey[..., 0] / 127.5 - 1).float(), atol=1e-6)
    assert (model.decode(z)[0] == grey).all()
    colour = Unconditional(card, denoiser=tiny_unet(channels=3), scheduler=DDPMScheduler())
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (colour.decode(colour.encode(pixels))[0] == pixels).all()
    with pytest.raises(ImageError, match=r"\(16, 16, 3\).*\(8, 8, 3\)"):
        model.encode(np.zeros((16, 16, 3), np.uint8))


def test_there_is_no_prompt(model):
    assert len(model.embed(["", ""])) == 2 and model.tokens("") == (0, 0)
    with pytest.raises(PromptError, match="Leave the prompt empty"):
        model.embed(["a cat"])


def test_the_seed_makes_the_picture(model):
    a, b = (model.generate([""], seeds=[3], steps=3) for _ in range(2))
    assert a.shape == (1, 8, 8, 3) and a.dtype == np.uint8 and (a == b).all() and (a[..., 0] == a[..., 2]).all()
    assert (a != model.generate([""], seeds=[4], steps=3)).any()
    assert [s is None for s in model.sample([""], seeds=[3], steps=3)] == [True, True, False]


def test_the_elbo_runs_on_it(model):
    strata = likelihood.make_strata(model.schedule, 8)
    draws = likelihood.draw_times("x", strata, 2)
    z, cond = torch.randn(1, 1, 8, 8), model.embed([""])
    one, many = (likelihood.kl_values(model, z, cond, draws, [0, 1], batch=b) for b in (1, 64))
    np.testing.assert_allclose(one, many, rtol=1e-4)


BAD = {
    "class labels": ({"num_class_embeds": 3}, "not unconditional"),
    "variances": ({"out_channels": 2}, "variances"),
    "size": ({"sample_size": 16}, "16 pixels, its card says 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_networks_that_cannot_be_scored_are_refused(card, name):
    changes, sentence = BAD[name]
    with pytest.raises(ModelError, match=sentence):
        Unconditional(card, denoiser=tiny_unet(**changes), scheduler=DDPMScheduler())


def test_prediction_types(card, tmp_path):
    v = load_model(save_tiny_unconditional(tmp_path / "v", scheduler=DDIMScheduler, prediction="v_prediction"))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([400])
    ab = v.schedule.alpha[400].square().float()
    assert torch.allclose(
        v.predict_eps(x, t, v.embed([""])), ab.sqrt() * v.predict(x, t, v.embed([""])) + (1 - ab).sqrt() * x
    )
    silent = dataclasses.replace(card, prediction_type=None)
    with pytest.raises(ModelError, match="Only epsilon, v_prediction, flow can be scored"):
        Unconditional(silent, denoiser=tiny_unet(), scheduler=DDPMScheduler(prediction_type="sample"))


def test_missing_damaged_and_unknown_kinds_say_so(card, tmp_path):
    with pytest.raises(ModelError, match="is not in"):
        load_model(dataclasses.replace(card, path=str(tmp_path)))
    torn = save_tiny_unconditional(tmp_path / "torn")
    weights = next((tmp_path / "torn" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        load_model(torn)
    with pytest.raises(ModelError, match=r"There is no family of models .video..*unconditional"):
        load_model(dataclasses.replace(card, kind="video"))


# Unlearning ----------------------------------------------------------------------------------------------------------


def drawing(group: str, g: torch.Generator) -> torch.Tensor:
    """A picture (1, 8, 8) of faint noise and the group's spot."""
    z = -0.6 + 0.15 * torch.randn(1, 8, 8, generator=g)
    y, x = SPOTS[group]
    z[:, y : y + 3, x : x + 3] += 1.2
    return z


@pytest.fixture(scope="module")
def world(card):
    """A tiny model trained on the planted groups."""
    model = Unconditional(card, denoiser=tiny_unet(), scheduler=DDPMScheduler())
    g = torch.Generator().manual_seed(0)
    groups = [k for k in SPOTS for _ in range(24)]
    z = torch.stack([drawing(k, g) for k in groups])
    unet = model.network.requires_grad_(True).train()

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        _, _, eps, x_t, t = draw_noised(SimpleNamespace(model=model, latents=z), torch.arange(len(z)), 32, g)
        return losses.mean_square(model.predict_eps(x_t, t, model.embed([""] * 32)), eps)

    for _ in run(unet, loss_of, LoopConfig(steps=120, batch=32, lr=8e-3, warmup=10)):
        pass
    trained = unet.requires_grad_(False).eval()
    model = Unconditional(card, denoiser=trained, scheduler=DDPMScheduler())
    return SimpleNamespace(model=model, z=z, groups=groups)


def task_of(world, group) -> Task:
    items = [described(g, str(i)) for i, g in enumerate(world.groups)]
    return Task(world.model, items, world.z, group, NoCaptions(make_group_set()))


def forget(world, group, folder, config_of=config_of, **changes):
    given = {"operator": "retrack", "steps": 2, "batch": 8, "lr": 1e-3, "warmup": 1, "seed": 0, **changes}
    values = {k: given.pop(k) for k in ("neighbours", "bandwidth") if given.get(k, 0) is None}  # None: all, likeliest
    config = dataclasses.replace(config_of(**given), **values)
    for _ in unlearn(task_of(world, group), config=config, folder=folder, meta={"note": "kept"}):
        pass
    return adapters.read_meta(folder)


SETTINGS = {
    "retrack": {"forget_weight": 0.1, "steps": 20, "lr": 2e-3},
    "retrack-lora": {"lora": UNET_LORA, "forget_weight": 0.1, "steps": 20, "lr": 1e-2},
    "esd": {"operator": "esd_fine_tuned", "forget_weight": 0.3, "steps": 30, "expert_steps": 30},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_planted_group_comes_first(world, tmp_path, name):
    before = {n: p.clone() for n, p in world.model.network.named_parameters()}
    for g in SPOTS:
        meta = forget(world, g, tmp_path / g, batch=8, **SETTINGS[name])
        assert meta["note"] == "kept" and meta["group"] == g and meta["base_sha256"] == world.model.sha256
    guda = Guda(world.model, make_group_set(), tmp_path)
    assert guda.unavailable == {}
    gen, right = torch.Generator().manual_seed(99), 0
    for g, i in [(g, i) for g in SPOTS for i in range(2)]:
        query = Query(np.zeros(1), drawing(g, gen)[None], "", f"{g}{i}")
        *_, last = guda.attribute(query, Budget(draws=2, per_pass=2, strata=12))
        right += last.ranked()[0] == g
    assert right >= 5
    assert all(torch.equal(p, before[n]) for n, p in world.model.network.named_parameters())


CHANGES = [
    {"operator": "esd_fine_tuned", "expert_steps": 2},
    {"lam": 3.0},
    {"lora": UNET_LORA},
    {"forget_weight": 0.3},
    {"neighbours": 1},
    {"neighbours": None},
    {"bandwidth": 0.5},
    {"bandwidth": None},
    {"steps": 3},
    {"lr": 1e-4},
    {"seed": 1},
]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    return forget(world, "a", tmp_path_factory.mktemp("plain"))["sha256"]


def test_the_same_settings_make_the_same_weights(world, plain, tmp_path):
    assert forget(world, "a", tmp_path)["sha256"] == plain


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_changes_the_weights(world, plain, tmp_path, change):
    assert forget(world, "a", tmp_path, **change)["sha256"] != plain


@pytest.mark.parametrize(
    ("more", "change"),
    [
        ({"operator": "esd_fine_tuned", "expert_steps": 2}, {"esd_strength": 3.0}),
        ({"operator": "esd_fine_tuned", "expert_steps": 2}, {"expert_steps": 3}),
        ({"lora": UNET_LORA}, {"lora": adapters.LoraSpec(rank=2, alpha=2)}),
    ],
    ids=("strength", "expert", "lora"),
)
def test_settings_of_one_operator_or_part_matter(world, tmp_path, more, change):
    one, two = (forget(world, "a", tmp_path / n, **{**more, **c})["sha256"] for n, c in (("x", {}), ("y", change)))
    assert one != two


@pytest.mark.parametrize("kind", ["retrack", "shift"])
def test_neighbours_are_looked_for_once_and_are_those_of_each_picture(world, tmp_path, monkeypatch, kind):
    asked, nearest = [], losses.nearest
    monkeypatch.setattr(losses, "nearest", lambda x, of, k: asked.append(len(x)) or nearest(x, of, k))
    meta = forget(world, "b", tmp_path, config_of=members.config_of, operator=kind, neighbours=3, bandwidth=None)
    task = task_of(world, "b")
    assert asked == [len(task.own)] * (1 if kind == "retrack" else 2)
    assert meta["bandwidth"] == losses.likely_bandwidth(world.z)
    loss = Retrack(task, config_of("retrack", neighbours=3))
    for pool in (task.others, task.own):
        half = _half(*draw_noised(task, task.own, 8, torch.Generator().manual_seed(0)))
        d = (half.x_0[:, None] - world.z[pool][None]).flatten(2).square().sum(dim=2)
        assert torch.equal(loss.near(half, pool), world.z[pool][d.topk(3, largest=False).indices])


def test_fields_are_all_tried():
    tried = {k for c in CHANGES for k in c} | {"esd_strength", "empty_share", "loop"}
    assert {f.name for f in dataclasses.fields(UnconditionalConfig)} <= tried


@pytest.mark.parametrize(
    "bad",
    [{"operator": "magic"}, {"neighbours": 0}, {"expert_steps": 0}, {"bandwidth": -1.0}, {"selection": "uniform"}],
    ids=str,
)
def test_unknown_settings_are_refused(bad):
    with pytest.raises(OptionError):
        config_of(**{"operator": "retrack", **bad})


def test_losses_that_need_prompts_are_refused(world, tmp_path):
    with pytest.raises(OptionError, match=r"reads no prompt. Use .*retrack"):
        forget(world, "a", tmp_path, operator="guda_c")


def test_a_group_without_pictures_is_refused(world, tmp_path):
    with pytest.raises(TrainingError, match="'z'"):
        forget(world, "z", tmp_path)


def test_esd_at_the_posterior_odds_is_the_model_of_the_retained_data():
    """Two Gaussians: eps_full - r / (1 - r) (eps_forget - eps_full) = eps_retained, the identity in the docstring."""
    rng = np.random.default_rng(0)
    x_t, ab, share = rng.standard_normal(5), 0.6, 0.3
    means = {"forget": 1.5, "retained": -0.5}
    var = ab * 0.2 + 1 - ab
    eps = {k: np.sqrt(1 - ab) * (x_t - np.sqrt(ab) * m) / var for k, m in means.items()}
    density = {k: np.exp(-((x_t - np.sqrt(ab) * m) ** 2) / (2 * var)) for k, m in means.items()}
    r = share * density["forget"] / (share * density["forget"] + (1 - share) * density["retained"])
    full = r * eps["forget"] + (1 - r) * eps["retained"]
    np.testing.assert_allclose(losses.esd_target(full, eps["forget"], strength=r / (1 - r)), eps["retained"])


# Losses that were tried and not adopted ------------------------------------------------------------------------------

UNCONDITIONAL = [
    {"operator": "shift", "bandwidth": 0.3},
    {"operator": "retrack_capped"},
    {"operator": "retrack_capped", "kl_cap": 3.0},
]


@pytest.mark.parametrize("change", UNCONDITIONAL, ids=str)
def test_members_of_unconditional_models_make_adapters_of_their_own(world, tmp_path, change):
    plain = forget(world, "a", tmp_path / "plain", bandwidth=change.get("bandwidth", 0.0))
    meta = forget(world, "a", tmp_path / "x", config_of=members.config_of, **change)
    assert meta["sha256"] != plain["sha256"] and read_config(meta["config"]).operator == change["operator"]


def test_the_copy_that_esd_needs_is_trained_in_half_precision_too(card, world, tmp_path):
    half = SimpleNamespace(model=load_model(card, dtype=torch.bfloat16), z=world.z, groups=world.groups)
    assert forget(half, "a", tmp_path, operator="esd_fine_tuned", expert_steps=2)["dtype"] == "bfloat16"


def test_the_copy_that_esd_needs_is_trained_in_little_memory_too(world, monkeypatch):
    predict, sizes, most = type(world.model).predict, [], 99

    def short(self, x_t, t, *more):
        sizes.append(len(t))
        if len(t) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return predict(self, x_t, t, *more)

    def weights():
        loss = EsdFineTuned(task_of(world, "a"), config_of("esd_fine_tuned", batch=8, expert_steps=3))
        list(loss.prepare(None))
        return torch.nn.utils.parameters_to_vector(loss.expert.parameters())

    monkeypatch.setattr(type(world.model), "predict", short)
    whole, most = weights(), 3
    change = whole - torch.nn.utils.parameters_to_vector(world.model.network.parameters())
    assert float((weights() - whole).norm() / change.norm()) < 0.01
    assert sizes == [8, 8, 8, 8, 4, *[2] * 12]


def test_the_copy_that_esd_needs_drops_out_the_same_units_each_time(card, world, tmp_path):
    model = Unconditional(card, denoiser=tiny_unet(dropout=0.5), scheduler=DDPMScheduler())
    drops = SimpleNamespace(model=model, z=world.z, groups=world.groups)
    asked = {"operator": "esd_fine_tuned", "expert_steps": 2}
    assert (
        forget(drops, "a", tmp_path / "x", **asked)["sha256"] == forget(drops, "a", tmp_path / "y", **asked)["sha256"]
    )
