"""`guda unlearn --workers` and `--ray`: the groups as jobs. This process loads no model; it hands out and tells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from guda_core.cli.jobs_progress import done_by, failure, follow_jobs
from guda_core.cli.terminal import note
from guda_core.errors import TrainingError

if TYPE_CHECKING:
    from guda_core.unlearning.group_jobs import Asked


def unlearn_on_many(asked: Asked, *, workers: int | None, ray: str | None) -> TrainingError | None:
    """Unlearn the groups and measure their health; gives what failed, as one sentence.

    Raises:
        OptionError: there is no such cluster, or no Ray. TrainingError: it could not begin.
    """
    from guda_core.diffusion.cards import absolute, chosen_card
    from guda_core.jobs.chosen_pool import opened
    from guda_core.jobs.driver import work_through
    from guda_core.unlearning.group_jobs import first_job, group_jobs

    card = chosen_card(asked.model).id
    asked = replace(asked, model=asked.model and absolute(asked.model), folder=asked.folder and asked.folder.absolute())
    with opened(workers, ray) as pool:
        note(f"On {pool.about}.")
        (looked,) = done_by(pool, [first_job(asked, card)], title="look and encode")
        jobs = group_jobs(asked, card, looked.answer)
        return failure(list(follow_jobs("all groups", len(jobs), work_through(jobs, pool)))) if jobs else None
