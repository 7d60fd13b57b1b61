"""Reads `cards.yaml` and loads the model that a card names."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from guda_core import paths
from guda_core.diffusion.base import BaseModel, Card
from guda_core.errors import ModelError

DEFAULT_MODEL = "emoji"
CARDS = Path(__file__).with_name("cards.yaml")
KINDS = ("stable_diffusion", "unconditional")


def all_cards() -> dict[str, Card]:
    """The shipped cards and those of the workspace (`models/*.yaml`), which come first where an id is the same."""
    cards = read_cards()
    for path in reversed(list(paths.models().glob("*.yaml"))):
        cards |= read_cards(path)
    return cards


def read_cards(path: Path = CARDS) -> dict[str, Card]:
    """The cards of a file by id; a relative folder is meant from the file's own.

    Raises:
        ModelError: a card lacks a field or has an unknown one.
    """
    cards = {}
    for cid, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            card = Card(id=cid, **fields)
            cards[cid] = replace(card, path=str(path.parent / card.path)) if card.source == "folder" else card
        except TypeError as e:
            raise ModelError(f"{path.name}: card '{cid}': {e}") from e
    return cards


def find_card(name: str) -> Card:
    """The card of that id. Raises ModelError that lists the known ones."""
    cards = all_cards()
    if name not in cards:
        raise ModelError(f"There is no model '{name}'. Known: {', '.join(cards)}.")
    return cards[name]


def chosen_model(given: str | None) -> str:
    """The name of the model to use: the one that is given, else GUDA_MODEL, else the embedded one."""
    return given or os.environ.get("GUDA_MODEL") or DEFAULT_MODEL


def load_model(card: Card, *, device: str | None = None, dtype: torch.dtype | None = None) -> BaseModel:
    """Load a card's model on the device (default: the GPU when there is one).

    Raises:
        ModelError: the card's kind is unknown, or the model cannot be had.
    """
    if card.kind not in KINDS:
        raise ModelError(f"Card '{card.id}' is of kind '{card.kind}'. Known: {', '.join(KINDS)}.")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if card.kind == "unconditional":
        from guda_core.diffusion.unconditional import Unconditional

        return Unconditional.from_card(card, device=where, dtype=dtype)
    from guda_core.diffusion.unet_family import StableDiffusion

    return StableDiffusion(card, device=where, dtype=dtype)
