"""The Stable Diffusion 1.5 layout in miniature: 8x VAE with SD's scaling, 77-token prompts, half precision, no hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import find_card, load_model, read_cards, resolve_card
from guda_core.errors import ModelError
from tests.tiny import save_tiny
from tests.tiny_single_file import save_single


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("sd15"), downs=4)


@pytest.fixture(scope="module")
def model(card):
    return load_model(card)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_shapes_and_77_tokens(model, pixels):
    assert model.latent_shape == (4, 8, 8) and model.card.resolution == 64
    assert model.embed(["ab", ""]).tensors["text"].shape == (2, 77, 16)
    assert model.tokens("ab") == (4, 77) and model.tokens("a" * 300) == (302, 77)
    assert model.encode(pixels).shape == (1, 4, 8, 8)


def test_a_model_that_skips_its_text_encoders_last_layer_says_so_by_the_number_of_layers(tmp_path):
    """As docs/how-to/own-model.md tells those whose model was trained with clip skip 2; of a single file, too."""
    save_tiny(tmp_path / "m")
    text = tmp_path / "m" / "text_encoder"
    CLIPTextModel(CLIPTextConfig.from_pretrained(text, num_hidden_layers=3)).save_pretrained(text)
    save_single(tmp_path / "m", tmp_path / "one.safetensors")
    shutil.copytree(tmp_path / "m", tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    whole = load_model(resolve_card(str(tmp_path / "m")))
    ids = whole.pipe.tokenizer(["ab"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = whole.pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        expected = whole.pipe.text_encoder.final_layer_norm(hidden)
    for name, given in (("m", "m"), ("one", "one.safetensors")):
        path = tmp_path / name / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 2}))
        model = load_model(resolve_card(str(tmp_path / given)))
        assert torch.allclose(model.embed(["ab"]).tensors["text"], expected, atol=1e-6)
        assert model.sha256 != whole.sha256


def test_latent_is_the_scaled_posterior_mean(model, pixels):
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        mean = model.pipe.vae.encode(x).latent_dist.mean
    assert torch.allclose(model.encode(pixels), 0.18215 * mean, atol=1e-6)
    assert torch.equal(model.encode(pixels), model.encode(pixels))


def test_the_seed_and_the_prompt_make_the_picture(model):
    a, b = (model.generate(["ab"], seeds=[3], steps=3) for _ in range(2))
    assert a.shape == (1, 64, 64, 3) and a.dtype == np.uint8 and (a == b).all()
    assert (a != model.generate(["ab"], seeds=[4], steps=3)).any()
    both = model.generate(["ab", "ab"], seeds=[3, 4], steps=3)
    assert np.abs(both[0].astype(int) - a[0]).max() <= 1
    steps = list(model.sample(["ab"], seeds=[3], steps=3))
    assert [s is None for s in steps] == [True, True, False]


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 1), (1.5, 2)])
def test_without_guidance_the_empty_prompt_is_not_asked_for(model, monkeypatch, guidance, passes):
    asked, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda x, t, c: asked.append(len(x)) or predict(x, t, c))
    model.generate(["ab", "c"], seeds=[3, 4], steps=2, guidance=guidance)
    assert asked == [2 * passes] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_float32_and_near(model, card, pixels, dtype):
    half = load_model(card, dtype=dtype)
    assert next(half.network.parameters()).dtype == dtype
    strata = likelihood.make_strata(model.schedule)
    draws = likelihood.draw_times("x", strata, 1)
    scores = []
    for m in (model, half):
        latent = model.encode(pixels)
        assert m.predict_eps(latent, torch.tensor([5]), m.embed(["ab"])).dtype == torch.float32
        scores.append(
            likelihood.stratified_sum(likelihood.kl_values(m, latent, m.embed(["ab"]), draws, [0]), strata).value
        )
    assert scores[1] == pytest.approx(scores[0], rel=0.02)


def test_scores_do_not_depend_on_the_batch(model, pixels):
    draws = likelihood.draw_times("x", likelihood.make_strata(model.schedule), 2)
    latent, cond = model.encode(pixels), model.embed(["ab"])
    one, many = (likelihood.kl_values(model, latent, cond, draws, [0, 1], batch=b) for b in (1, 64))
    np.testing.assert_allclose(one, many, rtol=1e-4)


def test_v_prediction_runs_and_other_kinds_are_refused(tmp_path):
    v = load_model(save_tiny(tmp_path / "v", prediction="v_prediction"))
    x, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([400]), v.embed(["ab"])
    ab = v.schedule.alpha[400].square().float()
    with torch.no_grad():
        raw, eps = v.predict(x, t, cond), v.predict_eps(x, t, cond)
    assert torch.allclose(eps, ab.sqrt() * raw + (1 - ab).sqrt() * x, atol=1e-5)
    card = dataclasses.replace(save_tiny(tmp_path / "s"), prediction_type=None)
    path = tmp_path / "s" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    with pytest.raises(ModelError, match="Only epsilon, v_prediction, flow can be scored"):
        load_model(card)


def test_missing_and_damaged_models_say_what_to_do(card, tmp_path):
    with pytest.raises(ModelError, match="Correct `path` in its card"):
        load_model(dataclasses.replace(card, path=str(tmp_path)))
    with pytest.raises(ModelError, match=r"experiments\.train"):
        load_model(dataclasses.replace(card, source="assets", path="no-such-model"))
    torn = save_tiny(tmp_path / "torn")
    weights = next((tmp_path / "torn" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        load_model(torn)


def test_without_a_hub_the_error_says_what_to_do(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    card = dataclasses.replace(find_card("sd15"), path="nobody-here/no-such-model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match=r"HF_HOME.*GUDA_MODEL=emoji"):
            load_model(card)


def test_cards():
    cards = read_cards()
    assert cards["sd15"].resolution == 512 and cards["sd15"].gpu_dtype == "float16" and cards["sd15"].source == "hub"
    with pytest.raises(ModelError, match="emoji, sd15"):
        find_card("sd99")
