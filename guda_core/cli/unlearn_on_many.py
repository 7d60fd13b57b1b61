"""`guda unlearn --workers` and `--ray`: the groups as jobs. This process loads no model; it hands out and tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from guda_core.cli.jobs_progress import follow_jobs
from guda_core.cli.terminal import ERR, follow, note
from guda_core.errors import TrainingError

if TYPE_CHECKING:
    from guda_core.jobs.driver import Event, Pool
    from guda_core.jobs.job import Job
    from guda_core.unlearning.group_jobs import Asked, Found


def unlearn_on_many(asked: Asked, *, workers: int | None, ray: str | None) -> TrainingError | None:
    """Unlearn the groups and measure their health; gives what failed, as one sentence.

    Raises:
        OptionError: there is no such cluster, or no Ray. TrainingError: it could not begin.
    """
    from guda_core.diffusion.cards import chosen_card, known_cards
    from guda_core.jobs.chosen_pool import opened
    from guda_core.paths import at_home, is_there
    from guda_core.unlearning.group_jobs import first_job, group_jobs

    card, model = chosen_card(asked.model).id, asked.model
    if model and model not in known_cards() and is_there(at_home(model)):
        model = str(at_home(model).absolute())
    asked = replace(asked, model=model, folder=asked.folder and asked.folder.absolute())
    with ERR.status("Starting") as status, opened(workers, ray) as pool:
        note(f"On {pool.about}.")
        status.stop()
        jobs = group_jobs(asked, card, _looked(first_job(asked, card), pool))
        return _failed(jobs, _made(jobs, pool))


def _looked(job: Job, pool: Pool) -> Found:
    """What is to be done.

    Raises:
        TrainingError: that failed.
    """
    from guda_core.jobs.driver import work_through

    last: list[Event] = []

    def told():
        for e in work_through([job], pool):
            last[:] = [e]
            yield job.name, e.fraction

    follow(told())
    if last[0].kind == "failed":
        raise TrainingError(last[0].note)
    return last[0].answer


def _made(jobs: Sequence[Job], pool: Pool) -> list[Event]:
    from guda_core.jobs.driver import work_through

    return list(follow_jobs("all groups", len(jobs), work_through(jobs, pool))) if jobs else []


def _failed(jobs: Sequence[Job], ended: Sequence[Event]) -> TrainingError | None:
    """What failed; None where all is done."""
    bad = [e for e in ended if e.kind == "failed"]
    if not bad:
        return None
    why = " ".join(f"'{e.job.name}': {e.note}" for e in bad)
    return TrainingError(
        f"{len(bad)} of {len(jobs)} groups failed, the others are done. {why} Run the same command again to try them "
        "once more."
    )
