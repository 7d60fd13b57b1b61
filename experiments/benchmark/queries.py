"""The fixed queries of a benchmark.

    generated         every group x `objects` trained objects, prompted with three descriptors of the group
    generated-blend   every pair of groups x `blend_objects` objects, descriptors of both in turn
    real              `real` pictures of held-out objects a group, empty prompt

`FRESH` is a second draw, made after every setting was chosen: nothing was ever tried on it. Its seeds are others, and
its real pictures are none of the first draw's and none that the offset is made of.

A set that lists no objects is asked with its pictures: prompts are the captions of training pictures, each taken once
before any is taken again; real ones are at most half of a group's held-out pictures, since the offset is measured on
the others (`guda_core.data.reserved`).

Plans are a function of the settings alone. Generated pictures are kept beside the plan (`queries.npz`): they are then
the same on every machine; real ones belong to their authors and are named by hash and taken from the data cache. The
file holds them as `experiments.lossless` has them, older ones as one array.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from experiments import lossless
from experiments.commands import differences, keep_record
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Item as Picture
from guda_core.data.dataset import described
from guda_core.data.images import hash_pixels
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import DataError
from guda_core.records import GroupSet, Query

RECORD, PICTURES = "queries.json", "queries.npz"
SETS = ("generated", "generated-blend", "real")


@dataclass(frozen=True)
class QueryConfig:
    """objects, real: pictures a group; blend_objects: a pair of groups. steps, guidance: of sampling. seed: of all."""

    objects: int = 25
    blend_objects: int = 5
    real: int = 20
    steps: int = 25
    guidance: float = 2.5
    seed: int = 101


FRESH = QueryConfig(objects=30, blend_objects=10, real=25, seed=202)


@dataclass(frozen=True)
class Item:
    """One planned query. groups: whose descriptors are in the prompt, or who drew it. seed: of the sampling."""

    set: str
    groups: tuple[str, ...]
    object: str
    prompt: str
    seed: int


def _pick(names: tuple[str, ...], n: int, g: torch.Generator) -> list[str]:
    return [names[i] for i in torch.randperm(len(names), generator=g)[:n].tolist()]


def plan(group_set: GroupSet, config: QueryConfig, apart: Collection[tuple[str, str]] = ()) -> list[Item]:
    """All queries, set by set, group by group. apart: (group, object) of held-out pictures that are not asked about.

    Raises:
        DataError: a group has too few held-out pictures left.
    """
    if not group_set.train_objects:
        return _plan_of_pictures(group_set, config)
    out: list[Item] = []
    g, captioner = torch.Generator().manual_seed(config.seed), captioner_of(group_set)
    for gid in group_set.groups:
        for o in _pick(group_set.train_objects, config.objects, g):
            prompt = captioner.caption(described(gid, o), g)
            out.append(Item("generated", (gid,), o, prompt, config.seed * 1000 + len(out)))
    for i, pair in enumerate(itertools.combinations(group_set.groups, 2)):
        for j, o in enumerate(_pick(group_set.train_objects, config.blend_objects, g)):
            both = pair if _is_first(i, j, config) else pair[::-1]  # the first gives two of the three descriptors
            prompt = captioner.blend(described(both[0], o), both, g)
            out.append(Item("generated-blend", both, o, prompt, config.seed * 1000 + len(out)))
    for gid in group_set.groups:
        left = tuple(o for o in group_set.held_out_objects if (gid, o) not in apart)
        if len(left) < config.real:
            raise DataError(f"'{gid}' has {len(left)} held-out pictures left, and {config.real} are asked for.")
        out += [Item("real", (gid,), o, "", 0) for o in _pick(left, config.real, g)]
    return out


def _is_first(i: int, j: int, config: QueryConfig) -> bool:
    """Whether blend j of pair i has more of the pair's first group. Every second query is of the tuning half, which has
    as many of each. (Of the first draw it has all those with more of the first group, and the report half the others.)
    """
    return (i // 2 + j if config.blend_objects % 2 and config != QueryConfig() else i + j) % 2 == 0


def _plan_of_pictures(group_set: GroupSet, config: QueryConfig) -> list[Item]:
    """Of a set without objects: `Item.object` is then the picture's name."""
    g, captioner, dataset = torch.Generator().manual_seed(config.seed), captioner_of(group_set), open_dataset(group_set)
    train, held = (_by_group(dataset.split(s), group_set) for s in ("train", "held_out"))
    out: list[Item] = []

    def some(items: list[Picture], n: int) -> list[Picture]:
        order = [i for _ in range(-(-n // len(items))) for i in torch.randperm(len(items), generator=g).tolist()]
        return [items[i] for i in order[:n]]

    for gid in group_set.groups:
        for item in some(train[gid], config.objects):
            prompt = captioner.caption(item, g)
            out.append(Item("generated", (gid,), _name(item), prompt, config.seed * 1000 + len(out)))
    for i, pair in enumerate(itertools.combinations(group_set.groups, 2)):
        for j, item in enumerate(some(train[pair[0]], config.blend_objects)):
            both = pair if _is_first(i, j, config) else pair[::-1]
            prompt = captioner.blend(described(both[0], captioner.content(item)), both, g)
            out.append(Item("generated-blend", both, _name(item), prompt, config.seed * 1000 + len(out)))
    for gid in group_set.groups:
        n = min(config.real, len(held[gid]) // 2)
        out += [Item("real", (gid,), _name(item), "", 0) for item in some(held[gid], n)] if n else []
    return out


def _by_group(items: Sequence[Picture], group_set: GroupSet) -> dict[str, list[Picture]]:
    found: dict[str, list[Picture]] = {g: [] for g in group_set.groups}
    for i in range(len(items)):
        found[items[i].group].append(items[i])
    return found


def _name(item: Picture) -> str:
    return item.id.removeprefix(f"{item.group}/")


def _held_out(group_set: GroupSet) -> dict[tuple[str, str], Picture]:
    """(group, name) -> a held-out picture."""
    items = open_dataset(group_set).split("held_out")
    return {(items[i].group, _name(items[i])): items[i] for i in range(len(items))}


def write(
    model: BaseModel,
    group_set: GroupSet,
    config: QueryConfig,
    folder: Path,
    batch: int = 20,
    command: str = "python -m experiments.styles",
    apart: Collection[tuple[str, str]] = (),
    name: str = "",
) -> Iterator[float]:
    """Generate the pictures and write PICTURES and, last, RECORD; yields the fraction done. apart: see
    `plan`; name: of these queries, "" for the first draw."""
    items = plan(group_set, config, apart)
    held, size = _held_out(group_set), model.card.resolution
    made = [i for i in items if i.set != "real"]
    pixels: list[np.ndarray] = []
    for i in range(0, len(made), batch):
        part = made[i : i + batch]
        prompts, seeds = [x.prompt for x in part], [x.seed for x in part]
        pixels += list(model.generate(prompts, seeds=seeds, steps=config.steps, guidance=config.guidance))
        yield len(pixels) / len(made)
    real = [held[i.groups[0], i.object].image(size) for i in items if i.set == "real"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    np.savez(folder / PICTURES, **lossless.joined(map(lossless.coded, pixels)))
    record = {
        "command": command,
        **({"name": name} if name else {}),
        "config": asdict(config),
        "base_sha256": model.sha256,
        "group_set": group_set.id,
        "items": [{**asdict(i), "pixels_sha256": hash_pixels(p)} for i, p in zip(items, [*pixels, *real], strict=True)],
    }
    keep_record(folder / RECORD, record)


@dataclass(frozen=True)
class Queries:
    """The queries in order, and of which draw they are: "" for the first, "fresh"."""

    queries: tuple[Query, ...]
    items: tuple[Item, ...]
    base_sha256: str
    name: str = ""

    def where(self, set_name: str) -> np.ndarray:
        """Places of a set's queries."""
        return np.array([i for i, x in enumerate(self.items) if x.set == set_name])


def pictures(folder: Path) -> Iterator[np.ndarray]:
    """The generated pictures, in order."""
    with np.load(folder / PICTURES, allow_pickle=False) as z:
        return iter(z["generated"]) if "generated" in z.files else lossless.read(z)


def read(folder: Path, group_set: GroupSet, model: BaseModel, asked: QueryConfig | None = None) -> Queries:
    """Read the queries, encode them, and check every picture's hash. asked: the settings that they must have, if any.

    Raises:
        DataError: they were not made, were made with another base model or other settings, or a picture is not the one
            recorded.
    """
    if not (folder / "queries.json").is_file():
        raise DataError(f"There are no queries in {folder}. Make them with `python -m experiments.styles`.")
    record = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    if record["base_sha256"] != model.sha256 or record.get("group_set", group_set.id) != group_set.id:
        raise DataError(
            "The queries were drawn by another model than this one, or of another group set. Delete "
            f"{folder / 'queries.json'} to draw new ones."
        )
    if asked and (changed := differences(record["config"], asdict(asked))):
        raise DataError(
            f"The queries were drawn with other settings: {changed}. Ask for the same, or delete "
            f"{folder / 'queries.json'} to draw new ones."
        )
    held, size = _held_out(group_set), model.card.resolution
    generated = pictures(folder)
    queries, items = [], []
    for entry in record["items"]:
        expected = entry.pop("pixels_sha256")
        item = Item(**{**entry, "groups": tuple(entry["groups"])})
        pixels = held[item.groups[0], item.object].image(size) if item.set == "real" else next(generated)
        found = hash_pixels(pixels)
        if found != expected:
            raise DataError(f"The picture of {item.object} ({item.set}, {item.groups[0]}) is not the one recorded.")
        queries.append(Query(pixels, model.encode(pixels), item.prompt, found))
        items.append(item)
    return Queries(tuple(queries), tuple(items), record["base_sha256"], record.get("name", ""))
