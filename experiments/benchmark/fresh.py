"""The fresh queries: a second draw, on which no setting was ever tried, and the table of every method on it.

The oracle is the live one (LOGO in coded form), scored with draws that no method shares. What the tables fit - the
weight of the offset that other methods get - is fitted to the first draw's tuning half. So all fresh queries are for
the report. Adapters and the oracle may be scored in bfloat16 (`GUDA_DTYPE`), which usually moves scores by a fraction
of their error of sampling (`engine.json`); baselines are scored in float32 alone. `dtypes` of the table says which it
was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import fair, result_tables, where_tables
from guda_core.data.reserved import reserved
from guda_core.data.sources.source import load_pictures
from guda_core.paths import BENCHMARKS
from guda_core.records import GroupSet
from guda_core.unlearning.health import HealthConfig, held_out_of_all

NAME = "fresh"  # of the draw, and of the folder of its files beside the first draw's
COMMAND = "python -m experiments.styles --fresh"
FIRST_ARRAYS = "styles-scores.npz"  # of the first draw


def looked_at(group_set: GroupSet, first: Path = BENCHMARKS / "queries.json") -> set[tuple[str, str]]:
    """(group, object) of the held-out pictures that the first draw or the offset were made of."""
    asked = reserved(first, group_set)
    held = load_pictures(group_set, "held_out")
    used = held_out_of_all(held, list(group_set.groups), HealthConfig(), asked)
    return asked | {(held.groups[i], held.names[i]) for i in used}


def weights(folder: Path = BENCHMARKS) -> dict[str, float]:
    """The weight of the offset for each method that gets it in the tables, fitted to the first draw's tuning half."""
    with np.load(folder / FIRST_ARRAYS, allow_pickle=False) as z:
        scores = result_tables.with_the_live_oracle({k: z[k] for k in z.files})
    sets = [i["set"] for i in json.loads((folder / "queries.json").read_text(encoding="utf-8"))["items"]]
    tuning = result_tables.tuning_half(sets)
    offset = (scores[result_tables.GUDA].astype(float) - scores[result_tables.DROP]).mean(axis=0)
    of = {n: scores[n] for n in fair.ALSO if n in scores}
    return fair.weights_of(of, offset, scores[result_tables.ORACLE], tuning)


def recorded_dtypes(note: Path) -> dict[str, list[str]]:
    """Role -> the types that its models were scored in, from the arrays' record."""
    return json.loads(note.read_text(encoding="utf-8")).get("dtypes", {}) if note.is_file() else {}


def table(
    scores: Mapping[str, np.ndarray],
    sets: list[str],
    made_of: list[list[str]],
    others: np.ndarray,
    ours: tuple[str, ...],
    dtypes: Mapping[str, list[str]],
) -> dict[str, Any]:
    """What the fresh `styles.json` holds: rows and differences over all fresh queries; where methods are right.

    scores: row -> (Q, G); sets, made_of: of each query; others: `fair.others`; ours: rows that are compared with all
    others; dtypes: row -> the types that its models were scored in."""
    return {
        "command": COMMAND,
        "oracle": "LOGO: the UNet retrained without each group, first seed, in coded form (the live oracle)",
        "rows": result_tables.agreement(scores, sets, made_of=made_of, others=others),
        "differences": [d for f in ours for d in result_tables.differences(scores, sets, f, made_of=made_of)],
        "where_clear": where_tables.where_clear(scores, sets),
        "where_separable": where_tables.where_separable(scores, sets),
        "where_missed": where_tables.where_missed(scores, sets, made_of),
        "by_group": where_tables.by_group(scores, sets, made_of, (result_tables.WITH_OFFSET,)),
        "dtypes": dict(dtypes),
    }
