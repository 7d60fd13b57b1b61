"""Tiny real models for tests: the Stable Diffusion layout with random or planted weights, made in seconds."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
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

from experiments.train.clip import ClipConfig, make_clip
from experiments.train.unet import SCHEDULER
from guda_core.data.dataset import GroupDataset, Pictures
from guda_core.data.embeddings import Clip
from guda_core.data.groups import load_group_set
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import load_model
from guda_core.local import LocalService
from guda_core.records import GroupSet
from guda_core.unlearning import adapters
from tests.once import copied

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,"
TINY = Card("tiny", "Tiny", "folder", "", 16, "epsilon", "float16", "emoji", "test")  # of `save_tiny`'s defaults


@dataclass(frozen=True)
class InMemory(GroupDataset):
    """A dataset of given pictures, split by split: `InMemory(group_set, {"train": pictures})`."""

    group_set: GroupSet
    splits: dict[str, Pictures]

    def split(self, name: str) -> Pictures:
        return self.splits[name]


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
    zero_snr: bool = False,
    small: bool = False,
) -> Card:
    """Save a random miniature of Stable Diffusion 1.5 and return a card for it.

    The VAE shrinks by 2 ** (downs - 1); with downs = 4 it is SD's 8x VAE with its scaling factor 0.18215.
    pooled: the prompt also enters through the time embedding, as in the embedded model. zero_snr: the schedule ends in
    pure noise. small: the network attends where the latent is smallest alone and has no middle, which saves nearly half
    the time, where it does not matter how well it learns.
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
    attends, plain = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
    first, second = (plain, attends) if small else (attends, plain)
    unet = UNet2DConditionModel(
        sample_size=latent,
        down_block_types=(first[0], second[0]),
        mid_block_type=None if small else "UNetMidBlock2DCrossAttn",
        up_block_types=(second[1], first[1]),
        block_out_channels=(16, 16 if small else 32),
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
        scheduler=DDIMScheduler(**{**SCHEDULER, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return replace(TINY, path=str(folder), resolution=size, prediction_type=prediction)


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


def tiny_service(root: Path, *, missing: Sequence[str] = (), card: Card | None = None) -> LocalService:
    """A service of a random tiny model (or a card's), CLIP and bank, and an adapter for every group but the missing
    ones."""
    if card is None:
        copied("tiny-service", root, lambda folder: _save_service(folder, save_tiny(folder / "model", small=True)))
        card = replace(TINY, path=str(root / "model"))
        for k in missing:
            shutil.rmtree(root / "adapters" / k)
    else:
        _save_service(root, card, missing)
    return LocalService(load_model(card), load_group_set("emoji"), Clip(root / "clip"), root / "adapters")


def _save_service(root: Path, card: Card, missing: Sequence[str] = ()) -> None:
    """CLIP, bank and adapters of `tiny_service`."""
    group_set, model, tokenizer = load_group_set("emoji"), load_model(card), tiny_tokenizer(77)
    config = ClipConfig(text_width=16, text_layers=1, image_width=48, image_layers=1, max_tokens=77, projection=16)
    make_clip(config, tokenizer, 16).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    g = torch.Generator().manual_seed(0)
    bank = {k: F.normalize(torch.randn(5, 16, generator=g), dim=1) for k in group_set.groups}
    Clip(root / "clip").write_bank(bank, "data")
    for i, k in enumerate(group_set.groups):
        if k in missing:
            continue
        student = copy.deepcopy(model.network)
        spec = adapters.LoraSpec(rank=2, alpha=2, targets=model.lora_targets)
        adapters.attach(student, spec, seed=i)
        with torch.no_grad():
            for n, p in student.named_parameters():
                if "lora_B" in n:
                    p.normal_(generator=torch.Generator().manual_seed(i)).mul_(0.2)
        adapters.save(student, root / "adapters" / k, spec=spec, meta={"group": k, "base_sha256": model.sha256})
