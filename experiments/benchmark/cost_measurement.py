"""What each method costs on this machine, measured side by side in one run.

Steps of retraining and of every unlearning variant are taken in turns, so that whatever else the machine does slows all
alike; a cost is the groups times what comes before the first step (of anchors by the posterior, to score the group's
pictures) and the median step times the steps that the committed models took. GUDA's holds the offset of its
scores as well, scored over held-out pictures. Queries are timed
method by method on the same pictures. Nothing is written but the figures.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from experiments.benchmark.models import variants
from experiments.benchmark.queries import Queries, read
from experiments.benchmark.result_tables import LIVE
from experiments.benchmark.styles_arrays import baselines
from experiments.commands import keep_record, timed
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core.attribution.ensemble import GudaAndDas
from guda_core.attribution.gradient.features import at_once
from guda_core.attribution.gradient.kernel import KernelMethod
from guda_core.attribution.gradient.quantised import QuantisedBank
from guda_core.attribution.guda import Guda
from guda_core.attribution.logo import Logo
from guda_core.attribution.method import Budget
from guda_core.attribution.similarity import ClipSimilarity
from guda_core.data.captions import captioner_of
from guda_core.data.encoded import Examples, examples_of
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion import likelihood
from guda_core.local import LocalService
from guda_core.paths import Folder
from guda_core.service import EFFORTS
from guda_core.unlearning.adapter_files import stored_bytes
from guda_core.unlearning.adapters import OFFSET, read_health, read_meta
from guda_core.unlearning.forget import read_config
from guda_core.unlearning.run import Forgetting

FILE = "costs.json"
STEPS, WARM = 6, 2  # timed steps of each kind, after some that are not
QUERIES = 3  # timed queries of each method


def _sizes(folder: Folder, groups: list[str]) -> int:
    return sum(stored_bytes(folder / g) for g in groups)


def _warm(work: Callable[[], Any]) -> float:
    """Seconds of the second time."""
    work()
    return timed(work)[0]


def steps_of(service: LocalService, config: UnetConfig, folder: Path) -> dict[str, tuple[Generator, int, int]]:
    """Name -> (an endless enough training, steps that one group takes, bytes stored for all groups)."""
    gs, ids = service.group_set, list(service.group_set.groups)
    out: dict[str, tuple[Generator, int, int]] = {}
    logo = stages.unet_steps(gs, replace(config, loop=replace(config.loop, checkpoint_s=1e9)), ids[0], None)
    out["logo"] = (logo, config.loop.steps, len(ids) * sum(p.numel() for p in service.model.network.parameters()) * 4)
    job = Forgetting(gs, model=None, folder=folder)
    job.training_pictures()  # read once for all groups: no part of any one's cost
    for name, where in variants(service).items():
        if name == LIVE:
            continue
        meta = read_meta(where / ids[0])
        own = read_config(meta["config"])
        endless = replace(own, loop=replace(own.loop, steps=10_000, checkpoint_s=1e9))
        out[name] = (cast(Generator, job.unlearn(ids[0], endless, resume=False)), own.loop.steps, _sizes(where, ids))
    return out


def precompute(service: LocalService, config: UnetConfig) -> Iterator[tuple[float, dict[str, dict[str, Any]] | None]]:
    """Time the trainings in turns; yields (fraction, None), last the figures."""
    with tempfile.TemporaryDirectory() as folder:
        works = steps_of(service, config, Path(folder))
        spent: dict[str, list[float]] = {name: [] for name in works}
        first: dict[str, float] = {}
        for i in range(WARM + STEPS):
            for name, (steps, _, _) in works.items():
                seconds = timed(lambda steps=steps: next(steps))[0]
                first.setdefault(name, seconds)
                if i >= WARM:
                    spent[name].append(seconds)
            yield (i + 1) / (WARM + STEPS), None
        for steps, _, _ in works.values():
            steps.close()
    groups = len(service.group_set.groups)
    out = {}
    for name, (_, steps, stored) in works.items():
        step = statistics.median(spent[name])
        before = max(0.0, first[name] - step)
        out[name] = {"step_s": step, "steps": steps, "before_s": before, "stored_bytes": stored}
        out[name]["precompute_s"] = (before + step * steps) * groups
    yield 1.0, out


def offset_seconds(service: LocalService, made: Queries) -> float:
    """Seconds to score the held-out pictures that the offset of GUDA's scores is made of: each by the adapters of
    the other groups and once by the full model, at the draws of the adapters' health."""
    if not service.method(Guda).offset:
        return 0.0
    health = [
        read_health(service.method(Guda).folder / g, a.meta["sha256"]) for g, a in service.method(Guda).adapters.items()
    ]
    counts, config = [h[OFFSET]["n"] for h in health], health[0]["config"]
    strata, q = likelihood.make_strata(service.model.schedule, config["strata"]), made.queries[0]
    draws, cond = likelihood.draw_times(q.image_hash, strata, config["draws"]), service.model.embed([""])

    def work() -> None:
        likelihood.kl_values(service.model, q.latent, cond, draws, range(config["draws"]))

    work()
    return statistics.median(timed(work)[0] for _ in range(STEPS)) * (sum(counts) + config["held_out"])


def feature_seconds(method: KernelMethod, examples: Examples) -> float:
    """Seconds to make the features of one training picture, of as many as are projected at a time."""
    g, projection = method.bank.gradients, method.bank.projection
    at = range(min(len(examples), at_once(g.size)))

    def work() -> None:
        e = examples
        vectors = [g.at(e.latents[i : i + 1], e.prompts[i], e.hashes[i]).vector for i in at]
        projection(torch.stack(vectors).numpy())

    return _warm(work) / len(at)


def query_seconds(service: LocalService, made: Queries) -> dict[str, float]:
    """Median seconds of one query, by method; GUDA's with the draws of the "quick" effort."""
    effort = EFFORTS["quick"]
    budget = Budget(draws=effort.draws, per_pass=effort.per_pass)
    asked: dict[str, Callable[[Any], Any]] = {
        "guda": lambda q: list(service.method(Guda).attribute(q, budget)),
        "clip": lambda q: list(service.method(ClipSimilarity).attribute(q)),
    }
    for b in baselines(service):
        list(b.method.prepare())
        asked[b.name] = lambda q, method=b.method: list(method.attribute(q))
    out = {}
    for name, ask in asked.items():
        ask(made.queries[0])
        out[name] = statistics.median(timed(lambda ask=ask, q=q: ask(q))[0] for q in made.queries[:QUERIES])
    return out


def run(service: LocalService, folder: Path) -> Iterator[tuple[str, float]]:
    """Measure and write `costs.json`; yields (what, fraction)."""
    torch.set_flush_denormal(True)
    gs, config = service.group_set, UnetConfig()
    trained: Mapping[str, dict[str, Any]] | None = None
    for fraction, trained in precompute(service, config):  # noqa: B007
        yield "training steps in turns", fraction
    assert trained is not None
    rows = {name: dict(row) for name, row in trained.items()}
    kernels = {m: k for m, k in service.offered.items() if isinstance(k, KernelMethod)}
    examples = examples_of(service.model, load_pictures(gs, "train"), captioner_of(gs))
    for i, (name, method) in enumerate(kernels.items()):
        seconds = feature_seconds(method, examples) * len(examples)
        size = sum(f.stat().st_size for f in cast(QuantisedBank, method.bank).folder.iterdir())
        rows[name] = {"precompute_s": seconds, "stored_bytes": size}
        yield "features", (i + 1) / len(kernels)
    pixels = load_pictures(gs, "train").pixels
    part = pixels[:64]
    clip = _warm(lambda: service.encoder().image_features(part)) / len(part) * len(pixels)
    rows["clip"] = {"precompute_s": clip, "stored_bytes": service.encoder().bank.stat().st_size}
    made = read(folder, gs, service.model)
    offset = offset_seconds(service, made)
    if offset:
        rows["guda"] |= {"offset_s": offset, "precompute_s": rows["guda"]["precompute_s"] + offset}
    for name, seconds in query_seconds(service, made).items():
        rows.setdefault(name, {})["query_s"] = seconds
    logo = service.offered.get(Logo.id)
    if logo is not None:  # the trainings of `logo`, kept in less
        ids = list(service.group_set.groups)
        rows[LIVE] = {"precompute_s": rows["logo"]["precompute_s"], "stored_bytes": _sizes(logo.folder, ids)}
    for name, row in rows.items():  # a query costs the same whichever model stands for "without the group"
        if name.startswith(("logo", "guda")):
            row["query_s"] = rows["guda"]["query_s"]
    if all(p in rows for p in GudaAndDas.needs):
        kinds = ("precompute_s", "stored_bytes", "query_s")
        rows[GudaAndDas.id] = {k: sum(rows[p][k] for p in GudaAndDas.needs) for k in kinds}
    for row in rows.values():
        if row.get("precompute_s"):
            row["times_cheaper"] = rows["logo"]["precompute_s"] / row["precompute_s"]
    record = {
        "command": "python -m experiments.costs",
        "base_sha256": service.model.sha256,
        "threads": torch.get_num_threads(),
        "costs": [{"method": name, **row} for name, row in rows.items()],
    }
    keep_record(folder / FILE, record)
    yield "written", 1.0
