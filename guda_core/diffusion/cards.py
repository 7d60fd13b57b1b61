"""Reads `cards.yaml` and loads the model that a card names."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from guda_core.diffusion.base import BaseModel, Card
from guda_core.errors import ModelError

DEFAULT_MODEL = "emoji"
CARDS = Path(__file__).with_name("cards.yaml")
KINDS = ("stable_diffusion", "unconditional")


def read_cards(path: Path = CARDS) -> dict[str, Card]:
    """All cards by id. Raises ModelError when a card lacks a field or has an unknown one."""
    cards = {}
    for cid, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            cards[cid] = Card(id=cid, **fields)
        except TypeError as e:
            raise ModelError(f"{path.name}: card '{cid}': {e}") from e
    return cards


def find_card(name: str) -> Card:
    """The card of that id. Raises ModelError that lists the known ones."""
    cards = read_cards()
    if name not in cards:
        raise ModelError(f"There is no model '{name}'. Known: {', '.join(cards)}.")
    return cards[name]


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
