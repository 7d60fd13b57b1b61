"""Cards: what `--model` names, and the model behind it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from guda_core import paths
from guda_core.diffusion import FAMILIES, weights
from guda_core.diffusion.base_model import BaseModel, Card
from guda_core.diffusion.devices import chosen_device, slow_type
from guda_core.diffusion.memory import MEND, lacked_memory
from guda_core.diffusion.precision import chosen_dtype
from guda_core.errors import GudaError, ModelError, NoRoomError, OptionError
from guda_core.file_names import DEVICE_SAID, ID, ID_SAID, fitting, is_devices
from guda_core.from_hub import copy_of
from guda_core.machine import LOADING
from guda_core.strict import parse_yaml

log = logging.getLogger(__name__)

DEFAULT_MODEL = "emoji"
CARDS = Path(__file__).with_name("cards.yaml")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def read_cards(path: Path = CARDS) -> dict[str, Card]:
    """The cards of one file, by id. A relative folder or LoRA is meant from the file's own.

    Raises:
        ModelError: it cannot be read, or a card lacks a field, has an unknown one or a value that none can have.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ModelError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no cards. Each is a name with its fields below it.")
    return {str(id): _card(path, id, told) for id, told in found.items()}


def _card(path: Path, id: Any, told: Any) -> Card:
    if not isinstance(id, str) or not isinstance(told, dict) or not all(isinstance(k, str) for k in told):
        raise ModelError(f"{path}: card '{id}': it has no fields below its name.")
    if not ID.fullmatch(id):
        raise ModelError(f"{path}: card {id[:80]!r}: {ID_SAID}, because folders are named after it. Rename it.")
    try:
        card = Card(id=id, **told)
        lora = str(path.parent / Path(card.lora).expanduser()) if card.lora else ""
        here = str(path.parent / Path(card.path).expanduser()) if card.source in ("folder", "file") else card.path
        return replace(card, path=here, lora=lora, encoder=_encoder(path.parent, card.encoder))
    except (ValidationError, TypeError) as e:
        raise ModelError(f"{path}: card '{id}'{_wrong(e)}") from e


def _wrong(error: ValidationError | TypeError) -> str:
    """What is wrong with a card's fields, as the end of a sentence."""
    if isinstance(error, TypeError):
        return f": {error}."
    first = error.errors()[0]
    name = ".".join(str(p) for p in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        known = [f.name for f in fields(Card) if f.name != "id"]
        near = get_close_matches(name, known, 1, 0.75)
        meant = f"Is '{near[0]}' meant?" if near else f"Known: {', '.join(known)}."
        return f" has a field '{name}' that means nothing here. {meant}"
    if first["type"] == "missing":
        return f" has no field '{name}'. Add it."
    return f": '{name}': {first['msg'][0].lower()}{first['msg'][1:]}."


def _encoder(here: Path, name: str) -> str:
    """A card's encoder; a folder beside the card's file is meant from there."""
    kind, _, place = name.partition(":")
    folder = here / Path(place).expanduser()
    return f"{kind}:{folder}" if place and folder.is_dir() else name


def known_cards() -> dict[str, Card]:
    """Every card by id: the shipped ones, and those of the workspace (`models/*.yaml`), which come first where an id is
    the same. Raises ModelError when a file is wrong."""
    cards = read_cards()
    for path in reversed(list(paths.models().glob("*.yaml"))):
        cards |= read_cards(path)
    return cards


def find_card(name: str) -> Card:
    """The card of that id. Raises ModelError that lists the known ones."""
    cards = known_cards()
    if name not in cards:
        raise ModelError(
            f"There is no model '{name}'. {_looked(name)}Known: {', '.join(cards)}. Or give a folder in diffusers' "
            "layout, a .safetensors file, or a Hub id such as user/model."
        )
    return cards[name]


def _looked(name: str) -> str:
    """What lies at the place that a name that is a path leads to, as a sentence; "" for other names."""
    path = paths.at_home(name).absolute()
    if Path(name).name == name:
        return ""
    return f"At {path} is no model. " if paths.is_there(path) else f"There is nothing at {path}. "


def own_model() -> str:
    """The model of a workspace that holds exactly one card of its own; else "". Raises ModelError when a file of cards
    is wrong."""
    own = [id for path in paths.own_cards() for id in read_cards(path)]
    return own[0] if len(own) == 1 else ""


def chosen_model(given: str | None) -> str:
    """The name of the model to use: the one that is given, else GUDA_MODEL, else the workspace's own where it holds
    just one, else the embedded one."""
    return given or os.environ.get("GUDA_MODEL") or own_model() or DEFAULT_MODEL


def called(card: Card, group_set: str | None = None) -> str:
    """The options that name it, and a group set, in a text that reports may hold: where a folder or a file lies is
    private, and MODEL or FILE stands for it."""
    of = f"--set {group_set} " if group_set else ""
    if card.id in known_cards():
        return f"{of}--model {card.id}"
    return f"{of}--model {card.path if card.source == 'hub' else 'MODEL'}{' --lora FILE' if card.lora else ''}"


def typed(given: str | None) -> str:
    """The options that name `chosen_card`'s model, as they can be typed again: for the terminal, not for reports."""
    lora = os.environ.get("GUDA_LORA")
    return f"--model {in_quotes(chosen_model(given))}" + (f" --lora {in_quotes(lora)}" if lora else "")


def in_quotes(word: str) -> str:
    """A word of a command; between quotes where it holds white space."""
    return f'"{word}"' if any(c.isspace() for c in word) else word


def absolute(name: str) -> str:
    """The name of a model for a process that works in another folder: a path in it is written out."""
    path = paths.at_home(name)
    return str(path.absolute()) if name not in known_cards() and paths.is_there(path) else name


def chosen_card(given: str | None, *, lora: str | Path | None = None) -> Card:
    """The card of the model to use: of `chosen_model`, by `resolve_card`, with `lora` or else GUDA_LORA merged.

    Raises:
        ModelError: as `resolve_card` does.
    """
    return resolve_card(chosen_model(given), lora=lora or os.environ.get("GUDA_LORA"))


def as_made(given: str | None, id: str, what: str) -> str:
    """The name of the model that a report or results were made with: the user's own word for it, else the card `id`.
    Who wrote the report may be a stranger, so `id` is never taken for a folder, a file or a name on the Hub.
    what: "This report is" or "These results are", for the message.

    Raises:
        OptionError: no such card is here, and the user named no model.
    """
    if not given and id not in known_cards():
        raise OptionError(
            f"{what} of the model '{id[:120]}', which has no card here. If you trust that model, name it with --model, "
            "and --lora where it had one, as when it was made: by its folder, file or Hub id."
        )
    return given or id


def resolve_card(name_or_path: str | Path, *, lora: str | Path | None = None) -> Card:
    """The card that `--model` names: a card's id, a .yaml file with one card, a folder in diffusers' layout, a single
    .safetensors file, or a Hub id; but for cards, made from the model's own files.

    lora: a LoRA file that is merged into the model at load.

    Raises:
        ModelError: there is no such card, folder, file or repository, it is a pickle, or no family reads it.
    """
    card = _resolve(name_or_path)
    if lora is not None and not isinstance(lora, str | Path):
        raise OptionError(f"A LoRA is given by its file's path; got {type(lora).__name__}.")
    if lora is None or not str(lora):
        return card
    path = paths.at_home(lora)
    weights.refuse_pickle(path.name)
    if not paths.is_file(path):
        raise ModelError(f"There is no LoRA file {path}.")
    path = path.resolve()
    return replace(
        card, id=fitting(f"{card.id}-{_slug(path.stem)}"), name=f"{card.name} with {path.stem}", lora=str(path)
    )


def _resolve(name_or_path: str | Path) -> Card:
    text = str(name_or_path)
    if isinstance(name_or_path, str) and text in known_cards():
        return find_card(text)
    weights.refuse_pickle(text)
    path = paths.at_home(text)
    if path.suffix in (".yaml", ".yml") and paths.is_file(path):
        own = list(read_cards(path).values())
        if len(own) != 1:
            raise ModelError(f"{path} holds {len(own)} cards; a model is named by a file with one.")
        return own[0]
    if path.suffix == ".safetensors":
        return _card_of_file(path)
    if paths.is_folder(path):
        folder = path.resolve()
        return _card_of(folder, name=folder.name, source="folder", at=str(folder))
    if HUB_ID.fullmatch(text):
        return _card_of_hub(text)
    return find_card(text)


@contextmanager
def _makes_sense(what: str) -> Iterator[None]:
    """Settings and weights are read by libraries, which raise any error for what makes no sense; here each is a
    ModelError."""
    try:
        yield
    except Exception as e:
        if isinstance(e, GudaError):
            raise
        if lacked_memory(e):
            raise NoRoomError(f"{what} cannot be loaded: there is not enough memory. {MEND}") from e
        said = f"{type(e).__name__}: {e}"
        raise ModelError(
            f"{what} cannot be loaded: its files are damaged, or its settings make no sense ({said})."
        ) from e


def _card_of(folder: Path, *, name: str, source: str, at: str) -> Card:
    """A card from what a folder in diffusers' layout says. source, at: the card's own, where its weights lie."""
    from guda_core.diffusion.model_files import INDEX, read_json

    if not (folder / INDEX).is_file():
        raise ModelError(f"{at} is no model in diffusers' layout: it has no {INDEX}.")
    for kind in FAMILIES:
        try:
            family = FAMILIES[kind]
        except OptionError as e:  # it may be that no one's model is meant
            log.warning("%s", e)
            continue
        with _makes_sense(at):
            fields = family.describe(folder)
            if fields is not None:
                id = _slug(name)
                id += "" if id not in known_cards() else "-" + hashlib.sha256(at.encode()).hexdigest()[:8]
                return Card(**{"id": id, "name": name, "source": source, "path": at, "kind": kind, **fields})
    raise ModelError(
        f"{at} holds a {read_json(folder / INDEX).get('_class_name')}, which no family here reads. Known families: "
        f"{', '.join(FAMILIES)}."
    )


def _card_of_file(path: Path) -> Card:
    from guda_core.diffusion.single_file import described

    if not paths.is_file(path):
        raise ModelError(f"There is no file {path}.")
    return _card_of(described(path.resolve()), name=path.stem, source="file", at=str(path.resolve()))


def _card_of_hub(name: str) -> Card:
    from guda_core.diffusion.model_files import not_from_the_hub

    try:
        folder = copy_of(name, ["*.json", "*/*.json"])
    except Exception as e:
        raise not_from_the_hub(name, name, e) from e
    return _card_of(folder, name=name, source="hub", at=name)


def _slug(name: str) -> str:
    return fitting(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model")


def load_model(
    card: Card, *, device: str | int | torch.device | None = None, dtype: torch.dtype | None = None
) -> BaseModel:
    """Load a card's model on the device (default: GUDA_DEVICE's, else the GPU when there is one). Threads
    wait for each other.

    dtype: of the weights; None = what GUDA_DTYPE says, else float32 on a CPU, the card's type on a GPU.

    Raises:
        ModelError: the card's kind is unknown, the model is missing, damaged or cannot be scored, or memory ran out.
        OptionError: GUDA_DTYPE names no type, or there is no such device here, or it cannot compute.
    """
    try:
        family = FAMILIES.find(card.kind)
    except OptionError as e:
        raise ModelError(f"Card '{card.id}': {e}") from e
    where = chosen_device(device)
    wanted = dtype or chosen_dtype(where)
    with LOADING, _makes_sense(f"The model '{card.id}'"), torch.random.fork_rng(devices=[]):  # libraries draw weights
        model = family.load(card, device=where, dtype=wanted)
        if is_devices(card.id):
            log.warning(DEVICE_SAID.format(card.id))
        if slow := slow_type(where, model.dtype):
            log.warning(slow)
        return model
