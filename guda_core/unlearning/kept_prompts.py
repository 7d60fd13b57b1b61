"""Embedded prompts that are kept, so that the text encoders need not stay on the device while a network is trained."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from guda_core.data.shards import Shards
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.condition import Condition

log = logging.getLogger(__name__)

MOST_BYTES = 4 * 2**30  # of prompts that are in memory alone; with more, the text encoders stay
A_SHARD = 64
RULE = 2  # of how prompts are embedded: one more where that changes and the model's hash does not


class KeptPrompts:
    """Prompts of one model. Each is embedded alone, so that nothing depends on which others it came with.

    folder: where they are kept; None = in memory alone.
    """

    def __init__(self, model: BaseModel, folder: Path | None = None) -> None:
        self.model = model
        self._reads = model.tokens("")[1]
        self.shards = Shards(folder, "prompts") if folder is not None else None
        self._kept: dict[str, Condition] = {}

    def key(self, prompt: str) -> str:
        """Of a prompt, for this model in its type, with as many tokens as it reads."""
        of = f"{RULE}\n{self.model.sha256}\n{self._reads}\n{self.model.dtype}\n{self.model.device.type}\n{prompt}"
        return hashlib.sha256(of.encode()).hexdigest()

    def fits(self, prompts: Iterable[str]) -> bool:
        """Whether so many prompts fit into memory. Those on disk need none: they are mapped from there."""
        if self.shards is not None:
            return True
        one = self._one("")
        size = sum(v.numel() * v.element_size() for v in one.tensors.values())
        return size * len(set(prompts)) <= MOST_BYTES

    def prepare(self, prompts: Iterable[str]) -> None:
        """Embed those that are not there yet.

        Raises:
            CacheError: they cannot be kept on disk.
        """
        missing = sorted(set(prompts) - set(self._kept))
        if self.shards is not None:
            found = self.shards.read([self.key(p) for p in missing])
            self._kept |= {p: Condition(found[k], 1) for p in missing if (k := self.key(p)) in found}
            missing = [p for p in missing if p not in self._kept]
        for i in range(0, len(missing), A_SHARD):
            made = {p: self._one(p) for p in missing[i : i + A_SHARD]}
            if self.shards is not None:
                file = self.shards.write({self.key(p): c.tensors for p, c in made.items()})
                found = self.shards.read_file(file, {self.key(p) for p in made})
                made |= {p: Condition(found[k], 1) for p in made if (k := self.key(p)) in found}
            self._kept |= made

    def _one(self, prompt: str) -> Condition:
        return self.model.embed([prompt]).to("cpu")

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """As the model's own `embed`. A prompt that was not prepared is embedded now."""
        for p in prompts:
            if p not in self._kept:
                with self.model.loaded(), torch.no_grad():
                    self._kept[p] = self._one(p)
        return Condition.cat([self._kept[p] for p in prompts]).to(self.model.device)


@contextmanager
def network_alone(model: BaseModel, kept: KeptPrompts, prompts: Callable[[], set[str]]) -> Iterator[None]:
    """Within the block only the network is on the device, if all the prompts that will be asked for can be kept."""
    wanted = prompts()
    if not kept.fits(wanted):
        log.warning("%d embedded prompts would not fit into memory; the text encoders stay.", len(wanted))
        yield
        return
    kept.prepare(wanted)
    with model.unloaded():
        yield
