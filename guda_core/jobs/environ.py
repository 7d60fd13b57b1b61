"""What a worker elsewhere must know of its driver's environment: where the workspace lies, and the defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, wraps
from typing import Protocol, TypeVar

from guda_core import __version__, paths
from guda_core.errors import OptionError
from guda_core.from_hub import is_named

Asked = TypeVar("Asked", bound=Hashable, contravariant=True)
Opened = TypeVar("Opened", covariant=True)


class Opener(Protocol[Asked, Opened]):
    """What opens once; `cache_clear` lets go of what is open."""

    def __call__(self, asked: Asked) -> Opened: ...

    def cache_clear(self) -> None: ...


def settings() -> dict[str, str]:
    """Variable -> its value here; paths are absolute."""
    found = {k: v for k, v in os.environ.items() if k.startswith("GUDA_")}
    if not is_named(found.get("GUDA_HOME")):
        home = paths.home()
        found["GUDA_HOME"] = str(paths.ROOT if home == paths.ASSETS else home)
    found |= {k: os.path.abspath(v) for k, v in found.items() if k in ("GUDA_CACHE", "GUDA_LORA") and v}  # noqa: PTH100
    return {**found, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "")}


def once_a_process(opens: Callable[[Asked], Opened]) -> Opener[Asked, Opened]:
    """A function that loads what jobs were asked for, made to do so once for all jobs of a process: what it gave last
    is kept as long as the same is asked and the settings are the same."""

    @lru_cache(maxsize=1)
    def kept(asked: Asked, environ: tuple[tuple[str, str], ...]) -> Opened:
        return opens(asked)

    @wraps(opens)
    def opened(asked: Asked) -> Opened:
        return kept(asked, tuple(sorted(settings().items())))

    opened.cache_clear = kept.cache_clear  # pyright: ignore[reportFunctionMemberAccess]
    return opened  # pyright: ignore[reportReturnType]


def apply(environ: Mapping[str, str], version: str) -> None:
    """In a worker: take over the driver's settings.

    Raises:
        OptionError: the worker's machine has another version of the package.
    """
    if version != __version__:
        raise OptionError(
            f"A machine of the cluster has guda-core {__version__}, the driver has {version}. Install the same version "
            "on all of them."
        )
    for name in [k for k in os.environ if k.startswith("GUDA_") and k not in environ]:
        del os.environ[name]
    os.environ.update({k: v for k, v in environ.items() if v})
