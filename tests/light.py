"""A service that loads no torch: real preparation of pictures, made-up values, for the tests of reports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels, read_picture
from guda_core.data.prompts import check_options, check_prompt
from guda_core.errors import OptionError
from guda_core.picture_records import Drawing
from guda_core.records import (
    Attribution,
    GroupModels,
    GroupScore,
    GroupSet,
    KLValues,
    MethodInfo,
    Provenance,
    Query,
    Scope,
)
from guda_core.service import EFFORTS, Recorded, Step, check_methods

MISSING = "noto"
WHY = "There is no finished adapter in noto."
SETTINGS = {"effort": "quick", "methods": ["guda", "clip"]}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


METHODS = {
    "clip": MethodInfo("clip", "CLIP similarity", "cosine", "Likeness.", default=True),
    "guda": MethodInfo("guda", "GUDA (unlearning)", "nats", "Influence.", main=True, default=True),
}
HEALTH = {"unit": "nats", "forgotten_prompt": {"mean": 12.5, "se": 0.5, "n": 16}}


def fake_provenance(group_set: GroupSet, unavailable: Mapping[str, str]) -> Provenance:
    """Hashes of nothing, an adapter for every group that is available, and one adapter's health."""
    adapters = {g: sha(f"adapter {g}") for g in group_set.groups if g not in unavailable}
    columns = {"forgotten_prompt": "Forgot, with caption", "others_prompt": "Damage, with caption"}
    models = GroupModels(
        "Adapter",
        adapters,
        unavailable,
        "What the adapters forgot",
        "In nats.",
        columns,
        dict.fromkeys(list(adapters)[:1], HEALTH),
    )
    return Provenance(
        model="fake", name="A fake model", sha256=sha("model"), clip_sha256=sha("clip"), bank_sha256=sha("bank"),
        dtype="float32", device="cpu", threads=1, methods=METHODS,
        made_from={"clip": {"clip_sha256": sha("clip")}, "guda": {"adapters": adapters}}, models={"guda": models},
        validation={"sanity.json": {"first_group": 0.75, "sha256": sha("sanity")}, "styles.json": "It is damaged."},
    )  # fmt: skip


class LightService:
    """Fulfils what reports, replays and batches need of `Service`. Scores follow from picture, prompt and `salt`.

    nudge: factor of every value, as other hardware would move it. fault: raised at a picture of `bad_hash`.
    scored: hashes of the pictures that were scored.
    """

    model_name, banner = "A fake model", ""

    def __init__(self) -> None:
        self.group_set = load_group_set("emoji")
        self.made_with = fake_provenance(self.group_set, {MISSING: WHY})
        self.salt, self.nudge, self.passes = "", 1.0, 2
        self.fault: BaseException | None = None
        self.bad_hash = ""
        self.scored: list[str] = []

    def change(self, **more: object) -> None:
        """Other fields of the provenance."""
        self.made_with = replace(self.made_with, **more)  # type: ignore[arg-type]

    def change_models(self, **more: object) -> None:
        """Other fields of the unlearned models, and what GUDA is made from with them."""
        models = replace(self.made_with.unlearned, **more)  # type: ignore[arg-type]
        made_from = {**self.made_with.made_from, "guda": {"adapters": models.hashes}}
        self.change(models={**self.made_with.models, "guda": models}, made_from=made_from)

    def provenance(self) -> Provenance:
        return self.made_with

    def methods(self) -> dict[str, MethodInfo]:
        return METHODS

    def estimate(self, methods: Sequence[str], effort: str) -> float:
        if effort not in EFFORTS:
            raise OptionError(f"There is no effort '{effort}'. Known: quick, standard, full.")
        return 1.0

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        p = read_picture(data, size=16)
        return Query(p.pixels, None, check_prompt(prompt), p.image_hash, p.file_hash, p.preparation)

    def best_caption(self, query: Query) -> str:
        return "bird"

    def with_prompt(self, query: Query, prompt: str) -> Query:
        return replace(query, prompt=check_prompt(prompt))

    def generate(self, *, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[Step | Query]:
        check_options(seed=seed, steps=steps, guidance=guidance)
        for i in range(steps):
            yield Step(i + 1, steps)
        told = f"{self.salt} {check_prompt(prompt)} {seed} {steps} {guidance}"
        pixels = np.random.default_rng(int(sha(told)[:15], 16)).integers(3, 250, (16, 16, 3), dtype=np.uint8)
        pixels += np.uint8(self.nudge != 1)
        yield Query(pixels, None, prompt, hash_pixels(pixels), drawn=Drawing(seed, steps, guidance))

    def scope(self, query: Query) -> Scope:
        return Scope("in scope", 2.0, 3.0, "bits per dimension", "It needs 2 bits.")

    def attribute(
        self, query: Query, *, methods: Sequence[str], effort: str, recorded: Recorded | None = None
    ) -> Iterator[Attribution]:
        self.estimate(methods, effort)
        check_methods(methods, METHODS)
        if self.fault is not None and query.image_hash == self.bad_hash:
            raise self.fault
        self.scored.append(query.image_hash)
        if "clip" in methods:
            yield self._clip(query)
        if "guda" in methods:
            for i in range(self.passes):
                yield self._guda(query, (i + 1) / self.passes)

    def _rng(self, query: Query, what: str) -> np.random.Generator:
        return np.random.default_rng(int(sha(f"{what} {self.salt} {query.image_hash} {query.prompt}")[:15], 16))

    def _clip(self, query: Query) -> Attribution:
        scores = self._rng(query, "clip").uniform(0.3, 0.9, len(self.group_set.groups)) * self.nudge
        groups = {
            g: GroupScore(float(v), float(v) - 0.01, float(v) + 0.01)
            for g, v in zip(self.group_set.groups, scores, strict=True)
        }
        return Attribution("clip", "cosine", groups, settings={"clip_sha256": self.made_with.clip_sha256})

    def _guda(self, query: Query, progress: float) -> Attribution:
        rng, edges, draws = self._rng(query, "guda"), np.array([1, 10, 100, 500, 1000]), 3
        t = np.stack([rng.integers(edges[:-1], edges[1:]) for _ in range(draws)], axis=1)
        full, without = rng.gamma(2.0, 3.0, t.shape), {}
        groups = {}
        for g in self.group_set.groups:
            if g in self.made_with.unlearned.unavailable:
                groups[g] = GroupScore(None, None, None, "unavailable", self.made_with.unlearned.unavailable[g])
                continue
            without[g] = full + rng.normal(0.0, 3.0, t.shape)
            v = float((without[g] - full).sum()) * self.nudge
            groups[g] = GroupScore(v, v - 4.0, v + 4.0)
        settings = {"adapters": dict(self.made_with.unlearned.hashes), "dtype": self.made_with.dtype}
        a = Attribution(
            "guda", "nats", groups, progress, False, None, KLValues(t, edges, full, without), settings=settings
        )
        return replace(a, runner_up=a.ranked()[1])


def in_order(answer: dict) -> None:
    """Rank the groups of an answer in a record by their scores, as a careful forger does."""
    scores = {g: s["score"] for g, s in answer["groups"].items() if s["score"] is not None}
    ranked = sorted(scores, key=lambda g: (-scores[g], g))
    for g in scores:
        answer["groups"][g]["rank"] = ranked.index(g) + 1
    answer["runner_up"] = answer["runner_up"] and ranked[1]


def draw(path: Path, seed: int = 0, side: int = 16) -> Path:
    """A picture of noise, saved as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path
