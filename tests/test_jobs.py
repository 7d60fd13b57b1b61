"""Jobs in worker processes of this machine: nothing is done twice, nothing is lost, whatever is killed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import chain, repeat
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from guda_core import __version__
from guda_core.data import shards
from guda_core.data.shards import Shards
from guda_core.errors import OptionError
from guda_core.jobs import bad_places, driver, local_pool, ray_actors, ray_pool
from guda_core.jobs.driver import work_through
from guda_core.jobs.environ import apply, settings
from guda_core.jobs.job import Told, perform
from guda_core.jobs.local_pool import GPUS, LocalPool
from guda_core.jobs.ray_actors import RayActors
from guda_core.jobs.ray_pool import RayPool
from guda_core.work_queue import claimed
from tests.job_works import content, diary, is_made, jobs, last_words, pid, run

ROOT = Path(__file__).resolve().parent.parent


def until(true, seconds: float = 20.0) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_every_job_is_done_once_and_bad_ones_stop_no_other(tmp_path):
    (tmp_path / "c.made").write_bytes(content("c"))
    (tmp_path / "d.made").write_bytes(content("d")[:10])  # cut short
    names = ["poisoned", "a", "b", "c", "d", "refused", "lazy"]
    events = run(tmp_path, names, LocalPool(2, devices=[]))
    told = last_words(events)
    assert told == {
        "a": "done", "b": "done", "c": "found", "d": "done", "poisoned": "failed", "refused": "failed",
        "lazy": "failed",
    }  # fmt: skip
    assert all(is_made(tmp_path, n, 0) for n in "abcd")
    assert diary(tmp_path, "begun") == ["a", "b", "d", *["lazy"] * 3, *["poisoned"] * 3, "refused"]
    why = {e.job.name: e.note for e in events if e.kind == "failed"}
    assert why["poisoned"] == "ValueError: a bad picture" and why["refused"] == "Nobody can do this."
    assert "is not there" in why["lazy"]
    assert events[-1].all_done == 1 and {e.answer for e in events if e.kind == "done"} == {1}
    shares = [e.all_done for e in events if e.kind == "progress" and e.job.name == "a"]
    assert shares == sorted(shares) and 0 < shares[-1] < 1


def test_a_worker_that_hangs_is_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(local_pool, "QUIET_S", 1.0)
    monkeypatch.setattr(local_pool, "QUIET_TIMES", 1.0)
    events, hung = [], 0
    with closing(LocalPool(1, devices=[])) as pool:
        for e in work_through(jobs(tmp_path, ["a", "b"], 0.6), pool):
            events.append(e)
            if e.job.name == "b" and e.fraction > 0 and not hung:
                hung = pid(tmp_path, "b")
                os.kill(hung, signal.SIGSTOP)
                threading.Timer(4.0, os.kill, (hung, signal.SIGCONT)).start()
    assert last_words(events) == {"a": "done", "b": "done"}
    assert [r.getMessage().partition(" has")[0] for r in caplog.records if "hang" in r.msg] == ["The worker of b"]
    assert f"It is the process {hung}: end that" in caplog.text


def test_a_killed_worker_is_replaced_and_its_job_begins_again(tmp_path):
    events, killed = [], False
    with closing(LocalPool(2, devices=[])) as pool:
        for e in work_through(jobs(tmp_path, ["a", "b", "c"], 0.6), pool):
            events.append(e)
            if e.job.name == "b" and e.fraction > 0 and not killed:
                os.kill(pid(tmp_path, "b"), signal.SIGKILL)
                killed = True
    assert last_words(events) == {"a": "done", "b": "done", "c": "done"}
    assert [(e.job.name, e.note) for e in events if e.kind == "retried"] == [
        ("b", "Its process was ended by SIGKILL. Memory may have run out.")
    ]
    assert diary(tmp_path, "made") == ["a", "b", "c"] and diary(tmp_path, "begun") == ["a", "b", "b", "c"]


def test_what_a_worker_logs_steers_no_terminal(tmp_path, capfd):
    assert last_words(run(tmp_path, ["loud"], LocalPool(1, devices=[]))) == {"loud": "done"}
    assert "\\u001b[2J.png is odd" in (said := capfd.readouterr().err) and "\x1b" not in said


def test_a_killed_driver_leaves_work_that_the_next_one_finishes(tmp_path):
    driver = subprocess.Popen([sys.executable, "-m", "tests.job_works", str(tmp_path), "here", "a,b,c"], cwd=ROOT)
    until((tmp_path / "b.pid").is_file)
    until((tmp_path / "a.pid").is_file)
    driver.kill()
    driver.wait(timeout=20)
    told = last_words(run(tmp_path, ["a", "b", "c"], LocalPool(2, devices=[])))
    assert set(told.values()) == {"done"} and diary(tmp_path, "made") == ["a", "b", "c"]
    again = last_words(run(tmp_path, ["a", "b", "c"], LocalPool(1, devices=[])))
    assert set(again.values()) == {"found"} and diary(tmp_path, "made") == ["a", "b", "c"]


def test_ctrl_c_ends_the_driver_and_its_workers(tmp_path):
    command = [sys.executable, "-m", "tests.job_works", str(tmp_path), "here", "a,b"]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    until((tmp_path / "b.pid").is_file)
    until((tmp_path / "a.pid").is_file)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    assert driver.wait(timeout=20) != 0 and diary(tmp_path, "made") == []
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(pid(tmp_path, name), 0)


def test_what_another_process_has_in_hand_is_asked_for_again(tmp_path):
    kinds = []
    with closing(LocalPool(1, devices=[])) as pool:
        events = work_through(jobs(tmp_path, ["a", "b"]), pool)
        with claimed(tmp_path / "claims" / "a") as mine:
            while ("b", "done") not in kinds:
                e = next(events)
                kinds.append((e.job.name, e.kind))
        assert mine and ("a", "held") in kinds and kinds[-1] == ("b", "done")
        kinds += [(e.job.name, e.kind) for e in events]
    assert kinds[-1] == ("a", "done") and diary(tmp_path, "made") == ["a", "b"]


def test_whoever_stops_listening_ends_the_workers_between_two_steps(tmp_path, monkeypatch):
    events = work_through(jobs(tmp_path, ["a"], 20.0), LocalPool(1, devices=[]))
    until(lambda: next(events).fraction > 0)
    process = pid(tmp_path, "a")
    monkeypatch.setattr(BaseProcess, "terminate", lambda self: pytest.fail("on Windows that is a kill"))
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    with claimed(tmp_path / "claims" / "a") as free:
        assert free


def test_workers_share_out_the_gpus_and_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("guda_core.machine.cores", lambda: 8)
    two = LocalPool(2, devices=[])
    assert [e["OMP_NUM_THREADS"] for e in two._environs] == ["4", "4"] and "4 CPU threads each" in two.about
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert [e["OMP_NUM_THREADS"] for e in LocalPool(2, devices=[])._environs] == ["3", "3"]
    three = LocalPool(3, devices=["2", "5"])
    assert [e[GPUS] for e in three._environs] == ["2", "5", "2"] and "GPU 2, 5" in three.about
    with pytest.raises(OptionError, match="at least one worker"):
        LocalPool(0, devices=[])


def test_more_workers_than_windows_waits_for_are_all_heard(monkeypatch):
    def wait(handles, timeout):
        assert len(handles) <= 63 and timeout < 1
        return []

    monkeypatch.setattr(local_pool, "wait", wait)
    pool = LocalPool(40, devices=[])
    pool._workers = [
        SimpleNamespace(
            job=True, pipe=None, process=SimpleNamespace(sentinel=i), told=lambda i=i: [Told(str(i), "progress", 0.5)]
        )
        for i in range(40)
    ]
    assert [told.job for told in pool.told(20.0)] == [str(i) for i in range(40)]


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """GPUs of light workers that began a job. Of GPU 1 each job breaks at once, and everywhere one called bad, when it
    has got on; others are done a little later."""

    class Worker:
        pipe, process, usable = SimpleNamespace(close=list), SimpleNamespace(sentinel=0), True

        def __init__(self, environ):
            self.gpu, self.job = environ.get(GPUS, ""), None

        def take(self, job):
            self.job, self.left = job, 5
            begun.append(self.gpu)

        def told(self):
            self.left -= 1
            name = self.job.name
            breaks = self.gpu == "1" or name == "bad"
            if self.left and not breaks:
                return []
            told, self.job = Told(name, "broke" if breaks else "done", 1.0), None
            return [Told(name, "progress", 0.4), told] if name == "bad" else [told]

        def end(self, until):
            pass

    begun: list[str] = []
    monkeypatch.setattr(local_pool, "_Worker", Worker)
    monkeypatch.setattr(local_pool, "wait", lambda *a: [])
    return begun


def test_a_gpu_at_which_every_job_breaks_uses_up_no_tries_while_another_one_works(tmp_path, monkeypatch, caplog, begun):
    assert set(last_words(run(tmp_path, list("abcdefghij"), LocalPool(2, devices=["0", "1"]))).values()) == {"done"}
    assert begun.count("1") == 2 and caplog.text.count("broke 2 times in a row at GPU 1.") == 1
    assert set(last_words(run(tmp_path, ["a", "b"], LocalPool(2, devices=["0", "1"]))).values()) == {"done"}
    begun.clear()
    monkeypatch.setattr(bad_places, "PAUSE_S", 0.0)  # it gets one more try then
    assert len(last_words(run(tmp_path, list("abcdefghij"), LocalPool(2, devices=["0", "1"])))) == 10
    assert begun.count("1") > 2
    alone = run(tmp_path, ["a"], LocalPool(2, devices=["1"]))
    assert [e.kind for e in alone] == ["retried", "retried", "failed"]  # where there is no other one, it is tried


@pytest.mark.parametrize("devices", [["0", "2"], []])
def test_a_job_that_breaks_everywhere_pauses_no_healthy_place(tmp_path, caplog, begun, devices):
    told = last_words(run(tmp_path, ["a", "bad"], LocalPool(2, devices=devices)))
    assert told == {"a": "done", "bad": "failed"} and not caplog.text


WORDS = {"+": 0.4, "++": 0.8}


@pytest.mark.parametrize(
    ("words", "paused"),
    [
        ("A a -, A b -", True),
        ("A a -, A a -", True),  # elsewhere is found out whether it is the job
        ("A a +, A a -, A a -, A a -", False),  # it may be the job
        ("A a -, A b -, B a -", False),  # it is the job
        ("A a -, B a -, A b -, A c -", True),
        ("A a -, A b +, A b ++, A b -", False),  # it got on there
        ("A a +, A a -, A b +, A b -", True),  # both had a checkpoint
        ("A a -, A b done, A c -", False),
    ],
)
def test_a_place_is_bad_where_jobs_break_that_break_nowhere_else(words, paused):
    bad = bad_places.BadPlaces()
    for place, job, word in (said.split() for said in words.split(", ")):
        kind = "progress" if word in WORDS else "done" if word == "done" else "broke"
        bad.note(place, Told(job, kind, WORDS.get(word, 0.0)))
    assert ("A" not in bad.usable("AB")) is paused
    assert bad.usable("BC", "a")[0] == ("C" if "B a -" in words else "B")  # where it has not broken


def ray_processes(*found: tuple[str, float, str]) -> list[SimpleNamespace]:
    """As `psutil` lists them. Of each `raylet`: whose it is, since when it runs, and its cluster."""
    lists = [(["/bin/sh"], 0.0, "root"), ([], 0.0, "root"), (None, None, None)]
    lists += [(["/ray/raylet", "--node=1", f"--gcs-address={address}"], began, who) for who, began, address in found]
    return [SimpleNamespace(info={"cmdline": c, "create_time": t, "username": u}) for c, t, u in lists]


@pytest.fixture
def joined(monkeypatch):
    """What "auto" joins among such processes; without Ray itself."""
    asked: list[str] = []
    worker = SimpleNamespace(maybe_enable_token_auth_if_token_available=lambda **more: asked.append("token"))
    fake = SimpleNamespace(
        is_initialized=lambda: False, init=lambda address, **more: asked.append(address), shutdown=lambda: None,
        _private=SimpleNamespace(worker=worker),
    )  # fmt: skip
    monkeypatch.setattr(ray_pool, "need_ray", lambda: fake)
    monkeypatch.setattr(ray_pool, "_knock", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def join(*found: tuple[str, float, str]) -> list[str]:
        asked.clear()
        monkeypatch.setattr("psutil.process_iter", lambda *a: ray_processes(*found))
        with ray_pool.connected("auto"):
            return list(asked)

    return join


def test_only_a_ray_cluster_of_ones_own_is_joined_unasked(joined, monkeypatch):
    me, theirs = psutil.Process().username(), ("mallory", 9.0, "10.0.0.66:6379")
    assert joined() == ["local"]
    assert joined((me, 1.0, "h:1"), theirs, (me, 2.0, "h:2"), (me, 1.5, "h:3")) == ["token", "h:2"]
    with pytest.raises(
        OptionError, match=r"at 10\.0\.0\.66:6379, was started by another user.*--ray 10\.0\.0\.66:6379"
    ):
        joined(theirs)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(OptionError, match="started by another user"):
        joined(theirs)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.66:6379")  # the user named it
    assert joined(theirs) == ["10.0.0.66:6379"]


class Ray:
    """Stands for Ray: a cluster without GPUs. starts: what becomes of each worker: "+" it starts, and does jobs at
    once, "-" it dies, "?" it waits for room, "!" it starts, and its machine dies, "x" it starts, and jobs break there.
    Tasks wait."""

    IN_ITS_START = (
        "The actor died because of an error raised in its creation task, ray::_Actor.__init__() (pid=1)\n  ^^^^\n"
        "ModuleNotFoundError: No module named 'guda_core'"
    )

    class RayError(Exception):
        pass

    def __init__(self, starts: str, cpus: int = 1) -> None:
        self.starts, self.cpus, self.begun, self.said = iter(starts), cpus, 0, dict[object, object]()
        self.ran = list[str]()
        self.exceptions = SimpleNamespace(RayError=self.RayError)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}]

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, **options: object):
        return self.made

    def made(self, what: object) -> SimpleNamespace:
        if what is ray_actors._Actor:
            return SimpleNamespace(remote=self.actor)
        board = SimpleNamespace(take=SimpleNamespace(remote=lambda: self.answer([])))
        task = SimpleNamespace(remote=lambda *a: self.answer(None))
        return SimpleNamespace(remote=lambda: board, options=lambda **more: task)

    def actor(self) -> SimpleNamespace:
        self.begun += 1
        kind, gone = next(self.starts), self.RayError("The node has died.")
        later: dict[str, object] = {"-": self.RayError(self.IN_ITS_START), "?": None, "!": gone}
        starts = chain([kind] if kind == "!" else [], repeat(later.get(kind, kind)))

        def run(packed: bytes, *more: object) -> object:
            job = pickle.loads(packed)
            self.ran.append(kind)
            if kind == "x":
                return pickle.dumps(Told(job.name, "broke"))
            return gone if kind == "!" else pickle.dumps(perform(job, lambda told: None))

        return SimpleNamespace(
            started=SimpleNamespace(remote=lambda: self.answer(next(starts))),
            run=SimpleNamespace(remote=lambda *given: self.answer(run(*given))),
        )

    def answer(self, said: object) -> object:
        ref = object()
        self.said[ref] = said
        return ref

    def wait(self, refs: list[object], **more: object) -> tuple[list[object], list[object]]:
        return [r for r in refs if self.said[r] is not None], []

    def get(self, ref: object, timeout: float = 0.0) -> object:
        if isinstance(said := self.said[ref], Exception):
            raise said
        return said

    def kill(self, actor: object) -> None:
        pass

    cancel = kill


@pytest.fixture
def hasty(monkeypatch):
    """No waiting; and no Ray is needed."""
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *a, **k: None)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    monkeypatch.setattr(ray_actors, "LOOK_S", 0.0)
    monkeypatch.setattr(ray_pool, "QUIET_S", 0.01)
    monkeypatch.setattr(driver, "LISTEN_S", 0.02)


def test_workers_that_never_start_on_ray_are_one_sentence_with_the_reason(tmp_path, hasty):
    pool = RayActors(ray := Ray("-" * 99))
    with pytest.raises(OptionError, match=r"\(ModuleNotFoundError: No module named 'guda_core'\).*Mend that"):
        run(tmp_path, ["a"], pool)
    assert ray.begun == ray_actors.STARTS


def test_a_machine_of_ray_on_which_no_worker_starts_stops_no_other_and_is_told(tmp_path, hasty, caplog):
    pool = RayActors(Ray("+" + "-" * 99, cpus=2))
    assert last_words(run(tmp_path, list("abcdef"), pool)) == dict.fromkeys("abcdef", "done")
    assert caplog.text.count("does not start on a machine of the Ray cluster (ModuleNotFoundError") == 1


def test_a_machine_of_ray_that_dies_with_all_its_workers_costs_a_job_one_try(tmp_path, hasty, monkeypatch):
    monkeypatch.setattr(ray_actors, "LOOK_S", 0.2)  # others take a moment to start
    events = run(tmp_path, ["a"], RayActors(Ray("!!!!" + "+" * 9, cpus=4)))
    assert [e.kind for e in events] == ["retried", "done"] and "node has died" in events[0].note


def test_a_machine_of_ray_where_every_job_breaks_gets_none_while_others_work(tmp_path, hasty, caplog):
    pool = RayActors(ray := Ray("+" + "x" * 99, cpus=2))
    assert last_words(run(tmp_path, list("abcdefghij"), pool)) == dict.fromkeys("abcdefghij", "done")
    assert ray.ran.count("x") == 2 and caplog.text.count("broke 2 times in a row at x.") == 1


def test_a_ray_cluster_that_begins_nothing_is_told_once(tmp_path, hasty, caplog):
    tasks, actors = RayPool(Ray("")), RayActors(Ray("?"))
    tasks.submit(jobs(tmp_path, ["a"])[0])
    for _ in range(4):
        assert not tasks.told(0.0) and not actors.free()
        time.sleep(0.02)
    assert caplog.text.count("Nothing has begun on the Ray cluster") == 2


def test_two_jobs_of_one_name_are_a_fault(tmp_path):
    with pytest.raises(ValueError, match="same name"):
        run(tmp_path, ["a", "a"], LocalPool(1, devices=[]))


def test_a_worker_elsewhere_has_the_drivers_settings_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUDA_CACHE", "cache")
    monkeypatch.setenv("GUDA_HOME", "work")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("GUDA_KEY_PASSPHRASE", "secret")
    told = settings()
    assert "secret" not in told.values()
    assert (told["GUDA_CACHE"], told["GUDA_HOME"]) == (str(tmp_path / "cache"), str(tmp_path / "work"))
    monkeypatch.setenv("GUDA_HOME", "hub:USER/NAME")
    monkeypatch.setenv("GUDA_MODEL", "another")
    monkeypatch.setenv("GUDA_LORA", "the worker's own.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    apply({**told, "GUDA_LORA": ""}, __version__)  # empty is none
    assert settings() == {**told, "HF_HUB_OFFLINE": "1"} and not {"GUDA_MODEL", "GUDA_LORA"} & os.environ.keys()
    (tmp_path / "m").mkdir()
    (tmp_path / "one.yaml").touch()
    for given, kept in (("./m", tmp_path / "m"), ("one.yaml", tmp_path / "one.yaml"), ("m", "m"), ("user/m", "user/m")):
        monkeypatch.setenv("GUDA_MODEL", given)
        assert settings()["GUDA_MODEL"] == str(kept)
    monkeypatch.setenv("GUDA_CIFAR10", "m")
    monkeypatch.setenv("GUDA_LORA", "~/a.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    told = settings()
    assert (told["GUDA_CIFAR10"], told["GUDA_LORA"]) == (str(tmp_path / "m"), str(tmp_path / "a.safetensors"))
    with pytest.raises(OptionError, match=r"has guda-core .*, the driver has 0\.0\. Install the same"):
        apply(told, "0.0")


def test_several_processes_may_keep_the_same_encoded_pictures_at_once(tmp_path, monkeypatch):
    store, real, depth = Shards(tmp_path, "pictures"), shards.save_file, []

    def while_another_does(flat, path):
        real(flat, path)
        if not depth:
            depth.append(1)
            Shards(tmp_path, "pictures").write({"a": {"latent": torch.ones(2)}})

    monkeypatch.setattr(shards, "save_file", while_another_does)
    store.write({"a": {"latent": torch.ones(2)}})
    assert store.read(["a"])["a"]["latent"].tolist() == [1, 1] and len(list(tmp_path.iterdir())) == 1


def test_the_end_is_told_by_what_was_made_now_not_by_what_a_checkpoint_held(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])

    def said(*words: tuple[str, float]) -> float | None:
        """Seconds left, of four jobs alike, after these words, 10 s between them."""
        whole = driver._Whole(jobs(tmp_path, list("abcd")))
        for name, fraction in words:
            now[0] += 10.0
            whole.note(name, fraction, found=name == "d", done=fraction == 1.0)
        return whole.left_s()

    assert said(("a", 0.9)) is None and said(("a", 0.25)) is None  # either may be a checkpoint
    assert said(("a", 0.25), ("a", 0.5)) == pytest.approx(140)  # it began anew: one picture each 10 s
    assert said(("a", 0.9), ("a", 0.95)) == pytest.approx(20 / 0.1 * 3.05)
    assert said(("a", 1.0)) == pytest.approx(30)  # one step
    whole = driver._Whole(jobs(tmp_path, list("abcd")))
    now[0] += 10.0
    whole.note("a", 1.0)
    assert whole.left_s() is None
    whole.note("a", 1.0, done=True)
    assert whole.left_s() == pytest.approx(30)
    assert said(("d", 1.0), ("a", 0.5), ("a", 1.0)) == pytest.approx(60)
    assert said(("a", 0.5), ("a", 1.0), ("b", 0.5), ("b", 0.0), ("b", 0.5), ("b", 1.0)) == pytest.approx(60)


def test_a_word_costs_the_same_however_many_jobs_there_are(tmp_path):
    class Counted(dict):
        def __iter__(self):
            pytest.fail("all jobs are looked at")

        items = values = __iter__

    whole = driver._Whole(jobs(tmp_path, [str(i) for i in range(3)]))
    whole.costs, whole.fractions = Counted(whole.costs), Counted(whole.fractions)
    for i, share in ((0, 1 / 3), (1, 2 / 3), (2, 1.0)):
        whole.note(str(i), 1.0, done=True)
        assert whole.done() == pytest.approx(share) and whole.left_s() is not None
    assert whole.done() == 1 and whole.left_s() == 0


def test_a_late_word_of_jobs_before_is_passed_over(tmp_path):
    """As of a Ray board: a word of the first jobs of a pool may come when its next ones run."""

    class Pool:
        about = "one that repeats an old word"

        def __init__(self) -> None:
            self.jobs: list[str] = []

        def free(self) -> int:
            return 1

        def submit(self, job) -> None:
            self.jobs.append(job.name)

        def told(self, timeout: float) -> list[Told]:
            return [Told("look and encode", "progress", 0.9), *(Told(n, "done", 1.0) for n in self.jobs)]

        def close(self) -> None:
            pass

    assert [(e.job.name, e.kind) for e in work_through(jobs(tmp_path, ["a"]), Pool())] == [("a", "done")]


def test_kept_pictures_that_cannot_be_opened_now_are_not_thrown_away(tmp_path, monkeypatch):
    store = Shards(tmp_path, "pictures")
    store.write({"a": {"latent": torch.ones(2)}})

    def refuses(*args, **more):
        raise PermissionError(13, os.strerror(13))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "safe_open", refuses)  # another person's file, or a network disk that is away
        assert store.read(["a"]) == {}
    assert store.read(["a"])["a"]["latent"].tolist() == [1, 1]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])  # cut short
    assert store.read(["a"]) == {} and not path.exists()
