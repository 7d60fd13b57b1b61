"""The figures of maps and strips from what was measured of each collage and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.maps.collages import KINDS, Collage
from guda_core.attribution.maps import smoothed
from guda_core.attribution.metrics import bootstrap

WIDTHS = (0.0, 1.0, 1.5, 2.0, 3.0)  # tried
Found = Mapping[
    str, np.ndarray
]  # "guda", "logo": (2, h, w), the drops of the first and the second group; "share": (2,)


def auroc(values: np.ndarray, mask: np.ndarray) -> float:
    """How often a place of the mask has a larger value than another place; ties count half."""
    ranks, n = stats.rankdata(values)[mask.ravel()], int(mask.sum())
    return float((ranks.sum() - n * (n + 1) / 2) / (n * (mask.size - n)))


def aurocs(found: Sequence[Found], of: Sequence[Collage], width: float, method: str) -> np.ndarray:
    """(N,): of the difference of the two groups' maps, for the second group's area."""
    maps = [smoothed(f[method][1] - f[method][0], width) for f in found]
    return np.array([auroc(m, c.mask) for m, c in zip(maps, of, strict=True)])


def chosen_width(found: Sequence[Found], of: Sequence[Collage]) -> tuple[float, dict[str, float]]:
    """(the width with the best mean AUROC, width -> mean AUROC), on the collages for tuning."""
    means = {w: float(aurocs(found, of, w, "guda").mean()) for w in WIDTHS}
    return max(means, key=lambda w: means[w]), {f"{w:g}": v for w, v in means.items()}


def of_maps(found: Sequence[Found], of: Sequence[Collage], width: float) -> dict[str, Any]:
    """AUROC by kind, with and without smoothing and of the oracle; correlation with the oracle's map; share of maps
    that say nothing. 95% intervals by a bootstrap over collages."""
    rows = []
    smooth, raw = (aurocs(found, of, w, "guda") for w in (width, 0.0))
    asked = [i for i, f in enumerate(found) if "logo" in f]
    oracle = aurocs([found[i] for i in asked], [of[i] for i in asked], width, "logo")
    for kind in KINDS:
        at = np.array([c.kind == kind for c in of])
        both = np.array([of[i].kind == kind for i in asked], bool)
        row = {"kind": kind, "n": int(at.sum()), "auroc": bootstrap(smooth[at]), "raw": bootstrap(raw[at])}
        rows.append({**row, **({"oracle": bootstrap(oracle[both])} if both.any() else {})})
    same = np.array([c.same_object for c in of])
    out: dict[str, Any] = {
        "rows": rows,
        "same_object": bootstrap(smooth[same]),
        "other_object": bootstrap(smooth[~same]),
    }
    if asked:
        pairs = [[smoothed(found[i][m][1] - found[i][m][0], width).ravel() for m in ("guda", "logo")] for i in asked]
        out["correlation"] = bootstrap(np.array([stats.spearmanr(*p).statistic for p in pairs]))
    out["say_nothing"] = bootstrap(np.array([float((f["share"] == 0).mean()) for f in found]))
    return out
