"""`python -m experiments.digits [--quick] [--no-ceiling]`: the paper's CIFAR-10 experiment on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from experiments.commands import FolderOption, MinutesOption, TableOption, program
from guda_core.paths import BENCHMARKS


def digits(
    folder: FolderOption = None,
    minutes: MinutesOption = None,
    table_only: TableOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller models, fewer queries.")] = False,
    no_ceiling: Annotated[
        bool,
        typer.Option("--no-ceiling", help="One seed: half the trainings. A later run without this adds the ceiling."),
    ] = False,
) -> None:
    """Make everything, trainings included: under three hours on two cores."""
    from experiments.benchmark import benches, classes_table

    where, config = folder or BENCHMARKS, benches.find("digits-quick" if quick else "digits")
    config = replace(config, second_seed=None) if no_ceiling else config
    classes_table.command(config, where, minutes, table_only)


main = program(digits)

if __name__ == "__main__":
    main()
