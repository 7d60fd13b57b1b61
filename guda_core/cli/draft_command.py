"""`guda unlearn --draft`: instant adapters (`guda_core.unlearning.draft`) of the groups that have none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from guda_core.cli.terminal import ERR, columned, note, say, show
from guda_core.data.own.found import counted

if TYPE_CHECKING:
    from guda_core.unlearning.draft import Draft
    from guda_core.unlearning.run import Forgetting

NOTHING = "Nothing to do: every group has an adapter. With --again, drafts are made again."
ALL_REAL = "Every group has a real adapter, and these stay. Drafts are made of groups without one."


def draft(job: Forgetting, wanted: Sequence[str], *, again: bool) -> None:
    """Make the drafts, and say what they are."""
    from guda_core.unlearning.adapter_files import is_draft
    from guda_core.unlearning.draft import begin, left, make, meta_there

    began, made = time.monotonic(), {}
    for group in begin(job, wanted, again=again):
        with ERR.status(f"Drafting {job.group_set.groups[group].name}"):
            if (draft := make(job, group)) is not None:
                made[group] = draft
    for why in (broken := left(job, wanted)):
        note(why)
    if not made:
        if not broken:
            drafts = any(is_draft(meta_there(job, g)) for g in job.known(wanted))
            say(NOTHING if drafts else ALL_REAL)
        return
    show(_table(job, made))
    say(f"{counted(len(made), 'draft')} by UCE in {time.monotonic() - began:.1f} s. Their health was not measured.")
    say("Scores by drafts agree less with retraining, above all for a picture without a prompt.")
    say("`guda unlearn` puts real adapters in their place.")


def _table(job: Forgetting, made: dict[str, Draft]) -> Table:
    table = columned("Drafts", "group", "rank", "left out by the rank")
    for group, d in made.items():
        table.add_row(job.group_set.groups[group].name, str(d.rank), f"{100 * d.rest:.1f}%")
    return table
