"""`python -m experiments.logo`: the oracle.

Without --model: the queue of LOGO trainings of the embedded model, from scratch; `--live` makes the method `logo`
answer any picture. With --model: a model of your own is fine-tuned on the set, and again without each group
(`own_models`), and every method is compared with that (`experiments.benchmark.own_run`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import MinutesOption, program
from guda_core.cli.jobs_progress import CommandOnRay, RayOption, WorkersOption
from guda_core.cli.loading import group_set_of
from guda_core.cli.terminal import HomeOption, SetOption, follow, listed, say
from guda_core.errors import OptionError
from guda_core.libraries import set_up_libraries
from guda_core.paths import BENCHMARKS
from guda_core.work_queue import deadline

if TYPE_CHECKING:
    from experiments.logo.oracle_jobs import AskedOracle


def logo(
    name: SetOption = None,
    home: HomeOption = None,
    minutes: MinutesOption = None,
    status: Annotated[bool, typer.Option("--status", help="Only list the trainings and which are done.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Store the models with delta compression, and measure what that loses.")
    ] = False,
    groups: Annotated[
        str | None, typer.Option(help="With --live or --model: comma-separated group ids. Default: all.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="With --live. Default: runs/MODEL/SET/oracle of the workspace.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model to fine-tune: a card, folder, file or Hub id.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="With --model: train the whole network, no LoRA.")] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="With --model: rank of the LoRA. Default: 16.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="With --model: steps of each training.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="With --model: pictures of a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="With --model: peak learning rate.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="With --model: a seed, or two (3,4): the second is for the ceiling. Default: 3."),
    ] = None,
    as_name: Annotated[
        str | None, typer.Option("--name", help="With --model: the fine-tuned model's name. Default: MODEL-SET.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="With --model: make a step, say what all will take, and stop.")
    ] = False,
    workers: WorkersOption = None,
    ray: RayOption = None,
) -> None:
    """Train the model again without each group (LOGO). This takes hours; stop and resume as you like.

    Without --model it is the embedded one, from scratch. With --model that model is fine-tuned on the set's pictures,
    and again without each group; then every method is compared with this oracle.
    """
    of_own = {"--rank": rank, "--steps": steps, "--batch": batch, "--lr": lr, "--name": as_name}
    of_own |= {"--workers": workers, "--ray": ray, "--plan": plan or None}
    given = [k for k, v in {**of_own, "--whole": whole or None, "--seeds": seeds}.items() if v is not None]
    if given and (model is None or live):
        raise OptionError(f"{given[0]} needs --model, without --live.")
    if not live and (folder or (groups is not None and not model)):
        raise OptionError("--folder and --groups need --live; --groups also goes with --model.")
    if live and status:
        raise OptionError("--status only lists the trainings. Leave --live out.")
    if plan and (status or workers or ray or minutes is not None):
        raise OptionError("--plan makes a step in this process and stops: leave out --status, --minutes and workers.")
    if (workers or ray) and (status or minutes is not None):
        raise OptionError("--workers and --ray go without --status and --minutes. Stop such a run with Ctrl-C.")
    set_up_libraries()
    if model is not None and not live:
        changes = {"whole": whole, "rank": rank, "steps": steps, "batch": batch, "lr": lr}
        asked = _asked(name, model, changes, seeds=seeds, groups=groups, as_name=as_name)
        _own(asked, minutes=minutes, status=status, plan=plan, workers=workers, ray=ray)
        return
    _embedded(name, model, minutes=minutes, status=status, live=live, groups=groups, folder=folder)


def _asked(
    name: str | None, model: str, changes: dict[str, Any], *, seeds: str | None, groups: str | None, as_name: str | None
) -> AskedOracle:
    from experiments.logo.oracle_jobs import AskedOracle

    wanted = tuple(int(s) if s.isdecimal() else -1 for s in listed("--seeds", seeds))
    if -1 in wanted:
        raise OptionError("--seeds takes whole numbers, for example --seeds 3,4.")
    gs = group_set_of(name, model=model)
    return AskedOracle(gs.id, model, tuple(sorted(changes.items())), wanted, tuple(listed("--groups", groups)), as_name)


def _own(
    asked: AskedOracle, *, minutes: float | None, status: bool, plan: bool, workers: int | None, ray: str | None
) -> None:
    """The oracle of a model of one's own."""
    from experiments.logo import oracle_jobs, own_command
    from guda_core.diffusion.cards import absolute, called

    deadline(minutes)  # refuses what is no time before anything is begun
    if workers or ray:
        oracle_jobs.train_on_many(replace(asked, model=absolute(asked.model)), workers=workers, ray=ray)
    own = oracle_jobs.open_asked(asked)
    if plan:
        own_command.plan(own)
    elif status:
        own_command.status(own)
    elif own_command.train(own, minutes):
        of = called(own.base.card, own.base.group_set.id)
        own_command.tell(own, own_command.compare(own, f"python -m experiments.logo {of}"))
    else:
        own_command.status(own)
        say("Run the same command again to go on. Other processes may have trainings in hand.")


def _embedded(
    name: str | None,
    model: str | None,
    *,
    minutes: float | None,
    status: bool,
    live: bool,
    groups: str | None,
    folder: Path | None,
) -> None:
    """The oracle of the embedded model."""
    import torch

    from experiments.logo import oracle_values, own_command, trainings
    from experiments.train.unet import UnetConfig

    gs, config = group_set_of(name, model=model), UnetConfig()
    scored = oracle_values.names(BENCHMARKS, config)
    torch.set_flush_denormal(True)
    if live:
        from experiments.benchmark import queries
        from guda_core.unlearning.run import Forgetting

        own = Forgetting(gs, model=model)
        asked = queries.read(BENCHMARKS, gs, own.model).queries[:: trainings.FIDELITY_EVERY]
        follow(
            trainings.make_live(own, config, asked, groups=listed("--groups", groups), folder=folder, minutes=minutes)
        )
    elif not status:
        own_command.follow_jobs(trainings.work(gs, config, minutes=minutes, kept=scored))
    for job in trainings.queue(gs, config):
        state = "done" if job.done else "kept" if job.name in scored else "to do"
        say(f"{state:6}{job.name}")


main = program(logo, cls=CommandOnRay)

if __name__ == "__main__":
    main()
