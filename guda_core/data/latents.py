"""Encoded pictures of several sizes, where a tensor holds those of one: sets whose pictures keep their shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Latents:
    """N latents, (C, h, w) each, in order. Those of one size can be had as a batch.

    sizes: (N,) int64, which size each has; 0 is the first picture's.
    """

    def __init__(self, each: Sequence[Tensor]) -> None:
        self._each = list(each)
        known = list(dict.fromkeys(tuple(z.shape) for z in self._each))
        self.sizes = torch.tensor([known.index(tuple(z.shape)) for z in self._each])

    def __len__(self) -> int:
        return len(self._each)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._each)

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """(B, C, h, w) of the chosen ones. Raises ValueError when they are of several sizes."""
        chosen = torch.arange(len(self))[at].tolist()
        if len({tuple(self._each[i].shape) for i in chosen}) != 1:
            raise ValueError("Only latents of one size make a batch.")
        return torch.stack([self._each[i] for i in chosen])


def joined(each: Sequence[Tensor]) -> Tensor | Latents:
    """(1, C, h, w) each, joined: a tensor (N, C, h, w) where they have one size."""
    if len({tuple(z.shape) for z in each}) == 1:
        return torch.cat(list(each))
    return Latents([z[0] for z in each])


def of_one_size(latents: Tensor | Latents, at: Tensor) -> list[Tensor]:
    """Of the pictures at these places, (B,): the places in `at` of those that have one size, size by size."""
    if isinstance(latents, Tensor):
        return [torch.arange(len(at))]
    found = latents.sizes[at]
    return [torch.nonzero(found == s).flatten() for s in found.unique().tolist()]
