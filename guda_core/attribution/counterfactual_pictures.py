"""What a model would draw without each group: pictures instead of words.

A picture that the model drew is drawn again, by the same prompt, seed, steps and guidance, with each group unlearned
(or retrained without). Any other picture is noised up to a middle level and drawn again from there, by the full model
too, which is then the reference: only what the models make of the same noise is compared. How far two pictures are
apart is told in the model's own latents, as a root mean square.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from guda_core.attribution.counterfactual import Counterfactual
from guda_core.diffusion import redrawing, sampling
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.likelihood import seed_of
from guda_core.errors import AdapterError
from guda_core.picture_records import Strip
from guda_core.records import Query

LEVEL = 0.5  # of the noise steps, for pictures that the model did not draw
STEPS = 15  # of their drawing
HELD_S = 0.4  # that a model stays changed: a cancel waits for it
Stream = Iterator[np.ndarray | None]


class Distances:
    """Root mean squares of the differences of pictures' latents from one's, which is encoded once. Pictures: (H, W, 3)
    uint8 at the model's resolution."""

    def __init__(self, model: BaseModel, reference: np.ndarray) -> None:
        self.model, self.reference = model, reference
        self._latent: Tensor | None = None

    def of(self, picture: np.ndarray) -> float:
        """How far a picture is from the reference."""
        with self.model.lock, self.model.loaded():
            if self._latent is None:
                self._latent = self.model.encode(self.reference)
            return float((self.model.encode(picture) - self._latent).square().mean().sqrt())


def _drawing(model: BaseModel, query: Query) -> tuple[Callable[[], Stream], int, float | None]:
    """(what starts a drawing by the model as it then is, its steps, the level of noise it starts from)."""
    if query.drawn is not None:
        d = query.drawn
        return (
            lambda: model.sample([query.prompt], seeds=[d.seed], steps=d.steps, guidance=d.guidance),
            d.steps,
            None,
        )
    noise = sampling.start_noise(query.latent.shape[1:], [seed_of(query.image_hash, -2)])
    condition = model.embed([query.prompt])
    return (
        lambda: redrawing.redraw(model, query.latent, noise, condition, level=LEVEL, steps=STEPS),
        STEPS,
        LEVEL,
    )


def _stepwise(
    model: BaseModel, stream: Stream, without: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """(steps done, the picture or None) of the stream, with the weights changed only while it works: for `HELD_S`
    seconds or one step, whichever is longer, since changing them takes time. Between, others can use the model."""
    done = 0
    while True:
        until, made, ended = time.monotonic() + HELD_S, None, True
        with model.lock, torch.no_grad(), without():
            for made in stream:
                done += 1
                if made is not None or time.monotonic() >= until:
                    ended = False
                    break
        if ended:
            return
        yield done, made


def pictures_without(method: Counterfactual, query: Query, groups: Sequence[str] | None = None) -> Iterator[Strip]:
    """The strip as it grows, about twice a second; the last has progress 1.

    groups: ids; None = all that have a model without them. A model that cannot be applied is left out. Closing the
    generator ends the work at once and leaves the model as it was.

    Raises:
        ModelError: a value is not finite, so there is no picture.
    """
    model, usable = method.model, [g for g in groups or method.group_set.groups if g in method.adapters]
    start, steps, level = _drawing(model, query)
    todo: list[str | None] = [*([None] if level is not None else []), *usable]
    strip, distances = Strip(method.id, query.pixels, level=level, progress=0.0), Distances(model, query.pixels)
    for i, g in enumerate(todo):
        picture = None
        try:
            without = nullcontext if g is None else (lambda g=g: method.without(g))
            for done, made in _stepwise(model, start(), without):
                picture = made
                if made is None:
                    yield replace(strip, progress=(i + done / steps) / len(todo))
        except AdapterError:
            continue
        assert picture is not None
        if g is None:
            strip, distances = replace(strip, reference=picture[0]), Distances(model, picture[0])
        else:
            far = distances.of(picture[0])
            strip = replace(strip, pictures={**strip.pictures, g: picture[0]}, distances={**strip.distances, g: far})
        strip = replace(strip, progress=(i + 1) / len(todo))
        yield strip
    if strip.progress < 1:
        yield replace(strip, progress=1.0)
