"""The models that the styles benchmark scores: the full one, the oracle's trainings, and adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.benchmark.result_tables import LIVE, ORACLE, SECOND
from experiments.benchmark.scores import ScoreConfig, hash_state
from experiments.benchmark.strata import OLD_RULE
from experiments.logo import trainings
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core import paths
from guda_core.attribution.guda import Guda
from guda_core.attribution.logo import Logo
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import AdapterError
from guda_core.local import LocalService
from guda_core.unlearning import adapters, switching

ORACLES = ("full", "full-2", ORACLE, SECOND)  # roles of the oracle's models and of the full one, kept by themselves
BASE = "base"  # role of the full model as it is scored for the adapters
ADAPTER_DRAWS = 2  # in each stratum, of GUDA and the live oracle: the app's quick effort
VARIANT_DRAWS = 1  # of GUDA's variants; a row of GUDA itself with as few stands beside them


@dataclass(frozen=True)
class Source:
    """A model to score. key: its name in the cache; sha256: of its weights; within: the block in which it is the model.

    role, group: what it is for; role is "full", "logo", "full-2", "logo-2", "base" (the full model again, scored as the
    adapters are), "logo-live" or the name of a GUDA variant.
    """

    key: str
    role: str
    group: str | None
    sha256: str
    within: Callable[[], AbstractContextManager[Any]]


@contextmanager
def swapped(denoiser: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the denoiser has the weights of `state`; afterwards its own again, bit by bit."""
    kept = {n: p.detach().clone() for n, p in denoiser.state_dict().items()}
    try:
        denoiser.load_state_dict(dict(state))
        yield
    finally:
        denoiser.load_state_dict(kept)


def variants(service: LocalService) -> dict[str, paths.Folder]:
    """Adapter folders by row: GUDA's committed ones, the live oracle, and any below `GUDA_CACHE/adapters/`."""
    out: dict[str, paths.Folder] = {"guda": service.method(Guda).folder}
    if Logo.id in service.offered:
        out[LIVE] = service.offered[Logo.id].folder
    extra = paths.cache_dir() / "adapters"
    for folder in sorted(extra.iterdir()) if extra.is_dir() else []:
        out[f"guda-{folder.name}"] = folder
    return out


def without_group(model: BaseModel, folder: Path, group: str) -> tuple[str, Callable[[], AbstractContextManager[Any]]]:
    """The hash of what `unlearn` wrote, and the block in which the model is the one without the group."""
    adapter = adapters.load(folder, model=model, group=group)
    return adapter.meta["sha256"], partial(switching.applied, model.network, adapter)


def sources(service: LocalService, config: UnetConfig) -> list[Source]:
    """Every model that can be scored now: the full one, finished trainings of the oracle's queue, fitting adapters.
    Trainings of another edition have the same names, and other shapes.

    The oracle's come before the adapters: their weights are in the cache alone until their values are kept."""
    model, gs = service.model, service.group_set
    out = [Source("full", "full", None, model.sha256, partial(nullcontext))]
    shapes = {n: p.shape for n, p in model.network.state_dict().items()}
    for job in trainings.queue(gs, config):
        state = load_file(stages.work_dir() / job.name / "diffusion_pytorch_model.safetensors") if job.done else {}
        if {n: p.shape for n, p in state.items()} == shapes:
            within = partial(swapped, model.network, state)
            out.append(Source(job.name, role_of(job, config), job.exclude, hash_state(state), within))
    out.append(Source(BASE, BASE, None, model.sha256, partial(nullcontext)))
    for folder_name, folder in variants(service).items():
        for g in gs.groups:
            try:
                sha256, within = without_group(model, folder / g, g)
            except AdapterError:
                continue
            out.append(Source(f"{folder_name}/{g}", folder_name, g, sha256, within))
    return out


def draws_of(role: str, config: ScoreConfig) -> ScoreConfig:
    """The settings that models of a role are scored with.

    The weights of the oracle's trainings are too big to be kept, only values are: they stay as they were drawn, with
    all draws in the strata of then. Adapters are scored as the app does it, where fewer draws tell more
    (`likelihood.make_strata`). The live oracle is scored like them, with the draws that follow theirs: no method shares
    its noise."""
    if role in ORACLES:
        return replace(config, rule=OLD_RULE)
    draws = min(config.draws, ADAPTER_DRAWS)
    if role == BASE:
        return replace(config, draws=2 * draws)
    if role == LIVE:
        return replace(config, first=draws, draws=draws)
    return replace(config, draws=draws if role == "guda" else min(draws, VARIANT_DRAWS))


def role_of(job: trainings.Job, config: UnetConfig) -> str:
    return ("full" if job.exclude is None else ORACLE) + ("" if job.seed == config.loop.seed else "-2")


def cache(service: LocalService, name: str = "") -> Path:
    """Where the values of models over this base are kept. name: of the queries (`Queries.name`)."""
    return paths.cache_dir() / "benchmarks" / "-".join(("styles", service.model.sha256[:12], *filter(None, [name])))


def path_of(service: LocalService, source: Source, name: str = "") -> Path:
    return cache(service, name) / f"{source.key.replace('/', '--')}.npy"
