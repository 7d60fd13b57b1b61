"""What `guda attribute` says of prompts that programs wrote into pictures' files. None is used by itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from guda_core.cli.terminal import note
from guda_core.errors import GudaError


def tell_prompt(data: bytes) -> None:
    """Say the prompt in a file's bytes, where there is one."""
    from guda_core.data.written_prompts import written_prompt

    if (found := written_prompt(data)) is not None:
        what = "a long prompt into this file. It begins" if found.cut else "a prompt into this file"
        note(f'{found.program} wrote {what}: "{found.prompt}". It was not used. To use it, add --prompt.')


def tell_prompts(paths: Sequence[Path]) -> None:
    """Say how many of the files have one. What cannot be read was refused before, and counts as none."""
    from guda_core.data.images import read_file
    from guda_core.data.written_prompts import written_prompt

    many = 0
    for path in paths:
        with suppress(GudaError):
            many += written_prompt(read_file(path)) is not None
    if many:
        note(
            f"Files that hold a prompt, written by a program: {many:,} of {len(paths):,}. These prompts were not used: "
            "give each picture its prompt with --prompts."
        )
