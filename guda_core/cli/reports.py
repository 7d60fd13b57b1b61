"""The commands that repeat a report and that work through a folder. `cli` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from guda_core.cli.terminal import EffortOption, MethodsOption, ModelOption, err, listed, out, progress_bar
from guda_core.errors import OptionError

SAID = {
    "equal": "Equal: every score is bitwise the same.",
    "within tolerance": "Within tolerance: every number is the same to one part in a thousand (or 0.001 nats).",
    "different": "Different.",
}


def replay(
    report: Annotated[Path, typer.Argument(help="A report's zip, or its report.json beside its picture.png.")],
    model: Annotated[str | None, typer.Option("--model", help="Another card than the report names.")] = None,
) -> None:
    """Compute a report again: equal, within tolerance, or different and where. Exit code 1 when different."""
    from guda_core.local import load_service
    from guda_core.reports.read import read_report
    from guda_core.reports.replay import Verdict
    from guda_core.reports.replay import replay as run

    read = read_report(report)
    service = load_service(model or read.record["model"]["id"], fall_back=False)
    verdict = None
    with progress_bar() as bar:
        task = bar.add_task("replay", note="", total=1.0)
        for item in run(read, service):
            if isinstance(item, Verdict):
                verdict = item
            else:
                bar.update(task, completed=item.progress, note=item.method)
    assert verdict is not None
    out.print(SAID[verdict.outcome], highlight=False)
    for title, changes in (
        ("What the answer is computed from:", verdict.inputs),
        ("The answer:", verdict.scores),
        ("Versions and hardware (told, not judged):", verdict.environment),
    ):
        if changes:
            out.print(title, highlight=False)
        for change in changes:
            out.print(f"  {change.sentence()}", markup=False, highlight=False)
    if verdict.outcome == "different":
        raise typer.Exit(1)


def batch(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures: PNG, JPEG or WebP.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where scores.csv, batch.json and the reports go.")],
    prompts: Annotated[Path | None, typer.Option(help="A CSV with the columns file and prompt.")] = None,
    effort: EffortOption = "standard",
    methods: MethodsOption = "guda,clip",
    model: ModelOption = None,
) -> None:
    """Attribute every picture of a folder; goes on where it was stopped. Exit code 1 when pictures were refused."""
    from guda_core.local import load_service
    from guda_core.reports.batch import Batch, BatchConfig, Summary
    from guda_core.reports.record import plain

    if not folder.is_dir():
        raise OptionError(f"There is no folder '{folder}'.")
    config = BatchConfig(effort=effort, methods=tuple(listed(methods)), prompts=prompts)
    job, summary = Batch(load_service(model, fall_back=False), folder, out_folder, config), None
    with progress_bar() as bar:
        task = bar.add_task("pictures", note="", total=len(job.files))
        for item in job.run():
            if isinstance(item, Summary):
                summary = item
            else:
                at = item.done + item.fraction * (item.state == "working")
                bar.update(task, completed=at, note=escape(plain(item.file, 40)))
    assert summary is not None
    kept = f" ({summary.kept} of them kept from an earlier run)" if summary.kept else ""
    out.print(f"Scored: {summary.finished}{kept}. Refused: {len(summary.refused)}.", highlight=False)
    for file, why in summary.refused.items():
        err.print(f"{plain(file, 255)}: {why}", markup=False, highlight=False)
    out.print(f"Written: {out_folder / 'batch.json'} and {out_folder / 'scores.csv'}", highlight=False)
    if summary.refused:
        raise typer.Exit(1)
