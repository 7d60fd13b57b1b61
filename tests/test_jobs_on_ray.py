"""The same jobs on a real Ray cluster of two machines, which are two nodes on this one."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guda_core.errors import OptionError
from guda_core.jobs import ray_actors
from guda_core.jobs.driver import work_through
from guda_core.jobs.ray_pool import RayPool, _clusters, connected
from tests.job_works import content, diary, is_made, jobs, last_words, run
from tests.own_pictures import guda
from tests.ray_cluster import SMALL, cluster_of_one
from tests.test_jobs import ROOT, until
from tests.test_unlearn_on_many import FEW, made, taken_away


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_of_one() as made:
        yield made


def test_a_machine_that_dies_loses_no_job_and_none_is_done_twice(cluster, tmp_path):
    assert cluster.address in [address for mine, _, address in _clusters() if mine]
    second = cluster.add_node(**SMALL)
    names, events = ["a", "b", "c", "poisoned", "refused"], []
    (tmp_path / "c.made").write_bytes(content("c"))
    with connected(cluster.address) as ray:
        pool = RayPool(ray)
        assert "2 machines: no GPU, 2 CPUs" in pool.about
        for e in work_through(jobs(tmp_path, names, 1.4), pool):
            events.append(e)
            both = [n for n in "ab" if (tmp_path / f"{n}.pid").is_file()]
            if second is not None and len(both) == 2 and e.fraction > 0:
                cluster.remove_node(second)
                second = None
    assert second is None and last_words(events) == {
        "a": "done", "b": "done", "c": "found", "poisoned": "failed", "refused": "failed"
    }  # fmt: skip
    assert all(is_made(tmp_path, n, 0) for n in "abc") and diary(tmp_path, "made") == ["a", "b"]
    begun = diary(tmp_path, "begun")
    assert begun.count("a") + begun.count("b") == 3 and begun.count("poisoned") == 3 and begun.count("refused") == 1
    gone = [e.note for e in events if e.kind == "retried" and e.job.name in "ab"]
    assert len(gone) == 1 and "process or machine is gone" in gone[0]
    assert events[-1].all_done == 1


def test_a_driver_that_was_killed_is_started_again(cluster, tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.job_works", str(tmp_path), cluster.address, "a,b"], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until((tmp_path / "a.pid").is_file)
    driver.kill()
    driver.wait(timeout=20)
    with connected(cluster.address) as ray:
        told = last_words(run(tmp_path, ["a", "b"], RayPool(ray)))
    assert told == {"a": "done", "b": "done"} and diary(tmp_path, "made") == ["a", "b"]


def test_workers_that_cannot_start_are_one_sentence_with_the_reason(cluster, tmp_path, monkeypatch):
    class Actor(ray_actors._Actor):
        """As where guda-core is missing: its module cannot be imported there."""

    Actor.__module__, Actor.__qualname__ = "only_here", "Actor"
    monkeypatch.setitem(sys.modules, "only_here", SimpleNamespace(__name__="only_here", Actor=Actor))
    monkeypatch.setattr(ray_actors, "_Actor", Actor)
    monkeypatch.setattr(ray_actors, "LOOK_S", 0.1)
    with connected(cluster.address) as ray, pytest.raises(OptionError, match=r"\(ModuleNotFoundError: .*'only_here'\)"):
        run(tmp_path, ["a"], ray_actors.RayActors(ray, most=1))


def test_unlearning_on_ray_makes_what_one_process_makes(cluster, home):
    alone = taken_away(home, "bo-chan")
    said = guda("unlearn", *FEW, "--groups", "bo-chan", "--ray", cluster.address)
    assert made(home) == alone and "On a Ray cluster of" in said


def test_no_cluster_and_no_ray_are_one_sentence(monkeypatch):
    for address, why in (("127.0.0.1:1", "Connection refused"), ("somewhere", "HOST:PORT"), ("h:99999999", "")):
        with pytest.raises(OptionError, match=f"no Ray cluster at {address} .*{why}"), connected(address):
            pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(OptionError, match="no Ray cluster at 127"), connected("auto"):
        pass
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r'pip install "guda-core\[ray\]"'), connected("auto"):
        pass


def test_the_extra_is_what_the_tests_ran_with():
    wanted = [line for line in Path(ROOT / "requirements-ray.txt").read_text().splitlines() if line[:1] not in "#"]
    dev = (ROOT / "requirements-dev.txt").read_text()
    assert wanted and all(line in dev for line in wanted)
