"""Does one unlearning tell less than several? GUDA's score by adapters of several seeds, alone and averaged.

    seed s               the adapters that unlearning with this seed makes; 0: the committed ones
    scores averaged      the mean of the seeds' scores; a network of each seed is scored
    weights averaged     W + mean_s (alpha / r) B_s A_s: one network, of rank S r
    weights, cut         the same at the rank of one adapter, by each change's singular value decomposition
    0.5 x seed 0         the committed adapters, half as far (and so on, SCALES)

`between_seeds` is the agreement of two seeds' scores, the mean over all pairs: what could be reached if the oracle were
another unlearning.

`python -m experiments.ablations.averaged --seeds 3` unlearns, then scores the tuning half of the first draw's queries
with one draw in each stratum, resumable. `GUDA_DTYPE` may be bfloat16 for scoring; unlearn first without it
(`--only-unlearn`), as the committed adapters were made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import torch
import typer

from experiments.ablations import tuning_styles
from experiments.ablations.timesteps import ONE, agreement
from experiments.benchmark import queries, scores
from experiments.benchmark.models import cache
from experiments.benchmark.result_tables import LIVE, tuning_half
from experiments.commands import MinutesOption, program, write_record
from guda_core.attribution.guda import Guda
from guda_core.cli.terminal import follow, say
from guda_core.local import LocalService
from guda_core.paths import BENCHMARKS, Folder
from guda_core.unlearning import adapters, switching
from guda_core.unlearning.adapters import Adapter
from guda_core.unlearning.forget import read_config
from guda_core.work_queue import deadline

FILE = "averaged.json"
SHOWN = ("top1", "spearman")
SCALES = (0.5,)
SCORES, WEIGHTS, CUT = "scores averaged", "weights averaged", "weights, cut"


def merged(of: Sequence[Adapter], rank: int | None = None) -> Adapter:
    """One adapter whose change of each weight is the mean of theirs; rank: cut to it. All have one scale."""
    factors = {}
    for name, (_, _, shape) in of[0].factors.items():
        b = torch.cat([a.factors[name][0] for a in of], dim=1) / len(of)  # (out, S r)
        a = torch.cat([a.factors[name][1] for a in of], dim=0)  # (S r, in)
        factors[name] = (*(cut(b, a, rank) if rank else (b, a)), shape)
    named = "".join(a.meta["sha256"] for a in of) + str(rank)
    return dataclasses.replace(
        of[0], factors=factors, meta={**of[0].meta, "sha256": hashlib.sha256(named.encode()).hexdigest()}
    )


def cut(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best (out, rank) and (rank, in) for b @ a, in the least squares' sense (Eckart and Young)."""
    (q, r), (p, s) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, sigma, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    return q @ (u[:, :rank] * sigma[:rank]), v[:rank] @ p.T


def scaled(adapter: Adapter, times: float) -> Adapter:
    """The adapter, so many times as far."""
    named = f"{adapter.meta['sha256']} {times}"
    meta = {**adapter.meta, "sha256": hashlib.sha256(named.encode()).hexdigest()}
    return dataclasses.replace(adapter, scale=times * adapter.scale, meta=meta)


def folders(service: LocalService, seeds: int) -> list[Folder]:
    """Where the adapters of each seed are or will be; the committed ones first."""
    committed = service.method(Guda).folder
    own = read_config(adapters.read_meta(committed / next(iter(service.group_set.groups)))["config"])
    out = [committed]
    for seed in range(1, seeds):
        there = dataclasses.replace(own, loop=dataclasses.replace(own.loop, seed=own.loop.seed + seed))
        out.append(tuning_styles.adapters_of(service, there))
        tuning_styles.unlearned(service, there, out[-1])
    return out


def made(service: LocalService, of: Sequence[Folder]) -> Iterator[tuple[str, str, Adapter]]:
    """(row, group, adapter) of everything that is scored."""
    for group in service.group_set.groups:
        loaded = [adapters.load(f / group, model=service.model, group=group) for f in of]
        yield from ((f"seed {s}", group, a) for s, a in enumerate(loaded))
        yield from ((f"{times:g} x seed 0", group, scaled(loaded[0], times)) for times in SCALES)
        yield WEIGHTS, group, merged(loaded)
        yield CUT, group, merged(loaded, loaded[0].factors[next(iter(loaded[0].factors))][0].shape[1])


def values(
    service: LocalService,
    of: Sequence[Any],
    rows: Sequence[tuple[str, str, Adapter]],
    found: dict[tuple[str, str], np.ndarray],
) -> Iterator[tuple[str, float]]:
    """Score everything at the queries; yields (what, fraction). found: gets (row, group) -> (Q, K, M), and the full
    model's of ("", "")."""
    todo: list[tuple[str, str, Adapter | None]] = [("", "", None), *rows]
    for row, group, adapter in todo:
        sha256 = service.model.sha256 if adapter is None else adapter.meta["sha256"]
        within = nullcontext if adapter is None else partial(switching.applied, service.model.network, adapter)
        path = cache(service, "averaged") / f"{sha256[:16]}.npy"
        for fraction in scores.values(service.model, of, within, ONE, path, sha256):
            yield f"{row} {group}", fraction
        found[row, group] = np.load(path)


def between(of: Sequence[np.ndarray], sets: list[str]) -> dict[str, dict[str, float]]:
    """By query set: the agreement of two of the (Q, G) scores, the mean over all pairs."""
    pairs = [agreement(a, b, sets, None, SHOWN) for a, b in combinations(of, 2)]
    return {s: {m: float(np.mean([p[s][m]["value"] for p in pairs])) for m in pairs[0][s]} for s in pairs[0]}


def averaged(
    seeds: Annotated[int, typer.Option(min=2, help="How many seeds, the committed adapters' among them.")] = 3,
    only_unlearn: Annotated[bool, typer.Option("--only-unlearn", help="Make the adapters and stop.")] = False,
    minutes: MinutesOption = None,
) -> None:
    """Score GUDA by adapters of several seeds, alone and averaged, on the tuning half."""
    from guda_core.cli.loading import service_of

    service, until = service_of(None, None), deadline(minutes)
    there = folders(service, seeds)
    if only_unlearn:
        return
    of = queries.read(BENCHMARKS, service.group_set, service.model)
    at = np.flatnonzero(tuning_half([i.set for i in of.items]))
    chosen, sets = [of.queries[i] for i in at], [of.items[i].set for i in at]
    found: dict[tuple[str, str], np.ndarray] = {}

    rows = list(made(service, there))

    def work() -> Iterator[tuple[str, float]]:
        for told in values(service, chosen, rows, found):
            if time.monotonic() > until:
                return
            yield told

    follow(work())
    if len(found) <= len(rows):
        say("Stopped. The same command goes on.")
        return
    plan, ids = scores.Plan.of(service.model, chosen, ONE), list(service.group_set.groups)
    by_row = {
        row: scores.score(found["", ""], {g: found[row, g] for g in ids}, plan)
        for row in dict.fromkeys(row for row, _ in found if row)
    }
    alone = [by_row[f"seed {s}"] for s in range(seeds)]
    by_row[SCORES] = np.mean(alone, axis=0)
    with np.load(BENCHMARKS / "styles-scores.npz", allow_pickle=False) as z:
        truth = z[LIVE][at]
    record = {
        "command": f"python -m experiments.ablations.averaged --seeds {seeds}",
        "base_sha256": service.model.sha256,
        "queries": {s: sets.count(s) for s in dict.fromkeys(sets)},
        "rows": {row: agreement(s, truth, sets, None, SHOWN) for row, s in by_row.items()},
        "between_seeds": between(alone, sets),
        "dtype": str(service.model.dtype).removeprefix("torch."),
    }
    write_record(BENCHMARKS / FILE, record)


main = program(averaged)

if __name__ == "__main__":
    main()
