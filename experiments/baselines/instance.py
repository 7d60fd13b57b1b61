"""Instance unlearning (Wang et al. 2024, arXiv 2406.09408): unlearn the query picture, see which pictures suffer.

    theta' = theta + (eta / N) F^-1 grad_theta L(x),   score_k = mean over group k of L(x_i; theta') - L(x_i; theta)

L: mean over K timesteps of mean((eps - eps_hat)^2), with the same noise before and after. F: diagonal empirical Fisher,
the mean over the training pictures of the squared gradient of L(x_i), plus damping times its own mean. There are far
more weights than pictures, so the Newton step eta = 1 leaves the region where it means anything; by default eta is
chosen for each query so that its own loss rises by a fixed fraction to first order (neither rule looks at an oracle):

    eta / N * grad L(x)^T F^-1 grad L(x) = rise * L(x)

Changed are the cross-attention keys and values of text models, the attention queries, keys and values of unconditional
ones, unless `parts` says otherwise. Positive = contributed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from guda_core.attribution.aggregate import check_aggregate, group_scores, lead
from guda_core.attribution.gradient.features import FeatureConfig, Gradients
from guda_core.attribution.gradient.store import Store
from guda_core.attribution.method import Budget, Context, Method, Unavailable
from guda_core.data.encoded import Examples
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import OptionError, ScoreError
from guda_core.records import Attribution, Cost, Query

PARTS = {"stable_diffusion": ("attn2.to_k", "attn2.to_v"), "unconditional": ("to_q", "to_k", "to_v")}
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "conv_shortcut", "conv", "conv_out")  # for `parts`: all convolutions


@dataclass(frozen=True)
class InstanceConfig:
    """timesteps: K. eta: step, None = by `rise`. rise: first-order rise of the query's loss over that loss (not used
    with an eta). damping: over the Fisher's mean. parts: endings of the changed modules' names, () = by
    the kind of model. aggregate: "mean" (paper) or "sum" over a group's pictures."""

    timesteps: int = 10
    eta: float | None = None
    rise: float = 0.05
    damping: float = 0.1
    parts: tuple[str, ...] = ()
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate)
        if self.damping <= 0 or self.rise <= 0 or (self.eta is not None and self.eta <= 0):
            raise OptionError("eta, rise and damping must be positive.")


class Instance(Method):
    """Scores groups by how much their pictures' loss rises when the query is unlearned."""

    id = "instance"
    name = "Instance unlearning"
    unit = "loss"
    note = (
        "Influence: how much worse the model explains the group's pictures once it has unlearned this one, to second "
        "order. The interval is the spread over the group's pictures."
    )

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        if context.examples is None:
            return Unavailable("It needs the training pictures, which are not at hand.")
        return cls(context.model, context.examples, context.groups)

    def __init__(
        self, model: BaseModel, examples: Examples, group_ids: Sequence[str], config: InstanceConfig | None = None
    ) -> None:
        self.config = config or InstanceConfig()
        self.model, self.examples, self.group_ids = model, examples, list(group_ids)
        parts = self.config.parts or PARTS[model.card.kind]
        self.features = FeatureConfig(output="loss", timesteps=self.config.timesteps, dim=0, parts=parts)
        data = {"base_sha256": model.sha256, "examples_sha256": examples.sha256()}
        self.store = Store("fisher", {**data, "timesteps": self.config.timesteps, "parts": parts})

    @cached_property
    def gradients(self) -> Gradients:
        """Of a copy of the network of its own, which is made when it is first needed."""
        return Gradients(self.model, self.features, own=True)

    def prepare(self) -> Iterator[float]:
        """Compute the Fisher and the losses before, unless they are in the cache; yields the fraction done."""
        if self.store.complete:
            return
        e, n = self.examples, len(self.examples)
        fisher, loss = self.store.create("fisher", (self.gradients.size,)), self.store.create("loss", (n,))
        total = torch.zeros(self.gradients.size, dtype=torch.float64)
        for i in range(n):
            total += self.gradients.at(e.latents[i : i + 1], e.prompts[i], e.hashes[i]).vector.double().square()
            yield 0.9 * (i + 1) / n
        fisher[:] = (total / n).float().numpy()
        loss[:] = np.concatenate(list(self.gradients.losses(e)))
        del fisher, loss
        self.store.finish()
        yield 1.0

    def cost(self, budget: Budget) -> Cost:
        """The loss of every training picture after the step, and the query's gradient and own losses."""
        k = self.config.timesteps
        return Cost(forward=k * (len(self.examples) + 3), gradients=k)

    def provenance(self) -> dict[str, Any]:
        return {k: self.store.settings[k] for k in ("base_sha256", "examples_sha256")}

    def loss(self, query: Query) -> float:
        """L(x) of the query as the copy is now."""
        own = Examples(query.latent, (query.prompt,), ("",), (query.image_hash,))
        return float(next(self.gradients.losses(own))[0])

    def step(self, query: Query) -> tuple[Tensor, float]:
        """theta' - theta, (P,) float32, and eta. Raises CacheError when the Fisher is missing or damaged."""
        f = torch.from_numpy(np.array(self.store.open()["fisher"], np.float64))
        g = self.gradients.at(query.latent, query.prompt, query.image_hash).vector.double()
        damped = f + self.config.damping * f.mean()
        if not float(damped.min()) > 0:
            raise ScoreError("The Fisher information is zero, so there is no step and no score.")
        direction, n = g / damped, len(self.examples)
        eta = self.config.eta or n * self.config.rise * self.loss(query) / float(g @ direction)
        return (eta / n * direction).float(), eta

    @contextmanager
    def unlearned(self, step: Tensor) -> Iterator[None]:
        """Within the block the copy of the denoiser is at theta'; afterwards it is what it was, bit by bit."""
        kept = [p.detach().clone() for p in self.gradients.parameters.values()]
        parts = step.split([p.numel() for p in kept])
        try:
            with torch.no_grad():
                for p, d in zip(self.gradients.parameters.values(), parts, strict=True):
                    p.add_(d.reshape(p.shape).to(p.device))
            yield
        finally:
            with torch.no_grad():
                for p, w in zip(self.gradients.parameters.values(), kept, strict=True):
                    p.copy_(w)

    def attribute(self, query: Query, budget: Budget | None = None) -> Iterator[Attribution]:
        """Yields Attributions without scores while it computes, then the answer.

        budget: has no influence; the timesteps are the config's. values: every picture's rise, and the query's own.
        """
        for fraction in self.prepare():
            yield Attribution(self.id, self.unit, {}, 0.5 * fraction)
        before = np.array(self.store.open()["loss"], np.float64)
        after: list[np.ndarray] = []
        step, eta = self.step(query)
        own_rise = -self.loss(query)
        with self.model.lock, self.unlearned(step):
            own_rise += self.loss(query)
        losses = self.gradients.losses(self.examples)
        while sum(map(len, after)) < len(before):
            with self.model.lock, self.unlearned(step):
                after.append(next(losses))
            yield Attribution(self.id, self.unit, {}, 0.5 + 0.49 * sum(map(len, after)) / len(before))
        rise = np.concatenate(after) - before
        scores = group_scores(rise, self.examples.groups, self.group_ids, self.config.aggregate)
        settings = {**self.store.settings, "config": asdict(self.config), "eta": eta}
        values = {"pictures": rise, "query": np.array([own_rise])}
        yield Attribution(self.id, self.unit, scores, values=values, settings=settings, **lead(scores))
