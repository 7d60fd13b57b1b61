"""Make a scope's rule for a model and a group set, and measure how often it errs. The rule itself is in `scope`.

    look   logistic regression: does a picture belong (own, trained on, held out) or not, from its looks
    final  logistic regression on that score, made by a fit that did not see the picture, and on the model's signals

Every kind of picture weighs the same within its side, and both sides weigh the same. What is reported is about sources
that the rule was not made on (`scope_material`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from guda_core.attribution import scope_signals as signals
from guda_core.attribution.run_files import check_others, in_place_of
from guda_core.attribution.scope import FILE, FORMAT, UNIT, Linear, Rule, combined, fit_of
from guda_core.attribution.scope_material import Material, material
from guda_core.attribution.scope_pictures import Kind
from guda_core.data.embeddings import Encoder
from guda_core.data.images import Square, hash_pixels
from guda_core.diffusion.base_model import BaseModel
from guda_core.records import GroupSet
from guda_core.versions import today, versions

ABOUT = {
    "own": "the model's own pictures",
    "train": "pictures it was trained on",
    "held-out": "drawings by the same artists that it was not trained on",
}


@dataclass(frozen=True)
class ScopeConfig:
    """pictures: of each kind. Looks are cheap; the model's signals are taken of fewer: `calibrated` of each kind that
    sets the p-value, `shown` of each foreign kind that is fitted on, `measured` of the others. alarms: share of
    pictures that belong that may be called foreign. strength: of the penalty on the weights (its inverse)."""

    pictures: int = 120
    measured: int = 64
    calibrated: int = 120
    shown: int = 16
    alarms: float = 0.05
    strength: float = 1.0
    folds: int = 5
    seed: int = 21

    def most(self, part: str) -> int:
        """Of how many pictures of a kind in a part of the material the model's signals are taken."""
        return {"calibration": self.calibrated, "outside": self.shown}.get(part, self.measured)


@dataclass(frozen=True)
class Measured:
    """Signals of one kind. look: (N, D). model: (N, M), NaN where not measured. sources: N names."""

    look: np.ndarray
    model: np.ndarray
    sources: tuple[str, ...]

    @property
    def full(self) -> np.ndarray:
        """(N,) bool: those with both."""
        return np.asarray(np.isfinite(self.model).all(axis=1))


Signals = dict[str, dict[str, Measured]]  # part of the material -> kind -> its signals


def share(hits: Sequence[bool], clusters: Sequence[int]) -> dict[str, float]:
    """A share with its 95% interval over clusters (the queries: scorings of one picture are alike): Wilson's, for as
    many independent cases as give the observed variance between clusters, and with Student's t of as many degrees of
    freedom as there are clusters less one. A share of 0 or 1 has no variance that could tell: each cluster counts as
    one case then. One cluster alone says nothing of others: its cases count singly."""
    h, c = np.asarray(hits, float), np.asarray(clusters)
    p, n = float(h.mean()), len(h)
    within = [h[c == k] for k in np.unique(c)]
    of, cases, q = len(within), float(n), float(special.ndtri(0.975))
    if of > 1 and p in (0.0, 1.0):
        cases = of
    elif of > 1:
        variance = sum(float((x - p).sum()) ** 2 for x in within) / n**2 * of / (of - 1)
        cases = n if variance == 0 else min(n, max(1.0, p * (1 - p) / variance))
        q = float(special.stdtrit(of - 1, 0.975))
    low, high = _wilson(p, cases, q)
    return {"value": p, "low": low, "high": high, "n": n}


def _wilson(p: float, n: float, q: float) -> tuple[float, float]:
    """Wilson's interval of a share of n cases, at q standard errors; n need not be whole."""
    middle, half = p + q**2 / (2 * n), q * math.sqrt(p * (1 - p) / n + q**2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + q**2 / n)), min(1.0, (middle + half) / (1 + q**2 / n))


def measure(
    model: BaseModel, clip: Encoder, kind: Kind, n: int, seed: int, known: dict[str, np.ndarray] | None = None
) -> Iterator[float | Measured]:
    """The looks of all pictures of a kind, the model's signals of n: yields the fraction done, then the result.

    known: values measured before, by "look HASH" and "model HASH" of the pixels; what is measured is put into it.
    """
    known = {} if known is None else known
    hashes = [hash_pixels(p) for p in kind.pixels]
    new = [i for i, h in enumerate(hashes) if f"look {h}" not in known]
    if new:
        known.update(
            {f"look {hashes[i]}": row for i, row in zip(new, signals.look(clip, kind.pixels[new]), strict=True)}
        )
    values = np.full((len(hashes), signals.PASSES + 2), np.nan)
    chosen = np.random.default_rng(seed).permutation(len(hashes))[:n]
    for done, i in enumerate(chosen, 1):
        name = f"model {hashes[i]}"
        if name not in known:
            pixels = np.ascontiguousarray(kind.pixels[i])
            known[name] = signals.of_model(model, pixels, model.encode(pixels), hashes[i])
        values[i] = known[name]
        yield done / len(chosen)
    yield Measured(np.stack([known[f"look {h}"] for h in hashes]), values, kind.sources)


def _logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray, strength: float) -> Linear:
    """Weighted logistic regression as a function of the raw values."""
    mean = np.average(x, axis=0, weights=weights)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights)) + 1e-3
    z = np.clip((x - mean) / scale, -8, 8)
    fitted = LogisticRegression(C=strength, max_iter=3000).fit(z, y, sample_weight=weights * len(y) / weights.sum())
    return Linear(mean, scale, fitted.coef_[0], float(fitted.intercept_[0]))


def _weights(kinds: Sequence[str], y: np.ndarray) -> np.ndarray:
    """(N,): both sides weigh 1, and within a side every kind the same."""
    out, names = np.zeros(len(y)), np.array(kinds)
    for side in (0, 1):
        for k in set(names[y == side]):
            at = (names == k) & (y == side)
            out[at] = 1 / at.sum() / len(set(names[y == side]))
    return out


def fit(inside: Mapping[str, Measured], outside: Mapping[str, Measured], c: ScopeConfig) -> tuple[Linear, Linear]:
    """The two functions of a rule."""
    parts = [*((0, k, m) for k, m in inside.items()), *((1, k, m) for k, m in outside.items())]
    y = np.concatenate([np.full(len(m.look), side) for side, _, m in parts])
    kinds = [f"{side} {k}" for side, k, m in parts for _ in m.look]
    groups = [f"{side} {k} {s}" for side, k, m in parts for s in m.sources]
    x, model = (np.concatenate([getattr(m, name) for _, _, m in parts]) for name in ("look", "model"))
    w = _weights(kinds, y)
    unseen = np.empty(len(y))
    for train, test in GroupKFold(c.folds, shuffle=True, random_state=c.seed).split(x, y, groups):
        unseen[test] = _logistic(x[train], y[train], w[train], c.strength)(x[test])
    full = np.isfinite(model).all(axis=1)
    final = _logistic(
        combined(unseen[full], model[full]), y[full], _weights(list(np.array(kinds)[full]), y[full]), c.strength
    )
    return _logistic(x, y, w, c.strength), final


def scores(rule: Rule, m: Measured) -> np.ndarray:
    """The scores of those pictures that have all signals."""
    return rule.scores(m.look[m.full], m.model[m.full])


def make_rule(found: Signals, c: ScopeConfig, *, without: str = "") -> Rule:
    """The rule from measured signals. without: a kind of foreign pictures to leave out of the fit."""
    outside = {k: m for k, m in found["outside"].items() if k != without}
    look, final = fit(found["inside"], outside, c)
    rule = Rule(look, final, np.empty(0), c.alarms)
    each = enough([scores(rule, m) for m in found["calibration"].values()], c.alarms)
    n = min(map(len, each))  # as many of each, so that none outweighs the others
    rng = np.random.default_rng(c.seed)
    return Rule(look, final, np.sort(np.concatenate([rng.permutation(s)[:n] for s in each])).round(4), c.alarms)


def enough(each: list[np.ndarray], alarms: float) -> list[np.ndarray]:
    """The kinds' scores without the smallest kinds, where as many of each of all would be too few for any threshold (a
    set with few held-out pictures); all of them where that does not help."""
    least, kept = math.ceil(1 / alarms) - 1, list(each)
    while len(kept) > 1 and len(kept) * min(map(len, kept)) < least:
        smallest = min(range(len(kept)), key=lambda i: len(kept[i]))
        del kept[smallest]
    return kept if len(kept) * min(map(len, kept)) >= least else each


def above(inside: np.ndarray, outside: np.ndarray) -> float:
    """The area under the ROC curve: the share of pairs whose foreign score is the higher one; ties count half."""
    known = np.sort(inside)
    places = np.searchsorted(known, outside, "left") + np.searchsorted(known, outside, "right")
    return float(places.mean() / (2 * len(known)))


def auroc(inside: np.ndarray, outside: np.ndarray, sources: Sequence[str], seed: int) -> dict[str, float]:
    """How often a foreign picture scores above one that belongs, with its 95% interval: a bootstrap over pictures that
    belong and over sources of foreign ones (over pictures where there is one source)."""
    rng = np.random.default_rng(seed)
    names = np.array(sources if len(set(sources)) > 1 else [str(i) for i in range(len(outside))])
    at = [np.flatnonzero(names == s) for s in dict.fromkeys(names.tolist())]

    again = []
    for _ in range(300):
        chosen = np.concatenate([at[i] for i in rng.integers(len(at), size=len(at))])
        again.append(above(rng.choice(inside, len(inside)), outside[chosen]))
    low, high = np.percentile(again, [2.5, 97.5])
    return {"value": above(inside, outside), "low": float(low), "high": float(high), "n": len(outside)}


def figures_of(rule: Rule, tried: Mapping[str, Measured], c: ScopeConfig) -> dict[str, dict[str, Any]]:
    """Kind -> how often it was called out of scope, its AUROC where it is foreign, number of sources."""
    found = {k: scores(rule, m) for k, m in tried.items()}
    inside = np.concatenate([found[k] for k in ABOUT if k in found])
    out: dict[str, dict[str, Any]] = {}
    for k, s in found.items():
        names = [n for n, ok in zip(tried[k].sources, tried[k].full, strict=True) if ok]
        at = [list(dict.fromkeys(names)).index(n) for n in names]
        out[k] = {"out_of_scope": share(list(s >= rule.threshold), at), "sources": len(set(names))}
        if k not in ABOUT:
            out[k]["auroc"] = auroc(inside, s, names, c.seed)
    return out


def rounded(value: Any) -> Any:
    """The figures with four decimals, in nested dicts."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def record(
    rule: Rule,
    kinds: Mapping[str, Any],
    c: ScopeConfig,
    *,
    base_sha256: str,
    group_set: str,
    command: str,
    clip_sha256: str = "",
    fit: Square = "pad",
) -> dict[str, Any]:
    """What `scope.json` holds. clip_sha256: of the encoder whose looks the rule was fitted on; "" = not told. fit: how
    its pictures were made square."""
    return {
        "format": FORMAT,
        "command": command,
        "config": asdict(c),
        "base_sha256": base_sha256,
        "group_set": group_set,
        **({"clip_sha256": clip_sha256} if clip_sha256 else {}),
        "fit": fit,
        "unit": UNIT,
        "alarms": rule.alarms,
        "threshold": rule.threshold if math.isfinite(rule.threshold) else None,
        "signals": list(signals.names()),
        "look": rule.look.plain(),
        "final": rule.final.plain(),
        "calibration": rule.calibration.tolist(),
        "kinds": {k: {"about": ABOUT.get(k, k), "belongs": k in ABOUT, **rounded(v)} for k, v in kinds.items()},
        "versions": {**versions(), "torch_threads": torch.get_num_threads()},
        "date": today(),
    }


def run(
    model: BaseModel,
    clip: Encoder,
    group_set: GroupSet,
    folder: Path,
    config: ScopeConfig | None = None,
    *,
    foreign: Path | None = None,
    again: bool = False,
) -> Iterator[tuple[str, float]]:
    """Make the rule, measure it, then write `scope.json`; yields (what, fraction). again: also in place of the rule of
    another model.

    Raises:
        DataError: the training pictures were not fetched, or `foreign` has no pictures. CacheError: the folder holds
            the rule of another model.
    """
    c = config or ScopeConfig()
    if not again:
        check_others(folder / FILE, model, "rule")
    yield "drawing", 0.0
    parts, found = None, Signals()
    for step in material(model, group_set, n=c.pictures, seed=c.seed, foreign=foreign):
        if isinstance(step, Material):
            parts = step
        else:
            yield "drawing", step
    yield "drawing", 1.0
    for part in ("inside", "outside", "calibration", "tried"):
        found[part] = {}
        for kind, pictures in getattr(parts, part).items():
            for step in measure(model, clip, pictures, c.most(part), c.seed):
                if isinstance(step, Measured):
                    found[part][kind] = step
                else:
                    yield f"{part}: {kind}", step
    rule = make_rule(found, c)
    command = f"python -m guda_core assets scope --pictures {c.pictures}{' --foreign FOLDER' if foreign else ''}"
    kinds = figures_of(rule, found["tried"], c)
    of = {"base_sha256": model.sha256, "group_set": group_set.id, "clip_sha256": clip.sha256}
    write(folder, record(rule, kinds, c, **of, fit=fit_of(group_set), command=command))


def write(folder: Path, made: Mapping[str, Any]) -> None:
    """Write `scope.json` into a folder. Raises CacheError: it cannot be written; the one of before stays."""
    with in_place_of(folder / FILE) as aside:
        aside.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
