"""The styles benchmark: which models are scored, the arrays that are committed, and the table made from them alone.

The oracle is LOGO: score_k = ELBO(full) - ELBO(retrained without k), both from the first seed. Where every group has
its coded model (the live oracle), those are the oracle: they are there for anyone to score again, and drawn with less
error than the ones whose values alone were kept. The ceiling is the same from the second seed: what one retraining
tells of another.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.baselines.instance import Instance, InstanceConfig
from experiments.benchmark import fair, fresh, offset_tables, result_tables, rows, where_tables
from experiments.benchmark.baseline_scores import Scorer, read_scores, score_baseline
from experiments.benchmark.clock import Clock
from experiments.benchmark.models import (
    BASE,
    ORACLES,
    VARIANT_DRAWS,
    Source,
    cache,
    draws_of,
    path_of,
    role_of,
    sources,
)
from experiments.benchmark.queries import FRESH, Queries, QueryConfig, read, write
from experiments.benchmark.result_tables import GUDA, LIVE, ORACLE, SECOND, WITH_OFFSET
from experiments.benchmark.scores import SCORINGS, Plan, ScoreConfig, is_complete, score, separable, values
from experiments.benchmark.strata import make_strata
from experiments.logo import oracle_values, trainings
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core.attribution.ensemble import GudaAndDas, mean_of
from guda_core.attribution.gradient.kernel import KernelMethod
from guda_core.attribution.guda import Guda
from guda_core.attribution.introstyle import IntroStyle
from guda_core.attribution.similarity import AGGREGATES, ClipSimilarity
from guda_core.data.captions import captioner_of
from guda_core.data.encoded import examples_of
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion import likelihood
from guda_core.errors import DataError
from guda_core.local import LocalService
from guda_core.versions import versions
from guda_core.work_queue import claimed, deadline, shared_out

INSTANCE_EXAMPLES, INSTANCE_TIMESTEPS = 8, 5  # of each group; it costs a forward pass an example, timestep and query
SAMPLE_STEPS = 25  # of the pictures that are kept of every model of the oracle
ARRAYS, TABLE = "styles-scores.npz", "styles.json"
SHOWN = (WITH_OFFSET, "das", "clip-mean")  # of the methods, whose first places are counted group by group


def common(service: LocalService, queries: Queries) -> dict[str, str]:
    """What all rows depend on."""
    return {"base_sha256": service.model.sha256, "queries_sha256": oracle_values.queries_sha256(queries.queries)}


def made_from(service: LocalService, config: ScoreConfig, unet: UnetConfig) -> dict[str, Any]:
    """role -> what its rows are made from, of adapters and baselines (the oracle's models are kept by themselves)."""
    out: dict[str, Any] = {}
    for s in sources(service, unet):
        if s.role not in (*ORACLES, BASE):
            own = out.setdefault(s.role, {"config": draws_of(s.role, config).plain(), "weights_sha256": {}})
            own["weights_sha256"][s.group] = s.sha256
            if s.role == "guda" and service.method(Guda).offset:
                own["offset"] = service.method(Guda).offset
    return out | {b.name: b.made_from for b in baselines(service)}


def standing(
    service: LocalService, folder: Path, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, dict[str, np.ndarray]]:
    """role -> its committed rows, of what need not be scored again."""
    return rows.standing(folder / ARRAYS, common(service, queries), made_from(service, config, unet))


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


class Baseline(NamedTuple):
    """A row: its name, the method, and what its scores depend on beside the model and the queries."""

    name: str
    method: Scorer
    made_from: dict[str, Any]


def baselines(service: LocalService) -> Iterator[Baseline]:
    """The kernel methods as the app offers them, and instance unlearning over some of the training pictures of each
    group; none where the model runs in a coarser type than float32, which would be unfair to gradients."""
    if service.model.dtype != torch.float32:
        return
    for name, method in service.offered.items():
        if isinstance(method, IntroStyle):
            yield Baseline(name, method, method.provenance())
        if not isinstance(method, KernelMethod):
            continue
        yield Baseline(name, method, {"config": asdict(method.config), "features": method.features.settings})
    gs, seen = service.group_set, Counter[str]()
    train = load_pictures(gs, "train")
    kept = []
    for i, g in enumerate(train.groups):
        seen[g] += 1
        kept += [i] * (seen[g] <= INSTANCE_EXAMPLES)
    some = train.at(kept)
    config = InstanceConfig(timesteps=INSTANCE_TIMESTEPS)
    method = Instance(service.model, examples_of(service.model, some, captioner_of(gs)), list(gs.groups), config)
    yield Baseline("instance", method, {"config": asdict(config), "pictures_sha256": some.sha256()})


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


def _scored(service: LocalService, source: Source, queries: Queries, config: ScoreConfig) -> bool:
    own = draws_of(source.role, config)
    return is_complete(path_of(service, source, queries.name), source.sha256, own, queries.queries)


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
        if s.role not in ORACLES or not _scored(service, s, queries, config) or _is_kept(folder, s, queries, own):
            continue
        with service.model.lock, s.within():
            samples = service.model.generate(prompts, seeds=seeds, steps=SAMPLE_STEPS, guidance=2.5)
        stage = {} if s.role == "full" else _stage(s.key)
        oracle_values.keep(
            folder, s.key, np.load(path_of(service, s)), samples,
            sha256=s.sha256, of=queries.queries, config=own, training=stage,
        )  # fmt: skip
        yield f"keep {s.key}", 1.0


def _stage(name: str) -> dict[str, Any]:
    return json.loads((stages.work_dir() / name / "stage.json").read_text(encoding="utf-8"))


def found_values(
    service: LocalService, folder: Path, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, dict[str | None, np.ndarray]]:
    """role -> group -> (Q, K, M): of what is scored in the cache, and of the oracle's models that are only kept."""
    found: dict[str, dict[str | None, np.ndarray]] = {}
    for s in sources(service, unet):
        if _scored(service, s, queries, config):
            found.setdefault(s.role, {})[s.group] = np.load(path_of(service, s, queries.name))
    if queries.name:
        return found
    jobs = [(job.name, role_of(job, unet), job.exclude) for job in trainings.queue(service.group_set, unet)]
    for name, role, group in [("full", "full", None), *jobs]:
        if group not in found.get(role, {}):
            own = draws_of(role, config)
            values_there = oracle_values.values_of(folder, name, of=queries.queries, config=own)
            if values_there is not None:
                found.setdefault(role, {})[group] = values_there
    return found


def arrays(
    service: LocalService, folder: Path, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, np.ndarray]:
    """What is committed: (Q, G) float32 scores of every row, the live oracle's as "logo-live", the first seed's kept
    values as "logo", NaN for groups that have no model;
    and the oracle's standard errors of sampling as "se/logo", "se/logo-2" and "se/logo-live".

    A method some of whose adapters are not scored yet is left out."""
    ids, of = list(service.group_set.groups), queries.queries
    found = found_values(service, folder, queries, config, unet)
    if "full" not in found and not (queries.name and BASE in found):
        raise DataError("The full model has no values yet. Run `python -m experiments.styles`.")
    there = standing(service, folder, queries, config, unet)
    partly = {s.role for s in sources(service, unet) if not _scored(service, s, queries, config)} - set(ORACLES)
    if "guda" in found and config.draws > VARIANT_DRAWS:
        found[f"guda/{VARIANT_DRAWS}-draws"] = {g: v[:, :, :VARIANT_DRAWS] for g, v in found["guda"].items()}
    plans: dict[ScoreConfig, Plan] = {}
    out: dict[str, np.ndarray] = {}
    for role, by_group in found.items():
        if role.startswith("full") or role == BASE or role.split("/")[0] in partly or len(by_group) < 2:
            continue
        if role not in ORACLES and BASE not in found:  # committed rows stand in
            continue
        full = found["full" if role in ORACLES else BASE][None]
        if role == SECOND and "full-2" in found:  # the same for all groups: it moves their scores together and leaves
            full = found["full-2"][None]  # ranks as they are
        without = {g: by_group[g] for g in ids if g in by_group}
        own_config = draws_of(role, config)
        if own_config not in plans:
            plans[own_config] = Plan.of(service.model, of, own_config)
        full, plan = full[:, :, own_config.first : own_config.columns.stop], plans[own_config]
        strata = make_strata(service.model.schedule, own_config.strata, own_config.rule)
        for scoring in SCORINGS:
            if scoring != "elbo" and role not in (ORACLE, LIVE, "guda"):
                continue
            scores = np.full((len(of), len(ids)), np.nan, np.float32)
            scores[:, [ids.index(g) for g in without]] = score(full, without, plan, scoring)
            out[role if scoring == "elbo" else f"{role}/{scoring}"] = scores
            if scoring == "elbo":
                own = {g: v for g, v in without.items() if g is not None}
                offset = np.array([service.method(Guda).offset.get(g, 0.0) if role == "guda" else 0.0 for g in own])
                if offset.any():  # the app's scores have it; the paper's is the drop alone
                    out[f"{role}/drop"] = scores
                    out[role] = scores.copy()
                    out[role][:, [ids.index(g) for g in own]] += offset.astype(np.float32)
                out[f"separable/{role}"] = separable(own, score(full, own, plan) + offset, strata, offset)
                if role in (*ORACLES, LIVE):
                    out[f"se/{role}"] = errors = np.full_like(scores, np.nan)
                    for g, v in own.items():
                        drops = (
                            likelihood.elbo_drop(full=f, without=w, strata=strata) for f, w in zip(full, v, strict=True)
                        )
                        errors[:, ids.index(g)] = [d.se for d in drops]
    for aggregate in AGGREGATES:
        clip = ClipSimilarity(service.encoder(), service.group_set, aggregate)
        rows = [[a.groups[g].score for g in ids] for q in of for a in clip.attribute(q)]
        out[f"clip-{aggregate}"] = np.array(rows, np.float32)
    out |= read_scores(
        cache(service, queries.name) / "baselines", of, {b.name: b.made_from for b in baselines(service)}
    )
    for role, stand in there.items():
        out |= {} if role in out else stand
    parts = [out[p] for p in GudaAndDas.needs if p in out]
    if len(parts) == len(GudaAndDas.needs) and not any(np.isnan(p).any() for p in parts):
        out[GudaAndDas.id] = mean_of(*parts).astype(np.float32)
    rng = np.random.default_rng(0)
    out["random"] = rng.normal(size=(len(of), len(ids))).astype(np.float32)
    return out


class Compared(NamedTuple):
    """The rows of the tables, and of each query its set and what it was made of."""

    scores: dict[str, np.ndarray]
    sets: list[str]
    made_of: list[list[str]]
    base_sha256: str


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
    ids = dict.fromkeys(g for i in items for g in i["groups"])  # the columns, in order
    weights = fresh.weights() if record.get("name") == fresh.NAME else None
    scores = fair.with_fair_rows(scores, items, {g: groups[g].descriptors for g in ids}, weights)
    return Compared(scores, [i["set"] for i in items], [i["groups"] for i in items], record["base_sha256"])


def write_table(folder: Path) -> Path:
    """Make `styles.json` from the committed arrays and queries alone: seconds, no model needed.

    Raises:
        DataError: there are no arrays, or the oracle is not complete.
    """
    scores, sets, made_of, base_sha256 = compared(folder)
    ours = (GUDA, WITH_OFFSET, GudaAndDas.id)
    if (dtypes := fresh.recorded_dtypes(rows.note(folder / ARRAYS))) is not None:
        found = fresh.table(scores, sets, made_of, ours, dtypes) | {"base_sha256": base_sha256}
        (folder / TABLE).write_text(json.dumps(found, indent=1), encoding="utf-8")
        return folder / TABLE
    out = {
        "command": "python -m experiments.styles",
        "oracle": "LOGO: the UNet retrained without each group, first seed"
        + (", in coded form (the live oracle)" if result_tables.BEFORE in scores else ""),
        "base_sha256": base_sha256,
        **result_tables.make(scores, sets, ours, made_of),
        **result_tables.against_the_mean(scores, sets, ours),
        "where_missed": where_tables.where_missed(scores, sets, made_of),
        "where_separable": where_tables.where_separable(scores, sets),
        "where_unsure": where_tables.where_unsure(scores, sets),
        "where_unsure_again": where_tables.where_unsure(scores, sets, result_tables.BEFORE),
        "by_group": where_tables.by_group(scores, sets, made_of, (WITH_OFFSET,)),
        "first_places": where_tables.first_places(scores, sets, made_of, SHOWN),
        "if_calibrated": where_tables.if_calibrated(scores, sets),
        "offset_weights": offset_tables.offset_weights(scores, sets),
        "offset_fit": offset_tables.offset_fit(scores, sets),
        "of_others": where_tables.of_others(scores, sets, made_of),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / TABLE).write_text(json.dumps(out, indent=1), encoding="utf-8")
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
    queries, config, unet = queries or (FRESH if draw else QueryConfig()), config or ScoreConfig(), UnetConfig()
    if not (folder / "queries.json").is_file():
        more = {"apart": fresh.looked_at(service.group_set), "command": fresh.COMMAND, "name": draw} if draw else {}
        for fraction in write(service.model, service.group_set, queries, folder, **more):
            yield "queries", fraction
    made = read(folder, service.group_set, service.model)
    began = time.monotonic()
    yield from collect(service, folder, made, config, unet, minutes)
    yield from keep_oracle(service, folder, made, config, unet)
    left = None if minutes is None else minutes - (time.monotonic() - began) / 60
    if left is None or left > 0:
        yield from collect_baselines(service, made, standing(service, folder, made, config, unet), left)
    if (BASE if made.name else "full") not in found_values(service, folder, made, config, unet):
        return  # stopped before there is anything to write
    with claimed(cache(service, made.name) / ARRAYS, wait=True):
        scores = arrays(service, folder, made, config, unet)
        before = {r: m["from"] for r, m in rows.recorded(folder / ARRAYS, common(service, made)).items()}
        of = {role: m for role, m in (before | made_from(service, config, unet)).items() if role in scores}
        rows.write(folder / ARRAYS, scores, common(service, made), of, **_types(service, made, config, unet))
        truth = scores.get(LIVE if made.name else ORACLE)
        if "guda" in scores and truth is not None and not np.isnan(truth).any():
            write_table(folder)


def _types(
    service: LocalService, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, dict[str, list[str]]]:
    """The types that models were scored in; of the fresh queries alone, where they may differ."""
    paths: dict[str, list[Path]] = {}
    for s in sources(service, unet) if queries.name else ():
        if _scored(service, s, queries, config):
            paths.setdefault(s.role, []).append(path_of(service, s, queries.name))
    return {"dtypes": fresh.dtypes_of(paths)} if paths else {}
