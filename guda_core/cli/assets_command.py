"""`guda assets`: what a model needs besides its adapters: gradient features, the scope's rule, the feature bank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guda_core.cli.jobs_progress import CommandOnRay, RayOption, WorkersOption, done_by
from guda_core.cli.loading import group_set_of, service_of
from guda_core.cli.terminal import (
    HomeOption,
    LoraOption,
    ModelOption,
    SetOption,
    bar_of,
    commands,
    follow,
    listed,
    note,
    say,
)
from guda_core.errors import OptionError
from guda_core.libraries import set_up_libraries
from guda_core.service import check_methods

app = commands(
    "What a model needs besides its adapters, for which the training pictures are needed (guda groups fetch); and the "
    "folder to publish."
)

AgainOption = Annotated[bool, typer.Option("--again", help="Replace also what another model made.")]


@app.command(cls=CommandOnRay)
def features(
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated. Default: every method that needs features.")
    ] = None,
    model: ModelOption = None,
    lora: LoraOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    dim: Annotated[int, typer.Option(help="How many numbers a picture's gradient is projected to.")] = 4096,
    parts: Annotated[
        str | None,
        typer.Option(help="Only these weights count, by the ends of names: attn2.to_k,attn2.to_v. Default: all"),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Default: runs/MODEL/SET/features of the workspace.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Try one pass, say what all of them will take, and stop.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="With --plan: write the plan here.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Begin also where it will take more than ten minutes.")] = False,
    again: AgainOption = False,
    workers: WorkersOption = None,
    ray: RayOption = None,
) -> None:
    """Make the gradient features with which methods answer without the training pictures.

    One pass is tried first. Where all will take more than ten minutes, you are asked (--yes: not asked). With --workers
    or --ray several methods at once, without being asked. What is there already is not made again.
    """
    set_up_libraries()

    from guda_core.attribution.gradient import feature_jobs
    from guda_core.attribution.gradient.kernel import kernel_methods
    from guda_core.attribution.gradient.quantised import META
    from guda_core.attribution.run_files import check_others
    from guda_core.cli import features_plan
    from guda_core.paths import run

    if json_file is not None and not plan:
        raise OptionError("--json writes the plan: use it with --plan.")
    if plan and (workers or ray):
        raise OptionError("--plan tries a pass in this process: leave out --workers and --ray.")
    kinds = kernel_methods()
    wanted, weights = listed("--methods", methods) or list(kinds), tuple(listed("--parts", parts))
    check_methods(wanted, kinds)
    if workers or ray:
        _features_on_many(group_set, model, dim, weights, folder, wanted, workers, ray, again=again)
        return
    service = service_of(model, group_set)
    where = folder or run(service.model.card.id, service.group_set.id).features.own("")
    asked = feature_jobs.AskedFeatures(service.group_set.id, model, dim, where, weights, again)
    there = feature_jobs.seem_made(asked, service.model, service.group_set, wanted)
    for m in [] if again else wanted:
        check_others(where / m / META, service.model, "features")
    if (plan or not yes) and not features_plan.agreed(
        service, wanted, dim, asked.parts, there, only=plan, json_file=json_file
    ):
        return
    for m in there:
        say(f"There already: {where / m}")
    wanted = [m for m in wanted if m not in there]
    if not wanted:
        return
    opened = feature_jobs.opened_of(asked, service.model, service.group_set)
    for m in wanted:
        with bar_of(m) as tell:
            for fraction, *_ in feature_jobs.make(opened, m):
                tell(fraction)
        say(f"Written: {where / m}")


def _features_on_many(
    group_set: str | None,
    model: str | None,
    dim: int,
    parts: tuple[str, ...],
    folder: Path | None,
    methods: list[str],
    workers: int | None,
    ray: str | None,
    *,
    again: bool,
) -> None:
    from guda_core.attribution.gradient import feature_jobs
    from guda_core.diffusion.cards import absolute, chosen_card
    from guda_core.jobs.chosen_pool import opened

    gs, card = group_set_of(group_set, model=model), chosen_card(model).id
    where = folder and folder.absolute()
    asked = feature_jobs.AskedFeatures(gs.id, model and absolute(model), dim, where, parts, again)
    jobs = feature_jobs.feature_jobs(asked, card, methods)
    with opened(workers, ray) as pool:
        note(f"On {pool.about}.")
        for e in done_by(pool, jobs, title="features"):
            said = "Written" if e.kind == "done" else "There already"
            say(f"{said}: {e.job.claim.parent.parent / e.job.name}")


@app.command()
def introstyle(
    model: ModelOption = None,
    lora: LoraOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    block: Annotated[int, typer.Option(min=0, help="Which of the UNet's blocks on the way up.")] = 1,
    t: Annotated[float, typer.Option(min=0, max=0.999, help="Noise level, as a share of the schedule.")] = 0.025,
    folder: Annotated[Path | None, typer.Option(help="Default: runs/MODEL/SET/features of the workspace.")] = None,
    again: AgainOption = False,
) -> None:
    """Make the styles of the training pictures in the model's own features, with which IntroStyle answers."""
    set_up_libraries()

    from guda_core.attribution.introstyle import FILE, IntroStyleConfig, block_of, listed_sha256, write
    from guda_core.attribution.run_files import check_others
    from guda_core.data.captions import captioner_of
    from guda_core.data.encoded import examples_of
    from guda_core.data.sources.source import open_dataset
    from guda_core.paths import run

    service = service_of(model, group_set)
    own, gs = service.model, service.group_set
    where = folder / FILE if folder else run(own.card.id, gs.id).features.own(FILE)
    config = IntroStyleConfig(block, t)
    block_of(own, config)  # before the pictures are encoded
    if not again:
        check_others(where, own, "styles")
    pictures = listed_sha256(gs)  # first: the set may change while its pictures are encoded
    examples = examples_of(own, open_dataset(gs).split("train"), captioner_of(gs))
    with bar_of("introstyle") as tell:
        for fraction in write(where, own, examples, config, listed=pictures):
            tell(fraction)
    say(f"Written: {where}")


@app.command()
def scope(
    model: ModelOption = None,
    lora: LoraOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where scope.json goes. Default: runs/MODEL/SET of the workspace.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=24, help="Number of pictures of each kind.")] = 120,
    foreign: Annotated[
        Path | None,
        typer.Option(
            help="Folder with pictures that the model did not make: FOLDER/KIND/*.png or FOLDER/KIND/SOURCE/*.png."
        ),
    ] = None,
    again: AgainOption = False,
) -> None:
    """Make the rule that says whether the model could have made a picture, and measure how often it is wrong.

    It is fitted on the set's pictures, on pictures that the model draws, and on foreign ones: photographs that come
    with the app, what a generator draws, and those in --foreign. The more kinds and sources are in there, the better.
    What it will take is said first; Ctrl-C stops it.
    """
    set_up_libraries()

    from guda_core.attribution import scope_fit
    from guda_core.attribution.scope import FILE, read_scope
    from guda_core.cli import scope_lines
    from guda_core.local import encoder_of
    from guda_core.paths import run

    service = service_of(model, group_set)
    where = folder or run(service.model.card.id, service.group_set.id).own
    config = scope_fit.ScopeConfig(pictures=pictures, measured=max(6, pictures // 2))
    clip = service.clip or encoder_of(service.model, service.group_set)
    scope_lines.tell_cost(service.model, config, foreign)
    follow(scope_fit.run(service.model, clip, service.group_set, where, config, foreign=foreign, again=again))
    scope_lines.tell(read_scope(where / FILE, base_sha256=service.model.sha256)[1])
    say(f"Written: {where / FILE}")


@app.command()
def bank(
    model: ModelOption = None,
    lora: LoraOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    folder: Annotated[Path | None, typer.Option(help="Default: runs/MODEL/SET of the workspace.")] = None,
) -> None:
    """Make the feature bank: features of every training picture, with which similarity answers. What sees the likeness,
    the model's card says (`encoder`)."""
    set_up_libraries()

    from guda_core.amounts import time_said
    from guda_core.data.embeddings import make_bank, picture_seconds
    from guda_core.data.encoders import bank_name, open_encoder
    from guda_core.data.sources.source import open_dataset
    from guda_core.diffusion.cards import chosen_card
    from guda_core.paths import run

    gs, chosen = group_set_of(group_set, model=model), chosen_card(model)
    where = (folder or run(chosen.id, gs.id).own) / bank_name(chosen)
    encoder, dataset = open_encoder(chosen, where), open_dataset(gs)
    encoder.check_place(gs)
    n = len(items := dataset.split("train"))
    note(f"Features of {n:,} pictures will take about {time_said(n * picture_seconds(encoder, items))}.")
    with bar_of("bank") as tell:
        make_bank(encoder, dataset, tell)
    say(f"Written: {where}")


@app.command()
def card(
    model: ModelOption = None,
    lora: LoraOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    with_model: Annotated[
        bool | None,
        typer.Option(
            "--with-model/--without-model", help="Put the model's own files into the folder. Default: as before."
        ),
    ] = None,
    model_on_hub: Annotated[
        str, typer.Option(help="USER/NAME of the Hub repository where the model is, for one that is on your disk.")
    ] = "",
    licence: Annotated[
        str, typer.Option(help="What you give for adapters and features, as the Hub spells it: mit, cc-by-4.0.")
    ] = "",
) -> None:
    """Make the folder that `hf upload` publishes: adapters, groups with their credits, and the model card (README.md).

    `guda unlearn` makes it too. Training pictures never go into it.
    """
    set_up_libraries()

    from guda_core.cli.publish_lines import publish_lines
    from guda_core.diffusion.cards import chosen_card

    gs = group_set_of(group_set, model=model)
    asked = {"with_model": with_model, "on_hub": model_on_hub, "licence": licence}
    for line in publish_lines(chosen_card(model), gs, model, **asked):
        say(line)
