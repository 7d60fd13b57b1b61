"""Low-rank adapters (LoRA, Hu et al. 2021): W + (alpha / r) B A in place of W, with B (out, r) and A (r, in).

    rank r, scale alpha / r;   a convolution's A is (r, in, kh, kw) and its B (out, r, 1, 1)

Trained with PEFT, in the network itself: with the LoRA switched off it is the full model, with it on the student, so
that no second network is in memory. The factors are float32 whatever the network's own type: in float16, AdamW's small
steps are lost and the factors run away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from guda_core.diffusion.base_model import UNET_TARGETS
from guda_core.errors import AdapterError
from guda_core.machine import LOADING

OTHER_KINDS = (  # settings of PEFT under which the same factors mean something else
    "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out", "modules_to_save",
    "layers_to_transform", "exclude_modules", "target_parameters", "layer_replication", "trainable_token_indices",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "kasa_config",
)  # fmt: skip


@dataclass(frozen=True)
class LoraSpec:
    """rank r, alpha (scale = alpha / r), and the name endings of the modules that get an adapter."""

    rank: int = 6
    alpha: int = 6
    targets: tuple[str, ...] = UNET_TARGETS


def _config(spec: LoraSpec) -> LoraConfig:
    return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.targets), lora_dropout=0.0)


def config_record(spec: LoraSpec) -> dict[str, Any]:
    """PEFT's `adapter_config.json` of it: what decides the values; PEFT's defaults stand for the rest."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": sorted(spec.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def attach(network: nn.Module, spec: LoraSpec, seed: int) -> list[nn.Parameter]:
    """Put a fresh LoRA (B = 0: changes nothing yet) on the network, in place.

    Returns the trainable parameters, all float32; everything else is frozen.

    Raises:
        AdapterError: no module has one of the names.
    """
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    # the caller's own draws go on as they were; a model that another thread reads may have changed torch's default type
    with _in_float32(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        inject_adapter_in_model(_config(spec), network)
    params = [p for n, p in network.named_parameters() if "lora_" in n]
    if not params:
        raise AdapterError(f"None of the modules {', '.join(spec.targets)} is in this denoiser.")
    for n, p in network.named_parameters():
        p.requires_grad_("lora_" in n)
        if "lora_" in n:
            p.data = p.data.float()
    return params


@contextmanager
def _in_float32() -> Iterator[None]:
    """Within the block float32 is torch's default type."""
    with LOADING:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def switch(network: nn.Module, on: bool) -> None:
    """With the LoRA on the network is the student, and trains; off, it answers as if there were none."""
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)


def detach(network: nn.Module) -> None:
    """Take the LoRA away: the network has its own modules again, with the weights it had."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


@contextmanager
def attached(network: nn.Module, spec: LoraSpec, seed: int) -> Iterator[list[nn.Parameter]]:
    """Within the block a fresh LoRA is on the network (`attach`); afterwards the network is what it was.

    Its input is not cast to float32: autocast decides in which type a layer computes.
    """
    needed = {n: p.requires_grad for n, p in network.named_parameters()}
    try:
        params = attach(network, spec, seed)
        with disable_input_dtype_casting(network):
            yield params
    finally:
        try:
            _restore(network, needed)
        except BaseException:  # Ctrl-C within: no part of the LoRA must stay
            _restore(network, needed)
            raise


def _restore(network: nn.Module, needed: dict[str, bool]) -> None:
    detach(network)
    for n, p in network.named_parameters():
        p.requires_grad_(needed[n])


@torch.no_grad()
def relative_size(network: nn.Module) -> float:
    """sqrt(sum ||(alpha / r) B A||^2 / sum ||W||^2) over the layers that the attached LoRA changes, Frobenius norms."""
    change, own = 0.0, 0.0
    layers: list[Any] = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        for key, up in layer.lora_B.items():
            a, b = layer.lora_A[key].weight.flatten(1).double(), up.weight.flatten(1).double()
            change += layer.scaling[key] ** 2 * float(((b.T @ b) * (a @ a.T)).sum())  # ||B A||^2 = tr(B'B AA')
        own += float(layer.get_base_layer().weight.double().square().sum())
    return (change / own) ** 0.5 if own else float("nan")


def factors(network: nn.Module) -> dict[str, Tensor]:
    """The attached LoRA in float16: "<module>.lora_A.weight" and "<module>.lora_B.weight" -> tensor."""
    state = get_peft_model_state_dict(network)
    return {n: p.detach().to(device="cpu", dtype=torch.float16).contiguous() for n, p in state.items()}


def expected(network: nn.Module, targets: Iterable[str], rank: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all factors that a LoRA on this network has, as `factors` names them."""
    endings, out = tuple(targets), {}
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if any(name == e or name.endswith(f".{e}") for e in endings):
            wide, *shape = module.weight.shape
            out[f"{name}.lora_A.weight"] = (rank, *shape)
            out[f"{name}.lora_B.weight"] = (wide, rank, *[1] * (len(shape) - 1))
    return out


def spec_of(record: Any) -> LoraSpec:
    """The `LoraSpec` in an adapter's metadata.

    Raises:
        AdapterError: a part is missing, of another type, or cannot be scaled by: rank below 1, alpha not a number above
            0, no targets.
    """
    try:
        rank, alpha, targets = record["rank"], record["alpha"], record["targets"]
    except (TypeError, KeyError) as e:
        raise AdapterError(f"its metadata has no complete 'lora' ({e})") from e
    if type(rank) is not int or not 0 < rank < 2**16:
        raise AdapterError(f"its rank is {rank!r}, not a whole number above 0")
    if type(alpha) not in (int, float) or not 0 < alpha < 2**16:
        raise AdapterError(f"its alpha is {alpha!r}, not a number above 0")
    if not isinstance(targets, list | tuple) or not targets or not all(isinstance(t, str) and t for t in targets):
        raise AdapterError("its targets are not a list of module names")
    return LoraSpec(rank, alpha, tuple(targets))
