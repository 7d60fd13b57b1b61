"""The oracle of the second edition: for each seed the full model and one without each group, ending in values.

    logo/<training>/values.npz     draw -> (Q, K, M) float32 KL in nats at its fixed queries, all models with one noise
    logo/<training>/training.json  settings, device, seconds, losses; written last
    live/<group>/                  the first seed's model without the group, as its coded difference (delta compression)

The embedded model is the first seed's full one. All inputs of the scoring lie on the device, made once in each process.
The other seeds need neither it nor the pictures: the packed latents and the CLIP are enough.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmark.scores import ScoreConfig, hash_state
from experiments.benchmark.strata import make_strata
from experiments.logo import retrained_delta
from experiments.logo.trainings import Job as Training
from experiments.second import fast_trainings
from experiments.second.edition import Asked, place, plain, the_set
from experiments.second.fast_trainings import Bank
from experiments.second.second_stages import PACKED, model_of, started
from experiments.seeds import packed, seed_trainings
from experiments.seeds.packed import Packed
from experiments.train import stages
from experiments.train import unet as unet_training
from guda_core.diffusion import likelihood
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.jobs.job import Job, Steps
from guda_core.records import Query
from guda_core.unlearning import adapters
from guda_core.unlearning.adapter_files import NETWORK
from guda_core.unlearning.loop import Progress
from guda_core.versions import today, versions

RECORD, VALUES, SENSITIVE = "training.json", "values.npz", "sensitivity.json"


@lru_cache(maxsize=1)
def opened(work: Path) -> Packed:
    """Latents, names and queries, read once in each process."""
    return packed.read(place(PACKED))


@lru_cache(maxsize=1)
def captions(asked: Asked, work: Path, seed: int) -> Bank:
    """The captions of a seed's trainings, embedded once in each process."""
    of, how = opened(work).pictures["train"], asked.how
    embed = stages.text_encoder(how.device)
    return fast_trainings.bank_of(of, the_set(asked.group_set), embed, asked.edition.captions, seed, how)


@dataclass(frozen=True)
class Inputs:
    """All that a draw's queries are asked with, on the device. latents: (Q, C, h, w); eps: (Q, N, C, h, w); t: (Q, N)
    int64; w: (Q, N) float64 weights of a squared error, on the CPU; text: (Q, L, D). N = strata x draws, by draw."""

    latents: Tensor
    eps: Tensor
    t: Tensor
    w: Tensor
    text: Tensor


def schedule() -> Schedule:
    """On the CPU, where `likelihood` draws."""
    return Schedule.ddpm(unet_training.make_scheduler().alphas_cumprod)


@torch.no_grad()
def inputs_of(embed: stages.TextEncoder, queries: Sequence[Query], config: ScoreConfig, device: str) -> Inputs:
    """The same timesteps and noise as `likelihood.noised` makes, for all queries."""
    own, columns = schedule(), config.columns
    strata = make_strata(own, config.strata, config.rule)
    times, noises = [], []
    for q in queries:
        draws = likelihood.draw_times(q.image_hash, strata, columns.stop)
        pairs = [(k, j) for j in columns for k in range(len(strata))]
        times.append([int(draws.t[k, j]) for k, j in pairs])
        noises.append(torch.stack([draws.noise(tuple(q.latent.shape[1:]), k, j) for k, j in pairs]).to(device))
    t = torch.tensor(times)
    prompts = [q.prompt for q in queries]
    parts = [embed(prompts[i : i + 256]) for i in range(0, len(prompts), 256)]
    latents = torch.cat([q.latent for q in queries]).to(device)
    w = likelihood.kl_weights(Prediction("epsilon", own))[t]
    return Inputs(latents, torch.stack(noises), t.to(device), w, torch.cat(parts))


@lru_cache(maxsize=2)
def inputs(asked: Asked, work: Path, draw: str) -> Inputs:
    """Of a draw of the fixed queries; made once in each process."""
    device = asked.how.device
    return inputs_of(stages.text_encoder(device), opened(work).queries[draw], asked.edition.scores, device)


@torch.no_grad()
def values(unet: nn.Module, given: Inputs, config: ScoreConfig, at_once: int) -> Iterator[tuple[float, np.ndarray]]:
    """KL_t of the model as it is now, in nats: yields (fraction, nothing yet), last (1.0, (Q, K, M) float32)."""
    q, n = given.t.shape
    noisy = Schedule.ddpm(unet_training.make_scheduler().alphas_cumprod.to(given.t.device))
    which = torch.arange(q, device=given.t.device).repeat_interleave(n)
    t, eps, found = given.t.flatten(), given.eps.flatten(0, 1), []
    for i in range(0, q * n, at_once):
        part = slice(i, i + at_once)
        x_t = noisy.add_noise(given.latents[which[part]], eps[part], t[part])
        out = unet(x_t, t[part], encoder_hidden_states=given.text[which[part]]).sample.float()
        found.append((out - eps[part]).square().sum(dim=(1, 2, 3)))
        yield min(1.0, (i + at_once) / (q * n)), np.empty(0)
    kl = given.w * torch.cat(found).cpu().double().reshape(q, n)
    yield 1.0, kl.reshape(q, config.draws, config.strata).transpose(1, 2).float().numpy()


def trainings(asked: Asked) -> list[Training]:
    """Seed by seed: the full model, then one without each group."""
    return seed_trainings.trainings(the_set(asked.group_set), asked.edition.seeds)


def of_other_seeds(asked: Asked) -> list[Training]:
    """Those that need nothing of the embedded model."""
    return [t for t in trainings(asked) if t.seed != asked.edition.seeds[0]]


def is_coded(asked: Asked, one: Training) -> bool:
    """Whether the model of a training is kept in coded form: the first seed's without a group."""
    return one.exclude is not None and one.seed == asked.edition.seeds[0]


def folder_of(one: Training) -> Path:
    return place("logo") / one.name


def files_of(asked: Asked, one: Training) -> list[Path]:
    """What a finished training consists of, its record last."""
    coded = place("live") / str(one.exclude)
    live = [coded / NETWORK, coded / adapters.META] if is_coded(asked, one) else []
    return [*live, folder_of(one) / VALUES, folder_of(one) / RECORD]


def is_there(asked: Asked, one: Training) -> bool:
    """Whether it is there whole."""
    return all(p.is_file() for p in files_of(asked, one))


def key(asked: Asked, work: Path, one: Training) -> dict[str, Any]:
    """What a training and its values depend on, as JSON holds it."""
    own, edition = opened(work), asked.edition
    config = asdict(edition.unet_of(one.seed))
    config["loop"].pop("checkpoint_s")
    asked_of = {
        d: hashlib.sha256(str([(q.image_hash, q.prompt) for q in qs]).encode()).hexdigest()
        for d, qs in own.queries.items()
    }
    found = {
        "config": config, "captions": edition.captions, "exclude": one.exclude, "data_sha256": own.hashes["train"],
        "base_sha256": own.base_sha256, "queries": asked_of,
        "scores": edition.scores.plain(),
    }  # fmt: skip
    return json.loads(json.dumps(found))


def record_of(one: Training) -> dict[str, Any] | None:
    path = folder_of(one) / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_trained(asked: Asked, work: Path, one: Training) -> bool:
    """Whether it is there whole, of these settings and this data."""
    started(asked, work)
    record = record_of(one)
    return record is not None and is_there(asked, one) and record["key"] == key(asked, work, one)


def _network(asked: Asked, work: Path, one: Training, told: dict[str, Any]) -> Steps:
    """Train, or take the embedded model's network for the full model of the first seed; gives it as it is scored."""
    edition, how, own = asked.edition, asked.how, opened(work)
    if one == Training(None, edition.seeds[0]):
        told["trained"] = "the embedded model"
        return model_of(asked, work).network
    steps = fast_trainings.train_unet(
        own.latents["train"], own.pictures["train"].groups, captions(asked, work, one.seed),
        edition.unet_of(one.seed), how, folder_of(one) / "checkpoint.pt", one.exclude,
    )  # fmt: skip
    unet: nn.Module | None = None
    with closing(steps):
        for p, unet in steps:  # noqa: B007  (the last is used)
            _note(p, told)
            yield 0.7 * p.step / p.steps, f"{p.step}/{p.steps}  loss {told.get('loss', 0):.4f}  {p.rate:.0f} pictures/s"
    assert unet is not None
    stages.round_to_half(unet)
    return unet.eval()


def _note(p: Progress, told: dict[str, Any]) -> None:
    if p.loss == p.loss:
        told.update(loss=p.loss, pictures_per_second=round(p.rate, 1), steps=p.note)


def train(asked: Asked, work: Path, one: Training) -> Steps:
    """One training, its loss on held-out pictures, its values at all queries, and of the first seed its coded form."""
    started(asked, work)
    began, told, folder = time.monotonic(), {}, folder_of(one)
    folder.mkdir(parents=True, exist_ok=True)
    unet: nn.Module = yield from _network(asked, work, one, told)
    told["training_s"] = round(time.monotonic() - began, 1)
    arrays: dict[str, np.ndarray] = {}
    embed = stages.text_encoder(asked.how.device)
    told["held_out"] = seed_trainings.held_out_loss(unet, opened(work), embed, asked.how.device)
    draws = list(opened(work).queries)
    for i, draw in enumerate(draws):
        given, at_once = inputs(asked, work, draw), asked.edition.scored_at_once
        for f, found in values(unet, given, asked.edition.scores, at_once):
            arrays[draw] = found
            yield 0.7 + 0.25 * (i + f) / len(draws), f"scoring, {draw} queries"
    weights = {n: p.detach().cpu() for n, p in unet.state_dict().items()}
    if is_coded(asked, one):
        _coded(asked, work, str(one.exclude), weights, told)
        yield 0.98, "coded"
    np.savez(folder / VALUES, **arrays)
    record = {
        "key": key(asked, work, one),
        "weights_sha256": hash_state(weights),
        **plain(asked), **told, "all_s": round(time.monotonic() - began, 1), "versions": versions(), "date": today(),
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def _sensitivity(asked: Asked, work: Path) -> dict[str, float]:
    """Of the full model's weights; measured once, by whichever process comes first."""
    path, own = place(SENSITIVE), opened(work)
    if not path.is_file():
        found = retrained_delta.sensitivity(
            model_of(asked, work), the_set(asked.group_set), own.pictures["train"], own.latents["train"],
            asked.edition.live,
        )  # fmt: skip
        aside = path.with_suffix(f".{time.monotonic_ns()}")
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _coded(asked: Asked, work: Path, group: str, weights: Mapping[str, Tensor], told: dict[str, Any]) -> None:
    began = time.monotonic()
    retrained_delta.compress(
        model_of(asked, work), weights, group, _sensitivity(asked, work), config=asked.edition.live,
        folder=place("live") / group, meta={"model": model_of(asked, work).card.id, "date": today()},
    )  # fmt: skip
    told["coding_s"] = round(time.monotonic() - began, 1)


def job(asked: Asked, work: Path, one: Training) -> Job:
    """A training as a job."""
    return Job(one.name, train, work / "claims" / one.name, is_trained, (asked, work, one))
