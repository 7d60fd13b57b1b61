"""Everything that the second edition needs, in order of worth, as far as the minutes reach; results go out at once.

    1  vae and clip, side by side      2  the full UNet      3  its queries      4  its quality
    5  the oracle: all trainings of the first seed, then of the next, so many at once

What came back from a machine before is put in place first, and is not done again. A stage that is stopped goes on from
its checkpoint on the same machine; on another it begins again, as checkpoints are too large to travel.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.second import parcels, second_oracle, second_quality, second_stages
from experiments.second.edition import Asked
from experiments.train import stages
from guda_core.jobs.driver import Pool, work_through
from guda_core.jobs.job import Job, Stopped, Told, perform
from guda_core.jobs.local_pool import LocalPool

SAVED_S = 15.0  # kept back for checkpoints and the last parcels
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
    `time.monotonic`. workers: trainings of the oracle at once, in processes; 0: one after the other in this process."""

    asked: Asked
    work: Path
    out: Path
    until: float
    say: Say
    workers: int = 0
    came_back: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # what each job took
    failed: dict[str, str] = field(default_factory=dict)

    def pool(self, workers: int) -> Pool:
        if not self.workers:
            return Here(self.until)
        return LocalPool(workers, devices=["0"] if self.asked.how.device == "cuda" else [])

    def through(self, jobs: Sequence[Job], pool: Pool) -> bool:
        """Do the jobs; False when the time is over. What fails is noted, and the others go on."""
        began, heard = time.monotonic(), 0.0
        with closing(work_through(jobs, pool)) as events:
            for e in events:
                now = time.monotonic()
                if e.kind in ("done", "found"):
                    took = now - began
                    self.seconds[e.job.name] = took
                    self.say(f"{e.job.name}: {'there already' if e.kind == 'found' else f'{took:.0f} s'}")
                elif e.kind == "failed":
                    self.failed[e.job.name] = e.note
                    self.say(f"{e.job.name} failed. {e.note}")
                elif now - heard > TOLD_S:
                    heard = now
                    self.say(f"{e.job.name}: {e.note}")
                if now > self.until:
                    return False
        return True

    def send(self) -> None:
        """Everything that is finished, into parcels."""
        before, first = {}, 1
        if self.came_back is not None:
            before = parcels.known(self.came_back)
            numbers = [p.stem.rpartition("-")[2] for p in self.came_back.glob(parcels.NAME.format("*"))]
            first = 1 + max((int(n) for n in numbers if n.isdecimal()), default=0)
        left = parcels.send(results(self.asked, self.work), self.work, self.out, before=before, first=first)
        if left:
            self.say(f"No room for {len(left)} files, such as {left[0]}. They stay in {self.work}.")


def results(asked: Asked, work: Path) -> Iterator[Path]:
    """Every finished file that should come back, the most worthy first."""
    train = work / "train"
    for name in ("vae", "clip", stages.unet_name(None, asked.edition.seeds[0])):
        if (train / name / "stage.json").is_file():
            yield from sorted(p for p in (train / name).iterdir() if p.is_file())
    figures = work / second_stages.FIGURES
    names = (second_quality.FILE, second_quality.SHEET, "trial.json")
    wanted = [work / n for n in names]
    wanted += [f / n for f in (figures, figures / "fresh") for n in ("queries.json", "queries.npz")]
    yield from (p for p in wanted if p.is_file())
    if not (work / second_stages.PACKED).is_file():
        return
    for one in second_oracle.trainings(asked):
        folder = work / "logo" / one.name
        if (folder / second_oracle.RECORD).is_file():
            yield from (folder / n for n in (second_oracle.RECORD, second_oracle.VALUES))
    yield from sorted(p for p in (work / "live").rglob("*") if p.is_file())


def _one_training_s(asked: Asked) -> float:
    """Seconds of one UNet's training by the rate of the full one; 0 where that was measured on another device."""
    seed, loop = asked.edition.seeds[0], asked.edition.unet.loop
    record = json.loads((stages.work_dir() / stages.unet_name(None, seed) / "stage.json").read_text(encoding="utf-8"))
    rate = record.get("pictures_per_second")
    return loop.steps * loop.batch / rate if rate and record["device"] == asked.how.card else 0.0


def _oracle(order: Order) -> bool:
    """All trainings, so many at once; a wave begins only where the one before says that it will end in time."""
    asked, work, at_once = order.asked, order.work, max(1, order.workers)
    left = [t for t in second_oracle.trainings(asked) if not second_oracle.is_trained(asked, work, t)]
    expected = at_once * _one_training_s(asked)
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
        order.say(f"{parcels.take_back(order.came_back, work)} files came back.")
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
    return on and _oracle(order) and not order.failed


def note(order: Order, done: bool) -> dict[str, Any]:
    """What became of it, as JSON holds it."""
    took = {k: round(v, 1) for k, v in order.seconds.items()}
    return json.loads(json.dumps({"done": done, "seconds": took, "failed": order.failed, "card": order.asked.how.card}))
