"""From a folder of pictures to the table, in one go: what the planted truth and UnlearnCanvas share.

    group set -> full model and models without each group -> queries -> GUDA's adapters -> scores, calibration, table

Every part is skipped where it is there, so that whatever was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands import differences
from guda_core import paths
from guda_core.data.groups import load_group_set
from guda_core.data.own import set_files
from guda_core.data.own.in_folder import find_in_folder
from guda_core.data.own.new_set import NewSet, draft
from guda_core.data.reserved import reserved
from guda_core.errors import DataError
from guda_core.records import GroupSet
from guda_core.unlearning.health import Health, HealthConfig
from guda_core.unlearning.run import Forgetting

if TYPE_CHECKING:
    from experiments.benchmark.queries import QueryConfig
    from experiments.benchmark.scores import ScoreConfig
    from experiments.logo.own_models import OwnOracle

Said = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Way:
    """unlearning: changes of the forget loss's settings, as `Forgetting.config` takes them. health: how the adapters
    are measured for the offset; None = not, and the score is the paper's. queries, scores: None = the usual ones.
    command: what runs it."""

    command: str
    unlearning: Mapping[str, Any]
    health: HealthConfig | None = None
    queries: QueryConfig | None = None
    scores: ScoreConfig | None = None


def own_set(folder: Path, asked: NewSet) -> GroupSet:
    """The group set of a folder, written into the workspace unless it is there.

    Raises:
        DataError: there are no pictures, or fewer than two groups; or the set that is there was made of another folder,
            or with other settings.
    """
    there = set_files.existing(asked.id)
    if there is None:
        set_files.write(draft(find_in_folder(folder), asked))
        return load_group_set(asked.id)
    where = set_files.folder_of(asked.id)
    before = {
        "folder": str((where / there.options["path"]).resolve()), "resolution": there.resolution,
        "held_out": there.options["held_out"],
    }  # fmt: skip
    wanted = {"folder": str(folder.resolve()), "resolution": asked.resolution, "held_out": asked.held_out}
    if changed := differences(before, wanted):
        raise DataError(
            f"The group set '{asked.id}' was made with other settings: {changed}. Ask for the same, or delete {where} "
            "to make it anew."
        )
    return there


def unlearned(own: OwnOracle, way: Way) -> Said:
    """GUDA's adapters of the fine-tuned model and, if wanted, their health; yields (what, fraction)."""
    job = Forgetting(own.base.group_set, model=own.name)
    settings = job.config(**way.unlearning)
    pending = job.pending(own.groups, config=settings)
    job.check_others(pending)
    for g in pending:
        yield from ((f"unlearn {g}", p.step / p.steps) for p in job.unlearn(g, settings))
    if way.health is None:
        return
    queries = paths.run(own.name, own.base.group_set.id).own / "logo" / "queries.json"
    health = Health(job, way.health, apart=reserved(queries, job.group_set))
    for g in health.unmeasured(own.groups):
        yield from ((f"health {g}", f) for f in health.measure(g))


def compared(own: OwnOracle, way: Way) -> Said:
    """Draw the queries, score all that is there, write the table; yields (what, fraction)."""
    from experiments.benchmark import own_run
    from guda_core.local import load_service

    service = load_service(own.name, group_set=own.base.group_set.id, fall_back=False)
    bench = own_run.OwnBench(service, tuple(own.groups), own.oracle_folder(second=True), way.command)
    yield from own_run.run(bench, way.queries, way.scores)


def everything(own: OwnOracle, way: Way, minutes: float | None = None) -> Said:
    """The whole way from a group set on; yields (what, fraction). It ends early when the minutes are over or another
    process has a training in hand: `own.missing` tells.

    The queries are drawn before the adapters' health is measured, which must not be measured on them.
    """
    for job, p in own.work(minutes):
        yield job.name, p.step / p.steps
    if own.missing():
        return
    yield from compared(own, way)
    yield from unlearned(own, way)
    yield from compared(own, way)
