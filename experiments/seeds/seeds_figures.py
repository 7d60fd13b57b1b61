"""What several seeds of the oracle tell: how far retraining agrees with itself, and methods against the mean of seeds.

    ceiling       each seed against the mean of the others: what a perfect counterfactual of one seed would reach
    pairs         one seed against one other
    rows_mean     methods against the mean of all seeds; differences_mean: of ours to the others
    rows_new      the same against the new seeds alone: none of them shares its start with the embedded model, which
                  the adapters unlearn from

Everything by draw of the fixed queries ("first": all of them, "fresh").
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import result_tables, styles_run
from experiments.benchmark.result_tables import GUDA, ORACLE, WITH_OFFSET, agreement, differences
from experiments.seeds import packed
from experiments.seeds.collected import SeedScores, kept
from experiments.train.unet import UnetConfig
from guda_core.errors import DataError
from guda_core.versions import today, versions

COMMAND = "python -m experiments.seeds table"
FIRST_SEED = UnetConfig().loop.seed


def key_of(folder: Path) -> str:
    """The hash of a draw's queries, as the trainings recorded it."""
    items = json.loads((folder / "queries.json").read_text(encoding="utf-8"))["items"]
    return hashlib.sha256(str([(i["pixels_sha256"], i["prompt"]) for i in items]).encode()).hexdigest()


def of_draw(folder: Path, draw: str, seeds: Sequence[SeedScores]) -> dict[str, Any]:
    """The figures of one draw.

    Raises:
        DataError: a seed was scored at other queries.
    """
    own = styles_run.compared(folder)
    for s in seeds:
        if s.keys.get(draw) != key_of(folder):
            raise DataError(f"Seed {s.seed} was scored at other queries than those in {folder}. Pack and train again.")
    by_seed = {FIRST_SEED: own.scores[ORACLE].astype(float)} | {s.seed: s.scores[draw].astype(float) for s in seeds}
    return figures(own.scores, by_seed, own.sets, own.made_of, own.others)


def figures(
    scores: Mapping[str, np.ndarray],
    by_seed: Mapping[int, np.ndarray],
    sets: list[str],
    made_of: list[list[str]],
    others: np.ndarray,
) -> dict[str, Any]:
    """The tables. scores: row -> (Q, G), the first seed's oracle among them; by_seed: (Q, G) of every seed;
    others: `fair.others`."""

    def mean(*seeds: int) -> np.ndarray:
        return np.mean([by_seed[s] for s in seeds], axis=0)

    def against(truth: np.ndarray, of: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        return agreement({**of, ORACLE: truth}, sets, made_of=made_of, others=others)

    methods = {
        n: s
        for n, s in scores.items()
        if n != ORACLE and "/" not in n and n not in result_tables.ROW_OF and not np.isnan(s).any()
    }
    everyone, new = tuple(by_seed), tuple(s for s in by_seed if s != FIRST_SEED)
    rest = {s: tuple(o for o in everyone if o != s) for s in everyone}
    to_mean = {**methods, ORACLE: mean(*everyone)}
    firsts = [f for f in (GUDA, WITH_OFFSET) if f in methods]
    return {
        "seeds": list(everyone),
        "ceiling": [r for s in everyone for r in against(mean(*rest[s]), {f"seed {s}": by_seed[s]})],
        "pairs": [
            r for a, b in itertools.combinations(everyone, 2) for r in against(by_seed[a], {f"{a} and {b}": by_seed[b]})
        ],
        "rows_mean": against(mean(*everyone), methods),
        "differences_mean": [d for f in firsts for d in differences(to_mean, sets, f, made_of=made_of)],
        "rows_new": against(mean(*new), methods),
    }


def make(folder: Path) -> dict[str, Any]:
    """The record.

    Raises:
        DataError: there are no new seeds, or one does not fit.
    """
    seeds = kept(folder)
    if not seeds:
        raise DataError(f"There are no seeds in {folder / 'seeds'}. Train some: `python -m experiments.seeds train`.")
    trained = {
        name: {k: v for k, v in r.items() if k not in ("key", "versions")}
        for s in seeds
        for name, r in s.trainings.items()
    }
    return {
        "command": COMMAND,
        "draws": {draw: of_draw(at, draw, seeds) for draw, at in packed.draws_in(folder).items()},
        "trainings": trained,
        "versions": versions(),
        "date": today(),
    }
