"""Adapters: what stands in place of a network's weights for the model without a group.

Of three kinds, in a folder each (`files`):

    a LoRA           W + (alpha / r) B A in place of W (`lora`): what unlearning writes
    "whole"          the weights themselves, where the whole network was fine-tuned
    "coded"          W + its coded difference (`delta`): a network that was trained again without the group

An adapter is used when it has exactly the names, shapes and types that the network asks for, else it is refused, and
its group alone has no score. `switching` puts it into the network and takes it out again.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import called
from guda_core.errors import AdapterError
from guda_core.held_files import advice, remove_file
from guda_core.unlearning import adapter_files, delta, lora
from guda_core.unlearning.adapter_files import HEALTH, META, meta_file, read_health, read_meta
from guda_core.unlearning.lora import LoraSpec, attach

__all__ = ["HEALTH", "META", "Adapter", "LoraSpec", "attach", "load", "read_health", "read_meta"]

RUN = "run.json"  # beside a published run's adapters: {"settings": {group id: SHA-256 of its settings}}
OFFSET = "held_out_others_empty"  # of an adapter's health: what GUDA's offset is made of
WHOLE, CODED = "whole", "coded"  # kinds beside the LoRA
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
LARGEST = 65504.0  # of float16, in which networks run

Factors = tuple[Tensor, Tensor, tuple[int, ...]]  # B (out, r), A (r, in * kh * kw), shape of the weight; float32


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. factors: parameter name -> `Factors` of a LoRA, with scale = alpha / r.

    whole: parameter name -> the weight itself, float32, where the whole network was unlearned (factors is empty then).
    codes: parameter name -> its coded difference, where a network is stored so (whole has its small tensors then).
    """

    group: str
    meta: Mapping[str, Any]
    scale: float
    factors: Mapping[str, Factors]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, delta.Codes] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape, of every weight it changes."""
        tensors = dict(self.whole) | {n: c.numbers for n, c in self.codes.items()}
        return {n: f[2] for n, f in self.factors.items()} | {n: tuple(w.shape) for n, w in tensors.items()}

    def weight(self, name: str, base: Tensor) -> Tensor:
        """What stands in place of the network's weight `base`, float32."""
        if name in self.whole:
            return self.whole[name].to(base.device)
        return base.float() + self.delta(name, base.device)

    def delta(self, name: str, device: torch.device) -> Tensor:
        """The change of one weight, float32, in the weight's shape: (alpha / r) B A, or what is coded."""
        if name in self.codes:
            return self.codes[name].difference(device)
        b, a, shape = self.factors[name]
        return (self.scale * (b.to(device) @ a.to(device))).reshape(shape)

    def to(self, device: torch.device) -> Adapter:
        """The same with a LoRA's factors on another device."""
        return replace(self, factors={n: (b.to(device), a.to(device), s) for n, (b, a, s) in self.factors.items()})


def save(network: nn.Module, folder: Path, *, spec: LoraSpec, meta: Mapping[str, Any]) -> None:
    """Write the LoRA that is attached to a network, as float16. meta must hold `base_sha256` and `group`."""
    save_factors(lora.factors(network), folder, spec=spec, meta=meta)


def save_factors(factors: Mapping[str, Tensor], folder: Path, *, spec: LoraSpec, meta: Mapping[str, Any]) -> None:
    """Write the factors of a LoRA, by name as `lora.factors` gives them."""
    state = {adapter_files.PREFIX + n: f for n, f in factors.items()}
    record = {**meta, "lora": asdict(spec)}
    _no_longer_published(folder)
    adapter_files.write(folder, state, record, parameters=_count(state), lora=lora.config_record(spec))


def save_whole(
    network: nn.Module, folder: Path, *, meta: Mapping[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write all weights of a network that was fine-tuned as a whole."""
    save_weights(network.state_dict(), folder, meta=meta, dtype=dtype)


def save_weights(
    weights: Mapping[str, Tensor], folder: Path, *, meta: Mapping[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write all weights of a network, by name."""
    _no_longer_published(folder)
    state = {n: p.detach().to(device="cpu", dtype=dtype).contiguous() for n, p in weights.items()}
    adapter_files.write(folder, state, {**meta, "kind": WHOLE}, parameters=_count(state))


def save_coded(stored: Mapping[str, Tensor], folder: Path, *, meta: Mapping[str, Any]) -> None:
    """Write what `delta.encode` made of a network."""
    codes, small = delta.decode(stored)
    parameters = _count({n: c.numbers for n, c in codes.items()}) + _count(small)
    _no_longer_published(folder)
    adapter_files.write(folder, stored, {**meta, "kind": CODED}, parameters=parameters)


def _run_file(folder: Path) -> Path | None:
    """What the run around an adapter's folder says of its adapters; None where it says nothing."""
    path = folder.parent.parent / RUN
    return path if folder.parent.name == "adapters" and path.is_file() else None


def _no_longer_published(folder: Path) -> None:
    """What a run says of its adapters is not true once one is made anew. Raises AdapterError: it cannot be removed."""
    if (path := _run_file(folder)) is None:
        return
    try:
        remove_file(path)  # another process may have just made one
    except OSError as e:
        what = advice(e, "Make the folder one that you may write to")
        raise AdapterError(
            f"{path} cannot be removed ({e.strerror or e}). {what} and run the same command again."
        ) from e


def _count(state: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for t in state.values())


def load(folder: Path, *, model: BaseModel, group: str, group_set: str | None = None) -> Adapter:
    """Read and check the adapter of a group, of whichever kind.

    model: whose network it must fit. group_set: id of the set that the group is of; it is compared where the adapter
    names one.

    Raises:
        AdapterError: missing, damaged, made for another model, group or group set, with other settings than its run
            says, or not exactly of the names, shapes and types that the network asks for.
    """
    if not meta_file(folder).is_file():
        raise AdapterError(
            f"There is no finished adapter of '{group}' from this model. Make it with `guda unlearn "
            f"{called(model.card, group_set)}` (in Python: guda_core.unlearn)."
        )
    meta = read_meta(folder)
    try:
        _check_identity(meta, model, group, group_set)
        _check_settings(folder, meta, group, called(model.card, group_set))
        return _read(folder, meta, model.network, group)
    except AdapterError as e:
        raise AdapterError(f"The adapter '{group}' cannot be used: {e}.") from e
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, ArithmeticError, zlib.error, OSError) as e:
        raise AdapterError(f"The adapter '{group}' cannot be read: {e}") from e


def _check_identity(meta: Mapping[str, Any], model: BaseModel, group: str, group_set: str | None) -> None:
    own = str(meta.get("base_sha256"))
    if not model.goes_by(own):
        raise AdapterError(
            f"it was made for another base model ({own[:12]}, this one is {model.sha256[:12]}). Make it again with "
            f"`guda unlearn {called(model.card, group_set)} --groups {group}`"
        )
    if meta.get("group") != group:
        raise AdapterError(f"it is of group '{meta.get('group')}', not '{group}'")
    named = meta.get("group_set")
    if group_set is not None and named is not None and named != group_set:
        raise AdapterError(
            f"it was made for the group set '{named}', not '{group_set}'. Make it with `guda unlearn --set {group_set} "
            f"--groups {group}`"
        )


def _check_settings(folder: Path, meta: Mapping[str, Any], group: str, of: str) -> None:
    path = _run_file(folder)
    said = adapter_files.read_json(path).get("settings") if path is not None else None
    named = said.get(group) if isinstance(said, dict) else None
    if named is not None and named != meta.get("settings_sha256"):
        raise AdapterError(
            f"it was made with other settings than its workspace says in {RUN}, so that its scores cannot be compared "
            f"with the other groups'. Make it again with `guda unlearn {of} --groups {group} --again`"
        )


def _read(folder: Path, meta: Mapping[str, Any], network: nn.Module, group: str) -> Adapter:
    kind, path = meta.get("kind"), adapter_files.weights_file(folder)
    if kind not in (None, WHOLE, CODED):
        raise AdapterError(f"its kind is {kind!r}; known are {WHOLE}, {CODED} and, without a kind, a LoRA")
    shapes = {n: tuple(p.shape) for n, p in network.state_dict().items()}
    spec = None
    if kind is None:
        spec = lora.spec_of(meta.get("lora"))
        shapes = lora.expected(network, spec.targets, spec.rank)
        if path.name == adapter_files.LORA:
            _check_config(folder / adapter_files.LORA_CONFIG, spec)
    most = sum(4 * math.prod(s) for s in shapes.values())
    state = adapter_files.read_weights(path, meta.get("sha256"), most)
    if kind == CODED:
        _check_coded(state, shapes)
        codes, small = delta.decode(state)
        return Adapter(group, meta, 1.0, {}, small, codes)
    state = {
        n.removeprefix(adapter_files.PREFIX) if path.name == adapter_files.LORA else n: t for n, t in state.items()
    }
    _check_names(state, shapes)
    for name, t in state.items():
        _check_tensor(name, t, shapes[name])
    if spec is None:
        return Adapter(group, meta, 1.0, {}, {n: t.float() for n, t in state.items()})
    return Adapter(group, meta, spec.alpha / spec.rank, _factors(state, spec.alpha / spec.rank))


def _check_names(state: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> None:
    if not shapes:
        raise AdapterError("none of the modules that it names is in the network")
    missing, extra = sorted(set(shapes) - set(state)), sorted(set(state) - set(shapes))
    if missing:
        raise AdapterError(f"{len(missing)} of {len(shapes)} tensors are missing, such as {missing[0]}")
    if extra:
        raise AdapterError(f"{len(extra)} of its tensors have no place in the network, such as {extra[0][:200]}")


def _check_tensor(name: str, t: Tensor, shape: tuple[int, ...], types: tuple[torch.dtype, ...] = FLOATS) -> None:
    if tuple(t.shape) != tuple(shape):
        raise AdapterError(f"{name} has shape {tuple(t.shape)}; the network asks for {tuple(shape)}")
    if t.dtype not in types:
        known = ", ".join(str(d).removeprefix("torch.") for d in types)
        raise AdapterError(f"{name} is {str(t.dtype).removeprefix('torch.')}; known are {known}")
    if t.dtype != torch.int64 and not all(-LARGEST <= x.item() <= LARGEST for x in torch.aminmax(t)):  # NaN is neither
        raise AdapterError(f"{name} holds values that are not finite, or beyond what float16 can hold")


def _check_config(path: Path, spec: LoraSpec) -> None:
    """PEFT's own file must say what ours does, else other programs would compute something else from the weights."""
    try:
        found = adapter_files.read_json(path)
    except (ValueError, OSError) as e:
        raise AdapterError(f"its {path.name} cannot be read ({e})") from e
    named = lora.config_record(spec)
    changed = [k for k in ("peft_type", "r", "lora_alpha", "bias") if found.get(k) != named[k]]
    changed += [k for k in lora.OTHER_KINDS if found.get(k) not in (None, False, {}, [])]
    targets = found.get("target_modules")
    if not isinstance(targets, list) or {str(t) for t in targets} != set(spec.targets):
        changed.append("target_modules")
    if changed:
        raise AdapterError(f"its {path.name} says otherwise than its metadata: {', '.join(changed)}")


def _check_coded(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Of a coded network: codes with a step and a shape for each large tensor, float16 for the others."""
    large = {n for n, s in shapes.items() if delta.is_large_shape(s)}
    named = {**dict.fromkeys(shapes), **{n + e: None for n in large for e in (delta.STEP, delta.SHAPE)}}
    _check_names(state, named)
    for name, shape in shapes.items():
        if name not in large:
            _check_tensor(name, state[name], shape)
            continue
        if state[name].dtype != torch.uint8 or state[name].dim() != 1:
            raise AdapterError(f"{name} holds no codes")
        _check_tensor(name + delta.STEP, state[name + delta.STEP], (1,), (torch.float64,))
        _check_tensor(name + delta.SHAPE, state[name + delta.SHAPE], (len(shape),), (torch.int64,))
        if (
            tuple(state[name + delta.SHAPE].tolist()) != shape
            or not 0 <= float(state[name + delta.STEP]) <= LARGEST / 128
        ):
            raise AdapterError(f"{name} is coded for another shape than {shape}, or with a step out of range")


def _factors(state: Mapping[str, Tensor], scale: float) -> dict[str, Factors]:
    """The factors by the weight that they change.

    No element of B A is larger than the longest row of B times the longest column of A (Cauchy-Schwarz).
    """
    out = {}
    for name in [n for n in state if n.endswith(".lora_A.weight")]:
        a, b = state[name].float(), state[name.replace(".lora_A.", ".lora_B.")].float()
        weight = name.replace(".lora_A.weight", ".weight")
        if scale * float(b.flatten(1).norm(dim=1).max() * a.flatten(1).norm(dim=0).max()) > LARGEST:
            raise AdapterError(f"its change of {weight} is too large for a network in float16")
        out[weight] = (b.flatten(1), a.flatten(1), (b.shape[0], *a.shape[1:]))
    return out
