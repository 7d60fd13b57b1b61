"""A folder of the Hugging Face Hub in place of one on this machine: `hub:user/name`, or `hub:user/name@revision`.

What is brought: safetensors, JSON, YAML, pictures (PNG), pages (Markdown), and a tokenizer's lists. Pickles and code
are left where they are. Everything lies in the hub's own cache (HF_HOME) and is read only; without a network,
the copy of before is used.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from guda_core.errors import ModelError, OptionError

PREFIX = "hub:"
NAME = re.compile(r"hub:([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w][\w./-]*))?")
TOKENIZERS = ("*merges.txt", "*vocab.txt", "*spiece.model")
KINDS = ("*.safetensors", "*.json", "*.jsonl", "*.yaml", "*.png", "*.md", *TOKENIZERS)


def is_named(text: str | None) -> bool:
    """Whether the text names a repository of the hub, well or badly."""
    return bool(text) and str(text).startswith(PREFIX)


def repository(text: str) -> tuple[str, str | None]:
    """(user/name, revision or None).

    Raises:
        OptionError: it is not written as `hub:user/name` or `hub:user/name@revision`.
    """
    found = NAME.fullmatch(text)
    if found is None or ".." in text:
        raise OptionError(
            f"'{text[:120]}' names no workspace of the hub. Write hub:USER/NAME or hub:USER/NAME@REVISION."
        )
    return found[1], found[2]


def snapshot(text: str) -> Path:
    """The local copy of a repository, brought once for each process.

    Raises:
        OptionError: the name is wrong, or the repository cannot be reached and there is no complete copy of before.
    """
    return _snapshot(text, os.environ.get("HF_ENDPOINT"), os.environ.get("HF_HUB_CACHE"))


@functools.cache
def _snapshot(text: str, endpoint: str | None, cache: str | None) -> Path:
    from huggingface_hub import snapshot_download

    name, revision = repository(text)
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(KINDS), endpoint=endpoint, cache_dir=cache
        )
    except Exception as e:
        raise OptionError(
            f"The workspace {text} could not be brought from the Hugging Face Hub ({type(e).__name__}), and there is "
            "no complete copy of before. Check its name and revision, and connect to the internet once so that it is "
            "cached."
        ) from e
    return Path(folder).resolve()


def bring(name: str, patterns: Sequence[str]) -> Path:
    """The local copy of those files of a repository, user/name.

    Raises:
        ModelError: it is no name of a repository, or cannot be reached, and there is no complete copy of before.
    """
    from huggingface_hub import snapshot_download

    try:
        repository(PREFIX + name)
        found = snapshot_download(
            name,
            allow_patterns=list(patterns),
            endpoint=os.environ.get("HF_ENDPOINT"),
            cache_dir=os.environ.get("HF_HUB_CACHE"),
        )
    except Exception as e:
        raise ModelError(
            f"'{name}' is no folder here, and could not be brought from the Hugging Face Hub ({type(e).__name__}). "
            "Connect to the internet once so that it is cached, or name a folder."
        ) from e
    return Path(found)


def forget() -> None:
    """From here on repositories are asked for again in this process."""
    _snapshot.cache_clear()
