"""A small convolutional classifier of the groups, whose features serve as a likeness.

Two convolutions and a hidden layer, cross-entropy on the group's index. It sees the training pictures' groups, which
the diffusion model never does, so its likeness is a strong baseline where groups are classes of content.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.train.unet import epoch_batch
from guda_core.data.dataset import Pictures
from guda_core.diffusion.pixels import to_unit
from guda_core.unlearning.loop import LoopConfig, Progress, run


@dataclass(frozen=True)
class ClassifierConfig:
    """width: features of the hidden layer. channels: of the convolutions."""

    width: int = 64
    channels: tuple[int, int] = (32, 64)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=600, batch=64, lr=2e-3, warmup=20, seed=11))


class Classifier(nn.Module):
    """(B, H, W, 3) uint8 pixels of one size -> features (B, width) or logits (B, groups)."""

    def __init__(self, size: int, groups: int, config: ClassifierConfig) -> None:
        super().__init__()
        a, b = config.channels
        self.body = nn.Sequential(
            nn.Conv2d(3, a, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(b * ((size + 1) // 2) ** 2, config.width),
            nn.ReLU(),
        )
        self.head = nn.Linear(config.width, groups)

    def hidden(self, pixels: np.ndarray) -> Tensor:
        """The hidden layer, (B, width); keeps gradients."""
        return self.body(to_unit(pixels))

    def forward(self, pixels: np.ndarray) -> Tensor:
        return self.head(self.hidden(pixels))

    @torch.no_grad()
    def image_features(self, pixels: np.ndarray, batch: int = 512) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, width) float32 of unit length."""
        parts = [self.hidden(pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
        return F.normalize(torch.cat(parts), dim=1)


def train(pictures: Pictures, config: ClassifierConfig) -> Generator[tuple[Progress, Classifier], None, None]:
    """Train on the pictures' groups, in alphabetical order of their ids; yields (progress, classifier) each step."""
    ids = sorted(set(pictures.groups))
    labels = torch.tensor([ids.index(g) for g in pictures.groups])
    torch.manual_seed(config.loop.seed)
    model = Classifier(pictures.pixels.shape[1], len(ids), config)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        at = epoch_batch(len(pictures), config.loop.batch, step, config.loop.seed)
        return F.cross_entropy(model(pictures.pixels[at.numpy()]), labels[at])

    for progress in run(model, loss_of, config.loop):
        yield progress, model
    model.eval().requires_grad_(False)
