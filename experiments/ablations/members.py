"""Forget losses that were tried and not adopted, as members of the product's open list (`register`).

`TriedGudaC` ("guda_c_tried") is GUDA-C with settings more:

- selection "posterior": the anchor's group is drawn by what the noised picture tells of it (`posterior`), at a
  temperature in nats; "posterior_captions": so, but by WSS under the empty prompt;
- blend_share: on a share of all pictures the student's caption mixes words of the forgotten group with a retained one's
  (the picture's own, or the anchor's); the target stays that of the retained group alone;
- push: the target lies beyond the anchor, away from the caption: eps_full(c_a) - push (eps_full(c_f) - eps_full(c_a));
- empty_target: under the empty prompt the target is the full model's own estimate less the style ("shift"), or a third
  of either way ("between").

`Ascent` ("ascent") goes up the training loss; `Shift` ("shift") and `CappedRetrack` ("retrack_capped") are of
unconditional models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from experiments.ablations import formulas
from experiments.ablations.posterior import STRATA, style_posterior, style_surprise
from guda_core.diffusion import likelihood
from guda_core.errors import OptionError
from guda_core.unlearning import losses
from guda_core.unlearning.config import Settings, UnconditionalConfig, UnlearnConfig, check_share
from guda_core.unlearning.forget import FORGET_LOSSES, LOOP_SETTINGS, Half, hide
from guda_core.unlearning.forget import config_of as of_product
from guda_core.unlearning.guda_c import GudaC, anchor_odds
from guda_core.unlearning.guda_u import Retrack

POSTERIORS = ("posterior", "posterior_captions")
EMPTY_TARGETS = ("anchor", "shift", "between")


@dataclass(frozen=True)
class TriedConfig(UnlearnConfig):
    """temperature: of the posterior, nats. The others as above; push is not of "between"."""

    operator: str = "guda_c_tried"
    temperature: float = 1.0
    empty_target: str = "anchor"
    blend_share: float = 0.0
    push: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("blend_share", self.blend_share)
        if self.empty_target not in EMPTY_TARGETS:
            raise OptionError(f"empty_target '{self.empty_target}': known are {', '.join(EMPTY_TARGETS)}.")
        if not self.temperature > 0:
            raise OptionError(f"temperature {self.temperature} is not above 0.")

    @classmethod
    def selections(cls) -> tuple[str, ...]:
        return (*super().selections(), *POSTERIORS)


class TriedGudaC(GudaC):
    """GUDA-C with `TriedConfig`; with its defaults it is GUDA-C."""

    settings = TriedConfig

    def find_odds(self) -> Tensor:
        """(G,); of the posterior (N_own, K, G), of each picture in each of the strata."""
        if self.config.selection not in POSTERIORS:
            return super().find_odds()
        self.strata = likelihood.make_strata(self.task.model.schedule, STRATA)
        task = self.task
        own = [task.items[i] for i in task.own.tolist()]
        of = (task.model, task.captioner, own, task.latents[task.own], task.forget, self.strata)
        return style_posterior(style_surprise(*of), self.config.temperature)

    def draw_groups(self, half: Half, rng: torch.Generator) -> list[str]:
        if self.odds.dim() == 1:
            return super().draw_groups(half, rng)
        odds = self.odds[torch.searchsorted(self.task.own, half.at), self.strata.at(half.t.cpu())]  # (B, G)
        return [self.ids[s] for s in torch.multinomial(odds, 1, generator=rng)[:, 0].tolist()]

    def revise(self, forgotten: Half, retained: Half, rng: torch.Generator) -> None:
        if self.config.selection == "posterior_captions":
            self._draw_again(forgotten, rng)
        mixed = self._blended(forgotten, forgotten.notes["groups"], rng)
        forgotten.seen = hide(mixed, forgotten.hidden)
        forgotten.prompts = [p if h else m for p, m, h in zip(forgotten.prompts, mixed, forgotten.hidden, strict=True)]
        own = [self.task.items[i].group for i in retained.at.tolist()]
        retained.seen = hide(self._blended(retained, own, rng), retained.hidden)

    def _draw_again(self, half: Half, rng: torch.Generator) -> None:
        """Groups and anchors by WSS, where the student sees the empty prompt."""
        weighted = replace(self.config, selection="weighted")
        wss = anchor_odds(self.task.captioner, self.task.forget, self.task.text_features, weighted)
        drawn = torch.multinomial(wss, len(half.at), replacement=True, generator=rng).tolist()
        pairs = zip(drawn, half.notes["groups"], half.hidden, strict=True)
        half.notes["groups"] = [self.ids[d] if h else g for d, g, h in pairs]
        before = half.notes["anchors"]
        again = zip(self.anchors(half, rng), before, half.hidden, strict=True)
        half.notes["anchors"] = [a if h else b for a, b, h in again]

    def _blended(self, half: Half, groups: list[str], rng: torch.Generator) -> list[str]:
        """The captions; on a share, words of the forgotten and the given group in turn instead, either first."""
        share, out, forget = self.config.blend_share, list(half.prompts), self.task.forget
        for n, (i, g) in enumerate(zip(half.at.tolist(), groups, strict=True)):
            if share and torch.rand(1, generator=rng).item() < share:
                turned = bool(torch.randint(2, (1,), generator=rng))
                pair = (g, forget) if turned else (forget, g)
                out[n] = self.task.captioner.blend(self.task.items[i], pair, rng)
        return out

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        assert answer is not None
        config, task, x_t, t = self.config, self.task, forgotten.x_t, forgotten.t
        moved = config.empty_target != "anchor"
        shifted = torch.tensor(forgotten.hidden if moved else [False] * len(x_t)).nonzero()[:, 0]
        if not config.push and not len(shifted):
            return answer
        prompted = task.eps(x_t, t, forgotten.prompts)
        target = losses.esd_target(answer, prompted, strength=config.push)
        if len(shifted):
            empty = task.eps(x_t[shifted], t[shifted], [""] * len(shifted))
            of = (empty, prompted[shifted], answer[shifted])
            shift = config.empty_target == "shift"
            target[shifted] = (
                formulas.style_shift_target(*of, push=config.push) if shift else formulas.between_target(*of)
            )
        return target

    def record(self) -> Mapping[str, Any]:
        odds = self.odds if self.odds.dim() == 1 else self.odds[:, 0].mean(dim=0)  # of the pictures, on average
        return {"style_probabilities": dict(zip(self.ids, odds.tolist(), strict=True))}


@dataclass(frozen=True)
class AscentConfig(UnlearnConfig):
    """ascent_strength: how far the target lies from the full model's estimate, in errors of that."""

    operator: str = "ascent"
    ascent_strength: float = 1.0


class Ascent(GudaC):
    """Up the training loss of the forgotten pictures. It draws the anchors of GUDA-C and leaves them."""

    settings = AscentConfig

    def asked(self, forgotten: Half) -> list[str] | None:
        return hide(forgotten.prompts, forgotten.hidden)

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        assert answer is not None
        return formulas.ascent_target(answer, forgotten.eps.to(answer.device), strength=self.config.ascent_strength)


class Shift(Retrack):
    """The full model's estimate, moved as the smoothed posterior mean moves without the group."""

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        near, mine = (self.near(forgotten, of) for of in (self.task.others, self.task.own))
        full = self.task.eps(forgotten.x_t, forgotten.t, forgotten.prompts)
        return formulas.shift_target(
            full, forgotten.x_t, near, mine, self.alpha_bar(forgotten), bandwidth=self.bandwidth
        )


@dataclass(frozen=True)
class CappedConfig(UnconditionalConfig):
    """kl_cap: of the norm sqrt(2 kl_cap) of the correction. A capped target is nearly the true noise, which trains on
    the forgotten group."""

    operator: str = "retrack_capped"
    kl_cap: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl_cap > 0:
            raise OptionError(f"kl_cap {self.kl_cap} is not positive.")


class CappedRetrack(Retrack):
    """ReTrack with the trust region of its authors' code."""

    settings = CappedConfig

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        eps = forgotten.eps.to(forgotten.x_t.device)
        return formulas.capped(super().target(forgotten, answer), eps, kl_cap=self.config.kl_cap)


MEMBERS = {"guda_c_tried": TriedGudaC, "ascent": Ascent, "shift": Shift, "retrack_capped": CappedRetrack}


def register() -> None:
    """Add the members to the product's list, once."""
    for id, member in MEMBERS.items():
        if id not in FORGET_LOSSES:
            FORGET_LOSSES.add(id, member)


def forget() -> None:
    """Take them out again."""
    for id in MEMBERS:
        if id in FORGET_LOSSES:
            FORGET_LOSSES.remove(id)


def config_of(operator: str, **changes: Any) -> Settings:
    """The product's `config_of`, with the settings of this file too: `guda_c` is `guda_c_tried` where one asks for it.

    Raises:
        OptionError: there is no such forget loss or setting.
    """
    register()
    known = {f.name for f in fields(UnlearnConfig)} | LOOP_SETTINGS | {"whole", "rank"}
    asks = set(changes) - known or changes.get("selection") in POSTERIORS
    return of_product("guda_c_tried" if operator == "guda_c" and asks else operator, **changes)
