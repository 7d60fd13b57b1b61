"""Writes a tiny Stable Diffusion as a single file, by the names of its first code (CompVis's latent diffusion)."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, blocks: int) -> str:
    """A UNet's tensor by its first name, where each block has one layer going down and two going up."""
    layer, _, kind = name.rpartition(".")
    if layer in TOP:
        return f"{TOP[layer]}.{kind}"
    where, block, what, i, *rest = name.split(".")[:5] if name.startswith("mid") else name.split(".")[:4]
    if where == "mid_block":
        what, i, rest = block, what, name.split(".")[3:]
        at = f"middle_block.{1 if what == 'attentions' else 2 * int(i)}"
    else:
        rest, block, i = name.split(".")[4:], int(block), int(i)
        if where == "down_blocks":
            at = f"input_blocks.{2 * block + 2}.0.op" if what == "downsamplers" else f"input_blocks.{2 * block + 1}"
        else:
            at = f"output_blocks.{2 * block + (1 if what == 'upsamplers' else i)}"
            if what == "upsamplers":
                at += ".1" if block == 0 else ".2"
        if what in ("resnets", "attentions"):
            at += ".1" if what == "attentions" else ".0"
        if what == "downsamplers":
            return f"{at}.{rest[-1]}"
    inner = ".".join(rest)
    for ours, first in RESNET.items() if what == "resnets" else ():
        inner = inner.replace(f"{ours}.", f"{first}.") if inner.startswith(f"{ours}.") else inner
    return f"{at}.{inner}"


def vae_name(name: str, blocks: int) -> str:
    """An autoencoder's tensor by its first name."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    for i in range(blocks):
        for way, sampler in (("down", "downsample"), ("up", "upsample")):
            at = i if way == "down" else blocks - 1 - i
            name = name.replace(f"{way}_blocks.{i}.resnets.", f"{way}.{at}.block.")
            name = name.replace(f"{way}_blocks.{i}.{sampler}rs.0.", f"{way}.{at}.{sampler}.")
    name = name.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
    if "mid_block.attentions.0." in name:
        front, _, inner = name.partition("mid_block.attentions.0.")
        layer, _, kind = inner.rpartition(".")
        name = f"{front}mid.attn_1.{ATTENTION[layer]}.{kind}"
    return name


def save_single(folder: Path, path: Path, **marks: Tensor) -> None:
    """Write the tiny pipeline of a folder as one file."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    blocks = len(pipe.vae.config.block_out_channels)
    state = {f"model.diffusion_model.{unet_name(n, 2)}": t for n, t in pipe.unet.state_dict().items()}
    state |= {f"first_stage_model.{vae_name(n, blocks)}": t for n, t in pipe.vae.state_dict().items()}
    text = {n.removeprefix("text_model."): t for n, t in pipe.text_encoder.state_dict().items()}
    state |= {f"cond_stage_model.transformer.text_model.{n}": t for n, t in text.items()}
    save_file({n: t.contiguous().clone() for n, t in {**state, **marks}.items()}, path)
