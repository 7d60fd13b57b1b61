"""Single files, with configurations of our own, and the names that --model takes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from guda_core.diffusion import single_file
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import load_model, resolve_card
from guda_core.errors import ModelError
from tests.tiny import save_tiny, tiny_tokenizer
from tests.tiny_single_file import save_single


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model as a folder, a/m, and as one file, a/one.safetensors, with its configuration beside it, a/one."""
    root = tmp_path_factory.mktemp("single")
    save_tiny(root / "m")
    save_single(root / "m", root / "one.safetensors")
    shutil.copytree(root / "m", root / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    return root


def test_a_single_file_is_the_model_that_it_was_written_from(folder):
    whole, card = load_model(resolve_card(str(folder / "m"))), resolve_card(str(folder / "one.safetensors"))
    assert (card.source, card.id, card.resolution, card.kind) == ("file", "one", 16, "stable_diffusion")
    single = load_model(card)
    assert single.sha256 == whole.sha256
    assert (single.generate(["ab"], seeds=[1], steps=2) == whole.generate(["ab"], seeds=[1], steps=2)).all()


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def silent(folder, tmp_path):
    """Settings without weights whose schedule says neither what is predicted nor whether it ends in noise: x/."""
    shutil.copytree(folder / "one", tmp_path / "x")
    path = tmp_path / "x" / SCHEDULER
    said = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in said.items() if k != "prediction_type" and "zero" not in k}))
    return tmp_path / "x"


def test_marks_in_a_file_name_the_prediction_and_the_schedule(folder, silent):
    """Tensors "v_pred" and "ztsnr", as fine-tunes of XL carry them; the scheduler's own file says nothing."""
    path = silent.with_suffix(".safetensors")
    save_single(folder / "m", path, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    card = Card("mine", "Mine", "file", str(path), 16)  # as one may be written for it
    by_path, by_card = load_model(resolve_card(str(path))), load_model(card)
    assert by_card.prediction.kind == "v_prediction" and by_card.schedule.alpha[-1] == 0
    assert by_card.sha256 == by_path.sha256 != load_model(resolve_card(str(folder / "m"))).sha256
    with pytest.raises(ModelError, match=r"card 'mine' says .* 'epsilon', its files say 'v_prediction'"):
        load_model(dataclasses.replace(card, prediction_type="epsilon"))
    shutil.copy(folder / "one" / SCHEDULER, silent / SCHEDULER)
    for one in (card, resolve_card(str(path))):
        with pytest.raises(ModelError, match=r"marked as .* 'v_prediction'; the settings beside it say 'epsilon'"):
            load_model(one)


def test_what_a_stable_diffusion_2_predicts_must_be_said(tmp_path):
    card, ours = Card("two", "Two", "file", str(tmp_path / "x.safetensors"), 768), single_file.CONFIGS / "sd21"
    save_file({"x": torch.zeros(1)}, card.path)
    with pytest.raises(ModelError, match=r"does not say which\. Set `prediction_type` in the card 'two'"):
        single_file.schedule_of(card, ours)
    assert "prediction_type" not in single_file.schedule_of(dataclasses.replace(card, prediction_type="epsilon"), ours)
    save_file({"v_pred": torch.zeros(0)}, card.path)
    assert single_file.schedule_of(card, ours)["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("front", "name", "pad"),
    [
        ("cond_stage_model.transformer.", "tokenizer", "<|endoftext|>"),
        ("cond_stage_model.model.", "tokenizer", "!"),
        ("conditioner.embedders.1.model.", "tokenizer", "<|endoftext|>"),
        ("conditioner.embedders.1.model.", "tokenizer_2", "!"),
    ],
)
def test_the_padding_is_what_the_files_text_encoder_was_trained_with(tmp_path, monkeypatch, front, name, pad):
    path, asked = tmp_path / "x.safetensors", {}
    save_file({**CHANNELS, f"{front}x": torch.zeros(1)}, path)
    with monkeypatch.context() as m:  # the Hub's, whatever the settings' folder is called
        m.setattr(CLIPTokenizer, "from_pretrained", lambda place, **more: asked.update(more) or [place] * 2000)
        single_file._tokenizer(path, tmp_path / "my settings", name)
    assert asked.get("pad_token", "<|endoftext|>") == pad
    tiny_tokenizer(77).save_pretrained(tmp_path / "tokenizer")
    assert single_file._tokenizer(path, tmp_path / "my settings", name).pad_token == pad


PARAMETERS = {  # as their authors published them
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_our_configurations_are_the_published_architectures(name):
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for part, count in PARAMETERS[name].items():
        where = single_file.CONFIGS / name / part
        with init_empty_weights():
            if part in kinds:
                module = kinds[part].from_config(kinds[part].load_config(where))
            else:
                kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
                module = kind(CLIPTextConfig.from_pretrained(where))
        assert sum(p.numel() for p in module.parameters()) == count, part
    alphas = DDIMScheduler.from_config(DDIMScheduler.load_config(single_file.CONFIGS / name / "scheduler"))
    assert float(alphas.alphas_cumprod[0]) == pytest.approx(1 - 0.00085)
    assert float(alphas.alphas_cumprod[-1]) == pytest.approx(0.0047, abs=1e-4)


NETWORK = {single_file.INPUT: torch.zeros(4, 4, 3, 3)}
CHANNELS = {**NETWORK, "first_stage_model.x": torch.zeros(1)}


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({single_file.INPUT: torch.zeros(4, 9, 3, 3)}, "reads 9 channels, not 4"),
        ({"lora_unet_a.lora_down.weight": torch.zeros(1)}, "is a LoRA. Name it with --lora"),
        ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, "is a Stable Diffusion 3.*use its folder"),
        ({**CHANNELS, "edm_mean": torch.zeros(1)}, "EDM .it holds edm_mean.*not one of a DDPM"),
        ({**CHANNELS, "edm_vpred.sigma_max": torch.zeros(1)}, "EDM .it holds edm_vpred.sigma_max"),
        ({**NETWORK, "cond_stage_model.transformer.x": torch.zeros(1)}, "holds no VAE"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, "is a FLUX.*use its folder"),
        ({"conditioner.embedders.0.model.x": torch.zeros(1), **CHANNELS}, "is a refiner"),
        ({"down_blocks.0.x": torch.zeros(1)}, "is one part of a folder"),
        ({"x": torch.zeros(1)}, "holds no whole Stable Diffusion"),
        ({"cond_stage_model.model.x": torch.zeros(1), **CHANNELS}, "is a Stable Diffusion 2, .*does not say which"),
    ],
)
def test_files_that_are_no_whole_model_are_named_for_what_they_are(tmp_path, tensors, sentence):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=sentence):
        resolve_card(str(tmp_path / "x.safetensors"))


def test_names_that_stand_for_no_model(folder, tmp_path):
    for name in ("style.ckpt", "weights.pt", str(tmp_path / "pytorch_model.bin")):
        with pytest.raises(ModelError, match="is a pickle, which can run code when it is opened"):
            resolve_card(name)
    with pytest.raises(ModelError, match=r"There is no file .*none\.safetensors"):
        resolve_card(str(tmp_path / "none.safetensors"))
    with pytest.raises(
        ModelError, match=r"There is no model '.*nowhere'\. There is nothing at .*nowhere\. Known: emoji"
    ):
        resolve_card(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"is no model in diffusers' layout: it has no model_index\.json"):
        resolve_card(str(tmp_path))
    (tmp_path / "torn.safetensors").write_bytes(b"\x10" + bytes(30))
    with pytest.raises(ModelError, match="damaged or incomplete"):
        resolve_card(str(tmp_path / "torn.safetensors"))
    with pytest.raises(ModelError, match=r"Known: emoji, sd15\. Or give a folder .* Hub id"):
        resolve_card("sd99")


def test_a_file_with_one_card_names_a_model(folder, tmp_path):
    card = dataclasses.asdict(resolve_card(str(folder / "m")))
    fields = {k: v for k, v in card.items() if k != "id"}
    (tmp_path / "mine.yaml").write_text(json.dumps({"mine": fields}))
    assert resolve_card(str(tmp_path / "mine.yaml")) == dataclasses.replace(resolve_card(str(folder / "m")), id="mine")
    (tmp_path / "two.yaml").write_text(json.dumps({"a": fields, "b": fields}))
    with pytest.raises(ModelError, match="holds 2 cards"):
        resolve_card(str(tmp_path / "two.yaml"))


def test_without_a_hub_names_on_it_say_what_to_do(monkeypatch, folder):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be downloaded from the Hugging Face Hub"):
        resolve_card("nobody-here/no-such-model")
    shutil.rmtree(folder / "one" / "tokenizer")
    with pytest.raises(ModelError, match="put the model's `tokenizer` folder beside the file"):
        load_model(resolve_card(str(folder / "one.safetensors")))
    shutil.copytree(folder / "m" / "tokenizer", folder / "tokenizer")
    assert load_model(resolve_card(str(folder / "one.safetensors"))).tokens("ab")[1] == 77


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.conv_out.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused(folder, tmp_path, name):
    shutil.copytree(folder / "m", tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    state = load_file(folder / "one.safetensors")
    del state[name]
    save_file(state, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        load_model(resolve_card(str(tmp_path / "one.safetensors")))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path, part):
    card = save_tiny(tmp_path)
    path = next((tmp_path / part).glob("*.safetensors"))
    state = load_file(path)
    name = [k for k in state if k.endswith("bias")][-1]
    del state[name]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 tensors of its {part} are missing, such as .*bias"):
        load_model(card)


def test_a_folder_of_pickles_is_refused(tmp_path):
    card = save_tiny(tmp_path)
    path = next((tmp_path / "unet").glob("*.safetensors"))
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"holds its unet as a pickle \(\.bin\)"):
        load_model(card)
