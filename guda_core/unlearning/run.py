"""The offline half of GUDA for one base model: which adapters are wanted, making them, and measuring their health."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from guda_core.data.captions import style_caption
from guda_core.data.dataset import Pictures
from guda_core.data.embeddings import Clip
from guda_core.data.images import hash_pixels
from guda_core.data.sources.base import load_pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model
from guda_core.errors import AdapterError, OptionError
from guda_core.paths import ASSETS
from guda_core.records import GroupSet
from guda_core.unlearning import adapters
from guda_core.unlearning.adapters import HEALTH, OFFSET
from guda_core.unlearning.guda_c import UnlearnConfig, unlearn
from guda_core.unlearning.loop import Progress
from guda_core.versions import versions


def config_of(*, whole: bool = False, rank: int | None = None, **changes: Any) -> UnlearnConfig:
    """The default settings with changes; a change that is None is left out.

    whole: fine-tune the whole denoiser. rank: of the LoRA. steps, batch, lr, warmup, seed: of the loop; others: of
    UnlearnConfig.
    """
    given = {k: v for k, v in changes.items() if v is not None}
    loop = {k: given.pop(k) for k in ("steps", "batch", "lr", "warmup", "seed") if k in given}
    config = UnlearnConfig(**given)
    lora = None if whole else config.lora
    if lora is not None and rank is not None:
        lora = dataclasses.replace(lora, rank=rank, alpha=rank)
    return dataclasses.replace(config, lora=lora, loop=dataclasses.replace(config.loop, **loop))


KINDS = {  # of pictures that an adapter's health is measured on -> how a table's head says it
    "forgotten_prompt": "forgotten, prompt",
    "others_prompt": "others, prompt",
    "forgotten_empty": "forgotten, empty",
    "others_empty": "others, empty",
    "held_out_empty": "held out, empty",
    OFFSET: "others, held out, empty",
}


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """pictures: of each kind but one. held_out: of that one, from which GUDA's scores have their offset
    (`methods.guda`): held-out pictures, as many of each group and the same for all adapters, each of which meets those
    of the other groups. draws: in each of the strata of timesteps. seed: which pictures."""

    pictures: int = 16
    held_out: int = 160
    strata: int = 24
    draws: int = 1
    seed: int = 17


class Forgetting:
    """Makes and measures adapters of one base model. Pictures and latents are loaded once."""

    def __init__(self, group_set: GroupSet, *, model: str | None = None, folder: Path | None = None) -> None:
        card = find_card(model or DEFAULT_MODEL)
        self.group_set, self.card = group_set, card
        self.folder = folder or ASSETS / "adapters" / card.id
        self.model = load_model(card)
        self.clip = Clip(ASSETS / "clip")
        self._pictures: Pictures | None = None
        self._latents: Tensor | None = None
        self._full: dict[tuple[Any, ...], np.ndarray] = {}

    def known(self, wanted: Sequence[str]) -> list[str]:
        """The groups asked for, all for (). Raises OptionError for one that the set does not have."""
        for g in wanted:
            if g not in self.group_set.groups:
                raise OptionError(f"There is no group '{g}'. Known: {', '.join(self.group_set.groups)}.")
        return list(wanted or self.group_set.groups)

    def _whole(self, gid: str) -> bool:
        try:
            return adapters.read_meta(self.folder / gid).get("kind") == "whole"
        except AdapterError:
            return False

    def _fits(self, gid: str) -> bool:
        load = adapters.load_whole if self._whole(gid) else adapters.load
        try:
            load(self.folder / gid, base_sha256=self.model.sha256, group=gid)
        except AdapterError:
            return False
        return True

    def pending(self, wanted: Sequence[str], *, again: bool) -> list[str]:
        """The wanted groups (none named: all) that have no fitting adapter yet, or all of them with `again`."""
        return [g for g in self.known(wanted) if again or not self._fits(g)]

    def resized(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 at the model's resolution."""
        size = self.card.resolution
        if pixels.shape[0] == size:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))

    def training_pictures(self) -> tuple[Pictures, Tensor]:
        """The train split and its latents (N, C, h, w)."""
        if self._pictures is None or self._latents is None:
            self._pictures = load_pictures(self.group_set, "train")
            self._latents = torch.cat([self.model.encode(self.resized(p)) for p in self._pictures.pixels])
        return self._pictures, self._latents

    def unlearn(self, gid: str, config: UnlearnConfig) -> Iterator[Progress]:
        """Unlearn one group into its adapter folder."""
        torch.set_flush_denormal(True)
        pictures, latents = self.training_pictures()
        (self.folder / gid / HEALTH).unlink(missing_ok=True)
        began, cpu = time.monotonic(), time.process_time()
        meta = {
            "model": self.card.id,
            "group_set": self.group_set.id,
            "data_sha256": pictures.sha256(),
            "clip_sha256": self.clip.sha256,
            "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        yield from unlearn(
            self.model,
            self.group_set,
            pictures,
            latents,
            gid,
            text_features=self.clip.text_features,
            config=config,
            folder=self.folder / gid,
            meta=meta,
        )
        seconds = {
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        timing = {**seconds, "torch_threads": torch.get_num_threads()}
        (self.folder / gid / "timing.json").write_text(json.dumps(timing), encoding="utf-8")

    def unmeasured(self, wanted: Sequence[str]) -> list[str]:
        """The wanted groups whose LoRA fits but whose health has not been measured, or was of another adapter."""
        fits = [g for g in self.known(wanted) if self._fits(g) and not self._whole(g)]
        own = {g: adapters.read_meta(self.folder / g)["sha256"] for g in fits}
        return [g for g in fits if not adapters.read_health(self.folder / g, own[g])]

    def _offset(
        self, held: Pictures, config: HealthConfig, apart: Collection[tuple[str, str]]
    ) -> list[tuple[str, np.ndarray]]:
        """(group, pixels) of the held-out pictures that all adapters are measured on; none of `apart`."""
        g = torch.Generator().manual_seed(config.seed)
        of: dict[str, list[int]] = {k: [] for k in self.group_set.groups}
        for i in torch.randperm(len(held), generator=g).tolist():
            if (held.groups[i], held.objects[i]) not in apart:
                of[held.groups[i]].append(i)
        each = config.held_out // len(of)
        return [(k, held.pixels[i]) for k, places in of.items() for i in places[:each]]

    def _kinds(
        self, gid: str, config: HealthConfig, apart: Collection[tuple[str, str]]
    ) -> dict[str, list[tuple[np.ndarray, str]]]:
        g = torch.Generator().manual_seed(config.seed)
        train, _ = self.training_pictures()
        held = load_pictures(self.group_set, "held_out")

        def some(p: Pictures, keep: Any, prompt: bool) -> list[tuple[np.ndarray, str]]:
            q = p.where(keep)
            at = torch.randperm(len(q), generator=g)[: config.pictures].tolist()
            return [
                (q.pixels[i], style_caption(self.group_set, q.objects[i], q.groups[i], g) if prompt else "") for i in at
            ]

        return {
            "forgotten_prompt": some(train, lambda k, o: k == gid, True),
            "others_prompt": some(train, lambda k, o: k != gid, True),
            "forgotten_empty": some(train, lambda k, o: k == gid, False),
            "others_empty": some(train, lambda k, o: k != gid, False),
            "held_out_empty": some(held, lambda k, o: k == gid, False),
            OFFSET: [(p, "") for k, p in self._offset(held, config, apart) if k != gid],
        }

    def measure(
        self, gid: str, config: HealthConfig | None = None, apart: Collection[tuple[str, str]] = ()
    ) -> Iterator[float]:
        """Mean ELBO fall in nats with its standard error, by kind of picture; yields the fraction done.

        Forgotten and other pictures with their prompt and without, and held-out objects (own style and others) without.
        apart: (group, object) of held-out pictures that the offset must not be made of: a benchmark's queries.
        """
        config = config or HealthConfig()
        adapter = adapters.load(self.folder / gid, base_sha256=self.model.sha256, group=gid)
        strata = likelihood.make_strata(self.model.schedule, config.strata)
        kinds = self._kinds(gid, config, apart)
        record: dict[str, Any] = {}
        done, all_of_them = 0, sum(len(p) for p in kinds.values())
        for kind, pictures in kinds.items():
            falls = []
            for pixels, prompt in pictures:
                pixels = self.resized(pixels)
                latent, cond = self.model.encode(pixels), self.model.embed([prompt])
                draws = likelihood.draw_times(hash_pixels(pixels), strata, config.draws)
                columns = list(range(config.draws))
                key = (draws.image_hash, prompt, strata, config.draws)  # the same for every group
                if key not in self._full:
                    self._full[key] = likelihood.kl_values(self.model, latent, cond, draws, columns)
                full = self._full[key]
                with adapters.applied(self.model.network, adapter):
                    without = likelihood.kl_values(self.model, latent, cond, draws, columns)
                falls.append(likelihood.elbo_drop(full=full, without=without, strata=strata).value)
                done += 1
                yield done / all_of_them
            record[kind] = {
                "mean": float(np.mean(falls)),
                "se": float(np.std(falls, ddof=1) / len(falls) ** 0.5),
                "n": len(falls),
            }
        record |= {"unit": "nats", "adapter_sha256": adapter.meta["sha256"], "left_out": len(apart)}
        record |= {"config": {**dataclasses.asdict(config), "rule": likelihood.RULE}, "versions": versions()}
        (self.folder / gid / HEALTH).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def health(self) -> dict[str, dict[str, Any]]:
        """Group id -> its stored health."""
        files = {g: self.folder / g / HEALTH for g in self.group_set.groups}
        return {g: json.loads(p.read_text(encoding="utf-8")) for g, p in files.items() if p.is_file()}
