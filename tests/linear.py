"""A one-layer denoiser in which everything has a closed form, with pictures of three groups and a query."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from guda_core.data.encoded import Examples
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import Prediction
from guda_core.records import Query
from tests.test_elbo import linear_schedule

GROUPS, D, K = ("a", "b", "c"), 4, 3


class Linear:
    """A one-layer denoiser, eps_hat = W x_t, on pictures of D numbers: everything has a closed form."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.network = nn.Linear(D, D, bias=False)
        self.network.weight.data = weight.clone()
        self.schedule, self.device, self.dtype = linear_schedule(), torch.device("cpu"), torch.float32
        self.prediction = Prediction("epsilon", self.schedule)
        self.card, self.sha256 = SimpleNamespace(id="linear", kind="unconditional"), f"{float(weight.sum()):.6f}"
        self.lock = threading.RLock()

    def goes_by(self, sha256):
        return sha256 == self.sha256

    def embed(self, prompts):
        return Condition({}, len(prompts))

    def predict(self, x_t, t, condition, network=None):
        return (network or self.network)(x_t.flatten(1)).reshape(x_t.shape)

    predict_eps = predict


def linear_world() -> SimpleNamespace:
    """model, nine examples of three groups, and a query."""
    g = torch.Generator().manual_seed(0)
    model = Linear(0.5 * torch.randn(D, D, generator=g))
    z = torch.randn(9, 1, 2, 2, generator=g)
    examples = Examples(z, ("",) * 9, tuple(GROUPS[i // 3] for i in range(9)), tuple(f"h{i}" for i in range(9)))
    query = Query(np.zeros(1), torch.randn(1, 1, 2, 2, generator=g), "", "q")
    return SimpleNamespace(model=model, examples=examples, query=query)
