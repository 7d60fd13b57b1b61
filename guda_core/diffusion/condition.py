"""What a model is conditioned on: named tensors with the batch first, for example the embedded prompt.

Stable Diffusion has one, "text" (B, L, D); an unconditional model has none. Who scores or unlearns only cuts, joins and
moves conditions; the model that made one knows what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor


class Condition:
    """A batch of conditions. Immutable.

    tensors: name -> (B, ...). size: B; needed only where there are no tensors.

    Raises:
        ValueError: the tensors do not have one batch size.
    """

    def __init__(self, tensors: Mapping[str, Tensor], size: int | None = None) -> None:
        sizes = {len(v) for v in tensors.values()} | ({size} if size is not None else set())
        if len(sizes) != 1:
            raise ValueError(f"A condition has one batch size, not {sorted(sizes) or 'none'}.")
        self._size = sizes.pop()
        self.tensors: Mapping[str, Tensor] = MappingProxyType(dict(tensors))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, at: int | slice | Sequence[int] | Tensor) -> Condition:
        """The chosen members; of a single index, a batch of one."""
        at = [at] if isinstance(at, int) else at
        picked = torch.arange(self._size)[at]
        return self._map(lambda v: v[picked.to(v.device)], len(picked))

    def __iter__(self) -> Iterator[Condition]:
        return (self[i] for i in range(self._size))

    def expand(self, n: int) -> Condition:
        """A batch of one, n times over, without a copy. Raises ValueError when this is another batch."""
        if self._size != 1:
            raise ValueError(f"Only a batch of one can be expanded, not one of {self._size}.")
        return self._map(lambda v: v.expand(n, *v.shape[1:]), n)

    def repeat_interleave(self, n: int) -> Condition:
        """Every member n times, one after the other: B -> B n."""
        return self._map(lambda v: v.repeat_interleave(n, dim=0), self._size * n)

    def to(self, device: torch.device | str) -> Condition:
        return self._map(lambda v: v.to(device), self._size)

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """The members of all parts, in order; all parts have the same names."""
        names = list(parts[0].tensors)
        joined = {name: torch.cat([p.tensors[name] for p in parts]) for name in names}
        return Condition(joined, sum(len(p) for p in parts))

    def _map(self, one: Callable[[Tensor], Tensor], size: int) -> Condition:
        return Condition({name: one(v) for name, v in self.tensors.items()}, size)
