"""The offline half of GUDA for one base model: which adapters are wanted, and making them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guda_core import paths
from guda_core.data.captions import captioner_of, captions_sha256, words_sha256
from guda_core.data.dataset import Pictures, fitted
from guda_core.data.embeddings import Encoder
from guda_core.data.encoded import check_fit
from guda_core.data.encoders import bank_of, open_encoder
from guda_core.data.kept_latents import encode, to_encode
from guda_core.data.latents import Latents
from guda_core.data.own.found import some
from guda_core.data.own.picture_list import trained_on
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.cards import chosen_card, load_model
from guda_core.diffusion.identity import KNOWN
from guda_core.diffusion.pace import seconds_of
from guda_core.diffusion.precision import denormals_flushed
from guda_core.errors import AdapterError, InHandError, ModelError, OptionError
from guda_core.paths import STYLE_GROUPS, Layers, cache_dir
from guda_core.records import GroupSet
from guda_core.unlearning import adapter_files, adapters
from guda_core.unlearning.config import Settings, changed
from guda_core.unlearning.defaults import memory_settings, settings_of
from guda_core.unlearning.forget import FORGET_LOSSES, Task, read_config
from guda_core.unlearning.kept_prompts import KeptPrompts
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.one_group import unlearn
from guda_core.unlearning.plan import Plan, blank_latents, empty_plan, group_cost, make_plan
from guda_core.versions import versions
from guda_core.work_queue import claimed

CLAIMS = ".claims"  # the folder of claims beside adapters
DRAWS = 1  # raise it where a step draws other random numbers, or in another order: older stopped runs are left then


def check_learned(job: Forgetting) -> None:
    """Raises OptionError when the model is the included one, which saw its own group set's pictures alone, and the set
    is another: there is nothing to unlearn."""
    card, group_set = job.card, job.group_set
    if card.only_groups and job.model.sha256 in KNOWN.values() and card.group_set != group_set.id:
        raise OptionError(
            f"The included model '{card.id}' was trained on the pictures of '{card.group_set}' alone, so there is "
            f"nothing of '{group_set.id}' to unlearn from it. Name the model that was trained on them: --model."
        )


class Forgetting:
    """Makes adapters of one base model. Pictures and latents are loaded once."""

    def __init__(self, group_set: GroupSet, *, model: str | None = None, folder: Path | None = None) -> None:
        card = chosen_card(model)
        self.group_set, self.card = group_set, card
        self.captioner = captioner_of(group_set)
        self.folder = Layers((folder,)) if folder else paths.run(card.id, group_set.id).adapters
        self.model = load_model(card)
        check_fit(self.model, group_set)
        self.memory = memory_settings(self.model)
        self.kept = paths.run(card.id, group_set.id).own / "latents"
        self._pictures: Pictures | None = None
        self._latents: Tensor | Latents | None = None

    @cached_property
    def clip(self) -> Encoder:
        """What compares the groups' words: the encoder of the model's card."""
        return open_encoder(self.card, bank_of(self.card, paths.run(self.card.id, self.group_set.id)))

    def config(self, operator: str | None = None, **changes: Any) -> Any:
        """The settings of a forget loss (None: the default one) for this model, with changes (`settings_of`)."""
        return settings_of(self.model, operator, **changes)

    def known(self, wanted: Sequence[str]) -> list[str]:
        """Ids of the groups asked for, all for (). Raises OptionError for one that the set does not have."""
        return self.group_set.ids(wanted or self.group_set.groups)

    def load(self, group: str) -> adapters.Adapter:
        """The group's adapter. Raises AdapterError where it cannot be used."""
        return adapters.load(self.folder / group, model=self.model, group=group, group_set=self.group_set.id)

    def fits(self, group: str, config: Settings | None) -> bool:
        """Whether the group's adapter can be used and was made with these settings (None: with any)."""
        return not self._unfit(group, config)

    def _unfit(self, group: str, config: Settings | None) -> str:
        """Why not; "" where it fits."""
        try:
            meta = self.load(group).meta
            if config is not None and adapter_files.is_draft(meta):
                return "in place of a draft"
            if config is None or (made := read_config(meta["config"])) == config:
                return ""
            return f"with other settings: {changed(made, config)}"
        except AdapterError as e:
            return str(e)
        except (OptionError, KeyError, TypeError, AttributeError):
            return "because it was made in another way" if config else "it cannot be read"

    def _of_these_pictures(self, group: str) -> bool:
        """Whether an adapter of a set of the user's own was made from the pictures and captions that the set has now.
        The pictures of an included set do not change, and may not be here."""
        if not self.is_own:
            return True
        meta = self.load(group).meta
        same = meta.get("data_sha256") in (None, self.pictures().sha256())
        return same and meta.get(adapter_files.CAPTIONS, self._captions) == self._captions

    def _by_this_encoder(self, group: str, config: Settings) -> bool:
        """Whether an adapter whose anchors' groups were drawn by likeness was made with the encoder of today."""
        made = self.load(group).meta.get("clip_sha256")
        if made is None or getattr(config, "selection", "") != "weighted":
            return True
        try:
            return made == self.clip.sha256
        except ModelError:  # it is not here
            return True

    @property
    def is_own(self) -> bool:
        """Whether the set is one of the user's own."""
        folder = self.group_set.folder
        return folder is not None and folder.parent != STYLE_GROUPS

    @cached_property
    def _captions(self) -> str:
        """What the captions of an own set are made of (`captions_sha256`); "" where the model reads no prompt, or the
        set is an included one."""
        reads = self.is_own and self.model.tokens("")[1] > 0
        return captions_sha256(self.group_set, self.pictures()) if reads else ""

    def why_again(self, group: str, config: Settings | None) -> str:
        """Why the group's adapter has to be made again, such as "with other settings: ..."; "" where it fits. With
        settings, it fits only if it was made from the pictures and captions that the set has now.
        """
        if (why := self._unfit(group, config)) or config is None:
            return why
        if not self._by_this_encoder(group, config):
            return "with another encoder"
        return "" if self._of_these_pictures(group) else "from other pictures or captions"

    def pending(self, wanted: Sequence[str], *, config: Settings | None, again: bool = False) -> list[str]:
        """The wanted groups (none named: all) that have no fitting adapter yet (`why_again`), or all of them with
        `again`."""
        return [g for g in self.known(wanted) if again or self.why_again(g, config)]

    def replaced(self, pending: Sequence[str], config: Settings) -> list[str]:
        """A sentence for each reason why adapters that can be used are replaced."""
        found: dict[str, list[str]] = {}
        for g in pending:
            if self.fits(g, None) and (why := self.why_again(g, config)):
                found.setdefault(why, []).append(g)
        return [f"Made again {why}. Groups: {some(gs, 10)}." for why, gs in found.items()]

    def begin(self, wanted: Sequence[str], *, config: Settings, again: bool = False) -> list[str]:
        """`pending`, when work begins: what would stop it after hours is looked at, and of the adapters that fit the
        set's list of now is written down.

        Raises:
            OptionError: there is no such group. AdapterError: another model's adapter would be replaced, or an adapter
                could not be written.
        """
        pending = self.pending(wanted, config=config, again=again)
        if not again:
            self.check_others(pending)
        self.check_places(pending)
        self.note_list([g for g in self.known(wanted) if g not in pending])
        return pending

    def note_list(self, groups: Iterable[str]) -> None:
        """Of these groups' adapters, which are of the set's pictures and captions of now: write down its list of now.
        It is another where files were saved anew with the same pixels.

        Raises:
            AdapterError: one cannot be used, or cannot be written.
        """
        now = {k: v for k, v in self.listed().items() if k in (adapter_files.LISTED, adapter_files.FIT)}
        for group in groups if now else ():
            listed = False
            with suppress(AdapterError):  # another process may just put a new one there
                listed = self._is_listed(group, now)
            if not listed:
                with suppress(InHandError), self.claim(group):  # whoever has it in hand writes another one
                    if not self._is_listed(group, now):
                        adapter_files.note(self.folder / group, now)

    def _is_listed(self, group: str, now: Mapping[str, str]) -> bool:
        """Whether the group's adapter names that list, or none."""
        meta = self.load(group).meta
        return all(meta.get(k, v) == v for k, v in now.items())

    @cached_property
    def _list(self) -> str | None:
        """What the set is trained on by its list (`trained_on`), read before the pictures are, and once: the set may
        change while groups are unlearned."""
        return trained_on(self.group_set.folder)

    def pictures(self) -> Pictures:
        """The train split."""
        if self._pictures is None:
            _ = self._list
            self._pictures = load_pictures(self.group_set, "train", seen=self.card.resolution)
        return self._pictures

    def encoding(self) -> Iterator[float]:
        """Encode the train split, but for what is kept on disk; yields the fraction done.

        Raises:
            CacheError: the disk is full.
        """
        if self._latents is None:
            for done, latents in encode(self.model, self.pictures().pixels, self.kept):
                self._latents = latents
                yield done

    def training_pictures(self) -> tuple[Pictures, Tensor | Latents]:
        """The train split and its latents (N, C, h, w), or of several sizes."""
        for _ in self.encoding():
            pass
        assert self._latents is not None
        return self.pictures(), self._latents

    def task(self, group: str) -> Task:
        """What `unlearn` needs to know of a group."""
        return self._task(group, self.training_pictures()[1])

    def _task(self, group: str, latents: Tensor | Latents) -> Task:
        def compared(texts: list[str]) -> Tensor:
            return self.clip.text_features(texts)

        prompts = KeptPrompts(self.model, self.kept) if self.memory.unload else None
        return Task(self.model, self.pictures(), latents, group, self.captioner, compared, prompts)

    def costs(self, groups: Sequence[str], config: Settings) -> dict[str, int]:
        """Group id -> passes of the network that unlearning it takes, of one picture each (`plan`)."""
        blank = blank_latents(self.model, self.pictures())
        kind = FORGET_LOSSES.find(config.operator)
        costs = {g: group_cost(kind(self._task(g, blank), config), config) for g in groups}
        return {g: c.forward + c.gradients for g, c in costs.items()}

    def plan(self, groups: Sequence[str], config: Settings, health: Mapping[str, int]) -> Plan:
        """What unlearning these groups will take, from one step that is really made. health: group id -> passes that
        will measure it, also of groups that are not unlearned."""
        if not groups:
            return empty_plan(self.model, config, self.memory, health)
        blank = blank_latents(self.model, self.pictures())
        missing = to_encode(self.model, self.pictures().pixels, self.kept)
        encode_s = 0.0
        if missing and self._latents is None:
            pixels = fitted(self.pictures().pixels[0], self.card.resolution)
            encode_s = missing * seconds_of(lambda: self.model.encode(pixels))
        tasks = {g: self._task(g, blank) for g in groups}
        more = {"encode_s": encode_s, "to_encode": missing, "pixel_bytes": self.pictures().file_bytes}
        return make_plan(tasks, config, self.memory, health=health, **more)

    def checkpoint(self, group: str, config: Settings, data_sha256: str) -> Path:
        """Where a run that is stopped keeps itself: of just this model, group, data, captions, settings, draws and
        folder."""
        of = f"{self.model.sha256}\n{config.sha256()}\n{data_sha256}"
        of += f"\n{self._captions}" if self._captions else ""
        of += "" if DRAWS == 1 else f"\n{DRAWS}"
        of += "" if self.model.dtype == torch.float32 else f"\n{self.model.dtype}"
        of += f"\n{self.clip.sha256}" if getattr(config, "selection", "") == "weighted" else ""
        of += f"\n{self.folder.own(group).resolve()}"
        key = hashlib.sha256(of.encode()).hexdigest()[:16]
        return cache_dir() / "unlearn" / f"{self.card.id}--{self.group_set.id}--{group}--{key}.pt"

    def unlearn(self, group: str, config: Settings, *, resume: bool = True, again: bool = True) -> Iterator[Progress]:
        """Unlearn one group into its adapter folder; a run that was stopped goes on from its last checkpoint (resume).

        The group's adapter of before is there until the new one is finished. again: also where one fits; else nothing
        is done then, such as where another process has just made it.

        Raises:
            TrainingError: the training went astray: nothing is written then. InHandError: another process unlearns
                this group. AdapterError: the folder cannot be written to; said before anything is done.
        """
        with self.claim(group), closing(self._unlearn(group, config, resume)) as steps:
            if not again and not self.why_again(group, config):
                return
            while True:
                with denormals_flushed():  # of the steps alone: between two of them the caller's numbers are his own
                    p = next(steps, None)
                if p is None:
                    return
                yield p

    def listed(self) -> dict[str, str]:
        """What the set is trained on by its list, and how its captions are made, for the adapter's metadata; nothing
        of what it does not have."""
        listed = {adapter_files.LISTED: self._list, adapter_files.FIT: self.group_set.fit} if self._list else {}
        words = {adapter_files.WORDS: words_sha256(self.group_set), adapter_files.CAPTIONS: self._captions}
        return {**listed, **(words if self._captions else {})}

    def check_others(self, groups: Iterable[str], *, again: str = "add --again") -> None:
        """See that none of these groups' adapters, which are to be made, stands in the place of another model's: two
        models may have one name. again: how one would replace it.

        Raises:
            AdapterError: one does.
        """
        for group in groups:
            folder = self.folder.folders[0] / group
            try:
                of = str(adapter_files.read_meta(folder)["base_sha256"])
            except (AdapterError, KeyError):
                continue  # there is none, or nobody can use it
            if not self.model.goes_by(of):
                raise AdapterError(
                    f"In {folder} is the adapter of another model ({of[:12]}; this '{self.card.id}' is "
                    f"{self.model.sha256[:12]}), and it would be replaced. Keep it: name another --folder, or give "
                    f"this model a card with a name of its own. Or replace it: {again}, and --groups with the "
                    "groups that are left if others are made already."
                )

    def check_places(self, groups: Iterable[str]) -> None:
        """See whether these groups' adapters could be written. Raises AdapterError: one could not."""
        for group in groups:
            adapter_files.check_place(self.folder.own(group))

    @contextmanager
    def claim(self, group: str) -> Iterator[None]:
        """Within the block no other process writes this group's adapter: none of this machine, and where the folder's
        disk knows locks, none of another one.

        Raises:
            InHandError: another one does. AdapterError: its folder cannot be written to.
        """
        self.check_places([group])
        folder = self.folder.own(group)
        name = f"{group}--{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
        shared = folder.parent / CLAIMS / f"{group}.adapter"  # jobs have a claim of their own, `group_jobs`
        with ExitStack() as stack:
            for claim in (cache_dir() / "locks" / name, shared):
                try:
                    mine = stack.enter_context(claimed(claim))
                except OptionError:
                    if claim != shared:
                        raise
                    mine = True
                if not mine:
                    raise InHandError(
                        f"Another process is unlearning '{group}' into {folder}. Wait until it has ended, or name "
                        "other groups with --groups.",
                        lock=f"{claim}.lock",
                    )
            yield

    def _unlearn(self, group: str, config: Settings, resume: bool) -> Generator[Progress, None, None]:
        task = self.task(group)
        began, cpu, data_sha256 = time.monotonic(), time.process_time(), self.training_pictures()[0].sha256()
        meta = {
            "model": self.card.id,
            "group_set": self.group_set.id,
            "data_sha256": data_sha256,
            **self.listed(),
            "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if getattr(config, "selection", "") == "weighted":
            meta["clip_sha256"] = self.clip.sha256
        folder, first = self.folder.own(group), 0
        keeps = self.checkpoint(group, config, data_sha256) if resume else None
        for p in unlearn(task, config=config, folder=folder, meta=meta, checkpoint=keeps, memory=self.memory):
            first = first or p.step
            yield p
        spent = {
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "torch_threads": torch.get_num_threads(),
        }
        if first > 1:
            spent["from_step"] = first - 1  # the run went on from there, so this is not all that it took
        with suppress(AdapterError):  # a full disk: the adapter is there, and does not need it
            adapter_files.write_json(folder / adapter_files.TIMING, spent)
