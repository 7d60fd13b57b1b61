"""A table of scores: its rows are what `attribute` says, it goes on where it stopped, and bad pictures are rows."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import guda_core
from guda_core import api
from guda_core.attribution import run_files
from guda_core.cli import table_lines
from guda_core.data.images import hash_pixels, read_picture
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.errors import ImageError, NoMemoryError, OptionError, PassingError, ReportError, ScoreError
from guda_core.jobs import driver, job
from guda_core.jobs.job import Job, Told
from guda_core.jobs.local_pool import LocalPool
from guda_core.scoring import listing, part_jobs, parts, places, scorer, table_run
from guda_core.scoring.asking import Results
from guda_core.scoring.listing import Listing, asked, parts_for
from guda_core.scoring.scorer import Done, Task
from guda_core.scoring.table_run import Options, Table, Total
from guda_core.work_queue import claimed
from tests.job_works import Here
from tests.light import LightService, draw
from tests.table_works import QUICK, Made, folder_of, pids, rows, run, scored
from tests.test_pipeline import service  # noqa: F401  (a fixture)


@pytest.fixture
def folder(tmp_path) -> Path:
    return folder_of(tmp_path / "in", 9)


def made(tmp_path: Path, **more: object) -> Made:
    return Made(tmp_path, **more)  # type: ignore[arg-type]


def digests(folder: Path) -> list[str]:
    """SHA-256 of all files in a folder, sorted."""
    return sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir())


def test_rows_are_bit_by_bit_what_attribute_says(service, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(api, "_service", lambda *a: service)
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    options = Options("quick", ("guda", "clip"), "cat")
    assert run(folder, out, lambda: service, options=options) == Total(2, scored=2)
    for path in folder.iterdir():
        answer = guda_core.attribute(path, "cat", methods=options.methods, effort="quick")
        mine = {(r["method"], r["group_id"]): r for r in rows(out) if r["picture"] == path.name}
        assert len(mine) == 2 * len(service.group_set.groups)
        for m, a in answer.methods.items():
            for g, s in a.groups.items():
                r = mine[m, g]
                assert [r[k] for k in ("score", "low", "high", "status", "reason")] == list(vars(s).values())
                assert r["rank"] == (a.ranked().index(g) + 1 if s.score is not None else None)
                assert r["told_apart"] is a.separable and r["unit"] == a.unit and r["prompt"] == "cat"
                assert (r["pixels_sha256"], r["seed"]) == (answer.query.image_hash,) * 2
                assert r["scope"] == answer.scope.verdict and r["model_sha256"] == service.model.sha256
                assert r["draws"] == (a.kl.without[g].shape[1] if a.kl and g in a.kl.without else None)
                adapters = service.provenance().unlearned.hashes
                assert r["adapter_sha256"] == (adapters.get(g) if m == "guda" else None)


def test_a_stopped_run_goes_on_and_ends_as_an_unstopped_one(folder, tmp_path):
    run(folder, tmp_path / "whole", LightService)
    make = made(tmp_path)
    stream = Table([str(folder)], str(tmp_path / "out"), make, QUICK).run()
    for total in stream:
        if total.done == 5:
            break
    stream.close()
    assert len(scored(tmp_path)) == 5
    assert run(folder, tmp_path / "out", make) == Total(9, scored=4, kept=5)
    assert scored(tmp_path) == digests(folder)  # nothing lost, nothing twice
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert run(folder, tmp_path / "out", make) == Total(9, kept=9)
    assert not list((tmp_path / "out" / scorer.TRYING).iterdir())


TEARS = (
    lambda b: b"",
    lambda b: b[:-20],
    lambda b: b[: len(b) // 2],
    lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:],
)


@pytest.mark.parametrize("tear", TEARS)
def test_a_part_that_is_not_whole_is_made_again(folder, tmp_path, tear):
    make, out = made(tmp_path), tmp_path / "out"
    run(folder, out, make)
    before, first = rows(out), len(scored(tmp_path))
    part = Path(places.files(str(out / "parts"), ".parquet")[0])
    names = {r["picture"] for r in parts.read(str(part))}
    part.write_bytes(tear(part.read_bytes()))
    (out / "parts" / ".part-stray").write_bytes(b"half a part")
    assert run(folder, out, make) == Total(9, scored=len(names), kept=9 - len(names))
    assert rows(out) == before and len(scored(tmp_path)) == first + len(names)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 10^9 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 30000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_bad_pictures_are_rows_with_a_reason(folder, tmp_path, caplog):
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "notes.doc").write_text("no picture")
    (folder / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(25_000_001))
    (folder / ".hidden").write_text("x")
    (folder / "below").mkdir()
    draw(folder / "below" / "000.png", seed=50)
    table = tmp_path / "t.csv"
    bad = LightService()
    bad.bad_hash = hash_pixels(read_picture((folder / "003.png").read_bytes(), size=16).pixels)
    bad.fault = RuntimeError("out of memory: secret")
    total = run(folder, tmp_path / "out", lambda: bad)
    assert (total.pictures, total.scored, total.refused) == (14, 9, 5)
    found = {r["picture"]: r for r in rows(tmp_path / "out") if r["method"] is None}
    said = {"empty.png": "0 bytes", "bomb.png": "megapixels", "notes.doc": "PNG", "large.png": "larger than 25 MB"}
    for name, part in said.items():
        assert found[name]["status"] == "refused" and part in found[name]["reason"], found[name]["reason"]
    assert found["003.png"]["status"] == "failed" and "RuntimeError" in found["003.png"]["reason"]
    assert "secret" not in found["003.png"]["reason"] and "secret" in caplog.text
    assert total.why == {name: r["reason"] for name, r in found.items()}
    bad.fault = None
    again = run(folder, tmp_path / "out", lambda: bad)
    assert (again.scored, again.kept, again.refused) == (1, 9, 4)  # what failed is tried again
    table.write_text("file\nnowhere.png\n")
    (reason,) = run(table, tmp_path / "other", LightService).why.values()
    assert "no such picture" in reason


def test_files_that_are_plainly_no_pictures_are_left_out_of_folders_and_counted(folder, tmp_path):
    (folder / "below").mkdir()
    draw(folder / "below" / "000.png", seed=50)
    listed = len(Listing([str(folder)]))
    for name in ("000.txt", "metadata.JSONL", "below/000.txt", ".hidden.txt"):
        (folder / name).write_text("no picture")
    (tmp_path / "here.txt").write_text("no picture")
    found = Listing([str(folder)])
    assert len(found) == listed and "3 files are left out" in str(found.passed)
    assert {w.picture for w in Listing([str(tmp_path / "here.txt")])._walk()} == {"here.txt"}


def test_a_picture_that_ends_its_process_becomes_a_row(folder, tmp_path):
    make, out = made(tmp_path, ends=folder / "004.png"), tmp_path / "out"
    pool = LocalPool(2, devices=[])
    try:
        total = run(folder, out, make, partial(part_jobs.by_pool, pool=pool))
    finally:
        pool.close()
    assert (total.scored + total.kept, total.refused) == (8, 1) and total.why == {"004.png": scorer.ENDED}
    run(folder, tmp_path / "whole", LightService)
    assert [r for r in rows(out) if r["method"]] == [r for r in rows(tmp_path / "whole") if r["picture"] != "004.png"]
    assert len(pids(tmp_path)) >= 3
    assert run(folder, out, made(tmp_path)) == Total(9, scored=1, kept=8)  # another day it is tried again


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(folder, tmp_path, monkeypatch):
    make, out, full = made(tmp_path), tmp_path / "out", 3
    real = os.replace

    def replace(source, target):
        nonlocal full
        full -= str(target).endswith(".parquet")
        if full <= 0:
            raise OSError(28, os.strerror(28))
        real(source, target)

    monkeypatch.setattr("guda_core.held_files.os.replace", replace)
    with pytest.raises(ReportError, match=r"No space left on device.*Free some space"):
        run(folder, out, make)
    monkeypatch.undo()
    kept = len({r["picture"] for r in rows(out)})
    assert 0 < kept < 9 and not [p for p in out.rglob("*") if p.name.startswith(".part-")]
    assert run(folder, out, make).kept == kept
    run(folder, tmp_path / "whole", LightService)
    assert rows(out) == rows(tmp_path / "whole")


def test_pictures_at_which_the_disk_was_full_again_and_again_did_not_end_their_process(folder, tmp_path, monkeypatch):
    out, real = tmp_path / "out", os.replace

    def replace(source, target):
        if str(target).endswith(".parquet") and "parts" in str(target):
            raise OSError(28, os.strerror(28))
        real(source, target)

    monkeypatch.setattr("guda_core.held_files.os.replace", replace)
    for _ in range(scorer.TRIES):
        with pytest.raises(ReportError, match="Free some space"):
            run(folder, out, LightService)
    monkeypatch.undo()
    assert run(folder, out, LightService) == Total(9, scored=9)


def test_workers_that_find_the_disk_full_stop_the_run(folder, tmp_path):
    full = tmp_path / "full"
    full.touch()
    pool = LocalPool(1, devices=[])
    try:
        with pytest.raises(ReportError, match="No space left on device"):
            run(folder, tmp_path / "out", made(tmp_path, full=full), partial(part_jobs.by_pool, pool=pool))
    finally:
        pool.close()
    assert not rows(tmp_path / "out")


def broken() -> LightService:
    raise RuntimeError("The NVIDIA driver is too old.")


def test_a_service_that_no_worker_can_make_stops_the_run_and_says_why(folder, tmp_path):
    work = partial(part_jobs.by_pool, pool=Here())
    with pytest.raises(
        ScoreError, match=r"No worker gets a picture done \(RuntimeError: The NVIDIA driver is too old\)"
    ):
        run(folder, tmp_path / "out", broken, work)


class Words:
    """A pool of workers that say what `says` gives for the next of them, in as many steps; None: nothing yet."""

    about = "workers of words"

    def __init__(self, *says: Callable[[Task], list[Told | None]]) -> None:
        self.says, self.at_work, self.begun = list(says), dict[int, list[Told | None]](), list[str]()

    def free(self) -> int:
        return len(self.says) - len(self.at_work)

    def submit(self, job: Job) -> None:
        worker = next(i for i in range(len(self.says)) if i not in self.at_work)
        self.at_work[worker] = self.says[worker](*job.arguments)
        self.begun.append(job.name)

    def told(self, timeout: float) -> list[Told]:
        found = [words.pop(0) for words in self.at_work.values()]
        self.at_work = {i: words for i, words in self.at_work.items() if words}
        return [told for told in found if told is not None]

    def close(self) -> None:
        """There is nothing to end."""


def ends(task: Task, *, ended: bool = True) -> list[Told | None]:
    note = "Its process ended with code 7." if ended else f"RuntimeError: no driver. {places.AGAIN}"
    return [Told(f"part {task.part}", "progress"), Told(f"part {task.part}", "broke", note=note, ended=ended)]


def does(task: Task) -> list[Told | None]:
    answer = Done(task.pictures, task.pictures, part=task.part)
    return [Told(f"part {task.part}", "progress"), *[None] * 6, Told(f"part {task.part}", "done", 1.0, answer=answer)]


def tasks(n: int) -> list[Task]:
    return [Task("out", part, 4, LightService) for part in range(n)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("ended", "rounds", "why"), [(True, 7, "ended with code 7"), (False, 3, "Error: no driver")])
def test_workers_that_all_break_at_every_part_stop_the_run_and_say_why(workers, ended, rounds, why):
    pool = Words(*[partial(ends, ended=ended)] * workers)
    with pytest.raises(ScoreError, match=rf"{why}\)\. Mend that"):
        list(part_jobs.by_pool(tasks(10), pool))
    assert len(pool.begun) == rounds * workers


def test_a_machine_whose_workers_break_stops_no_run_while_others_work(caplog):
    pool = Words(does, partial(ends, ended=False))
    assert sorted(d.part for d in part_jobs.by_pool(tasks(3), pool) if d.done == 4) == [0, 1, 2]
    assert len(pool.begun) > 3 + 3 and caplog.text.count("broke off (RuntimeError: no driver)") == 1


def test_parts_that_are_given_up_are_told_with_the_reason():
    pool = Words(lambda task: (ends if task.part == 1 else does)(task))
    with pytest.raises(ReportError, match=r"4 of 12 pictures have no rows yet, .* \(Its process ended with code 7\)"):
        list(part_jobs.by_pool(tasks(3), pool))
    assert [pool.begun.count(f"part {i}") for i in range(3)] == [1, 1 + part_jobs.RETRIES, 1]


@pytest.mark.parametrize("raised", [True, False])
@pytest.mark.parametrize("times", [2, 99])
def test_a_worker_without_memory_gives_the_part_back_and_the_last_try_is_a_row(
    folder, tmp_path, monkeypatch, raised, times
):
    left, real = {"004.png": times, "005.png": times}, scorer._Part._score

    def short(self, w, data):
        found = real(self, w, data)
        if left.get(w.picture, 0) <= 0:
            return found
        left[w.picture] -= 1
        if raised:
            raise NoMemoryError(NO_MEMORY)
        return [{**row, "status": "no_score", "reason": NO_MEMORY} for row in found]

    monkeypatch.setattr(scorer._Part, "_score", short)
    work = partial(part_jobs.by_pool, pool=Here())
    found = run(folder, tmp_path / "out", LightService, work)
    lacking = [r for r in rows(tmp_path / "out") if r["reason"] == NO_MEMORY]
    assert {r["picture"] for r in lacking} == ({"004.png", "005.png"} if times == 99 else set())
    assert found.refused == (2 * raised if times == 99 else 0) and found.done == 9
    left |= {"004.png": 99}  # in one process there is no other worker
    run(folder, tmp_path / "alone", LightService)
    assert left["004.png"] == 98


class Gone(BaseException):
    """Stands for the end of a process: nothing is written down any more."""


def test_a_picture_without_memory_and_one_that_ends_its_process_leave_each_other_their_tries(
    folder, tmp_path, monkeypatch
):
    real, workers = scorer._Part._score, []

    def short(self, w, data):
        if w.picture == "001.png":
            raise NoMemoryError(NO_MEMORY)
        if w.picture == "004.png":
            raise Gone
        return real(self, w, data)

    def work(tasks):
        waiting = list(tasks)
        while waiting:
            workers.append(waiting[0])
            with suppress(NoMemoryError, Gone):
                yield from scorer.steps(waiting[0], one_of_several=True)
                waiting.pop(0)

    monkeypatch.setattr(scorer._Part, "_score", short)
    monkeypatch.setattr(table_run, "parts_for", lambda n: 1)
    assert run(folder, tmp_path / "out", LightService, work).why == {"001.png": NO_MEMORY, "004.png": scorer.ENDED}
    assert len(workers) == 2 * scorer.TRIES <= 1 + part_jobs.RETRIES


def test_what_ended_a_run_is_told_soon_whatever_becomes_of_its_parts(tmp_path, monkeypatch):
    def refuses(task: Task) -> None:
        raise StoreError("503 Slow Down")

    monkeypatch.setattr(part_jobs, "END_S", 0.4)
    monkeypatch.setattr(part_jobs, "blame_nothing", refuses)
    parts_ = [Task(str(tmp_path / "out"), i, 4, LightService) for i in range(4)]
    begins = [lambda t: [Told(f"part {t.part}", "progress", 0.0, "", Done(4, part=t.part)), *[None] * 9]] * 4
    stream = part_jobs.by_pool(parts_, Words(*begins))
    for _ in parts_:
        next(stream)
    with ExitStack() as held:
        for task in parts_[1:]:
            held.enter_context(claimed(part_jobs.claim(task)))
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    assert time.monotonic() - began < 0.8


@pytest.mark.parametrize(
    ("error", "times", "asked", "verdict"),
    [
        (RuntimeError("no kernel image"), 99, 1, "not assessed"),
        (NoMemoryError(NO_MEMORY), 1, 2, "in scope"),  # another worker may have more
        (NoMemoryError(NO_MEMORY), 99, scorer.TRIES, "not assessed"),
    ],
)
def test_a_verdict_on_scope_that_cannot_be_made_takes_no_score_away(
    folder, tmp_path, monkeypatch, error, times, asked, verdict
):
    one, seen, real = hashlib.sha256((folder / "004.png").read_bytes()).hexdigest(), [], LightService.scope

    def scope(self, query):
        seen.append(query.file_hash)
        if query.file_hash == one and seen.count(one) <= times:
            raise error
        return real(self, query)

    monkeypatch.setattr(LightService, "scope", scope)
    found = run(folder, tmp_path / "out", LightService, partial(part_jobs.by_pool, pool=Here()))
    assert (found.refused, found.done, seen.count(one)) == (0, 9, asked)
    of_it = [r for r in rows(tmp_path / "out") if r["picture"] == "004.png"]
    assert {r["scope"] for r in of_it} == {verdict} and "ok" in {r["status"] for r in of_it}


def test_a_picture_whose_worker_is_ended_on_purpose_is_not_blamed(folder, tmp_path):
    task = Task(str(tmp_path / "out"), 0, 4, LightService)

    def begins(task: Task, *, then: list[Told | None]) -> list[Told | None]:
        scorer._Tried(task).begin("a.png")
        return [Told("part 0", "progress", 0.0, "", Done(4, part=0)), *then]

    for _ in range(scorer.TRIES):
        stream = part_jobs.by_pool([task], Words(partial(begins, then=[None] * 9)))
        next(stream)
        stream.close()  # as Ctrl-C
    assert scorer._Tried(task).ended == {}
    crash = Told("part 0", "broke", ended=True)
    with pytest.raises(ScoreError):
        list(part_jobs.by_pool([task], Words(partial(begins, then=[crash]))))
    assert not scorer._Tried(task).begin("a.png")


def test_whoever_ends_a_plain_run_by_sigterm_blames_no_picture_and_keeps_what_was_scored(folder, tmp_path):
    class Ended(LightService):
        def prepare(self, data, *, prompt=""):
            if len(self.scored) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().prepare(data, prompt=prompt)

    before, out = signal.getsignal(signal.SIGTERM), tmp_path / "out"
    for _ in range(scorer.TRIES):
        with pytest.raises(SystemExit):
            table_lines.make_table([str(folder)], str(out), Ended, QUICK, workers=None, ray=None)
    assert signal.getsignal(signal.SIGTERM) is before and len({r["picture"] for r in rows(out)}) >= 5
    assert run(folder, out, LightService).refused == 0


@pytest.mark.parametrize("work", [part_jobs.here, partial(part_jobs.by_pool, pool=Here())])
@pytest.mark.parametrize(("what", "save_s"), [(scorer.TRYING, 30.0), ("parts", 0.0), ("parts", 30.0)])
def test_one_write_that_is_lost_ends_no_run(folder, tmp_path, monkeypatch, caplog, what, save_s, work):
    monkeypatch.setattr(scorer, "SAVE_S", save_s)
    monkeypatch.setattr(scorer, "AGAIN_S", (0.0, 0.0))
    real, lost = os.replace, []

    def replace(source, target):
        if what in Path(target).parts and len(lost) < 2:
            lost.append(target)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        real(source, target)

    monkeypatch.setattr("guda_core.held_files.os.replace", replace)
    assert (run(folder, tmp_path / "out", LightService, work), len(lost)) == (Total(9, scored=9), 2)
    assert "cannot be written now (Stale file handle). The run goes on." in caplog.text


class StoreError(Exception):
    """As libraries of stores raise."""


@pytest.mark.parametrize(
    ("error", "passes", "mend"),
    [
        (OSError(errno.ENOSPC, "full"), False, r"\(full\)\. Free some space or name another place\."),
        (OSError(errno.EDQUOT, "quota"), False, r"\(quota\)\. Free some space"),
        (OSError(errno.EROFS, "read-only"), False, r"\(read-only\)\. Name another place\."),
        (PermissionError(errno.EACCES, "denied"), False, r"\(denied\)\. Name another place\."),
        (OSError(errno.EIO, "disk"), True, r"written now \(disk\)\. Try it again"),
        (StoreError("503 Slow Down"), True, r"written now \(503 Slow Down\)\. Try it again"),
    ],
)
def test_only_what_lasts_says_that_a_place_cannot_be_written(tmp_path, monkeypatch, error, passes, mend):
    def refuses(*args, **more):
        raise error

    monkeypatch.setattr("guda_core.held_files.os.replace", refuses)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuses)
    for place in ("memory://x/y", str(tmp_path / "y"))[: 1 if isinstance(error, StoreError) else 2]:
        with pytest.raises(ReportError, match=mend) as told:
            places.write(place, b"x")
        assert isinstance(told.value, PassingError) is passes


def test_that_a_file_is_written_again_is_said_once(folder, tmp_path, caplog):
    run(folder, tmp_path / "out", LightService)
    (tmp_path / "out" / scorer.MADE_FROM).write_text("{")
    run(folder, tmp_path / "out", LightService)
    assert caplog.text.count("is not whole and is written again") == 1


def test_of_two_runs_with_other_settings_begun_at_once_the_later_one_is_refused(folder, tmp_path, monkeypatch):
    run(folder, tmp_path / "out", LightService)
    real, looked = places.content, []

    def content(place):
        if place.endswith(scorer.MADE_FROM) and not looked:
            return looked.append(place)  # the other run writes it just now
        return real(place)

    monkeypatch.setattr(places, "content", content)
    with pytest.raises(OptionError, match=r"something else \(effort\)"):
        run(folder, tmp_path / "out", LightService, options=Options("standard"))


def test_what_killed_runs_left_is_removed_but_no_lock_that_others_may_wait_for(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out, LightService)
    left, new, tried = (out / name for name in ("parts/.part-left", "parts/.part-new", "trying/.part-left"))
    for path in (left, new, tried):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    os.utime(tried, (0, 0))
    (first,) = out.glob("asked-*")
    lock = out / "claims" / f"{first.name}.lock"
    draw(folder / "more.png", seed=99)
    run(folder, out, LightService)
    assert not first.exists() and lock.exists() and new.exists() and not left.exists() and not tried.exists()
    with run_files.in_place_of(left.with_name("features")) as aside:
        os.utime(new, (0, 0))
        aside.write_bytes(b"whole")
    assert new.exists()
    with run_files.in_place_of(left.with_name("features")) as aside:
        aside.write_bytes(b"whole")
    assert not new.exists()


def test_what_workers_keep_is_told_as_kept_while_they_work(folder, tmp_path, monkeypatch):
    (folder / "empty.png").write_bytes(b"")
    monkeypatch.setattr(job, "SECONDS", 0.0)
    work = partial(part_jobs.by_pool, pool=Here())
    run(folder, tmp_path / "out", LightService, work)
    totals = list(Table([str(folder)], str(tmp_path / "out"), LightService, QUICK).run(work))
    assert len(totals) > 3 and not any(t.scored for t in totals) and (totals[-1].kept, totals[-1].refused) == (9, 1)


def test_only_what_changed_is_scored_again(folder, tmp_path):
    make, out = made(tmp_path), tmp_path / "out"
    run(folder, out, make)
    draw(folder / "002.png", seed=99)
    draw(folder / "new.png", seed=98)
    (folder / "001.png").unlink()
    assert run(folder, out, make) == Total(9, scored=2, kept=7)
    assert {r["picture"] for r in rows(out)} == {f"{i:03d}.png" for i in range(9)} | {"new.png"}
    assert run(folder, out, make, options=Options("quick", prompt="cat")) == Total(9, scored=9)
    moved = folder.rename(tmp_path / "moved")
    assert run(moved, out, make, options=Options("quick", prompt="cat")) == Total(9, kept=9)
    place = next(r["place"] for r in rows(out) if r["picture"] == "002.png")
    assert place == str(tmp_path / "moved" / "002.png")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.change(sha256="0" * 64), "model"),
        (lambda s: s.change_models(hashes={"noto": "0"}), "adapters"),
        (lambda s: s.change(scope_sha256="0" * 64), "scope"),
        (lambda s: s.change(made_from={**s.made_with.made_from, "clip": {}}), "what clip is computed from"),
        (lambda s: setattr(s, "group_set", dataclasses.replace(s.group_set, fit="crop")), "fit"),
    ],
)
def test_results_of_another_model_or_setting_are_not_mixed(folder, tmp_path, change, what):
    run(folder, tmp_path / "out", LightService)
    other = LightService()
    change(other)
    with pytest.raises(OptionError, match=rf"begun with something else \({what}.*Name another folder"):
        run(folder, tmp_path / "out", lambda: other)
    for work in (None, partial(part_jobs.by_pool, pool=Here())):
        with pytest.raises(OptionError, match=r"something else \(effort\)"):
            run(folder, tmp_path / "out", LightService, work, Options("standard"))
    with pytest.raises(OptionError, match="clip, guda; got magic"):
        run(folder, tmp_path / "new", LightService, options=Options("quick", ("magic",)))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_pictures_and_prompts(folder, tmp_path, kind):
    table = tmp_path / f"the [list]'s.{kind}"
    text = f'file,prompt,more\nin/000.png,"cat, flat",1\nin/001.png,,2\n{folder}/002.png,d\'or,3\n'
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    if kind == "csv":
        (tmp_path / "list.csv").rename(table)
    else:
        path = listing.quoted(str(table))
        listing.connect().execute(f"COPY (FROM read_csv('{tmp_path}/list.csv', all_varchar=true)) TO {path}")
    assert run(table, tmp_path / "out", LightService) == Total(3, scored=3)
    prompts = {r["picture"]: r["prompt"] for r in rows(tmp_path / "out")}
    assert prompts == {"in/000.png": "cat, flat", "in/001.png": "", f"{folder}/002.png": "d'or"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nx\n", "must have one column 'file'"),
        ("file\n", "no pictures"),
        ("file\na.png\na.png\n", "Two pictures are called 'a.png'"),
        (None, "There is no table"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(OptionError, match=sentence):
        Listing([str(tmp_path / "t.csv")])
    (tmp_path / "t.parquet").write_bytes(b"no table")
    with pytest.raises(OptionError, match="cannot be read as a table"):
        Listing([str(tmp_path / "t.parquet")])


@pytest.mark.parametrize("file", ["file", "File "])
@pytest.mark.parametrize("caption", ["caption", "TEXT", " Prompt"])
def test_other_columns_of_a_parquet_table_are_not_looked_at(tmp_path, file, caption):
    columns = {file: ["x.png", "y.png", None], "name": ["y.png", "x.png", "z"], "picture": [3, 4, 5]}
    columns |= {caption: ["red", None, "z"], "given": ["a"] * 3, "place": ["b"] * 3, 'o"dd': [1] * 3}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = Listing([str(tmp_path / "t.parquet")], "not used")
    found.write(str(tmp_path / "out"), 1)
    of = [(w.picture, w.place, w.prompt) for w in asked(str(tmp_path / "out"), 0, found.name)]
    assert of == [("x.png", str(tmp_path / "x.png"), "red"), ("y.png", str(tmp_path / "y.png"), "")]
    assert found.captions == caption.strip().lower() and found.nameless == 1


def test_captions_that_are_no_texts_are_refused_or_passed_over(tmp_path):
    path = tmp_path / "t.parquet"
    for other in ([["a cat"], ["a dog"]], [1.5, 2.0], [{"a": 1}, {"a": 2}], [b"a", b"b"]):
        pq.write_table(pa.table({"file": ["x.png", "y.png"], "caption": other}), path)
        with pytest.raises(OptionError, match=r"The column 'caption' of .* holds no texts"):
            Listing([str(path)])
    pq.write_table(pa.table({"file": ["x.png"], "prompt": [1.5], "text": ["a cat"]}), path)
    assert Listing([str(path)]).captions == "text"
    pq.write_table(pa.table({"file": ["x.png"], "prompt": pa.nulls(1)}), path)
    assert Listing([str(path)]).captions == "prompt"
    pq.write_table(pa.table({"file": ["x.png"], "text": pa.array(["a"]).dictionary_encode()}), path)
    assert Listing([str(path)]).captions == "text"
    pq.write_table(pa.table({"file": ["x.png"], "text": ["a"], "prompt": ["b"]}), path)
    assert Listing([str(path)]).captions == "text"


def test_a_column_of_captions_without_values_is_one_of_empty_texts(tmp_path):
    """pandas writes it as floats."""
    path = tmp_path / "t.parquet"
    for empty in (None, float("nan")):
        columns = {"file": ["x.png"], "text": pa.array([empty], pa.float64(), from_pandas=False)}
        pq.write_table(pa.table(columns), path)
        found = Listing([str(path)], "a dog")
        found.write(str(tmp_path / "out"), 1)
        assert found.captions == "text" and [w.prompt for w in asked(str(tmp_path / "out"), 0, found.name)] == [""]
        pq.write_table(pa.table({**columns, "caption": ["a cat"]}), path)
        assert Listing([str(path)]).captions == "caption"


@pytest.mark.parametrize("columns", [["file", "text", "Text"], ["file", "File "], ["file", "FILE"]])
def test_two_columns_of_one_name_are_refused(tmp_path, columns):
    one = ["has two columns 'text'", "must have one column 'file'"]["file" in columns[1].lower()]
    (tmp_path / "t.csv").write_text(f"{','.join(columns)}\n{','.join('abc'[: len(columns)])}\n")
    inner = pa.array([{"text": "a", "Text": "b"}])  # no column of the table
    pq.write_table(pa.table([pa.array(["a"]) for _ in columns] + [inner], [*columns, "more"]), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(OptionError, match=one):
            Listing([str(tmp_path / name)])


def test_pictures_and_results_may_be_anywhere(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    try:
        for path in folder.iterdir():
            memory.pipe_file(f"/shop/in/{path.name}", path.read_bytes())
        make = made(tmp_path)
        assert run("memory://shop/in", "memory://shop/out", make) == Total(9, scored=9)
        memory.pipe_file("/shop/out/parts/000000.parquet", b"cut short")
        total = run("memory://shop/in", "memory://shop/out", make)
        assert total.scored + total.kept == 9 and 0 < total.scored < 9
        run(folder, tmp_path / "whole", LightService)
        here = [{**r, "place": ""} for r in rows(tmp_path / "whole")]
        assert [{**r, "place": ""} for r in rows("memory://shop/out")] == here
        assert run(folder, f"local://{tmp_path}/served", LightService) == Total(9, scored=9)
        assert rows(f"local://{tmp_path}/served") == rows(tmp_path / "whole")
        assert run(f"file://{folder}", f"file://{tmp_path}/odd [1]*'s", LightService) == Total(9, scored=9)
        assert rows(tmp_path / "odd [1]*'s") == rows(tmp_path / "whole")
    finally:
        memory.rm("/shop", recursive=True)
    with pytest.raises(OptionError, match="nowhere://x"):
        Listing(["nowhere://x"])


@pytest.mark.parametrize("taken", ["is replaced", "is refused", "does nothing"])
def test_a_file_on_a_server_that_is_written_into_is_replaced_in_one_go(tmp_path, monkeypatch, taken):
    local, place = fsspec.implementations.local, f"local://{tmp_path}/new/folder/a.bin"
    rename, write = local.LocalFileSystem.mv, local.LocalFileOpener.write

    def moved(self, old, new, **more):
        if taken == "is replaced" or not Path(new).exists():
            rename(self, old, new, **more)
        elif taken == "is refused":
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))  # as smb; webhdfs does nothing

    def full(self, data):
        write(self, data[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local.LocalFileSystem, "mv", moved)
    for data in (b"before", b"written"):
        places.write(place, data)
        assert places.read(place) == data
    monkeypatch.setattr(local.LocalFileOpener, "write", full)
    with pytest.raises(ReportError, match=r"No space left on device.*Free some space"):
        places.write(place, b"after")
    assert places.read(place) == b"written"
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["a.bin"]


def test_a_connection_that_is_lost_refuses_one_picture_and_stops_no_other(folder, tmp_path, monkeypatch):
    class LostError(Exception):
        """As libraries of stores raise, such as aiohttp's ClientPayloadError: no OSError."""

    memory = fsspec.filesystem("memory")
    opens = type(memory)._open

    def lost(self, path, *args, **more):
        if str(path).endswith("001.png"):
            raise LostError("Response payload is not completed")
        return opens(self, path, *args, **more)

    try:
        for path in folder.iterdir():
            memory.pipe_file(f"/lost/in/{path.name}", path.read_bytes())
        monkeypatch.setattr(type(memory), "_open", lost)
        total = run("memory://lost/in", tmp_path / "out", LightService)
    finally:
        memory.rm("/lost", recursive=True)
    assert (total.scored, total.refused) == (8, 1) and "could not be read" in total.why["001.png"]


@pytest.mark.parametrize("name", ["table.json", "made_from.json", "parts", "000000.parquet"])
def test_what_cannot_be_read_in_passing_is_not_taken_for_missing(folder, tmp_path, monkeypatch, name):
    def lost(real):
        def once(self, path, *args, **more):
            if str(path).endswith(name) and not failed:
                failed.append(path)
                raise ConnectionError("reset by peer")
            return real(self, path, *args, **more)

        return once

    memory, out, failed = fsspec.filesystem("memory"), "memory://lost/out", []
    others = folder_of(tmp_path / "others", 2)
    for path in others.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    try:
        run(folder, out, LightService)
        before = [places.read(f"{out}/{n}") for n in ("table.json", "made_from.json")]
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "isfile", fsspec.AbstractFileSystem.isfile)
            for method in ("info", "ls", "_open"):
                patch.setattr(type(memory), method, lost(getattr(type(memory), method)))
            with pytest.raises(ReportError, match=r"cannot be read now \(reset by peer\)"):
                Results(out) if name == "parts" else run(others, out, LightService)
        run(others, out, LightService)
        assert len({r["picture"] for r in rows(out)}) == 11  # nobody asks about the nine, and they stay
        assert before == [places.read(f"{out}/{n}") for n in ("table.json", "made_from.json")]
    finally:
        memory.rm("/lost", recursive=True)


def test_a_disk_that_does_not_answer_is_no_missing_file(tmp_path, monkeypatch):
    assert not any(map(places.is_file, ("x" * 5000, "a\0b", str(tmp_path), str(tmp_path / "a" / "b"))))

    def silent(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "stat", silent)
    monkeypatch.setattr(fsspec.core, "url_to_fs", silent)  # as sftp, which connects at once
    for place in (str(tmp_path / "a"), "sftp://host/a"):
        with pytest.raises(ReportError, match=r"cannot be (read|opened) now .*Input/output error"):
            places.is_file(place)
    with pytest.raises(PassingError, match=r"cannot be opened now .*Input/output error"):
        places.write("sftp://host/a", b"")


def test_scores_stay_while_their_pictures_cannot_be_read(folder, tmp_path, caplog):
    names = sorted(p.name for p in folder.iterdir())[:3]
    table, out = tmp_path / "list.csv", tmp_path / "out"
    table.write_text("file\n" + "".join(f"in/{n}\n" for n in names))
    assert run(table, out, LightService) == Total(3, scored=3)
    before = rows(out)
    folder.rename(tmp_path / "away")  # a network disk that is not mounted
    assert run(table, out, LightService) == Total(3, kept=3) and rows(out) == before
    folder.mkdir()
    (folder / names[0]).write_bytes(b"no picture")  # another file than the one that was scored
    total = run(table, out, LightService)
    assert (total.kept, total.refused) == (2, 1) and len(rows(out)) < len(before)
    kept = rows(out)
    other = run(table, out, LightService, options=Options("quick", prompt="cat"))
    assert (other.kept, other.refused) == (2, 1) and {r["prompt"] for r in rows(out)} == {"", "cat"}
    assert [r for r in rows(out) if r["prompt"] == ""] == [r for r in kept if r["picture"] != f"in/{names[0]}"]
    assert caplog.text.count("its scores stay, of the prompt of before.") == 2


@pytest.mark.parametrize("kind", ["saved", "hub"])
def test_the_rows_of_a_data_set_are_pictures_with_prompts(folder, tmp_path, monkeypatch, kind):
    files = sorted(folder.iterdir())[:3]
    told = {"image": [str(p) for p in files], "caption": ["a cat", "", None], "n": [1, 2, 3]}
    kinds = {"image": datasets.Image(), "caption": datasets.Value("string"), "n": datasets.Value("int64")}
    rows_of = datasets.Dataset.from_dict(told, features=datasets.Features(kinds))
    where = str(tmp_path / "set")
    if kind == "saved":
        rows_of.save_to_disk(where)
    else:
        where = "hub:user/name"
        rows_of.save_to_disk(str(tmp_path / "kept"))
        kept = datasets.DatasetDict({"train": datasets.load_from_disk(str(tmp_path / "kept"))})
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: kept)
    assert run(where, tmp_path / "out", LightService) == Total(3, scored=3)
    assert run(where, tmp_path / "out", LightService) == Total(3, kept=3)
    asking = Table([where], str(tmp_path / "more"), LightService, Options("quick", prompt="a dog"))
    assert asking.said_before() == ["The column 'caption' is used in place of the prompt."]
    several = datasets.Features({**kinds, "caption": datasets.Sequence(datasets.Value("large_string"))})
    lists = {**told, "caption": [["a cat", "a kitten"], [], None]}
    datasets.Dataset.from_dict(lists, features=several).save_to_disk(str(tmp_path / "lists"))
    listed = Listing([str(tmp_path / "lists")])
    listed.write(str(tmp_path / "more"), 1)
    assert [w.prompt for w in asked(str(tmp_path / "more"), 0, listed.name)] == ["a cat", "", ""]
    found = {r["picture"]: r for r in rows(tmp_path / "out")}
    assert {k: r["prompt"] for k, r in found.items()} == {"train/0": "a cat", "train/1": "", "train/2": ""}
    assert {r["file_sha256"] for r in found.values()} <= set(digests(folder))
    assert "cannot be read" in refusal(f"data-set:{where}#image#train/7")
    with pytest.raises(OptionError, match="stands alone"):
        Listing([where, str(folder)])


@pytest.mark.parametrize(
    ("columns", "taken", "prompt", "sentences"),
    [
        ({"text": ["a cat"], "prompt": ["b"]}, "text", "a cat", ["The column 'text' is used in place of the prompt."]),
        (
            {"text": [0.5], "caption": ["a cat"]},
            "caption",
            "a cat",
            [
                "The column 'text' holds no texts, and is not used.",
                "The column 'caption' is used in place of the prompt.",
            ],
        ),
        ({"prompt": [None]}, "", "a dog", ["The column 'prompt' holds no texts, and is not used."]),
    ],
)
def test_the_first_column_of_a_data_set_that_holds_texts_is_taken(folder, tmp_path, columns, taken, prompt, sentences):
    told = datasets.Dataset.from_dict({"image": [str(min(folder.iterdir()))], **columns})
    told.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "set"))
    found = Table([str(tmp_path / "set")], str(tmp_path / "out"), LightService, Options("quick", prompt="a dog"))
    assert found.listing.captions == taken and found.said_before() == sentences
    found.listing.write(str(tmp_path / "out"), 1)
    assert [w.prompt for w in asked(str(tmp_path / "out"), 0, found.listing.name)] == [prompt]


def test_a_data_set_that_is_written_anew_is_read_anew(folder, tmp_path):
    files = sorted(folder.iterdir())[:2]

    def scored(of: Path, out: str) -> list[str]:
        made_of = datasets.Dataset.from_dict({"image": [str(of)]}).cast_column("image", datasets.Image())
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        made_of.save_to_disk(str(tmp_path / "set"))
        run(str(tmp_path / "set"), tmp_path / out, LightService)
        return [r["file_sha256"] for r in rows(tmp_path / out) if r["method"] == "clip"][:1]

    found = [scored(f, out) for f, out in zip(files, ("first", "second"), strict=True)]
    assert found == [[hashlib.sha256(f.read_bytes()).hexdigest()] for f in files]


@pytest.mark.parametrize("kind", ["saved", "hub"])
def test_a_data_set_that_is_written_anew_meanwhile_gives_no_row_anothers_prompt(folder, tmp_path, monkeypatch, kind):
    files, commits, asked_for = sorted(folder.iterdir())[:3], {"old": "0" * 40, "new": "1" * 40}, []
    for name, order in (("old", files), ("new", files[::-1])):
        told = datasets.Dataset.from_dict({"image": [str(p) for p in order], "text": [p.stem for p in order]})
        told.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / commits[name]))

    def load(*_, revision, **__):  # as of the Hub; offline `datasets` takes the newest, whichever revision is asked for
        asked_for.append(revision)
        return datasets.load_from_disk(str(tmp_path / commits["new" if (tmp_path / "pushed").exists() else "old"]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    saved, where = tmp_path / "set", "hub:user/name@main"
    if kind == "saved":
        where = str(saved)
        shutil.copytree(tmp_path / commits["old"], saved)
    table = Table([where], str(tmp_path / "out"), LightService, QUICK)
    (tmp_path / "pushed").touch()
    shutil.rmtree(saved, ignore_errors=True)
    shutil.copytree(tmp_path / commits["new"], saved)
    total = list(table.run())[-1]
    assert total.refused == 3 and "is another one than when its rows were listed" in total.why["train/0"]
    assert asked_for == (["main", commits["old"]] if kind == "hub" else [])  # once, not for each row
    assert run(where, tmp_path / "out", LightService) == Total(3, scored=3)
    of = {hashlib.sha256(p.read_bytes()).hexdigest(): p.stem for p in files}
    assert all(r["prompt"] == of[r["file_sha256"]] for r in rows(tmp_path / "out"))


def refusal(place: str) -> str:
    with pytest.raises(ImageError) as told:
        places.read_picture_file(place)
    return str(told.value)


@pytest.mark.parametrize("work", [part_jobs.here, partial(part_jobs.by_pool, pool=Here())])
def test_a_part_that_another_process_has_in_hand_is_waited_for_and_that_is_said(
    folder, tmp_path, monkeypatch, caplog, work
):
    make, out, asked_for = made(tmp_path), tmp_path / "out", 0
    table = Table([str(folder)], str(out), make, QUICK)
    first = part_jobs.claim(table.tasks()[0])

    def asks(path: Path) -> AbstractContextManager[bool]:
        nonlocal asked_for
        asked_for += path == first
        if asked_for == 5:
            assert not places.is_file(parts.place_of(str(out), 0)) and scored(tmp_path) != digests(folder)
            stack.close()
        return claimed(path)

    for module in (part_jobs, job):
        monkeypatch.setattr(module, "claimed", asks)
    for module in (part_jobs, driver):
        monkeypatch.setattr(module, "AGAIN_S", 0.01)
    monkeypatch.setattr(driver, "LISTEN_S", 0.01)
    with ExitStack() as stack:
        assert stack.enter_context(claimed(first))
        *_, total = table.run(work)
    assert total == Total(9, scored=9) and scored(tmp_path) == digests(folder)
    assert caplog.text.count(f"another process, and is waited for. A claim of it: {first}.lock") == 1


def test_names_tell_pictures_apart(tmp_path):
    for name in ("a", "b"):
        folder_of(tmp_path / name / "deep", 1)
    assert {w.picture for w in Listing([str(tmp_path / "a"), str(tmp_path / "b")])._walk()} == {
        "a/deep/000.png", "b/deep/000.png"
    }  # fmt: skip
    with pytest.raises(OptionError, match="Two pictures are called"):
        Listing([str(tmp_path / "a" / "deep"), str(tmp_path / "b" / "deep")])
    with pytest.raises(OptionError, match="no folder or picture"):
        Listing([str(tmp_path / "c")])
    with pytest.raises(OptionError, match="another folder than"):
        Table([str(tmp_path / "a")], str(tmp_path / "a" / "out"), LightService)
    odd = tmp_path / "odd"
    odd.mkdir()
    for i, name in enumerate(("=x.png", "a b\n.png", os.fsdecode(b"\xff.png"), "é'\".png")):
        draw(odd / name, seed=i)
    total = run(odd, tmp_path / "out", LightService)
    assert (total.scored, total.refused) == (3, 1) and list(total.why) == ["\\udcff.png"]


def test_parts_suit_the_number_of_pictures():
    assert [parts_for(n) for n in (1, 4, 5, 200, 65_536, 1_000_000)] == [1, 1, 2, 50, 256, 3907]


def test_pictures_are_read_one_at_a_time(tmp_path, monkeypatch):
    folder, alive, most, real = tmp_path / "in", 0, 0, places.read_picture_file
    folder.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")

    class Counted(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def read(place: str) -> bytes:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return Counted(real(place))

    monkeypatch.setattr(places, "read_picture_file", read)
    assert run(folder, tmp_path / "out", LightService).scored == 12
    assert most <= 2 and alive <= 1
