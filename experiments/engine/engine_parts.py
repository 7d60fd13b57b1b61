"""What `python -m experiments.engine` measures, part by part. Timings of what is compared are taken in turns."""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmark import coverage
from experiments.benchmark.queries import Queries, read
from experiments.benchmark.strata import OLD_RULE, make_strata
from experiments.engine import reference_loop, simulation
from guda_core import paths
from guda_core.attribution.calibration import read_weight
from guda_core.attribution.guda import Guda
from guda_core.data.groups import load_group_set
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import fitting_batch
from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model
from guda_core.diffusion.precision import has_fast_bfloat16
from guda_core.local import budget_of
from guda_core.records import Attribution, Group, GroupSet, Query
from guda_core.service import EFFORTS
from guda_core.unlearning.adapters import Adapter

VALUES = "engine-values.npz"
DRAWS, PER_SET = 24, 4  # of the sampled values: draws a stratum, pictures of each query set
SIZES = (8, 16, 32, 64)  # numbers of groups
Parts = Iterator[float | dict[str, Any]]  # fractions done, then the figures, last


@dataclass(frozen=True)
class Bench:
    """The embedded model in float32 and, where the processor has it in hardware, in bfloat16; with GUDA over each."""

    folder: Path
    models: Mapping[str, BaseModel]
    methods: Mapping[str, Guda]
    queries: Queries

    @staticmethod
    def load(folder: Path) -> Bench:
        card, groups = find_card(DEFAULT_MODEL), load_group_set("emoji")
        types = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_fast_bfloat16() else {})
        models = {name: load_model(card, device="cpu", dtype=dtype) for name, dtype in types.items()}
        run = paths.run(card.id, groups.id)
        weight = read_weight(run.calibration, base_sha256=models["float32"].sha256, group_set=groups.id)
        methods = {name: Guda(m, groups, run.adapters, offset_weight=weight) for name, m in models.items()}
        return Bench(folder, models, methods, read(paths.BENCHMARKS, groups, models["float32"]))

    @property
    def groups(self) -> list[str]:
        return list(self.methods["float32"].adapters)

    @property
    def fastest(self) -> str:
        return next(reversed(self.models))

    def sample(self) -> Queries:
        return coverage.choose(self.queries, PER_SET)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it gave)."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def answered(method: Guda, query: Query, effort: str) -> Attribution:
    """The last word of a method at an effort."""
    *_, last = method.attribute(query, budget_of(effort))
    return last


def passes_of(a: Attribution) -> int:
    """Forward passes that an answer took."""
    assert a.kl is not None
    return a.kl.full.size + sum(v.size for v in a.kl.without.values())


def values(bench: Bench) -> Parts:
    """Every model's KL values at the sampled pictures, kept in `VALUES`, picture by picture; gone on with."""
    sample, path = bench.sample(), bench.folder / VALUES
    model, method = bench.models[bench.fastest], bench.methods[bench.fastest]
    kept: dict[str, np.ndarray] = {}
    if path.is_file():
        with np.load(path, allow_pickle=False) as z:
            kept = {k: z[k] for k in z}
    strata = likelihood.make_strata(model.schedule)
    for i, q in enumerate(sample.queries):
        if q.image_hash not in kept:
            inputs = likelihood.noised(
                model, q.latent, likelihood.draw_times(q.image_hash, strata, DRAWS), range(DRAWS)
            )
            condition, batch = model.embed([q.prompt]), fitting_batch(model)
            rows = [likelihood.kl_of(model, condition, inputs, batch)]
            for g in bench.groups:
                with method.without(g):
                    rows.append(likelihood.kl_of(model, condition, inputs, batch))
            kept[q.image_hash] = np.stack(rows).astype(np.float32)
            np.savez_compressed(path, **kept)
        yield (i + 1) / len(sample.queries)
    yield {"pictures": len(sample.queries), "draws": DRAWS, "strata": len(strata), "dtype": bench.fastest}


def sampled(bench: Bench) -> np.ndarray:
    """(N, 1 + G, K, M) of `VALUES`, in the sample's order."""
    with np.load(bench.folder / VALUES, allow_pickle=False) as z:
        return np.stack([z[q.image_hash] for q in bench.sample().queries]).astype(np.float64)


def coverages(bench: Bench) -> Parts:
    """How often intervals hold the value of all draws, with races, by effort; `full` needs more draws than there are,
    so its is of the simulation."""
    found, method = sampled(bench), bench.methods["float32"]
    strata, sets = likelihood.make_strata(bench.models["float32"].schedule), [i.set for i in bench.sample().items]
    without = {g: found[:, 1 + i] for i, g in enumerate(bench.groups)}
    out: dict[str, Any] = {}
    for i, name in enumerate(("quick", "standard")):
        effort = EFFORTS[name]
        rows = coverage.measure(found[:, 0], without, sets, strata, effort.draws, method.offset, effort.race)
        out |= {f"coverage_{name}": rows[-1]["held"]["value"], f"rows_{name}": rows}
        yield (i + 1) / 2
    yield out


def rules(bench: Bench) -> Parts:
    """Every rule that was tried, at the 500 fixed queries: with the oracle's noise (hard: retrained models, old strata)
    and with GUDA's (sampled pictures, moved to each query's score)."""
    schedule, groups = bench.models["float32"].schedule, bench.groups
    scores = np.load(paths.BENCHMARKS / "styles-scores.npz", allow_pickle=False)["guda"].astype(np.float64)
    strata = likelihood.make_strata(schedule)
    moved = simulation.moved(sampled(bench), scores, strata.sizes, np.random.default_rng(1))
    hard = simulation.committed(paths.BENCHMARKS, groups)
    works = (("guda", moved, strata), ("oracle", hard, make_strata(schedule, len(strata), OLD_RULE)))
    out: dict[str, Any] = {}
    for i, (name, of, cut) in enumerate(works):
        out[f"rules_{name}"] = {}
        for j, (rule, found) in enumerate(simulation.table(of, groups, cut)):
            out[f"rules_{name}"][rule] = found
            yield (i + (j + 1) / len(simulation.RULES)) / len(works)
    full = out["rules_guda"]["full"]
    yield {**out, "same_first": full["same_first"], "coverage_full_simulated": full["held"]}


def bare(model: BaseModel, batch: int, seconds: float = 3.0) -> float:
    """Forward passes a second of the network alone."""
    x = torch.randn(batch, *model.latent_shape)
    t, condition = torch.full((batch,), len(model.schedule) // 2), model.embed([""]).expand(batch)
    made, began = -batch, 0.0
    with torch.no_grad():
        while made <= 0 or time.perf_counter() - began < seconds:
            if made < 0:
                made = 0
                model.predict(x, t, condition)  # the first takes longer
                began = time.perf_counter()
            model.predict(x, t, condition)
            made += batch
    return made / (time.perf_counter() - began)


def speeds(bench: Bench, turns: int = 3) -> Parts:
    """Seconds of an answer at full effort: version 0.1's loop, and today's in each type, in turns; and the bare network
    beside them."""
    method, sets = bench.methods["float32"], bench.sample()
    pictures = [sets.queries[i] for i in np.linspace(0, len(sets.queries) - 1, turns).astype(int)]
    spent: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    made: dict[str, list[int]] = {}
    same: dict[str, list[bool]] = {}
    for i, q in enumerate(pictures):
        took, (scores, n) = timed(
            lambda q=q: reference_loop.drops(
                method.model, q, bench.groups, method.without, draws=EFFORTS["full"].draws, offset=method.offset
            )
        )
        spent.setdefault("before", []).append(took)
        made.setdefault("before", []).append(n)
        first = max(scores, key=lambda g: scores[g].value)
        yield (i + 0.5) / turns
        for name, own in bench.methods.items():
            rates.setdefault(name, []).append(bare(own.model, fitting_batch(own.model)))
            took, a = timed(lambda own=own, q=q: answered(own, q, "full"))
            spent.setdefault(name, []).append(took)
            made.setdefault(name, []).append(passes_of(a))
            same.setdefault(name, []).append(a.ranked()[0] == first)
            took, a = timed(lambda own=own, q=q: answered(own, q, "standard"))
            whole.setdefault(name, []).append(passes_of(a) / took)
        yield (i + 1) / turns
    mean = {k: statistics.mean(v) for k, v in spent.items()}
    yield {
        "turns": turns,
        "seconds": spent,
        "passes": made,
        "bare_passes_per_second": rates,
        "passes_per_second": {k: [p / s for p, s in zip(made[k], spent[k], strict=True)] for k in spent},
        "passes_per_second_standard": whole,
        "same_first_measured": same,
        "speedup_full_float32": mean["before"] / mean["float32"],
        "speedup_full": mean["before"] / mean[bench.fastest],
        "share_cpu": sum(made["float32"]) / sum(spent["float32"]) / statistics.mean(rates["float32"]),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def weaker(adapter: Adapter, seed: int) -> Adapter:
    """An adapter of another made-up group: the same change, 0.3 to 0.9 times as strong, with a tenth of noise."""
    g = torch.Generator().manual_seed(seed)
    by = 0.3 + 0.6 * float(torch.rand(1, generator=g))
    factors = {
        n: (by * b * (1 + 0.1 * torch.randn(b.shape, generator=g)), a, shape)
        for n, (b, a, shape) in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


def widened(method: Guda, size: int) -> Guda:
    """The method over so many groups: its own, and weaker copies of them."""
    ids = [f"{g}-{i}" if i else g for i in range(size // len(method.adapters)) for g in method.adapters]
    out = copy.copy(method)
    out.group_set = GroupSet("wide", "Wide", {g: Group(g, g) for g in ids})
    out.adapters = {
        g: weaker(method.adapters[g.rpartition("-")[0]], i) if g not in method.adapters else method.adapters[g]
        for i, g in enumerate(ids)
    }
    out.offset = {}
    return out


def sizes(bench: Bench) -> Parts:
    """Passes and seconds at full effort with more and more groups; and the seconds of one switch of weights."""
    method, sample = bench.methods[bench.fastest], bench.sample()
    pictures = sample.queries[1::PER_SET]  # one of each set
    out: dict[str, Any] = {"dtype": bench.fastest, "pictures": len(pictures), "groups": {}}
    for i, q in enumerate(pictures):
        for j, n in enumerate(SIZES):  # in turns
            wide = widened(method, n)
            took, a = timed(lambda wide=wide, q=q: answered(wide, q, "full"))
            each = out["groups"].setdefault(str(n), {"seconds": 0.0, "passes": 0, "first": [], "reached": []})
            each["seconds"] += took
            each["passes"] += passes_of(a)
            each["first"].append(a.ranked()[0])
            each["reached"].append(a.reached)
            yield (i + (j + 1) / len(SIZES)) / len(pictures)
    size = out["groups"]
    switches = [timed(lambda g=g: _switch(method, g))[0] for g in bench.groups]
    yield {
        **out,
        "switch_s": statistics.median(switches),
        "ratio_64_to_8": size["64"]["seconds"] / size["8"]["seconds"],
        "ratio_64_to_8_passes": size["64"]["passes"] / size["8"]["passes"],
        "ratio_64_to_16": size["64"]["seconds"] / size["16"]["seconds"],
    }


def _switch(method: Guda, group: str) -> None:
    with method.without(group):
        pass


def types(bench: Bench, pictures: int = 3) -> Parts:
    """Scores in bfloat16 beside those in float32, all draws of the standard effort: differences in nats and in standard
    errors."""
    if "bfloat16" not in bench.models:
        yield {"types": "This processor has no bfloat16 in hardware, so it was not measured."}
        return
    rows, sample = [], bench.sample().queries
    every = replace(budget_of("standard"), race=None)
    for i, q in enumerate(sample[:: max(1, len(sample) // pictures)][:pictures]):
        a, b = (list(bench.methods[n].attribute(q, every))[-1] for n in ("float32", "bfloat16"))
        for g in bench.groups:
            x, y = a.groups[g], b.groups[g]
            assert x.score is not None and y.score is not None and x.low is not None and x.high is not None
            se = (x.high - x.low) / 2 / 1.96
            rows.append({"picture": i, "group": g, "float32": x.score, "bfloat16": y.score, "standard_error": se})
        rows[-1]["same_first"] = a.ranked()[0] == b.ranked()[0]
        yield (i + 1) / pictures
    differ = np.array([abs(r["bfloat16"] - r["float32"]) for r in rows])
    over = differ / np.array([r["standard_error"] for r in rows])
    yield {
        "types": rows,
        "types_nats": {"median": float(np.median(differ)), "largest": float(differ.max())},
        "types_standard_errors": {"median": float(np.median(over)), "largest": float(over.max())},
    }


PARTS: Mapping[str, Callable[[Bench], Parts]] = {
    "values": values,
    "coverage": coverages,
    "rules": rules,
    "speeds": speeds,
    "sizes": sizes,
    "types": types,
}


def settings(bench: Bench) -> dict[str, Any]:
    """What all parts depend on."""
    return {
        "base_sha256": bench.models["float32"].sha256,
        "adapters": bench.methods["float32"].hashes,
        "efforts": {k: asdict(e) for k, e in EFFORTS.items()},
        "batches": {k: fitting_batch(m) for k, m in bench.models.items()},
        "fast_bfloat16": has_fast_bfloat16(),
        "threads": torch.get_num_threads(),
    }
