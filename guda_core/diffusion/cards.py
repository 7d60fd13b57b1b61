"""Cards: what `--model` names, and the model behind it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from guda_core.diffusion import FAMILIES
from guda_core.diffusion.base import BaseModel, Card
from guda_core.errors import ModelError, OptionError

DEFAULT_MODEL = "emoji"
CARDS = Path(__file__).with_name("cards.yaml")


def read_cards(path: Path = CARDS) -> dict[str, Card]:
    """The cards of one file, by id.

    Raises:
        ModelError: it cannot be read, or a card lacks a field, has an unknown one or a value that none can have.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as e:
        raise ModelError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no cards. Each is a name with its fields below it.")
    return {str(id): _card(path, id, fields) for id, fields in found.items()}


def _card(path: Path, id: Any, fields: Any) -> Card:
    if not isinstance(id, str) or not isinstance(fields, dict) or not all(isinstance(k, str) for k in fields):
        raise ModelError(f"{path}: card '{id}': it has no fields below its name.")
    try:
        return Card(id=id, **fields)
    except (ValidationError, TypeError) as e:
        first = e.errors()[0] if isinstance(e, ValidationError) else {"loc": (), "msg": str(e)}
        field = ".".join(str(p) for p in first["loc"])
        raise ModelError(f"{path}: card '{id}': {field + ': ' if field else ''}{first['msg']}.") from e


def _files() -> Iterator[Path]:
    """Files of cards: the shipped one, then those of the user's workspace."""
    yield CARDS
    if home := os.environ.get("GUDA_HOME"):
        yield from sorted((Path(home) / "models").glob("*.yaml"))


def known_cards() -> dict[str, Card]:
    """Every card by id. Raises ModelError when a file is wrong, or two files have a card of one id."""
    out: dict[str, Card] = {}
    for path in _files():
        for id, card in read_cards(path).items():
            if id in out:
                raise ModelError(f"{path}: there is a card '{id}' already. Choose another name.")
            out[id] = card
    return out


def find_card(name: str) -> Card:
    """The card of that id. Raises ModelError that lists the known ones."""
    cards = known_cards()
    if name not in cards:
        raise ModelError(
            f"There is no model '{name}'. Known: {', '.join(cards)}. Or give the path of a folder in diffusers' layout."
        )
    return cards[name]


def resolve_card(name_or_path: str | Path) -> Card:
    """The card that `--model` names: by its id, or made for a folder in diffusers' layout from the model's own files.

    Raises:
        ModelError: there is no such card or folder, or no family reads it.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and text in known_cards():
        return find_card(text)
    path = Path(text).expanduser()
    if path.is_file():
        raise ModelError(
            f"{path} is a single file. Give a folder in diffusers' layout: `StableDiffusionPipeline.from_single_file("
            "FILE).save_pretrained(FOLDER)` makes one."
        )
    if path.is_dir():
        return _card_of(path.resolve())
    return find_card(text)


def _card_of(folder: Path) -> Card:
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder} is no model in diffusers' layout: it has no model_index.json.")
    for kind, family in FAMILIES.items():
        fields = family.describe(folder)
        if fields is not None:
            name = folder.name
            id = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
            id += "" if id not in known_cards() else "-" + hashlib.sha256(str(folder).encode()).hexdigest()[:8]
            return Card(**{"id": id, "name": name, "source": "folder", "path": str(folder), "kind": kind, **fields})
    raise ModelError(f"{folder} holds a model that no family here reads. Known families: {', '.join(FAMILIES)}.")


def load_model(card: Card, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> BaseModel:
    """Load a card's model on the device (default: the GPU when there is one).

    dtype: of the weights; None = float32 on a CPU, the card's type on a GPU.

    Raises:
        ModelError: the card's kind is unknown, or the model is missing, damaged or cannot be scored.
    """
    try:
        family = FAMILIES.find(card.kind)
    except OptionError as e:
        raise ModelError(f"Card '{card.id}': {e}") from e
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return family.load(card, device=where, dtype=dtype)
