"""How near the targets of unlearning come to the retrained models: `python -m experiments.ablations.targets`.

GUDA-C makes the model answer a forgotten caption as the full model answers an anchor. What it should answer is known
here: the live oracle was retrained without the group. On training pictures of each group the estimates of both are set
beside each candidate target, under the caption and under the empty prompt:

    distance(target) = sum_t w_t E ||target(x_t, t) - eps_without(x_t, t)||^2      nats, w_t as in a KL

No adapter is made, and no query of the benchmark is looked at. Written to assets/benchmarks/targets.json, with the
coefficients that would be best where the target is a way from the full model's own estimate: 1 says that the target
goes as far as the retrained model does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.ablations import formulas
from experiments.ablations.posterior import STRATA, style_posterior, style_surprise
from experiments.commands import keep_record
from guda_core.attribution.logo import Logo
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.prediction import Prediction
from guda_core.local import LocalService, load_service
from guda_core.paths import ROOT
from guda_core.unlearning import adapters, switching
from guda_core.unlearning.config import UnlearnConfig
from guda_core.unlearning.guda_c import anchor_odds
from guda_core.unlearning.run import Forgetting

FILE = "targets.json"
TEMPERATURES = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def chosen(pictures: Pictures, latents: Tensor, group: str, n: int, seed: int) -> tuple[Pictures, Tensor]:
    """n of the group's pictures, drawn from the seed, and their latents."""
    own = [i for i, g in enumerate(pictures.groups) if g == group]
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    at = [own[i] for i in order]
    return pictures.at(at), latents[at]


@torch.no_grad()
def estimates(model: BaseModel, x_t: Tensor, t: Tensor, captions: list[str]) -> Tensor:
    """(P, K, C, h, w): the model's estimates of P captions at the same K noised latents."""
    conds = model.embed(captions)
    return torch.stack([model.predict_eps(x_t, t, c.expand(len(t))).double() for c in conds])


class Distances:
    """Means over pictures of KL-weighted inner products of differences, in nats.

    weights: (N, K) of each picture's timesteps, times the strata's sizes."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def inner(self, a: Tensor, b: Tensor) -> float:
        return float((self.weights * (a * b).sum(dim=(2, 3, 4))).sum(dim=1).mean())

    def of(self, target: Tensor, truth: Tensor) -> float:
        return self.inner(target - truth, target - truth)

    def way(self, truth: Tensor, start: Tensor, direction: Tensor) -> float:
        """The coefficient of the direction that brings start nearest to the truth."""
        return self.inner(truth - start, direction) / self.inner(direction, direction)


def measure(
    service: LocalService, job: Forgetting, group: str, pictures: Pictures, latents: Tensor, strata: likelihood.Strata
) -> dict[str, Any]:
    """One row: {group, prompt: {target: distance}, empty: the same, way_prompt, way_empty_anchor, way_empty_shift}."""
    model, gs = service.model, service.group_set
    ids, own = list(gs.groups), list(gs.groups).index(group)
    oracle = adapters.load(service.offered[Logo.id].folder / group, model=model, group=group)
    generator, captioner = torch.Generator().manual_seed(0), captioner_of(gs)
    full, without, t_of = [], [], []
    for i, item in enumerate(pictures):
        draws = likelihood.draw_times(f"targets/{item.id}", strata, 1)
        t = torch.tensor(draws.t[:, 0])
        shape = tuple(latents.shape[1:])
        noise = torch.stack([draws.noise(shape, k, 0) for k in range(len(t))])
        x_t = model.schedule.add_noise(latents[i].expand(len(t), *shape), noise, t)
        captions = [captioner.anchor(item, s, generator) for s in ids]
        full.append(estimates(model, x_t, t, [*captions, ""]))
        with switching.applied(model.network, oracle):
            without.append(estimates(model, x_t, t, [captions[own], ""]))
        t_of.append(t)
    of, t = torch.stack(full), torch.stack(t_of)  # (N, G + 1, K, C, h, w), (N, K)
    prompted, empty, styles = of[:, own], of[:, -1], of[:, :-1].transpose(1, 2)
    true_prompted, true_empty = (torch.stack(without)[:, k] for k in (0, 1))
    d = Distances(likelihood.kl_weights(Prediction("epsilon", model.schedule))[t] * torch.tensor(strata.sizes))

    coarse = likelihood.make_strata(model.schedule, STRATA)
    surprise = style_surprise(model, captioner_of(gs), list(pictures), latents, group, coarse)  # (N, 8, G)
    surprise = torch.stack([s[k] for s, k in zip(surprise, coarse.at(t), strict=True)])  # (N, K, G)

    def mean(pi: Tensor) -> Tensor:
        return (pi.double()[..., None, None, None] * styles).sum(dim=2)

    anchors = {}
    for name in ("weighted", "uniform"):
        pi = anchor_odds(captioner_of(gs), group, job.clip.text_features, UnlearnConfig(selection=name))
        anchors[name] = mean(pi.expand(len(t), len(strata), -1))
    for nats in TEMPERATURES:
        anchors[f"posterior, {nats:g} nats"] = mean(style_posterior(surprise, nats))
    row: dict[str, Any] = {"group": group, "n": len(pictures)}
    row["prompt"] = {"nothing": d.of(prompted, true_prompted)}
    row["prompt"] |= {name: d.of(a, true_prompted) for name, a in anchors.items()}
    row["empty"] = {"nothing": d.of(empty, true_empty)}
    for name, a in anchors.items():
        row["empty"][f"anchor: {name}"] = d.of(a, true_empty)
        row["empty"][f"shift: {name}"] = d.of(formulas.style_shift_target(empty, prompted, a, push=0.0), true_empty)
        row["empty"][f"between: {name}"] = d.of(formulas.between_target(empty, prompted, a), true_empty)
    row["way_prompt"] = {name: d.way(true_prompted, prompted, a - prompted) for name, a in anchors.items()}
    row["way_empty_anchor"] = {name: d.way(true_empty, empty, a - empty) for name, a in anchors.items()}
    row["way_empty_shift"] = {name: d.way(true_empty, empty, a - prompted) for name, a in anchors.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24, help="of each group")
    parser.add_argument("--strata", type=int, default=24, help="of timesteps, one draw in each")
    parser.add_argument("--seed", type=int, default=3, help="of the choice of pictures")
    parser.add_argument("--folder", type=Path, default=ROOT / "assets" / "benchmarks")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    service = load_service(fall_back=False)
    if Logo.id not in service.offered:
        raise SystemExit("There is no live oracle to measure against: `python -m experiments.logo --live` makes it.")
    job = Forgetting(service.group_set)
    strata = likelihood.make_strata(service.model.schedule, args.strata)
    rows = []
    for g in service.group_set.groups:
        some, latents = chosen(*job.training_pictures(), g, args.pictures, args.seed)
        rows.append(measure(service, job, g, some, latents, strata))
        of = rows[-1]["prompt"]
        nearest = min(of, key=lambda name: of[name])
        print(f"{g}: nothing {of['nothing']:.0f} nats, nearest ({nearest}) {of[nearest]:.0f}", flush=True)
    record = {
        "command": "python -m experiments.ablations.targets",
        "unit": "nats",
        "settings": {k: v for k, v in vars(args).items() if k != "folder"},
        "base_sha256": service.model.sha256,
        "rows": rows,
    }
    keep_record(args.folder / FILE, record)


if __name__ == "__main__":
    main()
