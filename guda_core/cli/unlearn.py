"""`guda unlearn`: makes a model's adapters and measures each one's health."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from guda_core.cli.loading import group_set_of, quieten
from guda_core.cli.terminal import ModelOption, SetOption, follow_steps, listed, progress_bar, show


def unlearn(
    groups: Annotated[str, typer.Option(help="Comma-separated group ids; default all.")] = "",
    name: SetOption = None,
    model: ModelOption = None,
    operator: Annotated[str, typer.Option(help="guda_c, esd or ascent.")] = "guda_c",
    selection: Annotated[
        str | None,
        typer.Option(help="Anchor style: uniform (default), weighted, removed, posterior or posterior_captions."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the posterior, in nats.")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the LoRA.")] = None,
    lam: Annotated[float | None, typer.Option(help="Weight of the preserve loss.")] = None,
    empty_share: Annotated[float | None, typer.Option(help="Share of pictures under the empty prompt.")] = None,
    empty_target: Annotated[
        str | None, typer.Option(help="Of the forgotten ones among them: anchor, shift or between.")
    ] = None,
    blend_share: Annotated[float | None, typer.Option(help="Share of captions that blend two styles.")] = None,
    push: Annotated[float | None, typer.Option(help="How far the target lies beyond the anchor.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Forgotten, and as many retained, pictures a step.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Fine-tune the whole denoiser, not a LoRA.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Default: assets/adapters/<model>.")] = None,
    again: Annotated[bool, typer.Option(help="Also make adapters again that are there and fit.")] = False,
) -> None:
    """Unlearn groups from the full model, each as a LoRA adapter, and measure each adapter's health."""
    quieten()

    from guda_core.data.reserved import reserved
    from guda_core.paths import BENCHMARKS
    from guda_core.unlearning import run

    config = run.config_of(
        operator=operator, selection=selection, temperature=temperature, steps=steps, lr=lr, rank=rank, lam=lam,
        empty_share=empty_share, empty_target=empty_target, blend_share=blend_share, push=push, batch=batch, seed=seed,
        whole=whole,
    )  # fmt: skip
    wanted = listed(groups)
    job = run.Forgetting(group_set_of(name), model=model, folder=folder)
    for gid in job.pending(wanted, again=again):
        follow_steps(f"unlearn {gid}", job.unlearn(gid, config))
    for gid in job.unmeasured(wanted):
        with progress_bar() as bar:
            task = bar.add_task(f"health {gid}", note="", total=1.0)
            for fraction in job.measure(gid, apart=reserved(BENCHMARKS / "queries.json", job.group_set)):
                bar.update(task, completed=fraction)
    table = Table(title="ELBO fall in nats when the group's adapter is on (mean over pictures)")
    for column in ("group", *run.KINDS.values()):
        table.add_column(column)
    for gid, h in job.health().items():
        table.add_row(gid, *[f"{h[k]['mean']:.1f}" if k in h else "-" for k in run.KINDS])
    show(table)
