"""Which part of a machine is a process' own: control groups of both versions, made of files."""

from __future__ import annotations

import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from guda_core import machine


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A machine of 8 cores with 1000 bytes free; groups(line, **files) puts this process in a group and writes files,
    named by their path with "/" as "__"."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "MINE", tmp_path / "mine")
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def write(mine: str, files: dict[str, str]) -> None:
        (tmp_path / "mine").write_text(mine)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


def test_without_control_groups_all_is_there(groups):
    assert machine.cores() == 8 and machine.memory_left() == 1000


def bytes_of(where: str, most: str, used: str, dropped: str) -> dict[str, str]:
    return {f"{where}memory.max": most, f"{where}memory.current": used,
            f"{where}memory.stat": f"anon 5\ninactive_file {dropped}"}  # fmt: skip


def bytes_of_old(where: str, most: str, used: str, dropped: str) -> dict[str, str]:
    return {f"memory/{where}memory.limit_in_bytes": most, f"memory/{where}memory.usage_in_bytes": used,
            f"memory/{where}memory.stat": f"inactive_file 1\ntotal_inactive_file {dropped}"}  # fmt: skip


@pytest.mark.parametrize(("files_of", "mine"), [(bytes_of, "0::{}"), (bytes_of_old, "4:memory:{}\n1:cpu:/\n0::/")])
def test_the_least_that_any_group_leaves_is_left(groups, files_of, mine):
    no_limit = "max" if files_of is bytes_of else str(2**63 - 4096)
    groups(mine.format("/job/step"), files_of("", no_limit, "700", "0"))
    assert machine.memory_left() == 1000
    groups(mine.format("/job/step"), files_of("job/step/", "900", "700", "150"))
    assert machine.memory_left() == 350  # what the system can drop counts as free
    groups(mine.format("/job/step"), files_of("job/", "1000", "700", "0"))
    assert machine.memory_left() == 300
    groups(mine.format("/job/step"), files_of("", "500", "700", "150"))
    assert machine.memory_left() == 0


@pytest.mark.parametrize("path", ["/docker/not/seen/here", "/../../elsewhere"])
def test_a_container_sees_its_own_group_at_the_top(groups, path):
    groups(f"0::{path}", {**bytes_of("", "900", "700", "0"), "cpu.max": "150000 100000"})
    assert machine.memory_left() == 200 and machine.cores() == 2


@pytest.mark.parametrize(
    ("share", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("250000 100000", 3), ("1600000 100000", 8)],
)
def test_a_share_of_the_cores(groups, share, cores):
    groups("0::/", {"cpu.max": share})
    assert machine.cores() == cores
    quota, period = share.replace("max", "-1").split()
    (machine.GROUPS / "cpu.max").unlink()
    groups("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": quota, "cpu/a/cpu.cfs_period_us": period})
    assert machine.cores() == cores


def test_threads_are_no_more_than_cores_unless_someone_says_how_many(groups, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    machine.bound_threads()
    assert said == []
    groups("0::/", {"cpu.max": "200000 100000"})
    machine.bound_threads()
    assert said == [2]
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    machine.bound_threads()
    assert said == [2]


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_this_machine_tells_what_is_plausible():
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.memory_left() <= machine.psutil.virtual_memory().total and math.isfinite(machine.memory_left())
