"""Frozen records of answers that are pictures: how one was drawn, what is drawn without a group, and where.

Plain data; no torch import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Drawing:
    """How a model drew a picture of its own: all that it takes, beside the prompt, to draw it again."""

    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Drawn:
    """What a picture in memory says of where it comes from, in its `info` under `KEY`: how it was drawn, of which
    prompt, by the model of which hash; and the hash of its pixels, since it may have been changed after that."""

    KEY: ClassVar[str] = "guda_core.drawn"  # no file that Pillow writes holds it
    drawing: Drawing
    prompt: str
    model_sha256: str
    image_hash: str


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Strip:
    """What the models of one method draw without each group, beside what the full model draws.

    method: id. reference: (H, W, 3) uint8, by the full model. pictures: group id -> (H, W, 3) uint8. distances: group
    id -> how far that picture is from the reference: root mean square of the difference of their latents, as the model
    encodes them; 0 for the same picture. level: share of the noise steps that an upload was noised up to before it was
    drawn again; None where prompt and seed drew it from the start. progress: in [0, 1].
    """

    method: str
    reference: np.ndarray = field(repr=False)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    distances: Mapping[str, float] = field(default_factory=dict)
    level: float | None = None
    progress: float = 1.0

    def ranked(self) -> list[str]:
        """Group ids, those without which the picture differs most first."""
        return sorted(self.distances, key=lambda g: (-self.distances[g], g))


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class PlaceMap:
    """Where in a picture a method's drop comes from, for one group.

    drop: (h, w) float64, nats of each place of the latent; they add up to the group's drop at these draws, without the
    offset. smooth: (h, w), the same after a Gaussian. se: (h, w), standard errors of `smooth`. limit: standard errors
    that a place needs to say something. width: standard deviation of the Gaussian, in places. draws: in each stratum.
    """

    method: str
    group: str
    drop: np.ndarray = field(repr=False)
    smooth: np.ndarray = field(repr=False)
    se: np.ndarray = field(repr=False)
    limit: float
    width: float
    draws: int

    @property
    def clear(self) -> np.ndarray:
        """(h, w) bool: the places that are above the map's own noise."""
        return np.abs(self.smooth) > self.limit * self.se

    @property
    def share(self) -> float:
        """The share of places that are above the noise; 0: the map says nothing."""
        return float(self.clear.mean())

    @property
    def strongest(self) -> float:
        """Nats of the place that is farthest from 0, smoothed, without its sign."""
        return float(np.abs(self.smooth).max())


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Tile:
    """A map as a picture. overlay: (H, W, 3) uint8. share: of places above the noise. drop: nats of all places.

    strongest: nats of a place in full colour; 0: not told."""

    group: str
    overlay: np.ndarray = field(repr=False)
    share: float
    drop: float
    strongest: float = 0.0


@dataclass(frozen=True)
class Near:
    """A training picture that looks like the picture: likeness, not influence.

    cosine: of their features, in [-1, 1]. name: in its group, "" where it is not told. pixels: (H, W, 3) uint8, None
    where it is not on this machine.
    """

    group: str
    cosine: float
    name: str = ""
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Shown:
    """The pictures of one answer. where: maps of some groups; draws, width: as of a `PlaceMap`. near: most alike.
    missing: why some of it is not there, in sentences for whoever reads the page; "" where nothing is to be said.
    by_command: whether the command line would make them, which has no limit of time.
    """

    strip: Strip | None = None
    where: tuple[Tile, ...] = ()
    draws: int = 0
    width: float = 0.0
    near: tuple[Near, ...] = ()
    missing: str = ""
    by_command: bool = False

    def __bool__(self) -> bool:
        return bool(self.where) or bool(self.near) or (self.strip is not None and bool(self.strip.pictures))
