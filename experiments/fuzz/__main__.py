"""Tries the doors: `python -m experiments.fuzz --minutes 10` writes assets/benchmarks/fuzz.json.

Exits with 1 where something crashed, hung or took too much memory; those inputs are kept, for `--replay FILE`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.commands import keep_record
from experiments.fuzz.trial import BAD, KINDS, LONGEST, SECONDS, Outcome, Watched, find_door
from guda_core.cli.terminal import listed
from guda_core.errors import OptionError
from guda_core.paths import ROOT

DOORS = {
    "pictures": "experiments.fuzz.picture_door:DOOR",
    "reports": "experiments.fuzz.report_door:DOOR",
    "adapters": "experiments.fuzz.adapter_door:DOOR",
    "sets": "experiments.fuzz.set_door:DOOR",
    "metadata": "experiments.fuzz.metadata_door:DOOR",
    "models": "experiments.fuzz.model_door:DOOR",
    "api": "experiments.fuzz.call_door:API",
    "command_line": "experiments.fuzz.call_door:COMMAND_LINE",
}
ALIKE = 3  # inputs that are kept of one finding


def keep(folder: Path, door: str, data: bytes, outcome: Outcome) -> Path:
    """Write an input and what came of it into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{door}-{outcome.kind}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(outcome.detail, encoding="utf-8", errors="backslashreplace")
    return path


def _finding(outcome: Outcome) -> str:
    """What findings of one fault have in common: its last place in the project, and the error's kind."""
    places = re.findall(r'guda_core/[\w/]+\.py", line \d+', outcome.detail)
    last = outcome.detail.strip().splitlines()[-1:] or [""]
    return f"{outcome.kind} {places[-1] if places else ''} {last[0].split(':')[0][:80]}"


def run_door(name: str, place: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Try one door for a time; gives its counts."""
    counts, seen, slowest, most = Counter[str](), Counter[str](), 0.0, 0.0
    door = find_door(place)
    with Watched(place) as watched:
        watched.start()
        end = time.monotonic() + seconds
        for data in door.inputs(seed):
            if time.monotonic() > end:
                break
            outcome = watched.tried(data)
            counts[outcome.kind] += 1
            if outcome.kind in BAD:
                found = _finding(outcome)
                seen[found] += 1
                if seen[found] <= ALIKE:
                    print(f"{name}: {found}: {keep(folder, name, data, outcome)}", flush=True)
            else:
                slowest, most = max(slowest, outcome.seconds), max(most, outcome.grown_mb)
    said = {k: counts[k] for k in KINDS}
    print(f"{name}: {said}", flush=True)
    most_said = {"slowest_s": round(slowest, 2), "most_mb": round(most), "bound_mb": door.memory_mb}
    return {"tried": sum(counts.values()), **said, **most_said}


def replay(path: Path) -> None:
    """Try one kept input again and print what comes of it."""
    door = path.name.split("-")[0]
    if door not in DOORS or not path.is_file():
        raise SystemExit("--replay takes a file that an earlier run kept; its name begins with the door's.")
    with Watched(DOORS[door]) as watched:
        outcome = watched.tried(path.read_bytes())
    print(f"{outcome.kind} after {outcome.seconds:.2f} s, {outcome.grown_mb:.0f} MB\n{outcome.detail}")
    raise SystemExit(outcome.kind in BAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all doors together")
    parser.add_argument("--doors", default=",".join(DOORS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, help="try this one input and stop")
    parser.add_argument(
        "--keep", type=Path, help="folder for inputs that found something; default: in the one for temporary files"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "benchmarks" / "fuzz.json")
    options = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("The doors are tried on Linux alone: their bounds on memory are Linux's.")
    kept = options.keep or Path(tempfile.gettempdir()) / f"guda-fuzz-found-{os.getuid()}"
    if options.replay is not None:
        replay(options.replay)
    try:
        doors = listed("--doors", options.doors)
    except OptionError as e:
        raise SystemExit(str(e)) from None
    if not options.minutes > 0 or set(doors) - set(DOORS):
        raise SystemExit(f"--minutes must be above 0, and --doors some of {', '.join(DOORS)}.")
    each, began = 60 * options.minutes / len(doors), time.perf_counter()
    found = {d: run_door(d, DOORS[d], each, options.seed, kept) for d in doors}
    total = {k: sum(f[k] for f in found.values()) for k in ("tried", *KINDS)}
    record = {
        "command": f"python -m experiments.fuzz --minutes {options.minutes:g}",
        **total,
        "doors": found,
        "settings": {"minutes": options.minutes, "seed": options.seed, "seconds": SECONDS, "longest_refusal": LONGEST},
        "seconds": round(time.perf_counter() - began),
    }
    keep_record(options.out, record, hypothesis=version("hypothesis"))
    print(f"Tried {total['tried']:,}. Written: {options.out}")
    if any(total[k] for k in BAD):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
