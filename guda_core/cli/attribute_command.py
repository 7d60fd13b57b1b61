"""`guda attribute`: scores one picture, several, or a folder of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guda_core.amounts import score_said
from guda_core.cli.file_prompts import tell_prompt, tell_prompts
from guda_core.cli.loading import service_of
from guda_core.cli.terminal import (
    DtypeOption,
    EffortOption,
    HomeOption,
    LoraOption,
    MethodsOption,
    ModelOption,
    SetOption,
    bar_of,
    columned,
    listed,
    note,
    progress_bar,
    say,
    show,
    write,
)
from guda_core.errors import OptionError
from guda_core.paths import is_folder, is_there
from guda_core.service import NO_MAPS, NO_NEAR, NO_STRIP, Beside, default_methods, scope_or_why

if TYPE_CHECKING:
    from guda_core.local import LocalService
    from guda_core.picture_records import Shown
    from guda_core.records import Attribution, GroupSet, MethodInfo, Query

SIGNS = {"nats": "positive = the group contributed"}  # by unit
NO_SIGN = "compare them with each other alone"  # likeness, kernels and standard scores have no 0 that means that


def attribute(
    names: Annotated[
        list[str],
        typer.Argument(metavar="PATHS...", help="Pictures (PNG, JPEG, WebP, AVIF, TIFF, HEIC), or folders of them."),
    ],
    prompt: Annotated[str, typer.Option(help="The caption. Empty: the unconditional model.")] = "",
    effort: EffortOption = "standard",
    methods: MethodsOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="For one picture: write the record here.")] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="For one picture: write the report bundle (a zip) here.")
    ] = None,
    out_folder: Annotated[
        str | None,
        typer.Option("--out", help="For many: the folder for scores.csv, batch.json and their reports."),
    ] = None,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="With --out: any number of pictures into a table of Parquet parts, without reports. PATHS may be "
            "URLs, a CSV or Parquet table with the columns file and text (or caption, prompt), or a data set "
            "(hub:USER/NAME).",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="With --table: worker processes of this machine, a GPU each where there are GPUs."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="With --table: on a Ray cluster: HOST:PORT, auto or local."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="With --out: a CSV with the columns file and prompt, instead of --prompt.")
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="With --report: also draw it again without each group, into a PNG beside it."),
    ] = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="With --report: also map where the scores come from, into a PNG beside it.")
    ] = False,
    original: Annotated[
        bool,
        typer.Option("--original", help="With --report: also put the picture's file in as it is, with its metadata."),
    ] = False,
    model: ModelOption = None,
    lora: LoraOption = None,
    dtype: DtypeOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
) -> None:
    """Attribute pictures to the groups of training pictures.

    With --out, every picture gets a report, and one table holds all scores. A stopped run goes on where it stopped. A
    picture that cannot be read is skipped; the exit code is then 1. With --table, scores alone are written, for up to
    millions of pictures; `guda results` asks them and makes reports.
    """
    wanted = listed("--methods", methods)
    files, in_report = (json_file, report_file), pictures or maps or original
    _check(out_folder, files, in_report, prompts, prompt, table=table, many=workers is not None or ray is not None)
    if table:
        assert out_folder is not None
        from guda_core.cli.table_lines import make_table
        from guda_core.named import Named
        from guda_core.scoring.table_run import Options

        options = Options(effort, tuple(wanted), prompt)
        make_table(names, out_folder, Named(model, group_set), options, workers=workers, ray=ray)
        return
    paths = [Path(name) for name in names]
    _check_paths(paths, out_folder, one=any(files))
    if out_folder is not None:
        config = (effort, wanted, prompt, prompts)
        _many(lambda: service_of(model, group_set), paths, Path(out_folder), *config)
        return
    service = service_of(model, group_set)
    asked = wanted or default_methods(service.methods())
    if pictures or maps:
        service.with_models(asked)  # refuses before anything is computed
    for path in paths:
        if len(paths) > 1:
            say(f"{path}:")
        more: dict[str, Any] = {
            "json_file": json_file,
            "report_file": report_file,
            "wanted": (pictures, maps),
            "original": original,
        }
        _one(service, path, prompt, effort, asked, **more)


def _check(
    out_folder: str | None,
    files: tuple[Path | None, Path | None],
    more: bool,
    prompts: Path | None,
    prompt: str,
    *,
    table: bool,
    many: bool,
) -> None:
    """Do these options go together? files: of --json and --report. more: that something is put into the report, or
    beside it. many: --workers or --ray. Raises OptionError: they do not."""
    if table:
        if out_folder is None or any(files) or prompts or more:
            raise OptionError(
                "--table goes with --out, and without --json, --report, --prompts, --pictures, --maps and --original. "
                "For prompts, name a CSV or Parquet file with the columns file and prompt in place of the folder."
            )
        return
    if many:
        raise OptionError("--workers and --ray go with --table.")
    if more and files[1] is None:
        raise OptionError(
            "--pictures, --maps and --original are for one picture with a report. Say where it goes with --report."
        )
    if out_folder is None:
        if prompts is not None:
            raise OptionError("--prompts goes with --out. Name the folder for the results with --out.")
        return
    if any(files):
        raise OptionError("--json and --report are for one picture. With --out, every picture gets a report.")
    if Path(out_folder).suffix.lower() in (".zip", ".json") and not is_folder(Path(out_folder)):
        raise OptionError(
            f"--out is a folder, and '{out_folder}' looks like a file. For one picture: --report FILE.zip or "
            "--json FILE.json."
        )
    if prompt and prompts is not None:
        raise OptionError("Give --prompt for all pictures or --prompts with one for each, not both.")


def _check_paths(paths: list[Path], out_folder: str | None, *, one: bool) -> None:
    """Are the pictures there, and is there a place for what is made of them? one: what is made is of one picture.
    Raises OptionError."""
    for path in paths:
        if not is_there(path):
            raise OptionError(f"There is no file '{path}'.")
    if out_folder is None and any(is_folder(p) for p in paths):
        raise OptionError("A folder of pictures needs a folder for the results. Name it with --out.")
    if len(paths) > 1 and one:
        raise OptionError("--json and --report are for one picture. For several, name a folder with --out.")


def _one(
    service: LocalService,
    path: Path,
    prompt: str,
    effort: str,
    methods: list[str],
    *,
    json_file: Path | None,
    report_file: Path | None,
    wanted: tuple[bool, bool],
    original: bool,
) -> None:
    """Score one picture, show the answer, and write what was asked for."""
    from guda_core.data.images import read_file
    from guda_core.records import VERDICTS

    data, known = read_file(path), service.methods()
    query = service.prepare(data, prompt=prompt)
    for sentence in query.preparation:
        note(sentence)
    if not query.prompt:
        tell_prompt(data)
    final: dict[str, Attribution] = {}
    with bar_of("attribute") as tell:
        for a in service.attribute(query, methods=methods, effort=effort):
            final[a.method] = a
            tell(a.progress, known[a.method].name)
    scope = scope_or_why(service, query)
    say(f"{VERDICTS[scope.verdict]} {scope.reason}")
    if scope.verdict == "out of scope":
        note("The scores are in --json and --report. About such a picture they say little.")
    else:
        for a in final.values():
            _show_answer(a, service.group_set, known[a.method])
        for said in service.provenance().said_of(methods):
            note(said)
    if json_file is None and report_file is None:
        return
    about: dict[str, Any] = {"settings": {"effort": effort, "methods": methods}, "scope": scope.plain()}
    about["provenance"] = service.provenance()
    if report_file is not None and any(wanted):
        beside = Beside(note)
        shown = _shown(service, query, final, report_file, wanted, beside)
        if scope.verdict != "out of scope":  # else no group is named
            _tell(shown, service.group_set)
            shown = beside.made(lambda: _alike(service, query, shown), shown, NO_NEAR)
        about["shown"] = dataclasses.replace(shown, missing=beside.missing)
    if original:
        about["original"] = data
    _write(query, list(final.values()), service.group_set, about, json_file, report_file)


def _shown(
    service: LocalService,
    query: Query,
    final: dict[str, Attribution],
    report: Path,
    wanted: tuple[bool, bool],
    beside: Beside,
) -> Shown:
    """Make strip and maps by the first method that can, and write them beside the report."""
    from guda_core.reports import figures, picture_files

    method = service.with_models(list(final))[0]
    strip = beside.made(lambda: service.strip(query, method), None, NO_STRIP) if wanted[0] else None
    found = beside.made(lambda: service.place_maps(query, method), {}, NO_MAPS) if wanted[1] else {}
    shown = picture_files.shown(query.pixels, strip, final[method].ranked(), found)
    for name, data in figures.sheets(shown, service.group_set).items():
        path = report.with_name(f"{report.stem}-{name}")
        write(path, data)
    return shown


def _tell(shown: Shown, gs: GroupSet) -> None:
    """What strip and maps say, in lines."""
    for t in shown.where:
        if not t.share:
            note(f"{gs.groups[t.group].name}: the map says nothing.")
    if shown.strip is not None:
        say("How far from the full model's picture it draws without a group (RMS in its latents; 0: the same):")
        for g in shown.strip.ranked():
            say(f"  {gs.groups[g].name}: {shown.strip.distances[g]:.2f}")


def _alike(service: LocalService, query: Query, shown: Shown) -> Shown:
    """The pictures with the training pictures most alike, which are told."""
    near = service.nearest(query)
    for n in near:
        by = service.group_set.groups[n.group].name
        say(f"Looks like {n.name or 'a picture'} by {by}: {n.cosine:.2f} (likeness, not influence).")
    return dataclasses.replace(shown, near=near)


def _write(
    query: Query,
    answers: list[Attribution],
    group_set: GroupSet,
    about: dict[str, Any],
    json_file: Path | None,
    report_file: Path | None,
) -> None:
    from guda_core.errors import ReportError
    from guda_core.reports import bundle
    from guda_core.reports.record import to_json

    for_zip = {k: about.pop(k, None) for k in ("shown", "original")}
    if json_file is not None:
        write(json_file, bundle.json_text(to_json(query, answers, group_set, **about)).encode())
    if report_file is not None:
        try:
            made = bundle.make(query, answers, group_set, **about, **for_zip)
        except ReportError as e:
            if str(e) != bundle.TOO_LARGE:
                raise
            note(f"{e} The report was made without it.")
            made = bundle.make(query, answers, group_set, **about, shown=for_zip["shown"])
        write(report_file, made)


def _show_answer(a: Attribution, gs: GroupSet, method: MethodInfo) -> None:
    """One method's table, best group first, and what its scores mean."""
    from guda_core.answers.verdict import lead_said

    ranked = a.ranked()
    offset = a.has_offset
    title = f"{method.name} ({a.unit}); {SIGNS.get(a.unit, NO_SIGN)}; not shares"
    columns = ("rank", "group", "score", "95% interval", *(["offset"] if offset else []), "status")
    table = columned(title, *columns, fold=False)
    for i, g in enumerate([*ranked, *[g for g in a.groups if g not in ranked]]):
        s = a.groups[g]
        if s.score is None or s.low is None or s.high is None:
            table.add_row("-", gs.groups[g].name, "-", "-", *["-"] * offset, f"{s.status}: {s.reason}")
        else:
            span = " to ".join(score_said(v, a.unit) for v in s.span or ()) or "-"
            part = [score_said(a.offset(g), a.unit)] if offset else []
            table.add_row(str(i + 1), gs.groups[g].name, score_said(s.score, a.unit), span, *part, s.reason or s.status)
    show(table)
    say(method.note)
    if lead := lead_said(a, gs):
        say(lead)
    if a.reached == "width":
        say("Its draws are as exact as this effort asks, so it ended early. `--effort every` makes every draw.")


def _many(
    load: Callable[[], LocalService],
    paths: list[Path],
    out: Path,
    effort: str,
    methods: list[str],
    prompt: str,
    prompts: Path | None,
) -> None:
    """Score many pictures into a folder; see `reports.batch`."""
    from guda_core.reports.batch import Batch, BatchConfig, Summary

    config = BatchConfig(effort=effort, methods=tuple(methods), prompt=prompt, prompts=prompts)
    job, summary = Batch(load(), paths, out, config), None
    if passed := str(job.passed):
        note(passed)
    with progress_bar() as bar:
        task = bar.add_task("pictures", note="", total=len(job.files))
        for item in job.run():
            if isinstance(item, Summary):
                summary = item
            else:
                at = item.done + item.fraction * (item.state == "working")
                bar.update(task, completed=at, note=item.file[:40])
    assert summary is not None
    kept = f" ({summary.kept} of them cached from an earlier run)" if summary.kept else ""
    say(f"Scored: {summary.finished}{kept}. Refused: {len(summary.refused)}.")
    for file, why in summary.refused.items():
        note(f"{file}: {why}")
    for said in job.provenance.said_of(job.methods):
        note(said)
    if not prompt and prompts is None:
        tell_prompts(job.files)
    say(f"Written: {out / 'batch.json'} and {out / 'scores.csv'}")
    if summary.refused:
        raise typer.Exit(1)
