"""The commands that measure, and what they need made. `cli` registers them."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from guda_core.cli.terminal import ModelOption, listed, out, progress_bar, show
from guda_core.errors import OptionError


def benchmark(
    which: Annotated[str, typer.Argument(help="styles, intervals, costs, digits or cifar10.")] = "styles",
    model: ModelOption = None,
    folder: Annotated[Path, typer.Option(help="Where queries, arrays and the table go.")] = Path("assets/benchmarks"),
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; go on with the next call.")] = None,
    table_only: Annotated[bool, typer.Option("--table", help="Only make the table from the committed arrays.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="digits: smaller models, fewer queries, one seed.")] = False,
) -> None:
    """Measure agreement with the oracle (LOGO), method by method.

    styles: scores every finished model at the fixed queries. intervals: how often GUDA's intervals hold the value of
    a full budget. costs: of every method, side by side. digits: everything from nothing, trainings included, in under
    three hours on two cores. cifar10: the paper's experiment, for a GPU and those who have the data.
    """
    from experiments.benchmark import benches, classes_table, costs, intervals, styles
    from guda_core.local import load_service

    if quick and which != "digits":
        raise OptionError("--quick is an option of the digits.")
    if which == "styles":
        write = partial(styles.write_table if table_only else styles.written, folder)
        work = None if table_only else styles.run(load_service(model, fall_back=False), folder, minutes=minutes)
    elif which in ("intervals", "costs"):
        if table_only:
            raise OptionError(f"--table is no option of the {which}.")
        kind = {"intervals": intervals, "costs": costs}[which]
        write, work = (lambda: folder / kind.FILE), kind.run(load_service(model, fall_back=False), folder)
    else:
        config = benches.find(f"{which}-quick" if quick else which)
        write = partial(classes_table.write_table, folder, config.name)
        work = None if table_only else classes_table.run_all(config, folder, Path("docs"), minutes)
    show(work or iter(()))
    out.print(f"Written: {write()}", highlight=False)


def features(
    methods: Annotated[str, typer.Option(help="Comma-separated: trak, dtrak, das.")] = "trak,dtrak,das",
    model: ModelOption = None,
    dim: Annotated[int, typer.Option(help="Coordinates of the projected gradients.")] = 4096,
    folder: Annotated[Path | None, typer.Option(help="Default: assets/features/MODEL.")] = None,
) -> None:
    """Make the gradient features with which TRAK, D-TRAK and DAS answer in the app. Needs the training pictures."""
    from guda_core.attribution.gradient import quantised
    from guda_core.data.encoded import examples_of
    from guda_core.data.sources import iconify as pictures
    from guda_core.local import KERNELS, load_service
    from guda_core.paths import ASSETS
    from guda_core.versions import today, versions

    asked = listed(methods)
    if not asked or set(asked) - set(KERNELS):
        raise OptionError(f"Methods must be some of {', '.join(KERNELS)}; got {methods or 'none'}.")
    service = load_service(model, fall_back=False)
    own, gs = service.model, service.group_set
    examples = examples_of(own, pictures.load(gs, "train"), gs)
    where = folder or ASSETS / "features" / own.card.id
    for m in asked:
        plain = KERNELS[m].defaults()
        config = dataclasses.replace(plain, features=dataclasses.replace(plain.features, dim=dim))
        method = KERNELS[m](own, examples, list(gs.groups), config)
        with progress_bar() as bar:
            task = bar.add_task(m, note="", total=1.0)
            for fraction in method.prepare():
                bar.update(task, completed=fraction)
        meta = {
            "command": f"python -m guda_core features --methods {m} --dim {dim}",
            "base_sha256": own.sha256,
            "examples_sha256": examples.sha256(),
            "config": dataclasses.asdict(method.config.features),
            "versions": versions(),
            "date": today(),
        }
        quantised.write(where / m, method.features, examples.groups, meta)
        out.print(f"Written: {where / m}", highlight=False)


def scope(
    model: ModelOption = None,
    folder: Annotated[Path, typer.Option(help="Where scope.json goes.")] = Path("assets/benchmarks"),
    pictures: Annotated[int, typer.Option(min=4, help="Of each kind.")] = 48,
) -> None:
    """Measure the rule that says whether the model could have made a picture: its threshold and how often it errs.

    Needs the training pictures (`data`) and npm.
    """
    from experiments.benchmark import scope as rule
    from guda_core.local import load_service

    service = load_service(model, fall_back=False)
    show(rule.run(service, folder, rule.ScopeConfig(pictures=pictures)))
    out.print(f"Written: {folder / rule.FILE}", highlight=False)


def sanity(
    model: ModelOption = None,
    effort: Annotated[str, typer.Option(help="Effort of each attribution.")] = "quick",
    folder: Annotated[Path, typer.Option(help="Where sanity.json goes.")] = Path("assets/benchmarks"),
    sheet: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("docs/contact-sheet.png"),
    parts: Annotated[str, typer.Option(help="Comma-separated: recognition, generated, real.")] = (
        "recognition,generated,real"
    ),
) -> None:
    """Measure the model and its adapters on generated and real pictures (not the oracle)."""
    from experiments import sanity as checks
    from guda_core.local import load_service

    service = load_service(model, fall_back=False)
    config = checks.SanityConfig(effort=effort)
    show(checks.run_all(service, config, folder, sheet, [p.strip() for p in parts.split(",")]))
    out.print(f"Written: {folder / 'sanity.json'} and {sheet}", highlight=False)


COMMANDS = (benchmark, features, scope, sanity)
