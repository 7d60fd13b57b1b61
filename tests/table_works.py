"""Services and helpers for the tests of tables: light ones, that keep a diary and can be made to end their process.

They are made in worker processes, so everything here is found by its module's name.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guda_core import held_files
from guda_core.data.groups import load_group_set
from guda_core.records import Query
from guda_core.scoring import parts, places
from guda_core.scoring.table_rows import Row
from guda_core.scoring.table_run import Options, Table, Total
from tests.light import LightService, draw

if TYPE_CHECKING:
    from guda_core.diffusion.base_model import Card
    from guda_core.local import LocalService

QUICK = Options(effort="quick")
PATIENCE_S = 120.0  # for a process to start, on a machine that does other things


class Diary(LightService):
    """Writes down each picture that it scores. slow: seconds for each. ends: a picture at which the process ends.
    full: while there is such a file, parts cannot be written. both: until two processes score, no picture is done."""

    def __init__(self, make: Made) -> None:
        super().__init__()
        self.make = make
        with (make.folder / "services").open("a") as f:
            f.write(f"made {os.getpid()}\n")
        if make.full is not None and make.full.is_file():
            fill_disk()

    def prepare(self, data: bytes, *, prompt: str = "") -> Query:
        query = super().prepare(data, prompt=prompt)
        with (self.make.folder / "diary").open("a") as f:
            f.write(f"{os.getpid()} {query.file_hash}\n")
        if self.make.ends and self.make.ends.read_bytes() == data:
            os._exit(7)
        end = time.monotonic() + PATIENCE_S
        while self.make.both and len(pids(self.make.folder)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(self.make.slow)
        return query


@dataclass(frozen=True)
class Made:
    """What makes a `Diary`, in any process."""

    folder: Path
    slow: float = 0.0
    ends: Path | None = None
    full: Path | None = None
    both: bool = False

    def __call__(self) -> Diary:
        return Diary(self)


@dataclass(frozen=True)
class Tiny:
    """What makes the service of a tiny real model that was saved (`tests.tiny.tiny_service`), in any process."""

    root: Path
    card: Card

    def __call__(self) -> LocalService:
        from guda_core.data.embeddings import Clip
        from guda_core.diffusion.cards import load_model
        from guda_core.local import LocalService

        clip = Clip(self.root / "clip")
        return LocalService(load_model(self.card), load_group_set("emoji"), clip, self.root / "adapters")


def fill_disk() -> None:
    """From here on this process finds the disk full when it writes a part."""
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(parts.ENDING):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    held_files.os.replace = full  # type: ignore[attr-defined]


def scored(folder: Path) -> list[str]:
    """Hashes of the pictures' files that were begun, sorted."""
    return sorted(line.split()[1] for line in (folder / "diary").read_text().splitlines())


def pids(folder: Path) -> set[int]:
    """The processes that scored them."""
    return {int(line.split()[0]) for line in (folder / "diary").read_text().splitlines()}


def folder_of(path: Path, n: int) -> Path:
    """A folder of so many pictures."""
    path.mkdir(parents=True)
    for i in range(n):
        draw(path / f"{i:03d}.png", seed=i)
    return path


def run(source: Path | str, out: Path | str, make: Any, work: Any = None, options: Options = QUICK) -> Total:
    """Make a table to its end."""
    table, total = Table([str(source)], str(out), make, options), None
    for total in table.run(*([work] if work else [])):
        assert total.done <= total.pictures
    assert total is not None
    return total


def rows(out: Path | str) -> list[Row]:
    """All rows of the parts, by picture."""
    found = [row for p in places.files(places.joined(str(out), parts.FOLDER), parts.ENDING) for row in parts.read(p)]
    return sorted(found, key=lambda r: r["picture"])


def drive(source: str, out: str, folder: str, slow: str, address: str) -> None:
    """Be a driver, which a test kills: a Ray cluster's, or of two processes here."""
    from functools import partial

    from guda_core.jobs.chosen_pool import opened
    from guda_core.scoring.part_jobs import by_pool

    with opened(2, None if address == "here" else address, lasting=True) as pool:
        run(source, out, Made(Path(folder), float(slow), both=True), partial(by_pool, pool=pool))


if __name__ == "__main__":  # its classes are to be found by this module's name
    from tests import table_works

    table_works.drive(*sys.argv[1:])
