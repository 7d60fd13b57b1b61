"""GUDA (arXiv 2601.22651): ELBO(x | full) - ELBO(x | full with group k unlearned), and what k gives to all pictures.

    score_k(x) = drop_k(x) + WEIGHT offset_k     nats
    offset_k  = mean of drop_k over held-out pictures of the other groups, empty prompt

The paper's score is the drop alone. A model that is trained again without a group explains pictures of the other groups
worse as well, some groups' loss more than others'; unlearning is held back from that by its preserve loss, so that
little of it is left in the drop, though in about the right proportions. The adapter's health has it measured. Where it
was not measured for every adapter, the score is the drop alone. The intervals take it as known; its own standard error
is in the health. WEIGHT was fitted on the embedded model's styles; for other models it is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from guda_core.attribution.counterfactual import Budget, drops
from guda_core.diffusion.base import BaseModel
from guda_core.diffusion.likelihood import RULE
from guda_core.errors import AdapterError
from guda_core.records import Attribution, GroupSet, Query
from guda_core.unlearning import adapters

WEIGHT = 1.04  # of the offset: by least squares to the oracle on the styles' tuning half (`tables.offset_fit`)


def offset_of(folder: Path, of: Mapping[str, adapters.Adapter]) -> dict[str, float]:
    """Group id -> WEIGHT offset_k in nats, from the health of just these adapters in a folder; {} if one has none."""
    out = {}
    for g, adapter in of.items():
        part = adapters.read_health(folder / g, adapter.meta["sha256"]).get(adapters.OFFSET)
        mean = part.get("mean") if isinstance(part, dict) else None
        if not isinstance(mean, int | float) or not math.isfinite(mean):
            return {}
        out[g] = WEIGHT * mean
    return out


class Guda:
    """Scores groups by their unlearning adapters. `unavailable` says why a group's adapter cannot be used; offset:
    what is added to the scores of each, in nats, whatever the picture."""

    id = "guda"
    unit = "nats"
    adds_offset: ClassVar[bool] = True

    def __init__(self, model: BaseModel, group_set: GroupSet, folder: Path) -> None:
        self.model, self.group_set, self.folder = model, group_set, folder
        self.adapters: dict[str, adapters.Adapter] = {}
        self.unavailable: dict[str, str] = {}
        for gid in group_set.groups:
            try:
                self.adapters[gid] = adapters.load(folder / gid, base_sha256=model.sha256, group=gid)
            except AdapterError as e:
                self.unavailable[gid] = str(e)
        self.offset = offset_of(folder, self.adapters) if self.adds_offset else {}

    def without(self, group: str) -> AbstractContextManager[None]:
        """Within the block the model is the one without the group."""
        return adapters.applied(self.model.network, self.adapters[group])

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        """Yields refining Attributions. settings names the base and every adapter by hash."""
        settings = {
            "budget": {**asdict(budget), "rule": RULE},
            "base_sha256": self.model.sha256,
            "adapters": {g: a.meta["sha256"] for g, a in self.adapters.items()},
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
        }
        if self.offset:
            settings["offset"] = self.offset
        yield from drops(
            self.model,
            query,
            list(self.group_set.groups),
            self.without,
            method=self.id,
            budget=budget,
            unavailable=self.unavailable,
            settings=settings,
            offset=self.offset,
        )
