"""ESD (Gandikota et al. 2023, arXiv 2303.07345, eq. 4): away from the forgotten group, from where the model stands.

    target = eps_full(x_t, t) - s (eps_forget(x_t, t) - eps_full(x_t, t))

`Esd`, of text-conditional models: eps_full under the empty prompt, eps_forget the same model under the picture's
caption. `EsdFineTuned`, of unconditional ones: there is no caption to push away from, so eps_forget is a copy of the
model fine-tuned on the group's pictures. (The paper of GUDA takes a class-conditional model; the copy needs no second
training from scratch.) Why it is sensible: p_full = pi p_forget + (1 - pi) p_retained gives

    eps_retained = eps_full - r / (1 - r) (eps_forget - eps_full),   r(x_t) = P(forgotten group | x_t)

exactly, so ESD is that identity with the odds r / (1 - r) held at a constant s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from guda_core.records import Cost
from guda_core.unlearning import losses
from guda_core.unlearning.config import UnconditionalConfig
from guda_core.unlearning.forget import ForgetLoss, Half
from guda_core.unlearning.guda_c import GudaC
from guda_core.unlearning.loop import Progress, run
from guda_core.unlearning.one_group import draw_noised
from guda_core.unlearning.student import precision, scaler, seeded_dropout, student_of


class Esd(GudaC):
    """Away from the caption, by the model's own guidance.

    It draws the anchors of GUDA-C and leaves them, so that both meet the same pictures, timesteps and captions.
    """

    def passes(self, batch: int) -> int:
        return 2 * batch

    def asked(self, forgotten: Half) -> list[str] | None:
        return [""] * len(forgotten.at)

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        assert answer is not None
        prompted = self.task.eps(forgotten.x_t, forgotten.t, forgotten.prompts)
        return losses.esd_target(answer, prompted, strength=self.config.esd_strength)


class EsdFineTuned(ForgetLoss):
    """Away from a copy of the model that was trained on with the group's pictures alone."""

    settings = UnconditionalConfig
    needs_prompts = False
    expert: nn.Module | None = None

    def prepare(self, checkpoint: Path | None) -> Iterator[Progress]:
        """Fine-tune the copy, from a seed of its own."""
        task, config = self.task, self.config
        expert = student_of(task.model, config)
        loop = dataclasses.replace(config.loop, steps=config.expert_steps, seed=config.loop.seed + 1)
        prompts = [""] * loop.batch

        def loss_of(step: int, rng: torch.Generator) -> Iterator[Tensor]:
            _, _, eps, x_t, t = draw_noised(task, task.own, loop.batch, rng)
            with seeded_dropout(expert, rng):
                for part in task.pieces.of(loop.batch):
                    with precision(task.model):
                        out = task.eps(x_t[part], t[part], prompts[part], expert)
                        loss = losses.mean_square(out, eps[part].to(x_t.device)) * (len(out) / loop.batch)
                    yield loss
                    del out, loss

        for p in run(
            expert, loss_of, loop, checkpoint,
            scaler=scaler(task.model), beside=task.pieces, shrink=task.pieces.halve,
        ):  # fmt: skip
            yield dataclasses.replace(p, note="fine-tuning on the forgotten group")
        self.expert = expert.requires_grad_(False).eval()

    def passes(self, batch: int) -> int:
        return 2 * batch

    def preparation(self) -> Cost:
        return Cost(gradients=self.config.expert_steps * self.config.loop.batch)

    def stand_in(self) -> None:
        self.expert = self.task.model.network

    def target(self, forgotten: Half, answer: Tensor | None) -> Tensor:
        full, forgot = (self.task.eps(forgotten.x_t, forgotten.t, forgotten.prompts, n) for n in (None, self.expert))
        return losses.esd_target(full, forgot, strength=self.config.esd_strength)
