"""What the whole way will take, said before it starts: passes by count, hours by steps that are really made.

A pass is one picture through the network; one "with gradients" goes forward and back.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from dataclasses import dataclass

from rich.table import Table

from experiments.benchmark.models import draws_of
from experiments.benchmark.queries import QueryConfig
from experiments.benchmark.result_tables import LIVE
from experiments.benchmark.scores import ScoreConfig
from experiments.logo.fine_tuning import fine_tune
from experiments.logo.own_models import OwnOracle
from experiments.logo.whole_way import Way
from guda_core.diffusion.pace import Pace
from guda_core.unlearning.plan import blank_latents

TRIED = 2  # steps; the first is slower and is not counted


@dataclass(frozen=True)
class Stage:
    """what: of the work. forward, gradients: passes. seconds: as one step or pass took it."""

    what: str
    forward: int
    gradients: int
    seconds: float


def step_seconds(own: OwnOracle) -> float:
    """One step of a training, really made and thrown away."""
    config = dataclasses.replace(own.config, loop=dataclasses.replace(own.config.loop, steps=TRIED, warmup=0))
    blank = blank_latents(own.base.model, own.base.pictures())
    with closing(fine_tune(own.base, config, latents=blank)) as steps:
        next(steps)
        began = time.perf_counter()
        next(steps)
        return time.perf_counter() - began


def make_plan(own: OwnOracle, way: Way, queries: QueryConfig, scores: ScoreConfig) -> list[Stage]:
    """The stages in order of work; trainings that are done are left out. The base model stands for the fine-tuned one:
    they take the same."""
    base, jobs = own.base, own.missing()
    each, loop = step_seconds(own), own.config.loop
    passes = len(jobs) * loop.steps * loop.batch
    settings = base.config(**way.unlearning)
    unlearning = base.plan(own.groups, settings, dict.fromkeys(own.groups, 0))
    forward_s, n = Pace(base.model).forward_s, len(own.groups)
    asked = queries.objects * n
    guda, oracle = draws_of("guda", scores).draws, draws_of(LIVE, scores).draws
    draws = scores.strata * (guda + oracle + n * (guda + oracle * len(own.seeds)))
    real = queries.real * n
    return [
        Stage("encoding", 0, 0, unlearning.encode_s),
        Stage(f"{len(jobs)} trainings", 0, passes, len(jobs) * loop.steps * each),
        Stage(f"{asked} pictures to draw", 2 * asked * queries.steps, 0, 2 * asked * queries.steps * forward_s),
        Stage(
            f"{n} groups to unlearn",
            sum(g.cost.forward for g in unlearning.groups.values()),
            sum(g.cost.gradients for g in unlearning.groups.values()),
            sum(g.seconds for g in unlearning.groups.values()),
        ),
        Stage(f"up to {asked + real} pictures to score", (asked + real) * draws, 0, (asked + real) * draws * forward_s),
    ]


def plan_table(stages: list[Stage]) -> Table:
    """The stages and their sum."""
    table = Table("what", "forward passes", "with gradients", "hours", title="What it will take")
    total = Stage("in all", *(sum(getattr(s, k) for s in stages) for k in ("forward", "gradients", "seconds")))
    for s in [*stages, total]:
        table.add_row(s.what, f"{s.forward:,}", f"{s.gradients:,}", f"{s.seconds / 3600:.2f}")
    return table
