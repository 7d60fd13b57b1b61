"""Unconditional diffusion models of the classes benches: the full model, and one without each class (LOGO).

Loss: E_t,eps ||eps - eps_theta(x_t, t)||^2 (Ho et al. 2020) on the linear schedule, or the cosine one of Nichol &
Dhariwal 2021. The digits' models have 0.7 M parameters: small enough for one without each class, each of them twice, on
two cores. CIFAR-10's have 36 M, for a GPU or several (accelerate). Results go below `GUDA_CACHE/train/`; a stage
resumes where it stopped and is skipped when its `stage.json` is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from experiments.train import stages
from experiments.train.unet import epoch_batch, stratified_times
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.sources.labelled import Labelled
from guda_core.data.sources.source import load_pictures, open_dataset
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.pixels import to_unit
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import OptionError, TrainingError
from guda_core.records import GroupSet
from guda_core.unlearning.loop import LoopConfig, Progress, run

SCHEDULES = {  # diffusers' settings of Ho et al. 2020 and of Nichol & Dhariwal 2021
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@dataclass(frozen=True)
class ClassesConfig:
    """dataset: a group set of labelled pictures. channels: of each resolution; attention: which of them have it.
    layers: residual blocks a resolution. head: size of an attention head. norm_groups: of the group norms. timesteps,
    schedule: of the noise. held_out, split_seed, per_class: which pictures (`sources.classes.SetOptions`).
    mixed_precision: accelerate's "no", "fp16" or "bf16"."""

    dataset: str = "digits"
    channels: tuple[int, ...] = (32, 64)
    attention: tuple[bool, ...] = (False, True)
    layers: int = 1
    head: int = 16
    norm_groups: int = 8
    timesteps: int = 1000
    schedule: str = "linear"
    held_out: int = 10
    split_seed: int = 0
    per_class: int | None = None
    mixed_precision: str = "no"
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2000, batch=128, lr=1e-3, warmup=100, ema=0.998, weight_decay=0.0, seed=3
        )
    )

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise OptionError(f"schedule '{self.schedule}': known are {', '.join(SCHEDULES)}.")
        if len(self.attention) != len(self.channels):
            raise OptionError("attention must say yes or no for every one of the channels.")

    @property
    def key(self) -> str:
        """Name of these settings, seed aside, e.g. "digits-1a2b3c4d": models of other settings lie beside these."""
        own = asdict(dataclasses.replace(self, loop=dataclasses.replace(self.loop, seed=0, checkpoint_s=0.0)))
        return f"{self.dataset}-{hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]}"


def group_set(config: ClassesConfig) -> GroupSet:
    """The classes as groups, in order; with the split that the settings ask for."""
    split = {"held_out": config.held_out, "split_seed": config.split_seed, "per_class": config.per_class}
    return dataclasses.replace(load_group_set(config.dataset), options=split)


def channels(config: ClassesConfig) -> int:
    """How many channels the pictures have, 1 or 3."""
    dataset = open_dataset(group_set(config))
    assert isinstance(dataset, Labelled)
    return dataset.channels


def pictures(config: ClassesConfig, split: str) -> Pictures:
    """The split "train" or "held_out", (N, H, W, 3) uint8."""
    return load_pictures(group_set(config), split)


def make_scheduler(config: ClassesConfig) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=config.timesteps, **SCHEDULES[config.schedule])


def make_unet(config: ClassesConfig) -> UNet2DModel:
    torch.manual_seed(config.loop.seed)
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention)
    return UNet2DModel(
        sample_size=group_set(config).resolution,
        in_channels=channels(config),
        out_channels=channels(config),
        layers_per_block=config.layers,
        block_out_channels=config.channels,
        down_block_types=down,
        up_block_types=tuple(d.replace("Down", "Up") for d in reversed(down)),
        attention_head_dim=config.head,
        norm_num_groups=config.norm_groups,
    )


def card(config: ClassesConfig, name: str) -> Card:
    """A card for one of the trained models (see `Job.name`)."""
    of, path = group_set(config), str(stages.work_dir() / name)
    shown = f"{of.name} diffusion ({of.resolution} px)"
    return Card(name, shown, "folder", path, of.resolution, "epsilon", "float32", of.id, "MIT", "unconditional")


def encode_all(of: Pictures, config: ClassesConfig) -> Tensor:
    """(N, C, H, W) float32 in [-1, 1], exactly as Unconditional.encode does."""
    x = to_unit(of.pixels)
    return x if channels(config) == 3 else x.mean(dim=1, keepdim=True)


def train(
    latents: Tensor,
    groups: tuple[str, ...],
    config: ClassesConfig,
    exclude: str | None = None,
    *,
    name: str | None = None,
    accelerator: Accelerator | None = None,
) -> Generator[tuple[Progress, UNet2DModel], None, None]:
    """Train from scratch; yields (progress, network) each step; the EMA weights are in it at the end.

    latents: (N, C, H, W); groups: N ids, aligned. exclude: the class left out (LOGO): same start, seed and steps.
    name: of the checkpoint below `GUDA_CACHE/train/`, None = none. accelerator: of a GPU or several; every process
    then takes its own slice of the same batch, so that their number changes nothing but the speed.

    Raises:
        TrainingError: `exclude` is no class of the pictures.
    """
    if exclude is not None and exclude not in groups:
        raise TrainingError(f"'{exclude}' is no class of the pictures. Known: {', '.join(sorted(set(groups)))}.")
    kept = torch.tensor([i for i, g in enumerate(groups) if g != exclude])
    schedule = Schedule.ddpm(make_scheduler(config).alphas_cumprod)
    unet = make_unet(config).train()
    batch, seed = config.loop.batch, config.loop.seed
    device = torch.device("cpu") if accelerator is None else accelerator.device
    unet.to(device, memory_format=torch.channels_last)
    network = unet if accelerator is None else accelerator.prepare_model(unet)
    mine = slice(None) if accelerator is None else slice(accelerator.process_index, None, accelerator.num_processes)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        x_0 = latents[kept[epoch_batch(len(kept), batch, step, seed)]]
        t = stratified_times(batch, len(schedule), g)
        eps = torch.randn(x_0.shape, generator=g)
        x_t = schedule.add_noise(x_0, eps, t)
        x_t, t, eps = (v[mine].to(device) for v in (x_t, t, eps))
        return (network(x_t, t).sample.float() - eps).square().mean()

    checkpoint = None if name is None else stages.work_dir() / f"{name}.pt"
    for progress in run(unet, loss_of, config.loop, checkpoint, accelerator=accelerator):
        yield progress, unet
    unet.eval()
    yield Progress(config.loop.steps, config.loop.steps, float("nan"), 0.0, "done"), unet


@dataclass(frozen=True)
class Job:
    """One training with `config`: without the class `exclude` (None: all classes), from `seed`."""

    config: ClassesConfig
    exclude: str | None
    seed: int

    @property
    def name(self) -> str:
        """Folder of the result: digits-1a2b3c4d-full-s3, digits-1a2b3c4d-without-7-s3."""
        what = "full" if self.exclude is None else f"without-{self.exclude}"
        return f"{self.config.key}-{what}-s{self.seed}"

    @property
    def done(self) -> bool:
        return stages.is_done(self.name)


def queue(config: ClassesConfig, second_seed: int | None = 4) -> list[Job]:
    """All trainings in the order of work: the full model, LOGO of every class, then both again from the second seed."""
    seeds = [config.loop.seed, *([second_seed] if second_seed is not None else [])]
    return [Job(config, c, s) for s in seeds for c in (None, *group_set(config).groups)]


def stage(job: Job, accelerator: Accelerator | None = None) -> Generator[Progress, None, None]:
    """One training of the queue, into its folder, in diffusers' layout."""
    own = dataclasses.replace(job.config, loop=dataclasses.replace(job.config.loop, seed=job.seed))
    of = pictures(own, "train")
    unet = None
    steps = train(encode_all(of, own), of.groups, own, job.exclude, name=job.name, accelerator=accelerator)
    for progress, unet in stages.timed(job.name, steps):  # noqa: B007
        yield progress
    assert unet is not None
    if accelerator is not None and not accelerator.is_main_process:
        return
    folder = stages.work_dir() / job.name
    DDPMPipeline(unet=unet, scheduler=make_scheduler(own)).save_pretrained(folder)
    kept = of.where(lambda g, o: g != job.exclude)
    stages.finish(folder, own, job.name, data_sha256=kept.sha256(), exclude=job.exclude)
