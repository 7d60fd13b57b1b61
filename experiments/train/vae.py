"""The embedded AutoencoderKL: f = 4, 4 latent channels, trained on MSE + L1 + gradient L1 + a small KL.

Latents are standardised per channel (Rombach et al. 2022 scale by one number; here the channels' spreads differ): the
statistics are folded into the two 1x1 convolutions around the latent, so `scaling_factor` is 1 and any
`StableDiffusionPipeline` decodes rightly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from guda_core.data.dataset import Pictures
from guda_core.diffusion.pixels import to_pixels, to_unit
from guda_core.unlearning.loop import LoopConfig, Progress, run


@dataclass(frozen=True)
class VaeConfig:
    """channels: of the three resolutions. kl: weight of the KL to N(0, I), per latent element."""

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    kl: float = 1e-4
    gradient: float = 1.0
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=2100, batch=32, lr=3e-3, warmup=100, weight_decay=0.0, seed=1)
    )


def make_vae(config: VaeConfig, resolution: int) -> AutoencoderKL:
    n = len(config.channels)
    torch.manual_seed(config.loop.seed)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=resolution,
        scaling_factor=1.0,
    )


def reconstruction_loss(y: Tensor, x: Tensor, *, gradient: float) -> Tensor:
    """MSE + L1 + gradient * L1 of finite differences; x, y: (N, 3, H, W)."""
    d = y - x
    dx, dy = d[..., :, 1:] - d[..., :, :-1], d[..., 1:, :] - d[..., :-1, :]
    return d.square().mean() + d.abs().mean() + gradient * (dx.abs().mean() + dy.abs().mean())


def loss(vae: AutoencoderKL, x: Tensor, noise_like: Callable[[Tensor], Tensor], config: VaeConfig) -> Tensor:
    """The whole loss of pictures x, (N, 3, H, W) in [-1, 1]. noise_like: normal noise of a latent's shape, on its
    device."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.mean + posterior.std * noise_like(posterior.mean)).sample
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return reconstruction_loss(y, x, gradient=config.gradient) + config.kl * kl


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures of 10 log10(255^2 / MSE), in dB; a, b: (N, H, W, 3) in [0, 255]."""
    mse = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255.0**2 / np.maximum(mse, 1e-12))).mean())


def _batches(pixels: np.ndarray, batch: int) -> Iterator[Tensor]:
    return (to_unit(pixels[i : i + batch]).contiguous() for i in range(0, len(pixels), batch))


@torch.no_grad()
def latents(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 64) -> Tensor:
    """Means of the posterior, unscaled: (N, C, h, w) float32 CPU; encoded where the VAE is."""
    return torch.cat([vae.encode(x.to(vae.device)).latent_dist.mean.cpu() for x in _batches(pixels, batch)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 64) -> np.ndarray:
    """Decode the posterior means, where the VAE is: (N, H, W, 3) uint8."""
    means = (vae.encode(x.to(vae.device)).latent_dist.mean for x in _batches(pixels, batch))
    return np.concatenate([to_pixels(vae.decode(z).sample) for z in means])


@torch.no_grad()
def standardise(vae: AutoencoderKL, z: Tensor) -> None:
    """Fold (z - mean) / std per channel into quant_conv and post_quant_conv, in place; z: (N, C, h, w) raw means."""
    c = z.shape[1]
    mean, std = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
    q, p = vae.quant_conv, vae.post_quant_conv
    assert q is not None and p is not None and q.bias is not None and p.bias is not None
    q.weight[:c] /= std[:, None, None, None]
    q.bias[:c] = (q.bias[:c] - mean) / std
    q.bias[c:] -= 2 * torch.log(std)  # the log-variance follows its mean's scale
    p.bias += (p.weight[:, :, 0, 0] * mean[None, :]).sum(dim=1)
    p.weight *= std[None, :, None, None]


def train(
    pictures: Pictures, config: VaeConfig, checkpoint: Path, device: str = "cpu"
) -> Generator[tuple[Progress, AutoencoderKL], None, None]:
    """Train on pictures (with random mirror images); yields (progress, model) each step; standardised at the end, when
    the model is back on the CPU. device: where it is trained; all is drawn on the CPU."""
    vae = make_vae(config, pictures.pixels.shape[1])
    vae.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    vae.train()
    pixels = torch.from_numpy(pictures.pixels)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        at = torch.randint(len(pixels), (config.loop.batch,), generator=g)
        x = to_unit(pixels[at]).contiguous()
        flip = torch.rand(len(x), generator=g) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(-1), x).contiguous(memory_format=torch.channels_last)
        return loss(vae, x.to(device), lambda z: torch.randn(z.shape, generator=g).to(device), config)

    for progress in run(vae, loss_of, config.loop, checkpoint):
        yield progress, vae
    raw = latents(vae.eval(), pictures.pixels)
    vae.to("cpu")
    standardise(vae, raw)
    assert math.isfinite(float(latents(vae, pictures.pixels[:1]).sum()))
    yield Progress(config.loop.steps, config.loop.steps, math.nan, 0.0, "standardised"), vae
