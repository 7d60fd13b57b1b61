"""Adds up what work costs, by name, over interruptions: seconds by the clock and of all threads of this process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Costs in a JSON file: name -> {"wall": seconds, "cpu": seconds}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}

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
                    self._add(name, time.monotonic() - wall, time.process_time() - cpu)
                yield step
        finally:
            self.save()

    def _add(self, name: str, wall: float, cpu: float) -> None:
        old = self.spent.get(name, {"wall": 0.0, "cpu": 0.0})
        self.spent[name] = {"wall": old["wall"] + wall, "cpu": old["cpu"] + cpu}

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.spent, indent=1), encoding="utf-8")

    def cpu(self, prefix: str) -> float:
        """CPU seconds of every name that begins with the prefix."""
        return sum(v["cpu"] for name, v in self.spent.items() if name.startswith(prefix))
