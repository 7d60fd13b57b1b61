"""Every model family on a tiny random pipeline: what it computes, against diffusers' own, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from guda_core.attribution.guda import Guda
from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels
from guda_core.data.kept_latents import latent_key
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model, resolve_card
from guda_core.diffusion.flow_family import FIRST_SNR, grid, pack, unpack
from guda_core.diffusion.sampling import start_noise
from guda_core.errors import ModelError
from guda_core.reports import record as report
from guda_core.unlearning.kept_prompts import KeptPrompts
from tests.tiny import save_tiny, tiny_service
from tests.tiny_families import FAMILIES, models, save_family, save_flux, save_sd3, save_xl  # noqa: F401

SHAPES = {"sd1": (4, 8, 8), "sd2": (4, 8, 8), "xl": (4, 8, 8)}


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loads_embeds_scores_and_draws(models, pixels, family):  # noqa: F811
    model = models(family)
    latent = model.encode(pixels)
    assert latent.shape[1:] == model.latent_shape == SHAPES.get(family, (16, 8, 8))
    scores = []
    for _ in range(2):
        draws = likelihood.draw_times("p", likelihood.make_strata(model.schedule, 24), 1)
        scores.append(likelihood.kl_values(model, latent, model.embed(["ab"]), draws, [0]))
    assert np.isfinite(scores[0]).all() and (np.asarray(scores[0]) > 0).all()
    assert (np.asarray(scores[0]) == np.asarray(scores[1])).all()
    one, again, other = (model.generate(["ab"], seeds=[s], steps=2) for s in (3, 3, 4))
    assert one.shape == (1, 16, 16, 3) and one.dtype == np.uint8
    assert (one == again).all() and (one != other).any()
    with torch.no_grad():
        wanted, empty = (model.predict(latent, torch.tensor([500]), model.embed([p])) for p in ("a cat", ""))
    assert wanted.dtype == torch.float32 and (wanted != empty).any()


@pytest.mark.parametrize("family", ["xl", "sd3", "sd3_without_t5", "flux", "flux_dev"])
def test_pictures_are_those_of_diffusers_own_pipeline(models, family):  # noqa: F811
    """From the same noise, by the same number of steps and guidance, through diffusers' own loop."""
    model = models(family)
    z = start_noise(model.latent_shape, [5])
    settings = {"num_inference_steps": 3, "guidance_scale": 2.5, "height": 16, "width": 16, "output_type": "np"}
    if family == "flux":
        settings |= {"true_cfg_scale": 2.5, "negative_prompt": ""}
    start = pack(z) if family.startswith("flux") else z
    theirs = model.pipe(prompt="ab", latents=start, **settings).images[0]
    ours = model.generate(["ab"], seeds=[5], steps=3, guidance=2.5)[0]
    assert np.abs(ours - 255 * theirs).max() <= 1.5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_changes_nothing(models, family):  # noqa: F811
    model = models(family)
    x = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    t, condition = torch.tensor([5, 400, 999]), model.embed(["ab", "", "c"])
    with torch.no_grad():
        together = model.predict(x, t, condition)
        apart = torch.cat([model.predict(x[i : i + 1], t[i : i + 1], condition[i]) for i in range(3)])
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_attributed_with_adapters_of_its_family(tmp_path, family):
    """Load, generate, attribute twice with LoRAs of three groups, and write the record."""
    *few, _, _, _ = load_group_set("emoji").groups
    service = tiny_service(tmp_path, card=save_family(tmp_path / "model", family), missing=few)
    assert len(service.method(Guda).adapters) == 3
    *_, query = service.generate(prompt="cat", seed=1, steps=2, guidance=2.0)
    answers = [list(service.attribute(query, methods=["guda"], effort="quick"))[-1] for _ in range(2)]
    scores, again = ({k: g.score for k, g in a.groups.items()} for a in answers)
    assert scores == again and len({v for v in scores.values() if v is not None}) == 3
    settings = {"effort": "quick", "methods": ["guda"]}
    record = report.to_json(query, [answers[0]], service.group_set, provenance=service.provenance(), settings=settings)
    written = json.loads(json.dumps(record))
    assert written["model"]["sha256"] == service.model.sha256
    assert [s for s in written["limits"] if "no likelihood model" in s] == [service.model.caveat][
        : family == "flux_dev"
    ]
    changed = [n for n, m in service.model.network.named_modules() if n.endswith(service.model.lora_targets)]
    assert len(changed) >= 8


def test_the_empty_prompt_of_xl_is_zeros_only_where_it_was_trained_so(models, tmp_path):  # noqa: F811
    empty = models("xl").embed(["ab", ""])
    assert not empty.tensors["text"][1].any() and not empty.tensors["pooled"][1].any()
    assert empty.tensors["text"][0].any() and empty.tensors["sizes"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    save_xl(tmp_path, zeros=False)
    assert load_model(resolve_card(str(tmp_path))).embed([""]).tensors["text"].any()


def test_zero_terminal_snr_goes_the_whole_way(models):  # noqa: F811
    model = models("sd2")
    assert model.schedule.alpha[-1] == 0 and model.prediction.kind == "v_prediction"
    scheduler = model._sampler()
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999  # drawing begins where x_t is noise alone
    latent = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([999])
    with torch.no_grad():
        raw = model.predict(latent, last, model.embed([""]))
    assert torch.allclose(model.prediction.x0_hat(raw, latent, last), -raw, atol=1e-6)


def test_the_grid_of_flow_matching_has_stable_diffusions_span():
    s = grid()
    snr = ((1 - s) / s) ** 2
    assert float(snr[0]) == pytest.approx(FIRST_SNR, rel=1e-12) and pytest.approx(1175.5, abs=0.1) == FIRST_SNR
    assert float(s[-1]) == 1 and float(snr[-1]) == 0
    steps = -snr.diff() / snr[:-1]
    assert float(steps[0]) < 0.07 and float(steps[: len(steps) // 2].max()) < 0.07


def test_the_flow_network_is_told_a_thousand_times_s(models, monkeypatch):  # noqa: F811
    told = {}
    for family, factor in (("sd3", 1000), ("flux", 1)):
        model = models(family)
        real = model.network.forward

        def forward(*args, real=real, family=family, **more):
            told[family] = more["timestep"]
            return real(*args, **more)

        monkeypatch.setattr(model.network, "forward", forward)
        x = torch.zeros(2, *model.latent_shape)
        with torch.no_grad():
            model.predict(x, torch.tensor([0, 999]), model.embed(["", ""]))
        assert told[family].tolist() == pytest.approx([factor * float(grid()[0]), factor])


class OfGaussian(nn.Module):
    """The exact network for latents from N(0, spread^2 I), in a family's place; x_t has the marginal alpha^2 spread^2 +
    sigma^2, and picture and noise are a share of it each."""

    def __init__(self, model, spread: float) -> None:
        super().__init__()
        self.model, self.spread = model, spread

    def forward(self, sample=None, t=None, *, hidden_states=None, timestep=None, **_):
        if self.model.prediction.kind == "flow":
            factor = 1000 if hidden_states.dim() == 4 else 1
            x, sigma = hidden_states, timestep.double() / factor
            alpha = 1 - sigma
        else:
            x, alpha, sigma = sample, self.model.schedule.alpha[t], self.model.schedule.sigma[t]
        marginal = alpha**2 * self.spread**2 + sigma**2
        picture, noise = alpha * self.spread**2 / marginal, sigma / marginal
        share = {"epsilon": noise, "v_prediction": alpha * noise - sigma * picture, "flow": noise - picture}
        out = share[self.model.prediction.kind].reshape(-1, *[1] * (x.dim() - 1)) * x.double()
        return SimpleNamespace(sample=out.float())


def test_elbo_drops_of_two_gaussians_agree_between_families(models, monkeypatch):  # noqa: F811
    """The difference of two models' ELBOs is that of their log densities, and the same through every family.

    log N(x; 0, a^2) - log N(x; 0, b^2) = ||x||^2 / 2 (1/b^2 - 1/a^2) + d log(b / a); bounded at SNR 1175, both families
    leave out as much of it.
    """
    x_0 = 0.8 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    right, wrong = 0.8, 1.3
    exact = float(x_0.double().square().sum()) / 2 * (1 / wrong**2 - 1 / right**2) + 256 * np.log(wrong / right)
    found = {}
    for family in ("sd1", "sd2", "xl", "sd3", "flux"):
        model = models(family)
        copies = model.latent_shape[0] // 4  # families with more channels see the picture several times over
        latent, condition = x_0.repeat(1, copies, 1, 1), model.embed([""])
        strata = likelihood.make_strata(model.schedule, 24)
        draws = likelihood.draw_times("p", strata, 24)
        values = []
        for spread in (right, wrong):
            monkeypatch.setattr(model, "network", OfGaussian(model, spread))
            values.append(likelihood.kl_values(model, latent, condition, draws, list(range(24))))
        monkeypatch.undo()
        drop = likelihood.elbo_drop(full=values[0], without=values[1], strata=strata)
        found[family] = (drop.value / copies, drop.se / copies)
    for family, (value, se) in found.items():
        assert abs(value - exact) < 4 * se + 0.03 * exact, family
        assert 6 * se < exact


def test_packing_has_an_inverse():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    packed = pack(x)
    assert packed.shape == (2, 6, 12) and packed[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31, 48, 49, 54, 55]
    assert torch.equal(unpack(packed, 4, 6), x)


def test_a_distilled_flux_says_that_it_is_no_likelihood_model(models, tmp_path):  # noqa: F811
    assert "distilled with guidance, so it is no likelihood model" in models("flux_dev").caveat
    save_flux(tmp_path, dynamic=False)
    card = dataclasses.replace(resolve_card(str(tmp_path)), resolution=16)
    schnell = load_model(card)
    assert "seems to be distilled to a few steps" in schnell.caveat
    for model, read in ((schnell, 256), (models("flux"), 512), (models("flux_dev"), 512)):  # as each was trained
        assert model.embed(["ab"]).tensors["text"].shape[1] == model.tokens("ab")[1] == read
    assert not any(models(f).caveat for f in FAMILIES if f != "flux_dev")


def test_prompts_that_were_kept_by_another_rule_are_embedded_anew(models, tmp_path, monkeypatch):  # noqa: F811
    model = models("flux")
    long = KeptPrompts(model, tmp_path)
    long.prepare(["ab"])
    monkeypatch.setattr(model, "reads", 256)
    kept = KeptPrompts(model, tmp_path)
    kept.prepare(["ab", "c"])
    assert kept(["ab", "c"]).tensors["text"].shape[:2] == (2, 256)
    before = f"{model.sha256}\n{model.dtype}\ncpu\nab"  # a LoRA of the text encoders was merged otherwise
    assert hashlib.sha256(before.encode()).hexdigest() not in {long.key("ab"), kept.key("ab")}


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
def test_so_does_a_unet_whose_scheduler_is_of_few_steps(tmp_path, scheduler):
    card = save_tiny(tmp_path, small=True)
    changed(tmp_path, "model_index.json", scheduler=["diffusers", scheduler])
    changed(tmp_path, "scheduler/scheduler_config.json", _class_name=scheduler)
    assert f"few steps (it has the {scheduler}), so it is no likelihood model" in load_model(card).caveat


@pytest.mark.parametrize("family", ["xl", "sd3", "flux"])
@pytest.mark.parametrize("value", ["text", "pooled"])
def test_a_prompt_whose_embedding_is_not_finite_is_refused(models, monkeypatch, family, value):  # noqa: F811
    model = models(family)
    found = list(model.pipe.encode_prompt(["ab"], *[None] * (2 if family == "sd3" else 0), device=model.device))
    at = 0 if value == "text" else 1 if family == "flux" else 2
    found[at] = torch.full_like(found[at], float("inf"))
    monkeypatch.setattr(model.pipe, "encode_prompt", lambda *_, **__: found)
    with pytest.raises(ModelError, match=r"The embedded prompt .*not finite"):
        model.embed(["ab"])


def test_latents_of_an_xl_are_scaled_by_the_means_and_spreads_of_its_autoencoder(models, pixels, tmp_path):  # noqa: F811
    mean, std = torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])
    save_xl(tmp_path)
    changed(tmp_path, "vae/config.json", latents_mean=mean.tolist(), latents_std=std.tolist())
    plain, model = models("xl"), load_model(resolve_card(str(tmp_path)))
    z, scale = plain.encode(pixels), plain.pipe.vae.config.scaling_factor
    shape = (1, 4, 1, 1)
    expected = (z / scale - mean.view(shape)) * scale / std.view(shape)  # as diffusers' pipelines do
    assert torch.allclose(model.encode(pixels), expected, atol=1e-5)
    assert np.abs(model.decode(expected).astype(int) - plain.decode(z)).max() <= 1
    assert model.sha256 != plain.sha256
    old = f"{hash_pixels(pixels)}\n{{}}\n{model.dtype}\ncpu"  # the keys of latents that were kept without them
    kept = {
        m: latent_key(m, pixels) == hashlib.sha256(old.format(m.sha256).encode()).hexdigest() for m in (plain, model)
    }
    assert kept == {plain: True, model: False}


@pytest.mark.parametrize("family", ["xl", "sd3", "flux"])
def test_half_precision_keeps_the_autoencoder_in_float32(models, pixels, tmp_path, family):  # noqa: F811
    half = load_model(save_family(tmp_path, family), dtype=torch.bfloat16)
    assert next(half.pipe.vae.parameters()).dtype == torch.float32
    assert next(half.network.parameters()).dtype == torch.bfloat16
    assert torch.equal(half.encode(pixels), models(family).encode(pixels))
    assert half.sha256 == models(family).sha256


# What is refused, each with its sentence


def changed(folder, file: str, **entries):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_card_that_contradicts_the_files_is_refused(tmp_path):
    card = save_tiny(tmp_path)
    wrong = {
        "resolution": (32, "is made for 16 pixels, its card says 32. Set `resolution: 16`"),
        "prediction_type": ("v_prediction", "the model predicts 'v_prediction', its files say 'epsilon'"),
        "kind": (
            "stable_diffusion_xl",
            "is a StableDiffusionPipeline, which a card of kind 'stable_diffusion_xl' does not read",
        ),
    }
    for field, (value, sentence) in wrong.items():
        with pytest.raises(ModelError, match=sentence):
            load_model(dataclasses.replace(card, **{field: value}))


def test_what_is_no_model_that_can_be_scored_is_refused(tmp_path):
    save_tiny(tmp_path / "a")
    changed(tmp_path / "a", "model_index.json", _class_name="StableDiffusionUpscalePipeline")
    with pytest.raises(ModelError, match="holds a StableDiffusionUpscalePipeline, which no family here reads"):
        resolve_card(str(tmp_path / "a"))
    save_sd3(tmp_path / "b")
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    changed(tmp_path / "b", "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    changed(tmp_path / "b", "scheduler/scheduler_config.json", _class_name="DDIMScheduler")
    with pytest.raises(ModelError, match="DDIMScheduler; flow matching needs"):
        load_model(resolve_card(str(tmp_path / "b")))
    (tmp_path / "b" / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(tmp_path / "b" / "text_encoder_3")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        load_model(resolve_card(str(tmp_path / "b")))
    save_flux(tmp_path / "c")
    with pytest.raises(ModelError, match="needs a resolution that 4 divides, not 18"):
        load_model(dataclasses.replace(resolve_card(str(tmp_path / "c")), resolution=18))


def test_networks_that_read_more_than_the_prompt_are_refused(tmp_path):
    from diffusers import UNet2DConditionModel

    card = save_tiny(tmp_path)
    config = dict(UNet2DConditionModel.load_config(tmp_path / "unet"))
    for changes, sentence in (
        ({"in_channels": 9}, "maps 9 channels to 4 where its VAE has 4"),
        ({"out_channels": 8}, "maps 4 channels to 8"),
        ({"class_embed_type": "timestep"}, "wants more than a prompt .class labels"),
        ({"time_cond_proj_dim": 8}, "wants more than a prompt .*the guidance"),
        ({"cross_attention_dim": 24}, "prompts of width 24; its text encoder writes 16"),
    ):
        UNet2DConditionModel.from_config({**config, **changes}).save_pretrained(tmp_path / "unet")
        with pytest.raises(ModelError, match=sentence):
            load_model(card)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    card = save_tiny(tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    whole = json.loads(path.read_text())
    for vocab, sentence in (
        ({}, "a tokenizer of 2 words"),
        ({f"w{i}": i for i in range(500)}, "a tokenizer of 5.. words"),
    ):
        path.write_text(json.dumps({**whole, "model": {**whole["model"], "vocab": vocab}}))
        with pytest.raises(
            ModelError, match=f"{sentence} and up to 77 tokens; its text_encoder .*damaged or of another model"
        ):
            load_model(card)


def test_schedulers_without_betas_are_refused(tmp_path):
    card = save_tiny(tmp_path)
    changed(tmp_path, "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    with pytest.raises(ModelError, match="scheduler EDMEulerScheduler, which is not one of a DDPM's noise"):
        load_model(card)
