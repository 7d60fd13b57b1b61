"""Models: cards, single files by their headers, LoRA files, and the settings in a folder of diffusers' layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from experiments.fuzz.mutations import (
    bent_bytes,
    bent_safetensors,
    bent_text,
    bent_value,
    json_text,
    packed,
    plain_safetensors,
    unpacked_files,
)
from experiments.fuzz.set_door import YAML_TOKENS
from experiments.fuzz.trial import Door
from guda_core.paths import ASSETS, is_there

CARD: dict[str, Any] = {
    "mine": {
        "name": "Mine", "source": "folder", "path": "model", "resolution": 64, "prediction_type": "epsilon",
        "gpu_dtype": "float16", "group_set": "emoji", "licence": "MIT", "kind": "stable_diffusion",
        "unlearning": {"steps": 10},
    }
}  # fmt: skip
YAML = """mine:
  name: Mine
  source: folder
  path: model
  resolution: 64
  prediction_type: epsilon
  unlearning: {steps: 10}
"""
UNET = "model.diffusion_model.input_blocks.0.0.weight"
TEXTS = ("cond_stage_model.transformer.a", "cond_stage_model.model.a", "conditioner.embedders.1.model.a", "lora_a")


def _single(text: str = TEXTS[0]) -> bytes:
    return plain_safetensors(
        {UNET: ("F16", [8, 4, 3, 3], 2), text: ("F16", [4], 2), "v_pred": ("F32", [0], 4)}, {"format": "pt"}
    )


def _lora() -> bytes:
    front = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {"lora_A.weight": [4, 16], "lora_B.weight": [16, 4], "alpha": []}
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": 2}})
    return plain_safetensors(
        {f"{front}.{k}": ("F32", shape, 4) for k, shape in shapes.items()}, {"lora_adapter_metadata": settings}
    )


@cache
def _settings() -> dict[str, Any]:
    """Name -> content of the embedded model's files of settings."""
    files = [
        p for p in (ASSETS / "model").rglob("*.json") if p.name not in ("tokenizer.json",) and "index" not in p.stem
    ]
    found = {p.relative_to(ASSETS / "model").as_posix(): json.loads(p.read_text(encoding="utf-8")) for p in files}
    return {
        **found,
        "model_index.json": json.loads((ASSETS / "model" / "model_index.json").read_text(encoding="utf-8")),
    }


def inputs(seed: int) -> Iterator[bytes]:
    """The sound ones, then changed ones."""
    rng = Random(seed)
    yield packed({"card.yaml": YAML.encode()})
    yield packed({"single.safetensors": _single()})
    yield packed({"lora.safetensors": _lora()})
    while True:
        kind = rng.randrange(10)
        if kind < 2:
            yield packed({"card.yaml": bent_text(rng, YAML, YAML_TOKENS)})
        elif kind < 4:
            text = json_text(bent_value(rng, CARD), indent=rng.choice((None, 1)))
            yield packed({"card.yaml": text.encode("utf-8", "surrogatepass")})
        elif kind < 6:
            yield packed({"single.safetensors": bent_safetensors(rng, _single(rng.choice(TEXTS)))})
        elif kind < 8:
            yield packed({"lora.safetensors": bent_safetensors(rng, _lora())})
        else:
            name = rng.choice(sorted(_settings()))
            data = json_text(bent_value(rng, _settings()[name])).encode("utf-8", "surrogatepass")
            yield packed({name: data if rng.random() < 0.9 else bent_bytes(rng, data)})


def start(folder: Path) -> Callable[[bytes], None]:
    """A card is read and found, a file is looked at, a LoRA is merged, and a folder's model is loaded."""
    import shutil

    from guda_core.diffusion.cards import find_card, load_model, resolve_card
    from guda_core.diffusion.merging import read_lora

    place = folder / "model"

    def tried(data: bytes) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        ((name, content),) = unpacked_files(data).items()
        if name == "lora.safetensors":
            (place / name).write_bytes(content)
            read_lora(place / name)
            resolve_card("emoji", lora=place / name)
        elif "." in name and "/" not in name and not name.endswith(".json"):
            (place / name).write_bytes(content)
            card = resolve_card(place / name)
            if card.source == "folder" and not is_there(card.path):
                load_model(card, device="cpu")
        else:
            shutil.copytree(ASSETS / "model", place, dirs_exist_ok=True, copy_function=_linked)
            (place / name).unlink()
            (place / name).write_bytes(content)
            load_model(resolve_card(place), device="cpu")

    find_card("emoji")
    return tried


def _linked(source: str, target: str) -> None:
    Path(target).symlink_to(source)


DOOR = Door("models", inputs, start, memory_mb=600)
