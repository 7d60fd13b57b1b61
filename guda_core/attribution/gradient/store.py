"""Arrays that are dear to make, kept in the cache folder under a hash of the settings they depend on.

`GUDA_CACHE/features/<kind>-<hash>/` holds .npy files, read memory-mapped, and `settings.json`, written last: the
settings and the SHA-256 of every file. Making goes on in a folder aside that is renamed when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guda_core.errors import CacheError
from guda_core.held_files import replace_file
from guda_core.paths import cache_dir

SETTINGS = "settings.json"


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Store:
    """The arrays of one kind and settings (anything that json can write)."""

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        self.settings = json.loads(json.dumps(dict(settings), sort_keys=True))
        key = hashlib.sha256(json.dumps([kind, self.settings], sort_keys=True).encode()).hexdigest()
        self.folder = cache_dir() / "features" / f"{kind}-{key[:24]}"
        self._aside = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        self._made: dict[str, np.memmap] = {}

    @property
    def complete(self) -> bool:
        return (self.folder / SETTINGS).is_file()

    def create(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        """A new array of float32 on disk, to be filled, and let go of, before `finish`."""
        self._aside.mkdir(parents=True, exist_ok=True)
        path = self._aside / f"{name}.npy"
        self._made[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        return self._made[name]

    def finish(self) -> None:
        """Declare the created arrays complete. Nobody may hold one: Windows renames no folder with a mapped file."""
        names = list(self._made)
        for name in names:
            self._made.pop(name).flush()
        files = {f"{name}.npy": _digest(self._aside / f"{name}.npy") for name in names}
        record = {"settings": self.settings, "files": files}
        (self._aside / SETTINGS).write_text(json.dumps(record, indent=1), encoding="utf-8")
        if self.complete:  # another process was faster; both made the same
            shutil.rmtree(self._aside, ignore_errors=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        replace_file(self._aside, self.folder)

    def open(self) -> dict[str, np.ndarray]:
        """name -> array, memory-mapped and read-only.

        Raises:
            CacheError: there are none, or a file is missing, damaged, or not the one that was written.
        """
        if not self.complete:
            raise CacheError(f"There are no stored features in {self.folder}; they have to be computed first.")
        mend = f"Delete {self.folder}, and the features are computed again."
        try:
            record = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            wrong = [n for n, digest in record["files"].items() if _digest(self.folder / n) != digest]
            if wrong or record["settings"] != self.settings:
                raise CacheError(f"Stored features are damaged ({', '.join(wrong) or SETTINGS}). {mend}")
            return {n.removesuffix(".npy"): np.load(self.folder / n, mmap_mode="r") for n in record["files"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise CacheError(f"Stored features cannot be read ({type(e).__name__}: {e}). {mend}") from e
