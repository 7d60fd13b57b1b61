"""`guda unlearn --workers` and `--ray`: the groups as jobs. This process loads no model; it hands out and tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guda_core.cli.jobs_progress import follow_jobs
from guda_core.cli.terminal import note

if TYPE_CHECKING:
    from guda_core.errors import TrainingError
    from guda_core.unlearning.group_jobs import Asked


def unlearn_on_many(asked: Asked, *, workers: int | None, ray: str | None) -> TrainingError | None:
    """Unlearn the groups and measure their health; gives what failed, as one sentence.

    Raises:
        OptionError: there is no such cluster, or no Ray. TrainingError: it could not begin.
    """
    from guda_core.jobs.chosen_pool import opened
    from guda_core.unlearning.group_jobs import work_by

    with opened(workers, ray) as pool:
        note(f"On {pool.about}.")
        return work_by(asked, pool, follow_jobs, note)
