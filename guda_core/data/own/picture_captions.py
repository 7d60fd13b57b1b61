"""Captions for pictures that have none, by a network of transformers that says what a picture shows (BLIP, GIT and
their like: such as need no instruction).

What it says is a picture's content; how a caption says its group is the set's own (`data.captions`). Each caption
stands in the set's list with the network's name, so that it is known for what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from guda_core.data.own.found import words
from guda_core.data.own.picture_list import FILE, Listed, write_list
from guda_core.data.sources.listed import ListedFiles
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.devices import chosen_device
from guda_core.diffusion.memory import Fitting, in_batches, is_out_of_memory
from guda_core.errors import DataError, GroupSetError, ModelError, NoRoomError
from guda_core.from_hub import PREFIX, bring
from guda_core.paths import at_home, is_folder, sets
from guda_core.records import GroupSet

WANTED = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "model*.safetensors",
    "model.safetensors.index.json", "tokenizer*.json", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json",
)  # fmt: skip
TOKENS = 40  # that a caption may have
AT_ONCE = 8  # pictures, or fewer, as many as fit into memory
NO_ROOM = "There is not enough memory to load '{place}'. Close other programs, or name a smaller network."
Say = Callable[[Sequence[Image.Image]], list[str]]


class PictureCaptioner:
    """A network that captions pictures, on the GPU where there is one.

    place: a folder, or USER/NAME on the Hugging Face Hub (also with hub: before it).

    Raises:
        ModelError: it cannot be brought or read, is too large for the memory, or is none that captions pictures.
    """

    def __init__(self, place: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = at_home(place) if is_folder(at_home(place)) else bring(place.removeprefix(PREFIX), WANTED)
        self.name = place.removeprefix(PREFIX) if not is_folder(at_home(place)) else Path(folder).name
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except Exception as e:
            if is_out_of_memory(e):
                raise NoRoomError(NO_ROOM.format(place=place)) from e
            raise ModelError(
                f"'{place}' holds no network that captions pictures, or it cannot be read ({type(e).__name__}). Name a "
                "BLIP or a GIT: a folder, or USER/NAME on the Hugging Face Hub."
            ) from e
        self.device = chosen_device()
        try:
            self.model = model.to(self.device).eval().requires_grad_(False)
        except Exception as e:
            if not is_out_of_memory(e):
                raise
            raise NoRoomError(NO_ROOM.format(place=place)) from e
        self._fits = Fitting(AT_ONCE)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption of each picture, without sampling: the same each time.

        Raises:
            ModelError: the network needs more than the picture. NoMemoryError: not even one picture fits into memory.
        """
        try:
            return in_batches(self._said_of, pictures, self._fits)
        except (DataError, ValueError, TypeError, RuntimeError, IndexError) as e:
            raise ModelError(f"'{self.name}' could not caption a picture by itself ({e}). Try a BLIP or a GIT.") from e

    def _said_of(self, pictures: Sequence[Image.Image]) -> list[str]:
        read = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        written = self.model.generate(**read, max_new_tokens=TOKENS, do_sample=False)
        return [words(t, "A caption") for t in self.processor.batch_decode(written, skip_special_tokens=True)]


def captioned(
    group_set: GroupSet,
    say: Say,
    name: str,
    *,
    again: bool = False,
    batch: int = AT_ONCE,
    tell: Callable[[float], object],
) -> tuple[int, int]:
    """Write captions of all pictures that have none into the set's list; (made now, were there).

    say: pictures -> captions. name: of the network. again: also in place of captions that a network made. tell: hears
    the share that is done. What is made is written after each batch, so that a call that was stopped goes on.

    Raises:
        GroupSetError: the set is not one of your own, or its captions hold no content.
        DataError: a picture or the list cannot be opened. ModelError: from `say`.
    """
    dataset = open_dataset(group_set)
    folder = sets().own(group_set.id)
    if not isinstance(dataset, ListedFiles) or group_set.folder != folder:
        raise GroupSetError(f"'{group_set.id}' is no set of your own pictures in the workspace.")
    if "{content}" not in group_set.caption:
        raise GroupSetError(
            f"The captions of '{group_set.id}' hold no content ('{group_set.caption}'), so that none is needed. For "
            "captions, write the set with a phrase: `guda groups new --again --phrase`."
        )
    rows = list(dataset.pictures)
    wanted = [i for i, p in enumerate(rows) if (again and p.captioned_by) or not (p.text or p.object)]
    items = {item.id: item for split in ("train", "held_out") for item in dataset.split(split)}
    for start in range(0, len(wanted), batch):
        at = wanted[start : start + batch]
        seen = [items[f"{rows[i].group}/{rows[i].picture}"].seen(group_set.resolution) for i in at]
        for i, text in zip(at, say([Image.fromarray(pixels) for pixels in seen]), strict=True):
            rows[i] = rows[i].model_copy(update={"text": text, "captioned_by": name if text else ""})
        _write(folder / FILE, rows)
        tell((start + len(at)) / len(wanted))
    return len(wanted), len(rows) - len(wanted)


def _write(path: Path, rows: Sequence[Listed]) -> None:
    try:
        write_list(path, rows)
    except OSError as e:
        raise DataError(f"The captions cannot be written to {path}: {e.strerror or e}.") from e
