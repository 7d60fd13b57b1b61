"""Tiny real pipelines of every family, with random weights: saved in diffusers' layout in well under a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from experiments.train.unet import SCHEDULER
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import load_model, resolve_card
from tests.tiny import LETTERS, save_tiny, tiny_tokenizer

FAMILIES = ("sd1", "sd2", "xl", "sd3", "sd3_without_t5", "flux", "flux_dev")


def clip(kind: type, projection: int = 8, width: int = 8):
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS), hidden_size=width, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        projection_dim=projection,
    )  # fmt: skip
    return kind(config)


def t5(width: int = 32) -> tuple[T5EncoderModel, T5Tokenizer]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config), T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def autoencoder(channels: int, scale: float, shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4, sample_size=16, scaling_factor=scale,
        shift_factor=shift,
    )  # fmt: skip


def save_xl(folder: Path, *, zeros: bool = True) -> None:
    """Stable Diffusion XL for 16 by 16 pixels. zeros: the empty prompt is all zeros."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=16, attention_head_dim=(2, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=autoencoder(4, 0.13025, None), text_encoder=clip(CLIPTextModel),
        text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer=tiny_tokenizer(77), tokenizer_2=tiny_tokenizer(77),
        unet=unet, scheduler=DDIMScheduler(**SCHEDULER), force_zeros_for_empty_prompt=zeros,
    ).save_pretrained(folder)  # fmt: skip


def save_sd3(folder: Path, *, with_t5: bool = True) -> None:
    """Stable Diffusion 3 for 16 by 16 pixels."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16, out_channels=16,
        pos_embed_max_size=8,
    )  # fmt: skip
    with torch.no_grad():
        transformer.proj_out.weight.normal_(std=0.2)
    encoder, tokenizer = t5() if with_t5 else (None, None)
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(16, 1.5305, 0.0609), text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=tiny_tokenizer(77), text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer_2=tiny_tokenizer(77),
        text_encoder_3=encoder, tokenizer_3=tokenizer,
    ).save_pretrained(folder)  # fmt: skip


def save_flux(folder: Path, *, guidance: bool = False, dynamic: bool = True) -> None:
    """FLUX. guidance: distilled with guidance, as FLUX.1 [dev] is. dynamic: its times' shift depends on the size."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=8, guidance_embeds=guidance, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    encoder, tokenizer = t5()
    FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=autoencoder(16, 0.3611, 0.1159), text_encoder=clip(CLIPTextModel), tokenizer=tiny_tokenizer(77),
        text_encoder_2=encoder, tokenizer_2=tokenizer,
    ).save_pretrained(folder)  # fmt: skip


def save_family(folder: Path, family: str) -> Card:
    """Save a tiny pipeline of one of FAMILIES and return the card that its files give."""
    if family == "sd1":
        save_tiny(folder)
    elif family == "sd2":
        save_tiny(folder, prediction="v_prediction", zero_snr=True)
    elif family == "xl":
        save_xl(folder)
    elif family.startswith("sd3"):
        save_sd3(folder, with_t5=family == "sd3")
    else:
        save_flux(folder, guidance=family == "flux_dev")
    card = resolve_card(str(folder))
    if card.kind == "flux":  # whose files do not name a size
        card = replace(card, resolution=16)
    return card


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> its tiny model, loaded when first asked for."""
    loaded: dict = {}

    def of(family: str):
        if family not in loaded:
            loaded[family] = load_model(save_family(tmp_path_factory.mktemp(family), family))
        return loaded[family]

    return of
