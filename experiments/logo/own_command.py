"""What `python -m experiments.logo --model M` does: train, ask, compare, and say what is next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from guda_core import paths
from guda_core.cli.terminal import follow, progress_bar, say, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from experiments.logo.own_models import OwnOracle
    from guda_core.unlearning.loop import Progress

METRICS = {"top1": "Top-1", "variation": "variation"}


def follow_jobs(works: Iterator[tuple[Any, Progress]]) -> None:
    """A bar for every training of an iterator of (job, progress)."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}
        for job, p in works:
            if job.name not in tasks:
                tasks[job.name] = bar.add_task(job.name, note="", total=p.steps)
            bar.update(tasks[job.name], completed=p.step, note=str(p))


def train(own: OwnOracle, minutes: float | None = None) -> bool:
    """Work through the trainings with a bar each; whether all are done now."""
    follow_jobs(own.work(minutes))
    return not own.missing()


def status(own: OwnOracle) -> None:
    """Say which trainings are done."""
    for job in own.queue():
        say(f"{'done' if own.is_done(job) else 'to do':6}{job.name}")


def plan(own: OwnOracle) -> None:
    """Say what is left to do and what it will take, by steps that are really made."""
    from experiments.benchmark.own_run import queries_for
    from experiments.benchmark.scores import ScoreConfig
    from experiments.logo.own_plan import make_plan, plan_table
    from experiments.logo.whole_way import Way

    queries = queries_for(own.base.model.card)
    show(plan_table(make_plan(own, Way("", {}), queries, ScoreConfig())))
    say(f"Unlearning is a command of its own: `guda unlearn --model {own.name}`, between training and comparing.")


def compare(own: OwnOracle, command: str) -> Path:
    """Score everything and write queries, scores, calibration and table; returns the table's file."""
    from experiments.benchmark.own_run import TABLE
    from experiments.logo.whole_way import Way, compared

    follow(compared(own, Way(command, {})))
    return paths.run(own.name, own.base.group_set.id).own / "logo" / TABLE


def tell(own: OwnOracle, table: Path) -> None:
    """The rows of the report half, the offset's weight, and what is missing yet."""
    record = json.loads(table.read_text(encoding="utf-8"))
    show(agreement_table(record))
    told, where = record["calibration"], f"--model {own.name} --set {own.base.group_set.id}"
    if not any(r["method"] == "guda" for r in record["rows"]):
        say(f"GUDA is not compared yet. Run `guda unlearn {where}`, then this command again.")
    elif "offset_weight" in told and set(record["groups"]) != set(own.base.group_set.groups):
        say(
            f"By these groups alone the offset's weight would be {told['offset_weight']} ({told['queries']} queries). "
            "calibration.json takes all groups: it was not written."
        )
    elif "offset_weight" in told:
        say(f"The offset's weight is {told['offset_weight']}, fitted to {told['queries']} queries.")
    else:
        say(f"There is no calibration, so GUDA's score is the paper's. {told['none']}")
    say(f"Written: {table}")
    say(f"The model is '{own.name}'. Ask it: guda app {where}")


def agreement_table(record: dict[str, Any]) -> Table:
    """Top-1 and variation with 95% intervals over pictures, by method and query set, over the half for the report."""
    rows = record["rows_report"] or record["rows"]
    title = "Agreement with the oracle (half of the queries; 95% intervals over pictures)"
    table = Table("method", "query set", "queries", *METRICS.values(), title=title)
    for r in rows:
        cells = [f"{r[m]['value']:.2f} ({r[m]['low']:.2f} to {r[m]['high']:.2f})" for m in METRICS]
        table.add_row(r["method"], r["query_set"], str(r["n"]), *cells)
    return table
