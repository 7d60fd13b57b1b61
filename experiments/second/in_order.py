"""Everything that the second edition needs, in order of worth, as far as the minutes reach; results go out at once.

    1  vae and clip, side by side      2  the full UNet      3  its queries      4  its quality
    5  the oracle: all trainings of the first seed, then of the next, so many at once

What came back from a machine before is put in place first, and is not done again. A stage that is stopped goes on from
its checkpoint on the same machine; on another it begins again, as checkpoints are too large to travel.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.logo.trainings import Job as Training
from experiments.second import parcels, second_oracle, second_quality, second_stages
from experiments.second.edition import Asked, at
from experiments.train import stages
from guda_core.errors import TrainingError
from guda_core.jobs.driver import Pool, work_through
from guda_core.jobs.job import Job, Stopped, Told, perform
from guda_core.jobs.local_pool import LocalPool

SAVED_S = 15.0  # kept back for checkpoints and the last parcels
FIRST_S = 60.0  # that the first trainings of a call take longer: processes start, and what they share is made
TOLD_S = 20.0  # between two words on the progress
Say = Callable[[str], None]


class Here:
    """Jobs in this process, one after the other, until a moment of `time.monotonic`. A `guda_core.jobs.driver.Pool`."""

    about = "this process"

    def __init__(self, until: float) -> None:
        self.until = until
        self.job: Job | None = None

    def free(self) -> int:
        return 1 if self.job is None else 0

    def submit(self, job: Job) -> None:
        self.job = job

    def told(self, timeout: float) -> list[Told]:
        assert self.job is not None
        job, words = self.job, []

        def tell(word: Told) -> None:
            words.append(word)
            if time.monotonic() > self.until:
                raise Stopped

        try:
            words.append(perform(job, tell))
        except Stopped:
            return words[-1:]
        self.job = None
        return words[-1:]

    def close(self) -> None:
        self.job = None


@dataclass
class Order:
    """The work in hand. out: where parcels go; came_back: parcels of calls before, None: none. until: a moment of
    `time.monotonic`. workers: trainings of the oracle at once, in processes; 0: one after the other in this process.
    given: a folder with more parcels that need not go out again."""

    asked: Asked
    work: Path
    out: Path
    until: float
    say: Say
    workers: int = 0
    came_back: Path | None = None
    given: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # what each job took
    failed: dict[str, str] = field(default_factory=dict)

    def pool(self, workers: int) -> Pool:
        if not self.workers:
            return Here(self.until)
        return LocalPool(workers, devices=["0"] if self.asked.how.device == "cuda" else [])

    def through(self, jobs: Sequence[Job], pool: Pool) -> bool:
        """Do the jobs; False when the time is over. What fails is noted, and the others go on."""
        began, heard = time.monotonic(), 0.0
        with closing(work_through(jobs, pool, retries=1)) as events:
            for e in events:
                now = time.monotonic()
                if e.kind in ("done", "found"):
                    took = now - began
                    self.seconds[e.job.name] = took
                    self.say(f"{e.job.name}: {'there already' if e.kind == 'found' else f'{took:.0f} s'}")
                elif e.kind == "retried":
                    self.say(f"{e.job.name} broke and begins again. {e.note}")
                elif e.kind == "failed":
                    self.failed[e.job.name] = e.note
                    self.say(f"{e.job.name} failed. {e.note}")
                elif now - heard > TOLD_S:
                    heard = now
                    self.say(f"{e.job.name}: {e.note}")
                if now > self.until:
                    return False
        return True

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


def _one_training_s(asked: Asked) -> float:
    """Seconds of one UNet's training by the rate of the full one; 0 where that was measured on another device, or is
    not there."""
    seed, loop = asked.edition.seeds[0], asked.edition.unet.loop
    path = stages.work_dir() / stages.unet_name(None, seed) / "stage.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rate = record.get("pictures_per_second")
    return loop.steps * loop.batch / rate if rate and record["device"] == asked.how.card else 0.0


def _oracle(order: Order, trainings: Sequence[Training]) -> bool:
    """All these trainings, so many at once; a wave begins only where the one before says that it will end in time."""
    asked, work, at_once = order.asked, order.work, max(1, order.workers)
    left = [t for t in trainings if not second_oracle.is_trained(asked, work, t)]
    once = _one_training_s(asked)
    expected = at_once * once + (FIRST_S if once else 0.0)
    pool = order.pool(at_once)
    try:
        while left:
            if time.monotonic() + expected > order.until:
                order.say(f"{len(left)} trainings are left; the next {at_once} would take about {expected:.0f} s.")
                return False
            wave, left, began = left[:at_once], left[at_once:], time.monotonic()
            if not order.through([second_oracle.job(asked, work, t) for t in wave], pool):
                return False
            expected = time.monotonic() - began
            order.send()
    finally:
        pool.close()
    return True


def everything(order: Order, file: Path) -> bool:
    """All that fits; whether everything is done.

    Raises:
        DataError: the packed file or a parcel is another one, or damaged.
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
    for job in (second_stages.job("unet", asked, work), second_stages.job("queries", asked, work)):
        if not on or order.failed:
            return False
        on = order.through([job], Here(order.until))
        order.send()
    if not on or order.failed:
        return False
    on = order.through([second_quality.job(asked, work)], Here(order.until))
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
