"""Where jobs run, as the command line says it: worker processes of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from guda_core.jobs.driver import Pool
from guda_core.jobs.local_pool import LocalPool


@contextmanager
def opened(workers: int | None, address: str | None, *, lasting: bool = False) -> Iterator[Pool]:
    """Within the block there is a pool. address: of a Ray cluster (`ray_pool.connected`); None: this machine alone.
    workers: jobs at once; None: one, on a cluster as many as it takes. lasting: on a cluster too, what a job loads is
    there for the next one of its worker (`ray_actors`); else Ray may end a process after each job.

    Raises:
        OptionError: there is no such cluster, Ray is not installed, or `workers` is not positive.
    """
    if address is None:
        with closing(LocalPool(1 if workers is None else workers)) as pool:
            yield pool
        return
    from guda_core.jobs.ray_actors import RayActors
    from guda_core.jobs.ray_pool import RayPool, connected

    kind = RayActors if lasting else RayPool
    with connected(address) as ray, closing(kind(ray, most=workers)) as pool:
        yield pool
