"""Errors of the library in the words of Python: messages name options of the command line, functions have arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from guda_core.errors import GudaError

P = ParamSpec("P")
R = TypeVar("R")

OTHERWISE = {  # options whose arguments have another name, or are variables
    "again": "again=True",
    "dtype": "GUDA_DTYPE",
    "groups": "only",
    "home": "GUDA_HOME",
    "set": "groups",
}
COMMAND = re.compile(r"`[^`]*`")  # what is to be typed stays
OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?: (\d[\d.]*\d|\d|crop|pad|bucket|local|auto)\b)?")


def in_python(said: str) -> str:
    """A message with the names of arguments in place of options, as `broken=0.05` for "--broken 0.05"."""
    parts, end = [], 0
    for command in COMMAND.finditer(said):
        parts += [OPTION.sub(_argument, said[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*parts, OPTION.sub(_argument, said[end:])])


def _argument(option: re.Match[str]) -> str:
    name = OTHERWISE.get(option[1], option[1].replace("-", "_"))
    if option[2] is None:
        return name
    return f"{name}={option[2] if option[2][0].isdigit() else repr(option[2])}"


def speaks_python(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with errors that name its arguments."""

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        try:
            return function(*given, **named)
        except GudaError as e:
            e.args = (in_python(str(e)),)
            raise

    return call
