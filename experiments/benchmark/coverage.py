"""Are the intervals honest? Repeated scorings of the same pictures, and how often their 95% intervals hold the value
that a full budget gives.

Every query of a small sample gets `draws` draws a stratum from every model. Disjoint columns of m draws are scorings
with other seeds, s_r with interval half-widths h_r; their mean over all draws, S, stands for the full budget. A scoring
is part of S, so Var(s_r - S) = Var(s_r) (1 - m / draws); the interval counts as holding the value when

    |s_r - S| <= h_r sqrt(1 - m / draws)

which against the true value has the same probability. Likewise for "the first two can be told apart": how often that
was said, and how often the full budget then has another group first.

Scorings race as the efforts do: a group that is clearly behind has fewer draws, and a clear answer ends early. m is
then each group's own number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmark.models import cache, sources
from experiments.benchmark.queries import Queries, read
from experiments.benchmark.scores import ScoreConfig, values
from experiments.commands import keep_record
from experiments.train.unet import UnetConfig
from guda_core.attribution.guda import Guda
from guda_core.attribution.racing import Racing, passes
from guda_core.attribution.scope_fit import share
from guda_core.diffusion import likelihood
from guda_core.local import LocalService
from guda_core.service import EFFORTS, Race

FILE = "intervals.json"


@dataclass(frozen=True)
class IntervalConfig:
    """queries: of each set, the first ones. strata, draws: of the full budget. efforts: names whose draws divide it."""

    queries: int = 8
    strata: int = 24
    draws: int = 24
    efforts: tuple[str, ...] = ("quick", "standard")


def choose(made: Queries, n: int) -> Queries:
    """n queries of each set, spread evenly over it."""
    at: list[int] = []
    for name in dict.fromkeys(i.set for i in made.items):
        of = made.where(name)
        at += of[np.linspace(0, len(of) - 1, min(n, len(of))).round().astype(int)].tolist()
    return Queries(tuple(made.queries[i] for i in at), tuple(made.items[i] for i in at), made.base_sha256)


def counted(
    full: np.ndarray,
    without: Mapping[str, np.ndarray],
    strata: likelihood.Strata,
    m: int,
    race: Race | None,
    offset: Mapping[str, float],
) -> list[dict[str, int]]:
    """Of each scoring of at most m draws: how many each group gets. full, each of without: (K, M), nats."""
    out = []
    for j in range(0, full.shape[1] - m + 1, m):
        values = {g: v[:, j : j + m] for g, v in without.items()}
        racing, made = Racing(race, list(without), offset=offset), dict.fromkeys(without, 0)
        for columns in passes(m, m, race):
            made |= dict.fromkeys(racing.going, columns.stop)
            racing.look(columns.stop, full[:, j : j + m], values, strata)
        out.append(made)
    return out


def held(
    full: np.ndarray, without: np.ndarray, strata: likelihood.Strata, m: int, made: Sequence[int] | None = None
) -> list[bool]:
    """Does the interval of each scoring of m draws hold the value of all? full, without: (K, M), nats. made: the draws
    of each scoring, where a race left fewer."""
    draws = full.shape[1]
    whole, out = likelihood.elbo_drop(full=full, without=without, strata=strata).value, []
    for i, j in enumerate(range(0, draws - m + 1, m)):
        n = made[i] if made is not None else m
        e = likelihood.elbo_drop(full=full[:, j : j + n], without=without[:, j : j + n], strata=strata)
        out.append(abs(e.value - whole) <= (e.high - e.low) / 2 * math.sqrt(1 - n / draws))
    return out


def told_apart(
    without: Mapping[str, np.ndarray],
    strata: likelihood.Strata,
    m: int,
    offset: Mapping[str, float],
    made: Sequence[Mapping[str, int]] | None = None,
) -> list[tuple[bool, bool]]:
    """Of each scoring of m draws: were the first two told apart, and was the first the full budget's first?

    without: group -> (K, M), nats; where a race left fewer draws (made: of each scoring), less the full model's values.
    offset: what is added to each group's scores, nats."""
    ids = list(without)
    added = np.array([offset.get(g, 0.0) for g in ids])
    kl = np.stack([without[g] for g in ids])  # (G, K, M)
    sizes = strata.sizes
    best = int((kl.mean(axis=2) @ sizes + added).argmax())
    out = []
    for i, j in enumerate(range(0, kl.shape[2] - m + 1, m)):
        n = [made[i][g] if made is not None else m for g in ids]
        score = np.array([kl[at, :, j : j + n[at]].mean(axis=1) @ sizes for at in range(len(ids))]) + added
        a, b = np.argsort(-score, kind="stable")[:2]
        both = min(n[a], n[b])
        e = likelihood.difference(first=kl[a, :, j : j + both], second=kl[b, :, j : j + both], strata=strata)
        e = e.plus(float(added[a] - added[b]))
        out.append((e.low > 0, int(a) == best))
    return out


def measure(
    kl_full: np.ndarray,
    kl_without: Mapping[str, np.ndarray],
    sets: Sequence[str],
    strata: likelihood.Strata,
    m: int,
    offset: Mapping[str, float] | None = None,
    race: Race | None = None,
) -> list[dict[str, Any]]:
    """Rows of each query set and of all together. kl_full: (Q, K, M); kl_without: group -> (Q, K, M); offset: as in
    `told_apart`; race: when groups stop before m draws."""
    rows, added = [], offset or {}
    each = [{g: v[q] for g, v in kl_without.items()} for q in range(len(sets))]
    made = [counted(kl_full[q], each[q], strata, m, race, added) for q in range(len(sets))]
    for name in [*dict.fromkeys(sets), "all"]:
        at = [q for q, s in enumerate(sets) if name in (s, "all")]
        hits, said, right, of_hits, of_said = [], [], [], [], []
        for q in at:
            for g, v in each[q].items():
                found = held(kl_full[q], v, strata, m, [n[g] for n in made[q]])
                hits += found
                of_hits += [q] * len(found)
            drops = {g: v - kl_full[q] for g, v in each[q].items()}  # comparable when draws differ in number
            for apart, first in told_apart(drops, strata, m, added, made[q]):
                said.append(apart)
                of_said.append(q)
                if apart:
                    right.append((first, q))
        wrong = share([not f for f, _ in right], [q for _, q in right]) if right else None
        rows.append(
            {
                "query_set": name,
                "queries": len(at),
                "held": share(hits, of_hits),
                "told_apart": share(said, of_said),
                "told_apart_wrongly": wrong,
            }
        )
    return rows


def run(service: LocalService, folder: Path, config: IntervalConfig | None = None) -> Iterator[tuple[str, float]]:
    """Score the sample with every adapter, resumable, then write `intervals.json`; yields (what, fraction)."""
    config = config or IntervalConfig()
    made = choose(read(folder, service.group_set, service.model), config.queries)
    scoring = ScoreConfig(strata=config.strata, draws=config.draws)
    where = cache(service) / f"intervals-{config.queries}-{config.strata}-{config.draws}"
    found: dict[str | None, np.ndarray] = {}
    for s in sources(service, UnetConfig()):
        if s.role not in ("full", "guda"):
            continue
        path = where / f"{s.key.replace('/', '--')}.npy"
        for fraction in values(service.model, made.queries, s.within, scoring, path, s.sha256):
            yield s.key, fraction
        found[s.group] = np.load(path).astype(np.float64)
    full, strata = found.pop(None), likelihood.make_strata(service.model.schedule, config.strata)
    without = {g: v for g, v in found.items() if g is not None}
    sets = [i.set for i in made.items]
    record = {
        "command": "python -m experiments.intervals",
        "config": asdict(config),
        "base_sha256": service.model.sha256,
        "adapters": {g: a.meta["sha256"] for g, a in service.method(Guda).adapters.items()},
        "rows": [
            {"effort": e, "draws": EFFORTS[e].draws, **r}
            for e in config.efforts
            for r in measure(
                full, without, sets, strata, EFFORTS[e].draws, service.method(Guda).offset, EFFORTS[e].race
            )
        ],
        "offset": service.method(Guda).offset,
    }
    keep_record(folder / FILE, record, torch_threads=torch.get_num_threads())
