"""What a switch of weights costs, merged and live, and what the start of the app does."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import psutil
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from experiments.commands import timed
from experiments.engine.engine_bench import Bench, Parts
from guda_core import paths
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import UNET_TARGETS
from guda_core.unlearning import lora
from guda_core.unlearning.adapters import Adapter
from guda_core.unlearning.switching import Switching

MIDDLE = {"block_out_channels": (128, 256, 512), "cross_attention_dim": 512, "sample_size": 16}
MERGED, LIVE = {"live": False}, {"live": True}
STARTS = 2


def made_up(network: nn.Module, seed: int, rank: int = 6) -> Adapter:
    """A random LoRA of a network: of each weight, a change of about a hundredth of its size."""
    g, shapes = torch.Generator().manual_seed(seed), lora.expected(network, UNET_TARGETS, rank)
    factors = {}
    for name in [n for n in shapes if n.endswith(".lora_A.weight")]:
        a, b = shapes[name], shapes[name.replace(".lora_A.", ".lora_B.")]
        wide = torch.Size(a[1:]).numel()
        down, up = torch.randn(rank, wide, generator=g), torch.randn(b[0], rank, generator=g)
        factors[name.replace(".lora_A.weight", ".weight")] = (0.01 * up / (wide * rank) ** 0.5, down, (b[0], *a[1:]))
    return Adapter("made up", {}, 1.0, factors)


def _costs(network: nn.Module, some: list[Adapter], run: Any, passes: int) -> dict[str, Any]:
    """Median seconds: of a switch with and without the weights kept, of a pass merged and live."""
    spare, keeping = Switching(network, kept=0), Switching(network)

    def switch(switching: Switching, adapter: Adapter) -> float:
        began = time.perf_counter()
        with switching.applied(adapter, live=False):
            return time.perf_counter() - began

    for s in (spare, keeping):  # the first makes the room
        switch(s, some[0])
    found: dict[str, list[float]] = {"merged": [], "live": []}
    for adapter in some:
        for name, how in (("merged", MERGED), ("live", LIVE)):
            with spare.applied(adapter, **how):
                found[name].append(timed(run)[0] / passes)
    out = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "switch_s": statistics.median(switch(spare, a) for a in some),
        "switch_kept_s": statistics.median(switch(keeping, some[0]) for _ in some),
        "pass_merged_s": statistics.median(found["merged"]),
        "pass_live_s": statistics.median(found["live"]),
    }
    slower = out["pass_live_s"] - out["pass_merged_s"]
    return {**out, "live_pays_below_passes": out["switch_s"] / slower if slower > 0 else None}


@torch.no_grad()
def switching(bench: Bench, pictures: int = 3) -> Parts:
    """A switch and a pass, merged and live, of the embedded network and of a random one of medium size; and the scores
    of both ways in bfloat16, beside those in float32."""
    method, sample = bench.methods["float32"], bench.sample().queries
    model, some = method.model, list(method.adapters.values())[::2]
    x, t = torch.randn(48, *model.latent_shape), torch.full((48,), 500)
    condition = model.embed([""]).expand(48)
    out: dict[str, Any] = {"embedded": _costs(model.network, some, lambda: model.predict(x, t, condition), 48)}
    yield 0.2
    torch.manual_seed(0)
    blocks = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    ups = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    middle = UNet2DConditionModel(**MIDDLE, down_block_types=blocks, up_block_types=ups).eval()
    y, text = torch.randn(8, 4, 16, 16), torch.randn(8, 77, 512)
    found = _costs(middle, [made_up(middle, i) for i in range(2)], lambda: middle(y, t[:8], text), 8)
    yield {**out, "medium": found} if "bfloat16" not in bench.models else 0.4
    if "bfloat16" not in bench.models:
        return
    rows: dict[str, list[float]] = {"float32": [], "merged": [], "live": []}
    for i, q in enumerate(sample[:: len(sample) // pictures][:pictures]):
        for name, dtype, how in (
            ("float32",) * 2 + (MERGED,),
            ("merged", "bfloat16", MERGED),
            ("live", "bfloat16", LIVE),
        ):
            rows[name] += _drops(bench, dtype, q, how)
        yield 0.4 + 0.6 * (i + 1) / pictures
    nats = {n: [abs(a - b) for a, b in zip(rows[n], rows["float32"], strict=True)] for n in ("merged", "live")}
    told = {n: {"median": statistics.median(v), "largest": max(v)} for n, v in nats.items()}
    yield {**out, "medium": found, "bfloat16_nats": told}


def _drops(bench: Bench, dtype: str, query: Any, how: dict[str, bool], draws: int = 2) -> list[float]:
    """The drop of every second group, nats."""
    model, method = bench.models[dtype], bench.methods[dtype]
    strata = likelihood.make_strata(model.schedule)
    times = likelihood.draw_times(query.image_hash, strata, draws)
    inputs, condition = likelihood.noised(model, query.latent, times, range(draws)), model.embed([query.prompt])
    full, out = likelihood.kl_of(model, condition, inputs, 48), []
    for g in bench.groups[::2]:
        with method.switching.applied(method.adapters[g], **how):
            without = likelihood.kl_of(model, condition, inputs, 48)
        out.append(likelihood.elbo_drop(full=full, without=without, strata=strata).value)
    return out


def start(bench: Bench) -> Parts:
    """Seconds from `python app.py` to a page, and to the first bars of its first example, which is drawn and scored
    anew: `first_bar` in a process of its own."""
    said: dict[str, list[float]] = {}
    before = psutil.getloadavg()[0]
    for i in range(STARTS):
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter()
            of = subprocess.Popen(
                [sys.executable, "-m", "experiments.engine.first_bar"],
                cwd=paths.ASSETS.parent,
                env={**os.environ, "XDG_CACHE_HOME": cache},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert of.stdout is not None
            for line in of.stdout:
                said.setdefault(line.strip(), []).append(time.perf_counter() - began)
            if of.wait():
                raise RuntimeError("The app did not start.")
        yield (i + 1) / STARTS
    yield {**said, "load_before": before, "first_bar_s": min(said["bar"])}
