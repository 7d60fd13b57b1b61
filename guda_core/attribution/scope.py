"""Could this model have made a picture? Several signals, one score, a conformal p-value.

    score = b + w . z,        z = (signals - mean) / scale                   log-odds of "foreign"; high = foreign
    p     = (1 + #{calibration scores >= score}) / (n + 1)              (split conformal: Vovk et al. 2005)

One of the signals is itself such a score of the picture's looks. What is measured is in `scope_signals`; the numbers
were fitted on pictures of the model and on foreign ones (outlier exposure, Hendrycks et al. 2019) by `scope_fit`. The
calibration scores are of pictures that belong and were not fitted on. So a picture that belongs, drawn as those were,
is called out of scope (p <= alarms) in at most that share of cases, whatever the fit is worth. How often foreign
pictures are recognised is measured for each kind, and stored beside the rule.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel as Entry
from pydantic import ConfigDict, Field

from guda_core.attribution import run_files, scope_signals
from guda_core.data.embeddings import Encoder
from guda_core.data.images import Square
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import CacheError, ModelError, ScoreError
from guda_core.records import GroupSet, Query, Scope

FILE = "scope.json"
FORMAT = 2  # 1 was a threshold in bits (version 0.1)
UNIT = "log-odds"
MAKE = "guda assets scope"
UNKNOWN = "This model's scope was not measured; `{}` does it."
NO_CLIP = "There is no encoder of likeness here, which the scope's rule needs."
MEND = "Make it again with `{}`."
OTHER_CLIP = f"{FILE} was made with another CLIP, or another encoder of likeness. {MEND}"
OLDER = "This model's scope was measured by another rule, of version 0.1. `{}` makes it anew."


@dataclass(frozen=True)
class Linear:
    """b + w . (x - mean) / scale. mean, scale, weights: (D,) float64; bias: float."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,). A value further than eight scales off counts as eight."""
        return np.clip((x - self.mean) / self.scale, -8, 8) @ self.weights + self.bias

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Linear:
        """What `plain` wrote. Raises ValueError when the numbers are no such function."""
        mean, scale, weights = (np.asarray(found[k], np.float64) for k in ("mean", "scale", "weights"))
        out = cls(mean, scale, weights, float(found["bias"]))
        same = mean.ndim == 1 and mean.shape == scale.shape == weights.shape
        if not same or not np.isfinite([*mean, *scale, *weights, out.bias]).all() or (scale <= 0).any():
            raise ValueError("no linear function")
        return out

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        lists = {k: [float(f"{v:.6g}") for v in getattr(self, k)] for k in ("mean", "scale", "weights")}
        return {**lists, "bias": float(f"{self.bias:.6g}")}


@dataclass(frozen=True)
class Rule:
    """look: of the looks (`scope_signals.look`). final: of that score and `scope_signals.of_model`, each also squared.
    calibration: (n,) scores of pictures that belong, rising. alarms: share of these that may be called foreign.
    kinds: kind of picture -> what was measured of it. clip_sha256: of the encoder whose looks it was fitted on; ""
    where the file is older and does not say. mended_by: the command that makes it again."""

    look: Linear
    final: Linear
    calibration: np.ndarray
    alarms: float = 0.05
    kinds: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    clip_sha256: str = ""
    mended_by: str = MAKE

    def scores(self, look: np.ndarray, model: np.ndarray) -> np.ndarray:
        """(N, D) looks, (N, M) of the model -> (N,) scores."""
        return self.final(combined(self.look(look), model))

    @property
    def threshold(self) -> float:
        """The least score that is out of scope. Infinite where there are too few calibration scores."""
        return threshold(self.calibration, self.alarms)


def combined(look: np.ndarray, model: np.ndarray) -> np.ndarray:
    """(N,) scores of the looks, (N, M) -> (N, 2 M + 1): what the final function reads."""
    return np.concatenate([look[:, None], model, np.square(model)], axis=1)


def p_value(calibration: np.ndarray, score: float) -> float:
    """The share of pictures that belong with at least this score, the picture itself counted: in (0, 1]."""
    return (1 + int((calibration >= score).sum())) / (len(calibration) + 1)


def threshold(calibration: np.ndarray, alarms: float) -> float:
    """The least number above which every score has p <= alarms; from (n,) scores."""
    most = int(np.floor(alarms * (len(calibration) + 1))) - 1  # calibration scores that may be as high
    if most < 0:
        return float("inf")
    return float(np.nextafter(np.sort(calibration)[::-1][most], np.inf))


class Strict(Entry):
    """A part of `scope.json`: values are taken as they are or refused."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class LinearEntry(Strict):
    """Of a `Linear`."""

    mean: list[float]
    scale: list[float]
    weights: list[float]
    bias: float


class KindEntry(Strict):
    """What was measured of a kind of pictures: shares with their intervals, number of sources."""

    about: str
    belongs: bool
    out_of_scope: dict[str, float] | None = None
    auroc: dict[str, float] | None = None
    sources: int | None = None


class ScopeFile(run_files.RunFile):
    """`scope.json`; see `Rule`."""

    group_set: str = ""
    clip_sha256: str = ""
    fit: Square = "pad"  # how the pictures were made square that the rule was fitted on; older files do not say
    format: Literal[2]
    alarms: Annotated[float, Field(gt=0, lt=1)]
    calibration: list[float]
    look: LinearEntry
    final: LinearEntry
    kinds: dict[str, KindEntry]
    command: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    unit: str = UNIT
    threshold: float | None = None
    signals: list[str] = Field(default_factory=list)
    versions: dict[str, Any] = Field(default_factory=dict)
    date: str = ""


def fit_of(group_set: GroupSet) -> Square:
    """How pictures are made square to be judged: of those that keep their shape, the middle is."""
    return "pad" if group_set.fit == "pad" else "crop"


def read_scope(
    path: Path, *, base_sha256: str, group_set: str | None = None, fit: Square | None = None, mended_by: str = MAKE
) -> tuple[ScopeFile, Rule]:
    """The file, checked, and the rule in it. group_set, fit: None = of any. mended_by: the command that makes it.

    Raises:
        CacheError: it is damaged, of an older version, of another model or group set, or made from pictures that were
            made square in another way than those that it would judge.
    """
    mend = MEND.format(mended_by)
    found = run_files.read_object(path, mend)
    if found.get("base_sha256") != base_sha256:
        mend = MEND.format(f"{mended_by} --again")
    elif found.get("format", 1) != FORMAT:
        raise CacheError(OLDER.format(mended_by))
    read = run_files.checked(ScopeFile, path.name, found, base_sha256=base_sha256, group_set=group_set, mend=mend)
    if fit not in (None, read.fit):
        raise CacheError(
            f"{path.name} was made from pictures that were made square in another way ('{read.fit}'). {mend}"
        )
    try:
        look, final = (Linear.read(e.model_dump()) for e in (read.look, read.final))
    except ValueError as e:
        raise CacheError(f"{path.name} holds a function with numbers that do not fit together. {mend}") from e
    if len(final.mean) != 2 * (scope_signals.PASSES + 2) + 1:
        raise CacheError(f"{path.name} is a rule of other signals than this version measures. {mend}")
    named = KindEntry.model_fields  # values as the file has them: 64 stays a whole number
    kinds = {k: {n: v[n] for n in named if v.get(n) is not None} for k, v in found["kinds"].items()}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    calibration = np.asarray(read.calibration, np.float64)
    return read, Rule(look, final, calibration, read.alarms, kinds, sha256, read.clip_sha256, mended_by)


def read_rule(path: Path | None, *, mended_by: str = MAKE, **of: Any) -> Rule | str:
    """The rule of a model and a group set, or a sentence why there is none. of: as of `read_scope`."""
    if path is None or not path.is_file():
        return UNKNOWN.format(mended_by)
    try:
        return read_scope(path, mended_by=mended_by, **of)[1]
    except (CacheError, OSError) as e:
        return str(e)


def used_sha256(rule: Rule | str, clip: Encoder | None) -> str:
    """The hash of the rule that pictures are judged by; "" where nothing is assessed."""
    return "" if isinstance(rule, str) or clip is None or _of_another(rule, clip) else rule.sha256


def _of_another(rule: Rule, clip: Encoder) -> bool:
    """Whether the rule says that it was fitted on the looks of another encoder. Two may be as wide."""
    return rule.clip_sha256 not in ("", clip.sha256)


def judge(rule: Rule | str, model: BaseModel, clip: Encoder | None, query: Query) -> Scope:
    """The verdict on a picture, with the numbers in the reason; "not assessed" where there is no rule."""
    if isinstance(rule, str) or clip is None:
        return Scope("not assessed", None, None, "", rule if isinstance(rule, str) else NO_CLIP)
    if _of_another(rule, clip):
        return Scope("not assessed", None, None, "", OTHER_CLIP.format(rule.mended_by))
    try:
        looks = scope_signals.look(clip, query.pixels[None])
        values = scope_signals.of_model(model, query.pixels, query.latent, query.image_hash)[None]
    except (ScoreError, ModelError) as e:
        return Scope("not assessed", None, None, "", str(e))
    if looks.shape[1] != len(rule.look.mean):
        return Scope("not assessed", None, None, "", OTHER_CLIP.format(rule.mended_by))
    score = float(rule.scores(looks, values)[0])
    p, n = p_value(rule.calibration, score), len(rule.calibration)
    outside = p <= rule.alarms
    alike = int((rule.calibration >= score).sum())
    look = {0: "none looks", 1: "1 looks"}.get(alike, f"{alike} look")
    reason = (
        f"Of {n} pictures that the model or the artists of its groups drew, {look} at least as foreign to it as this "
        f"one (p = {p:.3f}; out of scope from {rule.alarms:g} down)."
    )
    settings = {
        "passes": scope_signals.PASSES,
        "alarms": rule.alarms,
        "errors": {k: v["out_of_scope"] for k, v in rule.kinds.items()},
        "kinds": {k: dict(v) for k, v in rule.kinds.items()},
        "sha256": rule.sha256,
    }
    verdict = "out of scope" if outside else "in scope"
    least = rule.threshold if math.isfinite(rule.threshold) else None
    return Scope(verdict, score, least, UNIT, reason, settings, p_value=p)
