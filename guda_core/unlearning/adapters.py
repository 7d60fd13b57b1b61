"""LoRA adapters: made with peft for training, stored as safetensors, switched into the denoiser's weights for scoring.

An adapter folder holds `adapter.safetensors` and `adapter.json`. The latter is written last, so its presence means
"complete"; it names the base model's hash, and an adapter for another base is refused.

Scoring uses W + (alpha / r) B A in place of W (Hu et al. 2021). An unlearning of the whole network is stored in the
same way, as the changed weights themselves, and used in place of W; so is a network that was trained anew, as its coded
difference (`coding`). The denoiser's own weights are kept aside and copied back, so the full model is restored bit by
bit, and a scored forward costs what a plain one does.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guda_core.errors import AdapterError
from guda_core.unlearning import delta

WEIGHTS, META, HEALTH = "adapter.safetensors", "adapter.json", "health.json"
OFFSET = "held_out_others_empty"  # of an adapter's health: what its scores hold for every picture
CODED = "coded"  # kind of a whole network that is stored as its coded difference


@dataclass(frozen=True)
class LoraSpec:
    """rank r, alpha (scale = alpha / r), and the name endings of the modules that get an adapter."""

    rank: int = 6
    alpha: int = 6
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")


def attach(denoiser: nn.Module, spec: LoraSpec, seed: int) -> list[nn.Parameter]:
    """Put a fresh LoRA (B = 0: changes nothing yet) on the denoiser, in place; returns the trainable parameters."""
    torch.manual_seed(seed)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.targets), lora_dropout=0.0)
    inject_adapter_in_model(config, denoiser)
    params = [p for n, p in denoiser.named_parameters() if "lora_" in n]
    if not params:
        raise AdapterError(f"None of the modules {', '.join(spec.targets)} is in this denoiser.")
    for n, p in denoiser.named_parameters():
        p.requires_grad_("lora_" in n)
    return params


def save(denoiser: nn.Module, folder: Path, *, spec: LoraSpec, meta: dict[str, Any]) -> None:
    """Write the attached LoRA as float16 safetensors, then its metadata. meta must hold `base_sha256` and `group`."""
    state = {n: p.detach().to(torch.float16).contiguous() for n, p in get_peft_model_state_dict(denoiser).items()}
    _write(state, folder, {**meta, "lora": asdict(spec)}, sum(p.numel() for p in state.values()))


def _write(state: dict[str, Tensor], folder: Path, meta: dict[str, Any], parameters: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    save_file(state, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    record = {**meta, "sha256": digest, "parameters": parameters}
    (folder / META).write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """The metadata of an adapter folder. Raises AdapterError when it is missing or no JSON object."""
    path = folder / META
    if not path.is_file():
        raise AdapterError(
            f"There is no finished adapter in {folder.name}. Make it with `python -m guda_core unlearn` (a retrained "
            "model: `python -m experiments.logo --live`)."
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise AdapterError(f"The adapter's metadata {path.name} in {folder.name} is damaged: {e}") from e
    if not isinstance(meta, dict):
        raise AdapterError(f"The adapter's metadata {path.name} in {folder.name} is damaged: it is no JSON object.")
    return meta


def read_health(folder: Path, sha256: str) -> dict[str, Any]:
    """What was measured of just the adapter with this hash; {} where that is missing or damaged."""
    try:
        found = json.loads((folder / HEALTH).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("adapter_sha256") == sha256 else {}


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. factors: parameter name -> (B (out, r), A (r, in * kh * kw), shape of the weight), float32.

    whole: parameter name -> the weight itself, float32, where the whole network was unlearned (factors is empty then).
    codes: parameter name -> its coded difference, where a network is stored so (whole has its small tensors then).
    """

    group: str
    meta: dict[str, Any]
    scale: float
    factors: dict[str, tuple[Tensor, Tensor, tuple[int, ...]]]
    whole: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, delta.Codes] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape, of every weight it changes."""
        tensors = self.whole | {n: c.numbers for n, c in self.codes.items()}
        return {n: f[2] for n, f in self.factors.items()} | {n: tuple(w.shape) for n, w in tensors.items()}

    def weight(self, name: str, base: Tensor) -> Tensor:
        """What stands in place of the denoiser's weight `base`, float32."""
        if name in self.whole:
            return self.whole[name].to(base.device)
        return base.float() + self.delta(name, base.device)

    def delta(self, name: str, device: torch.device) -> Tensor:
        """The change of one weight, float32, in the weight's shape: (alpha / r) B A, or what is coded."""
        if name in self.codes:
            return self.codes[name].difference(device)
        b, a, shape = self.factors[name]
        return (self.scale * (b.to(device) @ a.to(device))).reshape(shape)


def _factors(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, tuple[int, ...]]]:
    out = {}
    for name in [n for n in state if n.endswith(".lora_A.weight")]:
        a, b = state[name].float(), state[name.replace(".lora_A.", ".lora_B.")].float()
        shape = (b.shape[0], *a.shape[1:])
        out[name.replace(".lora_A.weight", ".weight")] = (b.flatten(1), a.flatten(1), shape)
    return out


def load(folder: Path, *, base_sha256: str, group: str) -> Adapter:
    """Read and check one adapter, or what `save_whole` or `save_coded` wrote.

    Raises:
        AdapterError: missing, damaged, with another hash than its metadata says, or made for another base or group.
    """
    meta = read_meta(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise AdapterError(f"The adapter '{group}' has no {WEIGHTS} (only safetensors are read, never pickles).")
    if meta.get("base_sha256") != base_sha256:
        raise AdapterError(
            f"The adapter '{group}' was made for another base model ({str(meta.get('base_sha256'))[:12]}, this one is "
            f"{base_sha256[:12]}). Make it again with `python -m guda_core unlearn --groups {group}`."
        )
    if meta.get("group") != group:
        raise AdapterError(f"The adapter in '{folder.name}' is of group '{meta.get('group')}', not '{group}'.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != meta.get("sha256"):
        raise AdapterError(f"The adapter '{group}' is damaged: its weights do not have the hash its metadata names.")
    try:
        state = load_file(path)
        factors, scale, whole, codes = {}, 1.0, {}, {}
        if meta.get("kind") == "whole":
            whole = {n: w.float() for n, w in state.items()}
        elif meta.get("kind") == CODED:
            codes, whole = delta.decode(state)
        else:
            factors, scale = _factors(state), meta["lora"]["alpha"] / meta["lora"]["rank"]
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, ArithmeticError, zlib.error) as e:
        raise AdapterError(f"The adapter '{group}' cannot be read: {e}") from e
    if not (factors or whole or codes) or not all(torch.isfinite(v).all() for v in state.values()):
        raise AdapterError(f"The adapter '{group}' is empty or holds values that are not finite.")
    return Adapter(group, meta, scale, factors, whole, codes)


def save_whole(denoiser: nn.Module, folder: Path, *, meta: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write all weights of a denoiser that was fine-tuned as a whole, then its metadata (kind "whole")."""
    state = {n: p.detach().to(dtype).contiguous() for n, p in denoiser.state_dict().items()}
    _write(state, folder, {**meta, "kind": "whole"}, sum(p.numel() for p in state.values()))


def save_coded(stored: dict[str, Tensor], folder: Path, *, meta: dict[str, Any]) -> None:
    """Write what `delta.encode` made of a network, then its metadata (kind "coded")."""
    codes, small = delta.decode(stored)
    parameters = sum(c.numbers.numel() for c in codes.values()) + sum(t.numel() for t in small.values())
    _write(stored, folder, {**meta, "kind": CODED}, parameters)


def load_whole(folder: Path, *, base_sha256: str, group: str) -> dict[str, Tensor]:
    """Read what `save_whole` wrote: weight name -> float32.

    Raises:
        AdapterError: missing, damaged, a LoRA, or made for another base or group.
    """
    meta = read_meta(folder)
    if meta.get("kind") != "whole" or (meta.get("base_sha256"), meta.get("group")) != (base_sha256, group):
        raise AdapterError(f"{folder.name} holds no whole model without '{group}' for this base model.")
    path = folder / WEIGHTS
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != meta.get("sha256"):
        raise AdapterError(f"The model in {folder.name} is damaged: its weights do not have the hash recorded.")
    return {n: p.float() for n, p in load_file(path).items()}


@contextmanager
def applied(denoiser: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Within the block the denoiser is the one without the group; afterwards it is what it was, bit by bit.

    Raises:
        AdapterError: the adapter changes a weight that the denoiser does not have, or of another shape.
    """
    weights = dict(denoiser.named_parameters())
    for name, shape in adapter.shapes.items():
        if name not in weights or tuple(weights[name].shape) != shape:
            raise AdapterError(f"The adapter '{adapter.group}' does not fit this denoiser ({name}).")
    kept = {name: weights[name].detach().clone() for name in adapter.shapes}
    try:
        with torch.no_grad():
            for name, w in kept.items():
                weights[name].copy_(adapter.weight(name, w))
        yield
    finally:
        with torch.no_grad():
            for name, w in kept.items():
                weights[name].copy_(w)
