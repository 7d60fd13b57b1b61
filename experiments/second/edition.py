"""The settings of the second edition, and what a stage of it is asked for.

    pictures  128 pixels; an autoencoder of four levels (f = 8), 12 channels: the UNet works on 16 x 16 places
    UNet      the first edition's channels, so that a pass costs what it did; 614,400 pictures seen instead of 115,200
    oracle    three seeds, each with a full model and one without each group

Everything lies in one folder of work, which stands for the cache: `data/` the pictures, `train/` the parts, `assets/`
the model in its layout, `figures/` queries, `logo/` the oracle's values, `live/` its models in coded form.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.benchmark.queries import FRESH, QueryConfig
from experiments.benchmark.scores import ScoreConfig
from experiments.logo.retrained_delta import LiveConfig
from experiments.second.fast_loop import How
from experiments.seeds.seed_trainings import SCORES
from experiments.train.clip import ClipConfig
from experiments.train.unet import UnetConfig
from experiments.train.vae import VaeConfig
from guda_core.data.groups import load_group_set
from guda_core.paths import ROOT, cache_dir
from guda_core.records import GroupSet
from guda_core.unlearning.loop import LoopConfig

SET = "emoji-eleven"
HOME = ROOT / "experiments" / "second"  # a workspace that holds the group set
MODEL = "emoji-second"  # the model's id


def _vae() -> VaeConfig:
    loop = LoopConfig(steps=4000, batch=96, lr=2e-3, warmup=200, ema=0.998, weight_decay=0.0, seed=1)
    return VaeConfig(channels=(24, 48, 96, 128), latent_channels=12, loop=loop)


def _clip() -> ClipConfig:
    loop = LoopConfig(steps=2400, batch=512, lr=1e-3, warmup=150, weight_decay=0.05, seed=2)
    return ClipConfig(patch=16, shift=8, loop=loop)


def _unet() -> UnetConfig:
    return UnetConfig(loop=LoopConfig(steps=2400, batch=256, lr=1.5e-3, warmup=150, ema=0.998, seed=3))


def _classifier() -> LoopConfig:
    return LoopConfig(steps=2400, batch=256, lr=2e-3, warmup=100, weight_decay=0.05, seed=9)


@dataclass(frozen=True)
class Edition:
    """captions: of each picture, that the UNet learns. seeds: of the oracle, the embedded model's first. quality: what
    is generated to be looked at; objects a style, steps, guidance and seed. live: of the coded models."""

    vae: VaeConfig = field(default_factory=_vae)
    clip: ClipConfig = field(default_factory=_clip)
    unet: UnetConfig = field(default_factory=_unet)
    classifier: LoopConfig = field(default_factory=_classifier)
    captions: int = 24
    seeds: tuple[int, ...] = (3, 4, 5)
    first: QueryConfig = field(default_factory=QueryConfig)
    fresh: QueryConfig = field(default_factory=lambda: FRESH)
    scores: ScoreConfig = SCORES
    quality: QueryConfig = field(default_factory=lambda: QueryConfig(objects=40, seed=11))
    live: LiveConfig = field(default_factory=LiveConfig)
    scored_at_once: int = 512

    def unet_of(self, seed: int) -> UnetConfig:
        """The settings of a UNet's training: all the same but for the seed."""
        return replace(self.unet, loop=replace(self.unet.loop, seed=seed))

    def scaled(self, factor: float) -> Edition:
        """The same with so many times the steps of every training."""

        def loop(of: LoopConfig) -> LoopConfig:
            return replace(of, steps=max(1, round(of.steps * factor)), warmup=max(1, round(of.warmup * factor)))

        parts = {k: replace(getattr(self, k), loop=loop(getattr(self, k).loop)) for k in ("vae", "clip", "unet")}
        return replace(self, classifier=loop(self.classifier), **parts)


@dataclass(frozen=True)
class Asked:
    """What a stage needs to know; small, and can be pickled."""

    edition: Edition
    how: How
    group_set: str = SET


def at(work: Path, home: Path = HOME) -> None:
    """Let the folder of work stand for the cache of this process and of those that it starts, and the workspace for the
    user's, so that nothing of another edition is read or written."""
    os.environ.update(GUDA_CACHE=str(work), GUDA_HOME=str(home))


@lru_cache(maxsize=2)
def the_set(name: str = SET) -> GroupSet:
    """The group set, read once."""
    return load_group_set(name)


def place(name: str) -> Path:
    """A file or folder of the work."""
    return cache_dir() / name


def plain(asked: Asked) -> dict[str, Any]:
    """How it was made, for records."""
    return {"device": asked.how.card, "bf16": asked.how.bf16, "graph": asked.how.graph, "compiled": asked.how.compiled}
