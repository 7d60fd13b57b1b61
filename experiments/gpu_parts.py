"""The unlearning part of `experiments.gpu_check`: seconds, peak memory and agreement of steps on a full-size layout."""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.layouts import LAYOUTS, group_set, make_model
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures
from guda_core.diffusion.base_model import BaseModel
from guda_core.unlearning import adapters, lora, losses
from guda_core.unlearning.config import MemorySettings, Settings
from guda_core.unlearning.defaults import OF_LARGE
from guda_core.unlearning.forget import Task, config_of
from guda_core.unlearning.loop import run
from guda_core.unlearning.one_group import unlearn
from guda_core.unlearning.student import precision, scaler

STEPS = 12  # on which types are compared


@dataclass(frozen=True)
class Setup:
    """device: "cuda" or "cpu". tiny: small models and few repeats. batches: of the bare UNet. groups: LoRAs that are
    scored with. seconds: for which a rate is measured."""

    device: str
    tiny: bool
    batches: tuple[int, ...]
    groups: int
    seconds: float

    def model(self, layout: str, dtype: torch.dtype) -> BaseModel:
        """A random model of the layout."""
        return make_model(layout, device=self.device, dtype=dtype, tiny=self.tiny)


def wait(device: str) -> None:
    """Until the device has done what it was told to."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float | None:
    """Most memory that torch held on the GPU since the last `fresh`; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None


def fresh(device: str) -> None:
    """Give memory back and begin to look for its peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def task_of(model: BaseModel, pictures: int = 8) -> Task:
    """Random latents of two groups."""
    ids = tuple(f"g{i % 2}" for i in range(pictures))
    names = tuple(f"p{i}" for i in range(pictures))
    z = torch.randn(pictures, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    shown = Pictures(np.zeros((pictures, 1, 1, 3), np.uint8), ids, names)
    return Task(model, shown, z, "g0", captioner_of(group_set(2)))


def settings(layout: str, model: BaseModel, steps: int, tiny: bool) -> Settings:
    """The layout's own, with so many steps; tiny: of one picture."""
    own = {**OF_LARGE[LAYOUTS[layout][0]], "steps": steps, "warmup": 2, "seed": 0, **({"batch": 1} if tiny else {})}
    return config_of("guda_c", targets=model.lora_targets, **own)


def unlearned(model: BaseModel, config: Settings, memory: MemorySettings) -> dict[str, Any]:
    """Unlearn and throw away: seconds a step (the median after the first), peak GiB, the largest |B|, and the loss."""
    device = model.device.type
    fresh(device)
    marks, last = [], None
    with tempfile.TemporaryDirectory() as folder:
        for last in unlearn(task_of(model), config=config, folder=Path(folder), meta={}, memory=memory):  # noqa: B007
            wait(device)
            marks.append(time.perf_counter())
        adapter = adapters.load(Path(folder), model=model, group="g0")
        most = max(float(b.abs().max()) for b, _, _ in adapter.factors.values())
        pictures = adapter.meta["memory"]["pictures"]
    assert last is not None
    each, peak = float(np.median(np.diff(marks))), peak_gib(device)
    return {"step_s": each, "peak_gib": peak, "largest_b": most, "loss": last.loss, "pictures_a_pass": pictures}


def plain_step_s(model: BaseModel, config: Settings) -> float:
    """Seconds of a plain LoRA training step of as many pictures, with checkpointing: predict the noise, no teacher."""
    assert config.lora is not None
    task, b = task_of(model), 2 * config.loop.batch
    network: Any = model.network
    condition = model.embed(["a cat"]).expand(b)

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        x_0 = task.latents[torch.randint(len(task.latents), (b,), generator=g)]
        t, eps = torch.randint(len(model.schedule), (b,), generator=g), torch.randn(x_0.shape, generator=g)
        x_t = model.schedule.add_noise(x_0, eps, t).to(model.device)
        with precision(model):
            out = model.predict_eps(x_t, t.to(model.device), condition)
        return losses.mean_square(out, eps.to(model.device))

    marks = []
    with lora.attached(network, config.lora, 0):
        network.enable_gradient_checkpointing()
        network.train()
        for _ in run(network, loss_of, config.loop, scaler=scaler(model)):
            wait(model.device.type)
            marks.append(time.perf_counter())
        network.eval()
        network.disable_gradient_checkpointing()
    return float(np.median(np.diff(marks)))


def unlearning_figures(setup: Setup, layout: str, out: dict[str, Any]) -> None:
    """Put the figures of a layout into `out`, one after the other, so that a failure keeps those before it."""
    few = 2 if setup.tiny else 4
    types = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    agree = layout == "sd15"  # XL in float32 would take too long
    for name, dtype in types.items():
        if not agree and name != "float16":
            continue
        model = setup.model(layout, dtype)
        memory = MemorySettings(None, True, setup.device == "cuda")
        steps = STEPS if agree and not setup.tiny else few
        out[f"{name}, checkpointing"] = unlearned(model, settings(layout, model, steps, setup.tiny), memory)
        if name == "float16":
            config = settings(layout, model, few, setup.tiny)
            plain = plain_step_s(model, config)
            mine = out[f"{name}, checkpointing"]["step_s"]
            out["plain LoRA step, checkpointing"] = {"step_s": plain, "ratio": mine / plain}
            without = MemorySettings(None, False, memory.unload)
            out[f"{name}, no checkpointing"] = unlearned(model, config, without)
        del model
        fresh(setup.device)
    if agree:
        full = out["float32, checkpointing"]
        for name in ("float16", "bfloat16"):
            half = out[f"{name}, checkpointing"]
            off = {f"{k}_off": abs(half[k] / full[k] - 1) for k in ("largest_b", "loss")}
            out[f"{name} beside float32"] = off
