"""GUDA-C (arXiv 2601.22651): forget a group of a text-conditional model by an anchor caption.

    target = eps_full(x_t, t, c_a)

The anchor c_a keeps what the picture's caption says it shows and takes the words of a retained group s ~ pi:

    pi(s) = (1 - eta) softmax_s(beta cos(words of the forgotten group, words of s)) + eta uniform      ("weighted", WSS)

or uniform (ours), or no group's words ("removed"). Ours is also that on a share of the pictures the student sees the
empty prompt, with the same target: the unconditional model of the retained data is the mixture of its conditional ones.
Uploads need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from guda_core.data.captions import Captioner
from guda_core.errors import OptionError
from guda_core.unlearning import losses
from guda_core.unlearning.config import UnlearnConfig
from guda_core.unlearning.forget import ForgetLoss, Half, Task


def anchor_odds(
    captioner: Captioner,
    forget: str,
    text_features: Callable[[list[str]], Tensor] | None,
    config: UnlearnConfig,
) -> Tensor:
    """pi over the group set's groups, (G,); the forgotten one has 0.

    Raises:
        OptionError: groups are to be compared by their words, and no text features are there.
    """
    ids = list(captioner.group_set.groups)
    own = ids.index(forget)
    if config.selection != "weighted":
        return losses.anchor_probabilities(torch.zeros(len(ids), dtype=torch.float32), beta=0.0, eta=1.0, exclude=own)
    if text_features is None:
        raise OptionError("The selection 'weighted' compares the groups' words, and there are no text features.")
    words = [text_features(list(captioner.phrases(g))).mean(dim=0) for g in ids]
    prototypes = torch.nn.functional.normalize(torch.stack(words), dim=1)  # (G, D)
    return losses.anchor_probabilities(prototypes @ prototypes[own], beta=config.beta, eta=config.eta, exclude=own)


class GudaC(ForgetLoss):
    """Answer a forgotten caption as the full model answers its anchor."""

    settings = UnlearnConfig
    needs_prompts = True

    def __init__(self, task: Task, config: UnlearnConfig) -> None:
        super().__init__(task, config)
        self.ids = list(task.captioner.group_set.groups)
        self.odds = self.find_odds()

    def find_odds(self) -> Tensor:
        """pi, (G,)."""
        return anchor_odds(self.task.captioner, self.task.forget, self.task.text_features, self.config)

    def draw(self, forgotten: Half, rng: torch.Generator) -> None:
        forgotten.notes["groups"] = self.draw_groups(forgotten, rng)
        forgotten.notes["anchors"] = self.anchors(forgotten, rng)

    def draw_groups(self, half: Half, rng: torch.Generator) -> list[str]:
        """The anchor's group, of each picture."""
        drawn = torch.multinomial(self.odds, len(half.at), replacement=True, generator=rng)
        return [self.ids[s] for s in drawn.tolist()]

    def anchors(self, half: Half, rng: torch.Generator) -> list[str]:
        """The anchor captions, of each picture with the group that was drawn."""
        items, captioner = [self.task.items[i] for i in half.at.tolist()], self.task.captioner
        if self.config.selection == "removed":
            return [captioner.content(i) for i in items]
        return [captioner.anchor(i, g, rng) for i, g in zip(items, half.notes["groups"], strict=True)]

    def asked(self, forgotten: Half) -> list[str] | None:
        return forgotten.notes["anchors"]

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        assert answer is not None
        return answer

    def record(self) -> Mapping[str, Any]:
        return {"style_probabilities": dict(zip(self.ids, self.odds.tolist(), strict=True))}
