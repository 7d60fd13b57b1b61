"""The small files of a run, `calibration.json` and `scope.json`, read by a schema: sound, and of this model and
set; and how files of a run are written, so that the former ones outlive a full disk.

Both come from other machines too: a workspace may be a repository of the Hub. So what is wrong with one is a sentence
that names the file and the place in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel as Entry
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import AdapterError, CacheError
from guda_core.held_files import advice, remove_left, replacing
from guda_core.unlearning.adapter_files import read_json

LONGEST = 40  # characters of a wrong value that are shown


class RunFile(Entry):
    """What both hold. Values are taken as they are or refused; entries of later versions are passed over.

    base_sha256: the model's identity. group_set: the set's id; "" where the file is older and does not say.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    base_sha256: Annotated[str, Field(min_length=1)]
    group_set: str


def check_others(path: Path, model: BaseModel, what: str) -> None:
    """See that a file to be written, which says its model, does not replace that of another one: two models may have
    one name. what: it holds, in a word.

    Raises:
        CacheError: it would.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as f:
                of = str((f.metadata() or {})["base_sha256"])
        else:
            of = str(read_json(path)["base_sha256"])
    except (OSError, SafetensorError, AdapterError, ValueError, KeyError, TypeError):
        return  # there is none, or nobody can use it
    if not model.goes_by(of):
        raise CacheError(
            f"In {path.parent} {'is' if what == 'rule' else 'are'} the {what} of another model ({of[:12]}; this "
            f"'{model.card.id}' is {model.sha256[:12]}), which would be replaced. To keep that, name another --folder, "
            "or give this model a card with a name of its own. To replace it, add --again."
        )


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Gives a place to write a file of a run to, which at the end of the block takes the place of `path`; until then,
    and where anything goes wrong, what was there before stays.

    Raises:
        CacheError: it cannot be written, such as on a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path.parent)
        with replacing(path) as aside:
            yield aside
    except (OSError, SafetensorError) as e:
        what = advice(e, "Free some disk space")
        raise CacheError(
            f"{path} cannot be written ({str(getattr(e, 'strerror', None) or e).rstrip('.')}). {what} and run the same "
            "command again; what was there before is still there."
        ) from e


Kind = TypeVar("Kind", bound=RunFile)


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """The file's JSON object. mend: a sentence that says what to do. Raises CacheError: it cannot be read."""
    try:
        return read_json(path)
    except (ValueError, OSError) as e:
        raise CacheError(f"{path.name} cannot be read ({str(e).rstrip('.')}). {mend}") from e


def checked(
    kind: type[Kind], name: str, found: Mapping[str, Any], *, base_sha256: str, group_set: str | None, mend: str
) -> Kind:
    """What the file says, by its schema. name: of the file. group_set: None = of any.

    Raises:
        CacheError: it is of another model or group set, lacks something, or holds a value that none can have.
    """
    own = str(found.get("base_sha256"))
    if own != base_sha256:
        raise CacheError(f"{name} was made for another base model ({own[:12]}, this one is {base_sha256[:12]}). {mend}")
    try:
        read = kind.model_validate(dict(found))
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(p) for p in first["loc"]) or "entry"
        said = repr(first["input"])
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
        wrong = f"lacks {place}" if first["type"] == "missing" else f"holds no usable {place}, but {said}"
        raise CacheError(f"{name} {wrong}. {mend}") from e
    if group_set is not None and read.group_set and read.group_set != group_set:
        raise CacheError(f"{name} was made for another group set ('{read.group_set}', not '{group_set}'). {mend}")
    return read
