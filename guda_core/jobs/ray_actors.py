"""Jobs on a Ray cluster by workers that live as long as the pool: what a job loads, such as a model, is there for the
next one. One actor a GPU, or a CPU where there are no GPUs.

Only actors that have started get jobs, so a job never waits for a machine that is gone. One that died, or whose job
broke, is replaced; where the cluster grows, so does the pool.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from guda_core import __version__
from guda_core.jobs.job import Job, Told
from guda_core.jobs.ray_pool import CPUS, CPUS_BESIDE_A_GPU, RayPool, _task, _why

LOOK_S = 2.0  # between two looks at how large the cluster is


class _Actor:
    """A worker somewhere."""

    def started(self) -> bool:
        return True

    def run(self, packed: bytes, environ: Mapping[str, str], version: str, board: Any) -> bytes:
        return _task(packed, environ, version, board)


class RayActors(RayPool):
    """As `RayPool`, with lasting workers. most: of them; None: as many as the cluster has GPUs, or CPUs."""

    def __init__(self, ray: Any, *, most: int | None = None) -> None:
        super().__init__(ray, most=most)
        self._on_gpus = int(ray.cluster_resources().get("GPU", 0)) > 0
        wants = {"num_gpus": 1, "num_cpus": CPUS_BESIDE_A_GPU} if self._on_gpus else {"num_cpus": CPUS}
        self._kind = ray.remote(max_restarts=0, max_task_retries=0, **wants)(_Actor)
        self._starting: dict[Any, Any] = {}  # reference -> actor
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Job]] = {}
        self._looked = -LOOK_S

    def free(self) -> int:
        """How many more jobs it takes now."""
        self._grow()
        if self._starting:
            ready, _ = self.ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            for ref in ready:
                actor = self._starting.pop(ref)
                with suppress(self.ray.exceptions.RayError):  # it died before it had started
                    self.ray.get(ref)
                    self._idle.append(actor)
        return len(self._idle)

    def _grow(self) -> None:
        """Start actors until there are as many as the cluster has room for."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        room = int(self.ray.cluster_resources().get("GPU" if self._on_gpus else "CPU", 0))
        wanted = max(1, room) if self.most is None else min(max(1, room), self.most)
        for _ in range(wanted - len(self._starting) - len(self._idle) - len(self._busy)):
            actor = self._kind.remote()
            self._starting[actor.started.remote()] = actor

    def submit(self, job: Job) -> None:
        """Begin a job; only when there is room."""
        actor = self._idle.pop()
        self._busy[actor.run.remote(pickle.dumps(job), self._environ, __version__, self._board)] = (actor, job)

    def told(self, timeout: float) -> list[Told]:
        """What the workers say; waits at most so many seconds for the first that ends."""
        ended, _ = self.ray.wait(list(self._busy), num_returns=1, timeout=timeout)
        found = self._words()
        for ref in ended:
            actor, job = self._busy.pop(ref)
            try:
                last = pickle.loads(self.ray.get(ref))
            except Exception as e:
                last = Told(job.name, "broke", note=_why(e))
            if last.kind == "broke":  # whatever failed may have left its process in no good state
                self._end(actor)
            else:
                self._idle.append(actor)
            found.append(last)
        return found

    def _end(self, actor: Any) -> None:
        with suppress(Exception):
            self.ray.kill(actor)

    def close(self) -> None:
        """End all workers."""
        for actor in [*self._starting.values(), *self._idle, *(a for a, _ in self._busy.values())]:
            self._end(actor)
        self._starting.clear()
        self._idle.clear()
        self._busy.clear()
        super().close()
