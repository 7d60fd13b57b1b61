"""The oracle's trainings: for every group the UNet again without it (LOGO), and second seeds for the ceiling.

Same start, schedule, steps and frozen VAE and CLIP as the full model; only one group's pictures are missing. (The VAE
and the text tower have seen every group: see the model card.) The queue can be stopped and resumed any number of times;
every training checkpoints itself below `GUDA_CACHE/train/`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import load_file

from guda_core import adapters
from guda_core.distill import DistillConfig, distill
from guda_core.errors import AdapterError, OptionError
from guda_core.forgetting import Forgetting
from guda_core.pipeline import ASSETS
from guda_core.records import GroupSet
from guda_core.report import today, versions
from guda_core.training import stages
from guda_core.training.loop import Progress
from guda_core.training.unet import UnetConfig

SECOND_SEED = 4
SECOND_GROUPS = 4  # how many groups get a second LOGO model


@dataclass(frozen=True)
class Job:
    """One training: without the group `exclude` (None: the full model), from `seed`."""

    exclude: str | None
    seed: int

    @property
    def name(self) -> str:
        """The folder of its result below `GUDA_CACHE/train/`."""
        return stages.unet_name(self.exclude, self.seed)

    @property
    def done(self) -> bool:
        return stages.is_done(self.name)


def queue(group_set: GroupSet, config: UnetConfig) -> list[Job]:
    """All trainings in the order of work: LOGO of every group, second-seed LOGO of some groups, the second full model.

    The second seeds go to groups spread evenly over the set's order. Their ceiling does not need the second full model,
    which moves all of a query's scores alike.
    """
    ids = list(group_set.groups)
    some = ids[:: max(1, len(ids) // SECOND_GROUPS)][:SECOND_GROUPS]
    first = [Job(g, config.loop.seed) for g in ids]
    return [*first, *[Job(g, SECOND_SEED) for g in some], Job(None, SECOND_SEED)]


def work(
    group_set: GroupSet, config: UnetConfig, *, minutes: float | None = None, kept: Collection[str] = ()
) -> Iterator[tuple[Job, Progress]]:
    """Work through the queue, skipping what is done and what another process has in hand.

    Stops after `minutes` with a checkpoint, to be resumed later. kept: names of trainings that need not be done again,
    because what they were for is there (`benchmark.kept`).

    Raises:
        OptionError: minutes is not positive. TrainingError: the VAE or the CLIP is missing.
    """
    if minutes is not None and minutes <= 0:
        raise OptionError(f"minutes must be positive, got {minutes}.")
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for job in queue(group_set, config):
        with stages.in_hand(job.name) as ours:
            if not ours or job.done or job.name in kept:
                continue
            own = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=job.seed))
            with closing(cast(Generator, stages.stage_unet(group_set, own, job.exclude))) as steps:
                for p in steps:
                    yield job, p
                    if until is not None and time.monotonic() > until:
                        return


def _where(base: Forgetting, folder: Path | None) -> Path:
    return folder or ASSETS / "oracle" / base.card.id


def to_distill(base: Forgetting, config: UnetConfig, folder: Path | None = None) -> list[str]:
    """Groups whose LOGO model is finished and has no fitting adapter yet."""
    out = []
    for job in queue(base.group_set, config):
        if job.exclude is None or job.seed != config.loop.seed or not job.done:
            continue
        try:
            adapters.load(_where(base, folder) / job.exclude, base_sha256=base.model.sha256, group=job.exclude)
        except AdapterError:
            out.append(job.exclude)
    return out


def distilled(
    base: Forgetting, config: UnetConfig, group: str, folder: Path | None = None, how: DistillConfig | None = None
) -> Iterator[Progress]:
    """Distil one finished LOGO model into an adapter of the live oracle; yields progress."""
    pictures, latents = base.training_pictures()
    state = load_file(stages.work_dir() / Job(group, config.loop.seed).name / "diffusion_pytorch_model.safetensors")
    where = _where(base, folder) / group
    meta = {"model": base.card.id, "data_sha256": pictures.sha256(), "versions": versions(), "date": today()}
    how = how or DistillConfig()
    yield from distill(base.model, state, base.group_set, pictures, latents, group, config=how, folder=where, meta=meta)
