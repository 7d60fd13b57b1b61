"""Labelled picture sets whose classes are the groups of an unconditional model: scikit-learn's digits, and CIFAR-10.

Pictures are (N, H, W, 3) uint8; one-channel sets have three equal channels.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
import torch
from sklearn.datasets import load_digits

from guda_core.data.dataset import SPLITS, Pictures
from guda_core.data.sources.source import Source
from guda_core.errors import DataError, GroupSetError
from guda_core.records import GroupSet
from guda_core.strict import Fields

Pool = tuple[np.ndarray, np.ndarray]  # pixels (N, H, W, 3) uint8, labels (N,) int
CIFAR10 = "uoft-cs/cifar10"  # hub id; GUDA_CIFAR10 may name a folder with the same files


def read_digits() -> dict[str, Pool]:
    """1,797 pictures; 0 .. 16 becomes 0 .. 255."""
    values, labels = cast(tuple[np.ndarray, np.ndarray], load_digits(return_X_y=True))
    grey = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    return {"train": (np.repeat(grey[..., None], 3, axis=3), labels)}


def read_cifar10() -> dict[str, Pool]:
    """50,000 and 10,000 pictures through Hugging Face's `datasets`, from GUDA_CIFAR10 (a folder) or the hub.

    Raises:
        DataError: the package is missing, or the data cannot be downloaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise DataError("CIFAR-10 is read by the package datasets. Install it: pip install datasets.") from e
    where, out = os.environ.get("GUDA_CIFAR10") or CIFAR10, {}
    try:
        for split in ("train", "test"):
            rows = load_dataset(where, split=split).with_format("numpy")
            out[split] = (np.stack(list(rows["img"])).astype(np.uint8), np.asarray(rows["label"]))
    except Exception as e:  # the package raises dozens of kinds for a missing folder, hub or column
        raise DataError(
            f"CIFAR-10 cannot be read from '{where}': {e}. Set GUDA_CIFAR10 to a folder with the parquet files of "
            f"{CIFAR10}, or connect to the hub."
        ) from e
    return out


class SetOptions(Fields):
    """held_out: pictures a class that nothing is trained on. split_seed: which ones. per_class: at most so many
    training pictures of a class; None: all."""

    held_out: int = 10
    split_seed: int = 0
    per_class: int | None = None


class Labelled(Source):
    """Pictures with labels 0, 1, ...: label k is the set's group of id "k".

    side: of a picture in pixels. channels: that differ, 1 or 3. classes: how many labels there are. `read` gives the
    pools of pictures, "train" and, where there is one, "test".
    """

    SetOptions = SetOptions
    side: ClassVar[int]
    channels: ClassVar[int]
    classes: ClassVar[int] = 10

    @staticmethod
    @abstractmethod
    def read() -> Mapping[str, Pool]: ...

    @classmethod
    def check(cls, group_set: GroupSet) -> None:
        what, ids = f"group set '{group_set.id}'", [str(i) for i in range(cls.classes)]
        if list(group_set.groups) != ids:
            raise GroupSetError(f"{what}: its source has the classes {', '.join(ids)}; the groups must be these.")
        if group_set.resolution != cls.side:
            raise GroupSetError(f"{what}: 'resolution' must be {cls.side}, as the pictures of its source are.")

    def split(self, name: str) -> Pictures:
        """The pictures of a split. "held_out" comes from the pool "test" or, where there is none, from the only pool.

        Names are "<pool>-<place>". "pretrain" is "train".

        Raises:
            DataError: there is no such split, or the pictures are of another size.
        """
        if name not in SPLITS:
            raise DataError(f"There is no split '{name}'. Known: {', '.join(SPLITS)}.")
        own, pools, held = SetOptions(**self.group_set.options), self.read(), name == "held_out"
        pool = "test" if held and "test" in pools else "train"
        pixels, labels = pools[pool]
        shape = (self.side, self.side, 3)
        if pixels.shape[1:] != shape:
            raise DataError(f"The pictures of {self.group_set.name} have shape {pixels.shape[1:]}, not {shape}.")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(own.split_seed)).numpy()
        first, end = (0, own.held_out) if held else (0 if "test" in pools else own.held_out, None)
        if not held and own.per_class is not None:
            end = first + own.per_class
        at = np.sort(np.concatenate([order[labels[order] == c][first:end] for c in range(self.classes)]))
        names = tuple(f"{pool}-{i}" for i in at)
        return Pictures(pixels[at], tuple(str(c) for c in labels[at]), names)


class Digits(Labelled):
    """scikit-learn's handwritten digits, 8 by 8 pixels, grey."""

    side, channels = 8, 1
    read = staticmethod(read_digits)


class Cifar10(Labelled):
    """CIFAR-10: ten classes of photographs, 32 by 32 pixels."""

    side, channels = 32, 3
    read = staticmethod(read_cifar10)
