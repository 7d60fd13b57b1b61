"""Models from outside: who they are, which are refused, and values that are not finite at every door."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model
from guda_core.diffusion.identity import KNOWN, hash_folder
from guda_core.errors import GudaError, ModelError
from guda_core.paths import ASSETS
from tests.tiny import save_tiny, save_tiny_unconditional

OLD = "50d513a4cc14e282ae3ef6b9af7bc8b6245c6999090e166fc314eea42392c97e"  # of the embedded model, by version 0.1


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; a value of None takes the key out."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_tiny(folder), load_model(save_tiny(folder))


@pytest.fixture
def again(saved, tmp_path):
    """A copy of the saved model to be changed: its folder and card."""
    shutil.copytree(saved[0].path, tmp_path / "copy")
    return tmp_path / "copy", dataclasses.replace(saved[0], path=str(tmp_path / "copy"))


# Identity ------------------------------------------------------------------------------------------------------------


def test_the_embedded_model_keeps_its_name():
    assert load_model(find_card(DEFAULT_MODEL)).sha256 == OLD and OLD in KNOWN.values()
    meta = json.loads(next(ASSETS.rglob("noto/adapter.json")).read_text(encoding="utf-8"))
    assert meta["base_sha256"] == OLD


def crlf(folder: Path) -> None:
    for path in folder.rglob("*.json"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def unused_weights(folder: Path) -> None:
    for part in ("unet", "vae"):
        weights = next((folder / part).glob("*.safetensors"))
        shutil.copy(weights, weights.with_name(weights.stem + ".fp16.safetensors"))


def saved_by_a_newer_library(folder: Path) -> None:
    for part in ("unet", "vae"):
        edit(folder / part / "config.json", _diffusers_version="9.9", _name_or_path="/elsewhere", new_setting=None)
    edit(folder / "text_encoder" / "config.json", transformers_version="9.9", initializer_range=0.5)
    edit(folder / "scheduler" / "scheduler_config.json", _diffusers_version="9.9", clip_sample_range=2.0)


def defaults_left_out(folder: Path) -> None:
    edit(folder / "unet" / "config.json", **dict.fromkeys(("flip_sin_to_cos", "freq_shift", "act_fn", "norm_eps")))


def stored_in_another_order(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=7))


def stored_in_two_files(folder: Path) -> None:
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(folder / "again", max_shard_size="20KB")
    shutil.rmtree(folder / "unet")
    (folder / "again").rename(folder / "unet")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1


SAME: list[Callable[[Path], None]] = [
    crlf, unused_weights, saved_by_a_newer_library, defaults_left_out, stored_in_another_order, stored_in_two_files,
]  # fmt: skip


@pytest.mark.parametrize("change", SAME, ids=lambda f: f.__name__)
def test_what_changes_no_score_changes_no_identity(saved, again, change):
    folder, card = again
    change(folder)
    assert hash_folder(folder) != hash_folder(Path(saved[0].path)), "version 0.1 would have seen it"
    assert load_model(card).sha256 == saved[1].sha256


def of_variant(variant: str, *parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for part in parts:
            path = next((folder / part).glob("*model.safetensors"))
            path.rename(path.with_suffix(f".{variant}.safetensors"))

    return change


def of_fp16_with_another(folder: Path) -> None:
    of_variant("fp16", *PARTS)(folder)
    another = folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors"
    shutil.copy(next((folder / "vae").glob("*.safetensors")), another)


def of_many_fp16_files(folder: Path) -> None:
    of_variant("fp16", "unet", "vae")(folder)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    next((folder / "text_encoder").glob("*.safetensors")).unlink()
    encoder.save_pretrained(folder / "text_encoder", variant="fp16", max_shard_size="8KB")
    assert (folder / "text_encoder" / "model.safetensors.index.fp16.json").is_file()


PARTS = ("unet", "vae", "text_encoder")
VARIANTS = {
    "fp16": of_variant("fp16", *PARTS),
    "bf16": of_variant("bf16", *PARTS),
    "ema": of_variant("ema", *PARTS),
    "one part": of_variant("fp16", "unet"),
    "beside another": of_fp16_with_another,
    "many files": of_many_fp16_files,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_files_of_a_variant_are_read_where_there_are_no_others(saved, again, name):
    folder, card = again
    VARIANTS[name](folder)
    assert load_model(card).sha256 == saved[1].sha256


def test_parts_that_share_no_variant_are_named(again):
    folder, card = again
    of_variant("fp16", "unet")(folder)
    of_variant("ema", "vae")(folder)
    with pytest.raises(ModelError, match=r"variants, none of which they share \(unet: fp16; vae: ema\)"):
        load_model(card)


@pytest.mark.parametrize(
    "scheduler", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"]
)
def test_the_infinite_setting_that_diffusers_writes_is_none_of_a_damaged_file(saved, again, scheduler):
    folder, card = again
    edit(folder / "model_index.json", scheduler=["diffusers", scheduler])
    made = getattr(diffusers, scheduler).from_config(DDIMScheduler.load_config(folder / "scheduler"))
    made.save_pretrained(folder / "scheduler")
    assert "-Infinity" in (folder / SCHEDULER).read_text()
    assert load_model(card).sha256 == saved[1].sha256


def moved_weight(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        state = load_file(path)
        name = sorted(state)[-1]
        state[name].view(-1)[0] += 1e-6
        save_file(state, path, metadata={"format": "pt"})

    return change


def setting(path: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / path, **changes)


def swapped_words(folder: Path) -> None:
    for path in (folder / "tokenizer").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"a":', '"?":').replace('"b":', '"a":').replace('"?":', '"b":'), encoding="utf-8")


OTHER = {
    "unet": moved_weight("unet"),
    "vae": moved_weight("vae"),
    "text": moved_weight("text_encoder"),
    "eps of a norm": setting("unet/config.json", norm_eps=1e-4),
    "heads": setting("unet/config.json", attention_head_dim=4),
    "scale": setting("vae/config.json", scaling_factor=0.2),
    "act of the text": setting("text_encoder/config.json", hidden_act="gelu"),
    "betas": setting("scheduler/scheduler_config.json", beta_end=0.013),
    "words": swapped_words,
}


@pytest.mark.parametrize("name", OTHER)
def test_what_can_change_a_score_changes_the_identity(saved, again, name):
    folder, card = again
    OTHER[name](folder)
    assert load_model(card).sha256 != saved[1].sha256


def test_the_type_it_runs_in_and_the_type_it_is_stored_in_are_no_part_of_it(saved, again):
    folder, card = again
    assert load_model(card, dtype=torch.bfloat16).sha256 == saved[1].sha256
    found = []
    for dtype in (torch.float16, torch.float32):  # rounded to float16 first, then the same values in more bytes
        for path in folder.glob("*/*.safetensors"):
            save_file({n: v.to(dtype) for n, v in load_file(path).items()}, path, metadata={"format": "pt"})
        found.append(load_model(card).sha256)
    assert found[0] == found[1] != saved[1].sha256


def test_names_of_version_0_1_still_count(saved, tmp_path):
    card, model = saved
    assert model.goes_by(model.sha256) and model.goes_by(hash_folder(Path(card.path)))
    assert not model.goes_by("0" * 64)
    u = load_model(save_tiny_unconditional(tmp_path / "u"))
    assert u.goes_by(u.sha256) and not u.goes_by(model.sha256)


# Models that cannot be scored ----------------------------------------------------------------------------------------

UNET = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


def another_unet(**changes: Any) -> Callable[[Path], None]:
    """A network of other settings, with weights that fit them."""

    def change(folder: Path) -> None:
        config = {**UNet2DConditionModel.load_config(folder / "unet"), **changes}
        torch.manual_seed(0)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")

    return change


def flow_scheduler(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    (folder / SCHEDULER).write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}')


def edm_scheduler(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    (folder / SCHEDULER).write_text('{"_class_name": "EDMEulerScheduler", "sigma_max": 80.0}')


def flow_by_a_setting(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "UniPCMultistepScheduler"])
    edit(folder / SCHEDULER, _class_name="UniPCMultistepScheduler", use_flow_sigmas=True, flow_shift=3.0)


def spoilt(part: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        state = load_file(path)
        state[sorted(state)[0]].view(-1)[0] = value
        save_file(state, path, metadata={"format": "pt"})

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "the files say v": (setting(SCHEDULER, prediction_type="v_prediction"), "card .* 'epsilon', its files say 'v_pred"),
    "sample": (setting(SCHEDULER, prediction_type="sample"), "says that the model predicts 'epsilon'"),
    "nine channels": (another_unet(in_channels=9), "9 channels to 4.*VAE has 4"),
    "a list": (setting(UNET, sample_size=[8, 8]), r"\[8, 8\].*one number"),
    "another size": (
        setting(UNET, sample_size=16),
        "made for 32 pixels, its card says 16.*resolution: 32.*or correct `sample_size`",
    ),
    "flow": (flow_scheduler, "scheduler FlowMatchEulerDiscreteScheduler"),
    "edm": (edm_scheduler, "scheduler EDMEulerScheduler"),
    "flow by a setting": (
        flow_by_a_setting,
        "use_flow_sigmas",
    ),
    "zero snr": (setting(SCHEDULER, rescale_betas_zero_snr=True), "zero terminal SNR"),
    "classes": (another_unet(num_class_embeds=5), "more than a prompt"),
    "guidance": (another_unet(time_cond_proj_dim=8), "more than a prompt"),
    "sdxl": (setting("model_index.json", _class_name="StableDiffusionXLPipeline"), "is a StableDiffusionXLPipeline"),
    "another text width": (another_unet(cross_attention_dim=32), "width 32; its text encoder writes 16"),
    "too long prompts": (
        setting("tokenizer/tokenizer_config.json", model_max_length=10**9),
        "up to 1000000000 tokens",
    ),
    "nan in the unet": (spoilt("unet", float("nan")), "of unet has values that are not finite"),
    "inf in the vae": (spoilt("vae", float("inf")), "of vae has values that are not finite"),
    "nan in the text": (spoilt("text_encoder", float("nan")), "of text_encoder has values that are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_scored_is_refused_in_one_sentence(again, name):
    folder, card = again
    change, says = REFUSED[name]
    change(folder)
    with pytest.raises(ModelError, match=says) as e:
        load_model(card)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_where_the_files_are_silent_the_card_counts(saved, again):
    folder, card = again
    edit(folder / SCHEDULER, prediction_type=None)
    v = load_model(dataclasses.replace(card, prediction_type="v_prediction"))
    assert v.prediction.kind == "v_prediction" and v.sha256 != saved[1].sha256
    assert load_model(dataclasses.replace(card, prediction_type=None)).sha256 == saved[1].sha256


def test_a_card_cannot_make_a_ddpm_a_flow_model(again):
    folder, card = again
    edit(folder / SCHEDULER, prediction_type=None)
    with pytest.raises(ModelError, match="its schedule is a DDPM's"):
        load_model(dataclasses.replace(card, prediction_type="flow"))


def test_a_network_without_a_size_takes_the_cards(again):
    folder, card = again
    edit(folder / UNET, sample_size=None)
    assert load_model(card).latent_shape == (4, 8, 8)


def test_v_prediction_with_zero_terminal_snr_is_scored(tmp_path):
    card = save_tiny(tmp_path / "v", prediction="v_prediction")
    edit(tmp_path / "v" / SCHEDULER, rescale_betas_zero_snr=True)
    model = load_model(card)
    assert model.schedule.alpha[-1] == 0 and model.generate(["a"], seeds=[1], steps=3).std() > 0


def test_weights_that_overflow_in_half_precision_are_refused(again):
    folder, card = again
    spoilt("unet", 1e6)(folder)
    assert load_model(card).dtype == torch.float32
    with pytest.raises(ModelError, match=r"not finite.*gpu_dtype: float32"):
        load_model(card, dtype=torch.float16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"sample_size": (8, 8)}, "one number"), ({"sample_size": 16}, "made for 16 pixels")],
)
def test_unconditional_models_are_checked_alike(tmp_path, changes, says):
    card = save_tiny_unconditional(tmp_path / "u", **changes)
    with pytest.raises(ModelError, match=says):
        load_model(card)


def test_an_unconditional_flow_model_is_refused(tmp_path):
    card = save_tiny_unconditional(tmp_path / "u")
    flow_scheduler(tmp_path / "u")
    with pytest.raises(ModelError, match="FlowMatchEulerDiscreteScheduler"):
        load_model(card)
    spoilt("unet", float("nan"))(tmp_path / "u")
    edit(tmp_path / "u" / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    (tmp_path / "u" / SCHEDULER).write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(ModelError, match="not finite"):
        load_model(card)


# Values that are not finite ------------------------------------------------------------------------------------------


def broken(module: torch.nn.Module, patch: pytest.MonkeyPatch) -> None:
    """From now on the module's last weight makes what it computes infinite."""
    last = list(module.parameters())[-1]
    patch.setattr(last, "data", torch.full_like(last, float("inf")))


DOORS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "encode": ("vae.encoder", lambda m: m.encode(np.full((16, 16, 3), 200, np.uint8))),
    "decode": ("vae.decoder", lambda m: m.decode(torch.zeros(1, 4, 8, 8))),
    "embed": ("text_encoder", lambda m: m.embed(["a"])),
    "sample": ("unet", lambda m: m.generate(["a"], seeds=[1], steps=2)),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_lets_values_through_that_are_not_finite(saved, monkeypatch, door):
    part, use = DOORS[door]
    module = saved[1].pipe
    for name in part.split("."):
        module = getattr(module, name)
    broken(module, monkeypatch)
    with pytest.raises(GudaError, match="not finite"):
        use(saved[1])


def test_a_latent_that_is_not_finite_is_no_picture(saved, tmp_path):
    for model in (saved[1], load_model(save_tiny_unconditional(tmp_path / "u"))):
        with pytest.raises(ModelError, match="not finite"):
            model.decode(torch.full((1, *model.latent_shape), float("nan")))


def test_the_schedule_of_a_scheduler_that_is_not_ddims_is_refused(again):
    folder, card = again
    edit(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    edit(folder / SCHEDULER, _class_name="DDPMScheduler", beta_schedule="sigmoid")
    with pytest.raises(ModelError, match="DDIM"):
        load_model(card)
    edit(folder / SCHEDULER, beta_schedule="scaled_linear")
    kept = DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
    assert torch.equal(load_model(card).schedule.rounded[0], kept.sqrt())
