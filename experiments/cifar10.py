"""`python -m experiments.cifar10`: the paper's CIFAR-10 experiment, for a GPU and those who have the data.

Several GPUs: `accelerate launch -m experiments.cifar10`.
"""

from __future__ import annotations

from experiments.commands import FolderOption, MinutesOption, TableOption, program
from guda_core.paths import BENCHMARKS


def cifar10(folder: FolderOption = None, minutes: MinutesOption = None, table_only: TableOption = False) -> None:
    """The paper's experiment. Needs `pip install datasets`; GUDA_CIFAR10 names a folder with the parquet files of
    uoft-cs/cifar10 where there is no hub."""
    from experiments.benchmark import benches, classes_table

    classes_table.command(benches.find("cifar10"), folder or BENCHMARKS, minutes, table_only)


main = program(cifar10)

if __name__ == "__main__":
    main()
