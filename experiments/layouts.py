"""Models of a full-size layout with random weights, made on the spot by the settings in `guda_core/diffusion/configs`.

They are enough to measure memory, time and the agreement of number types; they draw nothing. No file is read but the
settings, and nothing is downloaded: the tokenizer knows letters alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from guda_core.diffusion.base_model import BaseModel, Card
from guda_core.diffusion.single_file import CONFIGS
from guda_core.diffusion.unet_family import StableDiffusion, StableDiffusionXL
from guda_core.records import Group, GroupSet

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,"
LAYOUTS = {"sd15": ("stable_diffusion", 512), "sdxl": ("stable_diffusion_xl", 1024)}
TINY: Mapping[str, Mapping[str, Any]] = {  # changes of the settings that make a model of seconds
    "unet": {
        "sample_size": 8,
        "cross_attention_dim": 32,
        "block_out_channels": [8, 8, 16, 16],
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "sample_size": 64},
    "text_encoder": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "projection_dim": 32,
        "vocab_size": 100,
    },
}


def config_of(layout: str, part: str, *, tiny: bool = False) -> dict[str, Any]:
    """The settings of a part; tiny: changed into a small model of the same kind."""
    said = json.loads((CONFIGS / layout / part / "config.json").read_text(encoding="utf-8"))
    if not tiny:
        return said
    changes = dict(TINY["text_encoder" if part.startswith("text_encoder") else part])
    if part == "unet" and layout == "sdxl":
        changes |= {"block_out_channels": [8, 8, 16], "transformer_layers_per_block": [1, 1, 2]}
        changes |= {"attention_head_dim": [1, 2, 2]}
        changes |= {"cross_attention_dim": 64, "projection_class_embeddings_input_dim": 6 * 256 + 32}  # two encoders
    return {**said, **changes}


def tokenizer(length: int = 77) -> CLIPTokenizer:
    """Letters as tokens, each also as the end of a word."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for c in LETTERS:
        vocab |= {c: len(vocab), c + "</w>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def make_unet(layout: str, *, tiny: bool = False) -> UNet2DConditionModel:
    """The layout's UNet, random, on torch's default device."""
    return UNet2DConditionModel.from_config(config_of(layout, "unet", tiny=tiny))  # type: ignore[return-value]


def _text(layout: str, part: str, tiny: bool) -> nn.Module:
    said = config_of(layout, part, tiny=tiny)
    config = CLIPTextConfig(**{**said, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    return (CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel)(config)


def _named(kind: type[StableDiffusion], name: str) -> type[StableDiffusion]:
    class Random(kind):  # type: ignore[misc, valid-type]
        """Known by its recipe: gigabytes of random numbers need no hash."""

        def _identity(self, parts: Mapping[str, nn.Module]) -> str:
            return hashlib.sha256(name.encode()).hexdigest()

    return Random


def make_model(
    layout: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, tiny: bool = False, seed: int = 0
) -> BaseModel:
    """A model of a layout. The same seed gives the same weights on one device, whatever the type."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    kind, size = LAYOUTS[layout]
    family = StableDiffusionXL if kind == "stable_diffusion_xl" else StableDiffusion
    size = 64 if tiny else size
    torch.manual_seed(seed)
    with torch.device(device):
        parts: dict[str, Any] = {
            "unet": make_unet(layout, tiny=tiny),
            "vae": AutoencoderKL.from_config(config_of(layout, "vae", tiny=tiny)),
        }
        for encoder in family.encoders:
            parts[encoder] = _text(layout, encoder, tiny)
    for encoder in family.encoders:
        parts[encoder.replace("text_encoder", "tokenizer")] = tokenizer()
    said = json.loads((CONFIGS / layout / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    more: dict[str, Any] = {"force_zeros_for_empty_prompt": True} if layout == "sdxl" else {"feature_extractor": None}
    pipe = family.pipeline(**parts, scheduler=DDIMScheduler.from_config(said), **family.without, **more)
    card = Card(f"random-{layout}", f"Random {layout}", "folder", str(CONFIGS / layout), size, kind=kind)
    name = f"{layout} tiny={tiny} seed={seed} device={device}"
    return _named(family, name)(card, pipe, Path(CONFIGS / layout), device=torch.device(device), dtype=dtype)


def group_set(groups: int) -> GroupSet:
    """A set of so many groups with a phrase each."""
    found = {f"g{i}": Group(f"g{i}", f"g{i}", phrase=f"in the style of g{i}") for i in range(groups)}
    return GroupSet("random", "Random", found, caption="{content}, {phrase}")
