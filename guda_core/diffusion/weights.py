"""Files of weights: what is in a .safetensors file, without reading it, and what is refused.

Pickles (.ckpt, .pt, .bin) are refused: opening one can run code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from guda_core.diffusion.base_model import Card
from guda_core.diffusion.memory import lacked_memory
from guda_core.errors import ModelError

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
VARIANT = re.compile(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$")  # in a name, such as model.fp16-00001-of-00002.safetensors
Header = Mapping[str, tuple[str, tuple[int, ...]]]


def refuse_pickle(name: str) -> None:
    """Raises ModelError when the name is that of a pickle."""
    if name.lower().endswith(PICKLES):
        raise ModelError(
            f"{name} is a pickle, which can run code when it is opened. Use the model's .safetensors file, or convert "
            "it with a program that you trust."
        )


def header(path: Path) -> Header:
    """Name -> (type, shape) of the tensors in a .safetensors file, without reading them.

    Raises:
        ModelError: it is no such file, or damaged.
    """
    try:
        with safe_open(path, framework="np") as f:  # torch's way reserves memory for all of it on Windows
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as e:
        if lacked_memory(e):
            raise
        raise ModelError(f"{path} is damaged or incomplete: {e}. Download it again.") from e


def stored_type(path: Path) -> torch.dtype:
    """The type of the largest tensor in a .safetensors file."""
    largest = max(header(path).values(), key=lambda t: math.prod(t[1]), default=("F32", ()))
    return TYPES.get(largest[0], torch.float32)


def of_parts(card: Card, folder: Path, parts: Sequence[str]) -> tuple[str, dict[str, list[Path]]]:
    """The variant that diffusers has to be asked for ("" = none: every part has files without one), and the files of
    weights that each part is then read from.

    Raises:
        ModelError: the parts that have no files without a variant share none.
    """
    found: dict[str, dict[str, list[Path]]] = {part: {} for part in parts}
    for part, variants in found.items():
        for path in sorted((folder / part).glob("*.safetensors")):
            named = VARIANT.search(path.name)
            variants.setdefault(named[1] if named else "", []).append(path)
    asked = {part: set(variants) for part, variants in found.items() if variants and "" not in variants}
    shared = set.intersection(*asked.values()) if asked else {""}
    if not shared:
        has = "; ".join(f"{part}: {', '.join(sorted(variants))}" for part, variants in asked.items())
        raise ModelError(
            f"The model '{card.id}' in {folder} holds its parts as variants, none of which they share ({has}). Add one "
            "variant of every part, or the files without a variant."
        )
    variant = min(shared, key=lambda v: (v != "fp16", v))
    return variant, {part: variants.get(variant, variants.get("", [])) for part, variants in found.items()}


def check_whole(card: Card, modules: Mapping[str, nn.Module], files: Mapping[str, Sequence[Path]] | None) -> None:
    """Every tensor of the parts is in the files. Else diffusers leaves it without values, and transformers makes up new
    ones. files: of each part; None for a single file.

    Raises:
        ModelError: one is missing.
    """
    from transformers import PreTrainedModel

    for part, module in modules.items():
        state = {n: t for n, t in module.state_dict().items() if not n.endswith("position_ids")}
        absent = [n for n, t in state.items() if t.is_meta]
        if files is not None and isinstance(module, PreTrainedModel):
            stored = {_bare(n) for path in files[part] for n in header(path)}
            there = {t.data_ptr() for n, t in state.items() if _bare(n) in stored}  # some tensors have two names
            absent += [n for n, t in state.items() if _bare(n) not in stored and t.data_ptr() not in there]
        if absent:
            raise ModelError(
                f"The model '{card.id}' in {card.path} is damaged or incomplete: {len(absent)} tensors of its {part} "
                f"are missing, such as {absent[0]}. Download it again."
            )


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")  # which transformers 4 wrote
