"""What all parts of `python -m experiments.engine` are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark import coverage
from experiments.benchmark.queries import Queries, read
from guda_core import paths
from guda_core.attribution.calibration import read_calibration
from guda_core.attribution.guda import Guda
from guda_core.data.groups import load_group_set
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import fitting_batch
from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model
from guda_core.diffusion.precision import has_fast_bfloat16
from guda_core.local import budget_of
from guda_core.records import Attribution, Query
from guda_core.service import EFFORTS

PER_SET = 4  # pictures of each query set
Parts = Iterator[float | dict[str, Any]]  # fractions done, then the figures, last


@dataclass(frozen=True)
class Bench:
    """The embedded model in float32 and, where the processor has it in hardware, in bfloat16; with GUDA over each.
    before: the record that is in the folder."""

    folder: Path
    models: Mapping[str, BaseModel]
    methods: Mapping[str, Guda]
    queries: Queries
    before: Mapping[str, Any]

    @staticmethod
    def load(folder: Path, before: Mapping[str, Any]) -> Bench:
        card, groups = find_card(DEFAULT_MODEL), load_group_set("emoji")
        types = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_fast_bfloat16() else {})
        models = {name: load_model(card, device="cpu", dtype=dtype) for name, dtype in types.items()}
        run = paths.run(card.id, groups.id)
        found = read_calibration(run.calibration, base_sha256=models["float32"].sha256, group_set=groups.id)
        methods = {name: Guda(m, groups, run.adapters) for name, m in models.items()}
        for method in methods.values() if found is not None else ():
            method.calibrate(found)
        return Bench(folder, models, methods, read(paths.BENCHMARKS, groups, models["float32"]), before)

    @property
    def groups(self) -> list[str]:
        return list(self.methods["float32"].adapters)

    @property
    def fastest(self) -> str:
        return next(reversed(self.models))

    def sample(self) -> Queries:
        return coverage.choose(self.queries, PER_SET)


def answered(method: Guda, query: Query, effort: str) -> Attribution:
    """The last word of a method at an effort."""
    *_, last = method.attribute(query, budget_of(effort))
    return last


def passes_of(a: Attribution) -> int:
    """Forward passes that an answer took."""
    assert a.kl is not None
    return a.kl.full.size + sum(v.size for v in a.kl.without.values())


def settings(bench: Bench) -> dict[str, Any]:
    """What all parts depend on."""
    return {
        "base_sha256": bench.models["float32"].sha256,
        "adapters": bench.methods["float32"].hashes,
        "efforts": {k: asdict(e) for k, e in EFFORTS.items()},
        "batches": {k: fitting_batch(m) for k, m in bench.models.items()},
        "fast_bfloat16": has_fast_bfloat16(),
    }
