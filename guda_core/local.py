"""From a picture or a prompt to answers, with a real model on this machine: what app and command line are built on."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from guda_core.attribution import METHODS, ensemble
from guda_core.attribution import scope as scopes
from guda_core.attribution.counterfactual import Budget
from guda_core.attribution.gradient.das import Das
from guda_core.attribution.gradient.dtrak import Dtrak
from guda_core.attribution.gradient.features import BLOCK, Projection
from guda_core.attribution.gradient.kernel import KernelMethod
from guda_core.attribution.gradient.quantised import ShippedBank
from guda_core.attribution.gradient.trak import Trak
from guda_core.attribution.guda import Guda
from guda_core.attribution.logo import Logo
from guda_core.attribution.similarity import ClipSimilarity
from guda_core.data.captions import captioner_of
from guda_core.data.embeddings import Clip
from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels, read_picture
from guda_core.data.prompts import check_options, check_prompt, prompt_notes
from guda_core.diffusion.base import BaseModel
from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model
from guda_core.errors import CacheError, ModelError, OptionError
from guda_core.paths import ASSETS
from guda_core.records import Attribution, GroupSet, Provenance, Query, Scope
from guda_core.reports.record import read_figures, read_validation
from guda_core.service import Effort, Step, find_effort
from guda_core.unlearning.adapters import HEALTH

log = logging.getLogger(__name__)
KERNELS: dict[str, type[KernelMethod]] = {m.id: m for m in (Trak, Dtrak, Das)}


class LocalService:
    """The service on this machine: one base model, its adapters and the CLIP baseline."""

    def __init__(
        self,
        model: BaseModel,
        group_set: GroupSet,
        clip: Clip,
        adapters: Path,
        *,
        features: Path | None = None,
        oracle: Path | None = None,
        rule: Path | None = None,
        banner: str = "",
    ) -> None:
        self.model, self.group_set, self.clip = model, group_set, clip
        self.banner, self.model_name = banner, model.card.name
        self.guda = Guda(model, group_set, adapters)
        self.similarity = ClipSimilarity(clip, group_set)
        self.kernels: dict[str, KernelMethod] = {}
        for k, kind in KERNELS.items():
            if features is None or not features.is_dir():
                break
            try:
                self.kernels[k] = kind.shipped(model, features / k, list(group_set.groups))
            except CacheError as e:
                log.warning("%s is not offered. %s", METHODS[k][0], e)
        self.rule = scopes.read_rule(rule, base_sha256=model.sha256) if rule is not None else scopes.UNKNOWN
        self.logo = self._oracle(oracle) if oracle is not None and oracle.is_dir() else None
        self._forward_s: dict[int, float] = {}  # by batch
        self._projection_s: float | None = None
        self._kernel_s: dict[str, float] = {}  # what each took last
        self._captions: tuple[list[str], torch.Tensor] | None = None  # what CLIP chooses from, read when first asked

    def _oracle(self, folder: Path) -> Logo | None:
        """The live oracle, None while a group's retrained model is missing: its first place would not be the first."""
        found = Logo(self.model, self.group_set, folder)
        if found.unavailable:
            log.info(
                "%s is not offered: %d of %d groups have no retrained model that can be used (%s). Make them with "
                "`python -m experiments.logo --live`.",
                METHODS["logo"][0],
                len(found.unavailable),
                len(self.group_set.groups),
                ", ".join(found.unavailable),
            )
            return None
        return found

    def provenance(self) -> Provenance:
        m, device = self.model, str(self.model.device)
        if m.device.type == "cuda":
            device = f"{device} ({torch.cuda.get_device_name(m.device)})"
        coded = {} if self.logo is None else self.logo.adapters
        return Provenance(
            model=m.card.id,
            name=m.card.name,
            sha256=m.sha256,
            clip_sha256=self.clip.sha256,
            bank_sha256=self.clip.bank_sha256(),
            dtype=str(m.dtype).removeprefix("torch."),
            device=device,
            threads=torch.get_num_threads(),
            adapters={g: a.meta["sha256"] for g, a in self.guda.adapters.items()},
            unavailable=dict(self.guda.unavailable),
            health={g: read_figures(self.guda.folder / g / HEALTH) for g in self.group_set.groups},
            validation=read_validation(ASSETS / "benchmarks", base_sha256=m.sha256),
            offset=dict(self.guda.offset),
            features={k: m.bank.meta["sha256"] for k, m in self.kernels.items() if isinstance(m.bank, ShippedBank)},
            retrained={g: a.meta["sha256"] for g, a in coded.items()},
            fidelity={} if self.logo is None else {g: read_figures(self.logo.folder / g / HEALTH) for g in coded},
        )

    def methods(self) -> dict[str, str]:
        absent = (set(KERNELS) - set(self.kernels)) | ({"logo"} if self.logo is None else set())
        absent |= {ensemble.ID} if absent & set(ensemble.PARTS) else set()
        return {k: name for k, (name, _) in METHODS.items() if k not in absent}

    def _counterfactuals(self) -> list[Guda]:
        return [self.guda] if self.logo is None else [self.guda, self.logo]

    def forward_seconds(self, batch: int = 24) -> float:
        """Seconds of one picture's forward pass in a batch, measured once on this machine."""
        if batch not in self._forward_s:
            x = torch.zeros(batch, *self.model.latent_shape, device=self.model.device)
            t = torch.full((batch,), 500, device=self.model.device)
            cond = self.model.embed([""] * batch)
            with self.model.lock, torch.no_grad():
                self.model.predict_eps(x, t, cond)
                began = time.perf_counter()
                float(self.model.predict_eps(x, t, cond).sum())
                self._forward_s[batch] = (time.perf_counter() - began) / batch
        return self._forward_s[batch]

    def _gradient_seconds(self, kernel: KernelMethod) -> float:
        """What a gradient method will take that was not asked yet, but for what it does once: a backward pass takes as
        long as two forward ones, and then every weight's derivative is projected."""
        if self._projection_s is None:
            weights = sum(p.numel() for p in self.model.network.parameters())
            projection = Projection(weights, kernel.config.features.dim, kernel.config.features.seed)
            began = time.perf_counter()
            _ = projection.block(0) @ np.zeros(min(BLOCK, weights), np.float32)
            self._projection_s = (time.perf_counter() - began) * math.ceil(weights / BLOCK)
        return 3 * kernel.config.features.timesteps * self.forward_seconds(1) + self._projection_s

    def estimate(self, methods: Sequence[str], effort: str) -> float:
        draws, seconds, methods = find_effort(effort).draws, 0.2, with_parts(methods)
        for k in [k for k in self.kernels if k in methods]:
            seconds += self._kernel_s[k] if k in self._kernel_s else self._gradient_seconds(self.kernels[k])
        for method in [m for m in self._counterfactuals() if m.id in methods]:
            models = 1 + len(method.adapters)
            seconds += models * Budget().strata * draws * self.forward_seconds()
        return seconds

    def query(self, pixels: np.ndarray, prompt: str, **more: object) -> Query:
        """A Query of pixels at the model's resolution, (H, W, 3) uint8."""
        return Query(pixels, self.model.encode(pixels), prompt, hash_pixels(pixels), **more)  # type: ignore[arg-type]

    def generate(self, *, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[Step | Query]:
        check_options(seed=seed, steps=steps, guidance=guidance)
        prompt = check_prompt(prompt)
        pictures = None
        stream = self.model.sample([prompt], seeds=[seed], steps=steps, guidance=guidance)
        for i, pictures in enumerate(stream):  # noqa: B007
            yield Step(i + 1, steps)
        assert pictures is not None
        yield self.query(pictures[0], prompt, preparation=self._of_prompt(prompt))

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        prompt = check_prompt(prompt)
        p = read_picture(data, size=self.model.card.resolution)
        said = (*p.preparation, *self._of_prompt(prompt))
        return self.query(p.pixels, prompt, file_hash=p.file_hash, preparation=said)

    def with_prompt(self, query: Query, prompt: str) -> Query:
        prompt = check_prompt(prompt)
        before = self._of_prompt(query.prompt)
        kept = tuple(s for s in query.preparation if s not in before)
        return replace(query, prompt=prompt, preparation=(*kept, *self._of_prompt(prompt)))

    def scope(self, query: Query) -> Scope:
        return scopes.judge(self.rule, self.model, query)

    def best_caption(self, query: Query) -> str:
        if self._captions is None:
            texts = captioner_of(self.group_set).examples()
            parts = [self.clip.text_features(texts[i : i + 64]) for i in range(0, len(texts), 64)]
            self._captions = (texts, torch.cat(parts))
        texts, features = self._captions
        return texts[int((features @ self.clip.image_features(query.pixels[None])[0]).argmax())]

    def _of_prompt(self, prompt: str) -> tuple[str, ...]:
        """What of a prompt the model does not read, in sentences."""
        n, most = self.model.tokens(prompt)
        cut = (f"The prompt has {n} tokens; the model reads the first {most}.",) if n > most else ()
        return (*cut, *prompt_notes(prompt, self.model.tokenizers))

    def attribute(self, query: Query, *, methods: Sequence[str], effort: str) -> Iterator[Attribution]:
        e = find_effort(effort)
        known = self.methods()
        unknown = [m for m in methods if m not in known]
        if unknown or not methods:
            raise OptionError(f"Methods must be some of {', '.join(known)}; got {', '.join(unknown) or 'none'}.")
        latest: dict[str, Attribution] = {}
        for a in self._answers(query, with_parts(methods), e):
            latest[a.method] = a
            if a.method in methods:
                yield a
            if ensemble.ID in methods and a.method in ensemble.PARTS and all(p in latest for p in ensemble.PARTS):
                yield ensemble.combine(latest)

    def _answers(self, query: Query, methods: Sequence[str], e: Effort) -> Iterator[Attribution]:
        """Of all methods that compute something of their own."""
        if "clip" in methods:
            yield from self.similarity.attribute(query)
        for k in [k for k in self.kernels if k in methods]:
            yield Attribution(k, self.kernels[k].unit, {}, 0.0)
            began, spent = time.perf_counter(), 0.0
            for a in self.kernels[k].attribute(query):
                spent += time.perf_counter() - began
                yield a
                began = time.perf_counter()  # not what the receiver does meanwhile
            self._kernel_s[k] = spent
        for method in [m for m in self._counterfactuals() if m.id in methods]:
            yield from method.attribute(query, Budget(draws=e.draws, per_pass=e.per_pass))


def with_parts(methods: Sequence[str]) -> list[str]:
    """The methods, and what the combined one is made from."""
    return list(dict.fromkeys([*methods, *(ensemble.PARTS if ensemble.ID in methods else ())]))


def load_service(model: str | None = None, *, fall_back: bool = True) -> LocalService:
    """The service of a card (default: the environment's GUDA_MODEL, else the bundled model).

    fall_back: when that card's model cannot be had, take the bundled one and say so in the banner.

    Raises:
        ModelError: the model cannot be had (and the bundled one neither, or fall_back is off).
    """
    name = model or os.environ.get("GUDA_MODEL") or DEFAULT_MODEL
    card, banner = find_card(name), ""
    try:
        base = load_model(card)
    except ModelError as e:
        if not fall_back or name == DEFAULT_MODEL:
            raise
        card = find_card(DEFAULT_MODEL)
        base, banner = load_model(card), f"The bundled model answers in place of '{name}'. {e}"
    group_set = load_group_set(os.environ.get("GUDA_GROUP_SET") or card.group_set)
    features = ASSETS / "features" / card.id
    clip, adapters = Clip(ASSETS / "clip"), ASSETS / "adapters" / card.id
    more = {"features": features, "oracle": ASSETS / "oracle" / card.id, "rule": ASSETS / "benchmarks" / scopes.FILE}
    return LocalService(base, group_set, clip, adapters, **more, banner=banner)
