"""`python -m experiments.strip`: how long a strip takes, and whether it points at the prompted group -> strip.json.

The full model draws pictures in the words of one group each, every group in turn. Then the strip is drawn: the same
prompt and seed without each group. Measured of each: seconds from the first step to the last picture, in the process
that just drew the picture, and without which group the picture differs most. Each picture is kept in the cache folder,
so that a stopped call goes on; the first strip of a call warms up and is not counted.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer

from experiments.benchmark.queries import QueryConfig
from experiments.commands import (
    FolderOption,
    MinutesOption,
    adapters_of,
    drawn,
    measured_in,
    program,
    prompted,
    write_record,
)
from guda_core.attribution.metrics import bootstrap
from guda_core.cli.terminal import follow, say
from guda_core.held_files import replacing
from guda_core.local import LocalService, load_service
from guda_core.paths import BENCHMARKS
from guda_core.records import Query
from guda_core.service import main_method

FILE = "strip.json"
PICTURES, SEED, LIMIT_S = 40, 313, 6.0  # pictures; first seed; seconds that a strip may take
PicturesOption = Annotated[int, typer.Option(help="So many pictures.", min=1)]


@dataclass(frozen=True)
class Bench:
    """A service, how a picture is drawn, and where what was measured is kept."""

    service: LocalService
    config: QueryConfig
    folder: Path

    @classmethod
    def load(cls, service: LocalService, config: QueryConfig | None = None) -> Bench:
        c = config or QueryConfig()
        how = {"steps": c.steps, "guidance": c.guidance, "seed": SEED, "threads": torch.get_num_threads()}
        return cls(service, c, measured_in("strip", service, [main_method(service.methods())], **how))

    def query(self, n: int) -> tuple[str, str, Query]:
        """(the prompted group, the object, the picture) of number n, drawn now."""
        (group, thing, prompt), c = prompted(self.service.group_set, n, SEED), self.config
        return group, thing, drawn(self.service, prompt, seed=SEED + n, steps=c.steps, guidance=c.guidance)

    def path(self, n: int) -> Path:
        return self.folder / f"{n}.json"

    def measured(self, n: int) -> dict[str, Any]:
        """What was found of picture n; measured once."""
        path = self.path(n)
        if not path.is_file():
            group, thing, query = self.query(n)
            began = perf_counter()
            strip = self.service.strip(query, main_method(self.service.methods()))
            seconds = perf_counter() - began
            found = {
                "group": group, "object": thing, "seed": SEED + n, "seconds": round(seconds, 3),
                "pictures": len(strip.pictures), "distances": {g: round(v, 6) for g, v in strip.distances.items()},
            }  # fmt: skip
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                aside.write_text(json.dumps(found), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def first_of(found: dict[str, Any]) -> str:
    """The group without which the picture differs most."""
    return max(found["distances"], key=lambda g: found["distances"][g])


def summary(bench: Bench, pictures: int) -> dict[str, Any]:
    """The record of the first `pictures` pictures, all of which are measured."""
    found = [bench.measured(n) for n in range(pictures)]
    seconds = np.array([f["seconds"] for f in found])
    hits = np.array([float(first_of(f) == f["group"]) for f in found])
    machine = {"threads": torch.get_num_threads(), "cpus": os.cpu_count(), "device": str(bench.service.model.device)}
    return {
        "command": "python -m experiments.strip",
        "settings": {
            "pictures": pictures, "seed": SEED, "steps": bench.config.steps, "guidance": bench.config.guidance,
            "groups": len(bench.service.group_set.groups), "limit_s": LIMIT_S,
            "base_sha256": bench.service.model.sha256,
        },
        "adapters": adapters_of(bench.service, main_method(bench.service.methods())),
        "seconds": {
            "mean": bootstrap(seconds), "median": float(np.median(seconds)), "most": float(seconds.max()),
            "within_limit": float((seconds <= LIMIT_S).mean()),
        },
        "prompted_first": bootstrap(hits),
        "each": [{**f, "first": first_of(f)} for f in found],
        "machine": machine,
    }  # fmt: skip


def run(bench: Bench, pictures: int, until: float) -> bool:
    """Measure what is not measured yet; False where the time was over before all of it was."""
    if any(not bench.path(n).is_file() for n in range(pictures)):
        bench.service.strip(bench.query(0)[2], main_method(bench.service.methods()))  # warms up

    def steps() -> Any:
        for n in range(pictures):
            yield "strips", n / pictures
            if monotonic() > until:
                return
            bench.measured(n)

    follow(steps())
    return all(bench.path(n).is_file() for n in range(pictures))


def measure(pictures: PicturesOption = PICTURES, minutes: MinutesOption = None, folder: FolderOption = None) -> None:
    """Measure how long strips take and how often the picture that differs most is the one without the prompted group. A
    call that was stopped goes on."""
    bench = Bench.load(load_service(fall_back=False))
    until = monotonic() + 60 * minutes if minutes is not None else float("inf")
    if not run(bench, pictures, until):
        say("Not all is measured yet. The same command goes on.")
        return
    write_record((folder or BENCHMARKS) / FILE, summary(bench, pictures))


main = program(measure)

if __name__ == "__main__":
    main()
