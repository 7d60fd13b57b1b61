"""The embedded UNet: text-conditional epsilon prediction on VAE latents, from scratch.

Loss: E_t,eps w_t ||eps - eps_theta(x_t, t, c)||^2 with w_t = min(SNR_t, gamma) / SNR_t (min-SNR, Hang et al.
2023, eq. 6) on SD's scaled-linear schedule; captions are dropped to "" with a fixed probability, so that the empty
prompt is a real unconditional model. The same function trains the full model and, with `exclude`, every LOGO model of
the oracle: same start, schedule, seed and steps, less one group's pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from experiments.train import captured
from guda_core.data.captions import captioner_of, drop
from guda_core.data.dataset import Pictures
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import TrainingError
from guda_core.records import GroupSet
from guda_core.unlearning.loop import LoopConfig, Progress, run

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class UnetConfig:
    """channels: of the three resolutions; heads: attention heads. gamma: of min-SNR. caption_dropout: share of ""."""

    channels: tuple[int, ...] = (64, 128, 192)
    heads: int = 4
    gamma: float = 5.0
    caption_dropout: float = 0.1
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=3600, batch=32, lr=8e-4, warmup=150, ema=0.998, seed=3)
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULER)


def make_unet(config: UnetConfig, *, latent_channels: int, latent_size: int, context: int) -> UNet2DConditionModel:
    torch.manual_seed(config.loop.seed)
    n = len(config.channels)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (n - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (n - 1) + ("UpBlock2D",),
        block_out_channels=config.channels,
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=config.heads,  # diffusers' name for the number of heads in this layout
        addition_embed_type="text",  # the pooled prompt also enters through the time embedding: learned faster
        addition_embed_type_num_heads=config.heads,
    )


def epoch_batch(n: int, batch: int, step: int, seed: int) -> Tensor:
    """Indices of one step when n items are gone through in a fresh order every epoch: (batch,) int64."""
    at = torch.arange(step * batch, (step + 1) * batch)
    orders = {
        e: torch.randperm(n, generator=torch.Generator().manual_seed(seed * 7_919 + e)) for e in set((at // n).tolist())
    }
    return torch.stack([orders[int(i) // n][int(i) % n] for i in at])


def stratified_times(batch: int, steps: int, g: torch.Generator) -> Tensor:
    """One timestep from each of `batch` equal parts of 0 .. steps-1, in random order: (batch,) int64."""
    u = (torch.arange(batch) + torch.rand(batch, generator=g)) / batch
    return (u * steps).long().clamp_max(steps - 1)[torch.randperm(batch, generator=g)]


def min_snr(schedule: Schedule, gamma: float) -> Tensor:
    """Loss weight of each timestep for epsilon prediction: min(SNR, gamma) / SNR, (T,) float32."""
    snr = schedule.snr
    return (snr.clamp_max(gamma) / snr).float()


def train(
    latents: Tensor,
    pictures: Pictures,
    group_set: GroupSet,
    embed: Callable[[list[str]], Tensor],
    config: UnetConfig,
    checkpoint: Path | None,
    exclude: str | None = None,
    device: str = "cpu",
    ahead: bool = False,
) -> Generator[tuple[Progress, UNet2DConditionModel], None, None]:
    """Train a UNet from scratch; yields (progress, model) each step; the EMA weights are in it at the end.

    latents: (N, C, h, w) float32, aligned with pictures, on the CPU. embed: captions -> (B, L, D) on the device.
    exclude: the group left out. device: where the UNet is trained. All is drawn on the CPU, so that it is the same on
    every device. ahead: by `captured`, which a small UNet on a GPU wants, without the checkpoint.

    Raises:
        TrainingError: `exclude` is not one of the pictures' groups.
    """
    if exclude is not None and exclude not in pictures.groups:
        raise TrainingError(
            f"'{exclude}' is no group of the pictures. Known: {', '.join(sorted(set(pictures.groups)))}."
        )
    kept = torch.tensor([i for i, g in enumerate(pictures.groups) if g != exclude])
    schedule = Schedule.ddpm(make_scheduler().alphas_cumprod)
    weights = min_snr(schedule, config.gamma)
    context = int(embed([""]).shape[-1])
    unet = make_unet(config, latent_channels=latents.shape[1], latent_size=latents.shape[-1], context=context).train()
    unet.to(
        device=device, memory_format=torch.channels_last
    )  # the same numbers up to rounding; a fifth faster on a CPU
    captioner = captioner_of(group_set)
    batch, seed = config.loop.batch, config.loop.seed

    def draw(step: int, g: torch.Generator) -> captured.Drawn:
        at = kept[epoch_batch(len(kept), batch, step, seed)]
        captions = [captioner.caption(pictures[i], g) for i in at.tolist()]
        prompts = drop(captions, config.caption_dropout, g)
        t = stratified_times(batch, len(schedule), g)
        eps = torch.randn(latents[at].shape, generator=g)
        return captured.Drawn((schedule.add_noise(latents[at], eps, t), t, eps, weights[t]), prompts)

    def loss(x_t: Tensor, t: Tensor, eps: Tensor, weight: Tensor, cond: Tensor) -> Tensor:
        found = unet(x_t, t, encoder_hidden_states=cond).sample
        return (weight * (found - eps).square().mean(dim=(1, 2, 3))).mean()

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        drawn = draw(step, g)
        return loss(*(x.to(device) for x in drawn.tensors), embed(list(drawn.prompts)))

    step_by_step = run(unet, loss_of, config.loop, checkpoint)
    for progress in captured.run(unet, draw, embed, loss, config.loop) if ahead else step_by_step:
        yield progress, unet
    unet.eval()
    yield Progress(config.loop.steps, config.loop.steps, float("nan"), 0.0, "done"), unet
