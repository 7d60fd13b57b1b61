"""GUDA (arXiv 2601.22651): score_k = ELBO(x | full) - ELBO(x | full with group k unlearned), in nats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from guda_core import adapters
from guda_core.errors import AdapterError
from guda_core.methods.counterfactual import Budget, drops
from guda_core.models.base import BaseModel
from guda_core.records import Attribution, GroupSet, Query


class Guda:
    """Scores groups by their unlearning adapters. `unavailable` says why a group's adapter cannot be used."""

    id = "guda"
    unit = "nats"

    def __init__(self, model: BaseModel, group_set: GroupSet, folder: Path) -> None:
        self.model, self.group_set, self.folder = model, group_set, folder
        self.adapters: dict[str, adapters.Adapter] = {}
        self.unavailable: dict[str, str] = {}
        for gid in group_set.groups:
            try:
                self.adapters[gid] = adapters.load(folder / gid, base_sha256=model.sha256, group=gid)
            except AdapterError as e:
                self.unavailable[gid] = str(e)

    def without(self, group: str) -> AbstractContextManager[None]:
        """Within the block the model is the one without the group."""
        return adapters.applied(self.model.denoiser, self.adapters[group])

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        """Yields refining Attributions. settings names the base and every adapter by hash."""
        settings = {
            "budget": asdict(budget),
            "base_sha256": self.model.sha256,
            "adapters": {g: a.meta["sha256"] for g, a in self.adapters.items()},
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
        }
        yield from drops(
            self.model,
            query,
            list(self.group_set.groups),
            self.without,
            method=self.id,
            budget=budget,
            unavailable=self.unavailable,
            settings=settings,
        )
