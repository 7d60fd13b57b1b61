"""A service without a model: deterministic, instant unless told otherwise, for the tests of the user interface."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np

from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described
from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels, read_picture
from guda_core.data.prompts import check_options, check_prompt, prompt_notes
from guda_core.errors import OptionError
from guda_core.picture_records import Drawing, Near, PlaceMap, Strip
from guda_core.records import Attribution, Cost, GroupScore, GroupSet, KLValues, MethodInfo, Provenance, Query, Scope
from guda_core.service import Recorded, Service, Step
from guda_core.ui import build_ui, launch_options
from guda_core.ui.answer import Answer
from guda_core.ui.serve import launch
from tests.light import METHODS, fake_provenance

WAIT = 240.0  # seconds that a test waits for something that must come; a busy machine needs some of them
EDGES = np.array([1, 5, 20, 80, 250, 500, 1000])
PROFILE = np.array([0.1, 0.2, 0.35, 0.25, 0.12, -0.02])  # of a score, by stratum; adds up to 1
UNITS = {"clip": "cosine", "guda": "nats", "logo": "nats"}
LOGO = MethodInfo("logo", "LOGO (retrained; the oracle)", "nats", "Retrained.", oracle=True)
REASON = "The adapter's hash is <wrong>."


class FakeService:
    """Fulfils `Service`. The picture's hash picks the first group; each of `passes` refinements narrows the intervals.

    delay: seconds before everything that is yielded; all steps of drawing together have one.
    outcome: "ahead", "tied" or "nothing".
    oracle: "" (not offered), "agrees", "differs" or "close". offset: whether GUDA's scores have one.
    unavailable: ids of groups that no method scores; missing: of those that only GUDA does not.
    closed: how many generators ended early. at_work, most_at_work: attributions that run now, and the most at once.
    """

    model_name = "A fake model"

    def __init__(
        self,
        *,
        delay: float = 0.0,
        passes: int = 3,
        outcome: str = "ahead",
        banner: str = "",
        group_set: GroupSet | None = None,
        caveat: str = "",
    ) -> None:
        self.group_set, self.caveat = group_set or load_group_set("emoji"), caveat
        self.delay, self.passes, self.outcome, self.banner = delay, passes, outcome, banner
        self.unavailable: tuple[str, ...] = ()
        self.missing: tuple[str, ...] = ()
        self.prepared: list[bytes] = []
        self.scoped: Literal["in scope", "out of scope", "not assessed"] = "in scope"
        self.closed = self.at_work = self.most_at_work = 0
        self.fault: Exception | None = None
        self.oracle, self.offset = "", False
        self.by_caption = False  # whether the caption moves the first group

    def provenance(self) -> Provenance:
        made = fake_provenance(self.group_set, dict.fromkeys((*self.unavailable, *self.missing), REASON))
        return replace(made, methods=self.methods(), caveats={"": self.caveat})

    def methods(self) -> dict[str, MethodInfo]:
        return {**METHODS, "logo": LOGO} if self.oracle else METHODS

    def cost(self, methods: Sequence[str], effort: str) -> Cost:
        return Cost(forward=("guda" in methods) * {"quick": 432, "standard": 1296, "full": 5184, "every": 5184}[effort])

    def estimate(self, methods: Sequence[str], effort: str) -> float:
        passes = ("guda" in methods) + ("logo" in methods)
        return 0.2 + passes * {"quick": 8.0, "standard": 24.0, "full": 300.0, "every": 400.0}[effort]

    def generate(self, *, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[Step | Query]:
        check_options(seed=seed, steps=steps, guidance=guidance)
        prompt = check_prompt(prompt)
        for i in range(steps):
            time.sleep(self.delay / steps)
            yield Step(i + 1, steps)
        hue = hashlib.sha256(f"{prompt} {seed}".encode()).digest()[:3]
        pixels = np.full((64, 64, 3), 255, np.uint8)
        pixels[16:48, 16:48] = np.frombuffer(hue, np.uint8)
        yield Query(pixels, None, prompt, hash_pixels(pixels), drawn=Drawing(seed, steps, guidance))

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        self.prepared.append(data)
        p = read_picture(data, size=64)
        return Query(p.pixels, None, check_prompt(prompt), p.image_hash, p.file_hash, p.preparation)

    def pictures(self, query: Query, *, method: str) -> Iterator[Strip]:
        """Without the first group all is grey; without another, nothing changes."""
        ids = [g for g in self.group_set.groups if g not in (*self.unavailable, *self.missing)]
        drawn = {g: np.full_like(query.pixels, 128) if g == self.first(query) else query.pixels for g in ids}
        far = {g: float(g == self.first(query)) for g in ids}
        level = None if query.file_hash is None else 0.5
        for i in range(1, len(ids) + 1):
            time.sleep(self.delay)
            now = {g: drawn[g] for g in ids[:i]}
            yield Strip(method, query.pixels, now, {g: far[g] for g in now}, level, i / len(ids))

    def nearest(self, query: Query) -> tuple[Near, ...]:
        """One picture that is at hand, and one that is not."""
        grey = np.full_like(query.pixels, 128)
        return Near(self.first(query), 0.75, "cat-face", grey), Near([*self.group_set.groups][-1], 0.5)

    def maps(self, query: Query, *, method: str, groups: Sequence[str]) -> Iterator[PlaceMap | float]:
        """The first group is needed in one quarter; of the others the maps say nothing."""
        for i, g in enumerate(groups):
            yield i / len(groups)
            drop = np.zeros((16, 16))
            drop[:8, :8] = g == self.first(query)
            yield PlaceMap(method, g, drop, drop, np.full((16, 16), 0.1), 3.0, 2.0, 4)

    def with_prompt(self, query: Query, prompt: str) -> Query:
        return replace(query, prompt=check_prompt(prompt))

    def unread(self, prompt: str) -> tuple[str, ...]:
        return prompt_notes(prompt, ())

    def scope(self, query: Query) -> Scope:
        at = {"in scope": 2.1, "out of scope": 4.4}.get(self.scoped)
        return Scope(self.scoped, at, None if at is None else 3.0, "bits per dimension", f"It is {self.scoped}.")

    def best_caption(self, query: Query) -> str:
        return captioner_of(self.group_set).prompt(described("noto", "cat-face"))

    def first(self, query: Query) -> str:
        """The group that this picture's answer puts first."""
        ids = [g for g in self.group_set.groups if g not in self.unavailable]
        seed = f"{query.image_hash}{query.prompt}" if self.by_caption else query.image_hash
        return ids[int(hashlib.sha256(seed.encode()).hexdigest(), 16) % len(ids)]

    def attribute(
        self, query: Query, *, methods: Sequence[str], effort: str, recorded: Recorded | None = None
    ) -> Iterator[Attribution]:
        if not methods:
            raise OptionError("Methods must be some of clip, guda; got none.")
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        done = False
        try:
            for method in ("guda", "clip", "logo"):
                if method in methods:
                    yield from self._answers(method, query)
            done = True
        finally:
            self.at_work -= 1
            self.closed += not done

    def _answers(self, method: str, query: Query) -> Iterator[Attribution]:
        if method == "guda":
            time.sleep(self.delay)
            yield Attribution(method, UNITS[method], {}, 0.5 / self.passes)
        passes = self.passes if method == "guda" else 1
        for i in range(passes):
            time.sleep(self.delay)
            if self.fault is not None:
                raise self.fault
            yield self._answer(method, query, (i + 1) / passes)

    def _answer(self, method: str, query: Query, progress: float) -> Attribution:
        first, scores = self.first(query), {}
        order = [first, *(g for g in self.group_set.groups if g != first and g not in self.unavailable)]
        for i, g in enumerate(order):
            if method == "guda" and g in self.missing:
                continue
            if method == "clip":
                v, half = 0.72 - 0.03 * i, 0.01
            else:
                v = {"ahead": 41.0 if i == 0 else 17.0 - 3.2 * i, "tied": 41.0 - 1.5 * i, "nothing": 1.2 - 0.6 * i}[
                    self.outcome
                ]
                half = 6.0 / progress**0.5
            scores[g] = GroupScore(v, v - half, v + half)
        out = {g: scores.get(g) or GroupScore(None, None, None, "unavailable", REASON) for g in self.group_set.groups}
        if method == "clip":
            return Attribution(method, UNITS[method], out, progress, settings={"clip_sha256": "fake"})
        if method == "logo":
            return self._oracle(out, order)
        kl = self._values(query, {g: s.score for g, s in out.items() if s.score is not None}, progress)
        apart = self.outcome == "ahead"
        settings: dict[str, object] = {"passes": self.passes}
        if self.offset:  # more than half of what some give, more than others give
            settings["offset"] = {g: 9.0 - 2.5 * i for i, g in enumerate(order)}
        return Attribution(method, UNITS[method], out, progress, apart, order[1], kl, settings=settings)

    def _oracle(self, out: dict[str, GroupScore], order: list[str]) -> Attribution:
        """What the retrained models say: as GUDA does, or with the first two exchanged."""
        if self.oracle == "differs":
            out[order[0]], out[order[1]] = out[order[1]], out[order[0]]
            order = [order[1], order[0], *order[2:]]
        return Attribution("logo", "nats", out, 1.0, self.oracle != "close", order[1])

    def _values(self, query: Query, scores: dict[str, float], progress: float) -> KLValues:
        """KL values (K, M) whose ELBO differences are exactly the scores, with a spread of their own."""
        draws, sizes = 4 * max(1, round(4 * progress)), np.diff(EDGES)
        rng = np.random.default_rng(int(query.image_hash[:12], 16))
        t = np.stack([rng.integers(EDGES[:-1], EDGES[1:]) for _ in range(16)], axis=1)[:, :draws]
        full = rng.gamma(2.0, 3.0, (len(sizes), 16))[:, :draws]
        without = {}
        for g, score in scores.items():
            noise = rng.normal(0.0, 1.0, (len(sizes), 16))[:, :draws] * 4.0 / sizes[:, None]
            noise -= noise.mean(axis=1, keepdims=True)
            without[g] = full + noise + (score * PROFILE / sizes)[:, None]
        return KLValues(t, EDGES, full, without)


def answered(service: FakeService) -> Answer:
    """What a page holds of a picture that the service drew and scored."""
    *_, query = service.generate(prompt="a teapot", seed=0, steps=1, guidance=1.0)
    assert isinstance(query, Query)
    found = {a.method: a for a in service.attribute(query, methods=[*service.methods()], effort="quick")}
    return Answer(query, tuple(found), "quick", found, service.scope(query))


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The app for a service on a free port, launched as app.py launches it; gives its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    demo, url = launch(build_ui(service), "127.0.0.1", port, **launch_options())
    try:
        yield url
    finally:
        demo.close()
