"""Drawing pictures: the one loop of all families, with a scheduler of diffusers and classifier-free guidance.

output = output("") + guidance (output(prompt) - output(""))                            (Ho & Salimans 2022)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.memory import in_batches


def start_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Normal noise of one latent a seed: (B, *shape) float32, from the CPU's generator."""
    made = (torch.Generator().manual_seed(int(s)) for s in seeds)
    return torch.stack([torch.randn(tuple(shape), generator=g, dtype=torch.float32) for g in made])


def draw(
    model: BaseModel,
    scheduler: Any,
    *,
    prompted: Condition,
    empty: Condition | None,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    answer: Callable[[Tensor, Tensor, Condition], Tensor] | None = None,
    times: Mapping[str, Any] | None = None,
) -> Iterator[np.ndarray | None]:
    """None after each step but the last, then the pictures (B, H, W, 3) uint8.

    scheduler: a fresh one of diffusers; it is changed. prompted, empty: conditions of B pictures; without an empty one,
    or where guidance is 1, the prompted one is all that counts. seeds: B. answer: the network's output for x_t
    (B, C, h, w), the scheduler's own times (B,) and a condition; None = `model.predict`. times: further arguments of
    the scheduler's `set_timesteps`.

    Raises:
        ModelError: a value is not finite, so there is no picture.
        NoMemoryError: not even one picture can be decoded.
    """
    answer, empty = answer or model.predict, None if guidance == 1 else empty
    scheduler.set_timesteps(steps, **(times or {}))
    z = (start_noise(model.latent_shape, seeds) * getattr(scheduler, "init_noise_sigma", 1.0)).to(model.device)
    condition = prompted if empty is None else Condition.cat([prompted, empty])
    last = len(scheduler.timesteps) - 1
    for i, t in enumerate(scheduler.timesteps):
        with model.lock, torch.no_grad():
            x_t = z if empty is None else torch.cat([z, z])
            output = answer(x_t, t.expand(len(x_t)).to(model.device), condition)
            if empty is not None:
                with_prompt, without = output.chunk(2)
                output = without + guidance * (with_prompt - without)
            z = check_finite(scheduler.step(output, t, z).prev_sample, f"Step {i + 1} of {last + 1} of the drawing")
        yield decoded(model, z) if i == last else None


def decoded(model: BaseModel, z: Tensor) -> np.ndarray:
    """The pictures of latents (B, C, h, w), as many at once as fit into memory: (B, H, W, 3) uint8. Raises ModelError
    when a value is not finite, NoMemoryError when not even one fits."""

    def run(part: Sequence[int]) -> list[np.ndarray]:
        return list(model.decode(z[part[0] : part[-1] + 1]))

    return np.stack(in_batches(run, range(len(z)), len(z)))
