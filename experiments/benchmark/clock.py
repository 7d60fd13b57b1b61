"""Adds up what work costs, by name, over interruptions and the processes that share it: seconds by the clock ("wall")
and of all threads ("cpu")."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from guda_core.held_files import replacing
from guda_core.work_queue import claimed

T = TypeVar("T")
Costs = dict[str, dict[str, float]]


class Clock:
    """Costs in a JSON file: name -> {"wall": seconds, "cpu": seconds}. spent: as the file was last read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: Costs = self._read()
        self._new: Costs = {}

    def _read(self) -> Costs:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def timed(self, name: str, steps: Iterable[T]) -> Iterator[T]:
        """Pass steps on; what it takes to make them is added to `name`, what their receiver does is not."""
        it = iter(steps)
        try:
            while True:
                wall, cpu = time.monotonic(), time.process_time()
                try:
                    step = next(it)
                except StopIteration:
                    return
                finally:
                    self._add(self._new, name, time.monotonic() - wall, time.process_time() - cpu)
                yield step
        finally:
            self.save()

    @staticmethod
    def _add(to: Costs, name: str, wall: float, cpu: float) -> None:
        old = to.get(name, {"wall": 0.0, "cpu": 0.0})
        to[name] = {"wall": old["wall"] + wall, "cpu": old["cpu"] + cpu}

    def save(self) -> None:
        """Add what is new to the file, whatever other processes have added meanwhile."""
        with claimed(self.path, wait=True):
            self.spent = self._read()
            for name, cost in self._new.items():
                self._add(self.spent, name, cost["wall"], cost["cpu"])
            self._new = {}
            self._write()

    def forget(self, prefix: str) -> None:
        """Take what begins with the prefix out of the file."""
        with claimed(self.path, wait=True):
            self.spent = {k: v for k, v in self._read().items() if not k.startswith(prefix)}
            self._write()

    def _write(self) -> None:
        with replacing(self.path) as aside:
            aside.write_text(json.dumps(self.spent, indent=1), encoding="utf-8")

    def cpu(self, prefix: str) -> float:
        """CPU seconds of every name that begins with the prefix."""
        return sum(v["cpu"] for name, v in self.spent.items() if name.startswith(prefix))
