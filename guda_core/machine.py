"""What of the machine this process may use: in a container or a batch job, its part of the cores and of the memory.

Linux tells it in control groups, of version 1 or 2: those that a process is in, and all around them, whose limits hold
too. A container may see only its own, at the top.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY = (  # files with the limit, what is used, and, in `memory.stat`, what of that the system drops when it must
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
LOADING = threading.RLock()  # held by who reads a model: meanwhile the libraries change torch for the whole process
SAID = "OMP_NUM_THREADS"  # where it is set, it says how many threads there are to be


def cores() -> int:
    """Processors' cores that this process may keep busy, at least 1; a share of one counts as one."""
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    shares = [share for folder in _groups("cpu") if (share := _cores_in(folder)) is not None]
    return max(1, min([there, *map(math.ceil, shares)]))


def memory_left() -> int:
    """Bytes of main memory that can be had without swapping."""
    free = psutil.virtual_memory().available
    return max(0, min([free, *(left for folder in _groups("memory") if (left := _bytes_in(folder)) is not None)]))


def reserve(file: int, size: int) -> None:
    """Have the disk give an open file its room, in bytes, before it is mapped: a disk that is full later would end the
    process. Linux gives it, unless the disk does not know how to; on a Mac it is seen whether there is room. Windows
    gives it when the file is made so long.

    Raises:
        OSError: there is no room.
    """
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
    elif sys.platform == "darwin" and shutil.disk_usage(file).free < size - os.fstat(file).st_blocks * 512:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bound_threads() -> None:
    """Let torch take no more threads than `cores`, unless OMP_NUM_THREADS says how many. Torch counts the machine's,
    and in a container with a share of them, too many threads wait for each other."""
    if os.environ.get(SAID):
        return
    import torch

    if (most := cores()) < torch.get_num_threads():
        torch.set_num_threads(most)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, from its own outwards, with that controller's files or
    without."""
    try:
        lines = MINE.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # another system
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        inner = root / path.lstrip("/")
        yield from (p for p in (inner, *inner.parents) if p == root or (p.is_relative_to(root) and ".." not in p.parts))


def _cores_in(folder: Path) -> float | None:
    """How many cores' time the processes of a control group get; None: no limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
        except (OSError, ValueError):  # no such files, or "max"
            continue
        return quota / period if quota > 0 and period > 0 else None
    return None


def _bytes_in(folder: Path) -> int | None:
    """How many bytes more the processes of a control group may use; None: no limit."""
    for most, used, dropped in MEMORY:
        try:
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            limit, taken = (int((folder / name).read_text()) for name in (most, used))
            return limit - taken + int(told[dropped])
        except (OSError, ValueError, KeyError):  # no such files, or "max"
            continue
    return None
