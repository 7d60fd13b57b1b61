"""The trainings of the embedded model's parts, as `fast_loop` takes them: all that they learn from is on the device.

The losses are those of `experiments.train`: `vae.loss`, the symmetric InfoNCE of `clip`, and the min-SNR weighted
squared error of `unet`. The networks, schedules and settings are the same classes. What differs: random numbers are
drawn on the device, and the captions of a picture are some that were drawn before the training began.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from experiments.second import fast_loop
from experiments.second.fast_loop import Batch, How, orders
from experiments.train import clip as clip_training
from experiments.train import stages
from experiments.train import unet as unet_training
from experiments.train import vae as vae_training
from experiments.train.clip import ClipConfig
from experiments.train.unet import UnetConfig
from experiments.train.vae import VaeConfig
from guda_core.data.captions import StyleCaptions, captioner_of
from guda_core.data.dataset import Pictures
from guda_core.diffusion.pixels import to_unit
from guda_core.diffusion.schedule import Schedule
from guda_core.records import GroupSet
from guda_core.unlearning.loop import Progress

Checkpoint = Any  # a path, or None


def placed(module: nn.Module, how: How) -> None:
    """To the device, channels last, ready to be trained."""
    module.to(device=how.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    module.train()


@contextmanager
def suited(unet: UNet2DConditionModel, how: How) -> Iterator[None]:
    """Within the block the UNet is as it is trained fastest; it computes the same but for rounding."""
    fused = unet.attn_processors
    if how.writes_attention_out:
        unet.set_attn_processor(AttnProcessor())
    if how.compiled:
        unet.compile()
    try:
        yield
    finally:
        unet._compiled_call_impl = None
        unet.set_attn_processor(fused)


def on_device(pixels: Any, how: How) -> Tensor:
    """(N, H, W, 3) uint8 on the device."""
    return torch.from_numpy(pixels).to(how.device)


def train_vae(
    pictures: Pictures, config: VaeConfig, how: How, checkpoint: Checkpoint = None
) -> Generator[tuple[Progress, AutoencoderKL], None, None]:
    """Train on pictures with random mirror images; yields (progress, model); standardised at the end, on the device."""
    vae = vae_training.make_vae(config, pictures.pixels.shape[1])
    placed(vae, how)
    pixels = on_device(pictures.pixels, how)
    side = pixels.shape[1] // 2 ** (len(config.channels) - 1)
    batch, shape = config.loop.batch, (config.loop.batch, config.latent_channels, side, side)

    def draw(step: int, g: torch.Generator) -> Batch:
        at = torch.randint(len(pixels), (batch,), generator=g, device=how.device)
        flip = torch.rand(batch, generator=g, device=how.device) < 0.5
        return {"at": at, "flip": flip, "noise": torch.randn(shape, generator=g, device=how.device)}

    def loss_of(b: Batch) -> Tensor:
        x = to_unit(pixels[b["at"]])
        x = torch.where(b["flip"][:, None, None, None], x.flip(-1), x).contiguous(memory_format=torch.channels_last)
        return vae_training.loss(vae, x, lambda z: b["noise"], config)

    for progress in fast_loop.run(vae, draw, loss_of, config.loop, how, checkpoint):
        yield progress, vae
    vae.eval()
    vae_training.standardise(vae, vae_training.latents(vae, pictures.pixels).to(how.device))
    yield Progress(config.loop.steps, config.loop.steps, math.nan, 0.0, "standardised"), vae


def jittered(x: Tensor, flip: Tensor, moves: Tensor, most: int) -> Tensor:
    """Mirror images where `flip` (N,) says so, and shifts: white comes in. x: (N, 3, H, W) in [-1, 1]; moves: (N, 2) in
    0 .. 2 most, down and right, `most` being no shift. As `clip.jitter`, with no word from the device."""
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    h, w = x.shape[-2:]
    wide = F.pad(x, [most] * 4, value=1.0).permute(0, 2, 3, 1)  # (N, H + 2 most, W + 2 most, 3)
    rows = moves[:, :1] + torch.arange(h, device=x.device)  # (N, H)
    columns = moves[:, 1:] + torch.arange(w, device=x.device)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return wide[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def varied_captions(
    pictures: Pictures, group_set: GroupSet, tokenizer: CLIPTokenizer, each: int, seed: int
) -> tuple[Tensor, Tensor]:
    """`each` captions of every picture as the CLIP learns them: tokens (N, each, L) and a number for each text, (N,
    each), both int64."""
    captioner, g = StyleCaptions(group_set), torch.Generator().manual_seed(seed)
    texts = [clip_training.vary(captioner, pictures[i], g) for i in range(len(pictures)) for _ in range(each)]
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    tokens = clip_training.tokenise(tokenizer, texts)["input_ids"]
    return tokens.reshape(len(pictures), each, -1), torch.tensor([number[t] for t in texts]).reshape(-1, each)


def train_clip(
    pictures: Pictures, group_set: GroupSet, config: ClipConfig, how: How, checkpoint: Checkpoint = None, each: int = 8
) -> Generator[tuple[Progress, CLIPModel, CLIPTokenizer], None, None]:
    """Symmetric InfoNCE; yields (progress, model, tokenizer). each: captions of a picture."""
    tokenizer = clip_training.tokenizer_for(pictures, group_set, config)
    model: Any = clip_training.make_clip(config, tokenizer, pictures.pixels.shape[1])
    model.to(how.device).train()
    fused = model.config._attn_implementation
    if how.writes_attention_out:
        model.set_attn_implementation("eager")
    pixels, batch, size = on_device(pictures.pixels, how), config.loop.batch, Counter(pictures.groups)
    found = varied_captions(pictures, group_set, tokenizer, each, config.loop.seed)
    tokens, numbers = (t.to(how.device) for t in found)
    evenly = torch.tensor([1 / size[k] for k in pictures.groups], device=how.device)

    def draw(step: int, g: torch.Generator) -> Batch:
        return {
            "at": torch.multinomial(evenly, batch, replacement=False, generator=g),
            "caption": torch.randint(each, (batch,), generator=g, device=how.device),
            "flip": torch.rand(batch, generator=g, device=how.device) < 0.5,
            "moves": torch.randint(2 * config.shift + 1, (batch, 2), generator=g, device=how.device),
        }

    def loss_of(b: Batch) -> Tensor:
        x = jittered(to_unit(pixels[b["at"]]), b["flip"], b["moves"], config.shift)
        # without a mask: the end of a text sees only what stands before it
        found = model(pixel_values=x, input_ids=tokens[b["at"], b["caption"]])
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16, a logit of 50 would be off by 0.1
            logits = model.logit_scale.exp() * found.image_embeds.float() @ found.text_embeds.float().t()  # (B, B)
        number = numbers[b["at"], b["caption"]]
        same = (number[:, None] == number[None, :]).float()
        target = same / same.sum(dim=1, keepdim=True)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))

    for progress in fast_loop.run(model, draw, loss_of, config.loop, how, checkpoint):
        yield progress, model, tokenizer
    model.set_attn_implementation(fused)
    model.eval()
    yield Progress(config.loop.steps, config.loop.steps, math.nan, 0.0, "done"), model, tokenizer


@dataclass(frozen=True)
class Bank:
    """The captions that a UNet learns, embedded: caption k of picture i is embedded[places[i, k]], the empty prompt
    empty. embedded: (M, L, D); places: (N, K) int64; empty: (1, L, D); all on the device."""

    embedded: Tensor
    places: Tensor
    empty: Tensor


@torch.no_grad()
def bank_of(pictures: Pictures, group_set: GroupSet, embed: stages.TextEncoder, each: int, seed: int, how: How) -> Bank:
    """Draw `each` captions of every picture, and embed every text once."""
    captioner, g = captioner_of(group_set), torch.Generator().manual_seed(seed)
    texts = [captioner.caption(pictures[i], g) for i in range(len(pictures)) for _ in range(each)]
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    dtype = torch.bfloat16 if how.bf16 else torch.float32
    unique = list(place)
    parts = [embed(unique[i : i + 2048]).to(dtype) for i in range(0, len(unique), 2048)]
    places = torch.tensor([place[t] for t in texts]).reshape(len(pictures), each)
    return Bank(torch.cat(parts), places.to(how.device), embed([""]).to(dtype))


def train_unet(
    latents: Tensor, groups: Sequence[str], bank: Bank, config: UnetConfig, how: How, checkpoint: Checkpoint = None,
    exclude: str | None = None,
) -> Generator[tuple[Progress, UNet2DConditionModel], None, None]:  # fmt: skip
    """Train a UNet from scratch; yields (progress, model); the averaged weights are in it at the end.

    latents: (N, C, h, w) float32; groups: N ids; bank: their captions. exclude: the group left out (LOGO)."""
    kept = torch.tensor([i for i, g in enumerate(groups) if g != exclude])
    batch, seed, every = config.loop.batch, config.loop.seed, len(unet_training.make_scheduler().alphas_cumprod)
    schedule = Schedule.ddpm(unet_training.make_scheduler().alphas_cumprod.to(how.device))
    weights = unet_training.min_snr(schedule, config.gamma)
    unet = unet_training.make_unet(
        config, latent_channels=latents.shape[1], latent_size=latents.shape[-1], context=bank.empty.shape[-1]
    )
    placed(unet, how)
    x, order = latents.to(how.device), kept[orders(len(kept), batch, config.loop.steps, seed)].to(how.device)

    def draw(step: int, g: torch.Generator) -> Batch:
        u = torch.arange(batch, device=how.device) + torch.rand(batch, generator=g, device=how.device)
        return {
            "at": order[step],
            "caption": torch.randint(bank.places.shape[1], (batch,), generator=g, device=how.device),
            "said": torch.rand(batch, generator=g, device=how.device) >= config.caption_dropout,
            "t": (u / batch * every).long().clamp_max(every - 1),  # one of each of `batch` equal parts; `at` is mixed
            "eps": torch.randn((batch, *x.shape[1:]), generator=g, device=how.device),
        }

    def loss_of(b: Batch) -> Tensor:
        caption = bank.embedded[bank.places[b["at"], b["caption"]]]
        condition = torch.where(b["said"][:, None, None], caption, bank.empty)
        x_t = schedule.add_noise(x[b["at"]], b["eps"], b["t"]).contiguous(memory_format=torch.channels_last)
        found = unet(x_t, b["t"], encoder_hidden_states=condition).sample.float()
        return (weights[b["t"]] * (found - b["eps"]).square().mean(dim=(1, 2, 3))).mean()

    with suited(unet, how):
        for progress in fast_loop.run(unet, draw, loss_of, config.loop, how, checkpoint):
            yield progress, unet
    unet.eval()
    yield Progress(config.loop.steps, config.loop.steps, math.nan, 0.0, "done"), unet


def rate(training: Iterator[tuple[Any, ...]], batch: int, seconds: float, clock: Any) -> tuple[float, str]:
    """Pictures a second of a training that is taken for so long, without its first word, and how steps were taken."""
    began = first = None
    found, note = 0.0, ""
    for p, *_ in training:
        now = clock()
        if began is None or first is None:
            began, first = now, p.step
            continue
        if p.note in ("done", "standardised"):
            break
        found, note = (p.step - first) * batch / max(1e-9, now - began), p.note
        if now - began > seconds:
            break
    return found, note
