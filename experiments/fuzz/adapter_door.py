"""Adapters: a shipped LoRA of the embedded model, its metadata and its weights changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

from experiments.fuzz.mutations import bent_bytes, bent_safetensors, bent_value, json_text, packed, unpacked_files
from experiments.fuzz.trial import Door
from guda_core.paths import SHIPPED_RUN

GROUP = "noto"
META, WEIGHTS = "adapter.json", "adapter.safetensors"
NEW = {META: "guda.json", WEIGHTS: "adapter_model.safetensors"}  # names of today's layout


@cache
def sound() -> dict[str, bytes]:
    """The files of a shipped adapter."""
    return {p.name: p.read_bytes() for p in (SHIPPED_RUN / "adapters" / GROUP).iterdir()}


def inputs(seed: int) -> Iterator[bytes]:
    """The whole adapter, then changed ones; the hash in the metadata is mostly corrected."""
    rng, files = Random(seed), sound()
    yield packed(files)
    while True:
        out, meta = dict(files), json.loads(files[META])
        weights = rng.random() < 0.6
        if weights:
            out[WEIGHTS] = bent_safetensors(rng, out[WEIGHTS])
        if not weights or rng.random() < 0.2:
            meta = bent_value(rng, meta)
        if isinstance(meta, dict) and weights and rng.random() < 0.95:
            meta["sha256"] = hashlib.sha256(out[WEIGHTS]).hexdigest()
        if isinstance(meta, dict) and rng.random() < 0.1:
            meta["kind"] = rng.choice(("whole", "coded", "lora", [], 1))
        out[META] = json_text(meta).encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            name = rng.choice(sorted(out))
            out[name] = bent_bytes(rng, out[name])
        if rng.random() < 0.05:
            del out[rng.choice(sorted(out))]
        if rng.random() < 0.2:
            out = {NEW.get(name, name): data for name, data in out.items()}
            out["adapter_config.json"] = json_text(
                bent_value(rng, {"peft_type": "LORA", "r": 6, "lora_alpha": 6, "target_modules": ["to_q"]})
            ).encode("utf-8", "surrogatepass")
        yield packed(out)


def start(folder: Path) -> Callable[[bytes], None]:
    """An adapter is read, and put on the embedded model where it fits."""
    import shutil

    from guda_core.diffusion.cards import find_card, load_model
    from guda_core.unlearning import adapters, switching

    model, place = load_model(find_card("emoji"), device="cpu"), folder / GROUP

    def tried(data: bytes) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, content in unpacked_files(data).items():
            (place / name).write_bytes(content)
        adapter = adapters.load(place, model=model, group=GROUP, group_set="emoji")
        adapters.read_health(place, str(adapter.meta["sha256"]))
        with switching.applied(model.network, adapter):
            pass

    return tried


DOOR = Door("adapters", inputs, start, memory_mb=400)
