"""Which pictures a scope's rule is made from: the model's own, the group set's, and foreign ones.

Pictures are split three ways: to fit on, to set the p-value on (pictures that belong alone), and to try it on. Those of
one source, and the drawings of one object, are never on two sides of the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from guda_core.attribution import scope
from guda_core.attribution.scope_pictures import Kind, installed_photographs, made_up, read_folder
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described, in_memory
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import at_most
from guda_core.diffusion.memory import Fitting, fewer, let_go
from guda_core.records import GroupSet

STEPS, GUIDANCE = 20, 3.0  # of the model's own pictures, as in the app
AT_ONCE = 16  # that are drawn, or fewer, as many as fit into memory


@dataclass(frozen=True)
class Material:
    """Pictures by kind. inside: that belong; outside: that do not. calibration: inside, not fitted on. tried: kind ->
    pictures that the rule is tried on, of kinds on both sides."""

    inside: Mapping[str, Kind]
    outside: Mapping[str, Kind]
    calibration: Mapping[str, Kind]
    tried: Mapping[str, Kind]


def count_own(n: int) -> int:
    """How many pictures the model draws where n of each kind are asked for."""
    return 3 * (n // 2)


def own(model: BaseModel, gs: GroupSet, n: int, seed: int) -> Iterator[float | Kind]:
    """n pictures by the model: captions as in training, evenly over the groups; no caption where it reads none. Yields
    the fraction done after each step of the drawing, then the result.

    Raises:
        NoMemoryError: not even one fits into memory.
    """
    g = torch.Generator().manual_seed(seed)
    styles = [list(gs.groups)[i % len(gs.groups)] for i in range(n)]
    asked = [""] * n
    if model.tokenizers and gs.train_objects:
        objects = torch.randint(len(gs.train_objects), (n,), generator=g).tolist()
        items = [described(s, gs.train_objects[o]) for o, s in zip(objects, styles, strict=True)]
        asked = [captioner_of(gs).caption(i, g) for i in items]
    elif model.tokenizers:
        known = captioner_of(gs).examples()
        asked = [known[i] for i in torch.randint(len(known), (n,), generator=g).tolist()]
    seeds = [seed * 10_000 + i for i in range(n)]

    fits, out = Fitting(max(1, at_most(2 * AT_ONCE, model) // 2)), list[np.ndarray]()  # with the prompt and without
    while len(out) < n:
        part = slice(len(out), len(out) + min(fits.size, n - len(out)))
        size = part.stop - part.start
        try:
            drawing = model.sample(asked[part], seeds=seeds[part], steps=STEPS, guidance=GUIDANCE)
            for step, pictures in enumerate(drawing, 1):
                if pictures is None:
                    yield (part.start + size * min(1.0, step / STEPS)) / n
                else:
                    out += list(pictures)
            yield len(out) / n
        except Exception as e:
            fewer(e, size, fits)
        let_go()
    yield Kind(np.stack(out), tuple(map(str, seeds)))


def real(gs: GroupSet, split: str, n: int, *, size: int, seed: int) -> Kind:
    """At most n pictures of a split of the group set, at the model's size. Their source is what they show: the drawings
    of one object by all groups stay together. Raises DataError when it was not built."""
    items = open_dataset(gs).split(split)
    if not len(items):
        return Kind(np.empty((0, size, size, 3), np.uint8), ())
    at = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    pictures = in_memory([items[i] for i in at], size)
    return Kind(pictures.pixels, pictures.names)


def split(kind: Kind, parts: int) -> list[Kind]:
    """The pictures in parts; those of one source stay together, and sources go round in the order of their hashes."""
    rank = sorted(set(kind.sources), key=lambda s: hashlib.sha256(s.encode()).digest())
    turn = {s: i % parts for i, s in enumerate(rank)}
    at = np.array([turn[s] for s in kind.sources])
    return [kind.where(at == i) for i in range(parts)]


def material(
    model: BaseModel, gs: GroupSet, *, n: int, seed: int, foreign: Path | None = None
) -> Iterator[float | Material]:
    """Pictures from what is at hand: the model, the group set, a generator, photographs that come with the app's own
    libraries, and a folder. A kind that has one source alone is tried and not fitted on. Yields the fraction of the
    model's own pictures that is drawn, then the result.

    Raises:
        DataError: the training pictures were not fetched, or the folder has no pictures.
    """
    size, fit = model.card.resolution, scope.fit_of(gs)
    given = read_folder(foreign, size, fit) if foreign is not None else {}  # refused before anything is drawn
    drawn = None
    for step in own(model, gs, count_own(n), seed):
        if isinstance(step, Kind):
            drawn = step
        else:
            yield step
    assert drawn is not None
    every = {
        "own": drawn,
        "train": real(gs, "train", 3 * n, size=size, seed=seed),
        "held-out": real(gs, "held_out", 3 * n, size=size, seed=seed),
    }
    thirds = {k: split(v, 3) for k, v in every.items() if len(set(v.sources)) >= 3}  # some sets hold nothing out
    fitted, calibrated, tried = ({k: v[i] for k, v in thirds.items()} for i in range(3))
    strange = {**made_up(n, size, seed, fit), "photographs": installed_photographs(n, size, seed, fit)}
    for name, kind in given.items():
        strange[name] = kind if name not in strange else joined(strange[name], kind)
    halves = {k: split(v, 2) if len(set(v.sources)) > 1 else [v.where(np.zeros(0, int)), v] for k, v in strange.items()}
    shown = {k: v[0] for k, v in halves.items() if len(v[0].sources)}
    yield Material(fitted, shown, calibrated, {**tried, **{k: v[1] for k, v in halves.items()}})


def joined(a: Kind, b: Kind) -> Kind:
    """The pictures of both."""
    return Kind(np.concatenate([a.pixels, b.pixels]), (*a.sources, *b.sources))
