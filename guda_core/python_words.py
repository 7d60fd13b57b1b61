"""Errors of the library in the words of Python: messages name options of the command line, functions have arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from guda_core.errors import GudaError

P = ParamSpec("P")
R = TypeVar("R")

OTHERWISE = {  # option -> the arguments that may stand for it, in this order; a variable where no function has one
    "dtype": ("GUDA_DTYPE",),
    "groups": ("only",),
    "home": ("GUDA_HOME",),
    "lora": ("lora", "GUDA_LORA"),
    "model": ("model", "name"),
    "set": ("groups", "name"),
}
KEPT = r"`[^`]*`|(?<!\w)'[^']*'(?!\w)"  # what is to be typed, and what somebody named
VALUES = r"crop|pad|bucket|local|auto|FOLDER"
OPTION = re.compile(rf"(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?: (\d[\d.:]*\d|\d|{VALUES})\b)?")


def in_python(said: str, function: Callable[..., Any], texts: Iterable[str] = ()) -> str:
    """A message with the function's arguments in place of options, as `broken=0.05` for "--broken 0.05". Options that
    it has no argument for stay, and so do these texts."""
    known = signature(function).parameters

    def argument(option: re.Match[str]) -> str:
        names = OTHERWISE.get(option[1], (option[1].replace("-", "_"),))
        name = next((n for n in names if n in known or n.isupper()), None)
        if name is None:
            return option[0]
        value = option[2]
        if value is None:
            switch = name in known and known[name].default is False
            return f"`{name}=True`" if switch else f"`{name}`"
        is_plain = name.isupper() or re.fullmatch(r"\d+(\.\d+)?", value)
        return f"`{name}={value if is_plain else repr(value)}`"

    parts, end = [], 0
    whole = sorted((re.escape(t) for t in texts if t), key=len, reverse=True)
    for kept in re.finditer("|".join([*whole, KEPT]), said):
        parts += [OPTION.sub(argument, said[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*parts, OPTION.sub(argument, said[end:])])


def _texts(given: Iterable[Any]) -> Iterator[str]:
    """The texts and paths among these, and within the lists and mappings among them."""
    for value in given:
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        for v in inner if isinstance(inner, list | tuple | set | frozenset) else [value]:
            if isinstance(v, str | os.PathLike) and isinstance(path := os.fspath(v), str):
                yield path


def speaks_python(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with errors that name its arguments. What the caller named is not touched."""

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        try:
            return function(*given, **named)
        except GudaError as e:
            e.args = (in_python(str(e), function, [t for t in _texts([*given, *named.values()]) if "--" in t]),)
            raise

    return call
