"""`python -m experiments.costs`: precompute, query and storage of every method, side by side."""

from __future__ import annotations

from experiments.commands import FolderOption, program
from guda_core.cli.loading import service_of
from guda_core.cli.terminal import HomeOption, ModelOption, SetOption, follow, say
from guda_core.paths import BENCHMARKS


def costs(
    model: ModelOption = None, group_set: SetOption = None, home: HomeOption = None, folder: FolderOption = None
) -> None:
    """Measure what each method costs on this machine, all in one run."""
    from experiments.benchmark import cost_measurement as benchmark

    where = folder or BENCHMARKS
    follow(benchmark.run(service_of(model, group_set), where))
    say(f"Written: {where / benchmark.FILE}")


main = program(costs)

if __name__ == "__main__":
    main()
