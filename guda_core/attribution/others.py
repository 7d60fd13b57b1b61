"""What is looked at in methods of other packages, so that one that is wrong says so and takes no other with it.

This package's own methods pass as they are: tests hold what they give, and what they raise is a fault to be seen.
A method here is any object with the parts of `attribution.method.Method`.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import entry_points
from numbers import Real
from types import CodeType, FunctionType
from typing import Any, TypeVar

import numpy as np

from guda_core.attribution import METHODS
from guda_core.diffusion.memory import is_out_of_memory
from guda_core.errors import GudaError, ScoreError
from guda_core.records import Attribution, Cost, GroupModels, GroupScore, KLValues, MethodInfo

log = logging.getLogger(__name__)
SAID = ("id", "name", "unit", "note")  # what a class must say of itself
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # as in a report's schema
LONGEST = 60  # letters of an id
MOST = 1e30  # of a score; beyond it nothing can be drawn
DEEPEST = 20  # lists and mappings within each other
UNTOLD = ("__module__", "__firstlineno__", "__static_attributes__")  # of a class, beside its code
T = TypeVar("T")


def package_of(kind: type) -> str:
    """The package that a class is of."""
    return str(kind.__module__).partition(".")[0]


def is_ours(kind: type) -> bool:
    """Whether a class is of this package."""
    return package_of(kind) == package_of(GudaError)


def unfit(kind: Any, m: str) -> str:
    """Why a class cannot be the method of the line `m`; "" where it can."""
    needs = kind.needs
    if not isinstance(needs, tuple | list) or not all(isinstance(n, str) for n in needs):
        return f"Its `needs` is no tuple of ids, such as ('clip',): {needs!r}."
    if lacking := [a for a in SAID if not isinstance(getattr(kind, a, None), str)]:
        return f"Its class does not say its {', '.join(lacking)}."
    if kind.id != m:
        return f"Its class calls itself '{kind.id}'. Its line in METHODS must name the same id."
    if not ID.fullmatch(m) or len(m) > LONGEST:
        return (
            f"An id has a-z and 0-9, with single hyphens within, and at most {LONGEST} letters: {m[: 2 * LONGEST]!r}."
        )
    return ""


def check_loaded(method: Any) -> None:
    """Raises ScoreError or TypeError where a method that was loaded cannot say what is asked of every method."""
    made_from(method)
    for name, kind in (("caveat", str), ("models", GroupModels | None), ("info", MethodInfo)):
        if not isinstance(found := getattr(method, name)(), kind):
            raise TypeError(f"its {name} gives {type(found).__name__}")


@contextmanager
def faults_of(method: Any) -> Iterator[None]:
    """Raises ScoreError, with the method's id, for an error of a method of another package."""
    try:
        yield
    except (GudaError, MemoryError):
        raise
    except (Exception, SystemExit) as e:
        if is_ours(type(method)) or is_out_of_memory(e):
            raise
        log.exception("The method '%s' failed", method.id)
        raise ScoreError(f"The method '{method.id}' failed ({type(e).__name__}: {e}).") from e


def _or_else(method: Any, ask: Callable[[], T], kind: Any, otherwise: Callable[[str], T]) -> T:
    """What a method says of itself when all are asked. This is after an answer too, so an error of a method of another
    package must not lose what others answered."""
    if is_ours(type(method)):
        return ask()
    try:
        with faults_of(method):
            if isinstance(found := ask(), kind):
                return found
            raise ScoreError(f"The method '{method.id}' gave {type(found).__name__} when it was asked about itself.")
    except GudaError as e:
        return otherwise(str(e))


def provenance_of(method: Any) -> dict[str, Any]:
    """`made_from`; {"error": why} where a method of another package cannot say it any more."""
    return _or_else(method, lambda: made_from(method), dict, lambda why: {"error": why})


def caveat_of(method: Any) -> str:
    """A method's caveat, which is the error where a method of another package cannot say it any more."""
    return _or_else(method, method.caveat, str, str)


def models_of(method: Any) -> GroupModels | None:
    """A method's models; None where a method of another package cannot say it any more."""
    return _or_else(method, method.models, GroupModels | None, lambda why: None)


def info_of(method: Any) -> MethodInfo:
    """What is said of a method; of one of another package that cannot say it any more, what its class says."""
    plain = MethodInfo(method.id, method.name, method.unit, method.note)
    return _or_else(method, method.info, MethodInfo, lambda why: plain)


def cost_of(method: Any, ask: Callable[[Any], Cost], budget: Any) -> Cost:
    """A cost that the method tells. Raises ScoreError where a method of another package fails, or gives none."""
    with faults_of(method):
        if isinstance(found := ask(budget), Cost):
            return found
    raise ScoreError(f"The method '{method.id}' gave {type(found).__name__} in place of a Cost.")


def made_from(method: Any) -> dict[str, Any]:
    """A method's provenance as a report can hold it. Raises ScoreError where it cannot."""
    said = method.provenance()
    return said if is_ours(type(method)) else {**_mapping(method.id, "provenance", said), **_code_of(type(method))}


@lru_cache
def _code_of(kind: type) -> dict[str, str]:
    """What tells a method of another package from one with other code: a hash of its class and of the classes behind
    it, and the version of the package whose entry point it is."""
    own = [c for c in kind.__mro__ if c is kind or not (is_ours(c) or package_of(c) in sys.stdlib_module_names)]
    found = {"code_sha256": hashlib.sha256("\n".join(map(_source, own)).encode()).hexdigest()}
    for point in entry_points(group=METHODS.group):
        if point.name == kind.id and point.module.partition(".")[0] == package_of(kind) and point.dist:
            found["package_version"] = point.dist.version
    return found


def _source(kind: type) -> str:
    """A class as it was written; where that is not to be had, such as of a notebook's, what was made of it."""
    try:
        return inspect.getsource(kind)
    except Exception:  # its file may be gone, or half written
        return repr([(k, _plain(v)) for k, v in sorted(vars(kind).items()) if k not in UNTOLD])


def _plain(value: Any) -> Any:
    """A member of a class, or a constant of its code, without names of files and numbers of lines."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_varnames, _plain(value.co_consts)
    if isinstance(value, tuple | list | Mapping):
        return [_plain(v) for v in (value.items() if isinstance(value, Mapping) else value)]
    if isinstance(value, frozenset | set):
        return sorted(map(repr, value))
    if isinstance(value, property):
        return _plain([value.fget, value.fset])
    if isinstance(value := inspect.unwrap(getattr(value, "__func__", value)), FunctionType):
        return _plain([value.__code__, value.__defaults__, value.__kwdefaults__])
    return repr(value) if isinstance(value, str | bytes | int | float | complex | None) else type(value).__name__


def own(method: Any, a: Any) -> Attribution:
    """One answer of a method in Python's own numbers. Raises ScoreError where it is none that can be used."""
    if is_ours(type(method)):
        return a
    m = method.id
    if not isinstance(a, Attribution) or a.method != m:
        raise ScoreError(f"The method '{m}' gave no answer of its own, but {type(a).__name__}.")
    if not isinstance(a.progress, Real) or not 0 <= a.progress <= 1:
        raise ScoreError(f"The method '{m}' gave a progress that is not between 0 and 1: {a.progress}.")
    groups = {g: _score(m, g, s) for g, s in a.groups.items()}
    for what, value, fine in (
        ("unit", a.unit, a.unit == method.unit),
        ("separable", a.separable, a.separable is None or isinstance(a.separable, bool | np.bool_)),
        ("runner_up", a.runner_up, a.runner_up is None or isinstance(a.runner_up, str)),
        ("kl", a.kl, a.kl is None or isinstance(a.kl, KLValues)),
        ("reached", a.reached, a.reached in (None, "width", "draws")),
        ("values", a.values, _are_arrays(a.values)),
    ):
        if not fine:
            raise ScoreError(f"The method '{m}' gave an answer with {what} = {value!r:.200}, which cannot be used.")
    settings = {**_mapping(m, "settings", a.settings), **_code_of(type(method))}
    if not _is_offset(settings.get("offset", {})):
        raise ScoreError(f"The settings of '{m}' have an offset that names no number for each group.")
    separable = None if a.separable is None else bool(a.separable)
    return replace(a, groups=groups, progress=float(a.progress), separable=separable, settings=settings)


def _is_offset(said: Any) -> bool:
    """Whether it is what `Attribution.offset` reads: group -> finite number."""
    return isinstance(said, Mapping) and all(isinstance(v, Real) and not isinstance(v, bool) for v in said.values())


def _are_arrays(values: Any) -> bool:
    """Whether they are what a report's values.npz can hold: finite numbers, of one dimension, by plain names."""
    return isinstance(values, Mapping) and all(
        isinstance(k, str) and ID.fullmatch(k.replace("_", "-").lower())
        and isinstance(v, np.ndarray) and v.ndim == 1 and v.dtype.kind in "fiu" and bool(np.isfinite(v).all())
        for k, v in values.items()
    )  # fmt: skip


def _mapping(method: str, what: str, said: Any) -> dict[str, Any]:
    if not isinstance(said, Mapping):
        raise ScoreError(f"The {what} of '{method}' is {type(said).__name__}, not a mapping.")
    return _python(method, said)


def _python(method: str, value: Any, depth: int = 0) -> Any:
    """Settings or provenance with Python's own numbers and lists in place of numpy's. Raises ScoreError where a report,
    which is JSON, cannot hold them."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if depth <= DEEPEST:
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {k: _python(method, v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [_python(method, v, depth + 1) for v in value]
        if value is None or isinstance(value, str | bool) or (isinstance(value, int) and value.bit_length() <= 64):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
    raise ScoreError(
        f"The method '{method}' says of itself what a report cannot hold: {value!r:.200}. Its settings and provenance "
        f"are texts, finite numbers, lists, and mappings of texts to these, no more than {DEEPEST} deep."
    )


def _score(method: str, group: str, s: Any) -> GroupScore:
    """A group's score in Python's own floats."""
    if not isinstance(s, GroupScore) or not isinstance(s.reason, str):
        raise ScoreError(f"The method '{method}' gave {type(s).__name__} for '{group}' in place of a GroupScore.")
    if s.status in ("unavailable", "no_score") and (s.score, s.low, s.high) == (None, None, None):
        return s
    numbers = [x for x in (s.score, s.low, s.high) if isinstance(x, Real) and math.isfinite(x)]
    if s.status != "ok" or len(numbers) < 3 or not -MOST <= numbers[1] <= numbers[0] <= numbers[2] <= MOST:
        raise ScoreError(
            f"The method '{method}' gave no score for '{group}' that can be used: {s.score}, from {s.low} to {s.high} "
            f"({s.status}). Scores are finite numbers, within their bounds; where there is none, all three are None "
            'and the status is "no_score".'
        )
    score, low, high = map(float, numbers)
    return replace(s, score=score, low=low, high=high)
