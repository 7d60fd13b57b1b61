"""Seconds: of an answer, with more groups, of a switch, in another type, of the start. What is compared is taken in
turns."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.commands import timed
from experiments.engine import reference_loop
from experiments.engine.engine_bench import PER_SET, Bench, Parts, answered, passes_of
from guda_core.attribution.guda import Guda
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import fitting_batch
from guda_core.local import budget_of
from guda_core.records import Group, GroupSet
from guda_core.service import EFFORTS
from guda_core.unlearning.adapters import Adapter
from guda_core.unlearning.plan import peak_bytes

SIZES = (8, 16, 32, 64)  # numbers of groups


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
        "peak_memory_mb": peak_bytes(torch.device("cpu")) / 2**20,
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
    out.offset, out.offset_se = {}, {}
    return out


def sizes(bench: Bench) -> Parts:
    """Passes and seconds at full effort with more and more groups."""
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
    yield {
        **out,
        "ratio_64_to_8": size["64"]["seconds"] / size["8"]["seconds"],
        "ratio_64_to_8_passes": size["64"]["passes"] / size["8"]["passes"],
        "ratio_64_to_16": size["64"]["seconds"] / size["16"]["seconds"],
    }


def types(bench: Bench, pictures: int = 6) -> Parts:
    """Scores in bfloat16 beside those in float32, all draws of the standard effort: differences in nats and in standard
    errors of sampling."""
    if "bfloat16" not in bench.models:
        yield {"types": "This processor has no bfloat16 in hardware, so it was not measured."}
        return
    rows, sample = [], bench.sample().queries
    strata = likelihood.make_strata(bench.models["float32"].schedule)
    every = replace(budget_of("standard"), race=None)
    for i, q in enumerate(sample[:: max(1, len(sample) // pictures)][:pictures]):
        a, b = (list(bench.methods[n].attribute(q, every))[-1] for n in ("float32", "bfloat16"))
        assert a.kl is not None
        for g in bench.groups:
            x, y = a.groups[g].score, b.groups[g].score
            assert x is not None and y is not None
            se = likelihood.elbo_drop(full=a.kl.full, without=a.kl.without[g], strata=strata).se
            rows.append({"picture": i, "group": g, "float32": x, "bfloat16": y, "standard_error": se})
        rows[-1]["same_first"] = a.ranked()[0] == b.ranked()[0]
        yield (i + 1) / pictures
    differ = np.array([abs(r["bfloat16"] - r["float32"]) for r in rows])
    over = differ / np.array([r["standard_error"] for r in rows])
    yield {
        "types": rows,
        "types_nats": {"median": float(np.median(differ)), "largest": float(differ.max())},
        "types_standard_errors": {"median": float(np.median(over)), "largest": float(over.max())},
    }
