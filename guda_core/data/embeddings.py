"""Networks that see likeness between pictures, and the feature bank of one.

Training pictures are not in the repository, so their features are: the feature bank holds one unit vector a picture.
The included one is a small CLIP (Radford et al. 2021); what else a model's card may name is in `encoders`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from guda_core.data.dataset import GroupDataset, Item, batches, middle
from guda_core.diffusion.memory import MEND, lacked_memory
from guda_core.diffusion.pace import seconds_of
from guda_core.diffusion.pixels import to_unit
from guda_core.errors import DataError, ModelError, NoRoomError
from guda_core.held_files import advice, replacing
from guda_core.records import GroupSet

BANK = "bank.safetensors"
READING = threading.RLock()  # whoever uses a tokenizer holds it: its settings change while it reads
BATCH = 128  # pictures at a time
TRIED = 4  # pictures, to say how long all of them will take
SAFELY: Any = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}  # how networks are read


class Encoder(ABC):
    """A network that sees likeness, and its feature bank.

    kind: "clip", "dinov2" or "csd". size: side of its pictures. sha256: of what enters its features. bank: the bank's
    file. reads_words: whether it has `text_features`. mend: the command that makes the bank.
    """

    kind: ClassVar[str] = "clip"
    reads_words: bool = False
    mend: str = "guda assets bank"
    size: int
    sha256: str
    bank: Path

    @abstractmethod
    def image_features(self, pixels: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32 of unit length, of their middle squares; other sizes are resampled."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D) float32 of unit length. Raises ModelError where it reads no words."""
        raise ModelError(f"This {self.kind} compares pictures alone. Comparing words needs a CLIP with its text tower.")

    def write_bank(self, features: dict[str, Tensor], data_sha256: str, group_set: str = "") -> None:
        """Save group id -> (N, D) features as the bank, as float16. group_set: id of their set, "" = not told.

        Raises:
            ModelError: it cannot be written, such as on a full disk; the bank of before stays.
        """
        meta = {
            "clip_sha256": self.sha256,
            "data_sha256": data_sha256,
            "counts": json.dumps({g: len(f) for g, f in features.items()}),
            **({"group_set": group_set} if group_set else {}),
        }
        try:
            self.bank.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.bank) as aside:
                save_file({g: f.to(torch.float16).contiguous() for g, f in features.items()}, aside, metadata=meta)
        except (OSError, SafetensorError) as e:
            what = advice(e, "Free some disk space")
            raise ModelError(
                f"The features cannot be written to {self.bank} ({str(e).rstrip('.')}). {what}, or name another "
                "--folder, and run the same command again."
            ) from e

    def check_place(self, group_set: GroupSet) -> None:
        """Before a bank is written. Raises ModelError when the bank that is there is another set's."""
        if not self.bank.is_file():
            return
        try:
            with safe_open(self.bank, framework="pt") as f:
                named, groups = (f.metadata() or {}).get("group_set", group_set.id), set(f.keys())
        except Exception:
            return  # a damaged one may be written over
        if named != group_set.id or not groups & set(group_set.groups):
            raise ModelError(
                f"{self.bank} is the bank of another group set ('{named}' of {', '.join(sorted(groups))}). Name "
                "another folder with --folder, or none for the workspace's own place."
            )

    def bank_sha256(self) -> str:
        """SHA-256 of the bank's file. Raises ModelError when there is none."""
        if not self.bank.is_file():
            raise ModelError(no_bank(self.mend))
        return hashlib.sha256(self.bank.read_bytes()).hexdigest()

    def bank_of_data(self) -> str | None:
        """`fingerprint` of the pictures that the bank was made of; None where it does not say."""
        try:
            with safe_open(self.bank, framework="pt") as f:
                return (f.metadata() or {}).get("data_sha256")
        except (OSError, SafetensorError):
            return None

    def read_bank(self) -> dict[str, Tensor]:
        """group id -> (N, D) float32 unit vectors.

        Raises:
            ModelError: the bank is missing, damaged, or of another network.
        """
        path = self.bank
        if not path.is_file():
            raise ModelError(no_bank(self.mend))
        try:
            with safe_open(path, framework="pt") as f:
                meta = f.metadata() or {}
                bank = {g: F.normalize(f.get_tensor(g).float(), dim=-1) for g in f.keys()}  # noqa: SIM118
        except FileNotFoundError as e:
            raise ModelError(
                f"There are no features of the training pictures ({path}). Make them with `guda assets bank`, with the "
                "same model and group set."
            ) from e
        except Exception as e:
            raise ModelError(f"The features of the training pictures ({path.name}) cannot be read: {e}") from e
        if meta.get("clip_sha256") != self.sha256:
            raise ModelError(f"{path.name} was made with another CLIP; make it again with `{self.mend}`.")
        return bank


def no_bank(mend: str) -> str:
    """What is said where there is no feature bank. mend: the command that makes it."""
    return f"There are no features of the training pictures for this model and group set. Make them with `{mend}`."


class Clip(Encoder):
    """The included CLIP, or another CLIPModel in a folder."""

    reads_words = True

    def __init__(self, folder: Path, bank: Path | None = None) -> None:
        """bank: where the bank is; default: beside the weights."""
        if not (folder / "config.json").is_file():
            raise ModelError(f"There is no CLIP in {folder}. Check out the repository with its assets.")
        try:
            self.model = CLIPModel.from_pretrained(folder, **SAFELY).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as e:
            if lacked_memory(e):
                raise NoRoomError(f"The CLIP in {folder} cannot be read: there is not enough memory. {MEND}") from e
            raise ModelError(f"The CLIP in {folder} is damaged or incomplete: {e}") from e
        self.model.requires_grad_(False)
        self.folder, self.bank = folder, bank or folder / BANK
        self.sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        self.size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]["image_size"]

    def image_features(self, pixels: np.ndarray) -> Tensor:
        out = []
        for i in range(0, len(pixels), BATCH):
            x = to_unit(middle(pixels[i : i + BATCH]))
            if x.shape[-1] != self.size:
                x = F.interpolate(x, size=(self.size, self.size), mode="area")
            with torch.no_grad():
                f = self.model.visual_projection(self.model.vision_model(x).pooler_output)
            out.append(F.normalize(f, dim=-1))
        return torch.cat(out)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return words(self.model.text_model, self.model.text_projection, self.tokenizer, texts)


def words(
    tower: torch.nn.Module, projection: torch.nn.Module, tokenizer: CLIPTokenizer, texts: Sequence[str]
) -> Tensor:
    """Texts -> (N, D) float32 of unit length, by a CLIP's text tower."""
    length = tokenizer.model_max_length
    with READING:
        ids = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        pooled = tower(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return F.normalize(projection(pooled), dim=-1)


def picture_seconds(clip: Encoder, items: Sequence[Item]) -> float:
    """Seconds of reading a picture and seeing its features, about: of the first few, the second time.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    few = [items[i] for i in range(min(TRIED, len(items)))]
    if not few:
        raise DataError("There are no pictures in this split.")
    return seconds_of(lambda: [clip.image_features(p) for p in batches(few, clip.size, TRIED)]) / len(few)


def make_bank(clip: Encoder, dataset: GroupDataset, tell: Callable[[float], object] = lambda done: None) -> None:
    """Write the feature bank of a dataset's training pictures. Few pictures are in memory at once. tell: hears the
    fraction that is done.

    Raises:
        ModelError: the bank that is there is another set's.
    """
    clip.check_place(dataset.group_set)
    items = dataset.split("train")
    found = list[Tensor]()
    for i, pixels in enumerate(batches(items, clip.size, BATCH), 1):
        found.append(clip.image_features(pixels))
        tell(min(1.0, i * BATCH / len(items)))
    features = torch.cat(found)
    by_group = {g: features[[i for i, item in enumerate(items) if item.group == g]] for g in dataset.group_set.groups}
    clip.write_bank(by_group, dataset.fingerprint(), dataset.group_set.id)
