"""What the styles benchmark compares: the (Q, G) scores of every row, from the values that are there.

A row is a method's scores of all queries and groups. It is made anew when what it is made from changed, and stands
otherwise (`rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.baselines.instance import Instance, InstanceConfig
from experiments.benchmark import rows
from experiments.benchmark.baseline_scores import Scorer, read_scores
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
from experiments.benchmark.queries import Queries
from experiments.benchmark.result_tables import GUDA, LIVE, ORACLE, SECOND
from experiments.benchmark.scores import SCORINGS, Plan, ScoreConfig, is_complete, score, separable
from experiments.benchmark.strata import make_strata
from experiments.logo import oracle_values, trainings
from experiments.train.unet import UnetConfig
from guda_core.attribution.ensemble import GudaAndDas, mean_of
from guda_core.attribution.gradient.kernel import KernelMethod
from guda_core.attribution.guda import Guda
from guda_core.attribution.introstyle import IntroStyle
from guda_core.attribution.similarity import AGGREGATES, ClipSimilarity
from guda_core.data.captions import captioner_of
from guda_core.data.encoded import examples_of
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion import likelihood
from guda_core.errors import DataError
from guda_core.local import LocalService

INSTANCE_EXAMPLES, INSTANCE_TIMESTEPS = 8, 5  # of each group; it costs a forward pass an example, timestep and query
ARRAYS = "styles-scores.npz"


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


def scored(service: LocalService, source: Source, queries: Queries, config: ScoreConfig) -> bool:
    """Whether the cache holds all values of a source."""
    own, path = draws_of(source.role, config), path_of(service, source, queries.name)
    return is_complete(path, source.sha256, own, queries.queries, service.model.dtype)


def found_values(
    service: LocalService, folder: Path, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, dict[str | None, np.ndarray]]:
    """role -> group -> (Q, K, M): of what is scored in the cache, and of the oracle's models that are only kept."""
    found: dict[str, dict[str | None, np.ndarray]] = {}
    for s in sources(service, unet):
        if scored(service, s, queries, config):
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


def is_begun(found: Container[str], there: Container[str], queries: Queries) -> bool:
    """Whether there is a row to write. found: roles that have values; there: those whose committed rows stand."""
    return (BASE in found or GUDA in there) if queries.name else "full" in found


def arrays(
    service: LocalService, folder: Path, queries: Queries, config: ScoreConfig, unet: UnetConfig
) -> dict[str, np.ndarray]:
    """What is committed: (Q, G) float32 scores of every row, the live oracle's as "logo-live", the first seed's kept
    values as "logo", NaN for groups that have no model;
    and the oracle's standard errors of sampling as "se/logo", "se/logo-2" and "se/logo-live".

    A method some of whose adapters are not scored yet is left out."""
    ids, of = list(service.group_set.groups), queries.queries
    found, there = (
        found_values(service, folder, queries, config, unet),
        standing(service, folder, queries, config, unet),
    )
    if not is_begun(found, there, queries):
        raise DataError("The full model has no values yet. Run `python -m experiments.styles`.")
    partly = {s.role for s in sources(service, unet) if not scored(service, s, queries, config)} - set(ORACLES)
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
