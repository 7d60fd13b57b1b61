"""The digits bench's models: unconditional diffusion on scikit-learn's 8 by 8 digits; the ten classes are the groups.

Loss: E_t,eps ||eps - eps_theta(x_t, t)||^2 on the linear schedule of Ho et al. 2020. Small enough (0.7 M parameters)
for one model without each class, and each of them twice, on two cores. Results go below `GUDA_CACHE/train/`; a stage
resumes where it stopped and is skipped when its `stage.json` is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from torch import Tensor

from guda_core.data import Pictures
from guda_core.errors import TrainingError
from guda_core.models.base import Card, Schedule
from guda_core.models.unconditional import Unconditional
from guda_core.records import Group, GroupSet
from guda_core.training import stages
from guda_core.training.loop import LoopConfig, Progress, run
from guda_core.training.unet import epoch_batch, stratified_times

NAMES = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
SIZE = 8
SOURCE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"


@dataclass(frozen=True)
class DigitsConfig:
    """channels: of the two resolutions; head: size of an attention head. held_out: pictures a class that nothing is
    trained on; split_seed: which ones. per_class: at most so many training pictures of a class, None = all."""

    channels: tuple[int, int] = (32, 64)
    head: int = 16
    held_out: int = 10
    split_seed: int = 0
    per_class: int | None = None
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=6000, batch=64, lr=1e-3, warmup=150, ema=0.999, weight_decay=0.0, seed=3
        )
    )


def group_set() -> GroupSet:
    """The ten classes as groups, in order."""
    about = ("E. Alpaydin, C. Kaynak", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", SOURCE)
    groups = {str(i): Group(str(i), n, *about, "scikit-learn", "digits", (n.lower(),)) for i, n in enumerate(NAMES)}
    return GroupSet("digits", "Digits", SIZE, "{object}", 1, groups, (), ())


def pictures(config: DigitsConfig, split: str) -> Pictures:
    """The split "train" or "held_out": (N, 8, 8, 3) uint8 with three equal channels; 0 .. 16 becomes 0 .. 255.

    Raises:
        TrainingError: another split.
    """
    if split not in ("train", "held_out"):
        raise TrainingError(f"There is no split '{split}'. Known: train, held_out.")
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(config.split_seed)).numpy()
    ordered = [order[digits.target[order] == c] for c in range(10)]  # of each class
    first = 0 if split == "held_out" else config.held_out
    end = config.held_out if split == "held_out" else config.per_class and first + config.per_class
    at = np.sort(np.concatenate([of[first:end] for of in ordered]))
    grey = np.round(digits.images[at] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    return Pictures(
        np.repeat(grey[..., None], 3, axis=3), tuple(str(c) for c in digits.target[at]), tuple(str(i) for i in at)
    )


def make_scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def make_unet(config: DigitsConfig) -> UNet2DModel:
    torch.manual_seed(config.loop.seed)
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=config.channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=config.head,
        norm_num_groups=8,
    )


def card(name: str) -> Card:
    """A card for one of the trained models (see `stage_name`)."""
    path = str(stages.work_dir() / name)
    return Card(
        name, "Digits diffusion (8 px)", "folder", path, SIZE, "epsilon", "float32", "digits", "MIT", "unconditional"
    )


def wrap(unet: UNet2DModel, name: str = "digits") -> Unconditional:
    """A network in memory as a base model."""
    return Unconditional(card(name), denoiser=unet, scheduler=make_scheduler())


def encode_all(of: Pictures) -> Tensor:
    """(N, 1, 8, 8) float32 in [-1, 1], exactly as Unconditional.encode does."""
    return (torch.from_numpy(of.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0).mean(dim=1, keepdim=True)


def train(
    latents: Tensor, groups: tuple[str, ...], config: DigitsConfig, checkpoint: Path | None, exclude: str | None = None
) -> Generator[tuple[Progress, UNet2DModel], None, None]:
    """Train from scratch; yields (progress, network) each step; the EMA weights are in it at the end.

    latents: (N, 1, 8, 8); groups: N ids, aligned. exclude: the class left out (LOGO): same start, seed and steps.

    Raises:
        TrainingError: `exclude` is no class of the pictures.
    """
    if exclude is not None and exclude not in groups:
        raise TrainingError(f"'{exclude}' is no class of the pictures. Known: {', '.join(sorted(set(groups)))}.")
    kept = torch.tensor([i for i, g in enumerate(groups) if g != exclude])
    schedule = Schedule(make_scheduler().alphas_cumprod.double())
    unet = make_unet(config).train()
    batch, seed = config.loop.batch, config.loop.seed

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        x_0 = latents[kept[epoch_batch(len(kept), batch, step, seed)]]
        t = stratified_times(batch, len(schedule), g)
        eps = torch.randn(x_0.shape, generator=g)
        return (unet(schedule.add_noise(x_0, eps, t), t).sample - eps).square().mean()

    for progress in run(unet, loss_of, config.loop, checkpoint):
        yield progress, unet
    unet.eval()
    yield Progress(config.loop.steps, config.loop.steps, float("nan"), 0.0, "done"), unet


def stage_name(exclude: str | None, seed: int) -> str:
    """Folder name of a model: digits-full-s3, digits-without-7-s3."""
    return f"digits-{'full' if exclude is None else f'without-{exclude}'}-s{seed}"


@dataclass(frozen=True)
class Job:
    """One training: without the class `exclude` (None: all classes), from `seed`."""

    exclude: str | None
    seed: int

    @property
    def name(self) -> str:
        return stage_name(self.exclude, self.seed)

    @property
    def done(self) -> bool:
        return stages.is_done(self.name)


def queue(config: DigitsConfig, second_seed: int | None = 4) -> list[Job]:
    """All trainings in the order of work: the full model, LOGO of every class, then both again from the second seed."""
    seeds = [config.loop.seed, *([second_seed] if second_seed is not None else [])]
    return [Job(c, s) for s in seeds for c in (None, *group_set().groups)]


def stage(config: DigitsConfig, job: Job) -> Generator[Progress, None, None]:
    """One training of the queue, into its folder, in diffusers' layout."""
    own = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=job.seed))
    of = pictures(own, "train")
    checkpoint = stages.work_dir() / f"{job.name}.pt"
    unet = None
    steps = train(encode_all(of), of.groups, own, checkpoint, job.exclude)
    for progress, unet in stages._timed(job.name, steps):  # noqa: B007
        yield progress
    assert unet is not None
    folder = stages.work_dir() / job.name
    DDPMPipeline(unet=unet, scheduler=make_scheduler()).save_pretrained(folder)
    kept = of.where(lambda g, o: g != job.exclude)
    seconds = stages._seconds_before(job.name)
    stages.finish(folder, own, seconds, data_sha256=kept.sha256(), exclude=job.exclude)
