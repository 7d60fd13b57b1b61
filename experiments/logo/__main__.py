"""`python -m experiments.logo`: the queue of LOGO trainings; `--live` makes the method `logo` answer any picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.commands import MinutesOption, program
from guda_core.cli.loading import group_set_of, quieten
from guda_core.cli.terminal import HomeOption, ModelOption, SetOption, follow, listed, progress_bar, say
from guda_core.errors import OptionError
from guda_core.paths import BENCHMARKS


def logo(
    name: SetOption = None,
    home: HomeOption = None,
    minutes: MinutesOption = None,
    status: Annotated[bool, typer.Option("--status", help="Only list the trainings and which are done.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Store the models with delta compression, and measure what that loses.")
    ] = False,
    groups: Annotated[str, typer.Option(help="With --live: comma-separated group ids. Default: all.")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="With --live. Default: runs/MODEL/SET/oracle of the workspace.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Train the UNet again without each group (LOGO), and from second seeds. This takes hours; stop and resume as you
    like."""
    if not live and (groups or folder or model):
        raise OptionError("--groups, --folder and --model need --live.")
    if live and status:
        raise OptionError("--status only lists the trainings. Leave --live out.")
    quieten()

    import torch

    from experiments.logo import oracle_values, trainings
    from experiments.train.unet import UnetConfig

    gs, config = group_set_of(name, model=model), UnetConfig()
    scored = oracle_values.names(BENCHMARKS, config)
    torch.set_flush_denormal(True)
    if live:
        from experiments.benchmark import queries
        from guda_core.unlearning.run import Forgetting

        own = Forgetting(gs, model=model)
        asked = queries.read(BENCHMARKS, gs, own.model).queries[:: trainings.FIDELITY_EVERY]
        follow(trainings.make_live(own, config, asked, groups=listed(groups), folder=folder, minutes=minutes))
    elif not status:
        with progress_bar() as bar:
            tasks: dict[str, Any] = {}
            for job, p in trainings.work(gs, config, minutes=minutes, kept=scored):
                if job.name not in tasks:
                    tasks[job.name] = bar.add_task(job.name, note="", total=p.steps)
                said = f"{p.step}/{p.steps}  loss {p.loss:.4f}  {p.rate:.0f} pictures/s"
                bar.update(tasks[job.name], completed=p.step, note=said)
    for job in trainings.queue(gs, config):
        state = "done" if job.done else "kept" if job.name in scored else "to do"
        say(f"{state:6}{job.name}")


main = program(logo)

if __name__ == "__main__":
    main()
