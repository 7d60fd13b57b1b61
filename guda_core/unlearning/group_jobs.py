"""Unlearning and health of each group as jobs (`guda_core.jobs`), for several GPUs or machines.

A first job looks what is to be done and encodes the pictures, once for all; then there is one job a group. A group's
job is done when its adapter fits and its health was measured of just that adapter. What a job makes is what one process
makes: the same bytes, on the same kind of device with as many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guda_core import paths
from guda_core.data.groups import load_group_set
from guda_core.data.reserved import reserved
from guda_core.diffusion.cards import absolute, chosen_card
from guda_core.errors import TrainingError
from guda_core.jobs.driver import Event, Pool, failure, work_through
from guda_core.jobs.environ import once_a_process
from guda_core.jobs.job import Job, Steps
from guda_core.libraries import set_up_libraries
from guda_core.records import GroupSet
from guda_core.unlearning.adapter_files import meta_file
from guda_core.unlearning.defaults import memory_settings
from guda_core.unlearning.health import Health
from guda_core.unlearning.run import CLAIMS, Forgetting, check_learned

HEALTH_SAYS = "measuring its health"
Follow = Callable[[str, int, Iterator[Event]], Iterator[Event]]  # (title, number of jobs, what happens) -> the same


@dataclass(frozen=True)
class Asked:
    """What `guda unlearn` was asked for; small, and can be pickled.

    group_set: its name. model: as `diffusion.cards.chosen_card` takes it. folder: of the adapters, absolute; None: the
    workspace's. changes: of the settings (`Forgetting.config`), sorted. pictures, checkpointing: as `memory_settings`
    takes them. again: groups whose adapter fits are made again.
    """

    group_set: str
    model: str | None = None
    folder: Path | None = None
    groups: tuple[str, ...] = ()
    operator: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    pictures: int | None = None
    checkpointing: bool | None = None
    again: bool = False


@dataclass(frozen=True)
class Found:
    """What is to be done. costs: group id -> forward passes of one picture each. before: group id -> which adapter was
    there (`_stamp`), of those that are made again. replaced: `Forgetting.replaced`."""

    costs: Mapping[str, float]
    before: Mapping[str, int]
    replaced: Sequence[str] = ()


@dataclass(frozen=True)
class Opened:
    """What a process keeps from job to job: the model, pictures and settings."""

    forgetting: Forgetting
    config: Any
    health: Health


def open_asked(asked: Asked) -> Opened:
    """Load what a process needs for it.

    Raises:
        GudaError: the set, the model or a setting is refused.
    """
    made = Forgetting(load_group_set(asked.group_set), model=asked.model, folder=asked.folder)
    check_learned(made)
    made.memory = memory_settings(made.model, pictures=asked.pictures, checkpointing=asked.checkpointing)
    config = made.config(asked.operator, **dict(asked.changes))
    return Opened(made, config, Health(made, apart=kept_apart(made.group_set, made.card.id)))


def kept_apart(group_set: GroupSet, card: str) -> set[tuple[str, str]]:
    """Held-out pictures that the health must not be measured on: a benchmark's queries."""
    folders = (paths.BENCHMARKS, paths.BENCHMARKS / "fresh", paths.run(card, group_set.id).file("logo"))
    return set().union(*(reserved(folder / "queries.json", group_set) for folder in folders))


@once_a_process
def _opened(asked: Asked) -> Opened:
    """Likewise, once for all jobs of a process."""
    set_up_libraries()
    return open_asked(asked)


def _stamp(opened: Opened, group: str) -> int:
    """Which adapter is there; 0 where there is none. One that is made again is another one, though its bytes may be the
    same."""
    path = meta_file(opened.forgetting.folder / group)
    return path.stat().st_mtime_ns if path.is_file() else 0


def look(asked: Asked) -> Steps:
    """What is to be done (`Found`); the pictures are encoded on the way, if any group is to be unlearned."""
    opened = _opened(asked)
    job, measured = opened.forgetting, opened.health
    pending = job.begin(asked.groups, config=opened.config, again=asked.again)
    others = [g for g in measured.unmeasured(asked.groups) if g not in pending]
    before = {g: _stamp(opened, g) for g in pending if asked.again}
    if pending:
        for fraction in job.encoding():
            yield fraction, "encoding the pictures"
    passes = measured.passes([*pending, *others])
    costs = job.costs(pending, opened.config)
    replaced = job.replaced(pending, opened.config)
    return Found({g: float(costs.get(g, 0) + passes[g]) for g in passes}, before, replaced)


def _has_adapter(opened: Opened, group: str, before: int | None) -> bool:
    if before is not None and _stamp(opened, group) == before:
        return False
    return not opened.forgetting.pending([group], config=opened.config)


def is_done(asked: Asked, group: str, before: int | None) -> bool:
    """Whether the group's adapter and its health are there. before: the adapter that does not count; None: any."""
    opened = _opened(asked)
    return _has_adapter(opened, group, before) and not opened.health.unmeasured([group])


def make(asked: Asked, group: str, before: int | None) -> Steps:
    """Unlearn the group and measure its health, whichever is not there."""
    opened = _opened(asked)
    job, share = opened.forgetting, 0.0
    if not _has_adapter(opened, group, before):
        cost, passes = job.costs([group], opened.config)[group], opened.health.passes([group])[group]
        share = cost / max(1, cost + passes)
        for p in job.unlearn(group, opened.config):
            fraction = 0.0 if p.note else share * p.step / p.steps
            yield fraction, str(p)
    for _ in opened.health.unmeasured([group]):
        for fraction in opened.health.measure(group):
            yield share + (1 - share) * fraction, HEALTH_SAYS


def _claims(asked: Asked, card: str) -> Path:
    """Where all workers see the claims: beside the adapters."""
    return (asked.folder or paths.run(card, asked.group_set).own / "adapters") / CLAIMS


def first_job(asked: Asked, card: str) -> Job:
    """Looks what is to be done. card: the model's id. No group can be called as its claim is."""
    return Job("look and encode", look, _claims(asked, card) / ".look", arguments=(asked,))


def group_jobs(asked: Asked, card: str, found: Found) -> list[Job]:
    """One job for each group that there is something to do of."""
    folder = _claims(asked, card)
    return [
        Job(g, make, folder / g, is_done, (asked, g, found.before.get(g)), max(1.0, cost))
        for g, cost in found.costs.items()
    ]


def work_by(
    asked: Asked, pool: Pool, follow: Follow, tell: Callable[[str], None] = lambda said: None
) -> TrainingError | None:
    """Unlearn the groups by the workers of a pool, and measure their health; gives what failed, as one sentence.

    follow: passes on what happens, and may show it. tell: hears which adapters are replaced, and why.

    Raises:
        TrainingError: it could not be looked what is to be done.
    """
    card = chosen_card(asked.model).id
    asked = replace(asked, model=asked.model and absolute(asked.model), folder=asked.folder and asked.folder.absolute())
    ended = _ends(follow("look and encode", 1, work_through([first_job(asked, card)], pool)))
    if failed := failure(ended):
        raise failed
    for said in ended[0].answer.replaced:
        tell(said)
    jobs = group_jobs(asked, card, ended[0].answer)
    return failure(_ends(follow("all groups", len(jobs), work_through(jobs, pool)))) if jobs else None


def _ends(events: Iterator[Event]) -> list[Event]:
    return [e for e in events if e.kind in ("done", "found", "failed")]
