"""`python -m experiments.second`: the embedded model's second edition, on one GPU in minutes.

    pack         here: the pictures that the trainings need, into one file (fetch them first)
    trial        there, if you like: seconds of each training
    all          there: everything, in order of worth, as far as the minutes reach; results in small files
    pack-oracle  here, after the first seed: what the trainings of the other seeds need
    oracle       there: the other seeds' trainings
    assemble     here: a new folder of assets from what came back

`all` and `oracle` go on where they were. `--device cpu` does the same without a GPU, in days.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from guda_core.cli.terminal import commands, say, write_json
from guda_core.errors import OptionError
from guda_core.libraries import set_up_libraries
from guda_core.paths import cache_dir

app = commands((__doc__ or "").partition("\n")[0])
OWN = cache_dir() / "second"
LEAST_DB = 30.0  # that an autoencoder of full length is to reach
FileOption = Annotated[Path, typer.Option("--file", help="The packed file.")]
WorkOption = Annotated[Path, typer.Option("--work", help="The folder of the work, on a fast disk.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda. Default: cuda where there is one.")]
ScaleOption = Annotated[float, typer.Option("--scale", help="So many times the steps of every training.")]
PlainOption = Annotated[bool, typer.Option("--plain", help="Take plain steps, no CUDA graphs.")]
CompiledOption = Annotated[
    bool,
    typer.Option(
        "--compiled", help="On a CPU: compile the UNet's passes (needs a C++ compiler); bfloat16 if in hardware."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="The folder that results go to.")]
MinutesOption = Annotated[float, typer.Option(help="Stop after so many minutes; the next call goes on.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Oracle trainings at once; 0: one after the other.")]
CameBackOption = Annotated[
    Path | None, typer.Option("--came-back", help="The folder with the results of calls before, on another machine.")
]


def _asked(device: str, scale: float, plain: bool, compiled: bool = False):
    import torch

    from experiments.second.edition import Asked, Edition
    from experiments.second.fast_loop import How
    from guda_core.diffusion.precision import has_fast_bfloat16

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where not in ("cpu", "cuda"):
        raise OptionError(f"--device is cpu or cuda, not '{where}'.")
    if scale <= 0:
        raise OptionError("--scale must be above 0.")
    if compiled and where != "cpu":
        raise OptionError("--compiled is for a CPU. A GPU has its graphs.")
    bf16 = where == "cuda" or (compiled and has_fast_bfloat16())
    how = How(where, bf16=bf16, graph=where == "cuda" and not plain, compiled=compiled)
    return Asked(Edition().scaled(scale) if scale != 1 else Edition(), how)


@app.command()
def pack(
    file: FileOption = OWN / "pictures.npz",
    only_set: Annotated[
        bool, typer.Option("--only-set", help="Without what only the VAE and the CLIP learn from (for a later call).")
    ] = False,
) -> None:
    """Put the fetched pictures into one file."""
    set_up_libraries()
    from experiments.second import SETS, one_file
    from experiments.second.edition import SET
    from guda_core.cli.terminal import follow
    from guda_core.data.groups import load_group_set

    steps = one_file.pack(load_group_set(SET, SETS), file, whole=not only_set)
    follow(("pictures", fraction) for fraction in steps)
    say(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


@app.command()
def trial(
    file: FileOption = OWN / "pictures.npz",
    work: WorkOption = OWN / "work",
    seconds: Annotated[float, typer.Option(help="How long each training is tried.")] = 3.0,
    device: DeviceOption = "",
    scale: ScaleOption = 1.0,
    plain: PlainOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Where trial.json goes. Default: the work.")] = None,
) -> None:
    """Try each training for some seconds, and say what all trainings will take."""
    set_up_libraries()
    from experiments.second import second_trial

    record = second_trial.trial(_asked(device, scale, plain), work.absolute(), file.absolute(), seconds, say)
    write_json((out or work) / "trial.json", record)
    first, second = (record["gflop"][k] for k in ("first", "second"))
    say(f"GFLOP of the first edition: {first}; of the second: {second}.")
    say(f"All trainings in turn: {record['all_s']:.0f} s. Starts, queries, quality and scoring come on top.")


@app.command("all")
def everything(
    out: OutOption,
    minutes: MinutesOption = 9.0,
    file: FileOption = OWN / "pictures.npz",
    work: WorkOption = OWN / "work",
    came_back: CameBackOption = None,
    workers: WorkersOption = 3,
    device: DeviceOption = "",
    scale: ScaleOption = 1.0,
    plain: PlainOption = False,
    compiled: CompiledOption = False,
    least_db: Annotated[
        float | None,
        typer.Option(help="End after an autoencoder of fewer dB; 0: never. Default: 30; with --scale below 1: 0."),
    ] = None,
) -> None:
    """Do everything that fits into the minutes."""
    began = time.monotonic()
    set_up_libraries()
    from experiments.second import in_order

    asked = _asked(device, scale, plain, compiled)
    order = _order(asked, began + 60 * minutes, out, work, workers, came_back)
    order.least_db = (LEAST_DB if scale >= 1 else 0.0) if least_db is None else least_db
    _worked(order, lambda: in_order.everything(order, file.absolute()))


def _order(
    asked: Any, end: float, out: Path, work: Path, workers: int, came_back: Path | None, given: Path | None = None
) -> Any:
    """What is to be done until a moment of `time.monotonic`."""
    from experiments.second.in_order import SAVED_S, Order

    return Order(asked, work.absolute(), out.absolute(), end - SAVED_S, say, workers, came_back, given)


def _worked(order: Any, do: Callable[[], bool]) -> None:
    """Do it, send what is finished whatever happens, and say what became of it."""
    from experiments.second import in_order

    done = False
    try:
        done = do()
    finally:
        try:
            order.send()
        finally:
            write_json(order.out / "all.json", in_order.note(order, done))
    say("Everything is done." if done else "Not everything is done: call it again.")
    if order.failed:
        raise typer.Exit(1)


@app.command("pack-oracle")
def pack_oracle(
    to: Annotated[Path, typer.Option("--to", help="The folder that the files go to.")],
    file: FileOption = OWN / "pictures.npz",
    came_back: CameBackOption = None,
    work: WorkOption = OWN / "work",
    scale: ScaleOption = 1.0,
) -> None:
    """Put what the trainings of the other seeds need into a folder."""
    set_up_libraries()
    from experiments.second import in_order

    asked = _asked("cpu", scale, True)
    in_order.for_other_seeds(asked, work.absolute(), file.absolute(), to.absolute(), say, came_back)
    say(f"{to}: {sum(p.stat().st_size for p in to.iterdir()) / 2**20:.1f} MiB")


@app.command()
def oracle(
    files: Annotated[Path, typer.Argument(help="The folder that `pack-oracle` wrote.")],
    out: OutOption,
    minutes: MinutesOption = 9.0,
    work: WorkOption = OWN / "oracle",
    came_back: CameBackOption = None,
    workers: WorkersOption = 3,
    device: DeviceOption = "",
    scale: ScaleOption = 1.0,
    plain: PlainOption = False,
    compiled: CompiledOption = False,
) -> None:
    """Do the other seeds' trainings, as many as fit into the minutes."""
    began = time.monotonic()
    set_up_libraries()
    from experiments.second import in_order

    asked = _asked(device, scale, plain, compiled)
    order = _order(asked, began + 60 * minutes, out, work, workers, came_back, files.absolute())
    _worked(order, lambda: in_order.other_seeds(order))


@app.command()
def assemble(
    parcels: Annotated[Path, typer.Argument(help="The folder with everything that came back.")],
    to: Annotated[Path, typer.Option("--to", help="The new folder of assets; not one inside assets/.")],
    work: WorkOption = OWN / "assembling",
    device: DeviceOption = "cpu",
) -> None:
    """Build the new assets from what came back."""
    set_up_libraries()
    from experiments.second import second_assets

    for line in second_assets.build(_asked(device, 1.0, True), parcels.absolute(), work.absolute(), to.absolute()):
        say(line)


main = app

if __name__ == "__main__":
    main()
