"""All that trainings of the oracle and their scoring need, in one file of some megabytes.

A machine with a GPU then needs neither the training pictures nor the fixed queries' pictures: latents and names are
enough, since captions are written from names and the VAE is frozen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmark import queries
from experiments.train import stages, vae
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import DataError
from guda_core.records import GroupSet, Query

FORMAT = 1
SPLITS = ("train", "held_out")
THIN = 5


@dataclass(frozen=True)
class Packed:
    """latents: split -> (N, C, h, w) float32, as the UNet is trained on; pictures: the same without their pixels;
    hashes: of the pictures with them. queries: draw ("first", "fresh") -> the fixed queries, without their pixels."""

    group_set: GroupSet
    latents: Mapping[str, Tensor]
    pictures: Mapping[str, Pictures]
    hashes: Mapping[str, str]
    queries: Mapping[str, tuple[Query, ...]]
    base_sha256: str


def draws_in(folder: Path) -> dict[str, Path]:
    """The draws of fixed queries that a folder of figures holds, by name."""
    there = {"first": folder, "fresh": folder / "fresh"}
    return {name: at for name, at in there.items() if (at / "queries.json").is_file()}


def write(
    path: Path, model: BaseModel, group_set: GroupSet, folder: Path, device: str = "cpu", small: bool = False
) -> Path:
    """Encode the pictures (on the device) and the fixed queries below `folder`, and write the file. small: latents
    rounded to float16, and one in THIN of the held-out pictures.

    Raises:
        DataError: pictures or queries are not there, or a query is of another model.
    """
    arrays: dict[str, np.ndarray] = {}
    note: dict[str, Any] = {"format": FORMAT, "group_set": group_set.id, "base_sha256": model.sha256, "hashes": {}}
    autoencoder = stages.autoencoder()
    autoencoder.to(device)  # pyright: ignore[reportArgumentType]
    for split in SPLITS:
        pictures = load_pictures(group_set, split)
        some = slice(None, None, THIN if small and split == "held_out" else 1)
        arrays[f"{split}/latents"] = vae.latents(autoencoder, pictures.pixels[some]).numpy()
        note["hashes"][split] = pictures.sha256()
        note[split] = [list(pictures.groups[some]), list(pictures.names[some])]
    drawn = draws_in(folder)
    if not drawn:
        raise DataError(f"There are no queries in {folder}. Make them with `python -m experiments.styles`.")
    for name, at in drawn.items():
        asked = queries.read(at, group_set, model).queries
        arrays[f"queries/{name}"] = torch.cat([q.latent for q in asked]).numpy()
        note[f"queries/{name}"] = [[q.prompt, q.image_hash] for q in asked]
    if small:
        arrays = {k: a.astype(np.float16) for k, a in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        np.savez_compressed(f, note=np.frombuffer(json.dumps(note).encode(), np.uint8), **arrays)
    return path


def read(path: Path) -> Packed:
    """Read what `write` wrote.

    Raises:
        DataError: there is no such file, or it is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as z:
            arrays = {k: z[k] for k in z.files}
        note = json.loads(arrays.pop("note").tobytes())
        known = note["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is not what `python -m experiments.seeds pack` writes.") from e
    if not known:
        raise DataError(f"{path} was packed by another version of this command. Pack it again.")
    group_set = load_group_set(note["group_set"])
    arrays = {k: a.astype(np.float32, copy=False) for k, a in arrays.items()}
    latents = {s: torch.from_numpy(arrays[f"{s}/latents"]) for s in SPLITS}
    pictures = {s: _unseen(*note[s]) for s in SPLITS}
    drawn = [k.removeprefix("queries/") for k in arrays if k.startswith("queries/")]
    asked = {d: _queries(torch.from_numpy(arrays[f"queries/{d}"]), note[f"queries/{d}"]) for d in drawn}
    return Packed(group_set, latents, pictures, note["hashes"], asked, note["base_sha256"])


def _unseen(groups: Sequence[str], names: Sequence[str]) -> Pictures:
    """Pictures whose pixels are not needed."""
    return Pictures(np.zeros((len(names), 1, 1, 3), np.uint8), tuple(groups), tuple(names))


def _queries(latents: Tensor, about: Sequence[Sequence[str]]) -> tuple[Query, ...]:
    none = np.zeros((1, 1, 3), np.uint8)
    return tuple(Query(none, z[None], prompt, sha) for z, (prompt, sha) in zip(latents, about, strict=True))
