"""Everything that the second edition needs, in order of worth, as far as the minutes reach; results go out at once.

    1  vae and clip, side by side      2  the full UNet      3  its queries      4  its quality
    5  the oracle: all trainings of the first seed, then of the next, so many at once, each only if it should end in
       time

What came back from a machine before is put in place first, and is not done again. A stage that is stopped goes on from
its checkpoint on the same machine; on another it begins again, as checkpoints are too large to travel.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.logo.trainings import Job as Training
from experiments.second import parcels, second_oracle, second_quality, second_stages
from experiments.second.edition import Asked, at
from experiments.second.timely import NoTime, Timely
from experiments.train import stages
from guda_core.errors import TrainingError
from guda_core.jobs.driver import Event, Pool, work_through
from guda_core.jobs.job import Job, Stopped, Told, perform
from guda_core.jobs.local_pool import LocalPool

SAVED_S = 15.0  # kept back for checkpoints and the last parcels
TOLD_S = 20.0  # between two words on the progress
SENT_S = 30.0  # at least, between two times that results are sent
Say = Callable[[str], None]


class Here:
    """Jobs in this process, one after the other, until a moment of `time.monotonic`. A `guda_core.jobs.driver.Pool`;
    as nobody hears it while it works, it says itself how far it is."""

    about = "this process"

    def __init__(self, until: float, say: Say) -> None:
        self.until, self.say = until, say
        self.job: Job | None = None

    def free(self) -> int:
        return 1 if self.job is None else 0

    def submit(self, job: Job) -> None:
        self.job = job

    def told(self, timeout: float) -> list[Told]:
        assert self.job is not None
        job, heard = self.job, time.monotonic()

        def tell(word: Told) -> None:
            nonlocal heard
            now = time.monotonic()
            if now > self.until:
                raise Stopped
            if now - heard > TOLD_S:
                heard = now
                self.say(f"{word.job}: {word.note}")

        try:
            last = perform(job, tell)
        except Stopped:
            return [Told(job.name, "progress", note="stopped")]
        self.job = None
        return [last]

    def close(self) -> None:
        self.job = None


@dataclass
class Order:
    """The work in hand. out: where parcels go; came_back: parcels of calls before, None: none. until: a moment of
    `time.monotonic`. workers: trainings of the oracle at once, in processes; 0: one after the other in this process.
    given: a folder with more parcels that need not go out again. least_db: an autoencoder of fewer is not gone on
    with."""

    asked: Asked
    work: Path
    out: Path
    until: float
    say: Say
    workers: int = 0
    came_back: Path | None = None
    given: Path | None = None
    least_db: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # what each job took
    failed: dict[str, str] = field(default_factory=dict)

    def pool(self, workers: int) -> Pool:
        if not self.workers:
            return Here(self.until, self.say)
        return LocalPool(workers, devices=["0"] if self.asked.how.device == "cuda" else [])

    def through(self, jobs: Sequence[Job], pool: Pool) -> bool:
        """Do the jobs, and send what is done now and then; False when the time is over. What fails is noted, and the
        others go on."""
        idle = heard = sent = time.monotonic()
        began: dict[str, float] = {}
        unsent = False
        with suppress(NoTime), closing(work_through(jobs, pool, retries=1, until=self.until)) as events:
            for e in events:
                now, name = time.monotonic(), e.job.name
                if e.kind in ("progress", "held"):
                    began.setdefault(name, now)
                    if now - heard > TOLD_S:
                        heard = now
                        self.say(f"{name}: {e.note}")
                else:
                    self._heard(e, now - began.get(name, idle))
                    idle, unsent = now, True
                if unsent and now - sent > SENT_S:
                    self.send()
                    sent, unsent = time.monotonic(), False
            return time.monotonic() < self.until
        return False

    def _heard(self, e: Event, took: float) -> None:
        """Note and say what became of a job."""
        name = e.job.name
        if e.kind == "retried":
            self.say(f"{name} broke and begins again. {e.note}")
        elif e.kind == "failed":
            self.failed[name] = e.note
            self.say(f"{name} failed. {e.note}")
        else:
            self.seconds[name] = took
            more = f", {_decibels(self.work):g} dB on held-out pictures" if name == "vae" else ""
            self.say(f"{name}: {'there already' if e.kind == 'found' else f'{took:.0f} s'}{more}")

    @cached_property
    def before(self) -> tuple[dict[str, str], int]:
        """What went out before this call, and the number of its first parcel."""
        folders = [f for f in (self.given, self.came_back) if f is not None]
        files, following = parcels.sent(self.work)
        for folder in folders:
            files |= parcels.known(folder)
        return files, max(following, parcels.next_number(*folders))

    def send(self) -> None:
        """Everything that is finished, into parcels."""
        before, first = self.before
        parcels.note_sent(self.work, before, first + parcels.MOST)  # this much is true if it is killed meanwhile
        out, left = parcels.send(results(self.asked, self.work), self.work, self.out, before=before, first=first)
        parcels.note_sent(self.work, before | out, max(first, parcels.next_number(self.out)))
        if left:
            self.say(
                f"No room for {len(left)} files, such as {left[0]}. They go out with the next call on this machine."
            )


def results(asked: Asked, work: Path) -> Iterator[list[Path]]:
    """Everything finished that should come back, unit by unit, the most worthy first. Trainings come after the queries:
    their values are of no use without them."""
    at(work)
    for name in ("vae", "clip", stages.unet_name(None, asked.edition.seeds[0])):
        if second_stages.is_there(name):
            yield second_stages.files_of(name)
    units = [second_stages.query_files(folder) for folder in second_stages.query_folders()]
    units += [[work / second_quality.SHEET, work / second_quality.FILE], [work / "trial.json"]]
    if (work / second_stages.PACKED).is_file():
        units += [second_oracle.files_of(asked, one) for one in second_oracle.trainings(asked)]
    yield from (unit for unit in units if all(p.is_file() for p in unit))


def _decibels(work: Path) -> float:
    """PSNR of the finished autoencoder on held-out pictures."""
    return json.loads((work / "train" / "vae" / "stage.json").read_text(encoding="utf-8"))["held_out_psnr_db"]


def _training_s(asked: Asked, record: dict[str, Any] | None) -> float:
    """Seconds of a UNet's whole training at the rate of a record; 0 where nothing was trained, or on another device."""
    loop, record = asked.edition.unet.loop, record or {}
    rate = record.get("pictures_per_second")
    return loop.steps * loop.batch / rate if rate and record["device"] == asked.how.card else 0.0


def _oracle(order: Order, trainings: Sequence[Training]) -> bool:
    """All these trainings, so many at once, each only if it should end in time."""
    asked, work = order.asked, order.work
    left = {t.name: t for t in trainings if not second_oracle.is_trained(asked, work, t)}
    full = work / "train" / stages.unet_name(None, asked.edition.seeds[0]) / "stage.json"
    alone_s = _training_s(asked, json.loads(full.read_text(encoding="utf-8")) if full.is_file() else None)

    def measured(name: str) -> tuple[float, float] | None:
        record = second_oracle.record_of(left[name]) or {}
        training_s = _training_s(asked, record)
        return (training_s, record["all_s"] - record["training_s"]) if training_s else None

    pool = Timely(order.pool(max(1, order.workers)), order.until, alone_s, measured)
    try:
        on = order.through([second_oracle.job(asked, work, t) for t in left.values()], pool)
    finally:
        pool.close()
    order.send()
    if on:
        return True
    count = sum(name not in order.seconds and name not in order.failed for name in left)
    order.say(f"{count} trainings are left, {max(0.0, order.until - time.monotonic()):.0f} s before the end.")
    return False


def everything(order: Order, file: Path) -> bool:
    """All that fits; whether everything is done.

    Raises:
        DataError: the packed file or a parcel is another one, or damaged.
        TrainingError: the autoencoder is worse than `least_db`.
    """
    asked, work = order.asked, order.work
    second_stages.started(asked, work)
    if order.came_back is not None:
        for line in parcels.take_back(order.came_back, work):
            order.say(line)
    for _ in second_stages.pictures(asked, work, file):
        pass
    side_by_side = [second_stages.job(n, asked, work) for n in ("vae", "clip")]
    pool = order.pool(2)
    try:
        on = order.through(side_by_side, pool)
    finally:
        pool.close()
    order.send()
    if on and not order.failed and (found := _decibels(work)) < order.least_db:
        raise TrainingError(
            f"The autoencoder reaches {found:g} dB on held-out pictures; {order.least_db:g} are asked for. Go on all "
            "the same with `--least-db 0`. Or train it longer: raise the steps of `_vae` in "
            "experiments/second/edition.py, and begin again with a new --work and --out, without --came-back."
        )
    for job in (second_stages.job("unet", asked, work), second_stages.job("queries", asked, work)):
        if not on or order.failed:
            return False
        on = order.through([job], Here(order.until, order.say))
        order.send()
    if not on or order.failed:
        return False
    on = order.through([second_quality.job(asked, work)], Here(order.until, order.say))
    order.send()
    return on and _oracle(order, second_oracle.trainings(order.asked)) and not order.failed


def for_other_seeds(asked: Asked, work: Path, file: Path, to: Path, say: Say, came_back: Path | None = None) -> None:
    """Write what `other_seeds` needs into a folder: the packed latents, and a parcel with the CLIP. file: the packed
    pictures.

    Raises:
        TrainingError: something of it is not made yet. DataError: a file is damaged.
    """
    second_stages.started(asked, work)
    if came_back is not None:
        for line in parcels.take_back(came_back, work):
            say(line)
    for _ in second_stages.pictures(asked, work, file):
        pass
    if not (work / second_stages.PACKED).is_file():
        if not second_stages.have_queries(asked, work):
            raise TrainingError("The queries come first. Run `python -m experiments.second all`.")
        second_stages.pack(asked, work)
    to.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / second_stages.PACKED, to / second_stages.PACKED)
    first = parcels.next_number(*([came_back] if came_back is not None else []))
    parcels.send([second_stages.files_of("clip")], work, to, before={}, first=first)


def other_seeds(order: Order) -> bool:
    """All trainings but the first seed's that fit; whether all of them are done. `order.given` is what
    `for_other_seeds` wrote.

    Raises:
        DataError: a file is another one, or damaged. TrainingError: one is missing.
    """
    files = order.given
    assert files is not None
    second_stages.started(order.asked, order.work)
    for folder in (files, order.came_back):
        if folder is not None:
            for line in parcels.take_back(folder, order.work):
                order.say(line)
    second_stages.need("clip")
    second_stages.check_settings(order.asked, "clip")
    if not (files / second_stages.PACKED).is_file():
        raise TrainingError(f"There is no {second_stages.PACKED} in {files}. `pack-oracle` writes it.")
    shutil.copyfile(files / second_stages.PACKED, order.work / second_stages.PACKED)
    return _oracle(order, second_oracle.of_other_seeds(order.asked)) and not order.failed


def note(order: Order, done: bool) -> dict[str, Any]:
    """What became of it, as JSON holds it."""
    took = {k: round(v, 1) for k, v in order.seconds.items()}
    return json.loads(json.dumps({"done": done, "seconds": took, "failed": order.failed, "card": order.asked.how.card}))
