"""The oracle of one's own: a base model fine-tuned on a group set, and fine-tuned again without each group.

What is made lies in the workspace, under the name of the fine-tuned model, by default <base>-<set>:

    models/<name>.yaml                card of the fine-tuned model: `--model <name>` finds it
    runs/<name>/<set>/logo/full/      its LoRA (or, of a whole network, the model in diffusers' layout) and `tuned.json`
    runs/<name>/<set>/oracle/<group>  what takes it to the model without the group: the product's method `logo` reads it
    runs/<name>/<set>/logo/second/<group>   the same from a second seed, for the ceiling

With LoRAs, L of the full and L_k of the model without k, the second is stored as L_k - L, a LoRA of twice the rank
(`fine_tuning.less`). Whole networks are stored in float16.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from experiments.logo.fine_tuning import FineTuneConfig, fine_tune, less
from experiments.logo.sharing import work_through
from guda_core import paths
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import find_card, known_cards, load_model
from guda_core.errors import AdapterError, ModelError, OptionError, TrainingError
from guda_core.paths import cache_dir
from guda_core.unlearning import adapter_files, adapters
from guda_core.unlearning.config import differing
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.lora import LoraSpec
from guda_core.unlearning.run import Forgetting
from guda_core.versions import today, versions
from guda_core.work_queue import claimed

RECORD, MODEL, SECOND = "tuned.json", "model", "second"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Job:
    """One training: without the group `exclude` (None: the full model), from `seed`."""

    exclude: str | None
    seed: int
    second: bool = False

    @property
    def name(self) -> str:
        return f"{'full' if self.exclude is None else f'without-{self.exclude}'}-s{self.seed}"


class OwnOracle:
    """The trainings of one base model, group set and settings.

    base: the model, its group set and its pictures. seeds: the first is of the full model and the oracle, a second of
    the ceiling. groups: that are left out in turn; () = all. name: of the fine-tuned model.

    Raises:
        OptionError: the name is taken or none, there are more than two seeds, or no such group.
    """

    def __init__(
        self,
        base: Forgetting,
        config: FineTuneConfig,
        *,
        seeds: Sequence[int] = (),
        groups: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        self.base, self.config = base, config
        self.seeds = tuple(seeds) or (config.loop.seed,)
        if len(self.seeds) > 2 or len(set(self.seeds)) < len(self.seeds):
            raise OptionError("--seeds takes one seed, or two different ones: the second is for the ceiling.")
        known = base.known(groups)
        self.groups = [g for g in base.group_set.groups if g in known]
        self.name = name or f"{base.card.id}-{base.group_set.id}"
        if not NAME.fullmatch(self.name):
            raise OptionError(f"'{self.name}' cannot name a model. Use --name with small letters, digits and hyphens.")
        self.run = paths.run(self.name, base.group_set.id)
        self.folder = self.run.own / "logo"
        self._check_name()
        if config.lora is not None and base.card.lora:
            raise OptionError(
                f"The model '{base.card.id}' has a LoRA already, and a second one cannot be merged. Use --whole."
            )

    def _check_name(self) -> None:
        path, found = self.card_path, known_cards().get(self.name)
        if found is not None and not path.is_file():
            raise OptionError(f"There is a model '{self.name}' already. Choose another name: --name.")

    @property
    def card_path(self) -> Path:
        """Of the fine-tuned model's card."""
        return paths.home() / "models" / f"{self.name}.yaml"

    @cached_property
    def made_from(self) -> dict[str, str]:
        """What all trainings depend on, beside the group left out and the seed."""
        return {
            "base_sha256": self.base.model.sha256,
            "settings_sha256": self.config.sha256(),
            "data_sha256": self.base.pictures().sha256(),
        }

    def tuned(self) -> dict[str, Any] | None:
        """The full model's record, None while it is not trained.

        Raises:
            TrainingError: it was trained from something else, or with other settings.
        """
        path = self.folder / "full" / RECORD
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        mine = {**self.made_from, "seed": self.seeds[0]}
        words = {"base_sha256": "base model", "settings_sha256": "settings", "data_sha256": "pictures", "seed": "seed"}
        changed = [words[k] for k, v in mine.items() if record.get(k) != v]
        if changed:
            now = json.loads(json.dumps(asdict(self.config_of(Job(None, self.seeds[0])))))
            which = differing(record.get("config", {}), now)
            raise TrainingError(
                f"The model '{self.name}' was fine-tuned with other {' and '.join(changed)}"
                f"{f': {which}' if which else ''}. Use the same again, or make another model: --name NAME."
            )
        return record

    def queue(self) -> list[Job]:
        """All trainings in the order of work: the full model, every group left out, the same from the second seed."""
        first = [Job(None, self.seeds[0]), *[Job(g, self.seeds[0]) for g in self.groups]]
        return first + [Job(g, s, second=True) for s in self.seeds[1:] for g in self.groups]

    def oracle_folder(self, *, second: bool = False) -> Path:
        """Of the models without a group."""
        return self.folder / SECOND if second else self.run.own / "oracle"

    def is_done(self, job: Job) -> bool:
        """Whether its result is there and was made from just this."""
        record = self.tuned()
        if job.exclude is None or record is None:
            return record is not None
        try:
            meta = adapters.read_meta(self.oracle_folder(second=job.second) / job.exclude)
        except AdapterError:
            return False
        wanted = {**self.made_from, "base_sha256": record["sha256"], "seed": job.seed, "group": job.exclude}
        return {k: meta.get(k) for k in wanted} == wanted

    def checkpoint(self, job: Job) -> Path:
        """Where a training that is stopped keeps itself."""
        key = hashlib.sha256(json.dumps([self.made_from, job.name]).encode()).hexdigest()[:16]
        return cache_dir() / "logo" / f"{self.name}--{job.name}--{key}.pt"

    def claim(self, job: Job) -> Path:
        """What the claim on a job is named after (`work_queue.claimed`)."""
        return cache_dir() / "logo" / f"{self.name}--{self.base.group_set.id}--{job.name}"

    def in_hand(self, job: Job) -> AbstractContextManager[bool]:
        """The claim on a job. All others need the full model, so it is waited for."""
        return claimed(self.claim(job), wait=job.exclude is None)

    def work(self, minutes: float | None = None) -> Iterator[tuple[Job, Progress]]:
        """Work through the queue; see `work_through`."""
        if self.tuned() is not None and not self.card_path.is_file():
            _write_card(self.card_path, self._card(self.folder / "full"))
        yield from work_through(
            self.queue(), in_hand=self.in_hand, is_done=self.is_done, steps=self.steps, minutes=minutes
        )

    def missing(self) -> list[Job]:
        """What is not done yet."""
        return [job for job in self.queue() if not self.is_done(job)]

    def config_of(self, job: Job) -> FineTuneConfig:
        return dataclasses.replace(self.config, loop=dataclasses.replace(self.config.loop, seed=job.seed))

    def steps(self, job: Job) -> Generator[Progress, None, None]:
        """One training and what is written at its end."""
        torch.set_flush_denormal(True)
        began, first, checkpoint = time.monotonic(), 0, self.checkpoint(job)
        training = fine_tune(self.base, self.config_of(job), exclude=job.exclude, checkpoint=checkpoint)
        while True:
            try:
                p = next(training)
            except StopIteration as end:
                made = end.value
                break
            first = first or p.step
            try:
                yield p
            except GeneratorExit:
                training.close()
                raise
        spent: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
        if first > 1:
            spent["from_step"] = first - 1
        if job.exclude is None:
            self._write_full(made, spent)
        else:
            self._write_without(job, made, spent)
        checkpoint.unlink(missing_ok=True)

    def _meta(self, job: Job) -> dict[str, Any]:
        more = {"seed": job.seed, "group_set": self.base.group_set.id, "config": asdict(self.config_of(job))}
        return {**self.made_from, **more, "versions": versions(), "date": today()}

    def _write_full(self, made: dict[str, Tensor], spent: dict[str, Any]) -> None:
        """The fine-tuned model, its card, and last its record."""
        where, spec = self.folder / "full", self.config.lora
        (where / RECORD).unlink(missing_ok=True)
        meta = self._meta(Job(None, self.seeds[0]))
        if spec is not None:
            adapters.save_factors(made, where, spec=spec, meta={**meta, "group": ""})
        else:
            _save_model(self.base.model, made, where / MODEL)
        _write_card(self.card_path, self._card(where))
        tuned = load_model(find_card(self.name), device="cpu", dtype=torch.float32)
        record = {**meta, "base": self.base.card.id, "sha256": tuned.sha256, "timing": spent}
        (where / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def _card(self, where: Path) -> Card:
        card, gs = self.base.card, self.base.group_set
        changes: dict[str, Any] = {"id": self.name, "name": f"{card.name}, fine-tuned on {gs.name}"}
        changes |= {"group_set": gs.id, "only_groups": False}
        up = f"../{where.relative_to(paths.home()).as_posix()}"
        if self.config.lora is not None:
            return dataclasses.replace(card, **changes, lora=f"{up}/{adapter_files.LORA}")
        return dataclasses.replace(card, **changes, source="folder", path=f"{up}/{MODEL}", lora="")

    def _write_without(self, job: Job, made: dict[str, Tensor], spent: dict[str, Any]) -> None:
        record, spec = self.tuned(), self.config.lora
        assert record is not None and job.exclude is not None
        folder = self.oracle_folder(second=job.second) / job.exclude
        meta = {**self._meta(job), "model": self.name, "group": job.exclude, "base_sha256": record["sha256"]}
        if spec is None:
            adapters.save_weights(made, folder, meta=meta)
        else:
            full = load_file(self.folder / "full" / adapter_files.LORA)
            full = {n.removeprefix(adapter_files.PREFIX): t for n, t in full.items()}
            twice = LoraSpec(2 * spec.rank, 2 * spec.alpha, spec.targets)
            adapters.save_factors(less(made, full), folder, spec=twice, meta=meta)
        (folder / adapter_files.TIMING).write_text(json.dumps(spent), encoding="utf-8")


def _save_model(base: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """The base model's pipeline with these weights (float16) in place of its network's, in diffusers' layout.

    Raises:
        ModelError: the model is of no family that diffusers keeps as a pipeline.
    """
    pipe = getattr(base, "pipe", None)
    if pipe is None:
        raise ModelError(f"The model '{base.card.id}' cannot be saved as a pipeline of diffusers.")
    network, own = base.network, {n: p.detach().clone() for n, p in base.network.state_dict().items()}
    try:
        network.load_state_dict(weights)
        pipe.save_pretrained(folder)
    finally:
        network.load_state_dict(own)


def _write_card(path: Path, card: Card) -> None:
    plain = {f.name: getattr(card, f.name) for f in dataclasses.fields(card)}
    fields = {k: v for k, v in plain.items() if k != "id" and v not in (None, "", {}, False)}
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "# Written by `python -m experiments.logo`.\n"
    path.write_text(head + yaml.safe_dump({card.id: fields}, allow_unicode=True, sort_keys=False), encoding="utf-8")
