"""The styles benchmark: which models are scored, and the table, made from the committed arrays alone (`styles_arrays`).

The oracle is LOGO: score_k = ELBO(full) - ELBO(retrained without k), both from the first seed. Where every group has
its coded model (the live oracle), those are the oracle: they are there for anyone to score again, and drawn with less
error than the ones whose values alone were kept. The ceiling is the same from the second seed: what one retraining
tells of another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.benchmark import fair, fresh, offset_tables, result_tables, rows, where_tables
from experiments.benchmark.baseline_scores import score_baseline
from experiments.benchmark.clock import Clock
from experiments.benchmark.models import (
    BASE,
    ORACLES,
    Source,
    cache,
    draws_of,
    path_of,
    sources,
)
from experiments.benchmark.queries import FRESH, Queries, QueryConfig, read, write
from experiments.benchmark.result_tables import GUDA, LIVE, ORACLE, WITH_OFFSET
from experiments.benchmark.scores import ScoreConfig, values
from experiments.benchmark.styles_arrays import (
    ARRAYS,
    Baseline,
    arrays,
    baselines,
    common,
    found_values,
    is_begun,
    made_from,
    scored,
    standing,
)
from experiments.commands import keep_record
from experiments.logo import oracle_values
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core.attribution.ensemble import GudaAndDas
from guda_core.data.groups import load_group_set
from guda_core.errors import DataError
from guda_core.local import LocalService
from guda_core.work_queue import claimed, deadline, shared_out

SAMPLE_STEPS = 25  # of the pictures that are kept of every model of the oracle
TABLE = "styles.json"
SHOWN = (WITH_OFFSET, "das", "clip-mean")  # of the methods, whose first places are counted group by group


def collect(
    service: LocalService,
    folder: Path,
    queries: Queries,
    config: ScoreConfig,
    unet: UnetConfig,
    minutes: float | None = None,
) -> Iterator[tuple[str, float]]:
    """Compute and cache the values of every source that neither stands in the committed rows nor is kept; yields
    (source, fraction). Stops after `minutes`, to be resumed.

    Processes started side by side share the sources out."""
    until = deadline(minutes)
    there = standing(service, folder, queries, config, unet)
    new = {s.role for s in sources(service, unet)} - {*ORACLES, BASE, *there}
    for s in shared_out(sources(service, unet), lambda s: path_of(service, s, queries.name)):
        own, path = draws_of(s.role, config), path_of(service, s, queries.name)
        if s.role in there or _is_kept(folder, s, queries, own):
            continue
        if s.role == BASE and not new:
            continue
        for fraction in values(service.model, queries.queries, s.within, own, path, s.sha256):
            yield s.key, fraction
            if time.monotonic() > until:
                return


def _is_kept(folder: Path, source: Source, queries: Queries, config: ScoreConfig) -> bool:
    """Whether a model of the oracle need not be scored. A retrained model stays as it was first scored, whatever it is
    trained again for (no two trainings give the same weights bit by bit on all machines)."""
    if queries.name and source.role in ORACLES:
        return True  # only the first draw knows these
    sha256 = source.sha256 if source.role == "full" else None
    return source.role in ORACLES and oracle_values.is_kept(
        folder, source.key, sha256=sha256, of=queries.queries, config=config
    )


def collect_baselines(
    service: LocalService, queries: Queries, there: Container[str], minutes: float | None = None
) -> Iterator[tuple[str, float]]:
    """Score every query by every baseline that is not `there`, resumable; yields (method, fraction).

    Processes started side by side share the methods out."""
    folder, until = cache(service, queries.name), deadline(minutes)
    clock, of, ids = Clock(folder / "costs.json"), queries.queries, list(service.group_set.groups)

    def path(b: Baseline) -> Path:
        return folder / "baselines" / f"{b.name}.npy"

    for b in shared_out((b for b in baselines(service) if b.name not in there), path):
        for fraction in score_baseline(b.name, b.method, b.made_from, of, ids, path(b), clock):
            yield b.name, fraction
            if time.monotonic() > until:
                return


def keep_oracle(
    service: LocalService, folder: Path, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> Iterator[tuple[str, float]]:
    """Keep values and samples of the full model and of every scored one of the oracle beside the queries; yields
    (model, fraction)."""
    if queries.name:
        return  # the oracle's values are those of the first draw
    first = {i.groups[0]: i for i in reversed(queries.items) if i.set == "generated"}
    prompts, seeds = [i.prompt for i in first.values()], [i.seed for i in first.values()]
    for s in shared_out(sources(service, unet), lambda s: cache(service) / "kept" / s.key.replace("/", "--")):
        own = draws_of(s.role, config)
        if s.role not in ORACLES or not scored(service, s, queries, config) or _is_kept(folder, s, queries, own):
            continue
        with service.model.lock, s.within():
            samples = service.model.generate(prompts, seeds=seeds, steps=SAMPLE_STEPS, guidance=2.5)
        stage = {} if s.role == "full" else stages.record_of(s.key)
        oracle_values.keep(
            folder, s.key, np.load(path_of(service, s)), samples,
            sha256=s.sha256, of=queries.queries, config=own, training=stage,
        )  # fmt: skip
        yield f"keep {s.key}", 1.0


class Compared(NamedTuple):
    """The rows of the tables, of each query its set and what it was made of, and of whom it is not (`fair.others`)."""

    scores: dict[str, np.ndarray]
    sets: list[str]
    made_of: list[list[str]]
    others: np.ndarray
    base_sha256: str
    name: str = ""  # of the draw


def compared(folder: Path) -> Compared:
    """What the tables compare, from the committed arrays and queries alone.

    Raises:
        DataError: there are no arrays, or the oracle is not complete.
    """
    if not (folder / ARRAYS).is_file():
        raise DataError(f"There is no {ARRAYS} in {folder}. Run `python -m experiments.styles` first.")
    with np.load(folder / ARRAYS, allow_pickle=False) as z:
        scores = result_tables.with_the_live_oracle({k: z[k] for k in z.files})
    if ORACLE not in scores or np.isnan(scores[ORACLE]).any():
        raise DataError("The oracle is not complete: train it with `python -m experiments.logo`, then score again.")
    record = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    items = record["items"]
    groups = load_group_set(record["group_set"]).groups
    descriptors = {g: groups[g].descriptors for i in items for g in i["groups"]}  # the columns, in order
    name = record.get("name", "")
    weights = fresh.weights() if name == fresh.NAME else None
    scores, others = fair.with_fair_rows(scores, items, descriptors, weights), fair.others(items, descriptors)
    sets, made_of = [i["set"] for i in items], [i["groups"] for i in items]
    return Compared(scores, sets, made_of, others, record["base_sha256"], name)


def write_table(folder: Path) -> Path:
    """Make `styles.json` from the committed arrays and queries alone: seconds, no model needed.

    Raises:
        DataError: there are no arrays, or the oracle is not complete.
    """
    scores, sets, made_of, others, base_sha256, name = compared(folder)
    ours = (GUDA, WITH_OFFSET, GudaAndDas.id)
    if name == fresh.NAME:
        dtypes = fresh.recorded_dtypes(rows.note(folder / ARRAYS))
        found = fresh.table(scores, sets, made_of, others, ours, dtypes) | {"base_sha256": base_sha256}
        keep_record(folder / TABLE, found)
        return folder / TABLE
    out = {
        "command": "python -m experiments.styles",
        "oracle": "LOGO: the UNet retrained without each group, first seed"
        + (", in coded form (the live oracle)" if result_tables.BEFORE in scores else ""),
        "base_sha256": base_sha256,
        **result_tables.make(scores, sets, ours, made_of, others),
        **result_tables.against_the_mean(scores, sets, ours),
        "where_missed": where_tables.where_missed(scores, sets, made_of),
        "where_clear": where_tables.where_clear(scores, sets),
        "where_separable": where_tables.where_separable(scores, sets),
        "where_unsure": where_tables.where_unsure(scores, sets),
        "where_unsure_again": where_tables.where_unsure(scores, sets, result_tables.BEFORE),
        "by_group": where_tables.by_group(scores, sets, made_of, (WITH_OFFSET,)),
        "first_places": where_tables.first_places(scores, sets, made_of, SHOWN),
        "if_calibrated": where_tables.if_calibrated(scores, sets),
        "offset_weights": offset_tables.offset_weights(scores, sets),
        "offset_fit": offset_tables.offset_fit(scores, sets),
        "of_others": where_tables.of_others(scores, sets, made_of),
    }
    keep_record(folder / TABLE, out)
    return folder / TABLE


def written(folder: Path) -> Path:
    """What `run` has written last: the table, or the arrays while the oracle is not complete.

    Raises:
        DataError: it was stopped before there was anything to write.
    """
    for name in (TABLE, ARRAYS):
        if (folder / name).is_file():
            return folder / name
    raise DataError("Nothing is written yet: the full model is not scored. Run the same command again to go on.")


def run(
    service: LocalService,
    folder: Path,
    *,
    queries: QueryConfig | None = None,
    config: ScoreConfig | None = None,
    minutes: float | None = None,
    draw: str = "",
) -> Iterator[tuple[str, float]]:
    """Draw the queries if there are none, score everything that can be, write the arrays and, once the oracle and GUDA
    are complete, the table. draw: "" for the first queries, or "fresh" (`fresh`)."""
    torch.set_flush_denormal(True)
    deadline(minutes)  # refuses what is no time before anything is begun
    config, unet = config or ScoreConfig(), UnetConfig()
    if not (folder / "queries.json").is_file():
        more = {"apart": fresh.looked_at(service.group_set), "command": fresh.COMMAND, "name": draw} if draw else {}
        asked = queries or (FRESH if draw else QueryConfig())
        for fraction in write(service.model, service.group_set, asked, folder, **more):
            yield "queries", fraction
    made = read(folder, service.group_set, service.model, queries)
    began = time.monotonic()
    yield from collect(service, folder, made, config, unet, minutes)
    yield from keep_oracle(service, folder, made, config, unet)
    left = None if minutes is None else minutes - (time.monotonic() - began) / 60
    there = standing(service, folder, made, config, unet)
    if left is None or left > 0:
        yield from collect_baselines(service, made, there, left)
    if not is_begun(found_values(service, folder, made, config, unet), there, made):
        return  # stopped before there is anything to write
    with claimed(cache(service, made.name) / ARRAYS, wait=True):
        scores, of_all = arrays(service, folder, made, config, unet), common(service, made)
        before = {r: m["from"] for r, m in rows.recorded(folder / ARRAYS, of_all).items()}
        of = {role: m for role, m in (before | made_from(service, config, unet)).items() if role in scores}
        types = rows.recorded(folder / ARRAYS, of_all, "dtypes") | scored_types(service, made, config, unet)
        rows.write(folder / ARRAYS, scores, of_all, of, dtypes={r: t for r, t in types.items() if r in (BASE, *of)})
        truth = scores.get(LIVE) if made.name else scores.get(ORACLE, scores.get(LIVE))
        if "guda" in scores and truth is not None and not np.isnan(truth).any():
            write_table(folder)


def scored_types(
    service: LocalService, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, list[str]]:
    """role -> the type that it is scored in: of roles whose models and the full one are all scored in the type that the
    model now runs in. Committed rows stand in for the others, in the type they were scored in."""
    whole: dict[str, bool] = {}
    for s in sources(service, unet):
        whole[s.role] = whole.get(s.role, True) and scored(service, s, queries, config)
    own = [str(service.model.dtype).removeprefix("torch.")]
    return {role: own for role, done in whole.items() if done and whole[BASE] and role not in ORACLES}
