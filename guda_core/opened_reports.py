"""Reports from Python: `read_report`, `replay` and `compare_reports`; `guda_core` exports them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from guda_core import kept_services
from guda_core.api import _model, _service
from guda_core.diffusion import cards
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.devices import chosen_device
from guda_core.diffusion.precision import DTYPES, chosen_dtype
from guda_core.given import check_callable, set_name
from guda_core.local import LocalService
from guda_core.python_words import speaks_python
from guda_core.records import GroupSet
from guda_core.reports import two_reports
from guda_core.reports.findings import Doing, Verdict
from guda_core.reports.read import Report, read_report
from guda_core.reports.replay import replay as computed_again
from guda_core.reports.restore import told
from guda_core.reports.two_reports import Compared


@speaks_python
def replay(
    report: Report | str | Path,
    model: BaseModel | str | Path | None = None,
    groups: GroupSet | str | None = None,
    *,
    progress: Callable[[Doing], object] | None = None,
) -> Verdict:
    """Compute a report again, as `guda replay` does.

    Args:
        report: the zip that `Answer.report` wrote, its report.json beside picture.png, or what `read_report` gave.
        model, groups: loaded ones, or their names; default: the card and the group set that the report names. Name the
            model yourself if it has no card here: a report is never believed about folders, files or names of the Hub.
        progress: is called with what is being done (`what`, and `progress` of that in [0, 1]). What it raises ends the
            work within one step, and is raised.

    Returns:
        The verdict. `outcome` is "equal", "within tolerance" or "different"; `scores`, `inputs`, `scope` and
        `environment` hold what changed.

    Raises:
        ReportError: the report is missing, damaged or altered, or cannot be replayed.
        GudaError: any other, such as a model that has no card here, or a method that is not offered.
    """
    check_callable(progress, "progress")
    if not isinstance(groups, GroupSet):
        set_name(groups)
    read = _read(report)
    for found in computed_again(read, _service_as_made(read, model, groups)):
        if isinstance(found, Verdict):
            return found
        if progress is not None:
            progress(found)
    raise AssertionError("a replay ends with its verdict")


@speaks_python
def compare_reports(a: Report | str | Path, b: Report | str | Path) -> Compared:
    """Set two reports side by side, as `guda compare` does. Nothing is computed again.

    Args:
        a, b: the zips of the reports, or what `read_report` gave.

    Returns:
        `said`: what changed, in sentences. `same`: part of the computation -> whether it is the same. `methods`: id ->
        a row for each group, with ranks, scores and their difference (b - a). `plain()`: all of it, for JSON.

    Raises:
        ReportError: one is missing, damaged or altered.
    """
    return two_reports.compare(told(_read(a)), told(_read(b)))


def _read(report: Report | str | Path) -> Report:
    return report if isinstance(report, Report) else read_report(report)


def _service_as_made(
    report: Report, model: BaseModel | str | Path | None, groups: GroupSet | str | None
) -> LocalService:
    """The service that a report was made with. One of a CPU is replayed in its own type."""
    record, given = report.record, _model(model)
    of = record["group_set"]["id"] if groups is None else groups
    if isinstance(given, BaseModel):
        return _service(given, of)
    name = cards.as_made(given, record["model"]["id"], "This report is")
    where = chosen_device()
    dtype = DTYPES.get(record["model"]["dtype"]) if record["hardware"]["device"] == "cpu" else None
    if dtype in (None, chosen_dtype(where) or (torch.float32 if where.type == "cpu" else None)):
        return _service(name, of)
    kept_services.let_go()
    return _service(cards.load_model(cards.chosen_card(name), dtype=dtype), of)
