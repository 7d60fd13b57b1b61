"""Do some timesteps tell more than others? GUDA's score by chosen or weighed strata of timesteps, from kept values.

    d_k(x) = n_k mean_j (KL_t(without) - KL_t(full))      what stratum k adds to a group's score
    score  = sum_k a_k d_k(x)                             a = 1: the paper's score, an ELBO's drop in nats

Tried are all runs of neighbouring strata (a is 1 in a run and 0 elsewhere, in the manner of "crucial timesteps"), and
weights a >= 0 by least squares to the oracle, where each group's scores are centred over groups and pictures and of
unit variance. Both are chosen on the tuning half of the first draw's queries alone, by the mean variation of the three
sets; then they are looked at on its other half and on the fresh queries.

`python -m experiments.ablations.timesteps` scores every second query of either half with one draw in each stratum
(`GUDA_DTYPE` may be bfloat16), resumable, and takes the fresh queries' values from the cache
(`experiments.styles --fresh`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from experiments.benchmark import queries, scores, variation
from experiments.benchmark.models import ADAPTER_DRAWS, BASE, Source, cache, path_of, sources
from experiments.benchmark.result_tables import GUDA, LIVE, sets_of, tuning_half
from experiments.benchmark.scores import ScoreConfig
from experiments.commands import MinutesOption, program, write_record
from experiments.held_back import kept
from experiments.train.unet import UnetConfig
from guda_core.attribution import metrics
from guda_core.cli.terminal import follow, say
from guda_core.diffusion import likelihood
from guda_core.local import LocalService
from guda_core.paths import BENCHMARKS
from guda_core.work_queue import deadline

COMMAND = "python -m experiments.ablations.timesteps"
FILE = "timesteps.json"
ONE = ScoreConfig(draws=1)


def some_of_both_halves(sets: Sequence[str]) -> list[int]:
    """Places of every second query of the tuning half and of the other, set by set: in each set two neighbours of four.
    Of what is left, `tuning_half` tells the same halves."""
    seen: Counter[str] = Counter()
    out = []
    for i, name in enumerate(sets):
        out += [i] * (seen[name] // 2 % 2 == 0)
        seen[name] += 1
    return out


def parts_of(without: Mapping[str, np.ndarray], full: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(Q, K, G): d_k of each group. without: group -> (Q, K, M); full: (Q, K, M); sizes: (K,)."""
    drops = [likelihood.stratum_sums(v.astype(float) - full, sizes) for v in without.values()]
    return np.stack(drops, axis=-1)


def score_by(weights: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """(Q, G)."""
    return np.einsum("k,qkg->qg", weights, parts)


def runs(k: int) -> Iterator[np.ndarray]:
    """The weights (K,) of all runs of neighbouring strata."""
    for first in range(k):
        for end in range(first + 1, k + 1):
            yield ((np.arange(k) >= first) & (np.arange(k) < end)).astype(float)


def agreement(
    scored: np.ndarray, oracle: np.ndarray, sets: list[str], at: np.ndarray | None, shown: Sequence[str] = ("top1",)
) -> dict[str, Any]:
    """By query set: variation and the metrics `shown`, with intervals over pictures. scored, oracle: (Q, G)."""
    out = {}
    for name, mine in sets_of(sets, at):
        own, truth = scored[mine], oracle[mine]
        found = {"variation": variation.variation(own, truth)}
        found |= {m: variation.mean(metrics.METRICS[m](own, truth)) for m in shown}
        out[name] = {m: variation.over_pictures(s, len(own), own.shape[1], most=1.0) for m, s in found.items()}
    return out


def mean_variation(scored: np.ndarray, oracle: np.ndarray, sets: list[str], at: np.ndarray) -> float:
    """The mean over the query sets."""
    parts = [(scored[mine], oracle[mine]) for _, mine in sets_of(sets, at)]
    return float(np.mean([variation.of_all(variation.variation(a, b), *a.shape) for a, b in parts]))


def best_run(parts: np.ndarray, oracle: np.ndarray, sets: list[str], at: np.ndarray) -> np.ndarray:
    """The run of strata with the largest mean variation at the queries `at`; its weights (K,)."""
    tried = list(runs(parts.shape[1]))
    return tried[int(np.argmax([mean_variation(score_by(w, parts), oracle, sets, at) for w in tried]))]


def fitted(parts: np.ndarray, oracle: np.ndarray, sets: list[str], at: np.ndarray) -> np.ndarray:
    """Weights a >= 0, (K,), by least squares at the queries `at`; their mean is 1."""
    left, right = [], []
    for _, mine in sets_of(sets, at):
        x, y = parts[mine], oracle[mine].astype(float)
        x, y = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))  # over groups
        x, y = (v - v.mean(axis=0) for v in (x, y))  # over pictures
        scale = y.std(axis=0)
        left.append((x / scale).transpose(0, 2, 1).reshape(-1, parts.shape[1]) / len(x) ** 0.5)
        right.append((y / scale).ravel() / len(y) ** 0.5)
    found, _ = optimize.nnls(np.concatenate(left), np.concatenate(right))
    return found / found.mean()


def first_values(
    service: LocalService, of: Sequence[Source], minutes: float | None, done: list[Source]
) -> Iterator[tuple[str, float]]:
    """Score the first draw's queries by the sources; yields (source, fraction). done: gets those that are whole."""
    made, until = queries.read(BENCHMARKS, service.group_set, service.model), deadline(minutes)
    some = [made.queries[i] for i in some_of_both_halves([i.set for i in made.items])]
    for s in of:
        path = path_of(service, s, "timesteps")
        for fraction in scores.values(service.model, some, s.within, ONE, path, s.sha256):
            yield s.key, fraction
            if time.monotonic() > until:
                return
        done.append(s)


class Draw(NamedTuple):
    """parts: (Q, K, G), `parts_of`. oracle: (Q, G), its scores. sets: of each query. dtype: that parts were made in."""

    parts: np.ndarray
    oracle: np.ndarray
    sets: list[str]
    dtype: str


def _loaded(service: LocalService, of: Sequence[Source], where: str, name: str, draws: int) -> Draw:
    """A draw of queries: of the first ("") those of `some_of_both_halves`.

    of: the models that are scored; where: its folder; name: of its values in the cache."""
    folder, ids = BENCHMARKS / where, list(service.group_set.groups)
    sets = [i["set"] for i in json.loads((folder / "queries.json").read_text(encoding="utf-8"))["items"]]
    at = list(range(len(sets))) if where else some_of_both_halves(sets)
    sets = [sets[i] for i in at]
    hashes = {path_of(service, s).stem: s.sha256 for s in of}
    found, dtype = kept(cache(service, name), [BASE, *(f"{GUDA}--{g}" for g in ids)], len(sets), hashes)
    strata = likelihood.make_strata(service.model.schedule, ONE.strata)
    full = found[BASE][:, :, :draws]
    parts = parts_of({g: found[f"{GUDA}--{g}"][:, :, :draws] for g in ids}, full, strata.sizes)
    with np.load(folder / "styles-scores.npz", allow_pickle=False) as z:
        return Draw(parts, z[LIVE][at], sets, dtype)


def timesteps(minutes: MinutesOption = None) -> None:
    """Choose timesteps for GUDA's score on the tuning half; look at them on the other half and on fresh pictures."""
    from guda_core.cli.loading import service_of

    service = service_of(None, None)
    of, done = [s for s in sources(service, UnetConfig()) if s.role in (BASE, GUDA)], []
    follow(first_values(service, of, minutes, done))
    if len(done) < len(of):
        say("Stopped. The same command goes on.")
        return
    parts, oracle, sets, dtype = _loaded(service, of, "", "timesteps", 1)
    fresh_parts, fresh_oracle, fresh_sets, fresh_dtype = _loaded(service, of, "fresh", "fresh", ADAPTER_DRAWS)
    tuning = tuning_half(sets)
    edges = likelihood.make_strata(service.model.schedule, ONE.strata).edges
    rows = {
        "all": np.ones(ONE.strata),
        "run": best_run(parts, oracle, sets, tuning),
        "fitted": fitted(parts, oracle, sets, tuning),
    }
    record = {
        "command": COMMAND,
        "base_sha256": service.model.sha256,
        "edges": list(edges),
        "weights": {n: [round(float(v), 4) for v in w] for n, w in rows.items()},
        "tuning": {n: agreement(score_by(w, parts), oracle, sets, tuning) for n, w in rows.items()},
        "other_half": {n: agreement(score_by(w, parts), oracle, sets, ~tuning) for n, w in rows.items()},
        "fresh": {n: agreement(score_by(w, fresh_parts), fresh_oracle, fresh_sets, None) for n, w in rows.items()},
        "dtype": dtype,
        "fresh_dtype": fresh_dtype,
    }
    write_record(BENCHMARKS / FILE, record)


main = program(timesteps)

if __name__ == "__main__":
    main()
