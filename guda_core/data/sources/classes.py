"""Labelled picture sets whose classes are the groups of an unconditional model: scikit-learn's digits, and CIFAR-10.

A set is one line of `DATASETS`. Pictures are (N, H, W, 3) uint8; one-channel sets have three equal channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from sklearn.datasets import load_digits

from guda_core.data.dataset import Pictures
from guda_core.errors import DataError
from guda_core.records import Group, GroupSet

Pool = tuple[np.ndarray, np.ndarray]  # pixels (N, H, W, 3) uint8, labels (N,) int
CIFAR10 = "uoft-cs/cifar10"  # hub id; GUDA_CIFAR10 may name a folder with the same files
SPLITS = ("train", "held_out")


def read_digits() -> dict[str, Pool]:
    """1,797 pictures; 0 .. 16 becomes 0 .. 255."""
    values, labels = cast(tuple[np.ndarray, np.ndarray], load_digits(return_X_y=True))
    grey = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    return {"train": (np.repeat(grey[..., None], 3, axis=3), labels)}


def read_cifar10() -> dict[str, Pool]:
    """50,000 and 10,000 pictures through Hugging Face's `datasets`, from GUDA_CIFAR10 (a folder) or the hub.

    Raises:
        DataError: the package is missing, or the data cannot be had.
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


@dataclass(frozen=True)
class DataSet:
    """size: pixels of a side. channels: that differ, 1 or 3. classes: names in the order of the labels. about: author,
    licence, its link, link, package, version. read: pools "train" and, where the set has one, "test"."""

    id: str
    name: str
    size: int
    channels: int
    classes: tuple[str, ...]
    about: tuple[str, str, str, str, str, str]
    read: Callable[[], Mapping[str, Pool]]

    def group_set(self) -> GroupSet:
        """The classes as groups, ids "0", "1", ..., in order."""
        groups = {str(i): Group(str(i), n, *self.about, (n.lower(),)) for i, n in enumerate(self.classes)}
        return GroupSet(self.id, self.name, self.size, "{object}", 1, groups, (), ())

    def pictures(self, split: str, *, held_out: int, split_seed: int, per_class: int | None = None) -> Pictures:
        """The split "train" or "held_out": `held_out` pictures a class that nothing is trained on, drawn from the pool
        "test" or, where there is none, from the only pool. per_class: at most so many training pictures of a class.

        Objects are "<pool>-<place>". Raises DataError for another split, or pictures of another size.
        """
        if split not in SPLITS:
            raise DataError(f"There is no split '{split}'. Known: {', '.join(SPLITS)}.")
        pools = self.read()
        pool = "test" if split == "held_out" and "test" in pools else "train"
        pixels, labels = pools[pool]
        if pixels.shape[1:] != (self.size, self.size, 3):
            raise DataError(
                f"The pictures of {self.name} have shape {pixels.shape[1:]}, not {(self.size, self.size, 3)}."
            )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split_seed)).numpy()
        first, end = (0, held_out) if split == "held_out" else (0 if "test" in pools else held_out, None)
        if split == "train" and per_class is not None:
            end = first + per_class
        at = np.sort(np.concatenate([order[labels[order] == c][first:end] for c in range(len(self.classes))]))
        objects = tuple(f"{pool}-{i}" for i in at)
        return Pictures(pixels[at], tuple(str(c) for c in labels[at]), objects)


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(
        "digits",
        "Digits",
        8,
        1,
        ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"),
        (
            "E. Alpaydin, C. Kaynak",
            "CC BY 4.0",
            "https://creativecommons.org/licenses/by/4.0/",
            "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            "scikit-learn",
            "digits",
        ),
        read_digits,
    ),
    "cifar10": DataSet(
        "cifar10",
        "CIFAR-10",
        32,
        3,
        ("Airplane", "Automobile", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Ship", "Truck"),
        (
            "A. Krizhevsky, V. Nair, G. Hinton",
            "not stated",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "datasets",
            CIFAR10,
        ),
        read_cifar10,
    ),
}


def find(name: str) -> DataSet:
    """The set of that id. Raises DataError that lists the known ones."""
    if name not in DATASETS:
        raise DataError(f"There is no data set '{name}'. Known: {', '.join(DATASETS)}.")
    return DATASETS[name]
