"""Tiny real models for tests: the Stable Diffusion layout with random or planted weights, made in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from guda_core.models.base import Card
from guda_core.training.unet import SCHEDULER

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,"


def tiny_tokenizer(length: int) -> CLIPTokenizer:
    """Letters as tokens, each also as the end of a word."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for c in LETTERS:
        vocab[c] = len(vocab)
        vocab[c + "</w>"] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def save_tiny(
    folder: Path,
    *,
    latent: int = 8,
    downs: int = 2,
    tokens: int = 77,
    prediction: str = "epsilon",
    pooled: bool = False,
) -> Card:
    """Save a random miniature of Stable Diffusion 1.5 and return a card for it.

    The VAE shrinks by 2 ** (downs - 1); with downs = 4 it is SD's 8x VAE with its scaling factor 0.18215.
    pooled: the prompt also enters through the time embedding, as in the embedded model.
    """
    torch.manual_seed(0)
    size = latent * 2 ** (downs - 1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * downs,
        up_block_types=("UpDecoderBlock2D",) * downs,
        block_out_channels=(8,) * downs,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=latent,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=2,
        **({"addition_embed_type": "text", "addition_embed_type_num_heads": 4} if pooled else {}),
    )
    tok = tiny_tokenizer(tokens)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tok),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokens,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tok,
        unet=unet,
        scheduler=DDIMScheduler(**{**SCHEDULER, "prediction_type": prediction}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return Card("tiny", "Tiny", "folder", str(folder), size, prediction, "float16", "emoji", "test")


def tiny_unet(*, channels: int = 1, **more) -> UNet2DModel:
    """A random UNet for 8 by 8 pixels, with attention."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8, "in_channels": channels, "out_channels": channels, "layers_per_block": 1,
        "block_out_channels": (16, 16), "norm_num_groups": 8, "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DModel(**{**config, **more})


def save_tiny_unconditional(
    folder: Path, *, scheduler: type = DDPMScheduler, prediction: str = "epsilon", **more
) -> Card:
    """Save a random miniature of an unconditional pixel-space model and return a card for it."""
    DDPMPipeline(unet=tiny_unet(**more), scheduler=scheduler(prediction_type=prediction)).save_pretrained(folder)
    return Card(
        "tiny-u", "Tiny", "folder", str(folder), 8, prediction, "float16", "digits", "test", kind="unconditional"
    )
