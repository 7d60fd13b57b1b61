"""What an adapter did to the model: the mean drop of the ELBO in nats, by kind of picture.

    drop(x, c) = ELBO(x | c; full) - ELBO(x | c; without the group)

It should be large on the group's own pictures and small on others'. The mean over held-out pictures of the other groups
is also what GUDA's offset is made of (`guda_core.attribution.guda`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guda_core.data.dataset import Item, Pictures
from guda_core.data.images import hash_pixels
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.batches import at_most
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.memory import Fitting
from guda_core.errors import DataError
from guda_core.paths import Folder
from guda_core.unlearning import adapters
from guda_core.unlearning.adapter_files import read_json, write_json
from guda_core.unlearning.adapters import CODED, HEALTH, OFFSET
from guda_core.unlearning.run import Forgetting
from guda_core.unlearning.switching import Switching
from guda_core.versions import versions

log = logging.getLogger(__name__)

KINDS = {  # of pictures that an adapter's health is measured on -> how a table's head says it
    "forgotten_prompt": "own, prompt",
    "others_prompt": "others, prompt",
    "forgotten_empty": "own, empty",
    "others_empty": "others, empty",
    "held_out_empty": "own, held out, empty",
    OFFSET: "others, held out, empty",
}

HELD_OUT_KINDS = ("held_out_empty", OFFSET)

BATCH = 32  # pictures of a pass, at most
AT_ONCE = 8  # pictures that are asked while an adapter is in the network; between them it is as it was

HELD_OUT = "held_out_sha256"  # in `health.json`: of the held-out pictures that were scored, in order

Shown = Sequence[tuple[Item, str]]  # items with the prompts that they are scored under


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A picture's hash, which seeds its draws, and its latent."""

    image_hash: str
    latent: Tensor


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """pictures: of each kind but one. held_out: of that one, from which GUDA's scores have their offset
    (`guda_core.attribution.guda`): held-out pictures, as many of each group and the same for all adapters, each of
    which meets those of the other groups (`held_out_of_all`). draws: in each of the strata of timesteps. seed: which
    pictures."""

    pictures: int = 16
    held_out: int = 160
    strata: int = 24
    draws: int = 1
    seed: int = 17


def summary(drops: Sequence[float]) -> dict[str, float | int]:
    """mean and standard error in nats, and n. One picture alone tells no error: "se" is left out."""
    n = len(drops)
    se = {"se": float(np.std(drops, ddof=1) / n**0.5)} if n > 1 else {}
    return {"mean": float(np.mean(drops)), **se, "n": n}


def _keys(kind: str, shown: Shown) -> list[tuple[str, str, str]]:
    """What tells the pictures and prompts of a kind from all others; a name may be in both halves of a set."""
    half = "held out" if kind in HELD_OUT_KINDS else "train"
    return [(half, item.id, prompt) for item, prompt in shown]


def _hash(kinds: Mapping[str, Shown], size: int) -> str:
    """Of the held-out pictures as a model of that resolution sees them, in order. A file may get another name."""
    h = hashlib.sha256()
    for kind in HELD_OUT_KINDS:
        h.update(f"{kind}\n".encode())
        for item, _ in kinds[kind]:
            pixels = item.seen(size)
            h.update(f"{item.group} {pixels.shape} {hash_pixels(pixels)}\n".encode())
    return h.hexdigest()


def held_out_of_all(
    held: Pictures, groups: Sequence[str], config: HealthConfig, apart: Collection[tuple[str, str]] = ()
) -> list[int]:
    """Places of the held-out pictures that all adapters are measured on, as many of each group; none of `apart`. Where
    there are more groups than pictures are wanted: one picture each of so many groups, drawn by the seed."""
    g = torch.Generator().manual_seed(config.seed)
    of: dict[str, list[int]] = {k: [] for k in groups}
    for i in torch.randperm(len(held), generator=g).tolist():
        if (held.groups[i], held.names[i]) not in apart:
            of[held.groups[i]].append(i)
    each = config.held_out // len(of)
    if each:
        return [i for places in of.values() for i in places[:each]]
    first = [places[0] for places in of.values() if places]
    return [first[k] for k in sorted(torch.randperm(len(first), generator=g)[: config.held_out].tolist())]


class Health:
    """Measures the adapters of one base model. apart: (group, name) of held-out pictures that the offset must not be
    made of: a benchmark's queries."""

    def __init__(
        self, job: Forgetting, config: HealthConfig | None = None, apart: Collection[tuple[str, str]] = ()
    ) -> None:
        self.job, self.config, self.apart = job, config or HealthConfig(), apart
        self._away = False  # whether pictures were asked for in vain
        self._full: dict[tuple[str, str, str], np.ndarray] = {}  # of the full model, by `_keys`, for every group
        self._kept: dict[str, _Seen] = {}  # held-out pictures that all adapters are measured on
        self._fits = Fitting(at_most(BATCH, job.model))

    @cached_property
    def _switching(self) -> Switching:
        """Of the model's network: one for all adapters, so that all are put into it in the same way."""
        return Switching(self.job.model.network, kept=0)

    def unmeasured(self, wanted: Sequence[str]) -> list[str]:
        """The wanted groups whose adapter fits but whose health has not been measured, or was of another adapter or, in
        a set of the user's own, on other held-out pictures than today's. Networks that were trained again and stored as
        codes are not measured."""
        out = []
        for g in self.job.known(wanted):
            if self.job.fits(g, None) and (meta := adapters.read_meta(self.job.folder / g)).get("kind") != CODED:
                found = adapters.read_health(self.job.folder / g, meta["sha256"])
                out += (
                    [] if found and self._of_these_pictures(g, found) and not self._lost_some(g, meta, found) else [g]
                )
        return out

    def _lost_some(self, group: str, meta: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
        """Whether it was measured in half precision with a LoRA merged, which now runs live: a part of it was lost."""
        merged = found.get("dtype") in ("bfloat16", "float16") and "switching" not in found
        return merged and meta.get("kind") is None and self._switching.any_live([self.job.load(group)])

    def _of_these_pictures(self, group: str, found: Mapping[str, Any]) -> bool:
        """The pictures of an included set do not change, and may not be here, as those of an own set may not be; who
        measured with settings of their own asks with these."""
        said = found.get(HELD_OUT)
        if said is None or not self.job.is_own or self._away or found.get("config") != self._settings():
            return True
        try:
            return said == _hash(self._kinds(group), self.job.card.resolution)
        except DataError as e:  # measuring would fail, too
            self._away = True
            log.warning("Whether the health is of today's held-out pictures is not known: %s", e)
            return True

    @cached_property
    def _held(self) -> Pictures:
        """The held-out pictures, read once for all groups."""
        return load_pictures(self.job.group_set, "held_out", seen=self.job.card.resolution)

    @cached_property
    def _held_out_of_all(self) -> list[Item]:
        groups = list(self.job.group_set.groups)
        return [self._held[i] for i in held_out_of_all(self._held, groups, self.config, self.apart)]

    def _kinds(self, group: str) -> dict[str, Shown]:
        g = torch.Generator().manual_seed(self.config.seed)
        train, held = self.job.pictures(), self._held

        def some(p: Pictures, keep: Callable[[str, str], bool], prompt: bool) -> Shown:
            q = p.where(keep)
            items = [q[i] for i in torch.randperm(len(q), generator=g)[: self.config.pictures].tolist()]
            return [(i, self.job.captioner.caption(i, g) if prompt else "") for i in items]

        prompted = {
            "forgotten_prompt": some(train, lambda k, o: k == group, True),
            "others_prompt": some(train, lambda k, o: k != group, True),
        }
        return {
            **(prompted if self.job.model.tokens("")[1] > 0 else {}),
            "forgotten_empty": some(train, lambda k, o: k == group, False),
            "others_empty": some(train, lambda k, o: k != group, False),
            "held_out_empty": some(held, lambda k, o: k == group, False),
            OFFSET: [(i, "") for i in self._held_out_of_all if i.group != group],
        }

    def _seen(self, kind: str, item: Item) -> _Seen:
        """The picture as the model sees it."""
        if kind == OFFSET and item.id in self._kept:
            return self._kept[item.id]
        pixels = item.seen(self.job.card.resolution)
        found = _Seen(hash_pixels(pixels), self.job.model.encode(pixels))
        if kind == OFFSET:
            self._kept[item.id] = found
        return found

    @cached_property
    def _no_prompt(self) -> Condition:
        return self.job.model.embed([""])

    def _drops(self, adapter: adapters.Adapter, kind: str, shown: Shown, strata: likelihood.Strata) -> list[float]:
        """Of some pictures of a kind, for which the adapter is put into the network once."""
        model, columns = self.job.model, list(range(self.config.draws))
        asked: list[tuple[Any, ...]] = []
        for key, (item, prompt) in zip(_keys(kind, shown), shown, strict=True):
            seen, cond = self._seen(kind, item), model.embed([prompt]) if prompt else self._no_prompt
            draws = likelihood.draw_times(seen.image_hash, strata, self.config.draws)
            asked.append((model, seen.latent, cond, draws, columns, self._fits))
            if key not in self._full:
                self._full[key] = likelihood.kl_values(*asked[-1])
        with self._switching.applied(adapter):
            without = [likelihood.kl_values(*of) for of in asked]
        full = [self._full[key] for key in _keys(kind, shown)]
        return [
            likelihood.elbo_drop(full=f, without=w, strata=strata).value for f, w in zip(full, without, strict=True)
        ]

    def passes(self, groups: Sequence[str]) -> dict[str, int]:
        """Group id -> forward passes, of one picture each, that `measure` takes; those of the full model are made once
        for all groups."""
        each, seen, out = self.config.strata * self.config.draws, set(self._full), {}
        for group in groups:
            out[group] = 0
            for kind, shown in self._kinds(group).items():
                new = set(_keys(kind, shown)) - seen
                seen |= new
                out[group] += each * (len(shown) + len(new))
        return out

    def measure(self, group: str) -> Iterator[float]:
        """Measure one adapter and write its `health.json`: `summary` of the drops, by kind of picture, where there are
        some of the kind; yields the fraction done.

        Raises:
            AdapterError: the adapter cannot be used, or the health cannot be written.
            ScoreError: a value is not finite, or there is too little memory for one picture.
        """
        adapter = self.job.load(group)
        strata = likelihood.make_strata(self.job.model.schedule, self.config.strata)
        kinds = self._kinds(group)
        record: dict[str, Any] = {}
        done, all_of_them = 0, sum(len(p) for p in kinds.values())
        try:
            for kind, shown in kinds.items():
                drops = []
                for at in range(0, len(shown), AT_ONCE):
                    part = shown[at : at + AT_ONCE]
                    drops += self._drops(adapter, kind, part, strata)
                    done += len(part)
                    yield done / all_of_them
                if drops:
                    record[kind] = summary(drops)
            record |= self._how(adapter)
        finally:
            self._switching.release()  # the next unlearning needs the memory
        record |= {"unit": "nats", "adapter_sha256": adapter.meta["sha256"], "left_out": len(self.apart)}
        record |= {HELD_OUT: _hash(kinds, self.job.card.resolution), "config": self._settings(), "versions": versions()}
        write_json(self.job.folder / group / HEALTH, record)

    def _settings(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "rule": likelihood.RULE}

    def _how(self, adapter: adapters.Adapter) -> dict[str, str]:
        """In which type the network ran; that the adapter was a branch beside its layers, where it was."""
        live = {"switching": "live"} if self._switching.any_live([adapter]) else {}
        return {"dtype": str(self.job.model.dtype).removeprefix("torch."), **live}

    def read(self) -> dict[str, dict[str, Any]]:
        """Group id -> its stored health, of those that can be read."""
        return read_all(self.job.folder, self.job.group_set.groups)


def read_all(folder: Folder, groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Group id -> the stored health of its adapter below the folder, of those that can be read."""
    out = {}
    for g in groups:
        with suppress(OSError, ValueError):
            out[g] = read_json(folder / g / HEALTH)
    return out
