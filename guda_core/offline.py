"""The offline half of the library in functions: `unlearn`, and `draft` in its place; `guda_core` exports them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from guda_core import kept_services, paths
from guda_core.amounts import time_said
from guda_core.api import _groups, _model
from guda_core.data import groups as group_sets
from guda_core.diffusion import cards
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import OptionError
from guda_core.given import check_callable, check_texts, count, names, path_or_none, plain
from guda_core.jobs.chosen_pool import opened
from guda_core.jobs.driver import Event
from guda_core.python_words import speaks_python
from guda_core.records import GroupSet
from guda_core.unlearning import draft as drafts
from guda_core.unlearning.adapter_files import NOTHING_FORGOTTEN, forgot_nothing
from guda_core.unlearning.forget import FORGET_LOSSES
from guda_core.unlearning.group_jobs import HEALTH_SAYS, Asked, kept_apart, work_by
from guda_core.unlearning.health import Health, read_all
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.run import Forgetting, check_learned

log = logging.getLogger(__name__)

Hear = Callable[[str, Progress], object]  # hears a group's id, and how far it is
APART_S, APART = 10.0, 0.02  # of two lines of a group's progress: seconds, and the share of its steps


@speaks_python
def unlearn(
    groups: GroupSet | str | None = None,
    model: str | Path | None = None,
    *,
    only: Sequence[str] | None = None,
    operator: str | None = None,
    folder: str | Path | None = None,
    again: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    progress: Hear | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Unlearn groups from a model, each into an adapter, and measure each adapter's health.

    Adapters that are there and fit are kept; those of other settings or pictures are made again in their place, which a
    warning says. A call that was stopped goes on. Progress is logged: nothing is shown unless
    `logging.basicConfig(level=logging.INFO)`. Hours, for a large model.

    Args:
        groups, model: a group set and a model's name.
        only: ids or names of groups, at least one; default: all.
        operator: the forget loss; default: guda_c, or retrack for a model that reads no prompts.
        folder: where the adapters go; default: the workspace. Name another one for a trial.
        again: also make adapters again that fit.
        workers: so many groups at once, in processes of this machine, a GPU each where there are GPUs. They import the
            main program again, so a script's own call stands below `if __name__ == "__main__":`.
        ray: the same on a Ray cluster: HOST:PORT, "auto" or "local".
        progress: is called with a group's id and how far it is: `step` of `steps`, `loss`, and `note`, a word on what
            goes on beside the steps. Of its health, and with workers or ray, steps are hundredths. What it raises ends
            the work, and is raised.
        settings: of the loss and the loop, such as steps, batch, lr, rank, seed.

    Returns:
        Group id -> its health: the mean ELBO drop in nats by kind of picture, as in `health.json`.

    Raises:
        GudaError: a name or a setting is refused, the training pictures are not there, or a training went astray.
    """
    named = _named(model, "unlearn")
    check_texts({"operator": operator, "ray": ray})
    if operator is not None:
        FORGET_LOSSES.find(operator)
    workers = count(workers, "workers")
    check_callable(progress, "progress")
    those = _some(only)
    group_set = _groups(groups, named)
    changes = tuple(sorted((k, plain(v)) for k, v in settings.items()))
    asked = Asked(
        group_set.id, named, path_or_none(folder, "folder"), tuple(group_set.ids(those)), operator, changes, again=again
    )
    with kept_services.none_kept():  # its memory is needed, and what it read is no longer true afterwards
        if workers is not None or ray is not None:
            found = _by_workers(group_set, asked, workers, ray, progress or _unheard)
        else:
            found = _in_this_process(group_set, asked, progress or _unheard)
    if kept := [group_set.groups[g].name for g, health in found.items() if forgot_nothing(health)]:
        log.warning("%s", NOTHING_FORGOTTEN.format(which=", ".join(kept)))
    return found


@speaks_python
def draft(
    groups: GroupSet | str | None = None,
    model: str | Path | None = None,
    *,
    only: Sequence[str] | None = None,
    folder: str | Path | None = None,
    again: bool = False,
) -> dict[str, drafts.Draft]:
    """Make adapters of groups that have none in seconds, by UCE in place of unlearning (`unlearning.draft`).

    A draft is for a first try: it agrees less with retraining, and answers say that it is one. `unlearn` puts real
    adapters in the place of drafts; what unlearning made stays, also where it cannot be used, which is logged. Nothing
    else is shown unless `logging.basicConfig(level=logging.INFO)`.

    Args:
        groups, model, only, folder: as `unlearn` takes them.
        again: also make drafts again.

    Returns:
        Group id -> its draft, of the groups of which one was made.

    Raises:
        GudaError: a name is refused, the training pictures are not there, or the model has no layers that only read
            the prompt.
    """
    named = _named(model, "draft")
    those = _some(only)
    with kept_services.none_kept():
        group_set = _groups(groups, named)
        ids = group_set.ids(those)
        job = Forgetting(group_set, model=named, folder=path_or_none(folder, "folder"))
        check_learned(job)
        made = {}
        for gid in drafts.begin(job, ids, again=again):
            if (found := drafts.make(job, gid)) is not None:
                made[gid] = found
                log.info("draft %s: rank %d", gid, found.rank)
        for said in drafts.left(job, ids):
            log.warning("%s", said)
        return made


def _some(only: Sequence[str] | None) -> list[str]:
    """The groups that are named; [] for all. Raises OptionError: the list is empty, so that none is asked for."""
    found = [] if only is None else names(only, "only")
    if only is not None and not found:
        raise OptionError("only names no group. Leave it out for all groups.")
    return found


def _named(given: str | Path | None, what: str) -> str | None:
    """The name of a model. Raises OptionError for a loaded one."""
    found = _model(given)
    if isinstance(found, BaseModel):
        raise OptionError(f"{what} loads the model itself: give its name, such as model='{found.card.id}'.")
    return found


def _unheard(group: str, p: Progress) -> None:
    """What is called where nobody asks for progress."""


def _share(fraction: float, note: str) -> Progress:
    return Progress(round(100 * fraction), 100, math.nan, 0.0, note)


class _Told:
    """Logs a group's steps: the first, the last, and others that are `APART_S` and `APART` from the one before. The
    time that is left is by the pace since the first step: loading and encoding come before."""

    def __init__(self, title: str) -> None:
        self.title, self.note = title, ""
        self.first: tuple[int, float] | None = None  # step, and when it was done
        self.last = (0, 0.0)  # likewise, of the line before

    def hear(self, p: Progress) -> None:
        now = time.monotonic()
        if self.first is None or p.note != self.note:  # another part begins, such as the steps after an expert's
            self.first, self.note = (p.step, now), p.note
        elif p.step < p.steps and (now - self.last[1] < APART_S or p.step - self.last[0] < APART * p.steps):
            return
        self.last = p.step, now
        said = f"{self.title}{f', {p.note}' if p.note else ''}: step {p.step} of {p.steps}"
        said += "" if math.isnan(p.loss) else f", loss {p.loss:.3g}"
        made = p.step - self.first[0]
        if made and p.step < p.steps and not p.note:
            said += f", about {time_said((now - self.first[1]) * (p.steps - p.step) / made)} left"
        log.info("%s", said)


def _in_this_process(group_set: GroupSet, asked: Asked, progress: Hear) -> dict[str, dict[str, Any]]:
    """`unlearn` without other processes; the set may be any."""
    job = Forgetting(group_set, model=asked.model, folder=asked.folder)
    check_learned(job)
    config = job.config(asked.operator, **dict(asked.changes))
    pending = job.begin(asked.groups, config=config, again=asked.again)
    for said in job.replaced(pending, config):
        _log_replaced(said)
    for i, gid in enumerate(pending, 1):
        steps = _Told(f"unlearn {gid} (group {i} of {len(pending)})")
        with closing(cast(Generator, job.unlearn(gid, config, again=asked.again))) as going:
            for p in going:
                steps.hear(p)
                progress(gid, p)
    measured = Health(job, apart=kept_apart(group_set, job.card.id))
    for gid in measured.unmeasured(asked.groups):
        told = 0
        for fraction in measured.measure(gid):
            progress(gid, _share(fraction, HEALTH_SAYS))
            if int(10 * fraction) > told:
                told = int(10 * fraction)
                log.info("health of %s: %d%%", gid, 10 * told)
    health = measured.read()
    return {g: health[g] for g in job.known(asked.groups) if g in health}


def _by_workers(
    group_set: GroupSet, asked: Asked, workers: int | None, ray: str | None, progress: Hear
) -> dict[str, dict[str, Any]]:
    """`unlearn` in other processes, which read the set themselves."""
    if group_sets.load_group_set(asked.group_set) != group_set:
        raise OptionError(
            f"The group set '{group_set.id}' in the workspace is another one than this. With workers or ray, give the "
            "name of a set that is in the workspace: each process reads it there."
        )

    def follow(title: str, count: int, events: Iterator[Event]) -> Iterator[Event]:
        """Log what happens to jobs, and pass it on."""
        for e in events:
            log.info("%s (%.0f%%): %s %s. %s", title, 100 * e.all_done, e.job.name, e.kind, e.note)
            if e.kind == "progress" and e.job.name in group_set.groups:
                progress(e.job.name, _share(e.fraction, e.note))
            yield e

    with opened(workers, ray) as pool:
        log.info("unlearn on %s", pool.about)
        if failed := work_by(asked, pool, follow, _log_replaced):
            raise failed
    card = cards.chosen_card(asked.model).id
    where = paths.Layers((asked.folder,)) if asked.folder else paths.run(card, group_set.id).adapters
    return read_all(where, asked.groups or group_set.groups)


def _log_replaced(said: str) -> None:
    if "in place of a draft" in said:
        log.info("unlearn: %s", said)
    else:
        log.warning("unlearn: %s The adapters of before are replaced. For a trial, name another `folder`.", said)
