"""What `guda assets features` says before it begins, and when it asks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from guda_core.amounts import bytes_said, time_said
from guda_core.cli.terminal import ERR, columned, say, show, write_json
from guda_core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guda_core.attribution.gradient.feature_plan import FeaturePlan
    from guda_core.local import LocalService

ASKED_S = 600.0  # seconds from which on the user is asked


def agreed(
    service: LocalService,
    methods: Sequence[str],
    dim: int,
    parts: tuple[str, ...] = (),
    there: Sequence[str] = (),
    *,
    only: bool,
    json_file: Path | None,
) -> bool:
    """Whether the features are to be made: they take little, or the user says so. there: methods that have theirs.
    only: say what they will take.

    Raises:
        OptionError: they take long, and there is nobody to ask. ModelError: the model cannot have such features.
    """
    from guda_core.attribution.gradient.feature_jobs import config_of
    from guda_core.attribution.gradient.feature_plan import make_plan
    from guda_core.data.sources.source import open_dataset

    n = len(open_dataset(service.group_set).split("train"))
    with ERR.status("Trying one pass"):
        plan = make_plan(service.model, {m: config_of(m, dim, parts).features for m in methods}, n, there)
    if only or plan.seconds > ASKED_S:
        show(plan_table(plan))
        if set(methods) - set(there):
            say(f"One pass with gradients took {plan.pass_s:.3f} s on {plan.device}.")
    if only:
        if json_file is not None:
            write_json(json_file, plan.to_json())
        return False
    if plan.seconds <= ASKED_S:
        return True
    if not sys.stdin.isatty():
        raise OptionError(
            f"Features of {n:,} pictures will take about {time_said(plan.seconds)}. To begin, add --yes. Fewer methods "
            "(--methods), fewer weights (--parts), or several at once (--workers), take less."
        )
    return typer.confirm(f"This will take about {time_said(plan.seconds)}. Begin?", err=True)


def plan_table(plan: FeaturePlan) -> Table:
    """A row for each method, and the sum."""
    title = f"What features of {plan.pictures:,} pictures will take"
    table = columned(title, "method", "passes with gradients", "time", "disk")
    for name, m in plan.methods.items():
        if name in plan.there:
            table.add_row(name, "there already", "", "")
        else:
            table.add_row(name, f"{m.gradients:,}", time_said(m.seconds), bytes_said(m.disk_bytes))
    table.add_row("encoding", "", time_said(plan.encode_s), "")
    total = sum(m.gradients for m in plan.methods.values())
    table.add_row("in all", f"{total:,}", time_said(plan.seconds), bytes_said(plan.disk_bytes))
    return table
