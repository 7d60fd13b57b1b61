"""The classes benchmark: ten classes as groups, an unconditional model, and its oracle; for digits and for CIFAR-10.

In order: train the full model, LOGO of every class and both from a second seed (the ceiling); unlearn every class; draw
the queries; compute every model's KL values at them (`scores.values`: (Q, K, M), the same (t, eps) for all but the
oracle, which shares no noise with the methods) and every baseline's scores. The oracle is LOGO, score_k = ELBO(full) -
ELBO(retrained without k), both from the first seed.

Everything is kept below `GUDA_CACHE` and resumed or skipped when it is there. Written are, into one folder,
<name>-scores.npz (the (Q, G) scores of every row), <name>.json (the table, made from those alone, and the costs) and
a picture of samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from experiments.baselines.classifier_similarity import ClassifierSimilarity
from experiments.baselines.instance import Instance
from experiments.benchmark.baseline_scores import Scorer, read_scores, score_baseline
from experiments.benchmark.benches import KERNELS, BenchConfig
from experiments.benchmark.clock import Clock
from experiments.benchmark.models import Source, swapped
from experiments.benchmark.result_tables import ORACLE
from experiments.benchmark.scores import Plan, ScoreConfig, hash_state, is_begun, is_complete, score, values
from experiments.train import class_models, stages
from experiments.train.classifier import train as train_classifier
from guda_core import paths
from guda_core.data.captions import NoCaptions
from guda_core.data.encoded import examples_of
from guda_core.data.images import hash_pixels
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import load_model
from guda_core.errors import AdapterError, DataError, TrainingError
from guda_core.records import Query
from guda_core.unlearning import adapters, switching
from guda_core.unlearning.config import UnconditionalConfig
from guda_core.unlearning.forget import Task, read_config
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.one_group import unlearn
from guda_core.versions import versions
from guda_core.work_queue import deadline, shared_out

BATCH = 100  # pictures drawn at a time
OF_ORACLE = "full-oracle"  # the full model, at the oracle's draws
FULL = {ORACLE: OF_ORACLE, f"{ORACLE}-2": "full-2"}  # role -> that of the full model that it is compared with


def group_ids(config: BenchConfig) -> list[str]:
    return list(class_models.group_set(config.models).groups)


def queue(config: BenchConfig) -> list[class_models.Job]:
    """All trainings in the order of work."""
    return class_models.queue(config.models, config.second_seed)


def full_model(config: BenchConfig) -> BaseModel:
    """The trained full model. Raises TrainingError when it is not there yet."""
    name = queue(config)[0].name
    if not stages.is_done(name):
        raise TrainingError(f"The model '{name}' is not trained yet. Run `{config.command}`.")
    return load_model(class_models.card(config.models, name))


def train_all(config: BenchConfig, minutes: float | None = None) -> Iterator[tuple[class_models.Job, Progress]]:
    """Work through the trainings, skipping what is done. Several processes share them out, and each ends when all are
    done.

    Stops after `minutes` with a checkpoint, to be resumed.

    On a GPU, or with several processes started by `accelerate launch`, accelerate shares every training.
    """
    until = deadline(minutes)
    shared = torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(mixed_precision=config.models.mixed_precision) if shared else None
    jobs = queue(config)
    mine = (job for job in jobs) if accelerator else shared_out(jobs, _folder_of, until)
    with closing(mine):
        for job in mine:
            if job.done:
                continue
            with closing(class_models.stage(job, accelerator)) as steps:
                for p in steps:
                    yield job, p
                    if time.monotonic() > until:
                        return
            if accelerator is not None:
                accelerator.wait_for_everyone()


def _folder_of(job: class_models.Job) -> Path:
    return stages.work_dir() / job.name


def cache(config: BenchConfig, model: BaseModel) -> Path:
    """Where adapters, values and scores over this model are kept."""
    return paths.cache_dir() / "benchmarks" / f"{config.name}-{model.sha256[:12]}"


def unlearn_all(model: BaseModel, config: BenchConfig, clock: Clock) -> Iterator[tuple[str, Progress]]:
    """Unlearn every class with every operator; those that are there with the same settings are skipped.

    Several processes share the work out."""
    of = class_models.pictures(config.models, "train")
    latents = class_models.encode_all(of, config.models)
    works = [(row, own, g) for row, own in config.unlearning.items() for g in group_ids(config)]
    for row, own, g in shared_out(works, lambda w: cache(config, model) / w[0] / w[2]):
        folder = cache(config, model) / row / g
        if _fits(folder, model, g, own):
            continue
        meta = {"data_sha256": of.sha256(), "versions": versions()}
        task = Task(model, of, latents, g, NoCaptions(class_models.group_set(config.models)))
        steps = unlearn(task, config=own, folder=folder, meta=meta)
        clock.forget(f"unlearn/{row}/{g}")  # of other settings, or of one that was stopped
        for p in clock.timed(f"unlearn/{row}/{g}", steps):
            yield f"{row}/{g}", p


def _fits(folder: Path, model: BaseModel, group: str, config: UnconditionalConfig) -> bool:
    try:
        meta = adapters.load(folder, model=model, group=group).meta
    except AdapterError:
        return False
    return read_config(meta["config"]) == config


def queries(model: BaseModel, config: BenchConfig) -> tuple[list[Query], list[str]]:
    """Held-out pictures, then generated ones; and the name of each one's set."""
    held = class_models.pictures(config.models, "held_out")
    seeds = range(config.query_seed * 1000, config.query_seed * 1000 + config.generated)
    generated: list[np.ndarray] = []
    for i in range(0, len(seeds), BATCH):
        part = seeds[i : i + BATCH]
        generated += list(model.generate([""] * len(part), seeds=part, steps=config.ddim_steps))
    sets = ["held_out"] * len(held) + ["generated"] * len(generated)
    return [Query(p, model.encode(p), "", hash_pixels(p)) for p in [*held.pixels, *generated]], sets


def sources(model: BaseModel, config: BenchConfig) -> list[Source]:
    """Every model that can be scored now: the full one, finished trainings, fitting unlearned models."""
    out = [Source(role, role, None, model.sha256, partial(nullcontext)) for role in ("full", OF_ORACLE)]
    for row, own in config.unlearning.items():
        for g in group_ids(config):
            folder = cache(config, model) / row / g
            if _fits(folder, model, g, own):
                adapter = adapters.load(folder, model=model, group=g)
                within = partial(switching.applied, model.network, adapter)
                out.append(Source(f"{row}/{g}", row, g, adapter.meta["sha256"], within))
    for job in queue(config):
        first = job.seed == config.models.loop.seed
        if job.done and not (first and job.exclude is None):
            state = load_file(stages.work_dir() / job.name / "unet" / "diffusion_pytorch_model.safetensors")
            role = ("full" if job.exclude is None else ORACLE) + ("" if first else "-2")
            out.append(Source(job.name, role, job.exclude, hash_state(state), partial(swapped, model.network, state)))
    return out


def draws_of(role: str, config: ScoreConfig) -> ScoreConfig:
    """The draws that models of a role are scored with: the oracle's, of the first seed, follow those of all others."""
    return replace(config, first=config.first + config.draws) if role in (ORACLE, OF_ORACLE) else config


def _path(model: BaseModel, config: BenchConfig, source: Source) -> Path:
    return cache(config, model) / "values" / f"{source.key.replace('/', '--')}.npy"


def collect(model: BaseModel, of: Sequence[Query], config: BenchConfig, clock: Clock) -> Iterator[tuple[str, float]]:
    """Compute and cache the values of every model; yields (model, fraction). What is there is skipped.

    Several processes may do this at once: they share out the models, and each returns when all values are there."""
    for s in shared_out(sources(model, config), lambda s: _path(model, config, s)):
        own, path, name = draws_of(s.role, config.scores), _path(model, config, s), f"score/{s.role}/{s.group}"
        if not is_begun(path, s.sha256, own, of, model.dtype):
            clock.forget(name)
        for fraction in clock.timed(name, values(model, of, s.within, own, path, s.sha256)):
            yield s.key, fraction


def made_from(config: BenchConfig) -> dict[str, Any]:
    """Row name of a baseline -> what its scores depend on beside the model, its training pictures and the queries."""
    instance = {"config": asdict(config.instance), "examples": config.instance_examples}
    return {k.id: asdict(config.kernels[k.id]) for k in KERNELS} | {
        "instance": instance,
        "classifier": asdict(config.classifier),
    }


def baselines(model: BaseModel, config: BenchConfig, clock: Clock) -> Iterator[tuple[str, Scorer]]:
    """(row name, method), each made ready."""
    of, ids = class_models.pictures(config.models, "train"), group_ids(config)
    examples = examples_of(model, of)
    for kind in KERNELS:
        yield kind.id, kind(model, examples, ids, config.kernels[kind.id])
    some = class_models.pictures(replace(config.models, per_class=config.instance_examples), "train")
    yield "instance", Instance(model, examples_of(model, some), ids, config.instance)
    classifier = None
    for _, classifier in clock.timed("prepare/classifier", train_classifier(of, config.classifier)):  # noqa: B007
        pass
    assert classifier is not None
    yield "classifier", ClassifierSimilarity(classifier, of, ids)


def collect_baselines(
    model: BaseModel, of: Sequence[Query], config: BenchConfig, clock: Clock
) -> Iterator[tuple[str, float]]:
    """Score every query by every baseline; yields (method, fraction). Shared out like `collect`."""
    folder, made = cache(config, model) / "baselines", made_from(config)
    for name, method in shared_out(baselines(model, config, clock), lambda row: folder / f"{row[0]}.npy"):
        for fraction in score_baseline(name, method, made[name], of, group_ids(config), folder / f"{name}.npy", clock):
            yield name, fraction


def arrays(model: BaseModel, of: Sequence[Query], config: BenchConfig) -> dict[str, np.ndarray]:
    """(Q, G) float32 scores of every row that is complete: "logo" (the oracle), "logo-2" (its ceiling, against the
    second full model), unlearned models by name, baselines, "random".

    Raises:
        DataError: the full model has no values yet.
    """
    found: dict[str, dict[str | None, np.ndarray]] = {}
    for s in sources(model, config):
        path = _path(model, config, s)
        if is_complete(path, s.sha256, draws_of(s.role, config.scores), of, model.dtype):
            found.setdefault(s.role, {})[s.group] = np.load(path)
    if "full" not in found:
        raise DataError("The full model has no values yet. Run `collect` first.")
    ids, out = group_ids(config), {}
    for role, by_group in found.items():
        full, plan = found.get(FULL.get(role, "full")), Plan.of(model, of, draws_of(role, config.scores))
        if not role.startswith("full") and full is not None and set(by_group) == set(ids):
            out[role] = score(full[None], {g: by_group[g] for g in ids}, plan).astype(np.float32)
    out |= read_scores(cache(config, model) / "baselines", of, made_from(config))
    out["random"] = np.random.default_rng(0).normal(size=(len(of), len(ids))).astype(np.float32)
    return out


def trained(config: BenchConfig) -> bool:
    """Whether this process goes on after the trainings: all are done, and it is the first of those that
    `accelerate launch` started, whose help only the trainings need."""
    return all(job.done for job in queue(config)) and int(os.environ.get("RANK", "0")) == 0


def run(config: BenchConfig, *, minutes: float | None = None) -> Iterator[tuple[str, float]]:
    """Everything up to the scores, in order, resumable; yields (what, fraction)."""
    torch.set_flush_denormal(True)
    for job, p in train_all(config, minutes):
        yield f"train {job.name}", p.step / p.steps
    if not trained(config):
        return
    model = full_model(config)
    clock = Clock(cache(config, model) / "costs.json")
    for what, p in unlearn_all(model, config, clock):
        yield f"unlearn {what}", p.step / p.steps
    of, _ = queries(model, config)
    for what, fraction in collect(model, of, config, clock):
        yield f"score {what}", fraction
    for what, fraction in collect_baselines(model, of, config, clock):
        yield f"score {what}", fraction
