"""KL values of every model at every query, kept in the cache; and the scores that are made from them.

    values[q, k, j] = KL_t of query q in stratum k, draw j, in nats: the same (t, eps) for every model

A score is likelihood.elbo_drop of two models' values; the ablations of method.md weigh the same values otherwise:

    elbo       sum_t KL_t(without) - KL_t(full)                    nats
    mse        sum_t ||eps - eps_without||^2 - ||eps - eps_full||^2        uniform over t
    truncated  as elbo, over t > 100 only, where the weights are not steep
    skew       mean of (u - f) / (u + f + 1e-3) over the 70% of the draws with the largest u + f, u and f the mean
               squared errors per element without and with the group
    noise-skew the same over the 70% of the draws with the most noise: MUCS's score (Serra et al. 2026, arXiv
               2605.17938, as its authors' code has it). MUCS's own unlearning, of each query, is not done here
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmark.baseline_scores import keys_of
from experiments.benchmark.strata import make_strata
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.likelihood import stratum_sums
from guda_core.held_files import replacing
from guda_core.records import Query


@dataclass(frozen=True)
class ScoreConfig:
    """strata of timesteps, cut by `rule` (`strata.make_strata`), and draws in each, from the draw `first` on: strata x
    draws forward passes a query and model."""

    strata: int = 24
    draws: int = 4
    rule: str = likelihood.RULE
    truncate_t: int = 100
    skew_kept: float = 0.7
    first: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON holds it. `first` came later than the others and is left out where it is 0."""
        return {k: v for k, v in asdict(self).items() if k != "first" or v}

    @property
    def columns(self) -> range:
        """The draws by number."""
        return range(self.first, self.first + self.draws)


def _key(sha256: str, config: ScoreConfig, queries: Sequence[Query], dtype: torch.dtype) -> dict[str, Any]:
    """What a file of values depends on, as JSON holds it."""
    return {"sha256": sha256, "config": config.plain(), "queries": keys_of(queries), "dtype": str(dtype)}


def noted(path: Path) -> dict[str, Any]:
    """What was noted of a file of values (without a type it is of float32); {} where it is not there."""
    note = path.with_suffix(".json")
    if not note.is_file() or not path.is_file():
        return {}
    return {"dtype": str(torch.float32), **json.loads(note.read_text(encoding="utf-8"))}


def is_begun(path: Path, sha256: str, config: ScoreConfig, queries: Sequence[Query], dtype: torch.dtype) -> bool:
    """Whether `path` holds values of just these weights, in this type, at these queries with these settings."""
    key, found = _key(sha256, config, queries, dtype), noted(path)
    return {k: found.get(k) for k in key} == key


def is_complete(path: Path, sha256: str, config: ScoreConfig, queries: Sequence[Query], dtype: torch.dtype) -> bool:
    """Whether it holds all of them."""
    return is_begun(path, sha256, config, queries, dtype) and noted(path)["done"] == len(queries)


Model = Callable[[], AbstractContextManager[object]]


def values(
    model: BaseModel, queries: Sequence[Query], within: Model, config: ScoreConfig, path: Path, sha256: str
) -> Iterator[float]:
    """Write `path` (.npy, (Q, K, M) float32) with the values of the model as it is within the context; yields progress.

    sha256: of the weights. A file that holds all values for the same weights, their type, queries and settings is left
    alone; an unfinished one is gone on with.
    """
    note = path.with_suffix(".json")
    key = _key(sha256, config, queries, model.dtype)
    strata = make_strata(model.schedule, config.strata, config.rule)
    shape = (len(queries), config.strata, config.draws)
    done, out = 0, np.full(shape, np.nan, np.float32)
    if is_begun(path, sha256, config, queries, model.dtype):
        done, out = noted(path)["done"], np.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(n: int) -> None:
        with replacing(path) as aside, aside.open("wb") as f:
            np.save(f, out)
        note.write_text(json.dumps({**key, "done": n}), encoding="utf-8")

    if done < len(queries):
        with model.lock, within():
            for i in range(done, len(queries)):
                q = queries[i]
                draws = likelihood.draw_times(q.image_hash, strata, config.columns.stop)
                cond = model.embed([q.prompt])
                out[i] = likelihood.kl_values(model, q.latent, cond, draws, config.columns)
                if (i + 1) % 20 == 0:
                    save(i + 1)
                yield (i + 1) / len(queries)
        save(len(queries))
    yield 1.0


@dataclass(frozen=True)
class Plan:
    """What scores are made from values with. t, w: (Q, K, M) timesteps and KL weights; sizes: (K,) of the strata."""

    t: np.ndarray
    w: np.ndarray
    sizes: np.ndarray
    elements: int
    config: ScoreConfig

    @staticmethod
    def of(model: BaseModel, queries: Sequence[Query], config: ScoreConfig) -> Plan:
        strata = make_strata(model.schedule, config.strata, config.rule)
        at = config.columns
        t = np.stack([likelihood.draw_times(q.image_hash, strata, at.stop).t[:, at.start :] for q in queries])
        w = likelihood.kl_weights(model.prediction).numpy()[t]
        return Plan(t, w, strata.sizes, int(np.prod(queries[0].latent.shape)), config)


def _elbo(full: np.ndarray, without: np.ndarray, plan: Plan) -> np.ndarray:
    return stratum_sums(without - full, plan.sizes).sum(axis=1)


def _mse(full: np.ndarray, without: np.ndarray, plan: Plan) -> np.ndarray:
    return stratum_sums((without - full) / plan.w, plan.sizes).sum(axis=1)


def _truncated(full: np.ndarray, without: np.ndarray, plan: Plan) -> np.ndarray:
    kept = plan.t > plan.config.truncate_t
    return stratum_sums(np.where(kept, without - full, 0), plan.sizes).sum(axis=1)


def _skew(full: np.ndarray, without: np.ndarray, plan: Plan) -> np.ndarray:
    return _skew_of_first(full, without, plan, lambda u, f: u + f)


def _noise_skew(full: np.ndarray, without: np.ndarray, plan: Plan) -> np.ndarray:
    return _skew_of_first(full, without, plan, lambda u, f: plan.t.astype(float))


def _skew_of_first(
    full: np.ndarray, without: np.ndarray, plan: Plan, by: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The mean relative difference of the draws for which `by` is largest."""
    u, f = (v / plan.w / plan.elements for v in (without, full))
    size = by(u, f).reshape(len(u), -1)
    ratio = ((u - f) / (u + f + 1e-3)).reshape(len(u), -1)
    n = max(1, round(plan.config.skew_kept * size.shape[1]))
    best = np.argsort(-size, axis=1)[:, :n]
    return np.take_along_axis(ratio, best, axis=1).mean(axis=1)


SCORINGS: Mapping[str, Callable[[np.ndarray, np.ndarray, Plan], np.ndarray]] = {
    "elbo": _elbo,
    "mse": _mse,
    "truncated": _truncated,
    "skew": _skew,
    "noise-skew": _noise_skew,
}


def score(full: np.ndarray, without: Mapping[str, np.ndarray], plan: Plan, scoring: str = "elbo") -> np.ndarray:
    """(Q, G) scores, groups in the order of `without`; positive = contributed."""
    one = SCORINGS[scoring]
    return np.stack([one(full.astype(np.float64), v.astype(np.float64), plan) for v in without.values()], axis=1)


def separable(
    without: Mapping[str, np.ndarray], scores: np.ndarray, strata: likelihood.Strata, offset: np.ndarray | None = None
) -> np.ndarray:
    """(Q,) bool: is the first group ahead of the second in the paired 95% interval, by the draws alone? The offset's
    own error, which the app counts too, is left out.

    offset: (G,) what the scores hold beside the drops, nats."""
    ids = list(without)
    added = np.zeros(len(ids)) if offset is None else offset
    by_rank = np.argsort(-scores, axis=1, kind="stable")
    out = []
    for q, (a, b) in enumerate(by_rank[:, :2]):
        pair = [without[ids[i]][q].astype(np.float64) for i in (a, b)]
        ahead = likelihood.difference(first=pair[0], second=pair[1], strata=strata).plus(float(added[a] - added[b]))
        out.append(ahead.low > 0)
    return np.array(out)


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and values of weights."""
    import hashlib

    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode() + b"\0" + state[name].contiguous().numpy().tobytes())
    return h.hexdigest()
