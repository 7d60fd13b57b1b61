"""The live oracle: every LOGO model as a LoRA on the full model, so that `logo` can be asked of any picture.

A LOGO model is as large as the full one, and, retrained from scratch, far from it weight by weight. What a score needs
of it is its noise estimate alone, so the adapter learns that:

    L = E_{x, c, t, eps} || eps_{full + LoRA}(x_t, t, c) - eps_logo(x_t, t, c) ||^2

over all training pictures (the left-out group's too: they are what is asked), with captions and without, with half of
the timesteps drawn as the ELBO weighs them (elbo.make_strata). How faithful it is, the styles benchmark tells (row
`logo-live` against the exact scores).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guda_core import adapters, elbo, losses
from guda_core.captions import drop, style_caption
from guda_core.data import Pictures
from guda_core.models.base import BaseModel
from guda_core.records import GroupSet
from guda_core.training.loop import LoopConfig, Progress, run


@dataclass(frozen=True)
class DistillConfig:
    """lora: the adapter. own_share: share of the pictures that are the left-out group's. empty_share: of the pictures
    that are seen under the empty prompt. strata: of timesteps that half of the draws are spread over evenly."""

    lora: adapters.LoraSpec = field(default_factory=lambda: adapters.LoraSpec(rank=24, alpha=24))
    own_share: float = 0.3
    empty_share: float = 0.4
    strata: int = 24
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=600, batch=32, lr=2e-3, warmup=20, weight_decay=0.0, seed=5)
    )


def draw_pictures(groups: tuple[str, ...], group: str, config: DistillConfig, g: torch.Generator) -> Tensor:
    """Places of a batch, own_share of them of the group: (batch,) int64."""
    mine = torch.tensor([k == group for k in groups])
    own, others = mine.nonzero()[:, 0], (~mine).nonzero()[:, 0]
    n = round(config.own_share * config.loop.batch)
    parts = [of[torch.randint(len(of), (k,), generator=g)] for of, k in ((own, n), (others, config.loop.batch - n))]
    return torch.cat(parts)


def draw_times(strata: elbo.Strata, steps: int, batch: int, g: torch.Generator) -> Tensor:
    """Timesteps of a batch, half uniform, half spread evenly over the strata: (batch,) int64."""
    half = batch // 2
    uniform = torch.randint(1, steps, (batch - half,), generator=g)
    edges, at = np.asarray(strata.edges), torch.randint(len(strata), (half,), generator=g)
    low, width = torch.from_numpy(edges[:-1])[at], torch.from_numpy(np.diff(edges))[at]
    return torch.cat([uniform, low + (torch.rand(half, generator=g) * width).long().clamp_max(width - 1)])


def distill(
    model: BaseModel,
    logo: dict[str, Tensor],
    group_set: GroupSet,
    pictures: Pictures,
    latents: Tensor,
    group: str,
    *,
    config: DistillConfig,
    folder: Path,
    meta: dict[str, Any],
) -> Iterator[Progress]:
    """Write the adapter that makes the full model answer as the LOGO model without `group`; yields progress.

    logo: the weights of that model, name -> tensor. latents: (N, C, h, w) float32, aligned with pictures. meta: what
    else the adapter's metadata should record.
    """
    teacher = copy.deepcopy(model.denoiser).eval().requires_grad_(False)
    teacher.load_state_dict(logo)
    student = copy.deepcopy(model.denoiser).train()
    adapters.attach(student, config.lora, config.loop.seed)
    strata = elbo.make_strata(model.schedule, config.strata)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        at = draw_pictures(pictures.groups, group, config, g)
        captions = [style_caption(group_set, pictures.objects[i], pictures.groups[i], g) for i in at.tolist()]
        cond = model.embed(drop(captions, config.empty_share, g))
        t = draw_times(strata, len(model.schedule), len(at), g)
        eps = torch.randn(latents[at].shape, generator=g)
        x_t, t = model.schedule.add_noise(latents[at], eps, t).to(model.device), t.to(model.device)
        with torch.no_grad():
            target = model.predict_eps(x_t, t, cond, teacher)
        return losses.mean_square(model.predict_eps(x_t, t, cond, student), target)

    last = None
    for last in run(student, loss_of, config.loop):
        yield last
    record = {
        **meta,
        "kind": "logo",
        "group": group,
        "base_sha256": model.sha256,
        "config": asdict(config),
        "loss": last.loss if last else None,
    }
    adapters.save(student, folder, spec=config.lora, meta=record)
