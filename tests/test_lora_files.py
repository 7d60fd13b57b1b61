"""LoRA files of kohya's scripts, diffusers and PEFT, merged into tiny models of every family at load."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import guda_core
from guda_core.diffusion.cards import load_model, resolve_card
from guda_core.diffusion.identity import with_lora as with_lora_hash
from guda_core.errors import ModelError
from guda_core.unlearning import adapters
from guda_core.unlearning.lora import LoraSpec
from tests.tiny_families import save_family

ALPHA, RANK = 3.0, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> (its folder, its model)."""
    loaded: dict = {}

    def of(family: str):
        if family not in loaded:
            folder = tmp_path_factory.mktemp(family)
            loaded[family] = (folder, load_model(save_family(folder, family)))
        return loaded[family]

    return of


def factors(model, parts: dict[str, tuple[str, ...]]):
    """(part, layer, A, B) of random factors for the layers of those endings."""
    g = torch.Generator().manual_seed(0)
    for part, endings in parts.items():
        for name, m in getattr(model.pipe, part).named_modules():
            if name.endswith(endings):
                out, *rows = m.weight.shape
                a = 0.1 * torch.randn(RANK, *rows, generator=g)
                yield part, name, a, 0.1 * torch.randn(out, RANK, *[1] * (len(rows) - 1), generator=g)


NETWORK = ("to_q", "to_out.0", "ff.net.2", "conv1")
TEXT = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")


def kohya(part: str, name: str, a, b) -> dict[str, torch.Tensor]:
    front = {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}.get(part, "lora_unet_")
    key = front + name.removeprefix("text_model.").replace(".", "_")
    return {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(ALPHA)}


def diffusers(part: str, name: str, a, b) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}.lora_A.weight": a, f"{part}.{name}.lora_B.weight": b}


def old_diffusers(part: str, name: str, a, b) -> dict[str, torch.Tensor]:
    """As its training scripts wrote it in 2023; alpha is the rank."""
    if name.endswith(("to_q", "to_out.0")):
        block, _, layer = name.removesuffix(".0").rpartition(".")
        key = f"{part}.{block}.processor.{layer}_lora"
    else:
        key = f"{part}.{name}.lora"
    return {f"{key}.down.weight": a, f"{key}.up.weight": b}


def named(key: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {f"{key}.lora_down.weight": torch.ones(RANK, size[1]), f"{key}.lora_up.weight": torch.ones(size[0], RANK)}


def peft(part: str, name: str, a, b) -> dict[str, torch.Tensor]:
    return {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}


def written(model, path, layout, parts) -> list:
    """Write a LoRA file in a layout; what it should change: (part, layer, difference)."""
    state, expected = {}, []
    scale = 1.0 if layout is old_diffusers else ALPHA / RANK
    for part, name, a, b in factors(model, parts):
        state |= layout(part, name, a, b)
        expected.append((part, name, scale * (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])))
    metadata = {}
    if layout is diffusers:
        said = {f"{p}.{k}": v for p in parts for k, v in (("r", RANK), ("lora_alpha", ALPHA))}
        metadata = {"lora_adapter_metadata": json.dumps(said)}
    if layout is peft:
        path.with_name("adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=metadata)
    return expected


def with_lora(folder, path):
    card = resolve_card(str(folder), lora=str(path))
    return load_model(dataclasses.replace(card, resolution=16))


@pytest.mark.parametrize("layout", [kohya, diffusers, old_diffusers, peft])
@pytest.mark.parametrize("family", ["sd1", "xl", "sd3", "flux"])
def test_a_lora_is_merged_into_every_layer_that_it_names(models, tmp_path, family, layout):
    folder, model = models(family)
    if family in ("sd3", "flux") and layout is old_diffusers:
        pytest.skip("older than the family")
    parts = {model.part: NETWORK}
    if layout is not peft:
        parts |= {e: TEXT for e in model.encoders[:2] if family != "flux" or e == "text_encoder"}
    expected = written(model, tmp_path / "style.safetensors", layout, parts)
    merged = with_lora(folder, tmp_path / "style.safetensors")
    assert len(expected) >= 4 and len(parts) <= len({part for part, _, _ in expected})
    for part, name, change in expected:
        before, after = (getattr(m.pipe, part).get_submodule(name).weight for m in (model, merged))
        assert torch.allclose(after, before + change, atol=1e-6), (part, name)
    untouched = {(part, f"{name}.weight") for part, name, _ in expected}
    for part in (model.part, "vae"):
        for name, w in getattr(model.pipe, part).state_dict().items():
            same = torch.equal(getattr(merged.pipe, part).state_dict()[name], w)
            assert same != ((part, name) in untouched), (part, name)
    assert merged.sha256 != model.sha256 and merged.card.lora.endswith("style.safetensors")
    assert with_lora(folder, tmp_path / "style.safetensors").sha256 == merged.sha256


@pytest.mark.parametrize("alpha", [RANK, 5, 1])
def test_a_lora_of_gudas_own_is_merged_with_the_alpha_of_its_header(models, tmp_path, alpha):
    """W + (alpha / r) B A, also where alpha is not the rank, and wherever the file was moved to."""
    folder, model = models("sd1")
    made, scale = {}, alpha / RANK
    for _, name, a, b in factors(model, {model.part: ("to_q", "conv1")}):
        made |= {f"{name}.lora_A.weight": a.half(), f"{name}.lora_B.weight": b.half()}
    spec = LoraSpec(rank=RANK, alpha=alpha, targets=("to_q", "conv1"))
    adapters.save_factors(made, tmp_path / "ann", spec=spec, meta={"group": "ann", "base_sha256": model.sha256})
    moved = (tmp_path / "ann" / "adapter_model.safetensors").rename(tmp_path / "ann.safetensors")
    merged = with_lora(folder, moved)
    for name in {n.removesuffix(".lora_A.weight") for n in made if ".lora_A." in n}:
        a, b = (made[f"{name}.lora_{k}.weight"].float() for k in "AB")
        change = scale * torch.einsum("or,rn->on", b.flatten(1), a.flatten(1))
        before, after = (m.network.get_submodule(name).weight for m in (model, merged))
        assert torch.allclose(after - before, change.reshape(before.shape), atol=1e-6), name
        assert change.abs().max() > 0.005


def test_the_library_takes_a_lora_beside_the_model(models, tmp_path, monkeypatch):
    folder, model = models("sd1")
    written(model, tmp_path / "style.safetensors", kohya, {model.part: NETWORK})
    plain, merged = guda_core.load_model(folder), guda_core.load_model(folder, lora=tmp_path / "style.safetensors")
    assert merged.sha256 != plain.sha256 and merged.card.lora.endswith("style.safetensors")
    monkeypatch.setenv("GUDA_LORA", str(tmp_path / "style.safetensors"))
    assert guda_core.load_model(folder).sha256 == merged.sha256


def test_kohyas_names_for_xl_and_flux_are_those_of_their_first_code(models, tmp_path):
    """XL's blocks are counted through, and FLUX's queries, keys and values are one matrix."""
    folder, model = models("xl")
    key = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    a, b = torch.randn(RANK, 32), torch.randn(32, RANK)
    state = {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(ALPHA)}
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(state, tmp_path / "xl.safetensors")
    merged = with_lora(folder, tmp_path / "xl.safetensors")
    change = merged.network.get_submodule(layer).weight - model.network.get_submodule(layer).weight
    assert torch.allclose(change, ALPHA / RANK * b @ a, atol=1e-5)

    folder, model = models("flux")
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    a, b = torch.randn(RANK, 16), torch.randn(48, RANK)
    state = {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(ALPHA)}
    save_file(state, tmp_path / "flux.safetensors")
    merged = with_lora(folder, tmp_path / "flux.safetensors")
    for i, layer in enumerate(f"transformer_blocks.0.attn.to_{k}" for k in "qkv"):
        change = merged.network.get_submodule(layer).weight - model.network.get_submodule(layer).weight
        assert torch.allclose(change, ALPHA / RANK * b[16 * i : 16 * (i + 1)] @ a, atol=1e-5)


T5 = "encoder_block_0_layer_0_SelfAttention_q"
KOHYA, PEFT, OLD = ("lora_down", "lora_up"), ("lora_A", "lora_B"), ("down", "up")
OTHERS = {  # family, name and factors in a file -> part, layer, and the rows of B that it gets
    "kohya's T5": ("flux", f"lora_te3_{T5}", KOHYA, "text_encoder_2", T5, slice(8)),
    "kohya's T5 at first": ("flux", f"lora_te2_{T5}", KOHYA, "text_encoder_2", T5, slice(8)),
    "kohya's T5 of SD 3": ("sd3", f"lora_te3_{T5}", KOHYA, "text_encoder_3", T5, slice(8)),
    "comfy's T5": ("flux", f"text_encoders.t5xxl.transformer.{T5}", KOHYA, "text_encoder_2", T5, slice(8)),
    "kohya's first": ("flux", "lora_unet_img_in", KOHYA, "transformer", "x_embedder", slice(16)),
    "kohya's last": ("flux", "lora_unet_final_layer_linear", KOHYA, "transformer", "proj_out", slice(64)),
    "comfy's": (
        "flux", "diffusion_model.double_blocks.0.img_attn.qkv", PEFT, "transformer",
        "transformer_blocks_0_attn_to_k", slice(16, 32),
    ),
    "xlabs'": (
        "flux", "double_blocks.0.processor.qkv_lora2", OLD, "transformer", "transformer_blocks_0_attn_add_v_proj",
        slice(32, 48),
    ),
    "attention processors": (
        "sd1", "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora", OLD, "unet",
        "mid_block_attentions_0_transformer_blocks_0_attn1_to_q", slice(64),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("family", "key", "which", "part", "flat", "rows"), OTHERS.values(), ids=list(OTHERS))
def test_names_of_other_programs_find_their_layer(models, tmp_path, family, key, which, part, flat, rows):
    folder, model = models(family)
    name = next(n for n, _ in getattr(model.pipe, part).named_modules() if n.replace(".", "_") == flat)
    weight = getattr(model.pipe, part).get_submodule(name).weight
    a, b = torch.randn(RANK, weight.shape[1]), torch.randn(48 if "qkv" in key else len(weight), RANK)
    state = {f"{key}.{which[0]}.weight": a, f"{key}.{which[1]}.weight": b}
    if which is KOHYA:
        state[f"{key}.alpha"] = torch.tensor(ALPHA)
    if which is KOHYA and family == "flux":  # beside another layer that diffusers renames
        other = "lora_unet_double_blocks_0_txt_attn_qkv"
        state |= {f"{other}.lora_down.weight": torch.ones(1, 16), f"{other}.lora_up.weight": torch.ones(48, 1)}
    save_file(state, tmp_path / "style.safetensors")
    merged = with_lora(folder, tmp_path / "style.safetensors")
    change = getattr(merged.pipe, part).get_submodule(name).weight - weight
    assert torch.allclose(change, (ALPHA / RANK if which is KOHYA else 1) * b[rows] @ a, atol=1e-5)


@pytest.mark.parametrize("run", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_each_sum_is_rounded_once_to_the_type_that_it_runs_in(models, tmp_path, stored, run):
    """Half of a small change is lost in bfloat16. The LoRA's identity is of its file, whatever the types."""
    folder, model = models("sd1")
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({n: t.to(stored) for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    ((_, layer, a, b), *_) = factors(model, {"unet": ("attn1.to_q",)})
    state = kohya("unet", layer, 0.01 * a, b)
    save_file(state, tmp_path / "style.safetensors")
    card = resolve_card(str(tmp_path / "m"), lora=str(tmp_path / "style.safetensors"))
    merged, plain = (load_model(c, dtype=run) for c in (card, dataclasses.replace(card, lora="")))
    before = load_file(path)[f"{layer}.weight"].float()
    expected = (before + ALPHA / RANK * 0.01 * b @ a).to(run)
    after = merged.network.get_submodule(layer).weight
    assert after.dtype == run and torch.allclose(after, expected, rtol=1e-6, atol=1e-9)
    assert merged.sha256 == with_lora_hash(plain.sha256, state, {})


def test_what_is_no_lora_for_this_model_is_refused(models, tmp_path):
    folder, model = models("sd1")
    path = tmp_path / "style.safetensors"
    written(model, path, kohya, {"unet": NETWORK})
    for other in ("xl", "sd3"):
        with pytest.raises(ModelError, match=r"style\.safetensors does not fit this model, a .*another family or size"):
            with_lora(models(other)[0], path)

    good = {}
    for part, name, a, b in factors(model, {"unet": ("attn1.to_q",)}):
        good |= kohya(part, name, a, b)
    key = next(iter(good)).partition(".")[0]
    for change, sentence in (
        ({f"{key}.alpha": torch.tensor(float("nan"))}, "alpha is not finite"),
        ({f"{key}.lora_up.weight": torch.full((16, RANK), float("inf"))}, "lora_up.weight is not finite"),
        ({f"{key}.dora_scale": torch.ones(1)}, "is a DoRA, which cannot be merged"),
        ({f"{key}.hada_w1_a": torch.ones(1)}, "is a LoHa, which cannot be merged"),
        (
            {"bundle_emb.ann.string_to_param.*": torch.ones(1, 16)},
            r"new words \(pivotal tuning\), which cannot be merged",
        ),
        ({f"{key}.diff_b": torch.ones(16)}, "is a LoRA with biases, which cannot be merged"),
        ({f"{key}.diff": torch.ones(16)}, r"fit this model, .*: \w+\.diff is no factor of a LoRA\.$"),
        ({"lora_unet_elsewhere.lora_down.weight": torch.ones(2, 2)}, r"elsewhere lacks one of its two factors\.$"),
        (named("lora_unet_else", (2, 2)), "it has no layer lora_unet_else. It was made for another family or size"),
        (named(f"lora_te3_{T5}", (2, 2)), f"it has no layer lora_te3_{T5}"),
        (
            named("lora_unet_input_blocks_1_0_in_layers_9", (2, 2)),
            "it has no layer lora_unet_input_blocks_1_0_in_layers_9",
        ),
        (named(key.replace("lora_unet", "unet"), (16, 16)), "another name of its layer have different factors"),
        (
            {n.replace("lora_unet", "unet"): t.clone() for n, t in good.items()} | {f"{key}.alpha": torch.tensor(0.5)},
            "another name of its layer have different factors or alphas",
        ),
        ({f"{key}.lora_A.weight": torch.ones(RANK, 16)}, "is there by another name, too"),
        ({"lora_unet_conv_in.alpha": torch.tensor(1.0)}, "lora_unet_conv_in has an alpha and no factors"),
        ({f"{key}.lora_down.weight": torch.ones(RANK, 5)}, "is 16 by 5, its layer 16 by 16. It was made for another"),
        ({f"{key}.lora_up.weight": torch.full((16, RANK), 3e38), f"{key}.alpha": torch.tensor(1e9)}, "is too strong"),
    ):
        save_file({**good, **change}, path)
        with pytest.raises(ModelError, match=sentence):
            with_lora(folder, path)

    save_file({"conv.weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match="is no LoRA: none of its 1 tensors"):
        with_lora(folder, path)
    path.write_bytes(b"torn")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        with_lora(folder, path)
    with pytest.raises(ModelError, match="There is no LoRA file"):
        with_lora(folder, tmp_path / "nowhere.safetensors")
    (tmp_path / "style.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match="is a pickle, which can run code"):
        with_lora(folder, tmp_path / "style.ckpt")
    save_file(peft("unet", "conv_in", torch.ones(RANK, 4), torch.ones(16, RANK)), path)
    with pytest.raises(ModelError, match=r"Keep its adapter_config\.json beside it"):
        with_lora(folder, path)
