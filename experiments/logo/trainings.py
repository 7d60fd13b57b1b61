"""The oracle's trainings: for every group the UNet again without it (LOGO), and second seeds for the ceiling.

Same start, schedule, steps and frozen VAE and CLIP as the full model; only one group's pictures are missing. (The VAE
and the text tower have seen every group: see the model card.) The queue can be stopped and resumed any number of times;
every training checkpoints itself below `GUDA_CACHE/train/`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file

from experiments.logo import retrained_delta
from experiments.logo.retrained_delta import LiveConfig
from experiments.logo.sharing import work_through
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core import paths
from guda_core.errors import AdapterError
from guda_core.records import GroupSet, Query
from guda_core.unlearning import adapters
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.run import Forgetting
from guda_core.versions import today, versions
from guda_core.work_queue import deadline

SECOND_SEED = 4
FIDELITY_EVERY = 3  # of the benchmark's queries, what a LOGO model loses by coding is measured on every third


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
    """All trainings in the order of work: LOGO of every group, the same from the second seed, the second full model.

    The ceiling does not need the last one, which moves all of a query's scores alike.
    """
    of = [Job(g, seed) for seed in (config.loop.seed, SECOND_SEED) for g in group_set.groups]
    return [*of, Job(None, SECOND_SEED)]


def _training(group_set: GroupSet, config: UnetConfig, job: Job) -> Generator[Progress, None, None]:
    own = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=job.seed))
    return cast(Generator, stages.stage_unet(group_set, own, job.exclude))


def work(
    group_set: GroupSet, config: UnetConfig, *, minutes: float | None = None, kept: Collection[str] = ()
) -> Iterator[tuple[Job, Progress]]:
    """Work through the queue, skipping what is done and what another process has in hand.

    Stops after `minutes` with a checkpoint, to be resumed later. kept: names of trainings that need not be done again,
    because what they were for is there (`oracle_values.names`).

    Raises:
        OptionError: minutes is not positive. TrainingError: the VAE or the CLIP is missing.
    """
    yield from work_through(
        queue(group_set, config),
        in_hand=lambda job: stages.in_hand(job.name),
        is_done=lambda job: job.done or job.name in kept,
        steps=lambda job: _training(group_set, config, job),
        minutes=minutes,
    )


def live_folder(base: Forgetting, folder: Path | None = None) -> paths.Layers:
    """Where the live oracle of a base model is."""
    return paths.Layers((folder,)) if folder else paths.run(base.card.id, base.group_set.id).oracle


def is_live(base: Forgetting, group: str, folder: Path | None = None) -> bool:
    """Whether the group's LOGO model answers live: it is there, fits the base, and what it lost is measured."""
    own = live_folder(base, folder) / group
    try:
        adapters.load(own, model=base.model, group=group)
    except AdapterError:
        return False
    return (own / adapters.HEALTH).is_file()


def make_live(
    base: Forgetting,
    config: UnetConfig,
    queries: Sequence[Query],
    *,
    groups: Sequence[str] = (),
    folder: Path | None = None,
    how: LiveConfig | None = None,
    minutes: float | None = None,
) -> Iterator[tuple[str, float]]:
    """Train every LOGO model of the first seed that is not live yet, where its weights are not there any more, keep it
    in coded form, and measure over the queries what that lost; yields (what is
    done, fraction).

    groups: only these; () = all. Stops after `minutes`, to be resumed; processes started side by side share the groups
    out.

    Raises:
        OptionError: minutes is not positive, or there is no such group. TrainingError: the VAE or the CLIP is missing.
    """
    how, until = how or LiveConfig(), deadline(minutes)
    wanted = base.known(groups)
    sensitive: dict[str, float] = {}
    for job in queue(base.group_set, config):
        if job.exclude not in wanted or job.seed != config.loop.seed:
            continue
        assert job.exclude is not None
        with stages.in_hand(job.name) as ours:
            if not ours or is_live(base, job.exclude, folder):
                continue
            if not job.done:
                with closing(_training(base.group_set, config, job)) as steps:
                    for p in steps:
                        yield job.name, p.step / p.steps
                        if time.monotonic() > until:
                            return
            if not sensitive:
                sensitive = retrained_delta.sensitivity(base.model, base.group_set, *base.training_pictures(), how)
            for fraction in _compressed(base, job, sensitive, queries, live_folder(base, folder).own(job.exclude), how):
                yield f"live {job.exclude}", fraction
        if time.monotonic() > until:
            return


def _compressed(
    base: Forgetting,
    job: Job,
    sensitive: Mapping[str, float],
    queries: Sequence[Query],
    folder: Path,
    how: LiveConfig,
) -> Iterator[float]:
    assert job.exclude is not None
    where = stages.work_dir() / job.name
    logo = load_file(where / "diffusion_pytorch_model.safetensors")
    record = json.loads((where / "stage.json").read_text(encoding="utf-8"))
    meta = {"model": base.card.id, "training": record, "versions": versions(), "date": today()}
    (folder / adapters.HEALTH).unlink(missing_ok=True)
    coded = retrained_delta.compress(base.model, logo, job.exclude, sensitive, config=how, folder=folder, meta=meta)
    lost: dict[str, Any] = {}
    for fraction, lost in retrained_delta.fidelity(base.model, logo, coded, queries, how):  # noqa: B007  (the last is used)
        yield fraction
    record = {"command": "python -m experiments.logo --live", "config": asdict(how), **lost, "date": today()}
    (folder / adapters.HEALTH).write_text(json.dumps(record), encoding="utf-8")
