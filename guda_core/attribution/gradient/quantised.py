"""Quantised features: gradient features of the training pictures as they are stored beside the model, so that methods
on them answer without the pictures.

A folder holds `features.safetensors` (phi as int8 (N, dim) with a scale a row: phi_i = scale_i q_i, |q_i| <= 127; and
the residuals) and `features.json`, written last: the base model's hash, the method's settings and the group of every
row. A projection of gradients cannot be turned back into pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from guda_core.attribution.gradient.features import FeatureConfig, Features, Gradients
from guda_core.attribution.gradient.projection import Projection
from guda_core.attribution.run_files import in_place_of
from guda_core.data.sources.listed import ListedFiles
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import CacheError, GudaError
from guda_core.records import GroupSet, Query
from guda_core.unlearning.adapter_files import hash_file

WEIGHTS, META = "features.safetensors", "features.json"
LEVELS = 127


def write(folder: Path, features: Features, groups: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Store features rounded to int8, and the group of each row. meta: `base_sha256`, `config` and more.

    Raises:
        CacheError: they cannot be written, such as on a full disk; those of before stay.

    A process that is ended between the two replacements leaves features that are called damaged, and are made again.
    """
    phi = np.asarray(features.phi, np.float32)
    scale = np.maximum(np.abs(phi).max(axis=1), np.finfo(np.float32).tiny) / LEVELS
    arrays = {
        "phi": np.round(phi / scale[:, None]).astype(np.int8),
        "scale": scale.astype(np.float32),
        "residual": np.asarray(features.residual, np.float32),
    }
    with in_place_of(folder / META) as told, in_place_of(folder / WEIGHTS) as weights:  # both are whole before either
        save_file(arrays, weights)
        record = {**meta, "groups": list(groups), "sha256": hash_file(weights)}
        told.write_text(json.dumps(record, indent=1), encoding="utf-8")


def pictures_sha256(group_set: GroupSet) -> str:
    """Hash of the training pictures and of what their captions are made of; no picture is encoded for it."""
    words = [(g.id, g.phrase, list(g.descriptors)) for g in group_set.groups.values()]
    said = [group_set.caption, group_set.descriptors_per_caption, words]
    of = f"{open_dataset(group_set).fingerprint('train')}\n{json.dumps(said)}"
    return hashlib.sha256(of.encode()).hexdigest()


def is_outdated(made: str | None, group_set: GroupSet) -> bool:
    """Whether a set's list names other pictures or captions now than those of that hash. Of a set without a list that
    is not asked: its pictures would have to be opened."""
    try:
        listed = made is not None and isinstance(open_dataset(group_set), ListedFiles)
        return listed and made != pictures_sha256(group_set)
    except GudaError:  # there is no list, or none that can be read
        return False


class QuantisedBank:
    """Stands for a `features.FeatureBank` whose features are made: the same answers up to the rounding.

    Raises:
        CacheError: the features are missing, damaged, or of another base model.
    """

    def __init__(self, model: BaseModel, folder: Path) -> None:
        self.folder, self.model = folder, model
        name = folder.name
        command = f"guda assets features --methods {name}"
        make = f"Make them with `{command}`, for this model and group set."
        try:
            self.meta = json.loads((folder / META).read_text(encoding="utf-8"))
            data = (folder / WEIGHTS).read_bytes()
            own = self.meta["config"]
            self.config = FeatureConfig(**{**own, "parts": tuple(own["parts"])})
            self.groups: tuple[str, ...] = tuple(self.meta["groups"])
        except FileNotFoundError as e:
            raise CacheError(f"There are no features for {name}. {make}") from e
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CacheError(f"The features for {name} cannot be read ({e}). {make}") from e
        if not model.goes_by(self.meta["base_sha256"]):
            again = make.replace(command, f"{command} --again")
            raise CacheError(f"The features for {name} are of another base model. {again}")
        if hashlib.sha256(data).hexdigest() != self.meta["sha256"]:
            raise CacheError(f"The features for {name} are damaged: they do not have the hash recorded. {make}")

    @cached_property
    def gradients(self) -> Gradients:
        return Gradients(self.model, self.config)

    @cached_property
    def projection(self) -> Projection:
        return Projection(self.gradients.size, self.config.dim, self.config.seed)

    @property
    def provenance(self) -> dict[str, Any]:
        """Hashes of the base model and of the features."""
        return {k: self.meta[k] for k in ("base_sha256", "sha256")}

    def outdated(self, group_set: GroupSet) -> bool:
        """Whether the features are of other pictures or captions than the set's list names now."""
        return is_outdated(self.meta.get("pictures_sha256"), group_set)

    def prepare(self) -> Iterator[float]:
        """Nothing is left to compute."""
        yield from ()

    def load(self) -> Features:
        """phi (N, dim) float32, residual (N,) float32.

        Raises:
            CacheError: they cannot be read, or are others than those that the hash is recorded of.
        """
        name = self.folder.name
        try:
            data = (self.folder / WEIGHTS).read_bytes()
            if hashlib.sha256(data).hexdigest() != self.meta["sha256"]:
                raise CacheError(
                    f"The features for {name} were changed since the model was loaded, or are damaged. Start "
                    "the program again."
                )
            arrays = load(data)
        except (OSError, SafetensorError) as e:
            raise CacheError(f"The features for {name} cannot be read ({e}).") from e
        phi = arrays["phi"].astype(np.float32) * arrays["scale"][:, None]
        return Features(phi, arrays["residual"], {**asdict(self.config), **self.provenance})

    def query(self, query: Query) -> np.ndarray:
        """phi of a query, (dim,) float32."""
        g = self.gradients.at(query.latent, query.prompt, query.image_hash)
        return self.projection(g.vector[None].numpy())[0]
