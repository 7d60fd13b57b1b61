"""Unlearning of one group as a LoRA adapter: GUDA-C (arXiv 2601.22651), with the empty prompt unlearned too.

    L = || eps_theta(x_t, t, c_f) - target ||^2 + lambda || eps_theta(x'_t, t, c') - eps_full(x'_t, t, c') ||^2

x from the forgotten group with its caption c_f, x' from the retained ones. GUDA-C's target is eps_full(x_t, t, c_a):
the anchor caption c_a keeps the object and takes descriptors of a retained style s ~ pi (anchor_probabilities).
Four things are ours, not the paper's:

- On a share of the forgotten pictures the student sees the empty prompt instead. Its target is the same (empty_target
  "anchor": the unconditional model of the retained data is the mixture of its conditional ones), or the full model's
  own unconditional estimate less the style ("shift"): eps_full("") - (1 + push) (eps_full(c_f) - eps_full(c_a)), or
  a third of either way ("between"). Both captions name the same object, so that what they tell of it cancels. Uploads
  need it.
- On a share of all other pictures the student's caption mixes descriptors of the forgotten style and of a retained one
  (the picture's own, or the anchor's), and the target is the full model under the retained style alone. A prompt that
  blends groups is where attribution is wanted most, and unlearning whole styles alone leaves such prompts nearly as
  they were.
- The anchor style may be drawn from what the noised picture itself tells of it (`style_posterior`) instead of from pi;
  for all pictures, or for those alone that the student sees with their caption.
- The target may lie beyond the anchor, away from the forgotten caption, as ESD's does from the empty prompt:
  eps_full(c_a) - push (eps_full(c_f) - eps_full(c_a)). The anchor's prediction still sees the forgotten style in x_t; a
  model that was never trained on it explains the picture worse than that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guda_core.data.captions import blend_caption, style_caption
from guda_core.data.dataset import Pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.base import BaseModel
from guda_core.errors import OptionError, TrainingError
from guda_core.records import GroupSet
from guda_core.unlearning import adapters, losses
from guda_core.unlearning.loop import LoopConfig, Progress, run

SELECTIONS = ("weighted", "uniform", "removed", "posterior", "posterior_captions")
EMPTY_TARGETS = ("anchor", "shift", "between")
POSTERIOR_STRATA = 8  # of timesteps; in each the posterior of the styles is another


@dataclass(frozen=True)
class UnlearnConfig:
    """operator: "guda_c", "esd" or "ascent".
    selection of the anchor style: "uniform"; "weighted", the paper's WSS, with its beta and eta; "removed", the anchor
    is the object without style words; "posterior", `style_posterior` at a temperature in nats; "posterior_captions",
    that, but WSS under the empty prompt.
    lam: weight of the preserve loss.
    empty_share: share of the pictures, forgotten and retained, that the student sees under the empty prompt.
    empty_target: "anchor", "shift" or "between", of the forgotten ones among them.
    blend_share: share of the others whose caption mixes the forgotten style's descriptors with a retained one's.
    push: how far GUDA-C's target lies beyond the anchor (not of "between"). esd_strength: ESD's guidance.
    ascent_strength: how far the ascent's target lies from the full model's estimate, in errors of that.
    lora: the adapter; None fine-tunes the whole denoiser, as the paper does.
    loop.batch forgotten and as many retained pictures make a step."""

    operator: str = "guda_c"
    selection: str = "uniform"
    beta: float = 2.0
    eta: float = 0.3
    lam: float = 1.0
    temperature: float = 1.0
    empty_share: float = 0.5
    empty_target: str = "anchor"
    blend_share: float = 0.0
    push: float = 0.0
    esd_strength: float = 1.0
    ascent_strength: float = 1.0
    lora: adapters.LoraSpec | None = field(default_factory=adapters.LoraSpec)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=80, batch=16, lr=1e-3, warmup=10, weight_decay=0.0, seed=5)
    )

    def __post_init__(self) -> None:
        if self.operator not in losses.FORGET_OPERATORS:
            raise OptionError(f"operator '{self.operator}': known are {', '.join(losses.FORGET_OPERATORS)}.")
        if self.selection not in SELECTIONS:
            raise OptionError(f"selection '{self.selection}': known are {', '.join(SELECTIONS)}.")
        if self.empty_target not in EMPTY_TARGETS:
            raise OptionError(f"empty_target '{self.empty_target}': known are {', '.join(EMPTY_TARGETS)}.")
        if not self.temperature > 0:
            raise OptionError(f"temperature {self.temperature} is not above 0.")
        for name in ("empty_share", "blend_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} {getattr(self, name)} is not between 0 and 1.")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> UnlearnConfig:
        """The settings in an adapter's metadata."""
        lora, loop = record["lora"], LoopConfig(**record["loop"])
        spec = None if lora is None else adapters.LoraSpec(**{**lora, "targets": tuple(lora["targets"])})
        return cls(**{**record, "lora": spec, "loop": loop})


def style_probabilities(
    group_set: GroupSet, forget: str, text_features: Callable[[list[str]], Tensor], config: UnlearnConfig
) -> Tensor:
    """pi over the group set's styles, (G,); the forgotten one has 0. text_features: texts -> (N, D) unit vectors."""
    prototypes = torch.stack([text_features(list(g.descriptors)).mean(dim=0) for g in group_set.groups.values()])
    prototypes = torch.nn.functional.normalize(prototypes, dim=1)
    at = list(group_set.groups).index(forget)
    weighted = config.selection in ("weighted", "posterior_captions")
    beta, eta = (config.beta, config.eta) if weighted else (0.0, 1.0)
    return losses.anchor_probabilities(prototypes @ prototypes[at], beta=beta, eta=eta, exclude=at)


@torch.no_grad()
def style_surprise(
    model: BaseModel, group_set: GroupSet, pictures: Pictures, latents: Tensor, forget: str, strata: likelihood.Strata
) -> Tensor:
    """-log p(x_t | style, object) of the forgotten group's pictures in nats, but for what all styles share: (N_own, K,
    G) float64, infinite for the forgotten style; t in the k-th of the strata.

    A diffusion classifier (Li et al. 2023, arXiv 2303.16203) that sees the noised picture alone: the sum over s > t of
    KL_s, one timestep drawn in each stratum with the same noise for all styles.
    """
    ids = list(group_set.groups)
    own = [i for i, g in enumerate(pictures.groups) if g == forget]
    g = torch.Generator().manual_seed(0)
    kl = np.zeros((len(own), len(strata), len(ids)))
    for n, i in enumerate(own):
        draws = likelihood.draw_times(f"{forget}/{pictures.objects[i]}", strata, 1)
        for k, style in enumerate(ids):
            if style != forget:
                cond = model.embed([style_caption(group_set, pictures.objects[i], style, g)])
                kl[n, :, k] = (
                    likelihood.kl_values(model, latents[i : i + 1], cond, draws, range(1))[:, 0] * strata.sizes
                )
    later = np.flip(np.cumsum(np.flip(kl, axis=1), axis=1), axis=1) - kl / 2  # half of t's own stratum lies above t
    later[:, :, ids.index(forget)] = np.inf
    return torch.from_numpy(later)


def style_posterior(surprise: Tensor, temperature: float) -> Tensor:
    """p(style | x_t, object) over the retained styles, all equally likely beforehand, float32 as `style_surprise`.

    What a model that never saw the group's words or pictures should answer under them is, by Bayes, the mean of its
    estimates for the other styles, weighted by this. The temperature, in nats, is 1 for a full model that knows its
    styles exactly. Over hundreds of nats between styles that is one style alone; a retrained model is less sure, and
    nearest to the mean with about 100 (`experiments.ablations.targets`).
    """
    return torch.softmax(-surprise / temperature, dim=2).float()


class _Sampler:
    """Draws the forgotten and retained halves of a step from the step's generator.

    pi: (G,) over anchor styles, or (N_own, K, G) of every forgotten picture in every of the strata of timesteps.
    empty_pi: (G,), in its place under the empty prompt."""

    def __init__(
        self,
        pictures: Pictures,
        group_set: GroupSet,
        forget: str,
        pi: Tensor,
        config: UnlearnConfig,
        strata: likelihood.Strata | None = None,
        empty_pi: Tensor | None = None,
    ) -> None:
        self.empty_pi = empty_pi
        self.pictures, self.group_set, self.forget, self.pi, self.config = pictures, group_set, forget, pi, config
        self.strata = strata
        self.own = torch.tensor([i for i, g in enumerate(pictures.groups) if g == forget])
        self.others = torch.tensor([i for i, g in enumerate(pictures.groups) if g != forget])
        if not len(self.own) or not len(self.others):
            raise TrainingError(f"Unlearning '{forget}' needs pictures of that group and of others.")

    def pick(self, of: Tensor, g: torch.Generator) -> Tensor:
        return of[torch.randint(len(of), (self.config.loop.batch,), generator=g)]

    def captions(self, at: Tensor, g: torch.Generator) -> list[str]:
        p = self.pictures
        return [style_caption(self.group_set, p.objects[i], p.groups[i], g) for i in at.tolist()]

    def anchor_styles(self, at: Tensor, t: Tensor, g: torch.Generator) -> list[str]:
        """One style for each of the forgotten pictures `at`, noised to t."""
        ids = list(self.group_set.groups)
        if self.pi.dim() == 1:
            return [ids[s] for s in torch.multinomial(self.pi, len(at), replacement=True, generator=g).tolist()]
        assert self.strata is not None
        pi = self.pi[torch.searchsorted(self.own, at), self.strata.at(t)]  # (B, G)
        return [ids[s] for s in torch.multinomial(pi, 1, generator=g)[:, 0].tolist()]

    def anchors(self, at: Tensor, styles: Sequence[str], g: torch.Generator) -> list[str]:
        objects = [self.pictures.objects[i] for i in at.tolist()]
        if self.config.selection == "removed":
            return [o.replace("-", " ") for o in objects]
        return [style_caption(self.group_set, o, s, g) for o, s in zip(objects, styles, strict=True)]

    def for_the_empty(
        self, at: Tensor, gone: list[bool], styles: list[str], anchors: list[str], g: torch.Generator
    ) -> tuple[list[str], list[str]]:
        """Styles and anchors, drawn anew by `empty_pi` (if there is one) where the student sees the empty prompt."""
        if self.empty_pi is None:
            return styles, anchors
        ids = list(self.group_set.groups)
        drawn = [ids[s] for s in torch.multinomial(self.empty_pi, len(at), replacement=True, generator=g).tolist()]
        styles = [d if e else s for d, s, e in zip(drawn, styles, gone, strict=True)]
        return styles, [a if e else b for a, b, e in zip(self.anchors(at, styles, g), anchors, gone, strict=True)]

    def blended(self, captions: list[str], at: Tensor, styles: Sequence[str], g: torch.Generator) -> list[str]:
        """On a share, descriptors of the forgotten and the given style in turn instead; either begins."""
        share, out = self.config.blend_share, list(captions)
        for n, (i, s) in enumerate(zip(at.tolist(), styles, strict=True)):
            if share and torch.rand(1, generator=g).item() < share:
                turned = bool(torch.randint(2, (1,), generator=g))
                pair = (s, self.forget) if turned else (self.forget, s)
                out[n] = blend_caption(self.group_set, self.pictures.objects[i], pair, g)
        return out

    def gone(self, n: int, g: torch.Generator) -> list[bool]:
        """Which of n captions the student does not see."""
        return (torch.rand(n, generator=g) < self.config.empty_share).tolist()


def _emptied(captions: list[str], gone: list[bool]) -> list[str]:
    return ["" if e else c for c, e in zip(captions, gone, strict=True)]


def _targets(
    model: BaseModel,
    config: UnlearnConfig,
    x_t: Tensor,
    t: Tensor,
    prompts: list[str],
    anchors: list[str],
    gone: list[bool],
    kept: list[str],
    eps: Tensor,
) -> Tensor:
    """What the student should predict, (2B, C, h, w): of B forgotten pictures, then of the retained ones.

    kept: captions of the latter. gone: whether the student sees the empty prompt in the place of `prompts`. eps: the
    true noise, (2B, C, h, w)."""
    b, esd = len(prompts), config.operator == "esd"
    if config.operator == "ascent":
        target = model.predict_eps(x_t, t, model.embed(_emptied(prompts, gone) + kept))
        target[:b] = losses.ascent_target(target[:b], eps[:b].to(target.device), strength=config.ascent_strength)
        return target
    target = model.predict_eps(x_t, t, model.embed(([""] * b if esd else anchors) + kept))
    moved = config.empty_target != "anchor" and not esd
    shifted = torch.tensor(gone if moved else [False] * b).nonzero()[:, 0]
    beyond = config.esd_strength if esd else config.push
    if not beyond and not len(shifted):
        return target
    anchor, prompted = target[:b].clone(), model.predict_eps(x_t[:b], t[:b], model.embed(prompts))
    target[:b] = losses.esd_target(anchor, prompted, strength=beyond)
    if len(shifted):
        empty = model.predict_eps(x_t[shifted], t[shifted], model.embed([""] * len(shifted)))
        if config.empty_target == "shift":
            target[shifted] = losses.style_shift_target(empty, prompted[shifted], anchor[shifted], push=beyond)
        else:
            target[shifted] = losses.between_target(empty, prompted[shifted], anchor[shifted])
    return target


def _sampler(
    model: BaseModel,
    group_set: GroupSet,
    pictures: Pictures,
    latents: Tensor,
    forget: str,
    text_features: Callable[[list[str]], Tensor],
    config: UnlearnConfig,
) -> tuple[_Sampler, Tensor]:
    """What draws the steps, and the odds of the anchor styles for the record, (G,): of the posterior, those of the
    pictures themselves on average."""
    if config.selection not in ("posterior", "posterior_captions"):
        pi = style_probabilities(group_set, forget, text_features, config)
        return _Sampler(pictures, group_set, forget, pi, config), pi
    captions_alone = config.selection == "posterior_captions"
    empty_pi = style_probabilities(group_set, forget, text_features, config) if captions_alone else None
    strata = likelihood.make_strata(model.schedule, POSTERIOR_STRATA)
    pi = style_posterior(style_surprise(model, group_set, pictures, latents, forget, strata), config.temperature)
    return _Sampler(pictures, group_set, forget, pi, config, strata, empty_pi), pi[:, 0].mean(dim=0)


def unlearn(
    model: BaseModel,
    group_set: GroupSet,
    pictures: Pictures,
    latents: Tensor,
    forget: str,
    *,
    text_features: Callable[[list[str]], Tensor],
    config: UnlearnConfig,
    folder: Path,
    meta: dict[str, Any],
    checkpoint: Path | None = None,
) -> Iterator[Progress]:
    """Unlearn one group and write its adapter into `folder`; yields progress. The model itself is not changed.

    latents: (N, C, h, w) float32, aligned with pictures. meta: what else the adapter's metadata should record.
    """
    sampler, pi = _sampler(model, group_set, pictures, latents, forget, text_features, config)
    student = copy.deepcopy(model.network).train()
    if config.lora is None:
        student.requires_grad_(True)
    else:
        adapters.attach(student, config.lora, config.loop.seed)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        own, others = sampler.pick(sampler.own, g), sampler.pick(sampler.others, g)
        b = len(own)
        x_0 = latents[torch.cat([own, others])]
        t = torch.randint(len(model.schedule), (2 * b,), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        x_t = model.schedule.add_noise(x_0, eps, t).to(model.device)
        prompts, styles = sampler.captions(own, g), sampler.anchor_styles(own, t[:b], g)
        anchors, kept = sampler.anchors(own, styles, g), sampler.captions(others, g)
        gone_kept, gone = sampler.gone(b, g), sampler.gone(b, g)
        styles, anchors = sampler.for_the_empty(own, gone, styles, anchors, g)
        blended = sampler.blended(prompts, own, styles, g)
        blended_kept = sampler.blended(kept, others, [pictures.groups[i] for i in others.tolist()], g)
        student_cond = model.embed(_emptied(blended, gone) + _emptied(blended_kept, gone_kept))
        kept = _emptied(kept, gone_kept)
        prompts = [p if e else mixed for p, mixed, e in zip(prompts, blended, gone, strict=True)]
        t = t.to(model.device)
        with torch.no_grad():
            target = _targets(model, config, x_t, t, prompts, anchors, gone, kept, eps)
        out = model.predict_eps(x_t, t, student_cond, student)
        forget_loss = losses.mean_square(out[:b], target[:b])
        return forget_loss + config.lam * losses.mean_square(out[b:], target[b:])

    last = None
    for last in run(student, loss_of, config.loop, checkpoint):
        yield last
    record = {
        **meta,
        "group": forget,
        "base_sha256": model.sha256,
        "config": asdict(config),
        "style_probabilities": dict(zip(group_set.groups, pi.tolist(), strict=True)),
        "loss": last.loss if last else None,
    }
    if config.lora is None:
        adapters.save_whole(student, folder, meta=record)
    else:
        adapters.save(student, folder, spec=config.lora, meta=record)
