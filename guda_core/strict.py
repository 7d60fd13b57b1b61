"""Files that people write by hand, read strictly: a wrong entry ends in one sentence that names its place.

YAML in which no key stands twice, then a pydantic model that knows every field and changes no type: "3" is no number,
and a field with a spelling mistake is not passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from guda_core.errors import GudaError

Entry = TypeVar("Entry", bound="Fields")
MOST_NODES = 100_000  # of YAML with its aliases written out, where the file itself is small


class Fields(BaseModel):
    """A mapping whose fields are all known. Values are taken as they are or refused, never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def text(value: Any) -> str:
    """A text with something in it, without the white space around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a non-empty text (quote numbers)")
    return value.strip()


Text = Annotated[str, BeforeValidator(text)]


class Bounded(yaml.SafeLoader):
    """YAML whose aliases (`*name`) cannot make much out of little: written out it is at most ten times as large."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            sizes: dict[int, float] = {}
            if _written_out(node, sizes) > max(MOST_NODES, 10 * len(sizes)):
                raise yaml.constructor.ConstructorError(None, None, "its aliases repeat too much", node.start_mark)
        return node


def _written_out(node: yaml.Node, sizes: dict[int, float]) -> float:
    """How many nodes there are with every alias written out; infinite where one is part of itself."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # until it is known: whoever asks meanwhile is within it
        inner = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in inner)
    return sizes[id(node)]


class _Reader(Bounded):
    """YAML in which a key that stands twice in a mapping is an error; plain YAML drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for part, _ in node.value:
            key = self.construct_object(part, deep=True)
            if isinstance(key, Hashable):  # plain YAML refuses the others
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key}' stands twice", node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, loader: type[Bounded] = Bounded) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is not YAML, or a value cannot be, such as the date 2026-13-45.
    """
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        raise
    except Exception as e:  # the makers of values raise half a dozen kinds of error
        raise yaml.YAMLError(f"it holds a value that cannot be read, or is nested too deeply ({e})") from e


def read_yaml(path: Path, error: Callable[[str], GudaError]) -> Any:
    """What a YAML file holds: mappings, lists, texts, numbers; no Python objects.

    Raises:
        error: it cannot be read, is not UTF-8 or not YAML, or a key stands twice.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), _Reader)
    except UnicodeDecodeError as e:
        raise error(f"{path} is not readable as UTF-8 text. Save it again as UTF-8.") from e
    except yaml.YAMLError as e:
        hint = " Put a text that holds a colon into quotes." if "mapping values are not allowed" in str(e) else ""
        raise error(f"{path} is not readable as YAML: {e}{hint}") from e
    except OSError as e:
        raise error(f"{path} cannot be opened: {e.strerror or e}.") from e


def checked(model: type[Entry], entry: Any, what: str, error: Callable[[str], GudaError]) -> Entry:
    """The entry as the model. what: names its place for the sentence, e.g. "group 'noto'".

    Raises:
        error: it is no mapping, lacks a field, has an unknown one, or a value is not what the field needs.
    """
    if not isinstance(entry, dict):
        raise error(f"{what} must be a mapping with the fields {', '.join(model.model_fields)}.")
    try:
        return model.model_validate(entry)
    except ValidationError as e:
        raise error(_sentence(e.errors()[0], model, what)) from e


def _sentence(found: Mapping[str, Any], model: type[BaseModel], what: str) -> str:
    place, known = ".".join(str(p) for p in found["loc"]), ", ".join(model.model_fields)
    if found["type"] == "missing":
        return f"{what} has no field '{place}'. Add it; the fields are {known}."
    if found["type"] == "extra_forbidden":
        return f"{what} has a field '{place}' that means nothing here. Known: {known}."
    if found["type"] == "value_error":  # of our own validators: "must be ...", for example
        return f"{what}: '{place}' {found['msg'].removeprefix('Value error, ')}."
    return f"{what}: '{place}': {found['msg'][0].lower()}{found['msg'][1:]}."
