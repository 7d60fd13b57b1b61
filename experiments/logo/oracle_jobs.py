"""The trainings of an oracle of one's own as jobs (`guda_core.jobs`), for several GPUs or machines.

First a job looks what is missing and encodes the pictures, then the full model is trained, then every model without a
group. Processes that were started without jobs share the same claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.logo import own_models
from experiments.logo.fine_tuning import settings_for
from experiments.logo.own_models import OwnOracle
from guda_core import paths
from guda_core.cli.jobs_progress import done_by
from guda_core.cli.terminal import note
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import chosen_card
from guda_core.errors import InHandError
from guda_core.jobs.chosen_pool import opened
from guda_core.jobs.driver import Pool
from guda_core.jobs.environ import once_a_process
from guda_core.jobs.job import Job, Steps
from guda_core.libraries import set_up_libraries
from guda_core.unlearning.run import Forgetting


@dataclass(frozen=True)
class AskedOracle:
    """What `python -m experiments.logo --model` was asked for; small, and can be pickled. changes: of the settings
    (`settings_for`), sorted. The rest as `OwnOracle` takes it."""

    group_set: str
    model: str
    changes: tuple[tuple[str, Any], ...] = ()
    seeds: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    name: str | None = None


def open_asked(asked: AskedOracle) -> OwnOracle:
    """Load what a process needs for it. Raises GudaError: the set, the model or a setting is refused."""
    base = Forgetting(load_group_set(asked.group_set), model=asked.model)
    seed = asked.seeds[0] if asked.seeds else None
    config = settings_for(base.model, seed=seed, **dict(asked.changes))
    return OwnOracle(base, config, seeds=asked.seeds, groups=asked.groups, name=asked.name)


@once_a_process
def _opened(asked: AskedOracle) -> OwnOracle:
    set_up_libraries()
    return open_asked(asked)


def look(asked: AskedOracle) -> Steps:
    """The trainings that are not done; the pictures are encoded on the way, if there is any."""
    own = _opened(asked)
    missing = own.missing()
    if missing:
        for fraction in own.base.encoding():
            yield fraction, "encoding the pictures"
    return missing


def is_trained(asked: AskedOracle, training: own_models.Job) -> bool:
    """Whether its result is there, and was made from just this."""
    return _opened(asked).is_done(training)


def train(asked: AskedOracle, training: own_models.Job) -> Steps:
    """One training. Raises InHandError: a process without jobs has it."""
    own = _opened(asked)
    with own.in_hand(training) as ours:
        if not ours:
            raise InHandError(f"Another process has {training.name} in hand.", lock=f"{own.claim(training)}.lock")
        with closing(own.steps(training)) as steps:
            for p in steps:
                yield p.step / p.steps, str(p)


def _claims(asked: AskedOracle) -> Path:
    """Where all workers see the claims: in the run of the fine-tuned model."""
    name = asked.name or f"{chosen_card(asked.model).id}-{asked.group_set}"
    return paths.run(name, asked.group_set).own / "logo" / ".claims"


def jobs_of(asked: AskedOracle, trainings: Sequence[own_models.Job]) -> list[Job]:
    """A job for each training."""
    folder = _claims(asked)
    return [Job(t.name, train, folder / t.name, is_trained, (asked, t)) for t in trainings]


def first_job(asked: AskedOracle) -> Job:
    """Looks what is missing."""
    return Job("look and encode", look, _claims(asked) / "look", arguments=(asked,))


def train_on_many(asked: AskedOracle, *, workers: int | None, ray: str | None) -> None:
    """Do every training that is missing.

    Raises:
        OptionError: there is no such cluster, or no Ray. TrainingError: some trainings failed.
    """
    with opened(workers, ray) as pool:
        note(f"On {pool.about}.")
        _train(asked, pool)


def _train(asked: AskedOracle, pool: Pool) -> None:
    (looked,) = done_by(pool, [first_job(asked)], title="look and encode")
    missing: list[own_models.Job] = looked.answer
    full = [t for t in missing if t.exclude is None]
    done_by(pool, jobs_of(asked, full), title="the full model")
    done_by(pool, jobs_of(asked, [t for t in missing if t.exclude is not None]), title="all trainings")
