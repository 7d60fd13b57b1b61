"""Each training for some seconds, and what all will take by it. Nothing needs it: `all` measures as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.second import fast_trainings as training
from experiments.second import second_stages
from experiments.second.edition import Asked, plain, the_set
from experiments.second.fast_trainings import Bank
from experiments.train import unet as unet_training
from experiments.train import vae as vae_training
from experiments.train.unet import UnetConfig
from experiments.train.vae import VaeConfig
from guda_core.data.dataset import Pictures
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.memory import is_out_of_memory
from guda_core.versions import today, versions

PARTS = ("vae", "clip", "unet")


def made_up(asked: Asked, side: int, n: int = 4096) -> tuple[torch.Tensor, list[str], Bank]:
    """Random latents, groups and captions of the sizes that the UNet is trained on."""
    clip, how = asked.edition.clip, asked.how
    groups = list(the_set(asked.group_set).groups)
    dtype = torch.bfloat16 if how.bf16 else torch.float32
    text = torch.randn(64, clip.max_tokens, clip.text_width, device=how.device).to(dtype)
    bank = Bank(text, torch.randint(64, (n, asked.edition.captions), device=how.device), text[:1])
    return (
        torch.randn(n, asked.edition.vae.latent_channels, side, side),
        [groups[i % len(groups)] for i in range(n)],
        bank,
    )


def steps_of(part: str, asked: Asked, seen: Pictures | None) -> Iterator[tuple[Any, ...]]:
    """A training from its beginning. seen: the pictures of vae and clip."""
    edition, gs = asked.edition, the_set(asked.group_set)
    if part == "vae":
        assert seen is not None
        return training.train_vae(seen, edition.vae, asked.how)
    if part == "clip":
        assert seen is not None
        return training.train_clip(seen, gs, edition.clip, asked.how)
    side = gs.resolution // 2 ** (len(edition.vae.channels) - 1)
    return training.train_unet(*made_up(asked, side), edition.unet, asked.how)


def tried(part: str, asked: Asked, seen: Pictures | None, seconds: float) -> dict[str, Any]:
    """Pictures a second of one training, how its steps were taken, and seconds of the whole."""
    loop = getattr(asked.edition, part).loop
    asked = replace(asked, how=replace(asked.how, every=10 if asked.how.device == "cuda" else 1))
    try:
        with closing(steps_of(part, asked, seen)) as steps:  # type: ignore[type-var]
            rate, note = training.rate(steps, loop.batch, seconds, time.monotonic)
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        return {"pictures_per_second": None, "steps": "out of memory", "expected_s": None}
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if asked.how.device == "cuda" else None
    whole = round(loop.steps * loop.batch / rate, 1) if rate else None
    return {"pictures_per_second": round(rate, 1), "steps": note, "expected_s": whole, "peak_gib": peak}


@torch.no_grad()
def gflop(vae: VaeConfig, unet: UnetConfig, size: int, context: tuple[int, int]) -> dict[str, float]:
    """Billions of operations of one picture: the UNet's pass, encoding and decoding. context: (L, D) of a prompt."""
    side = size // 2 ** (len(vae.channels) - 1)
    coder = vae_training.make_vae(vae, size)
    net = unet_training.make_unet(unet, latent_channels=vae.latent_channels, latent_size=side, context=context[1])
    z, text = torch.zeros(1, vae.latent_channels, side, side), torch.zeros(1, *context)
    found = {}
    for name, call in (
        ("unet", lambda: net(z, torch.tensor([5]), encoder_hidden_states=text)),
        ("encode", lambda: coder.encode(torch.zeros(1, 3, size, size))),
        ("decode", lambda: coder.decode(z)),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        found[name] = round(counter.get_total_flops() / 1e9, 3)
    return found


def costs(asked: Asked) -> dict[str, dict[str, float]]:
    """`gflop` of the first edition and of this one."""
    edition, clip = asked.edition, asked.edition.clip
    context = (clip.max_tokens, clip.text_width)
    size = the_set(asked.group_set).resolution
    return {
        "first": gflop(VaeConfig(), UnetConfig(), 64, context),
        "second": gflop(edition.vae, edition.unet, size, context),
    }


def trial(asked: Asked, work: Path, file: Path, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The record. all_s: of the trainings alone, one after the other; starts, queries, quality and scoring come on
    top."""
    second_stages.started(asked, work)
    for _ in second_stages.pictures(asked, work, file):
        pass
    seen = load_pictures(the_set(asked.group_set), "pretrain")
    found: dict[str, Any] = {}
    for part in PARTS:
        found[part] = tried(part, asked, seen, seconds)
        say(f"{part}: {found[part]}")
    models = len(asked.edition.seeds) * (1 + len(the_set(asked.group_set).groups))
    each = {part: found[part]["expected_s"] or 0.0 for part in PARTS}
    return {
        "command": "python -m experiments.second trial",
        **plain(asked),
        "gflop": costs(asked),
        "parts": found,
        "all_s": round(each["vae"] + each["clip"] + models * each["unet"], 1),
        "versions": versions(),
        "date": today(),
    }
