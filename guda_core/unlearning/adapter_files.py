"""The files of one adapter: a folder that holds the weights and, written last, what they are.

    guda.json                   whose group, of which base model and group set, how made, SHA-256 of the weights
    adapter_model.safetensors   a LoRA, and
    adapter_config.json         its settings: PEFT's own layout; `peft` and diffusers' `load_lora_adapter` read it too
    network.safetensors         in their place: a whole network, or its coded difference
    health.json, timing.json    what was measured of it

Adapters of version 0.1 have `adapter.safetensors` and `adapter.json` instead; they are read, and no longer written.
Only safetensors are read, never pickles. Nothing is read into memory before its size has been looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guda_core.errors import AdapterError
from guda_core.held_files import advice, check_writable, move_file, remove_file, replace_file, replacing

META, LORA, LORA_CONFIG, NETWORK = (
    "guda.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "network.safetensors",
)
OLD_META, OLD_WEIGHTS = "adapter.json", "adapter.safetensors"
HEALTH, TIMING = "health.json", "timing.json"
ALL = (META, OLD_META, OLD_WEIGHTS, LORA, LORA_CONFIG, NETWORK, HEALTH, TIMING)
PREFIX = "base_model.model."  # PEFT's, before the names of a LoRA's factors
FIT = "fit"  # in the metadata: how the set's pictures were made square
LISTED = "list_sha256"  # in the metadata: the list of pictures that the set was trained on (`picture_list.trained_on`)
WORDS = "words_sha256"  # in the metadata: how the set's captions were written (`captions.words_sha256`)
CAPTIONS = "captions_sha256"  # in the metadata: what all captions were made of (`captions.captions_sha256`)
KEPT = "kept"  # in the metadata of a whole network: the share of its change that storing and rounding left
MOST_JSON = 4_000_000  # bytes of a JSON file that is read
SHA256 = re.compile("[0-9a-f]{64}")
NOTHING_FORGOTTEN = (
    "The models without {which} forgot nothing that could be measured: the group's own pictures did not lose clearly "
    "more than others'. Their scores say little. `guda unlearn` with more --steps makes them again."
)
HEADER = 4_000_000  # bytes that a safetensors file may hold beside its tensors


def meta_file(folder: Path) -> Path:
    """The metadata of either layout; of the newer one where there is neither."""
    old = folder / OLD_META
    return old if old.is_file() and not (folder / META).is_file() else folder / META


def weights_file(folder: Path) -> Path:
    """The weights that belong to `meta_file`; of a LoRA where there are none."""
    names = (LORA, NETWORK, OLD_WEIGHTS) if meta_file(folder).name == META else (OLD_WEIGHTS,)
    return next((folder / n for n in names if (folder / n).is_file()), folder / names[0])


def is_draft(meta: Mapping[str, Any]) -> bool:
    """Whether an adapter's metadata says that it is a draft (`guda_core.unlearning.draft`)."""
    return bool(meta.get("draft"))


def stored_bytes(folder: Path) -> int:
    """What the weights and their metadata take on disk."""
    return sum(f.stat().st_size for f in (weights_file(folder), meta_file(folder)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: too large, damaged, or no object. OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"it is larger than {MOST_JSON:,} bytes")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def read_meta(folder: Path) -> dict[str, Any]:
    """The metadata of an adapter folder.

    Raises:
        AdapterError: it is missing, damaged, no JSON object, or does not name its base model by a SHA-256.
    """
    path = meta_file(folder)
    if not path.is_file():
        raise AdapterError(f"There is no finished adapter in {folder.name}. Make it with `guda unlearn`.")
    try:
        found = read_json(path)
        base = found.get("base_sha256")
        if not isinstance(base, str) or not SHA256.fullmatch(base):
            raise ValueError("its base_sha256 is no SHA-256, which has 64 of the digits 0-9 and a-f")
        return found
    except (ValueError, OSError) as e:
        raise AdapterError(f"The adapter's metadata {path.name} in {folder.name} is damaged: {e}") from e


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object in place of what is there.

    Raises:
        AdapterError: it cannot be written; what was there before stays.
    """
    try:
        with replacing(path) as aside:
            aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as e:
        what = advice(e, "Free some disk space")
        raise AdapterError(f"{path} cannot be written ({e.strerror or e}). {what}.") from e


def note(folder: Path, changes: Mapping[str, Any]) -> None:
    """Put other values into an adapter's metadata; its weights stay.

    Raises:
        AdapterError: it is missing, damaged, or cannot be written; what was there before stays.
    """
    write_json(meta_file(folder), {**read_meta(folder), **changes})


def read_health(folder: Path, sha256: str) -> dict[str, Any]:
    """What was measured of just the adapter with this hash; {} where that is missing or damaged."""
    try:
        found = read_json(folder / HEALTH)
    except (ValueError, OSError):
        return {}
    return found if found.get("adapter_sha256") == sha256 else {}


def forgot_nothing(health: Mapping[str, Any]) -> bool:
    """Whether the group's own pictures did not lose more than others' by two standard errors, with captions nor
    without. False where the health does not tell both."""
    clear = []
    for prompt in ("prompt", "empty"):
        own, others = (health.get(f"{whose}_{prompt}", {}) for whose in ("forgotten", "others"))
        try:
            clear.append(own["mean"] - others["mean"] > 2 * math.hypot(own["se"], others["se"]))
        except (KeyError, TypeError):  # not measured, or of one picture alone
            continue
    return bool(clear) and not any(clear)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_weights(path: Path, sha256: object, most: int) -> dict[str, Tensor]:
    """Name -> tensor. most: bytes that the tensors may take.

    Raises:
        AdapterError: missing, larger, or with another hash. SafetensorError: it is no safetensors file.
    """
    if not path.is_file():
        raise AdapterError(f"it has no {path.name} (only safetensors are read, never pickles)")
    if (size := path.stat().st_size) > most + HEADER:
        raise AdapterError(f"{path.name} takes {size:,} bytes; one for this network takes at most {most + HEADER:,}")
    if hash_file(path) != sha256:
        raise AdapterError("it is damaged: its weights do not have the hash that its metadata names")
    return load_file(path)


def check_place(folder: Path) -> None:
    """See whether an adapter could be written, before hours are spent on it. Nothing is left there.

    Raises:
        AdapterError: it could not: a file stands in the way, or the place is read-only.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        check_writable(there)
    except OSError as e:
        raise AdapterError(
            f"The adapter cannot be written to {folder} ({e.strerror or e}: {there}). Name another --folder, or a "
            "workspace that you may write to."
        ) from e


def write(
    folder: Path,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    parameters: int,
    lora: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter in place of what was there; the metadata comes last, so that its presence means "complete".

    lora: PEFT's settings, where the state is a LoRA's.

    Raises:
        AdapterError: it cannot be written, such as on a full disk; what was there before stays.
    """
    header = {"format": "pt"}  # one entry alone: safetensors writes several in any order, and the hash would vary
    if lora is not None:
        header = {"lora_adapter_metadata": json.dumps({PREFIX + k: v for k, v in lora.items()})}  # diffusers reads it
    weights = folder / (NETWORK if lora is None else LORA)
    aside = {weights: folder / f"{weights.name}.tmp", folder / META: folder / f"{META}.tmp"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(state), aside[weights], metadata=header)
        record = {**meta, "sha256": hash_file(aside[weights]), "parameters": parameters}
        aside[folder / META].write_text(json.dumps(record, indent=1), encoding="utf-8")
        if lora is not None:
            aside[folder / LORA_CONFIG] = folder / f"{LORA_CONFIG}.tmp"
            aside[folder / LORA_CONFIG].write_text(json.dumps(lora, indent=1), encoding="utf-8")
        _put(folder, aside)
    except (OSError, SafetensorError) as e:
        for path in aside.values():
            with suppress(OSError):  # such as where a file stands in the folder's place
                remove_file(path)
        with suppress(OSError):  # an empty folder would hide the adapter of another layer (`paths.Layers`)
            folder.rmdir()
        what = advice(e, "Free some disk space")
        raise AdapterError(
            f"The adapter cannot be written to {folder} ({str(e).rstrip('.')}). {what} and run the same command again; "
            "what was there before is still there."
        ) from e


def _put(folder: Path, aside: Mapping[Path, Path]) -> None:
    """Put new files (place -> where it is now) in place of all that was there. Nothing here needs more room.

    The old metadata goes first and the new one comes last, so that a folder between the two is no finished adapter.
    Where a file is refused, all is as it was.
    """
    moved: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for path in (folder / name for name in ALL):
            if path.is_file():
                move_file(path, before := path.with_name(f"{path.name}.before"))
                moved[path] = before
        for path in sorted(aside, key=lambda p: p.name == META):
            replace_file(aside[path], path)
            placed.append(path)
    except BaseException:
        for path in reversed(placed):
            with suppress(OSError):
                remove_file(path)
        for path, before in reversed(moved.items()):
            with suppress(OSError):
                move_file(before, path)
        raise
    for name in ALL:
        with suppress(OSError):  # also of a call that was killed
            remove_file(folder / f"{name}.before")
