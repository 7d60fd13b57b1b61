"""Files that people write by hand, read strictly: a wrong entry ends in one sentence that names its place.

YAML in which no key stands twice, then a pydantic model that knows every field and changes no type: "3" is no number,
and a field with a spelling mistake is not passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from guda_core.errors import GudaError

Entry = TypeVar("Entry", bound="Fields")


class Fields(BaseModel):
    """A mapping whose fields are all known. Values are taken as they are or refused, never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def text(value: Any) -> str:
    """A text with something in it, without the white space around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a non-empty text (quote numbers)")
    return value.strip()


Text = Annotated[str, BeforeValidator(text)]


class _Reader(yaml.SafeLoader):
    """YAML in which a key that stands twice in a mapping is an error; plain YAML drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, error: Callable[[str], GudaError]) -> Any:
    """What a YAML file holds: mappings, lists, texts, numbers; no Python objects.

    Raises:
        error: it cannot be read, is not UTF-8 or not YAML, or a key stands twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Reader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise error(f"{path} is not readable as YAML: {e}") from e
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
