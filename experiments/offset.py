"""Fit the weight of the offset to retrained models: `python -m experiments.offset [--write]`.

    oracle_k(x) - mean over k = a (drop_k(x) - mean) + b (offset_k - mean),   weight = b / a

by least squares over the tuning half of the styles benchmark's queries. offset_k is the mean drop of group k's adapter
over held-out pictures of the other groups (`health.json`). It reads the committed scores of the drop and of the oracle;
no model is run. --write puts the weight, rounded to two decimals, into the `calibration.json` of the model and the set,
from which `guda_core.attribution.guda` takes it. For a model of one's own `python -m experiments.logo --model` does the
same (`experiments.benchmark.own_run`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.benchmark import offset_tables, result_tables, styles_run
from guda_core.attribution import calibration
from guda_core.data.groups import load_group_set
from guda_core.errors import DataError
from guda_core.paths import BENCHMARKS, SHIPPED_RUN, Folder
from guda_core.unlearning import adapters
from guda_core.versions import today

COMMAND = "python -m experiments.offset --write"


def offsets(folder: Folder, groups: Sequence[str]) -> np.ndarray:
    """(G,) nats: of the health of each group's adapter.

    Raises:
        DataError: an adapter's health was not measured. AdapterError: there is no adapter.
    """
    found = []
    for g in groups:
        part = adapters.read_health(folder / g, adapters.read_meta(folder / g)["sha256"]).get(adapters.OFFSET)
        if not isinstance(part, dict):
            raise DataError(f"The health of the adapter '{g}' was not measured. Run `guda unlearn --groups {g}`.")
        found.append(part["mean"])
    return np.array(found)


def fit_scores(drop: np.ndarray, oracle: np.ndarray, sets: Sequence[str], of_groups: np.ndarray) -> tuple[float, int]:
    """(weight, queries that it was fitted to): those of the tuning half. drop, oracle: (Q, G) scores in nats, sets: of
    each query; of_groups: (G,), what `offsets` found."""
    tuning = result_tables.tuning_half(sets)
    return offset_tables.weight_of(drop[tuning], of_groups, oracle[tuning]), int(np.sum(tuning))


def fit(benchmarks: Path, folder: Path) -> tuple[float, int, str]:
    """(weight, queries that it was fitted to, hash of the base model). folder: of the adapters."""
    record = json.loads((benchmarks / "queries.json").read_text(encoding="utf-8"))
    with np.load(benchmarks / styles_run.ARRAYS, allow_pickle=False) as z:
        scores = result_tables.with_the_live_oracle({k: z[k] for k in z.files})
    drop = scores.get(result_tables.DROP, scores["guda"])  # without a weight the score is the drop
    found = offsets(folder, list(load_group_set("emoji").groups))
    sets = [i["set"] for i in record["items"]]
    return *fit_scores(drop, scores[result_tables.ORACLE], sets, found), str(record["base_sha256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write calibration.json")
    args = parser.parse_args()
    folder = SHIPPED_RUN / "adapters"
    weight, n, base = fit(BENCHMARKS, folder)
    print(f"weight {weight:.4f}, fitted to {n} queries")
    if args.write:
        how = "least squares to the scores of retrained models, tuning half of the styles benchmark's queries"
        more = {"fitted": how, "queries": n, "unrounded": weight, "command": COMMAND, "date": today()}
        more |= calibration.fitted_with(folder, list(load_group_set("emoji").groups))
        path = SHIPPED_RUN / calibration.FILE
        calibration.write_weight(path, round(weight, 2), base_sha256=base, group_set="emoji", **more)
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
