"""`python -m experiments.styles`: agreement of every method with the oracle on the emoji styles."""

from __future__ import annotations

from typing import Annotated

import typer

from experiments.commands import FolderOption, MinutesOption, TableOption, program
from guda_core.cli.loading import service_of
from guda_core.cli.terminal import HomeOption, ModelOption, SetOption, follow, say
from guda_core.paths import BENCHMARKS


def styles(
    model: ModelOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    folder: FolderOption = None,
    minutes: MinutesOption = None,
    table_only: TableOption = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="At the fresh queries, below `fresh` of the folder.")] = False,
) -> None:
    """Score every finished model and method at the fixed queries; measure agreement with the oracle (LOGO)."""
    from experiments.benchmark import styles_run as benchmark

    where, draw = folder or BENCHMARKS, "fresh" if fresh else ""
    where /= draw
    if table_only:
        say(f"Written: {benchmark.write_table(where)}")
        return
    follow(benchmark.run(service_of(model, group_set), where, minutes=minutes, draw=draw))
    say(f"Written: {benchmark.written(where)}")


main = program(styles)

if __name__ == "__main__":
    main()
