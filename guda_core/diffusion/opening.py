"""Opens a card's files as one of diffusers' pipelines, on the CPU and in the types that they are stored in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from guda_core.diffusion import checks, weights
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.memory import damaged
from guda_core.diffusion.model_files import INDEX, folder_of, read_json
from guda_core.errors import ModelError

NEVER = ("safety_checker", "image_encoder", "feature_extractor")  # parts that are left out wherever they are


def quieten_libraries() -> None:
    """Keep the libraries' progress bars and loading reports off a terminal that has its own."""
    for quiet in (diffusers_logging, transformers_logging):
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()


def open_pipeline(
    card: Card, pipeline: type[DiffusionPipeline], parts: Sequence[str], without: Mapping[str, Any]
) -> tuple[Any, Path]:
    """Open a card's model: diffusers' pipeline, and the folder with its settings (not its weights, when they are a
    single file).

    parts: names of those whose weights enter a score. without: further arguments of the pipeline; a part that is None
    there may be absent.

    Raises:
        ModelError: the files are missing, damaged, of another family, or pickles.
    """
    files = None
    if card.source == "file":
        from guda_core.diffusion.single_file import layout_of, open_file

        folder = layout_of(Path(card.path))
        checks.check_numbers(card, folder)
        pipe = open_file(card, pipeline, without)
    else:
        folder = folder_of(card)
        checks.check_layout(card, folder, (pipeline.__name__,))
        pipe, files = _open_folder(card, folder, pipeline, parts, without)
    modules = {p: m for p in parts if (m := getattr(pipe, p, None)) is not None}
    weights.check_whole(card, modules, files)
    return pipe, folder


def _open_folder(
    card: Card, folder: Path, pipeline: type[DiffusionPipeline], parts: Sequence[str], without: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Sequence[Path]]]:
    """The pipeline, and the files that its parts were read from."""
    variant, files = weights.of_parts(card, folder, parts)
    pickled = [p for p, own in files.items() if not own and list((folder / p).glob("*.bin"))]
    if pickled:
        raise ModelError(
            f"The model '{card.id}' in {folder} holds its {pickled[0]} as a pickle (.bin), which can run code when it "
            "is opened. Use a copy with .safetensors files."
        )
    named = {p for p, value in read_json(folder / INDEX).items() if value not in (None, [None, None])}
    without = {p: v for p, v in without.items() if v is not None or p not in named or p in NEVER}
    types: dict[str, Any] = {p: weights.stored_type(own[0]) for p, own in files.items() if own}
    dtype = {**types, "default": torch.float32}
    with damaged(f"The model '{card.id}' in {folder} is damaged or incomplete"):
        pipe = pipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, variant=variant or None, **without)
    return pipe, files
