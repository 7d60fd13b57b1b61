"""A seed's scores in one small file: what comes back from the machine that trained it, and what is committed.

seed-<s>.npz   scores/<draw>, se/<draw>   (Q, G) float32 nats: ELBO(full) - ELBO(without), and its standard error of
                                          sampling; groups in the set's order
               note                       JSON bytes: groups, queries' hashes, and the record of each training
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark.strata import make_strata
from experiments.seeds.seed_trainings import RECORD, Asked, complete, model_on, opened, trainings
from guda_core.diffusion import likelihood
from guda_core.diffusion.likelihood import Strata
from guda_core.errors import DataError

FOLDER = "seeds"  # below assets/benchmarks


@dataclass(frozen=True)
class SeedScores:
    """scores, se: draw -> (Q, G) float32 nats. keys: draw -> hash of the queries. trainings: name -> its record."""

    seed: int
    groups: tuple[str, ...]
    scores: dict[str, np.ndarray]
    se: dict[str, np.ndarray]
    keys: dict[str, str]
    trainings: dict[str, dict[str, Any]]


def drops(full: np.ndarray, without: Sequence[np.ndarray], strata: Strata) -> tuple[np.ndarray, np.ndarray]:
    """Scores and their standard errors, (Q, G) float32 nats, from values (Q, K, M) of the full model and the others."""
    found = [
        [likelihood.elbo_drop(full=f, without=w, strata=strata) for f, w in zip(full, v, strict=True)] for v in without
    ]
    values, errors = ([[getattr(d, k) for d in one] for one in found] for k in ("value", "se"))
    return np.array(values, np.float32).T, np.array(errors, np.float32).T


def write(
    to: Path, scored: Mapping[str, tuple[np.ndarray, np.ndarray]], *, seed: int, groups: Sequence[str],
    trainings: Mapping[str, Any], queries: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write a seed's file. scored: draw -> what `drops` gives; trainings: their records; queries: draw -> its hash."""
    note = {"seed": seed, "groups": list(groups), "trainings": dict(trainings), "queries": dict(queries)}
    arrays = {f"{k}/{draw}": a for draw, both in scored.items() for k, a in zip(("scores", "se"), both, strict=True)}
    to.mkdir(parents=True, exist_ok=True)
    path = to / f"seed-{seed}.npz"
    with path.open("wb") as f:
        np.savez_compressed(f, note=np.frombuffer(json.dumps(note).encode(), np.uint8), **arrays)
    return path


def collect(asked: Asked, to: Path) -> list[Path]:
    """Write the file of every seed all of whose trainings are done; gives the files."""
    own, out = opened(asked.file), []
    groups = list(own.group_set.groups)
    for seed in asked.seeds:
        of = trainings(own.group_set, [seed])
        if not all(complete(asked, t) for t in of):
            continue
        strata = make_strata(model_on("cpu").schedule, asked.scores.strata, asked.scores.rule)
        scored = {}
        for draw in own.queries:
            full, *without = [np.load(asked.out / t.name / f"{draw}.npy") for t in of]
            scored[draw] = drops(full, without, strata)
        records = {t.name: json.loads((asked.out / t.name / RECORD).read_text(encoding="utf-8")) for t in of}
        keys = records[of[0].name]["key"]["queries"]
        out.append(write(to, scored, seed=seed, groups=groups, trainings=records, queries=keys))
    return out


def read(path: Path) -> SeedScores:
    """Read what `collect` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as z:
            arrays = {k: z[k] for k in z.files}
        note = json.loads(arrays["note"].tobytes())
        scores = {k.removeprefix("scores/"): v for k, v in arrays.items() if k.startswith("scores/")}
        se = {d: arrays[f"se/{d}"] for d in scores}
        return SeedScores(note["seed"], tuple(note["groups"]), scores, se, note["queries"], note["trainings"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is not what `python -m experiments.seeds collect` writes.") from e


def kept(folder: Path) -> list[SeedScores]:
    """The seeds that a folder of figures holds, in order."""
    return sorted((read(p) for p in (folder / FOLDER).glob("seed-*.npz")), key=lambda s: s.seed)
