"""How does scoring scale? `python -m experiments.scale` writes assets/benchmarks/scale.json.

Parts, each kept when it is done, so that a stopped call goes on: `overhead_200` (a table beside a plain loop, memory),
`pictures_per_hour` (1 and 2 workers), `lost`, `twice`, `equal_to_single` (a node and the driver are killed), `measured`
(what the plan on paper is made from). All with the embedded model, effort quick, one CPU thread a worker.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw

from experiments.commands import program, timed
from guda_core.cli.terminal import note, say
from guda_core.named import Named
from guda_core.paths import BENCHMARKS
from guda_core.reports import bundle
from guda_core.scoring.table_run import Options
from guda_core.versions import today, versions

METHODS = ("guda", "clip")
BLOCK = 25  # pictures that loop and table do in turn
COMMAND = "python -m experiments.scale"


def draw(folder: Path, n: int, *, start: int = 0) -> Path:
    """A folder of n pictures of 64 pixels: coloured shapes on white, each by its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        rng = np.random.default_rng(i)
        im = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(im)
        for _ in range(3):
            x, y, w, h = (int(v) for v in rng.integers(4, 36, 4))
            colour = tuple(int(v) for v in rng.integers(0, 256, 3))
            (pen.ellipse if rng.integers(2) else pen.rectangle)((x, y, x + w, y + h), fill=colour)
        im.save(folder / f"{i:05d}.png")
    return folder


def measured_overhead(
    make: Callable[[], Any], options: Options, n: int, work: Path, *, ray: bool = True
) -> dict[str, Any]:
    """`overhead_200`: of n pictures, in blocks."""
    from experiments.scale import overhead

    starts = range(0, n, BLOCK)
    blocks = [draw(work / "in" / f"block-{s:05d}", min(BLOCK, n - s), start=s) for s in starts]
    return overhead.measure(blocks, work, make, options, ray=ray)


def measured_pace(make: Callable[[], Any], options: Options, n: int, work: Path) -> dict[str, Any]:
    """`pictures_per_hour`: by 1 and by 2 workers."""
    from experiments.scale import hourly

    folder = draw(work / "in", n)
    return {str(workers): hourly.measure(folder, work, make, options, workers) for workers in (1, 2)}


def measured_chaos(
    make: Callable[[], Any], options: Options, n: int, work: Path, command: Callable[[Path, Path, str], list[str]]
) -> dict[str, Any]:
    """`lost`, `twice`, `equal_to_single`: by a command that makes a table on a cluster."""
    from experiments.scale import chaos, overhead

    folder = draw(work / "in", n)
    overhead.table(folder, work / "single", make, options)
    with chaos.two_nodes() as cluster:
        killed = chaos.suffer(cluster, work / "out", n, lambda address: command(folder, work / "out", address))
    return {"chaos": killed, **chaos.compare(chaos.rows(work / "single"), chaos.rows(work / "out"))}


def measured_parts(make: Callable[[], Any], rows: int, names: int, work: Path) -> dict[str, Any]:
    """`measured`: seconds to load the model, to list names, and to ask a made-up table."""
    from experiments.scale import large_tables

    return {
        "model_load_s": round(timed(make)[0], 2),
        "names": names,
        "listing_s": large_tables.listing(work, names),
        "made_up": large_tables.measure(work, rows),
    }


def real_command(folder: Path, out: Path, address: str) -> list[str]:
    """The command line that makes the table on a cluster."""
    words = ["attribute", str(folder), "--out", str(out), "--table", "--ray", address]
    return [sys.executable, "-m", "guda_core", *words, "--effort", "quick", "--methods", ",".join(METHODS)]


def run(
    pictures: Annotated[int, typer.Option(help="Of the overhead.")] = 200,
    pace: Annotated[int, typer.Option(help="Pictures of each pace.")] = 60,
    killed: Annotated[int, typer.Option(help="Pictures of the table whose node and driver are killed.")] = 24,
    rows: Annotated[int, typer.Option(help="Of the made-up table.")] = 10**6,
    names: Annotated[int, typer.Option(help="Of the list that is read.")] = 10**6,
    only: Annotated[str, typer.Option(help="One part: overhead, pace, chaos or parts.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Also measure what is in the file.")] = False,
    out: Annotated[Path, typer.Option(help="The file.")] = BENCHMARKS / "scale.json",
) -> None:
    """Measure how scoring scales on this machine; the parts that the file has of as many CPUs are kept."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    make, options = Named(None, None), Options("quick", METHODS)
    parts: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
        "parts": ("measured", lambda w: {"measured": measured_parts(make, rows, names, w)}),
        "chaos": ("equal_to_single", lambda w: measured_chaos(make, options, killed, w, real_command)),
        "pace": ("pictures_per_hour", lambda w: {"pictures_per_hour": measured_pace(make, options, pace, w)}),
        "overhead": ("overhead_200", lambda w: {"overhead_200": measured_overhead(make, options, pictures, w)}),
    }
    if only and only not in parts:
        raise typer.BadParameter(f"--only must be one of {', '.join(parts)}.")
    for name, (key, measure) in parts.items():
        record = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        record = record if record.get("cpus") == os.cpu_count() else {}
        if (only and name != only) or (key in record and not again):
            continue
        note(f"{name} ...")
        with tempfile.TemporaryDirectory(prefix="guda-scale-", ignore_cleanup_errors=True) as folder:
            record |= measure(Path(folder))
        about = {"command": COMMAND, "date": today(), "versions": versions()}
        bundle.write(out, bundle.json_text({**record, **about, "cpus": os.cpu_count(), "threads": 1}).encode())
        say(f"{name}: written to {out}")


main = program(run)

if __name__ == "__main__":
    main()
