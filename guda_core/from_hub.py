"""A folder of the Hugging Face Hub in place of one on this machine: `hub:user/name`, or `hub:user/name@revision`.

What is brought: safetensors, JSON, YAML, pictures (PNG), pages (Markdown), and a tokenizer's lists. Pickles and code
are left where they are. Everything lies in the hub's own cache (HF_HOME) and is read only; without a network,
the copy of before is used.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from guda_core.errors import ModelError, OptionError, causes, first_line

log = logging.getLogger(__name__)
PREFIX = "hub:"
NAME = re.compile(r"hub:([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w][\w./-]*))?")
COMMIT = re.compile("[0-9a-f]{40}")
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


def held(text: str) -> str:
    """The same workspace, held on to the state of it that this process has."""
    return f"{PREFIX}{repository(text)[0]}@{snapshot(text).name}"


@functools.cache
def _snapshot(text: str, endpoint: str | None, cache: str | None) -> Path:
    name, revision = repository(text)
    try:
        return copy_of(name, KINDS, revision).resolve()
    except Exception as e:
        raise OptionError(
            f"The workspace {text} could not be brought from the Hugging Face Hub, and there is no complete copy of "
            f"before: {why_not(e, name)}"
        ) from e


def bring(name: str, patterns: Sequence[str]) -> Path:
    """The local copy of those files of a repository, user/name.

    Raises:
        ModelError: it is no name of a repository, or cannot be reached, and there is no complete copy of before.
    """
    try:
        repository(PREFIX + name)
        return copy_of(name, patterns)
    except OptionError:
        raise ModelError(f"'{name}' is no folder here, and no USER/NAME of the Hugging Face Hub.") from None
    except Exception as e:
        why = why_not(e, name, "Connect to the internet once so that it is cached, or name a folder.")
        raise ModelError(
            f"'{name}' is no folder here, and could not be brought from the Hugging Face Hub: {why}"
        ) from e


def copy_of(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local copy of those files of a repository; the last whole one where the Hub gives none. Raises what its
    library raises."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    endpoint, cache = os.environ.get("HF_ENDPOINT"), os.environ.get("HF_HUB_CACHE")
    ask = functools.partial(snapshot_download, name, allow_patterns=list(patterns), endpoint=endpoint, cache_dir=cache)
    try:
        if not COMMIT.fullmatch(revision or ""):  # by its commit first: a copy that is cut short replaces no whole one
            ask(revision=HfApi(endpoint=endpoint).model_info(name, revision=revision).sha)
        return Path(ask(revision=revision))
    except Exception as error:
        try:
            found = Path(ask(revision=revision, local_files_only=True))
        except Exception:
            raise error  # noqa: B904  (with its own cause)
        if not isinstance(error, OfflineModeIsEnabled):
            why = why_not(error, name, "").strip()
            log.warning("%s is used as it was brought before. It could not be brought anew: %s", name, why)
        return found


def why_not(error: Exception, name: str, without: str = "Connect to the internet once so that it is cached.") -> str:
    """Why the Hub does not give a repository, and what to do about it. without: what to do without a network."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    for cause in causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError):
            return (
                "its authors give it to those who accept its licence. Accept it on "
                f"https://huggingface.co/{name}, then log in with `hf auth login`."
            )
        if isinstance(cause, RepositoryNotFoundError):
            return "there is none of that name, or it is private. Correct the name, or log in with `hf auth login`."
        if isinstance(cause, RevisionNotFoundError):
            return "it has no such revision. Correct what follows the @."
        if status in (401, 403):
            return (
                f"it was refused ({first_line(cause)}). Log in again with `hf auth login`, with a token that is valid "
                "and may read it, or correct HF_TOKEN."
            )
        if status == 429:
            return (
                f"it was asked for too often ({first_line(cause)}). Wait some minutes, or log in with `hf auth login`."
            )
        if getattr(cause, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(cause):
            return "the disk is full. Make room, or set HF_HOME to a folder on another disk."
    said = first_line(error)
    return f"{said if said == type(error).__name__ else f'{type(error).__name__}: {said}'}. {without}"


def forget() -> None:
    """From here on repositories are asked for again in this process."""
    _snapshot.cache_clear()
