"""The benchmark of one's own model and group set: GUDA and every other method held against its own oracle.

    score_k = ELBO(full) - ELBO(without k)      nats; full: the fine-tuned model; without k: the oracle's, or GUDA's

The same queries, values, rows and intervals as the styles benchmark (`styles_run`). The oracle is scored in draws that
no method shares. In the run's folder `logo`:

    queries.npz, queries.json   the queries
    scores.npz                  (Q, G) scores by row, as in the styles' arrays
    logo.json                   the table of agreement

and beside it `calibration.json`, the weight of the offset, fitted to the tuning half of the queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import offset
from experiments.benchmark import fair, result_tables
from experiments.benchmark.baseline_scores import read_scores, score_baseline
from experiments.benchmark.clock import Clock
from experiments.benchmark.models import BASE, Source, cache, draws_of, path_of, without_group
from experiments.benchmark.queries import Queries, QueryConfig, read, write
from experiments.benchmark.result_tables import DROP, GUDA, LIVE, ORACLE, SECOND, WITH_OFFSET
from experiments.benchmark.scores import Plan, ScoreConfig, is_complete, score, values
from experiments.commands import keep_record
from guda_core import paths
from guda_core.attribution import calibration
from guda_core.attribution.gradient.kernel import KernelMethod
from guda_core.attribution.similarity import ClipSimilarity
from guda_core.diffusion.base_model import Card
from guda_core.errors import AdapterError, CacheError, DataError
from guda_core.local import LocalService
from guda_core.paths import Folder
from guda_core.versions import today
from guda_core.work_queue import claimed, shared_out

SCORES, TABLE = "scores.npz", "logo.json"
LARGE_GUIDANCE = 7.5  # of sampling, from 256 px on; a common choice for Stable Diffusion
FITTED = "least squares to the scores of retrained models, tuning half of the queries"


@dataclass(frozen=True)
class OwnBench:
    """service: of the fine-tuned model. groups: ids that have a retrained model. second: the folder of those from a
    second seed. command: what makes it."""

    service: LocalService
    groups: tuple[str, ...]
    second: Path
    command: str

    @property
    def run(self) -> paths.Run:
        return paths.run(self.service.model.card.id, self.service.group_set.id)

    @property
    def folder(self) -> Path:
        return self.run.own / "logo"

    def folders(self) -> dict[str, Folder]:
        """role -> where its models without a group are."""
        return {LIVE: self.run.oracle, "guda": self.run.adapters, SECOND: self.second}


def _draws(role: str, config: ScoreConfig) -> ScoreConfig:
    """As in the styles benchmark; the ceiling is scored as GUDA is, in other draws than the oracle."""
    return draws_of("guda" if role == SECOND else role, config)


def sources(bench: OwnBench) -> list[Source]:
    """The full model, and every model without a group that fits it."""
    model = bench.service.model
    out = [Source(BASE, BASE, None, model.sha256, partial(nullcontext))]
    for role, folder in bench.folders().items():
        for g in bench.groups:
            try:
                sha256, within = without_group(model, folder / g, g)  # type: ignore[arg-type]
            except AdapterError:
                continue
            out.append(Source(f"{role}/{g}", role, g, sha256, within))
    return out


def default_queries(service: LocalService) -> QueryConfig:
    """`queries_for` the service's model."""
    return queries_for(service.model.card)


def queries_for(card: Card) -> QueryConfig:
    """Twenty generated pictures a group, and up to twenty real ones."""
    large = card.resolution >= 256
    return QueryConfig(objects=20, blend_objects=0, real=20, guidance=LARGE_GUIDANCE if large else 2.5)


def run(bench: OwnBench, queries: QueryConfig | None = None, config: ScoreConfig | None = None) -> Iterator[Any]:
    """Draw the queries if there are none, score all that can be, and write scores, calibration and table; yields (what,
    fraction). Processes started side by side share the models out.

    Raises:
        DataError: a retrained model is missing, or the queries that are there were drawn with other settings.
    """
    service, folder, config = bench.service, bench.folder, config or ScoreConfig()
    with claimed(cache(service) / "queries", wait=True):
        if not (folder / "queries.json").is_file():
            asked = queries or default_queries(service)
            drawn = write(service.model, service.group_set, asked, folder, command=bench.command)
            yield from (("queries", f) for f in drawn)
    made = _of_groups(read(folder, service.group_set, service.model, queries), bench.groups)
    found = sources(bench)
    for s in shared_out(found, lambda s: path_of(service, s)):
        own = _draws(s.role, config)
        if not is_complete(path_of(service, s), s.sha256, own, made.queries, service.model.dtype):
            for f in values(service.model, made.queries, s.within, own, path_of(service, s), s.sha256):
                yield s.key, f
    yield from _baselines(bench, made)
    with claimed(cache(service) / SCORES, wait=True):
        _write(bench, made, found, config)


def _of_groups(made: Queries, groups: Sequence[str]) -> Queries:
    """The queries that were made of these groups alone."""
    kept = [i for i, item in enumerate(made.items) if set(item.groups) <= set(groups)]
    queries, items = (tuple(x[i] for i in kept) for x in (made.queries, made.items))
    return Queries(queries, items, made.base_sha256)  # type: ignore[arg-type]


def _kernels(service: LocalService) -> dict[str, KernelMethod]:
    return {k: m for k, m in service.offered.items() if isinstance(m, KernelMethod)}


def _baselines(bench: OwnBench, made: Queries) -> Iterator[tuple[str, float]]:
    """Score the gradient methods that the app offers."""
    service, folder = bench.service, cache(bench.service) / "baselines"
    for name, m in _kernels(service).items():
        with claimed(folder / name, wait=True):
            where, clock = folder / f"{name}.npy", Clock(folder.parent / "costs.json")
            for f in score_baseline(name, m, m.provenance(), made.queries, bench.groups, where, clock):
                yield name, f


def scores_of(bench: OwnBench, made: Queries, found: Sequence[Source], config: ScoreConfig) -> dict[str, np.ndarray]:
    """(Q, G) scores by row: "logo", "logo-2", "guda" (the drop alone), "clip-mean" and the gradient methods.

    Raises:
        DataError: a retrained model is missing.
    """
    service, out = bench.service, {}
    full = np.load(path_of(service, found[0]))
    for role in bench.folders():
        by = {s.group: np.load(path_of(service, s)) for s in found if s.role == role}
        if role == LIVE and set(by) != set(bench.groups):
            lacking = ", ".join(g for g in bench.groups if g not in by)
            raise DataError(f"The oracle is not complete: there is no model without {lacking}. Run {bench.command}")
        if not by or (role == "guda" and len(by) < len(bench.groups)):
            continue
        own = _draws(role, config)
        plan = Plan.of(service.model, made.queries, own)
        without = {g: by[g] for g in bench.groups if g in by}
        scores = np.full((len(made.queries), len(bench.groups)), np.nan, np.float32)
        at = [bench.groups.index(g) for g in without]
        scores[:, at] = score(full[:, :, own.first : own.columns.stop], without, plan)
        out[ORACLE if role == LIVE else role] = scores
    clip = service.offered.get(ClipSimilarity.id)
    if isinstance(clip, ClipSimilarity):
        rows = [[a.groups[g].score for g in bench.groups] for q in made.queries for a in clip.attribute(q)]
        out["clip-mean"] = np.array(rows, np.float32)
    kernels = {k: m.provenance() for k, m in _kernels(service).items()}
    return out | read_scores(cache(service) / "baselines", made.queries, kernels)


def calibrate(bench: OwnBench, made: Queries, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fit the offset's weight and write it for the product; returns what a table should say of it. The scores get the
    row with the offset. Where the fit gives no weight there is no calibration, and the score stays the paper's."""
    model, gs = bench.service.model, bench.service.group_set
    path, sets = bench.run.own / calibration.FILE, [i.set for i in made.items]
    try:
        each = offset.offsets(bench.run.adapters, bench.groups)
        of = calibration.fitted_with(bench.run.adapters, bench.groups)
    except (DataError, AdapterError, CacheError) as e:
        return {"none": str(e)}
    try:
        weight, n = offset.fit_scores(scores["guda"], scores[ORACLE], sets, each)
    except DataError as e:
        path.unlink(missing_ok=True)
        return {"none": str(e), "queries": int(result_tables.tuning_half(sets).sum())}
    how = {"fitted": FITTED, "queries": n, "unrounded": weight, "command": bench.command, "date": today()}
    if set(bench.groups) == set(gs.groups):
        calibration.write_weight(path, round(weight, 2), base_sha256=model.sha256, group_set=gs.id, **how, **of)
    scores[DROP] = scores["guda"]
    scores["guda"] = (scores["guda"] + round(weight, 2) * each).astype(np.float32)
    return {"offset_weight": round(weight, 2), **how}


def _write(bench: OwnBench, made: Queries, found: Sequence[Source], config: ScoreConfig) -> None:
    scores = scores_of(bench, made, found, config)
    missing = {"none": "GUDA's adapters are not complete."}
    told = calibrate(bench, made, scores) if "guda" in scores else missing
    np.savez_compressed(bench.folder / SCORES, **scores)  # type: ignore[arg-type]  (names, not allow_pickle)
    gs, model = bench.service.group_set, bench.service.model
    items = [{"set": i.set, "groups": list(i.groups), "prompt": i.prompt} for i in made.items]
    descriptors = {g: gs.groups[g].descriptors for g in bench.groups}
    rows = fair.with_fair_rows(scores, items, descriptors)
    rng = np.random.default_rng(0)
    rows["random"] = rng.normal(size=rows[ORACLE].shape).astype(np.float32)
    sets, made_of = [i["set"] for i in items], [i["groups"] for i in items]
    record = {
        "command": bench.command,
        "oracle": "LOGO: the base model fine-tuned again without each group, first seed",
        "base_sha256": model.sha256,
        "model": model.card.id,
        "group_set": gs.id,
        "groups": list(bench.groups),
        "scores": config.plain(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "calibration": told,
        **result_tables.make(rows, sets, (GUDA, WITH_OFFSET), made_of, fair.others(items, descriptors)),
    }
    keep_record(bench.folder / TABLE, record)
