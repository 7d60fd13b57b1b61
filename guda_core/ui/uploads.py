"""Files that come in and go out: only what was uploaded is read; nothing is written outside gradio's cache."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.data_classes import FileData, ImageData, ListFiles
from gradio.processing_utils import client_utils
from gradio.state_holder import SessionState
from gradio.utils import get_upload_folder

from guda_core import paths
from guda_core.errors import GudaError, ImageError, ReportError
from guda_core.reports import bundle
from guda_core.ui import words

NAME_BYTES = (
    80  # of an upload's name on Windows, where a path has 260 characters, and an upload's folder takes half of them
)
TAKES_FILES = "takes_files"  # what marks such a part


def uploaded(path: str | None, *, missing: GudaError | None = None) -> Path:
    """The path of an uploaded file, which lies in gradio's own cache.

    Raises:
        GudaError: `missing` (ImageError by default) when there is none.
        ImageError: it is a web address, data or a file that nobody uploaded.
    """
    if not path:
        raise missing or ImageError(words.NO_PICTURE)
    if path.startswith("data:") or "://" in path:
        raise ImageError(words.NOT_UPLOADED)
    try:
        named, cache = (Path(os.path.abspath(p)) for p in (path, get_upload_folder()))  # noqa: PTH100  (links stay)
        below = (cache, cache.resolve())
        # By its letters first: to look at \\host\share\x, Windows asks that host, and signs in there.
        full = named.resolve() if any(named.is_relative_to(c) for c in below) else None
    except (OSError, ValueError) as e:  # NUL in it, or a name that no file can have
        raise ImageError(words.NOT_UPLOADED) from e
    if full is None or not full.is_relative_to(below[1]) or paths.is_folder(full):
        raise ImageError(words.NOT_UPLOADED)
    return full


def names_fitted() -> None:
    """From here on gradio cuts an upload's name so that Windows takes its path, as it cuts every name at 200 bytes."""
    if sys.platform == "win32":
        cut = client_utils.strip_invalid_filename_characters
        client_utils.strip_invalid_filename_characters = partial(cut, max_bytes=NAME_BYTES)


def offered(name: str, data: bytes) -> str:
    """Write a file for download into gradio's cache, under a folder nobody can guess; it is swept with the uploads.

    Raises:
        ReportError: the disk is full or cannot be written to. Nothing is left behind.
    """
    folder = Path(get_upload_folder()) / "offered" / secrets.token_hex(20)
    try:
        bundle.write(folder / name, data)
    except ReportError as e:
        if folder.is_dir():
            folder.rmdir()
        raise ReportError(words.DISK) from e
    return str(folder / name)


def only_keep_the_path(part: gr.Image | gr.File) -> None:
    """Make a component hand over the paths, addresses or data it was given, and neither open nor fetch them.

    As it comes, gradio downloads a web address, decodes data: and opens every file with Pillow before any code of ours
    runs. Here `data.images` and `reports.read` are the one loader, and `uploaded` refuses what was not.
    """
    move = part.async_move_resource_to_block_cache

    async def move_own_files(path: str | None) -> str | None:
        plain = path is not None and "://" not in str(path) and paths.is_file(path)
        return await move(path) if plain else path  # gradio's sweeper ends at a folder

    def preprocess(payload: ImageData | FileData | ListFiles | None) -> str | list[str] | None:
        if isinstance(payload, ListFiles):
            return [found for file in payload.root if (found := file.path or file.url)]
        return None if payload is None else payload.path or payload.url

    vars(part).update(async_move_resource_to_block_cache=move_own_files, preprocess=preprocess, **{TAKES_FILES: True})


class Page(gr.Blocks):
    """A page on which only the parts that take files are given any.

    As it comes, gradio fetches the address that a call names as a file, for whatever part: also for a text.
    """

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: SessionState | None, explicit_call: bool = False
    ) -> list[Any]:
        parts: Sequence[Any] = block_fn.inputs
        for part, given in zip(parts, inputs, strict=False):
            if TAKES_FILES not in vars(part):
                client_utils.traverse(given, _refused, client_utils.is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def _refused(file: object) -> None:
    raise gr.Error(words.NOT_UPLOADED, visible=False, print_exception=False)
