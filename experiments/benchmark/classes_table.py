"""What a classes benchmark writes: the scores of every row, the table made from them alone, its costs, and samples.

Costs are CPU seconds of all threads, added up while the work was done: of what is done once (precompute: retraining,
unlearning, features) and of one query.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import result_tables
from experiments.benchmark.benches import FIRST, BenchConfig
from experiments.benchmark.classes_run import (
    arrays,
    cache,
    full_model,
    group_ids,
    queries,
    queue,
    run,
    sources,
    trained,
)
from experiments.benchmark.clock import Clock
from experiments.benchmark.result_tables import ORACLE
from experiments.commands import keep_record
from experiments.train import class_models, stages
from guda_core.cli.terminal import follow, say
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import DataError
from guda_core.paths import DOCS
from guda_core.reports import figures
from guda_core.work_queue import claimed

SAMPLES = 8  # pictures of each model


def scores_file(folder: Path, name: str) -> Path:
    return folder / f"{name}-scores.npz"


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def costs(model: BaseModel, config: BenchConfig, n: int) -> list[dict[str, Any]]:
    """Rows {method, precompute_cpu_s, query_cpu_s, stored_bytes, times_cheaper}: the last is the oracle's precompute
    over the method's. n: queries that were scored."""
    clock, first = Clock(cache(config, model) / "costs.json"), config.models.loop.seed
    logo = [j for j in queue(config) if j.seed == first and j.exclude is not None]
    retrained, full = sum(stages.record_of(j.name)["cpu_seconds"] for j in logo), clock.cpu("score/full/")
    weights = [stages.work_dir() / j.name / "unet" for j in logo]
    rows: list[dict[str, Any]] = [_cost(ORACLE, retrained, full + clock.cpu(f"score/{ORACLE}/"), weights, n)]
    for row in config.unlearning:
        folders = [cache(config, model) / row / g for g in group_ids(config)]
        rows.append(_cost(row, clock.cpu(f"unlearn/{row}/"), full + clock.cpu(f"score/{row}/"), folders, n))
    for name in (*config.kernels, "instance", "classifier"):
        rows.append(_cost(name, clock.cpu(f"prepare/{name}"), clock.cpu(f"score/{name}"), [], n))
    return [{**r, "times_cheaper": rows[0]["precompute_cpu_s"] / max(1e-9, r["precompute_cpu_s"])} for r in rows]


def _cost(method: str, once: float, all_queries: float, folders: list[Path], n: int) -> dict[str, Any]:
    stored = sum(_size(f) for f in folders) or None
    return {"method": method, "precompute_cpu_s": once, "query_cpu_s": all_queries / n, "stored_bytes": stored}


def samples(model: BaseModel, config: BenchConfig, path: Path) -> None:
    """A picture of samples from the same noise: the full model, and per class the retrained and the unlearned one."""
    named = class_models.group_set(config.models).groups
    seeds = range(config.query_seed * 1000 + 500_000, config.query_seed * 1000 + 500_000 + SAMPLES)
    made: dict[tuple[str, str | None], np.ndarray] = {}
    for s in sources(model, config):
        if s.role in ("full", ORACLE, FIRST):
            with s.within():
                made[s.role, s.group] = model.generate([""] * SAMPLES, seeds=seeds, steps=config.ddim_steps)
    rows = {"full model": [made["full", None]] * 2}
    rows |= {f"without {named[g].name.lower()}": [made[role, g] for role in (ORACLE, FIRST)] for g in named}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(figures.samples_png(rows, ["retrained without the class (LOGO)", "the class unlearned (GUDA)"]))


def write(config: BenchConfig, folder: Path, pictures: Path) -> Path:
    """Write scores, samples and the table of a benchmark that has been run; returns the table.

    Raises:
        TrainingError, DataError: it has not been run to the end.
    """
    model = full_model(config)
    of, sets = queries(model, config)
    found = arrays(model, of, config)
    if ORACLE not in found:
        raise DataError(f"The oracle is not complete. Run `{config.command}` again.")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "command": config.command,
        "oracle": "LOGO: the model retrained without each class, first seed",
        "config": dataclasses.asdict(config),
        "base_sha256": model.sha256,
        "groups": group_ids(config),
        "sets": sets,
        "queries": [q.image_hash[:16] for q in of],
        "costs": costs(model, config, len(of)),
        "trainings_cpu_s": {j.name: stages.record_of(j.name)["cpu_seconds"] for j in queue(config)},
    }
    np.savez_compressed(scores_file(folder, config.name), **found)  # type: ignore[arg-type]
    samples(model, config, pictures / f"{config.name}-samples.png")
    path = folder / f"{config.name}.json"
    keep_record(path, {**record, **result_tables.make(found, sets, (FIRST,))})
    return path


def write_table(folder: Path, name: str) -> Path:
    """Make the rows of <name>.json again from the committed scores alone: seconds, no model needed.

    Raises:
        DataError: there are no scores.
    """
    path = folder / f"{name}.json"
    if not path.is_file() or not scores_file(folder, name).is_file():
        raise DataError(f"There is no {scores_file(folder, name).name} with its {path.name} in {folder}.")
    record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    with np.load(scores_file(folder, name), allow_pickle=False) as z:
        found = {k: z[k] for k in z.files}
    path.write_text(
        json.dumps({**record, **result_tables.make(found, record["sets"], (FIRST,))}, indent=1), encoding="utf-8"
    )
    return path


def run_all(
    config: BenchConfig, folder: Path, pictures: Path, minutes: float | None = None
) -> Iterator[tuple[str, float]]:
    """Run the benchmark (see `classes.run`) and, when it is complete, write everything; yields (what, fraction)."""
    yield from run(config, minutes=minutes)
    if trained(config):
        one_by_one = cache(config, full_model(config)) / "written"  # processes that share the work end together
        with claimed(one_by_one, wait=True):
            write(config, folder, pictures)


def command(config: BenchConfig, folder: Path, minutes: float | None, table_only: bool) -> None:
    """Run the benchmark, or only make its table, and say what came of it."""
    if table_only:
        say(f"Written: {write_table(folder, config.name)}")
        return
    follow(run_all(config, folder, DOCS, minutes))
    say(f"Written: {folder / config.name}.json" if trained(config) else "Stopped. The same command goes on from here.")
