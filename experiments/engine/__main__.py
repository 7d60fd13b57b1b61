"""`python -m experiments.engine`: what the scoring engine costs and whether it stays honest -> engine.json."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.commands import FolderOption, MinutesOption, program
from guda_core.cli.terminal import follow, say
from guda_core.errors import OptionError
from guda_core.paths import BENCHMARKS

FILE = "engine.json"
PARTS = ("values", "logo", "coverage", "rules", "speeds", "sizes", "switching", "types", "start")
KEYS = ("speedup_full", "speedup_full_float32", "share_cpu", "same_first", "ratio_64_to_8")
KEYS += ("coverage_quick", "coverage_standard", "coverage_standard_logo", "first_bar_s")


def run(folder: Path, names: list[str], *, again: bool, minutes: float | None) -> Iterator[tuple[str, float]]:
    """Measure the parts that are not measured yet; each is written when it is done."""
    import torch

    from experiments.engine import engine_bench as bench_of
    from experiments.engine import engine_parts as parts
    from guda_core.versions import today, versions

    path, until = folder / FILE, time.monotonic() + 60 * minutes if minutes else float("inf")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    bench = bench_of.Bench.load(folder, record)
    about = json.loads(json.dumps(bench_of.settings(bench)))
    if record.get("settings") != about:  # of another machine, model or rule
        record = {"command": "python -m experiments.engine", "settings": about, "parts": {}}
    for name in names:
        if name in record["parts"] and not again:
            continue
        if time.monotonic() > until:
            return
        for found in parts.PARTS[name](bench):
            if isinstance(found, dict):
                record["parts"][name] = {**found, "date": today(), "threads": torch.get_num_threads()}
                record |= {k: v for k, v in found.items() if k in KEYS}
                record |= {"versions": versions(), "date": today()}
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record, indent=1), encoding="utf-8")
            else:
                yield name, found
                if time.monotonic() > until:
                    break


def engine(
    part: Annotated[list[str] | None, typer.Argument(help=f"Parts: {', '.join(PARTS)}.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also measure parts that are there.")] = False,
    minutes: MinutesOption = None,
    folder: FolderOption = None,
) -> None:
    """Measure the scoring engine: races, intervals, speed, types. A call that was stopped goes on."""
    for p in part or ():
        if p not in PARTS:
            raise OptionError(f"There is no part '{p}'. Known: {', '.join(PARTS)}.")
    where = folder or BENCHMARKS
    follow(run(where, [p for p in PARTS if not part or p in part], again=again, minutes=minutes))
    if (where / FILE).is_file():
        found = json.loads((where / FILE).read_text(encoding="utf-8"))
        for key in KEYS:
            say(f"{key}: {found[key]:.3g}" if key in found else f"{key}: not measured yet")
        say(f"Written: {where / FILE}")


main = program(engine)

if __name__ == "__main__":
    main()
