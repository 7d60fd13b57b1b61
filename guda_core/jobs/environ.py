"""What a worker elsewhere must know of its driver's environment: where the workspace lies, and the defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, wraps
from typing import TypeVar

from guda_core import __version__, paths
from guda_core.errors import OptionError
from guda_core.from_hub import held, is_named

PATHS = ("GUDA_CACHE", "GUDA_LORA", "GUDA_MODEL", "GUDA_CIFAR10")  # variables that may name a path
SECRETS = ("GUDA_KEY_PASSPHRASE",)  # variables that stay on this machine
FILES = (".yaml", ".yml", ".safetensors")  # endings of models that are one file
Asked = TypeVar("Asked", bound=Hashable)
Opened = TypeVar("Opened")


def _written_out(name: str, value: str) -> str:
    """The value of one of `PATHS`; a whole path, where it is one."""
    path = value if name == "GUDA_CACHE" else paths.at_home(value)
    if name == "GUDA_MODEL" and (value == os.path.basename(value) and not value.endswith(FILES)):  # noqa: PTH119
        return value  # the id of a card
    if name in ("GUDA_MODEL", "GUDA_CIFAR10") and not paths.is_there(path):
        return value  # an id of the hub
    return os.path.abspath(path)  # noqa: PTH100


def settings() -> dict[str, str]:
    """Variable -> its value here; paths are absolute, a workspace of the hub is of the state that is read here. Secrets
    are not among them: no worker signs."""
    found = {k: v for k, v in os.environ.items() if k.startswith("GUDA_") and k not in SECRETS}
    home, named = paths.home(), found.get("GUDA_HOME", "")
    found["GUDA_HOME"] = held(named) if is_named(named) else str(paths.ROOT if home == paths.ASSETS else home)
    found |= {k: _written_out(k, v) for k, v in found.items() if k in PATHS and v}
    return {**found, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "")}


def once_a_process(opens: Callable[[Asked], Opened]) -> Callable[[Asked], Opened]:
    """A function that loads what jobs were asked for, made to do so once for all jobs of a process: what it gave last
    is kept as long as the same is asked and the settings are the same."""

    @lru_cache(maxsize=1)
    def kept(asked: Asked, environ: tuple[tuple[str, str], ...]) -> Opened:
        return opens(asked)

    @wraps(opens)
    def opened(asked: Asked) -> Opened:
        return kept(asked, tuple(sorted(settings().items())))

    return opened


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
    for name in [k for k in os.environ if k.startswith("GUDA_") and not environ.get(k)]:
        del os.environ[name]
    os.environ.update({k: v for k, v in environ.items() if v})
    if environ.get("GUDA_DEVICE", "").startswith("cuda:"):
        os.environ["GUDA_DEVICE"] = "cuda"  # the number is the driver's; a worker sees its own GPU alone
