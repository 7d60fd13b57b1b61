"""`python -m experiments.intervals`: how often GUDA's 95% intervals cover the value of a full budget."""

from __future__ import annotations

from experiments.commands import FolderOption, program
from guda_core.cli.loading import service_of
from guda_core.cli.terminal import HomeOption, ModelOption, SetOption, follow, say
from guda_core.paths import BENCHMARKS


def intervals(
    model: ModelOption = None, group_set: SetOption = None, home: HomeOption = None, folder: FolderOption = None
) -> None:
    """Measure how often GUDA's intervals cover the value of a full budget."""
    from experiments.benchmark import coverage as benchmark

    where = folder or BENCHMARKS
    follow(benchmark.run(service_of(model, group_set), where))
    say(f"Written: {where / benchmark.FILE}")


main = program(intervals)

if __name__ == "__main__":
    main()
