"""The trainings of some seeds as jobs, several at once on one device: each trains a UNet and scores it.

A UNet this small keeps a GPU waiting for the processor, so several processes share one GPU.

    <out>/<training>/<draw>.npy     (Q, K, M) float32 KL in nats at a draw's fixed queries
    <out>/<training>/training.json  settings, device, seconds, losses; written last

The draws of noise are those after the live oracle's (`models.draws_of`): no method and no other oracle shares them,
while all seeds do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmark.models import swapped
from experiments.benchmark.scores import ScoreConfig, hash_state, is_complete, values
from experiments.logo.trainings import Job as Training
from experiments.seeds import packed
from experiments.seeds.packed import Packed
from experiments.train import stages
from experiments.train import unet as unet_training
from experiments.train.unet import UnetConfig
from guda_core.data.captions import captioner_of
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import DEFAULT_MODEL, find_card, load_model
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import DataError, OptionError
from guda_core.jobs.job import Job, Steps
from guda_core.records import GroupSet
from guda_core.versions import today, versions

RECORD = "training.json"
SCORES = ScoreConfig(draws=2, first=4)
UNET = UnetConfig()
HELD_OUT_TIMES = 8  # timesteps of each held-out picture
HELD_OUT_BATCH = 64


@dataclass(frozen=True)
class Asked:
    """What is to be made; small, and can be pickled. file: the packed one; out: the folder of results; seeds: of the
    trainings, none of which is the embedded model's; device: "cpu" or "cuda"; tf32: whether a GPU may round products'
    factors to TF32; ahead: whether steps are taken as a graph, without checkpoints (`experiments.train.captured`)."""

    file: Path
    out: Path
    seeds: tuple[int, ...]
    device: str = "cpu"
    tf32: bool = True
    ahead: bool = False
    unet: UnetConfig = UNET
    scores: ScoreConfig = SCORES

    def __post_init__(self) -> None:
        first = UNET.loop.seed
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise OptionError("Name one seed or more, each once, for example --seeds 5,6.")
        if first in self.seeds:
            raise OptionError(f"Seed {first} is that of the embedded model and of the oracle that is there already.")

    def config(self, seed: int) -> UnetConfig:
        """The settings of a training: those of the embedded model, but for the seed."""
        return replace(self.unet, loop=replace(self.unet.loop, seed=seed))


def trainings(group_set: GroupSet, seeds: Sequence[int]) -> list[Training]:
    """Seed by seed: the full model, then one without each group."""
    return [Training(g, seed) for seed in seeds for g in (None, *group_set.groups)]


@lru_cache(maxsize=1)
def opened(file: Path) -> Packed:
    """The packed file, read once in each process."""
    return packed.read(file)


@lru_cache(maxsize=1)
def model_on(device: str) -> BaseModel:
    """The embedded model, loaded once in each process."""
    return load_model(find_card(DEFAULT_MODEL), device=device, dtype=torch.float32)


def is_trained(asked: Asked, training: Training) -> bool:
    """Whether its record is there, of these settings and this data."""
    record = _record(asked.out / training.name)
    return record is not None and record["key"] == _key(asked, training)


def _record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _key(asked: Asked, training: Training) -> dict[str, Any]:
    own = opened(asked.file)
    loop = {k: v for k, v in asdict(asked.config(training.seed).loop).items() if k != "checkpoint_s"}
    of = {
        name: hashlib.sha256(str([(q.image_hash, q.prompt) for q in qs]).encode()).hexdigest()
        for name, qs in own.queries.items()
    }
    key = {
        "config": {**asdict(asked.config(training.seed)), "loop": loop},
        "exclude": training.exclude,
        "data_sha256": own.hashes["train"],
        "base_sha256": own.base_sha256,
        "queries": of,
        "scores": asked.scores.plain(),
    }
    return json.loads(json.dumps(key))


def train(asked: Asked, training: Training) -> Steps:
    """One training, its loss on held-out pictures, and its values at all fixed queries."""
    torch.set_flush_denormal(True)
    if asked.device == "cuda":
        torch.set_float32_matmul_precision("high" if asked.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = asked.tf32
    own, model = opened(asked.file), model_on(asked.device)
    if model.sha256 != own.base_sha256:
        raise DataError("The file was packed for another embedded model than the one that is here. Pack it again.")
    folder = asked.out / training.name
    folder.mkdir(parents=True, exist_ok=True)
    began, loss, unet, step, how = time.monotonic(), float("nan"), None, 0, ""
    config, embed = asked.config(training.seed), stages.text_encoder(asked.device)
    steps = unet_training.train(
        own.latents["train"], own.pictures["train"], own.group_set, embed, config,
        folder / "checkpoint.pt", training.exclude, asked.device, asked.ahead,
    )  # fmt: skip
    with closing(steps):
        for p, unet in steps:  # noqa: B007  (the last is used)
            if p.loss == p.loss:
                loss, step, how = p.loss, p.step, p.note
            yield 0.8 * p.step / p.steps, f"{p.step}/{p.steps}  loss {loss:.4f}  {p.rate:.0f} pictures/s  {how}"
    assert isinstance(unet, nn.Module) and step == config.loop.steps
    stages.round_to_half(unet)
    trained_s = time.monotonic() - began
    state = {n: p.detach().clone() for n, p in unet.state_dict().items()}
    sha256 = hash_state({n: p.cpu() for n, p in state.items()})
    losses = {"held_out": held_out_loss(unet, own, embed, asked.device)}
    if training.exclude is None:
        losses["held_out_embedded"] = held_out_loss(model.network, own, embed, asked.device)
    yield from _scored(asked, training, state, sha256)
    record = {
        "key": _key(asked, training),
        "weights_sha256": sha256,
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "CPU",
        "tf32": asked.tf32 and asked.device == "cuda",
        "steps": how or "one by one",
        "seconds": {"training": round(trained_s, 1), "all": round(time.monotonic() - began, 1)},
        "loss": loss,
        **losses,
        "versions": versions(),
        "date": today(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def _scored(asked: Asked, training: Training, state: Mapping[str, Tensor], sha256: str) -> Steps:
    own, model = opened(asked.file), model_on(asked.device)
    within = partial(swapped, model.network, state)
    for i, (draw, queries) in enumerate(own.queries.items()):
        for f in values(model, queries, within, asked.scores, asked.out / training.name / f"{draw}.npy", sha256):
            yield 0.8 + 0.2 * (i + f) / len(own.queries), f"scoring, {draw} queries"


@torch.no_grad()
def held_out_loss(unet: nn.Module, own: Packed, embed: stages.TextEncoder, device: str) -> float:
    """Mean squared error per element of the noise predicted on held-out pictures, with their captions, at as many
    timesteps of each, the same for every model."""
    latents, pictures = own.latents["held_out"], own.pictures["held_out"]
    schedule = Schedule.ddpm(unet_training.make_scheduler().alphas_cumprod)
    rng, captioner = torch.Generator().manual_seed(0), captioner_of(own.group_set)
    total, was = 0.0, unet.training
    unet.eval()
    for i in range(0, len(latents), HELD_OUT_BATCH):
        x, items = (
            latents[i : i + HELD_OUT_BATCH],
            [pictures[k] for k in range(i, min(i + HELD_OUT_BATCH, len(latents)))],
        )
        condition = embed([captioner.caption(item, rng) for item in items])
        for _ in range(HELD_OUT_TIMES):
            t = unet_training.stratified_times(len(x), len(schedule), rng)
            eps = torch.randn(x.shape, generator=rng)
            x_t = schedule.add_noise(x, eps, t).to(device)
            found = unet(x_t, t.to(device), encoder_hidden_states=condition).sample
            total += float((found.cpu() - eps).square().mean(dim=(1, 2, 3)).sum())
    unet.train(was)
    return total / (HELD_OUT_TIMES * len(latents))


def jobs_of(asked: Asked) -> list[Job]:
    """A job for each training."""
    own = opened(asked.file)
    return [
        Job(t.name, train, asked.out / t.name / "job", is_trained, (asked, t))
        for t in trainings(own.group_set, asked.seeds)
    ]


def complete(asked: Asked, training: Training) -> bool:
    """Whether the training is done and its values are whole."""
    record, own = _record(asked.out / training.name), opened(asked.file)
    if record is None or record["key"] != _key(asked, training):
        return False
    folder, sha256 = asked.out / training.name, record["weights_sha256"]
    of = own.queries.items()
    return all(is_complete(folder / f"{draw}.npy", sha256, asked.scores, q, torch.float32) for draw, q in of)


def pictures_per_second(asked: Asked, seconds: float) -> Iterator[float]:
    """Train the full model of the first seed for so long; yields pictures a second, the first steps left out."""
    own = opened(asked.file)
    steps = unet_training.train(
        own.latents["train"], own.pictures["train"], own.group_set, stages.text_encoder(asked.device),
        asked.config(asked.seeds[0]), None, None, asked.device, asked.ahead,
    )  # fmt: skip
    began = counted = None
    with closing(steps):
        for p, _ in steps:
            now = time.monotonic()
            if began is None:
                began, counted = now, p.step
                continue
            assert counted is not None
            yield (p.step - counted) * asked.unet.loop.batch / max(now - began, 1e-9)
            if now - began > seconds:
                return
