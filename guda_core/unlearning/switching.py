"""Switching a network between itself and the models without a group, and back, bit by bit.

    merged    W + change, computed in float32 and rounded once to the network's type, stands in the place of W
    live      y = W x + (alpha / r) B (A x): a LoRA's branch beside the layer that it changes

Merged, a scored forward pass costs what a plain one does. The network's own weights are never written: other tensors
stand in their place, so that going back costs nothing. One spare copy of the changed weights is made once and used for
every group; groups that were asked for first keep a copy of their own, as long as there is room (`KEPT`).

Live, no copy of the weights is needed, but each pass takes longer (`experiments.engine`). So weights are merged, except
a LoRA on a GPU where a spare copy would take more than half of the memory that is free. That is asked once: later
answers are made the same way, whatever else runs on the GPU, since in half precision the two round differently.

In half precision what is less than half a step of W is lost when it is merged: in bfloat16 about half of a change of
W / 1000, in float16 of W / 8000, so that scores shrink. So a LoRA below `FAINT` always runs live there; and since y has
such steps, too, its branch is summed before anything is rounded: y = [W B] [x; A x]. A whole network cannot run live:
its metadata tells what is left of its change (`student.Student.kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guda_core.diffusion.memory import free_bytes
from guda_core.errors import AdapterError

if TYPE_CHECKING:
    from guda_core.unlearning.adapters import Adapter

KEPT = 512 * 2**20  # bytes of changed weights that are kept on a CPU
GPU_SHARE = 4  # of the free memory of a GPU, a fourth keeps changed weights; half may hold the spare copy

HALF = (torch.bfloat16, torch.float16)
FAINT = (
    0.64  # of the type's step: ||change|| / ||W|| below which one or two hundredths of a LoRA would be lost, or more
)


def _free(device: torch.device) -> int | None:
    """Bytes that can be had on a GPU; None: not a GPU."""
    return free_bytes(device) if device.type == "cuda" else None


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _marks(weights: Mapping[str, Tensor]) -> list[Any]:
    """What changes when a weight does: another tensor, or another value written by torch."""
    return [(t.data_ptr(), t._version, t.dtype, t.device) for t in weights.values()]


class Switching:
    """Switches one network. kept: bytes of changed weights that may be kept; None: by the device.

    Whoever uses it holds the model's lock.
    """

    def __init__(self, network: nn.Module, *, kept: int | None = None) -> None:
        self.network, self._room = network, kept
        self._kept: dict[str, tuple[Adapter, list[Any], dict[str, Tensor]]] = {}  # group -> of which, and its weights
        self._factors: dict[str, tuple[Adapter, torch.device, Adapter]] = {}  # group -> of which, where, and on it
        self._spare: dict[str, Tensor] = {}
        self._scratch: Tensor | None = None
        self._decided: dict[frozenset[str], bool] = {}  # names of weights -> whether a LoRA of them is live
        self._sizes: dict[frozenset[str], float] = {}  # names of weights -> the sum of their squares
        self._faint: dict[str, tuple[Adapter, bool]] = {}  # group -> of which, and whether some is lost

    @contextmanager
    def applied(self, adapter: Adapter, *, live: bool | None = None) -> Iterator[None]:
        """Within the block the network is the one without the group; afterwards it is what it was, bit by bit.

        live: as a branch beside the layers, which only a LoRA can be; None: where the rule above says so.

        Raises:
            AdapterError: the adapter changes a weight that the network does not have, or of another shape.
        """
        weights = self.network.state_dict(keep_vars=True)
        for name, shape in adapter.shapes.items():
            if name not in weights or tuple(weights[name].shape) != shape:
                raise AdapterError(f"The adapter '{adapter.group}' does not fit this network ({name}).")
        own = {name: weights[name] for name in adapter.shapes}
        if live is None:
            live = self._is_live(adapter, own)
        with ExitStack() as stack, torch.no_grad():
            if live:
                stack.enter_context(branched(self.network, self._on_device(adapter, own)))
            else:
                stack.enter_context(_swapped(own, self._changed(adapter, own)))
            yield

    def _is_live(self, adapter: Adapter, own: Mapping[str, Tensor]) -> bool:
        if adapter.whole or adapter.codes:
            return False
        if self._is_faint(adapter, own):
            return True
        if self._spare.keys() >= own.keys():
            return False
        names = frozenset(own)
        if names not in self._decided:
            free = _free(next(iter(own.values())).device)
            self._decided[names] = free is not None and _size(own) > free // 2
        return self._decided[names]

    @torch.no_grad()
    def _is_faint(self, adapter: Adapter, own: Mapping[str, Tensor]) -> bool:
        """Whether a part of a LoRA would be lost, if it were merged."""
        if any(w.dtype not in HALF for w in own.values()):
            return False
        faint = FAINT * max(torch.finfo(w.dtype).eps for w in own.values())
        found = self._faint.get(adapter.group)
        if found is None or found[0] is not adapter:
            change = sum(float(((b.T @ b) * (a @ a.T)).sum()) for b, a, _ in adapter.factors.values())  # of ||B A||^2
            weights = self._size_of(own)
            found = self._faint[adapter.group] = (adapter, adapter.scale**2 * change < faint**2 * weights)
        return found[1]

    def _size_of(self, own: Mapping[str, Tensor]) -> float:
        """The sum of the squares of these weights, counted once."""
        names = frozenset(own)
        if names not in self._sizes:
            norms = (float(torch.linalg.vector_norm(w, dtype=torch.float32)) for w in own.values())
            self._sizes[names] = sum(n**2 for n in norms)
        return self._sizes[names]

    def any_live(self, adapters: Iterable[Adapter]) -> bool:
        """Whether `applied` runs any of these as a branch, where it is not told."""
        weights = self.network.state_dict(keep_vars=True)
        found = [(a, {name: weights[name] for name in a.shapes if name in weights}) for a in adapters]
        return any(own and self._is_live(a, own) for a, own in found)

    def release(self) -> None:
        """Give back the memory of all that is kept. What was decided stays."""
        self._kept.clear()
        self._factors.clear()
        self._faint.clear()
        self._spare, self._scratch = {}, None

    def _make_room(self, own: Mapping[str, Tensor]) -> None:
        """Where the GPU has no room for the spare copy any more: the copy of the group that was asked for longest ago
        becomes it."""
        free = _free(next(iter(own.values())).device)
        if free is not None and _size(own) > free and self._kept and not self._spare:
            self._spare = self._kept.pop(next(iter(self._kept)))[2]

    def _on_device(self, adapter: Adapter, own: Mapping[str, Tensor]) -> Adapter:
        """The adapter with its factors on the network's device, which they are brought to once."""
        device = next(iter(own.values())).device
        if device.type == "cpu" or not adapter.factors:
            return adapter
        found = self._factors.get(adapter.group)
        if found is None or found[0] is not adapter or found[1] != device:
            found = self._factors[adapter.group] = (adapter, device, adapter.to(device))
        return found[2]

    def _changed(self, adapter: Adapter, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights without the group, in the network's type."""
        marks = _marks(own)
        found = self._kept.pop(adapter.group, None)
        if found is not None and found[0] is adapter and found[1] == marks:
            self._kept[adapter.group] = found
            return found[2]
        out = {}
        keeps = self._has_room(own)
        if not keeps:
            self._make_room(own)
        for name, w in own.items():
            at = torch.empty_like(w) if keeps else self._spare.get(name)
            if at is None or (at.dtype, at.device, at.stride(), at.shape) != (w.dtype, w.device, w.stride(), w.shape):
                at = self._spare[name] = torch.empty_like(w)
            out[name] = at
        placed = self._on_device(adapter, own)
        for name, w in own.items():
            self._write(placed, name, w.detach(), out[name])
        if keeps:
            self._kept[adapter.group] = (adapter, marks, out)
        return out

    def _has_room(self, own: Mapping[str, Tensor]) -> bool:
        device = next(iter(own.values())).device
        if self._room is None:  # asked once, before anything is kept
            free = _free(device)
            self._room = KEPT if free is None else free // GPU_SHARE
        return sum(_size(k[2]) for k in self._kept.values()) + _size(own) <= self._room

    def _write(self, adapter: Adapter, name: str, base: Tensor, at: Tensor) -> None:
        """at = the weight without the group. A LoRA's product is made in a scratch space that all weights share."""
        if name not in adapter.factors:
            at.copy_(adapter.weight(name, base))
            return
        b, a, _ = adapter.factors[name]
        if self._scratch is None or self._scratch.numel() < base.numel() or self._scratch.device != base.device:
            self._scratch = torch.empty(base.numel(), dtype=torch.float32, device=base.device)
        change = self._scratch[: base.numel()].view(b.shape[0], -1)
        torch.mm(b, a, out=change)
        change.mul_(adapter.scale)
        if at.dtype == torch.float32:
            torch.add(base, change.view(base.shape), out=at)
        else:
            at.copy_(change.view(base.shape).add_(base))


@contextmanager
def applied(network: nn.Module, adapter: Adapter) -> Iterator[None]:
    """`Switching.applied`, once: nothing is kept for the next time.

    Raises:
        AdapterError: the adapter changes a weight that the network does not have, or of another shape.
    """
    with Switching(network, kept=0).applied(adapter):
        yield


@contextmanager
def _swapped(own: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block other tensors stand in the place of the network's own."""
    kept = {name: w.data for name, w in own.items()}

    def put(back: Mapping[str, Tensor]) -> None:
        for name, w in own.items():
            w.data = back[name]

    try:
        put(changed)
        yield
    finally:
        try:
            put(kept)
        except BaseException:  # Ctrl-C within: a part of another model's weights must not stay
            put(kept)
            raise


@contextmanager
def branched(network: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Within the block a LoRA's branch runs beside each layer that it changes."""
    handles = []
    on = [adapter.group]  # a hook that Ctrl-C leaves behind does nothing
    try:
        for name, (b, a, shape) in adapter.factors.items():
            module = network.get_submodule(name.removesuffix(".weight"))
            branch = _branch(module, adapter.scale * b, a.view(-1, *shape[1:]), on)
            handles.append(module.register_forward_hook(branch))
        yield
    finally:
        on.clear()
        for h in handles:
            h.remove()


def _branch(module: nn.Module, b: Tensor, a: Tensor, on: Sequence[str]) -> Callable[..., Tensor | None]:
    """y + B (A x) of a linear layer or a convolution; y as it is once `on` is empty. b: (out, r), scaled; a: (r, in) or
    (r, in, kh, kw)."""
    own: Any = module.weight
    coarse = own.dtype in HALF
    b, a = b.to(own), a.to(own)

    def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        if not on:
            return None
        if coarse and getattr(module, "padding_mode", "zeros") == "zeros":
            return _summed(module, args[0], b, a)
        if isinstance(module, nn.Conv2d):
            down = F.conv2d(args[0], a, None, module.stride, module.padding, module.dilation)
            return y + F.conv2d(down, b[:, :, None, None])
        return y + F.linear(F.linear(args[0], a), b)

    return add


def _summed(module: Any, x: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """W x + B (A x), rounded once: a linear layer's in one product, a convolution's in float32."""
    if isinstance(module, nn.Linear):
        return F.linear(torch.cat([x, F.linear(x, a)], -1), torch.cat([module.weight, b], 1), module.bias)
    how: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    bias = None if module.bias is None else module.bias.float()
    y = F.conv2d(x.float(), module.weight.float(), bias, groups=module.groups, **how)
    return (y + F.conv2d(F.conv2d(x.float(), a.float(), **how), b.float()[:, :, None, None])).to(x)
