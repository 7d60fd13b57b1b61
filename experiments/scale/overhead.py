"""What a table costs beside a plain loop over its pictures, and whether memory stays flat.

    overhead = seconds of the table / seconds of the loop - 1

The loop does what a table must: read a picture, prepare it, score it, judge its scope; it keeps nothing. Both run in
this process with the same loaded model, block by block in turn, so that a machine that slows down slows both. On Ray,
one worker does all blocks' pictures as one table; its start and its own loading of the model count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.commands import timed
from experiments.soak import resident_mb
from guda_core.jobs.chosen_pool import opened
from guda_core.scoring import places
from guda_core.scoring.listing import Listing
from guda_core.scoring.part_jobs import by_pool
from guda_core.scoring.table_run import Options, Table, Work
from guda_core.service import Service, default_methods

Maker = Callable[[], Service]


def plain(folder: Path, service: Service, options: Options) -> None:
    """The plain loop."""
    methods = list(options.methods) or default_methods(service.methods())
    for path in sorted(folder.iterdir()):
        query = service.prepare(places.read_picture_file(str(path)), prompt=options.prompt)
        for _ in service.attribute(query, methods=methods, effort=options.effort):
            pass
        service.scope(query)


def table(folder: Path, out: Path, make: Maker, options: Options, work: Work | None = None) -> None:
    """The same pictures as a table."""
    made = Table([str(folder)], str(out), make, options)
    *_, total = made.run() if work is None else made.run(work)
    if total.refused:
        raise SystemExit(f"Pictures were refused: {total.why}")


def on_ray(folder: Path, out: Path, make: Maker, options: Options, address: str = "local") -> None:
    """The same on a Ray cluster, by one worker."""
    with opened(1, address, lasting=True) as pool:
        table(folder, out, make, options, partial(by_pool, pool=pool))


def measure(blocks: list[Path], work: Path, make: Maker, options: Options, *, ray: bool = True) -> dict[str, Any]:
    """Seconds of loop and table by block, memory after each, and the overheads. work: a folder for the results.

    Ray's figure compares all of its seconds, start and loading too, with the loop's.
    """
    service = make()
    plain(blocks[0], service, options)  # what is loaded at the first use is not counted
    loops, tables, held = [], [], []
    for i, block in enumerate(blocks):
        loops.append(timed(partial(plain, block, service, options))[0])
        tables.append(timed(partial(table, block, work / f"out-{i}", lambda: service, options))[0])
        held.append(round(resident_mb(), 1))
    n = sum(len(Listing([str(b)])) for b in blocks)
    found: dict[str, Any] = {
        "pictures": n,
        "plain_s": [round(s, 3) for s in loops],
        "table_s": [round(s, 3) for s in tables],
        "table": sum(tables) / sum(loops) - 1,
        "resident_mb": held,
    }
    if ray:
        whole, _ = timed(partial(on_ray, blocks[0].parent, work / "out-ray", make, options))
        found |= {"ray_s": round(whole, 3), "ray": whole / sum(loops) - 1}
    return found
