"""Jobs on a Ray cluster (the extra `ray`): one remote task a job, a GPU each where the cluster has GPUs.

All machines of the cluster see the same files. Ray chooses the machine; what breaks, a machine's death too, is tried
again by the driver, so that both runners count alike. Ray itself is asked to try nothing again.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from guda_core import __version__
from guda_core.errors import OptionError, one_line
from guda_core.jobs.environ import apply, settings
from guda_core.jobs.job import Job, Told, perform

log = logging.getLogger(__name__)
MISSING = '--ray needs Ray, which is not installed. Install it with `pip install "guda-core[ray]"`.'
# Of a task's CPUs: a fraction, so that tasks which want all CPUs of a machine leave room for Ray's own and others'.
CPUS, CPUS_BESIDE_A_GPU = 0.9, 0.5
KNOCK_S = 10.0
IN_ITS_START = "error raised in its creation task"  # so Ray says that an actor could not be made
NAMES_IT = "--gcs-address="  # the option of a `raylet` that names its cluster
SAID_EVERY_S = 0.5  # a word of a task to its driver
QUIET_S = 60.0  # after which it is said that nothing has begun
QUIET = (
    "Nothing has begun on the Ray cluster for a minute. It may have no room: `ray status` shows what it is busy with."
)


def need_ray() -> Any:
    """The module `ray`.

    Raises:
        OptionError: the extra is not installed.
    """
    try:
        import ray
    except ImportError as e:
        raise OptionError(MISSING) from e
    return ray


def _clusters() -> list[tuple[bool, float, str]]:
    """(whether this user started it, when, HOST:PORT) of each cluster that this machine is in. There it has a process
    `raylet`, whose options name the cluster; whose process it is, the system says."""
    me, found = psutil.Process().username(), []
    for p in psutil.process_iter(["cmdline", "create_time", "username"]):
        program, *options = p.info["cmdline"] or [""]
        if "raylet" in Path(program).name:
            addresses = [o.removeprefix(NAMES_IT) for o in options if o.startswith(NAMES_IT)]
            found += [(p.info["username"] == me, p.info["create_time"] or 0.0, a) for a in addresses]
    return found


def own_cluster() -> str:
    """HOST:PORT of the cluster that this user started last on this machine; "" where there is none at all. Ray itself
    would take any user's, and this process unpickles what a cluster answers.

    Raises:
        OptionError: only others have started one here.
    """
    mine, _, address = max(_clusters(), default=(True, 0.0, ""))
    if not mine:
        raise OptionError(
            f"The Ray cluster on this machine, at {address[:80]}, was started by another user, so it is not taken "
            f"unasked. If you trust it, name it with --ray {address[:80]}. Else use --ray local."
        )
    return address


def _found(ray: Any) -> str:
    """What "auto" stands for: the address in RAY_ADDRESS, else `own_cluster`, else "local"."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", "auto"):
        return named
    if address := own_cluster():  # it gets this user's token, as where Ray finds a cluster itself
        logging.getLogger("ray").setLevel(logging.ERROR)  # as `_begin` does
        ray._private.worker.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return address or "local"


def _begin(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster of our own, nothing is told to anybody
        options["include_dashboard"] = False
    else:
        _knock(address)
    ray.init(address=address, **options)


def _knock(address: str) -> None:
    """Whether somebody answers at HOST:PORT; Ray itself would try for minutes.

    Raises:
        ConnectionError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError("an address is HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as e:
        raise ConnectionError(getattr(e, "strerror", None) or str(e)) from e


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Within the block this process is the driver of a Ray cluster; gives the module `ray`.

    address: HOST:PORT of a cluster; "local": a new one of this machine, which ends with the block; "auto": the one that
    RAY_ADDRESS names or that this user started on this machine, else as "local". A connection that is there already is
    used, and left.

    Raises:
        OptionError: the extra is not installed, there is no such cluster, or "auto" finds only another user's.
    """
    ray = need_ray()
    if ray.is_initialized():
        yield ray
        return
    address = _found(ray) if address == "auto" else address
    try:
        _begin(ray, address)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise _no_cluster(address, e) from e
    try:
        yield ray
    finally:
        ray.shutdown()


def _no_cluster(address: str, e: Exception) -> OptionError:
    where = "this machine" if address == "local" else address[:80]
    return OptionError(
        f"There is no Ray cluster at {where} that can be used ({one_line(str(e))[:200].rstrip('.')}). Start one with "
        "`ray start --head`, or use --ray local. One with a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
    )


def _task(packed: bytes, environ: Mapping[str, str], version: str, board: Any) -> bytes:
    """A job, on some machine of the cluster. Gives its last word."""
    last = [0.0]

    def tell(told: Told) -> None:
        now = time.monotonic()
        if now - last[0] >= SAID_EVERY_S:
            board.tell.remote(pickle.dumps(told))
            last[0] = now

    job: Job = pickle.loads(packed)
    try:
        apply(environ, version)
    except OptionError as e:  # a worker elsewhere may have the right version
        return pickle.dumps(Told(job.name, "broke", note=str(e), error=type(e).__name__))
    return pickle.dumps(perform(job, tell))


class _Board:
    """Where tasks say how far they are: the last word of each since the driver looked."""

    def __init__(self) -> None:
        self.said: dict[str, bytes] = {}

    def tell(self, packed: bytes) -> None:
        self.said[pickle.loads(packed).job] = packed

    def take(self) -> list[bytes]:
        said, self.said = list(self.said.values()), {}
        return said


class RayPool:
    """A Ray cluster. ray: the module, connected (`connected`). most: jobs at once; None: as many as the cluster takes.

    Raises:
        OptionError: `most` is not positive.
    """

    def __init__(self, ray: Any, *, most: int | None = None) -> None:
        if most is not None and most < 1:
            raise OptionError(f"There must be at least one worker; got {most}.")
        self.ray, self.most = ray, most
        has = ray.cluster_resources()
        n_gpus, n_cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
        nodes = sum(1 for n in ray.nodes() if n["Alive"])
        self.about = f"a Ray cluster of {nodes} machine{'s' if nodes > 1 else ''}: " + (
            f"{n_gpus} GPUs, one a job" if n_gpus else f"no GPU, {n_cpus} CPUs, one a job"
        )
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
        wants = {"num_gpus": 1, "num_cpus": CPUS_BESIDE_A_GPU} if n_gpus else {"num_cpus": CPUS}
        self._remote = ray.remote(max_retries=0, **wants)(_task)
        self._environ = settings()
        self._refs: dict[Any, Job] = {}
        self._quiet_since = math.inf

    def free(self) -> int:
        """How many more jobs it takes now: all, unless there is a most. Ray keeps them until there is room."""
        return 1 if self.most is None else self.most - len(self._refs)

    def submit(self, job: Job) -> None:
        """Begin a job."""
        ref = self._remote.options(name=job.name).remote(pickle.dumps(job), self._environ, __version__, self._board)
        if not self._refs:
            self._quiet_since = time.monotonic()
        self._refs[ref] = job

    def told(self, timeout: float) -> list[Told]:
        """What the tasks say; waits at most so many seconds for the first that ends."""
        ended, _ = self.ray.wait(list(self._refs), num_returns=1, timeout=timeout)
        found = self._words()
        for ref in ended:
            job = self._refs.pop(ref)
            try:
                found.append(pickle.loads(self.ray.get(ref)))
            except Exception as e:
                found.append(_broken(job, e))
        if found:
            self._quiet_since = math.inf
        self._say_if_quiet()
        return found

    def _say_if_quiet(self) -> None:
        if time.monotonic() - self._quiet_since > QUIET_S:
            log.warning(QUIET)
            self._quiet_since = math.inf

    def _words(self) -> list[Told]:
        try:
            return [pickle.loads(said) for said in self.ray.get(self._board.take.remote(), timeout=10)]
        except self.ray.exceptions.RayError:  # the words are lost, no work is
            return []

    def close(self) -> None:
        """End the tasks that run or wait."""
        for ref in self._refs:
            with suppress(Exception):
                self.ray.cancel(ref)
        self._refs.clear()
        with suppress(Exception):
            self.ray.kill(self._board)


def _broken(job: Job, e: Exception) -> Told:
    """In place of the last word of a job. What a job raises is one (`perform`), so the error is Ray's own."""
    return Told(job.name, "broke", note=_why(e), ended=not getattr(e, "cause", None))


def _why(e: Exception) -> str:
    """What an error of Ray says."""
    if cause := getattr(e, "cause", None):
        return one_line(f"{type(cause).__name__}: {cause}")
    said = str(e).strip()
    if IN_ITS_START in said:  # a traceback follows
        return one_line(said.rpartition("\n")[2])
    return f"Its process or machine is gone ({one_line(f'{type(e).__name__}: {e}')[:300]})."
