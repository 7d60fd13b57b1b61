"""Where a model's files lie, and what its own files say about it before anything is loaded."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub.errors import RemoteEntryNotFoundError

from guda_core.diffusion.base_model import Card
from guda_core.errors import ModelError, causes
from guda_core.from_hub import why_not
from guda_core.paths import ASSETS, is_file

INDEX = "model_index.json"
UNSAFE = "Could not find the necessary `safetensors` weights"  # what diffusers says then


def folder_of(card: Card) -> Path:
    """The local folder of a card's weights; hub models are downloaded into the hub's own cache.

    Raises:
        ModelError: the folder is missing, or the hub does not give the model and there is no earlier copy.
    """
    if card.source in ("assets", "folder"):
        folder = ASSETS / card.path if card.source == "assets" else Path(card.path)
        if not is_file(folder / INDEX):
            do = "Check out the repository with its assets, or train it with `python -m experiments.train`."
            do = do if card.source == "assets" else "Correct `path` in its card; it is looked for beside the card."
            raise ModelError(f"The model '{card.id}' is not in {folder}. {do}")
        return folder
    try:
        return _downloaded(card.path)
    except Exception as e:
        raise not_from_the_hub(card.id, card.path, e) from e


def _downloaded(name: str) -> Path:
    """Weights as .safetensors, in half precision where there are no others. No safety checker: nothing reads it."""
    download = partial(DiffusionPipeline.download, name, use_safetensors=True, safety_checker=None)
    try:
        return Path(download())
    except OSError as e:
        if UNSAFE not in str(e):
            raise
        return Path(download(variant="fp16"))


def not_from_the_hub(name: str, path: str, error: Exception) -> ModelError:
    """What is said when a model cannot be downloaded."""
    taken = f"There is no folder {Path(path).absolute()}, so it was looked for on the Hub. " if name == path else ""
    said = f"{taken}The model '{name}' ({path}) could not be downloaded from the Hugging Face Hub"
    for cause in causes(error):
        if isinstance(cause, RemoteEntryNotFoundError):
            return ModelError(f"{said}: it is no model in diffusers' layout, with a {INDEX}.")
        if UNSAFE in str(cause):
            return ModelError(
                f"{said}: not all of its weights are there as .safetensors. Pickles (.bin) can run code when they are "
                "opened, so they are not read. Use a copy with .safetensors files."
            )
    without = (
        "Connect to the internet once so that it is cached, or set HF_HOME to a cache that holds it, or use the "
        "bundled model (GUDA_MODEL=emoji)."
    )
    return ModelError(f"{said}: {why_not(error, path, without)}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, as a model's files hold their settings.

    Raises:
        ModelError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{path} cannot be read, so the model is damaged or incomplete: {e}") from e
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no settings, so the model is damaged or incomplete.")
    return found
