"""The command line, and the only place that prints. `python -m guda_core --help` explains itself."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from guda_core.cli import measures, reports
from guda_core.cli.terminal import EffortOption, MethodsOption, ModelOption, err, listed, out, show
from guda_core.cli.terminal import progress_bar as _bar
from guda_core.errors import GudaError, OptionError

if TYPE_CHECKING:
    from guda_core.records import Attribution, GroupSet

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which groups of training pictures made a diffusion model able to make this picture? A positive score means "
    "that the model explains the picture worse without the group. Scores are not shares.",
)


class _Group(TyperGroup):
    """Shows the project's own errors as one sentence, exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GudaError as e:
            err.print(f"Error: {e}", style="red", markup=False, highlight=False)
            raise typer.Exit(2) from e


@app.callback(cls=_Group)
def _main() -> None:
    from guda_core.diffusion.unet_family import quieten_libraries

    quieten_libraries()


def _follow(title: str, steps: Iterator[Any]) -> None:
    """Show a bar for an iterator of training progress."""
    with _bar() as bar:
        task = bar.add_task(title, note="", total=None)
        for p in steps:
            note = f"{p.step}/{p.steps}  loss {p.loss:.4f}  {p.rate:.0f} pictures/s"
            bar.update(task, completed=p.step, total=p.steps, note=note)


def _group_set(name: str) -> GroupSet:
    from guda_core.data.groups import load_group_set

    return load_group_set(name)


SetOption = Annotated[str, typer.Option("--set", help="Group set: a folder below style_groups/.")]


@app.command()
def groups(name: SetOption = "emoji") -> None:
    """Check a group set and list its groups."""
    gs = _group_set(name)
    table = Table(title=f"{gs.name}: {len(gs.train_objects)} objects trained on, {len(gs.held_out_objects)} held out")
    for column in ("id", "name", "author", "licence", "package", "descriptors"):
        table.add_column(column, overflow="fold")
    for g in gs.groups.values():
        package = f"{g.package}@{g.version}"
        table.add_row(g.id, g.name, g.author, g.licence, package, ", ".join(g.descriptors))
    out.print(table)


@app.command()
def data(name: SetOption = "emoji") -> None:
    """Fetch (npm) and render the training pictures into the cache folder (GUDA_CACHE)."""
    from guda_core.data.sources import iconify as pictures

    with _bar() as bar:
        task = bar.add_task("pictures", note="", total=1.0)
        path = pictures.build(_group_set(name), lambda f, s: bar.update(task, completed=f, note=s))
    out.print(f"Pictures and their hashes: {path}", highlight=False)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="clip, vae, unet, assemble, bank, or all (in that order).")] = "all",
    name: SetOption = "emoji",
    without: Annotated[str | None, typer.Option(help="unet only: leave this group out (a LOGO model).")] = None,
    seed: Annotated[int | None, typer.Option(help="unet only: another seed than the full model's.")] = None,
    assets: Annotated[Path, typer.Option(help="assemble, bank: where the finished model goes.")] = Path("assets"),
) -> None:
    """Train the embedded model. Every stage checkpoints and resumes; finished ones are skipped."""
    import torch

    from experiments.train import clip as clip_training
    from experiments.train import stages
    from experiments.train import unet as unet_training
    from experiments.train import vae as vae_training

    gs = _group_set(name)
    torch.set_flush_denormal(True)
    config = unet_training.UnetConfig()
    if seed is not None:
        config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=seed))
    unet = stages.unet_name(without, config.loop.seed)
    trainings: dict[str, tuple[str, Callable[[], Iterator[Any]]]] = {
        "clip": ("clip", lambda: stages.stage_clip(gs, clip_training.ClipConfig())),
        "vae": ("vae", lambda: stages.stage_vae(gs, vae_training.VaeConfig())),
        "unet": (unet, lambda: stages.stage_unet(gs, config, without)),
    }
    wanted = [*trainings, "assemble", "bank"] if stage == "all" else [stage]
    for s in wanted:
        if s in trainings:
            folder, start = trainings[s]
            if stages.is_done(folder):
                out.print(f"{folder}: already done ({stages.work_dir() / folder})", highlight=False)
            else:
                _follow(folder, start())
        elif s == "assemble":
            out.print(f"Written: {stages.assemble(assets, unet)}", highlight=False)
        elif s == "bank":
            stages.write_bank(gs, assets)
        else:
            raise OptionError(f"There is no stage '{s}'. Known: {', '.join(trainings)}, assemble, bank, all.")


@app.command()
def oracle(
    name: SetOption = "emoji",
    minutes: Annotated[float | None, typer.Option(help="Stop after so long, with a checkpoint.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Only list the trainings and which are done.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Make the LOGO models answer live: train, code, measure.")
    ] = False,
    groups: Annotated[str, typer.Option(help="Of --live: comma-separated group ids; default all.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Of --live. Default: assets/oracle/MODEL.")] = None,
    model: ModelOption = None,
) -> None:
    """Train the UNet again without each group (LOGO) and from second seeds: hours; stop and resume as you like."""
    import torch

    from experiments.logo import oracle_values
    from experiments.logo import trainings as trainings
    from experiments.train.unet import UnetConfig

    gs, config = _group_set(name), UnetConfig()
    if not live and (groups or folder or model):
        raise OptionError("--groups, --folder and --model are options of --live.")
    if live and status:
        raise OptionError("--status only lists; leave --live out.")
    scored = oracle_values.names(Path("assets/benchmarks"), config)
    torch.set_flush_denormal(True)
    if live:
        from experiments.benchmark import queries
        from guda_core.unlearning.run import Forgetting

        own = Forgetting(gs, model=model)
        asked = queries.read(Path("assets/benchmarks"), gs, own.model).queries[:: trainings.FIDELITY_EVERY]
        show(trainings.make_live(own, config, asked, groups=listed(groups), folder=folder, minutes=minutes))
    elif not status:
        with _bar() as bar:
            tasks: dict[str, Any] = {}
            for job, p in trainings.work(gs, config, minutes=minutes, kept=scored):
                if job.name not in tasks:
                    tasks[job.name] = bar.add_task(job.name, note="", total=p.steps)
                note = f"{p.step}/{p.steps}  loss {p.loss:.4f}  {p.rate:.0f} pictures/s"
                bar.update(tasks[job.name], completed=p.step, note=note)
    for job in trainings.queue(gs, config):
        state = "done" if job.done else "kept" if job.name in scored else "to do"
        out.print(f"{state:6}{job.name}", highlight=False)


@app.command()
def unlearn(
    groups: Annotated[str, typer.Option(help="Comma-separated group ids; default all.")] = "",
    name: SetOption = "emoji",
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
    from experiments.benchmark.queries import real_pictures
    from guda_core.paths import ASSETS
    from guda_core.unlearning import run

    config = run.config_of(
        operator=operator, selection=selection, temperature=temperature, steps=steps, lr=lr, rank=rank, lam=lam,
        empty_share=empty_share, empty_target=empty_target, blend_share=blend_share, push=push, batch=batch, seed=seed,
        whole=whole,
    )  # fmt: skip
    wanted = [g.strip() for g in groups.split(",") if g.strip()]
    job = run.Forgetting(_group_set(name), model=model, folder=folder)
    for gid in job.pending(wanted, again=again):
        _follow(f"unlearn {gid}", job.unlearn(gid, config))
    for gid in job.unmeasured(wanted):
        with _bar() as bar:
            task = bar.add_task(f"health {gid}", note="", total=1.0)
            for fraction in job.measure(gid, apart=real_pictures(ASSETS / "benchmarks", job.group_set)):
                bar.update(task, completed=fraction)
    table = Table(title="ELBO fall in nats when the group's adapter is on (mean over pictures)")
    for column in ("group", *run.KINDS.values()):
        table.add_column(column)
    for gid, h in job.health().items():
        table.add_row(gid, *[f"{h[k]['mean']:.1f}" if k in h else "-" for k in run.KINDS])
    out.print(table)


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help='For example "rocket, artistic style featuring thick black outline".')],
    out_file: Annotated[Path, typer.Option("--out", help="PNG to write.")],
    seed: Annotated[int, typer.Option(help="0 .. 2**32 - 1.")] = 0,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 2.5,
    model: ModelOption = None,
) -> None:
    """Generate a picture."""
    from PIL import Image

    from guda_core.local import load_service
    from guda_core.records import Query
    from guda_core.reports import bundle
    from guda_core.service import Step

    service = load_service(model, fall_back=False)
    with _bar() as bar:
        task = bar.add_task("generate", note="", total=steps)
        for item in service.generate(prompt=prompt, seed=seed, steps=steps, guidance=guidance):
            if isinstance(item, Step):
                bar.update(task, completed=item.done)
            elif isinstance(item, Query):
                data = io.BytesIO()
                Image.fromarray(item.pixels).save(data, format="PNG")
                bundle.write(out_file, data.getvalue())
                for sentence in item.preparation:
                    err.print(sentence, highlight=False)
    out.print(f"Written: {out_file}", highlight=False)


def _print_attribution(a: Attribution, gs: GroupSet) -> None:
    table = Table(title=f"{a.method} ({a.unit}); positive = the group contributed; not shares")
    ranked = a.ranked()
    offset = a.has_offset
    for column in ("rank", "group", "score", "95% interval", *(["given to any picture"] if offset else []), "status"):
        table.add_column(column)
    for i, g in enumerate([*ranked, *[g for g in a.groups if g not in ranked]]):
        s = a.groups[g]
        if s.score is None or s.low is None or s.high is None:
            table.add_row("-", gs.groups[g].name, "-", "-", *["-"] * offset, f"{s.status}: {s.reason}")
        else:
            form = {"nats": ".1f", "cosine": ".3f"}.get(a.unit, ".3g")
            score, low, high = (f"{v:{form}}" for v in (s.score, s.low, s.high))
            part = [f"{a.offset(g):{form}}"] if offset else []
            table.add_row(str(i + 1), gs.groups[g].name, score, f"{low} to {high}", *part, s.status)
    out.print(table)
    if a.separable is not None and a.runner_up and ranked:
        first, second = gs.groups[ranked[0]].name, gs.groups[a.runner_up].name
        ahead = f"{first} is ahead of {second}." if a.separable else f"{first} and {second} cannot be told apart."
        out.print(ahead, highlight=False)


@app.command()
def attribute(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG or WebP.")],
    prompt: Annotated[str, typer.Option(help="The caption; empty = the unconditional model.")] = "",
    effort: EffortOption = "standard",
    methods: MethodsOption = "guda,clip",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the full record.")] = None,
    report_file: Annotated[Path | None, typer.Option("--report", help="Where to write the report (a zip).")] = None,
    model: ModelOption = None,
) -> None:
    """Attribute a picture to the groups of training pictures."""
    from guda_core.local import load_service
    from guda_core.records import VERDICTS
    from guda_core.reports import bundle
    from guda_core.reports import record as report

    if not image.is_file():
        raise OptionError(f"There is no file '{image}'.")
    wanted = listed(methods)
    service = load_service(model, fall_back=False)
    query = service.prepare(image, prompt=prompt)
    for sentence in query.preparation:
        err.print(sentence, highlight=False)
    final: dict[str, Attribution] = {}
    with _bar() as bar:
        task = bar.add_task("attribute", note="", total=1.0)
        for a in service.attribute(query, methods=wanted, effort=effort):
            final[a.method] = a
            bar.update(task, completed=a.progress, note=a.method)
    scope = service.scope(query)
    out.print(f"{VERDICTS[scope.verdict]} {scope.reason}", highlight=False)
    for a in final.values():
        _print_attribution(a, service.group_set)
    answers = list(final.values())
    about: dict[str, Any] = {"settings": {"effort": effort, "methods": wanted}}
    if scope.verdict != "not assessed":
        about["scope"] = dataclasses.asdict(scope)
    if json_file is not None or report_file is not None:
        about["provenance"] = service.provenance()
    if json_file is not None:
        record = report.to_json(query, answers, service.group_set, **about)
        bundle.write(json_file, bundle.json_text(record).encode())
        out.print(f"Written: {json_file}", highlight=False)
    if report_file is not None:
        bundle.write(report_file, bundle.make(query, answers, service.group_set, **about))
        out.print(f"Written: {report_file}", highlight=False)


for command in (reports.replay, reports.batch, *measures.COMMANDS):
    app.command()(command)
