"""Unlearning of one group from an unconditional model: GUDA-U (arXiv 2601.22651).

    L = lambda_f || eps_theta(x_t, t) - target(x_t, t) ||^2 + || eps_theta(x'_t, t) - eps_full(x'_t, t) ||^2

x from the forgotten group, x' from the retained ones. Targets:

    retrack  the posterior mean noise of the K retained pictures nearest to x_0 (`losses.retrack_target`)
    shift    eps_full + the change of the smoothed posterior mean when the group is removed (`losses.shift_target`)
    esd      eps_full - s (eps_forget - eps_full), with eps_forget from a copy of the model fine-tuned on the group

There is no prompt to push away from. The paper's ESD takes a class-conditional model for eps_forget; the fine-tuned
copy needs no second training from scratch. Why it is sensible: p_full = pi p_forget + (1 - pi) p_retained gives

    eps_retained = eps_full - r / (1 - r) (eps_forget - eps_full),   r(x_t) = P(forgotten group | x_t)

exactly, so ESD is that identity with the odds r / (1 - r) held at a constant s.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guda_core.diffusion.base import BaseModel
from guda_core.diffusion.condition import Condition
from guda_core.errors import OptionError, TrainingError
from guda_core.unlearning import adapters, losses
from guda_core.unlearning.loop import LoopConfig, Progress, run

# A LoRA for UNet2DModel: its attentions and residual blocks, with the time's way into them.
UNET_LORA = adapters.LoraSpec(
    targets=("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
)


@dataclass(frozen=True)
class UnconditionalConfig:
    """operator: "retrack", "shift" or "esd". lora: the adapter; None fine-tunes the whole denoiser, as the paper does.
    forget_weight: lambda_f. neighbours: K of ReTrack and of the shift, None = all. bandwidth: h of the smoothed
    posterior mean, in units of the latents (`losses.retrack_target`); None = `losses.likely_bandwidth` of the pictures.
    kl_cap: ReTrack's norm cap sqrt(2 kl_cap) on the correction of the true noise; None = off, because a capped target
    is nearly the true noise, which trains on the forgotten group. esd_strength: s. expert_steps: fine-tuning steps of
    ESD's copy. min_t: forgotten pictures are noised to t >= min_t (ReTrack grows as 1/sqrt(1 - alpha_bar)).
    loop.batch forgotten and as many retained pictures make a step. lr, K and lambda_f are the paper's for CIFAR-10."""

    operator: str = "retrack"
    forget_weight: float = 0.03
    neighbours: int | None = 10
    bandwidth: float | None = 0.0
    kl_cap: float | None = None
    esd_strength: float = 1.0
    expert_steps: int = 200
    min_t: int = 0
    lora: adapters.LoraSpec | None = None
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=400, batch=32, lr=1e-5, warmup=10, weight_decay=0.0, seed=5)
    )

    def __post_init__(self) -> None:
        if self.operator not in losses.UNCONDITIONAL_OPERATORS:
            known = ", ".join(losses.UNCONDITIONAL_OPERATORS)
            raise OptionError(f"operator '{self.operator}': known for unconditional models are {known}.")
        if self.bandwidth is not None and self.bandwidth < 0:
            raise OptionError(f"bandwidth {self.bandwidth} is negative.")
        if (self.neighbours is not None and self.neighbours < 1) or self.expert_steps < 1:
            raise OptionError("neighbours and expert_steps must be at least 1.")
        if self.kl_cap is not None and self.kl_cap <= 0:
            raise OptionError(f"kl_cap {self.kl_cap} is not positive; None switches it off.")


def _student(model: BaseModel, config: UnconditionalConfig) -> nn.Module:
    student = copy.deepcopy(model.network).train()
    if config.lora is None:
        student.requires_grad_(True)
    else:
        adapters.attach(student, config.lora, config.loop.seed)
    return student


def _draw(
    model: BaseModel, of: Tensor, batch: int, g: torch.Generator, min_t: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of pictures, noised: (x_0, x_t, t, eps); x_0 and eps on the CPU, x_t and t on the device."""
    x_0 = of[torch.randint(len(of), (batch,), generator=g)]
    t = torch.randint(min_t, len(model.schedule), (batch,), generator=g)
    eps = torch.randn(x_0.shape, generator=g)
    return x_0, model.schedule.add_noise(x_0, eps, t).to(model.device), t.to(model.device), eps


def _near(x_0: Tensor, of: Tensor, k: int | None) -> Tensor:
    """The k nearest of each x_0, (B, k, C, h, w), or all of them, (N, C, h, w), when k is None."""
    return of if k is None else losses.nearest(x_0, of, k)


def fine_tune(
    model: BaseModel, own: Tensor, config: UnconditionalConfig
) -> Generator[tuple[Progress, nn.Module], None, None]:
    """ESD's copy: the model trained on with the group's pictures alone, own (n, C, h, w); yields (progress, copy)."""
    expert = _student(model, config)
    loop = dataclasses.replace(config.loop, steps=config.expert_steps, seed=config.loop.seed + 1)
    empty = model.embed([""] * loop.batch)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        _, x_t, t, eps = _draw(model, own, loop.batch, g)
        return losses.mean_square(model.predict_eps(x_t, t, empty, expert), eps.to(model.device))

    for progress in run(expert, loss_of, loop):
        yield progress, expert


def unlearn(
    model: BaseModel,
    latents: Tensor,
    groups: Sequence[str],
    forget: str,
    *,
    config: UnconditionalConfig,
    folder: Path,
    meta: dict[str, Any],
    checkpoint: Path | None = None,
) -> Iterator[Progress]:
    """Unlearn one group and write what changed into `folder` (adapters.save); the model itself is not changed.

    latents: (N, C, h, w) float32; groups: N ids, aligned. meta: what else the metadata should record.

    Raises:
        TrainingError: the group, or every other group, has no pictures.
    """
    mine = torch.tensor([g == forget for g in groups])
    own, others = latents[mine], latents[~mine]
    if not len(own) or not len(others):
        raise TrainingError(f"Unlearning '{forget}' needs pictures of that group and of others.")
    batch = config.loop.batch
    empty = model.embed([""] * batch)
    h = losses.likely_bandwidth(latents) if config.bandwidth is None else config.bandwidth
    expert: nn.Module | None = None
    if config.operator == "esd":
        for p, expert in fine_tune(model, own, config):  # noqa: B007
            yield dataclasses.replace(p, note="fine-tuning on the forgotten group")
        assert expert is not None
        expert.requires_grad_(False).eval()
    student = _student(model, config)

    def forget_target(x_0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        if config.operator == "esd":
            full, forgot = (model.predict_eps(x_t, t, empty, n) for n in (None, expert))
            return losses.esd_target(full, forgot, strength=config.esd_strength)
        near, mine = (_near(x_0, of, config.neighbours).to(model.device) for of in (others, own))
        alpha_bar = model.schedule.alpha[t.cpu()].square().float().to(model.device)
        if config.operator == "shift":
            full = model.predict_eps(x_t, t, empty)
            target = losses.shift_target(full, x_t, near, mine, alpha_bar, bandwidth=h)
        else:
            target = losses.retrack_target(x_t, near, alpha_bar, bandwidth=h)
        return target if config.kl_cap is None else losses.capped(target, eps.to(model.device), kl_cap=config.kl_cap)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        x_0, x_t, t, eps = _draw(model, own, batch, g, config.min_t)
        _, x_r, t_r, _ = _draw(model, others, batch, g)
        with torch.no_grad():
            target, kept = forget_target(x_0, x_t, t, eps), model.predict_eps(x_r, t_r, empty)
        both = model.predict_eps(torch.cat([x_t, x_r]), torch.cat([t, t_r]), Condition.cat([empty, empty]), student)
        preserve = losses.mean_square(both[batch:], kept)
        return config.forget_weight * losses.mean_square(both[:batch], target) + preserve

    last = None
    for last in run(student, loss_of, config.loop, checkpoint):
        yield last
    record = {
        **meta,
        "group": forget,
        "base_sha256": model.sha256,
        "config": asdict(config),
        "loss": last.loss if last else None,
    }
    if config.lora is None:
        adapters.save_whole(student, folder, meta=record, dtype=torch.float32)
    else:
        adapters.save(student, folder, spec=config.lora, meta=record)
