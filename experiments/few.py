"""How many pictures does a group need? `python -m experiments.few`: the planted truth with fewer and fewer pictures.

The four drawn styles of `experiments.planted`, each with so many pictures to train on; steps and
settings stay. For each size a network is trained from scratch, and again without each style (the oracle), and each
style is unlearned. How often is the first group the style that a picture was made from? Asked of pictures that the
model drew from a style's words, and of real pictures that were held out.

One set of pictures and one training a size: what another seed changes is not in the intervals.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from experiments import planted
from experiments.commands import program, write_record
from experiments.logo.whole_way import everything
from experiments.planted import OBJECTS, PlantedConfig
from experiments.sanity import share
from guda_core.cli.terminal import follow, say
from guda_core.libraries import set_up_libraries
from guda_core.paths import BENCHMARKS, cache_dir

FILE, COMMAND = "few.json", "python -m experiments.few"
SIZES = (2, 4, 12, 36)  # pictures of each style that are trained on
METHODS = ("guda", "logo")


def world(size: int, config: PlantedConfig) -> tuple[PlantedConfig, float]:
    """The settings under which `size` pictures of each style are trained on, and the share that is held out: at most
    the usual number of pictures is drawn, and at most seven times as many are held out as trained on."""
    most = len(OBJECTS) * config.pictures
    drawn = min(most, 8 * size)
    return replace(config, pictures=drawn // len(OBJECTS)), 1 - size / drawn


def rows(size: int, first: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[dict[str, Any]]:
    """What `planted.figures` counted for one size, with Wilson's intervals."""
    for method in METHODS:
        for query_set, of in first[method].items():
            hits = [True] * of["right"] + [False] * (of["of"] - of["right"])
            yield {"pictures": size, "method": method, "query_set": query_set, **of, **share(hits)}


def measured(home: Path, sizes: tuple[int, ...], config: PlantedConfig) -> list[dict[str, Any]]:
    """All rows; what is there from a call before is not made again."""
    out: list[dict[str, Any]] = []
    for size in sizes:
        own, held_out = world(size, config)
        folder = home / str(size)
        os.environ["GUDA_HOME"] = str(folder.absolute())
        say(f"{size} pictures of each style")
        follow(everything(planted.prepare(folder, own, held_out=held_out), planted.way_of(own)))
        out += rows(size, planted.figures(own)["first"])
    return out


def few(
    folder: Annotated[Path | None, typer.Option(help="The workspaces. Default: few in GUDA_CACHE.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where few.json goes. Default: assets/benchmarks.")] = None,
) -> None:
    """Train small models on ever fewer pictures of four drawn styles, and see whether GUDA still names the style."""
    set_up_libraries()
    torch.set_flush_denormal(True)
    config = PlantedConfig()
    found = measured(folder or cache_dir() / "few", SIZES, config)
    for r in found:
        say(f"{r['pictures']} pictures, {r['method']}, {r['query_set']}: first on {r['right']} of {r['of']}.")
    record = {
        "command": COMMAND,
        "config": asdict(config),
        "sizes": SIZES,
        "groups": list(planted.STYLES),
        "rows": found,
    }
    write_record((out or BENCHMARKS) / FILE, record)


main = program(few)

if __name__ == "__main__":
    main()
