"""Merges a LoRA file into a model at load (Hu et al. 2021).

    W + (alpha / r) B A in place of W,     B: (out, r)     A: (r, in)

Files of kohya's scripts, of diffusers and of PEFT are read, each with its own names and its own place for alpha. A LoRA
is refused as a whole when any part of it has no place in the model, so that nothing is merged by half.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from guda_core.diffusion.finite import is_finite
from guda_core.diffusion.memory import lacked_memory
from guda_core.diffusion.weights import refuse_pickle
from guda_core.errors import ModelError, first_line
from guda_core.paths import is_file

OTHER_KINDS = {  # in names
    "dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "Tucker LoRA", ".diff_b": "LoRA with biases",
    "bundle_emb.": "LoRA with new words (pivotal tuning)",
}  # fmt: skip
OTHER_SETTINGS = {"use_dora": "DoRA", "use_rslora": "rank-stabilised LoRA"}
FACTOR = re.compile(
    r"(.+?)(?:_lora|\.lora|\.lora_linear_layer)?[._](lora_A|lora_B|lora_down|lora_up|down|up)(?:\.default)?\.weight"
)
ALONE = "base_model.model."  # before names and settings, where a file is of the network alone
FIRST = ("lora_A", "lora_down", "down")
PREFIXES = {  # of a layer's name, flattened -> parts of a pipeline, the first that there is
    "lora_unet_": ("unet", "transformer"),
    "lora_transformer_": ("transformer",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3", "text_encoder_2"),  # T5, also FLUX's
    "lora_te_": ("text_encoder",),
    "base_model_model_": ("unet", "transformer"),
    "unet_": ("unet",),
    "transformer_": ("transformer",),
    "text_encoder_2_": ("text_encoder_2",),
    "text_encoder_3_": ("text_encoder_3",),
    "text_encoder_": ("text_encoder",),
    "text_encoders_clip_l_transformer_": ("text_encoder",),
    "text_encoders_clip_g_transformer_": ("text_encoder_2",),
    "text_encoders_t5xxl_transformer_": ("text_encoder_3", "text_encoder_2"),
    "": ("unet", "transformer"),
}
FRONT = re.compile("^(lora_unet|base_model_model|diffusion_model)_")  # of a layer by the network's first code
XLABS = re.compile(r"(double|single)_blocks_(\d+)_(qkv|proj)(_lora\d)?")
FOREIGN = "It was made for another family or size"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as its file holds it. tensors: by the file's names. settings: PEFT's, by part ("" is the network alone),
    where alpha is not among the tensors."""

    path: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file.

    Raises:
        ModelError: it is missing, a pickle, damaged, of another kind than LoRA, or holds values that are not finite.
    """
    refuse_pickle(path.name)
    if not is_file(path):
        raise ModelError(f"There is no LoRA file {path}.")
    try:
        with safe_open(path, framework="pt") as f:
            metadata, tensors = f.metadata() or {}, {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        if lacked_memory(e):
            raise
        raise ModelError(f"The LoRA {path} is damaged or incomplete: {e}. Download it again.") from e
    lora = LoraFile(path, tensors, _settings(path, tensors, metadata))
    kinds = [kind for part, kind in OTHER_KINDS.items() if any(part in name for name in tensors)]
    kinds += [kind for k, kind in OTHER_SETTINGS.items() if any(s.get(k) for s in lora.settings.values())]
    if kinds:
        raise ModelError(f"The LoRA {path} is a {kinds[0]}, which cannot be merged. Only plain LoRA files can.")
    if not any((m := FACTOR.fullmatch(n)) and m[2] in FIRST for n in tensors):
        raise ModelError(f"{path} is no LoRA: none of its {len(tensors)} tensors is named as one.")
    broken = next((n for n, t in tensors.items() if not is_finite(t)), None)
    if broken:
        raise ModelError(f"The LoRA {path} is damaged: {broken} is not finite.")
    return lora


def _settings(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's settings: in the header of a file by diffusers or by GUDA, in adapter_config.json beside one by PEFT."""
    try:
        if "lora_adapter_metadata" in metadata:
            found: dict[str, dict[str, Any]] = {}
            for name, value in json.loads(metadata["lora_adapter_metadata"]).items():
                part, _, key = ("", "", name[len(ALONE) :]) if name.startswith(ALONE) else name.partition(".")
                found.setdefault(part, {})[key] = value
            return found
        if all(n.startswith(ALONE) for n in tensors):
            return {"": json.loads(path.with_name("adapter_config.json").read_text(encoding="utf-8"))}
    except (OSError, ValueError, AttributeError) as e:
        raise ModelError(
            f"The LoRA {path} is in PEFT's layout, and its settings cannot be read. Keep its adapter_config.json "
            "beside it."
        ) from e
    return {}


def merge(pipe: Any, lora: LoraFile, parts: Sequence[str], dtype: torch.dtype) -> None:
    """Merge a LoRA into the weights of a pipeline, in place. parts: names of the modules that it may change. dtype: the
    type that they will run in; each sum is rounded to it alone, since the type that a weight is stored in may lose it.

    Raises:
        ModelError: it is for another family, or fits in part only.
    """
    layers = _layers(pipe, parts)
    try:
        changes = _changes(pipe, lora, layers)
    except Exception as e:
        if lacked_memory(e):
            raise
        raise ModelError(
            f"The LoRA {lora.path.name} does not fit this model, a {type(pipe).__name__}: {first_line(e)[:300]}."
        ) from e
    for place, (a, b, scale) in changes.items():
        weight = layers[place]
        weight.data = (weight.detach().float() + (scale * (b @ a)).reshape(weight.shape)).to(dtype)
        if not is_finite(weight):
            raise ModelError(f"The LoRA {lora.path.name} is too strong: with it the model's weights are not finite.")


def _layers(pipe: Any, parts: Sequence[str]) -> dict[tuple[str, str], nn.Parameter]:
    """(part, flattened name) -> weight, of every layer that a LoRA may change."""
    found = {}
    for part in parts:
        for name, m in getattr(pipe, part).named_modules() if getattr(pipe, part, None) is not None else ():
            if isinstance(m, nn.Linear | nn.Conv2d):
                found[part, name.removeprefix("text_model.").replace(".", "_")] = m.weight
    return found


def _changes(
    pipe: Any, lora: LoraFile, layers: Mapping[tuple[str, str], nn.Parameter]
) -> dict[tuple[str, str], tuple[Tensor, Tensor, float]]:
    """(A, B, alpha / r) of every layer that the LoRA changes, float32."""
    found: dict[tuple[str, str], tuple[Tensor, Tensor, float]] = {}
    pairs, alphas = _pairs(lora.tensors)
    stray = next((n for n in alphas if n not in pairs), None)
    if stray:
        raise ValueError(f"{stray} has an alpha and no factors")
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"{name} lacks one of its two factors")
        known = {name: pair} if _place(name, layers) else _renamed(pipe, name, pair)
        for its_name, factors in (known or {name: pair}).items():
            place = _place(its_name, layers)
            if place is None:
                raise ValueError(f"it has no layer {name}. {FOREIGN}")
            a, b = (factors[k].float().flatten(1) for k in "AB")
            wide, long = layers[place].flatten(1).shape
            if b.shape != (wide, a.shape[0]) or a.shape[1] != long:
                raise ValueError(f"{name} is {b.shape[0]} by {a.shape[1]}, its layer {wide} by {long}. {FOREIGN}")
            rank = pair["A"].shape[0]  # of the file's factors: diffusers may split them
            scale = alphas.get(name, _alpha(place, lora) or rank) / rank
            if place in found:
                *others, its_scale = found[place]
                if its_scale != scale or not all(map(torch.equal, others, (a, b))):
                    raise ValueError(f"{name} and another name of its layer have different factors or alphas")
            found[place] = (a, b, scale)
    return found


def _pairs(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Layer, flattened -> its factors {"A": A, "B": B}; and layer -> alpha, where there is one."""
    pairs: dict[str, dict[str, Tensor]] = {}
    alphas = {}
    for name, t in tensors.items():
        if name.endswith(".alpha"):
            alphas[_flat(name.removesuffix(".alpha"))] = float(t)
            continue
        found = FACTOR.fullmatch(name)
        if found is None:
            raise ValueError(f"{name} is no factor of a LoRA")
        pair, which = pairs.setdefault(_flat(found[1]), {}), "A" if found[2] in FIRST else "B"
        if which in pair:
            raise ValueError(f"{name} is there by another name, too")
        pair[which] = t
    return pairs, alphas


def _flat(name: str) -> str:
    """A layer's name as kohya's scripts write it: no dots, nothing of the module that once held the LoRA."""
    return name.replace(".processor.", ".").replace(".", "_")


def _place(name: str, layers: Mapping[tuple[str, str], Any]) -> tuple[str, str] | None:
    """The layer that a flattened name stands for."""
    for prefix, parts in PREFIXES.items():
        if name.startswith(prefix):
            own = name.removeprefix(prefix).removeprefix("text_model_")
            own = re.sub(r"^(.*_self_attn)_to_(q|k|v|out)$", r"\1_\2_proj", own)  # diffusers' old names
            for known in ((p, o) for p in parts for o in (own, f"{own}_0")):  # to_out is a list of two
                if known in layers:
                    return known
    return None


def _renamed(pipe: Any, name: str, pair: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The factors of a layer that is named as the network's first code does, by diffusers' names; {} where diffusers
    does not know it. It is shown one layer at a time, since it passes over what it does not know, and its alpha too."""
    bare = FRONT.sub("", name)
    key, xlabs = f"lora_unet_{bare}.lora_", XLABS.fullmatch(bare)
    if xlabs:
        key = f"{xlabs[1]}_blocks.{xlabs[2]}.processor.{xlabs[3]}{xlabs[4] or '_lora'}."
    more = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
    try:
        found = pipe.lora_state_dict({f"{key}down.weight": pair["A"], f"{key}up.weight": pair["B"]}, **more)
        return _pairs(found[0] if isinstance(found, tuple) else found)[0]
    except Exception as e:
        if lacked_memory(e):
            raise
        return {}


def _alpha(place: tuple[str, str], lora: LoraFile) -> float | None:
    """Of PEFT's settings: of this layer, else of all; None where there are none (then alpha is the rank)."""
    part, name = place
    said = lora.settings.get(part) or lora.settings.get("") or {}
    own = [v for k, v in (said.get("alpha_pattern") or {}).items() if f"_{name}".endswith(f"_{_flat(str(k))}")]
    return float(own[0]) if own else said.get("lora_alpha")
