"""What unlearning will take, said before it starts: passes by count, time and memory by one step that is really made.

    passes of a group = steps (teacher's + student's) + what the forget loss trains first + those to measure its health

The same counts move the progress bars.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from guda_core.data.dataset import Item
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.pace import Pace
from guda_core.records import Cost
from guda_core.unlearning.config import MemorySettings, Settings
from guda_core.unlearning.forget import FORGET_LOSSES, ForgetLoss, Task
from guda_core.unlearning.kept_prompts import KeptPrompts
from guda_core.unlearning.loop import run
from guda_core.unlearning.one_group import Training, room
from guda_core.unlearning.pieces import Pieces
from guda_core.unlearning.student import Student, scaler

TRIED = 2  # steps; the first is slower and is not counted


def step_cost(loss: ForgetLoss, config: Settings) -> Cost:
    """Of one step: the targets' and the retained half's passes, and the student's with their gradients."""
    b = config.loop.batch
    return Cost(forward=loss.passes(b) + b, gradients=2 * b)


def group_cost(loss: ForgetLoss, config: Settings) -> Cost:
    """Of all steps of a group, with what the loss trains before."""
    one, n = step_cost(loss, config), config.loop.steps
    return loss.preparation() + Cost(n * one.forward, n * one.gradients)


@dataclass(frozen=True)
class Timed:
    """One step, measured. seconds: it took. pictures: of a pass, as they fitted. peak_bytes: of memory: on a GPU what
    torch held on it at most, on a CPU the whole process. trained: parameters."""

    seconds: float
    pictures: int
    peak_bytes: int
    trained: int


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: torch's on a GPU, else the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def time_step(task: Task, config: Settings, memory: MemorySettings) -> Timed:
    """Make steps of the real model and throw them away. The model is left as it was."""
    prompts = KeptPrompts(task.model) if memory.unload else None
    task = dataclasses.replace(task, pieces=Pieces(memory.pictures), prompts=prompts)
    model, tried = task.model, dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=TRIED, warmup=0))
    loss = FORGET_LOSSES.find(config.operator)(task, tried)
    loss.stand_in()
    student = Student(model, tried, memory)
    training = Training(task, loss, tried, student)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    marks = [time.perf_counter()]
    with room(task, loss, tried, memory), student.ready():
        trained = sum(p.numel() for p in student.network.parameters() if p.requires_grad)
        steps = run(student.network, training.pieces, tried.loop, scaler=scaler(model), shrink=task.pieces.halve)
        for _ in steps:
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            marks.append(time.perf_counter())
    step = 2 * config.loop.batch
    return Timed(marks[-1] - marks[-2], min(task.pieces.size or step, step), peak_bytes(model.device), trained)


def blank_latents(model: Any, items: Sequence[Item]) -> torch.Tensor:
    """Latents of the right shape that take no memory: a plan needs no pictures."""
    return torch.zeros(1, *model.latent_shape, dtype=torch.float32).expand(len(items), *model.latent_shape)


@dataclass(frozen=True)
class GroupPlan:
    """cost: of the steps. health: forward passes that measure the adapter. seconds, disk_bytes: of both; the adapter's
    bytes stay."""

    cost: Cost
    health: int
    seconds: float
    disk_bytes: int

    @property
    def passes(self) -> int:
        """Of the network, of one picture each, with and without gradients."""
        return self.cost.forward + self.cost.gradients + self.health


@dataclass(frozen=True)
class Plan:
    """groups: group id -> its own. step: as measured. encode_s: seconds to encode the pictures that are not kept yet.
    peak_bytes: of memory. kept_bytes: of encoded pictures and of one group's checkpoint, on disk meanwhile.
    pixel_bytes: of the temporary file that each process has of many pictures; 0: they are in memory. share: how
    several workers share the machine (`jobs.local_pool.Share`), and whole_s: seconds from start to end with them; None:
    there is one."""

    groups: Mapping[str, GroupPlan]
    step: Timed
    encode_s: float
    kept_bytes: int
    pixel_bytes: int
    settings: Mapping[str, Any]
    memory: Mapping[str, Any]
    device: str
    dtype: str
    share: Mapping[str, Any] | None = None
    whole_s: float | None = None

    @property
    def seconds(self) -> float:
        """Of everything, one after the other."""
        return self.encode_s + sum(g.seconds for g in self.groups.values())

    @property
    def passes(self) -> int:
        """Of everything."""
        return sum(g.passes for g in self.groups.values())

    @property
    def disk_bytes(self) -> int:
        """Most on disk at once, on one machine."""
        processes = self.share["at_once"] if self.share else 1
        return self.kept_bytes + processes * self.pixel_bytes + sum(g.disk_bytes for g in self.groups.values())

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with the sums."""
        plain = dataclasses.asdict(self)
        for name, group in self.groups.items():
            plain["groups"][name]["passes"] = group.passes
        for name in ("share", "whole_s"):
            if plain[name] is None:
                del plain[name]
        return {**plain, "passes": self.passes, "seconds": self.seconds, "disk_bytes": self.disk_bytes}


def make_plan(
    task_of: Mapping[str, Task],
    config: Settings,
    memory: MemorySettings,
    *,
    health: Mapping[str, int],
    encode_s: float,
    to_encode: int,
    pixel_bytes: int = 0,
) -> Plan:
    """The plan of one group or more of one model.

    task_of: group id -> its task. health: group id -> passes that will measure it, also of groups whose adapter is
    there already. encode_s, to_encode: seconds and
    number of pictures that are to be encoded. pixel_bytes: of the file that their pixels lie in.
    """
    first = next(iter(task_of.values()))
    model = first.model
    timed = time_step(first, config, memory)
    forward_s = Pace(model, batch=min(timed.pictures, 24)).forward_s if any(health.values()) else 0.0
    each = 2 if config.lora is not None or torch.float16 == config.WHOLE_TYPE else 4
    groups = {}
    for name, task in task_of.items():
        cost = group_cost(FORGET_LOSSES.find(config.operator)(task, config), config)
        first_cost = FORGET_LOSSES.find(config.operator)(task, config).preparation()
        share = first_cost.gradients / (2 * config.loop.batch) if first_cost.gradients else 0.0
        seconds = timed.seconds * (config.loop.steps + share) + forward_s * health[name]
        groups[name] = GroupPlan(cost, health[name], seconds, each * timed.trained)
    groups |= _only_measured({g: n for g, n in health.items() if g not in task_of}, forward_s)
    latents = 4 * to_encode * math.prod(model.latent_shape)
    told = _told(model, config, memory)
    return Plan(groups, timed, encode_s, latents + 3 * 4 * timed.trained, pixel_bytes, *told)


def _only_measured(health: Mapping[str, int], forward_s: float) -> dict[str, GroupPlan]:
    return {g: GroupPlan(Cost(), n, forward_s * n, 0) for g, n in health.items()}


def empty_plan(model: BaseModel, config: Settings, memory: MemorySettings, health: Mapping[str, int]) -> Plan:
    """The plan where no adapter is made: no step is made. health: as of `make_plan`."""
    groups = _only_measured(health, Pace(model, batch=24).forward_s if any(health.values()) else 0.0)
    return Plan(groups, Timed(0.0, 0, 0, 0), 0.0, 0, 0, *_told(model, config, memory))


def _told(
    model: BaseModel, config: Settings, memory: MemorySettings
) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """The settings, memory, device and dtype of a plan."""
    dtype = str(model.dtype).removeprefix("torch.")
    return dataclasses.asdict(config), dataclasses.asdict(memory), str(model.device), dtype
