"""`guda unlearn`: makes a model's adapters and measures each one's health."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from guda_core.cli.loading import group_set_of, quieten
from guda_core.cli.terminal import (
    HomeOption,
    LoraOption,
    ModelOption,
    SetOption,
    follow_steps,
    listed,
    progress_bar,
    show,
)


def unlearn(
    groups: Annotated[str, typer.Option(help="Comma-separated group ids. Default: all.")] = "",
    group_set: SetOption = None,
    model: ModelOption = None,
    lora: LoraOption = None,
    home: HomeOption = None,
    operator: Annotated[
        str | None, typer.Option(help="Forget loss: guda_c or esd; for a model without prompts: retrack.")
    ] = None,
    selection: Annotated[
        str | None, typer.Option(help="How the anchor's group is drawn: uniform, weighted or removed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA.")] = None,
    lam: Annotated[float | None, typer.Option(help="Weight of the preserve loss.")] = None,
    empty_share: Annotated[float | None, typer.Option(help="Share of pictures under the empty prompt.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Forgotten pictures a step, and as many retained ones.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Fine-tune the whole network, not a LoRA.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Default: runs/MODEL/SET/adapters of the workspace.")] = None,
    again: Annotated[bool, typer.Option(help="Recompute adapters that are there already.")] = False,
) -> None:
    """Unlearn groups from the full model, each as a LoRA adapter, and measure each adapter's health.

    Stop and start again as you like. An adapter that was made with other settings is recomputed.
    """
    quieten()

    from guda_core.data.reserved import reserved
    from guda_core.paths import BENCHMARKS
    from guda_core.unlearning import health, run
    from guda_core.unlearning.forget import FORGET_LOSSES, config_of

    FORGET_LOSSES.find(operator or "guda_c")  # before the model is loaded
    wanted = listed(groups)
    job = run.Forgetting(group_set_of(group_set, model=model), model=model, folder=folder)
    config = config_of(
        operator or job.default_config().operator, selection=selection, steps=steps, lr=lr, rank=rank, lam=lam,
        empty_share=empty_share, batch=batch, seed=seed, whole=whole or None, targets=job.model.lora_targets,
    )  # fmt: skip
    for gid in job.pending(wanted, config=config, again=again):
        follow_steps(f"unlearn {gid}", job.unlearn(gid, config))
    measured = health.Health(job, apart=reserved(BENCHMARKS / "queries.json", job.group_set))
    for gid in measured.unmeasured(wanted):
        with progress_bar() as bar:
            task = bar.add_task(f"health {gid}", note="", total=1.0)
            for fraction in measured.measure(gid):
                bar.update(task, completed=fraction)
    table = Table(title="ELBO drop in nats when the group's adapter is on (mean over pictures)")
    for column in ("group", *health.KINDS.values()):
        table.add_column(column)
    for gid, h in measured.read().items():
        table.add_row(gid, *[f"{h[k]['mean']:.1f}" if k in h else "-" for k in health.KINDS])
    show(table)
