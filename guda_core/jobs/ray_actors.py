"""Jobs on a Ray cluster by workers that live as long as the pool: what a job loads, such as a model, is there for the
next one. One actor a GPU, or a CPU where there are no GPUs.

Only actors that have started get jobs, so a job never waits for a machine that is gone. One that died, or whose job
broke, is replaced; where the cluster grows, so does the pool. Where none starts, it is tried less and less often, and
given up where no other one is left.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from guda_core import __version__
from guda_core.errors import OptionError
from guda_core.jobs.bad_places import BadPlaces
from guda_core.jobs.job import Job, Told
from guda_core.jobs.ray_pool import CPUS, CPUS_BESIDE_A_GPU, RayPool, _broken, _task, _why, need_ray

log = logging.getLogger(__name__)
LOOK_S, SELDOM = 2.0, 5  # between two looks at how large the cluster is; doubled for each start in vain, so often
STARTS = 3  # in a row in vain


class _Actor:
    """A worker somewhere."""

    def started(self) -> str:
        """Where it is."""
        ray = need_ray()
        here = ray.get_runtime_context()
        gpus = "".join(f", GPU {i}" for i in here.get_accelerator_ids().get("GPU", []))
        return f"The machine {ray.util.get_node_ip_address()} (node {here.get_node_id()[:12]}){gpus}"

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
        self._idle: list[tuple[str, Any]] = []  # (place, actor)
        self._busy: dict[Any, tuple[str, Any, Job]] = {}
        self._bad = BadPlaces()
        self._looked = -LOOK_S
        self._starts, self._why_not = 0, ""  # since a worker was there; and why the last was not

    def free(self) -> int:
        """How many more jobs it takes now.

        Raises:
            OptionError: no worker starts.
        """
        self._grow()
        if self._starting:
            ready, _ = self.ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            for ref in ready:
                actor = self._starting.pop(ref)
                try:
                    place = self.ray.get(ref)
                except self.ray.exceptions.RayError as e:  # it died before it had started
                    self._end(actor)
                    self._why_not = _why(e).rstrip(".")
                else:
                    self._idle.append((place, actor))
                    self._starts, self._why_not = 0, ""
        if self._idle or self._busy:
            self._quiet_since = math.inf
        elif self._starting:
            self._say_if_quiet()
        elif self._starts >= STARTS:
            raise OptionError(
                f"No worker starts on the Ray cluster ({self._why_not}). Each of its machines must have guda-core "
                f"{__version__}. Mend that, and run the same command again: it goes on."
            )
        usable = self._usable()
        return sum(1 for place, _ in self._idle if place in usable)

    def _usable(self, job: str = "") -> list[str]:
        """The places where workers get jobs now, the best for a job first."""
        places = [*(place for place, _ in self._idle), *(place for place, *_ in self._busy.values())]
        return self._bad.usable(places, job)

    def _grow(self) -> None:
        """Start actors until there are as many as the cluster has room for."""
        now = time.monotonic()
        if now - self._looked < LOOK_S * 2 ** min(self._starts, SELDOM):
            return
        self._looked = now
        room = int(self.ray.cluster_resources().get("GPU" if self._on_gpus else "CPU", 0))
        wanted = max(1, room) if self.most is None else min(max(1, room), self.most)
        missing = wanted - len(self._starting) - len(self._idle) - len(self._busy)
        if missing <= 0:
            return
        if self._starts == STARTS and self._why_not:  # and others work
            log.warning("A worker does not start on a machine of the Ray cluster (%s).", self._why_not)
        self._starts, self._quiet_since = self._starts + 1, now
        for _ in range(missing):
            self._ask(self._kind.remote())

    def _ask(self, actor: Any) -> None:
        """It gets jobs when it has answered."""
        self._starting[actor.started.remote()] = actor

    def submit(self, job: Job) -> None:
        """Begin a job; only when there is room."""
        usable = self._usable(job.name)
        best = min((i for i in self._idle if i[0] in usable), key=lambda i: usable.index(i[0]))
        self._idle.remove(best)
        place, actor = best
        self._busy[actor.run.remote(pickle.dumps(job), self._environ, __version__, self._board)] = (place, actor, job)

    def told(self, timeout: float) -> list[Told]:
        """What the workers say; waits at most so many seconds for the first that ends."""
        ended, _ = self.ray.wait(list(self._busy), num_returns=1, timeout=timeout)
        found, at = self._words(), {job.name: place for place, _, job in self._busy.values()}
        for told in found:
            if told.job in at:
                self._bad.note(at[told.job], told)
        for ref in ended:
            place, actor, job = self._busy.pop(ref)
            try:
                last = pickle.loads(self.ray.get(ref))
            except Exception as e:
                last = _broken(job, e)
            self._bad.note(place, last)
            if last.kind == "broke":  # whatever failed may have left its process in no good state
                self._end(actor)
            else:
                self._idle.append((place, actor))
            found.append(last)
        if any(t.ended for t in found):  # with its machine others may be gone, which are no worker for the same job
            while self._idle:
                self._ask(self._idle.pop()[1])
        return found

    def _end(self, actor: Any) -> None:
        with suppress(Exception):
            self.ray.kill(actor)

    def close(self) -> None:
        """End all workers."""
        for actor in [*self._starting.values(), *(a for _, a in self._idle), *(a for _, a, _ in self._busy.values())]:
            self._end(actor)
        self._starting.clear()
        self._idle.clear()
        self._busy.clear()
        super().close()
