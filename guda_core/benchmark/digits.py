"""The digits benchmark: ten classes as groups, an unconditional model, and an oracle that two cores can afford.

In order: train the full model, LOGO of every class and both from a second seed (the ceiling); unlearn every class; draw
the queries; compute every model's KL values at them (`scores.values`: (Q, K, M), the same (t, eps) for all) and every
baseline's scores. The oracle is LOGO, score_k = ELBO(full) - ELBO(retrained without k), both from the first seed.

Everything is kept below `GUDA_CACHE` and resumed or skipped when it is there. `arrays` gives (Q, G) scores by row.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import load_file

from guda_core import adapters, data
from guda_core.benchmark.scores import Plan, ScoreConfig, hash_state, score, values
from guda_core.benchmark.styles import ORACLE, Source, swapped
from guda_core.errors import AdapterError, DataError, TrainingError
from guda_core.examples import examples_of
from guda_core.imaging import hash_pixels
from guda_core.methods.classifier_similarity import ClassifierSimilarity
from guda_core.methods.das import Das
from guda_core.methods.dtrak import Dtrak
from guda_core.methods.instance import Instance, InstanceConfig
from guda_core.methods.kernel import KernelConfig
from guda_core.methods.trak import Trak
from guda_core.models.base import BaseModel
from guda_core.models.cards import load_model
from guda_core.records import Attribution, Query
from guda_core.training import digits, stages
from guda_core.training.classifier import ClassifierConfig
from guda_core.training.classifier import train as train_classifier
from guda_core.training.digits import DigitsConfig
from guda_core.training.loop import LoopConfig, Progress
from guda_core.unlearn_unconditional import UnconditionalConfig, unlearn

_LOOP = LoopConfig(steps=400, batch=64, lr=1e-4, warmup=10, weight_decay=0.0, seed=5)
KERNELS = (Trak, Dtrak, Das)
OPERATORS = {
    "guda-retrack": UnconditionalConfig(operator="retrack", loop=_LOOP),
    "guda-esd": UnconditionalConfig(operator="esd", loop=_LOOP),
}


@dataclass(frozen=True)
class BenchConfig:
    """digits, scores, kernels (of TRAK, D-TRAK and DAS), instance, classifier: see there. unlearning: row name ->
    settings; not tuned on the oracle. generated: queries sampled
    from the full model, besides the held-out pictures, in ddim_steps from query_seed. second_seed: of the ceiling."""

    digits: DigitsConfig = field(default_factory=DigitsConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    unlearning: Mapping[str, UnconditionalConfig] = field(default_factory=lambda: dict(OPERATORS))
    kernels: Mapping[str, KernelConfig] = field(default_factory=lambda: {m.id: m.defaults() for m in KERNELS})
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    generated: int = 100
    ddim_steps: int = 50
    query_seed: int = 101
    second_seed: int = 4


class Method(Protocol):
    """An attribution method, as far as a benchmark needs it."""

    id: str

    def attribute(self, query: Query) -> Iterator[Attribution]: ...


def group_ids() -> list[str]:
    return list(digits.group_set().groups)


def full_model(config: BenchConfig) -> BaseModel:
    """The trained full model. Raises TrainingError when it is not there yet."""
    name = digits.stage_name(None, config.digits.loop.seed)
    if not stages.is_done(name):
        raise TrainingError(f"The digits model '{name}' is not trained yet. Run `benchmark.digits.run` first.")
    return load_model(digits.card(name), device="cpu")


def train_all(config: BenchConfig, minutes: float | None = None) -> Iterator[tuple[digits.Job, Progress]]:
    """Work through the trainings, skipping what is done; stops after `minutes` with a checkpoint, to be resumed."""
    until = time.monotonic() + 60 * (minutes if minutes is not None else 1e9)
    for job in digits.queue(config.digits, config.second_seed):
        if job.done:
            continue
        with closing(digits.stage(config.digits, job)) as steps:
            for p in steps:
                yield job, p
                if time.monotonic() > until:
                    return


def cache(model: BaseModel) -> Path:
    """Where adapters, values and scores over this model are kept."""
    return data.cache_dir() / "benchmarks" / f"digits-{model.sha256[:12]}"


def unlearn_all(model: BaseModel, config: BenchConfig) -> Iterator[tuple[str, Progress]]:
    """Unlearn every class with every operator; those that are there with the same settings are skipped."""
    of = digits.pictures(config.digits, "train")
    latents = digits.encode_all(of)
    for row, own in config.unlearning.items():
        for g in group_ids():
            folder = cache(model) / row / g
            if _fits(folder, model, g, own):
                continue
            meta = {"data_sha256": of.sha256(), "versions": stages.versions()}
            for p in unlearn(model, latents, of.groups, g, config=own, folder=folder, meta=meta):
                yield f"{row}/{g}", p


def _fits(folder: Path, model: BaseModel, group: str, config: UnconditionalConfig) -> bool:
    try:
        meta = adapters.load(folder, base_sha256=model.sha256, group=group).meta
    except AdapterError:
        return False
    return meta["config"] == json.loads(json.dumps(asdict(config)))


def queries(model: BaseModel, config: BenchConfig) -> tuple[list[Query], list[str]]:
    """Held-out pictures, then generated ones; and the name of each one's set."""
    held = digits.pictures(config.digits, "held_out")
    made = range(config.query_seed * 1000, config.query_seed * 1000 + config.generated)
    generated: Sequence[np.ndarray] = []
    if config.generated:
        generated = list(model.generate([""] * len(made), seeds=made, steps=config.ddim_steps))
    pixels = [*held.pixels, *generated]
    sets = ["held_out"] * len(held) + ["generated"] * len(generated)
    return [Query(p, model.encode(p), "", hash_pixels(p)) for p in pixels], sets


def sources(model: BaseModel, config: BenchConfig) -> list[Source]:
    """Every model that can be scored now: the full one, finished trainings, fitting unlearned models."""
    out = [Source("full", "full", None, model.sha256, partial(nullcontext))]
    for row, own in config.unlearning.items():
        for g in group_ids():
            folder = cache(model) / row / g
            if _fits(folder, model, g, own):
                adapter = adapters.load(folder, base_sha256=model.sha256, group=g)
                within = partial(adapters.applied, model.denoiser, adapter)
                out.append(Source(f"{row}/{g}", row, g, adapter.meta["sha256"], within))
    for job in digits.queue(config.digits, config.second_seed):
        first = job.seed == config.digits.loop.seed
        if job.done and not (first and job.exclude is None):
            state = load_file(stages.work_dir() / job.name / "unet" / "diffusion_pytorch_model.safetensors")
            role = ("full" if job.exclude is None else ORACLE) + ("" if first else "-2")
            out.append(Source(job.name, role, job.exclude, hash_state(state), partial(swapped, model.denoiser, state)))
    return out


def _path(model: BaseModel, source: Source) -> Path:
    return cache(model) / "values" / f"{source.key.replace('/', '--')}.npy"


def collect(model: BaseModel, of: Sequence[Query], config: BenchConfig) -> Iterator[tuple[str, float]]:
    """Compute and cache the values of every model; yields (model, fraction). What is there is skipped."""
    for s in sources(model, config):
        for fraction in values(model, of, s.within, config.scores, _path(model, s), s.sha256):
            yield s.key, fraction


def baselines(model: BaseModel, config: BenchConfig) -> dict[str, tuple[Method, Any]]:
    """Row name -> (method, its settings)."""
    of, ids = digits.pictures(config.digits, "train"), group_ids()
    examples = examples_of(model, of)
    classifier = None
    for _, classifier in train_classifier(of, config.classifier):  # noqa: B007
        pass
    assert classifier is not None
    kernels = {m.id: (m(model, examples, ids, own), own) for m in KERNELS for own in [config.kernels[m.id]]}
    return {
        **kernels,
        "instance": (Instance(model, examples, ids, config.instance), config.instance),
        "classifier": (ClassifierSimilarity(classifier, of, ids), config.classifier),
    }


def score_baseline(method: Method, config: Any, of: Sequence[Query], path: Path) -> Iterator[float]:
    """Write (Q, G) float32 scores to `path`, NaN where there is none; an unfinished file is gone on with.

    config: the method's settings, a dataclass; a file of other settings or queries is begun anew.
    """
    ids = group_ids()
    path.parent.mkdir(parents=True, exist_ok=True)
    out, note = np.full((len(of), len(ids)), np.nan, np.float32), path.with_suffix(".json")
    done, key = 0, json.loads(json.dumps({"config": asdict(config), "queries": [q.image_hash for q in of]}))
    if path.is_file() and note.is_file():
        old = json.loads(note.read_text(encoding="utf-8"))
        if {k: old[k] for k in key} == key:
            done, out = old["done"], np.load(path)
    settings: Mapping[str, Any] = {}
    for i in range(done, len(of)):
        for a in method.attribute(of[i]):
            settings = a.settings
            if a.groups:
                out[i] = [np.nan if (s := a.groups[g].score) is None else s for g in ids]
        if (i + 1) % 20 == 0 or i + 1 == len(of):
            aside = path.with_suffix(".tmp.npy")
            np.save(aside, out)
            os.replace(aside, path)
            note.write_text(json.dumps({**key, "done": i + 1, "settings": dict(settings)}), encoding="utf-8")
        yield (i + 1) / len(of)


def arrays(model: BaseModel, of: Sequence[Query], config: BenchConfig) -> dict[str, np.ndarray]:
    """(Q, G) float32 scores of every row that is complete: "logo" (the oracle), "logo-2" (its ceiling, against the
    second full model), unlearned models by name, baselines.

    Raises:
        DataError: the full model has no values yet.
    """
    found: dict[str, dict[str | None, np.ndarray]] = {}
    for s in sources(model, config):
        note = _path(model, s).with_suffix(".json")
        if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["done"] == len(of):
            found.setdefault(s.role, {})[s.group] = np.load(_path(model, s))
    if "full" not in found:
        raise DataError("The full model has no values yet. Run `collect` first.")
    plan, ids, out = Plan.of(model, of, config.scores), group_ids(), {}
    for role, by_group in found.items():
        full = found.get("full-2" if role == "logo-2" else "full")
        if not role.startswith("full") and full is not None and set(by_group) == set(ids):
            out[role] = score(full[None], {g: by_group[g] for g in ids}, plan).astype(np.float32)
    for path in sorted((cache(model) / "baselines").glob("*.npy")):
        rows = np.load(path)
        if len(rows) == len(of) and json.loads(path.with_suffix(".json").read_text())["done"] == len(of):
            out[path.stem] = rows
    return out


def run(config: BenchConfig | None = None, *, minutes: float | None = None) -> Iterator[tuple[str, float]]:
    """Everything in order, resumable; yields (what, fraction). Writes `scores.npz` and, last, `scores.json`."""
    config = config or BenchConfig()
    for job, p in train_all(config, minutes):
        yield f"train {job.name}", p.step / p.steps
    if not all(job.done for job in digits.queue(config.digits, config.second_seed)):
        return
    model = full_model(config)
    for what, p in unlearn_all(model, config):
        yield f"unlearn {what}", p.step / p.steps
    of, sets = queries(model, config)
    for what, fraction in collect(model, of, config):
        yield f"score {what}", fraction
    for name, (method, own) in baselines(model, config).items():
        for fraction in score_baseline(method, own, of, cache(model) / "baselines" / f"{name}.npy"):
            yield f"score {name}", fraction
    np.savez_compressed(cache(model) / "scores.npz", **arrays(model, of, config))  # type: ignore[arg-type]
    record = {"sets": sets, "groups": group_ids(), "config": dataclasses.asdict(config), "versions": stages.versions()}
    (cache(model) / "scores.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
