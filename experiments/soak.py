"""Does a long-running app keep its memory? `python -m experiments.soak` writes assets/benchmarks/soak.json.

One process makes 200 attributions with the embedded model's service, all methods, through `Service.attribute` as the
app does, each of another picture. What it holds (resident memory) is read after every run. The budget is small, two
draws in each of six strata, so that it takes minutes: how much is kept from run to run does not depend on it. Exits
with 1 when the memory after the last run is more than 1.1 times that after the first 20.
"""

from __future__ import annotations

import argparse
import gc
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import torch

from experiments.commands import keep_record
from guda_core.attribution.method import Budget
from guda_core.local import LocalService, load_service
from guda_core.paths import ROOT
from guda_core.service import EFFORTS, Effort

MOST = 1.1  # ratio that is still called flat
SHORT = Effort("quick", "Quick", 2, 2)  # draws: 2 in each stratum, the fewest with an interval
STRATA = 6
PROMPT = "rocket, artistic style featuring soft gradients"


def resident_mb() -> float:
    """Resident memory of this process, in MB (10^6 bytes)."""
    return psutil.Process().memory_info().rss / 1e6


def attribute(service: LocalService, seed: int) -> None:
    """One attribution of a picture of its own, to its last refinement."""
    size = service.model.card.resolution
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    *_, last = service.attribute(service.query(pixels, PROMPT), methods=list(service.methods()), effort=SHORT.id)
    assert last.progress == 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=20, help="runs after which the memory is compared from")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "benchmarks" / "soak.json")
    options = parser.parse_args()
    if not 0 < options.first < options.runs:
        raise SystemExit("--first must be at least 1 and less than --runs.")
    service = load_service(fall_back=False)
    loaded, began, held = resident_mb(), time.perf_counter(), []
    cheap = partial(Budget, strata=STRATA)
    with patch.dict(EFFORTS, {SHORT.id: SHORT}), patch("guda_core.local.Budget", cheap):
        for i in range(options.runs):
            attribute(service, i)
            gc.collect()
            held.append(resident_mb())
            if (i + 1) % 10 == 0 or i + 1 == options.runs:
                print(f"{i + 1} of {options.runs}: {held[-1]:.0f} MB", flush=True)
    first, last = held[options.first - 1], held[-1]
    record = {
        "command": "python -m experiments.soak",
        "runs": options.runs,
        "first": options.first,
        "resident_mb": {"loaded": round(loaded), "after_first": round(first), "after_all": round(last)},
        "peak_mb": round(max(held)),
        "ratio": round(last / first, 4),
        "flat_if_at_most": MOST,
        "seconds": round(time.perf_counter() - began),
        "settings": {"methods": list(service.methods()), "strata": STRATA, "draws": SHORT.draws},
        "base_sha256": service.model.sha256,
        "cpu_threads": torch.get_num_threads(),
    }
    keep_record(options.out, record)
    print(f"Ratio {record['ratio']}. Written: {options.out}")
    if record["ratio"] > MOST:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
