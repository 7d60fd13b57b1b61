"""How often does the scope's rule err? Bits per dimension of the model's own pictures, of its training pictures, and of
pictures from elsewhere; the threshold is set on one half of the first two and tried on everything else.

threshold = the `quantile` of the calibration half. Foreign pictures come with the libraries that the app needs anyway
(photographs, handwritten digits), from npm (drawings by teams that the model never saw) and from a generator (noise).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import binomtest

from guda_core import paths
from guda_core.attribution.scope import FILE, UNIT, BitsConfig, bits
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described
from guda_core.data.images import hash_pixels
from guda_core.data.sources import iconify
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import DataError
from guda_core.records import Group, GroupSet, Query
from guda_core.versions import today, versions

PHOTOGRAPHS = (  # package, file: they come with what requirements.txt installs
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("gradio", "media_assets/images/cheetah1.jpg"),
    ("gradio", "media_assets/images/lion.jpg"),
    ("gradio", "media_assets/images/tower.jpg"),
)


def _team(package: str, version: str, name: str, author: str, licence: str, link: str) -> Group:
    source = {"package": f"@iconify-json/{package}", "version": version}
    return Group(package, name, author=author, licence=licence, link=link, source=source)


TEAMS = (
    _team("fxemoji", "1.2.2", "Firefox OS Emoji", "Mozilla", "Apache-2.0", "https://github.com/mozilla/fxemoji"),
    _team("game-icons", "1.2.4", "Game Icons", "GameIcons", "CC-BY-3.0", "https://github.com/game-icons/icons"),
    _team("logos", "1.2.19", "SVG Logos", "Gil Barbara", "CC0-1.0", "https://github.com/gilbarbara/logos"),
)
ABOUT = {
    "own": "the model's own pictures",
    "train": "pictures it was trained on",
    "held-out": "the same teams' drawings of objects never trained on",
    "fxemoji": "emoji by a team never trained on (Firefox OS Emoji)",
    "game-icons": "black pictograms by others (Game Icons)",
    "logos": "company logos (SVG Logos)",
    "digits": "handwritten digits (scikit-learn)",
    "photographs": "parts of photographs (scikit-learn, matplotlib, gradio)",
    "smooth": "blurred coloured noise",
    "noise": "noise",
    "plain": "one plain colour",
}
BELONGS = ("own", "train", "held-out")  # calling these out of scope is the error; for the others, not to


@dataclass(frozen=True)
class ScopeConfig:
    """pictures: of each kind (plain and noise: a third). steps, guidance: of the model's own pictures; those that the
    rule is tried on are drawn with the app's defaults instead. quantile: of the calibration half."""

    pictures: int = 48
    quantile: float = 0.98
    seed: int = 21
    steps: int = 25
    guidance: float = 2.5
    tried_steps: int = 20
    tried_guidance: float = 3.0
    bits: BitsConfig = field(default_factory=BitsConfig)


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind. pixels: (N, H, W, 3) uint8. sources: N names; pictures of one source are alike."""

    pixels: np.ndarray
    sources: tuple[str, ...]


def share(hits: Sequence[bool], clusters: Sequence[int]) -> dict[str, float]:
    """A share with its 95% interval over clusters (the queries: scorings of one picture are alike): Wilson's, for as
    many independent cases as give the observed variance between clusters."""
    h, c = np.asarray(hits, float), np.asarray(clusters)
    p, n = float(h.mean()), len(h)
    within = [h[c == k] for k in np.unique(c)]
    variance = sum(float((x - p).sum()) ** 2 for x in within) / n**2
    effective = n if variance == 0 or p in (0.0, 1.0) else min(n, p * (1 - p) / variance)
    effective = max(len(within), round(effective))
    found = binomtest(round(p * effective), effective).proportion_ci(method="wilson")
    return {"value": p, "low": float(found.low), "high": float(found.high), "n": n}


def own(model: BaseModel, gs: GroupSet, n: int, *, seed: int, steps: int, guidance: float) -> Kind:
    """n pictures by the model: captions as in training, evenly over the groups."""
    g = torch.Generator().manual_seed(seed)
    objects = torch.randint(len(gs.train_objects), (n,), generator=g).tolist()
    styles = [list(gs.groups)[i % len(gs.groups)] for i in range(n)]
    items = [described(s, gs.train_objects[o]) for o, s in zip(objects, styles, strict=True)]
    asked = [captioner_of(gs).caption(i, g) for i in items]
    seeds = [seed * 10_000 + i for i in range(n)]
    made = [
        model.generate(asked[i : i + 16], seeds=seeds[i : i + 16], steps=steps, guidance=guidance)
        for i in range(0, n, 16)
    ]
    return Kind(np.concatenate(made), tuple(map(str, seeds)))


def real(gs: GroupSet, split: str, n: int, seed: int) -> Kind:
    """n pictures of a split of the training data. Raises DataError when it was not built."""
    pictures = load_pictures(gs, split)
    at = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    return Kind(pictures.pixels[at], tuple(f"{pictures.groups[i]}/{pictures.names[i]}" for i in at))


def drawings(team: Group, n: int, size: int, seed: int) -> Kind:
    """n drawings of a team that the model never saw. Raises DataError: npm is missing, or a drawing is damaged."""
    npm = paths.cache_dir() / "npm-others"
    package = npm / "node_modules" / iconify.package_of(team)
    if not (package / "icons.json").is_file():
        iconify.npm_install(TEAMS, npm)
    names = sorted(json.loads((package / "icons.json").read_text(encoding="utf-8"))["icons"])
    chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))[:n]]
    found = iconify.render_icons(package, chosen, size)
    return Kind(np.stack(list(found.values())), tuple(found))


def photographs(n: int, size: int, seed: int) -> Kind:
    """n square parts of the photographs, 30 to 100% of the shorter side. Raises DataError: a file is not there."""
    rng, out, names = np.random.default_rng(seed), [], []
    for i in range(n):
        package, name = PHOTOGRAPHS[i % len(PHOTOGRAPHS)]
        spec = find_spec(package)
        path = Path(spec.origin).parent / name if spec is not None and spec.origin else Path(name)
        if not path.is_file():
            raise DataError(f"{package} has no {name} any more; take another photograph in {Path(__file__).name}.")
        with Image.open(path) as im:
            side = int(rng.uniform(0.3, 1.0) * min(im.size))
            x, y = (int(rng.integers(0, s - side + 1)) for s in im.size)
            part = im.convert("RGB").crop((x, y, x + side, y + side))
        out.append(np.asarray(part.resize((size, size), Image.Resampling.LANCZOS)))
        names.append(path.name)
    return Kind(np.stack(out), tuple(names))


def _resized(small: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(small).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def digits(n: int, size: int, seed: int) -> Kind:
    """n handwritten digits, dark on white."""
    from sklearn.datasets import load_digits

    images: np.ndarray = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    at = np.random.default_rng(seed).permutation(len(images))[:n]
    return Kind(
        np.stack([_resized((255 - images[i] * 15.9375).astype(np.uint8), size) for i in at]), tuple(map(str, at))
    )


def made_up(n: int, size: int, seed: int) -> dict[str, Kind]:
    """Noise, blurred noise and plain colours."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    cells = [(2, 3, 4, 6, 8, 12, 16)[i % 7] for i in range(n)]
    smooth = np.stack([_resized(rng.integers(0, 256, (k, k, 3), dtype=np.uint8), size) for k in cells])
    colours = np.concatenate([[[255] * 3, [0] * 3, [128] * 3], rng.integers(0, 256, (max(0, n - 3), 3))])[:n]
    plain = np.broadcast_to(colours.astype(np.uint8)[:, None, None], (n, size, size, 3))
    return {k: Kind(v, tuple(map(str, range(n)))) for k, v in (("smooth", smooth), ("noise", noise), ("plain", plain))}


def kinds(model: BaseModel, gs: GroupSet, c: ScopeConfig) -> dict[str, Kind]:
    """Every kind of picture that the rule is tried on."""
    n, size = c.pictures, model.card.resolution
    out = {"own": own(model, gs, n, seed=c.seed + 1, steps=c.tried_steps, guidance=c.tried_guidance)}
    pictures = real(gs, "train", 2 * n, c.seed)
    out["train"] = Kind(pictures.pixels[n:], pictures.sources[n:])
    out["held-out"] = real(gs, "held_out", n, c.seed)
    out |= {t.id: drawings(t, n, size, c.seed) for t in TEAMS}
    out |= {"digits": digits(n, size, c.seed), "photographs": photographs(n, size, c.seed)}
    return {**out, **made_up(max(1, n // 3), size, c.seed)}


def calibration(model: BaseModel, gs: GroupSet, c: ScopeConfig) -> dict[str, Kind]:
    """What the threshold is set on: none of it is tried again."""
    half = real(gs, "train", 2 * c.pictures, c.seed)
    drawn = own(model, gs, c.pictures, seed=c.seed, steps=c.steps, guidance=c.guidance)
    return {"own": drawn, "train": Kind(half.pixels[: c.pictures], half.sources[: c.pictures])}


def _measured(model: BaseModel, kind: Kind, c: ScopeConfig) -> Iterator[float]:
    for part in kind.pixels:
        pixels = np.ascontiguousarray(part)
        yield bits(model, Query(pixels, model.encode(pixels), "", hash_pixels(pixels)), c.bits)


def run(
    model: BaseModel, group_set: GroupSet, folder: Path, config: ScopeConfig | None = None
) -> Iterator[tuple[str, float]]:
    """Measure everything, then write `scope.json`; yields (what, fraction).

    Raises:
        DataError: the training pictures were not built, or npm is missing.
    """
    c = config or ScopeConfig()
    known = []
    for name, kind in calibration(model, group_set, c).items():
        for value in _measured(model, kind, c):
            known.append(value)
            yield f"setting the threshold: {name}", (len(known) - 1) % c.pictures / c.pictures
    threshold = float(np.quantile(known, c.quantile))
    rows: dict[str, Any] = {}
    for name, kind in kinds(model, group_set, c).items():
        found = []
        for value in _measured(model, kind, c):
            found.append(value)
            yield ABOUT[name], len(found) / len(kind.pixels)
        at = [list(dict.fromkeys(kind.sources)).index(s) for s in kind.sources]
        rows[name] = {
            "about": ABOUT[name],
            "belongs": name in BELONGS,
            "out_of_scope": share([v > threshold for v in found], at),
            "sources": len(set(kind.sources)),
            "bits": {f"p{q}": round(float(np.percentile(found, q)), 3) for q in (5, 25, 50, 75, 95)},
            "pixels_sha256": hashlib.sha256(np.ascontiguousarray(kind.pixels).tobytes()).hexdigest(),
        }
    record = {
        "command": f"python -m guda_core assets scope --pictures {c.pictures}",
        "config": asdict(c),
        "base_sha256": model.sha256,
        "unit": UNIT,
        "threshold": threshold,
        "kinds": rows,
        "credits": {t.id: f"{iconify.spec(t)}, {t.author}, {t.licence}, {t.link}" for t in TEAMS},
        "versions": {**versions(), "torch_threads": torch.get_num_threads()},
        "date": today(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
