"""Measures collages and strips one by one; each is kept in the cache folder, so that a stopped call goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark.queries import QueryConfig
from experiments.commands import drawn, measured_in, prompted
from experiments.maps.collages import Collage, collages
from guda_core.attribution import maps
from guda_core.attribution.counterfactual import Counterfactual
from guda_core.data.images import hash_pixels
from guda_core.data.sources.source import load_pictures
from guda_core.held_files import replacing
from guda_core.local import LocalService
from guda_core.picture_records import PlaceMap
from guda_core.records import Query

TUNING, EACH, ORACLE, STRIPS = 10, 68, 48, 40  # collages of a kind to tune on and to report; with the oracle; pictures
METHODS = ("guda", "logo")  # that maps are made with; the second where it is there
SEEDS = (211, 212, 213)  # of the tuning collages, the reported ones, the generated pictures


@dataclass(frozen=True)
class Bench:
    """A service, and where what it measured is kept."""

    service: LocalService
    folder: Path

    @classmethod
    def load(cls, service: LocalService) -> Bench:
        folder = measured_in(
            "maps", service, METHODS,
            pictures=load_pictures(service.group_set, "held_out", service.model.card.resolution).sha256(),
            draws=maps.DRAWS, strata=maps.STRATA, width=maps.WIDTH, seeds=SEEDS, oracle=ORACLE,
            drawn=asdict(QueryConfig()),
        )  # fmt: skip
        return cls(service, folder)

    def plan(self) -> tuple[list[Collage], list[Collage]]:
        """The collages to tune on, and those that are reported."""
        sets, model = self.service.group_set, self.service.model
        held_out = load_pictures(sets, "held_out", model.card.resolution)
        args = (held_out, list(sets.groups))
        places = model.latent_shape[1]
        return collages(*args, TUNING, places, SEEDS[0]), collages(*args, EACH, places, SEEDS[1])

    def collage(self, name: str, c: Collage, methods: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The maps of both groups by each method, measured once."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            q = Query(c.pixels, self.service.model.encode(c.pixels), "", hash_pixels(c.pixels))
            out: dict[str, np.ndarray] = {}
            for m in methods:
                method = self.service.offered[m]
                assert isinstance(method, Counterfactual)
                made = [i for i in maps.maps(method, q, [c.first, c.second]) if isinstance(i, PlaceMap)]
                out[m] = np.stack([p.drop for p in made])
                if m == "guda":
                    out["share"] = np.array([p.share for p in made])
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside, aside.open("wb") as f:
                np.savez(f, **out)  # pyright: ignore[reportArgumentType]
        with np.load(path, allow_pickle=False) as z:
            return {k: z[k] for k in z.files}

    def strip(self, n: int) -> dict[str, Any]:
        """Of generated picture n: the prompted group, and each group's distance; measured once."""
        path, sets = self.folder / f"strip-{n}.npz", self.service.group_set
        ids, (group, _, prompt) = list(sets.groups), prompted(sets, n, SEEDS[2])
        if not path.is_file():
            config = QueryConfig()
            made = drawn(self.service, prompt, seed=SEEDS[2] + n, steps=config.steps, guidance=config.guidance)
            found = self.service.strip(replace(made), "guda")
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside, aside.open("wb") as f:
                np.savez(f, distances=np.array([found.distances[g] for g in ids]))
        with np.load(path, allow_pickle=False) as z:
            return {"group": group, "first": ids[int(z["distances"].argmax())]}

    def run(self) -> Iterator[tuple[str, float]]:
        """Measure everything that is not measured yet, and tell the share that is done."""
        tuning, reported = self.plan()
        work = [("tuning", i) for i in range(len(tuning))] + [("reported", i) for i in range(len(reported))]
        work += [("strip", i) for i in range(STRIPS)]
        for done, (kind, i) in enumerate(work):
            yield kind, done / len(work)
            self.one(kind, i, tuning, reported)

    def one(self, kind: str, i: int, tuning: list[Collage], reported: list[Collage]) -> dict[str, Any]:
        """One piece of the work."""
        if kind == "strip":
            return self.strip(i)
        of = tuning if kind == "tuning" else reported
        oracle = kind == "reported" and i < ORACLE and "logo" in self.service.offered
        return self.collage(f"{kind}-{i}", of[i], METHODS if oracle else METHODS[:1])
