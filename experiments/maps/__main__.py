"""`python -m experiments.maps`: do maps and strips show what they should -> maps.json."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments.commands import FolderOption, MinutesOption, adapters_of, program, write_record
from guda_core.cli.terminal import follow, say
from guda_core.paths import BENCHMARKS

FILE = "maps.json"


def summary(bench: Any) -> dict[str, Any]:
    """The record, from all that was measured."""
    from experiments.maps import map_figures, measuring
    from guda_core.attribution import maps
    from guda_core.attribution.metrics import bootstrap

    tuning, reported = bench.plan()
    tuned = [bench.one("tuning", i, tuning, reported) for i in range(len(tuning))]
    found = [bench.one("reported", i, tuning, reported) for i in range(len(reported))]
    strips = [bench.strip(i) for i in range(measuring.STRIPS)]
    width, tried = map_figures.chosen_width(tuned, tuning)
    settings = {"draws": maps.DRAWS, "strata": maps.STRATA, "seeds": measuring.SEEDS, "width_of_the_app": maps.WIDTH}
    counts = {"tuning": len(tuning), "collages": len(reported), "oracle": measuring.ORACLE, "strips": len(strips)}
    return {
        "command": "python -m experiments.maps",
        "settings": {**settings, **counts, "base_sha256": bench.service.model.sha256},
        "adapters": adapters_of(bench.service, "guda"),
        "oracle": adapters_of(bench.service, "logo"),
        "width": width,
        "tried_on_tuning": tried,
        "maps": map_figures.of_maps(found, reported, width),
        "strip": bootstrap(np.array([float(s["group"] == s["first"]) for s in strips])),
    }


def measure(minutes: MinutesOption = None, folder: FolderOption = None) -> None:
    """Measure maps on collages and strips on generated pictures. A call that was stopped goes on."""
    from experiments.maps.measuring import Bench
    from guda_core.local import load_service

    bench = Bench.load(load_service(fall_back=False))
    until, late = time.monotonic() + 60 * minutes if minutes else float("inf"), False

    def steps() -> Any:
        nonlocal late
        for kind, done in bench.run():
            late = time.monotonic() > until
            if late:
                return
            yield kind, done

    follow(steps())
    if late:
        say("Not all is measured yet. The same command goes on.")
        return
    write_record((folder or BENCHMARKS) / FILE, summary(bench))


main = program(measure)

if __name__ == "__main__":
    main()
