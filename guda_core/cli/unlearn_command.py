"""`guda unlearn`: makes a model's adapters and measures each one's health; `--plan` says beforehand what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from guda_core.amounts import bytes_said, time_said
from guda_core.cli.jobs_progress import RayOption, WorkersOption, follow_jobs
from guda_core.cli.loading import group_set_of, say_where
from guda_core.cli.terminal import (
    ERR,
    HomeOption,
    LoraOption,
    ModelOption,
    SetOption,
    bar_of,
    columned,
    listed,
    note,
    progress_bar,
    say,
    show,
    write_json,
)
from guda_core.errors import OptionError
from guda_core.libraries import set_up_libraries

if TYPE_CHECKING:
    from guda_core.jobs.local_pool import Share
    from guda_core.records import GroupSet
    from guda_core.unlearning.group_jobs import Asked, Opened
    from guda_core.unlearning.health import Health
    from guda_core.unlearning.plan import Plan
    from guda_core.unlearning.run import Forgetting


def unlearn(
    groups: Annotated[str | None, typer.Option(help="Comma-separated ids or names of groups. Default: all.")] = None,
    group_set: SetOption = None,
    model: ModelOption = None,
    lora: LoraOption = None,
    home: HomeOption = None,
    operator: Annotated[
        str | None,
        typer.Option(help="Forget loss: guda_c or esd; for a model without prompts: retrack or esd_fine_tuned."),
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
    seed: Annotated[int | None, typer.Option(help="Seed of all that is drawn at random.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Fine-tune the whole network, not a LoRA.")] = False,
    pass_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures of one pass. Default: as many as memory allows.")
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing", help="Less memory, a third more time. Default: from 512 px on."
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Default: runs/MODEL/SET/adapters of the workspace.")] = None,
    again: Annotated[
        bool,
        typer.Option(
            help="Recompute adapters that are there already, each time: after a stop, name what is left with --groups."
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Make one step, say what all will take (also with --workers), and stop."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="With --plan: write the plan here.")] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Instant adapters (UCE, seconds for all) of groups that have none yet.")
    ] = False,
    workers: WorkersOption = None,
    ray: RayOption = None,
) -> None:
    """Unlearn groups from the full model, each as a LoRA adapter, and measure each adapter's health.

    Stop and start again as you like. An adapter that was made with other settings is recomputed. With --workers or
    --ray several groups are unlearned at once.
    """
    set_up_libraries()

    from guda_core.unlearning.forget import FORGET_LOSSES
    from guda_core.unlearning.group_jobs import Asked

    changes: dict[str, Any] = {
        "selection": selection, "steps": steps, "lr": lr, "rank": rank, "lam": lam, "empty_share": empty_share,
        "batch": batch, "seed": seed, "whole": whole or None,
    }  # fmt: skip
    if json_file is not None and not plan:
        raise OptionError("--json writes the plan: use it with --plan.")
    if plan and ray:
        raise OptionError("--plan looks at no cluster. Leave out --ray, and name the jobs at once with --workers.")
    FORGET_LOSSES.find(operator or "guda_c")  # before the model is loaded
    others = (plan or None, workers, ray, operator, pass_size, checkpointing, *changes.values())
    if draft and any(v is not None for v in others):
        raise OptionError("--draft goes with --groups, --set, --model, --folder and --again alone.")
    gs = group_set_of(group_set, model=model)
    asked = Asked(
        gs.id, model, folder, tuple(gs.ids(listed("--groups", groups))), operator, tuple(sorted(changes.items())),
        pass_size, checkpointing, again,
    )  # fmt: skip
    if draft:
        _draft(asked)
    elif plan:
        _only_plan(asked, workers, json_file)
    else:
        _unlearn(asked, gs, workers, ray)


def _draft(asked: Asked) -> None:
    from guda_core.cli import draft_command

    draft_command.draft(_opened(asked).forgetting, asked.groups, again=asked.again)


def _only_plan(asked: Asked, workers: int | None, json_file: Path | None) -> None:
    share = _shared(workers) if workers else None
    opened = _opened(asked)
    job, config = opened.forgetting, opened.config
    pending = job.pending(asked.groups, config=config, again=asked.again)
    if not asked.again:
        job.check_others(pending)
    _tell_replaced(job, pending, config)
    others = [g for g in opened.health.unmeasured(asked.groups) if g not in pending]
    _plan(job, opened.health, pending, config, json_file, share, others)


def _unlearn(asked: Asked, group_set: GroupSet, workers: int | None, ray: str | None) -> None:
    """Make the adapters, tell how much each forgot, and make the folder to publish. What failed by workers is raised
    once the others are told."""
    from guda_core import paths
    from guda_core.cli.publish_lines import publish_lines
    from guda_core.diffusion.cards import chosen_card
    from guda_core.jobs.chosen_pool import opened
    from guda_core.unlearning.group_jobs import work_by
    from guda_core.unlearning.health import read_all

    failed = None
    if workers or ray:  # this process loads no model then: it hands out and tells
        with opened(workers, ray) as pool:
            note(f"On {pool.about}.")
            failed = work_by(asked, pool, follow_jobs, note)
    else:
        here = _opened(asked)
        pending = here.forgetting.begin(asked.groups, config=here.config, again=asked.again)
        _tell_replaced(here.forgetting, pending, here.config)
        _make(here.forgetting, pending, here.config, again=asked.again)
        _measure(here.health, asked.groups)
    card = chosen_card(asked.model)
    where = paths.run(card.id, group_set.id).adapters if asked.folder is None else paths.Layers((asked.folder,))
    _tell_health(read_all(where, group_set.groups), group_set)
    if failed is not None:
        raise failed
    if asked.folder is None and paths.home() != paths.ASSETS:
        for line in publish_lines(card, group_set, asked.model):
            say(line)


def _opened(asked: Asked) -> Opened:
    from guda_core.unlearning.group_jobs import open_asked

    with ERR.status("Loading the model"):
        opened = open_asked(asked)
    say_where(opened.forgetting.model)
    return opened


def _tell_health(found: Mapping[str, Mapping[str, Any]], group_set: GroupSet) -> None:
    """A row for each adapter, a column for each kind of pictures; and which forgot nothing."""
    from guda_core.unlearning.adapter_files import NOTHING_FORGOTTEN, forgot_nothing
    from guda_core.unlearning.health import KINDS

    title = "Mean ELBO drop in nats when the group's adapter is on, by kind of picture"
    table = columned(title, "group", *KINDS.values())
    for gid, h in found.items():
        table.add_row(gid, *[f"{h[k]['mean']:.1f}" if k in h else "-" for k in KINDS])
    show(table)
    if kept := [group_set.groups[gid].name for gid, h in found.items() if forgot_nothing(h)]:
        say(f"Warning: {NOTHING_FORGOTTEN.format(which=', '.join(kept))}")


def _tell_replaced(job: Forgetting, pending: list[str], config: Any) -> None:
    for said in job.replaced(pending, config):
        note(said)


def _make(job: Forgetting, pending: list[str], config: Any, *, again: bool = False) -> None:
    """Unlearn the groups: a bar for the pictures, one a group in steps, and one of all in passes of the network."""
    if not pending:
        return
    with progress_bar() as bar:
        pictures = bar.add_task("encode pictures", note="", total=1.0)
        for fraction in job.encoding():
            bar.update(pictures, completed=fraction)
        bar.update(pictures, completed=1.0)
        costs = job.costs(pending, config)
        everything = bar.add_task("all groups", note="", total=sum(costs.values()))
        done = 0
        for gid in pending:
            task = bar.add_task(f"unlearn {gid}", note="", total=None)
            for p in job.unlearn(gid, config, again=again):
                bar.update(task, completed=p.step, total=p.steps, note=str(p))
                if not p.note:
                    bar.update(everything, completed=done + costs[gid] * p.step / p.steps)
            done += costs[gid]


def _measure(measured: Health, wanted: Sequence[str]) -> None:
    for gid in measured.unmeasured(wanted):
        with bar_of(f"health {gid}") as tell:
            for fraction in measured.measure(gid):
                tell(fraction)


def _shared(workers: int) -> Share:
    """How workers will share this machine; from here on this process has as many threads as one of them."""
    import torch

    from guda_core.jobs.local_pool import share_of

    share = share_of(workers)
    torch.set_num_threads(share.threads)
    return share


def _plan(
    job: Forgetting,
    measured: Health,
    pending: list[str],
    config: Any,
    file: Path | None,
    share: Share | None = None,
    others: Sequence[str] = (),
) -> None:
    """others: groups whose adapter is there, and whose health is still to be measured."""
    found = job.plan(pending, config, measured.passes([*pending, *others]))
    if share is not None:
        found = dataclasses.replace(found, share=dataclasses.asdict(share), whole_s=_whole(found, share))
    if found.groups:
        _tell_plan(found, share)
    else:
        say("Nothing to do: every adapter is there and was made with these settings.")
    if file is not None:
        write_json(file, found.to_json())


def _tell_plan(plan: Plan, share: Share | None) -> None:
    show(_plan_table(plan))
    mode = "with checkpointing" if plan.memory["checkpointing"] else "without checkpointing"
    if others := [g for g, of in plan.groups.items() if not of.cost.gradients]:
        say(f"Only the health is still to be measured of: {', '.join(others)}.")
    if plan.step.pictures:
        say(
            f"One step took {plan.step.seconds:.2f} s on {plan.device} in {plan.dtype}, {plan.step.pictures} pictures "
            f"a pass, {mode}. Peak memory {bytes_said(plan.step.peak_bytes)}."
        )
    if share is not None and plan.whole_s is not None:
        each = "a GPU each" if share.on_gpus else f"CPU threads of each: {share.threads}"
        say(
            f"With --workers {share.workers} on this machine ({each}): about {time_said(plan.whole_s)} from start to "
            "end, and the time in which each worker loads the model. Each worker needs that memory."
        )


def _whole(plan: Plan, share: Share) -> float:
    """Seconds from start to end: one worker encodes, then they share out the groups."""
    return plan.encode_s + share.seconds([g.seconds for g in plan.groups.values()])


def _plan_table(plan: Plan) -> Table:
    title = "What unlearning will take"
    table = columned(title, "group", "forward passes", "with gradients", "to measure it", "time", "disk")
    for gid, g in plan.groups.items():
        counts = (f"{n:,}" for n in (g.cost.forward, g.cost.gradients, g.health))
        table.add_row(gid, *counts, time_said(g.seconds), bytes_said(g.disk_bytes))
    table.add_row("encoding, checkpoint", "", "", "", time_said(plan.encode_s), bytes_said(plan.kept_bytes))
    if plan.pixel_bytes:
        table.add_row("pixels, in a temporary file", "", "", "", "", bytes_said(plan.pixel_bytes))
    of = plan.groups.values()
    sums = (sum(g.cost.forward for g in of), sum(g.cost.gradients for g in of), sum(g.health for g in of))
    table.add_row("in all", *[f"{n:,}" for n in sums], time_said(plan.seconds), bytes_said(plan.disk_bytes))
    return table
