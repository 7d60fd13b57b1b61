"""`python -m experiments.seeds`: the oracle from several seeds, on one GPU in minutes.

    pack     here: what the trainings need, into one file (needs the training pictures)
    trial    there: ten seconds of training, and what the seeds will take
    train    there: the full model and one without each group for each seed, several processes on one GPU
    collect  there: each finished seed's scores, in one small file
    keep     here: put such files beside the other figures
    table    here: what the seeds tell -> seeds.json

`train` may be stopped at any time, also by `--minutes`. A training that is done is not made again; on a CPU, or with
`--no-graph`, one that is not goes on where it was. On another machine, put what came back of `--out` in the same place,
and call it again. `--device cpu` does the same without a GPU, in hours.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import FolderOption
from guda_core.cli.terminal import SetOption, commands, listed, say
from guda_core.errors import OptionError
from guda_core.libraries import set_up_libraries
from guda_core.paths import BENCHMARKS, cache_dir

app = commands((__doc__ or "").partition("\n")[0])
FileOption = Annotated[Path, typer.Option("--file", help="The packed file.")]
SeedsOption = Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas. Default: 5,6.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Where the trainings' results go. Default: the cache.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda. Default: cuda where there is one.")]
AheadOption = Annotated[
    bool, typer.Option("--graph/--no-graph", help="On a GPU: take each step as one graph, without checkpoints.")
]
PACKED = cache_dir() / "seeds" / "packed.npz"


def _asked(file: Path, out: Path | None, seeds: str, device: str, graph: bool = True):
    import torch

    from experiments.seeds.seed_trainings import Asked

    numbers = tuple(int(s) if s.isdecimal() else -1 for s in listed("--seeds", seeds))
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where not in ("cpu", "cuda"):
        raise OptionError(f"--device is cpu or cuda, not '{where}'.")
    return Asked(file, out or cache_dir() / "seeds" / "trainings", numbers, where, ahead=graph and where == "cuda")


@app.command()
def pack(file: FileOption = PACKED, name: SetOption = None, folder: FolderOption = None) -> None:
    """Encode the training pictures and the fixed queries into one file."""
    set_up_libraries()
    from experiments.seeds import packed
    from guda_core.cli.loading import group_set_of
    from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model

    gs = group_set_of(name)
    path = packed.write(file, load_model(find_card(DEFAULT_MODEL)), gs, folder or BENCHMARKS)
    say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


@app.command()
def trial(
    file: FileOption = PACKED,
    seeds: SeedsOption = "5,6",
    workers: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 6,
    seconds: Annotated[float, typer.Option(help="How long to train.")] = 10.0,
    device: DeviceOption = "",
    graph: AheadOption = True,
) -> None:
    """Train for some seconds and say what all seeds will take. One process: several share a GPU less than perfectly."""
    set_up_libraries()
    from experiments.seeds.seed_trainings import opened, pictures_per_second, trainings

    asked, rate = _asked(file, None, seeds, device, graph), 0.0
    for rate in pictures_per_second(asked, seconds):  # noqa: B007
        pass
    loop, jobs = asked.unet.loop, len(trainings(opened(asked.file).group_set, asked.seeds))
    one = loop.steps * loop.batch / rate
    rounds = -(-jobs // workers)
    say(f"{rate:.0f} pictures a second: {one:.0f} s a training, {jobs} trainings.")
    say(f"With {workers} processes: {one * rounds:.0f} s if they do not slow each other, {one * jobs:.0f} s at worst.")


@app.command()
def train(
    file: FileOption = PACKED,
    seeds: SeedsOption = "5,6",
    out: OutOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 6,
    device: DeviceOption = "",
    graph: AheadOption = True,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes; the next call goes on.")] = None,
) -> None:
    """Train and score what is missing."""
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    set_up_libraries()
    from contextlib import closing

    from experiments.seeds.seed_trainings import jobs_of
    from guda_core.cli.jobs_progress import done_by
    from guda_core.jobs.local_pool import LocalPool

    asked = _asked(file, out, seeds, device, graph)
    jobs = jobs_of(asked)
    with closing(LocalPool(workers, devices=["0"] if asked.device == "cuda" else [])) as pool:
        ended = done_by(pool, jobs, title="trainings", until=until)
    if len(ended) < len(jobs):
        say(f"The minutes are over: {len(ended)} of {len(jobs)} trainings are done, in {asked.out}. Call it again.")


@app.command()
def collect(
    to: Annotated[Path, typer.Argument(help="The folder that the files go to.")],
    file: FileOption = PACKED,
    seeds: SeedsOption = "5,6",
    out: OutOption = None,
) -> None:
    """Write one small file for each seed all of whose trainings are done."""
    set_up_libraries()
    from experiments.seeds.collected import collect as collected

    found = collected(_asked(file, out, seeds, "cpu"), to)
    for path in found:
        say(f"Written: {path}")
    if not found:
        say("No seed is complete yet.")


@app.command()
def keep(files: Annotated[list[Path], typer.Argument(help="What collect wrote.")], folder: FolderOption = None) -> None:
    """Put collected seeds beside the other figures."""
    from experiments.seeds.collected import FOLDER, read

    to = (folder or BENCHMARKS) / FOLDER
    for path in files:
        seed = read(path).seed
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / f"seed-{seed}.npz")
        say(f"Seed {seed}: kept in {to}")


@app.command()
def table(folder: FolderOption = None) -> None:
    """Make the tables from what is kept."""
    from experiments.seeds.seeds_figures import make
    from guda_core.reports import bundle

    path = (folder or BENCHMARKS) / "seeds.json"
    bundle.write(path, bundle.json_text(make(folder or BENCHMARKS)).encode())
    say(f"Written: {path}")


main = app

if __name__ == "__main__":
    main()
