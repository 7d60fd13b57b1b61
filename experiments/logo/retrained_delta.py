"""The live oracle: every LOGO model in a few megabytes, so that `logo` can be asked of any picture.

A LOGO model is as large as the full one and, trained anew, far from it in every weight. It is stored as its coded
difference (`unlearning.delta`). What is lost is measured: the scores of the coded model beside those of the model
itself, over fixed pictures, with the same noise (`fidelity`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from guda_core.data.captions import captioner_of, drop
from guda_core.data.dataset import Pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.records import GroupSet, Query
from guda_core.unlearning import adapters, delta, switching


@dataclass(frozen=True)
class LiveConfig:
    """megabytes: most that a coded model takes. batches, batch, empty_share, seed: of the training pictures that the
    network's sensitivity is measured on; empty_share of them under the empty prompt. draws: in each stratum of
    timesteps, to measure what is lost."""

    megabytes: float = 4.6
    batches: int = 16
    batch: int = 16
    empty_share: float = 0.4
    seed: int = 5
    draws: int = 1


def sensitivity(
    model: BaseModel, group_set: GroupSet, pictures: Pictures, latents: Tensor, config: LiveConfig
) -> dict[str, float]:
    """Parameter name -> mean square derivative of the noise estimate by one weight of the tensor, summed over the
    estimate's elements: E (v^T J)^2 over normal v, pictures and uniform timesteps.

    latents: (N, C, h, w) float32, aligned with pictures.
    """
    network = copy.deepcopy(model.network).train().requires_grad_(True)
    out = dict.fromkeys(dict(network.named_parameters()), 0.0)
    g, captioner = torch.Generator().manual_seed(config.seed), captioner_of(group_set)
    for _ in range(config.batches):
        at = torch.randint(len(latents), (config.batch,), generator=g)
        captions = [captioner.caption(pictures[i], g) for i in at.tolist()]
        cond = model.embed(drop(captions, config.empty_share, g))
        t = torch.randint(1, len(model.schedule), (config.batch,), generator=g)
        eps, v = (torch.randn(latents[at].shape, generator=g) for _ in range(2))
        x_t = model.schedule.add_noise(latents[at], eps, t).to(model.device)
        network.zero_grad(set_to_none=True)
        (model.predict_eps(x_t, t.to(model.device), cond, network) * v.to(model.device)).sum().backward()
        for name, p in network.named_parameters():
            if p.grad is not None:
                out[name] += float(p.grad.double().square().mean()) / config.batch / config.batches
    return out


def compress(
    model: BaseModel,
    logo: Mapping[str, Tensor],
    group: str,
    sensitive: Mapping[str, float],
    *,
    config: LiveConfig,
    folder: Path,
    meta: dict[str, Any],
) -> adapters.Adapter:
    """Write the LOGO model without `group` as its coded difference from the full model.

    logo: its weights by name. sensitive: what `sensitivity` gave. meta: what else the metadata should record.

    Raises:
        ValueError: config.megabytes are too few.
    """
    base = {n: p.detach().cpu() for n, p in model.network.named_parameters()}
    stored = delta.fit(base, logo, sensitive, int(config.megabytes * 1e6))
    record = {**meta, "group": group, "base_sha256": model.sha256, "config": asdict(config)}
    adapters.save_coded(stored, folder, meta=record)
    return adapters.load(folder, model=model, group=group)


def fidelity(
    model: BaseModel, logo: Mapping[str, Tensor], coded: adapters.Adapter, queries: Sequence[Query], config: LiveConfig
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields (fraction done, {}) and last (1.0, what was lost), in nats.

    That is: spearman, the rank correlation over the pictures of the coded model's scores with the exact ones; bias and
    rms of the difference; sd, the standard deviation of the exact scores; and both scores of every picture, "exact" and
    "live". All models meet the same timesteps and noise, so that only the coding differs.

    logo: the exact model's weights by name.
    """
    exact = adapters.Adapter(coded.group, {}, 1.0, {}, whole=dict(logo))
    blocks = (nullcontext, *(partial(switching.applied, model.network, a) for a in (exact, coded)))
    strata = likelihood.make_strata(model.schedule)
    sums = np.empty((len(blocks), len(queries)))
    for b, within in enumerate(blocks):
        with model.lock, within():
            for i, q in enumerate(queries):
                draws = likelihood.draw_times(q.image_hash, strata, config.draws)
                values = likelihood.kl_values(model, q.latent, model.embed([q.prompt]), draws, range(config.draws))
                sums[b, i] = likelihood.stratified_sum(values, strata).value
                yield (b + (i + 1) / len(queries)) / len(blocks) * 0.999, {}
    right, live = sums[1:] - sums[0]
    yield (
        1.0,
        {
            "pictures": len(queries),
            "spearman": float(np.corrcoef(rankdata(right), rankdata(live))[0, 1]),
            "bias": float((live - right).mean()),
            "rms": float(np.sqrt(((live - right) ** 2).mean())),
            "sd": float(right.std()),
            "exact": np.round(right, 2).tolist(),
            "live": np.round(live, 2).tolist(),
        },
    )
