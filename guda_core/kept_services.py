"""The service that this process used last, ready for the next call. One alone is kept: two large models may not fit
into memory. It is kept as long as the same is asked, the settings are the same (`jobs.environ.settings`), and the
files of the model, of its run and of the group set are as they were before the service was made: they are read once.
"""

from __future__ import annotations

import gc
import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guda_core import paths
from guda_core.jobs import environ
from guda_core.machine import LOADING
from guda_core.registry import Registry
from guda_core.service import Service

MODEL = ("*.json", "*.safetensors", "*.txt", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")  # in its folder

ADDED = "members added"  # to registries

_kept: list[tuple[Any, dict[str, str], tuple[tuple[str, int], ...], Service]] = []


def kept(key: Any, make: Callable[[], Service]) -> Service:
    """The service that is kept under the key, else the one that `make` makes, which takes the place of all others.
    Threads wait for each other. key: a card, or a loaded model, and a group set; of another key no files are known."""
    with LOADING:
        settings, stamp = {**environ.settings(), ADDED: f"{Registry.changes}"}, _stamp(key)
        found = [s for of, then, before, s in _kept if of == key and then == settings and before == stamp]
        if found:
            return found[0]
        let_go()
        service = make()
        if _stamp(key) == stamp:  # else it may have read what was before
            settings[ADDED] = f"{Registry.changes}"  # its own members' packages may have added some
            _kept.append((key, settings, stamp, service))
        return service


def let_go() -> None:
    """Keep none any more, so that its memory is free."""
    with LOADING:
        if _kept:
            _kept.clear()
            gc.collect()  # a network may be part of a circle of references


@contextmanager
def none_kept() -> Iterator[None]:
    """Within the block nothing of before is kept, and after it nothing that was made within, whatever happens."""
    let_go()
    try:
        yield
    finally:
        let_go()


def _stamp(key: Any) -> tuple[tuple[str, int], ...]:
    """Which files a service of this card and group set reads, and since when they are so."""
    if not isinstance(key, tuple):
        return ()
    card, group_set = getattr(key[0], "card", key[0]), key[1]
    own, at = group_set.folder, Path(card.path)
    of_set = () if own is None else paths.stamps(own, ("*.yaml", "*.jsonl"))
    folders = [at] if card.source == "folder" else []
    encoder = card.encoder.partition(":")[2]
    if encoder and (read := Path(encoder).expanduser()).is_dir():
        folders.append(read)
    of_model = tuple(s for folder in folders for s in paths.stamps(folder, MODEL))
    one_file = [p for p in (at if card.source == "file" else None, card.lora and Path(card.lora)) if p]
    of_files = tuple(s for p in one_file for s in paths.stamps(p.parent, (glob.escape(p.name),)))
    return (*paths.run(card.id, group_set.id).stamp(), *of_set, *of_model, *of_files)
