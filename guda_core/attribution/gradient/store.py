"""Arrays that are dear to make, kept in the cache folder under a hash of the settings they depend on.

`GUDA_CACHE/features/<kind>-<hash>/` holds .npy files, read memory-mapped, and `settings.json`, written last: the
settings and the SHA-256 of every file. Making goes on in a folder aside that is renamed when complete. Who makes it
holds a claim on it, so that what a stopped process left is known: who makes the same again takes it up, if it is noted
there how far it is, and removes it otherwise.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from guda_core.errors import CacheError, OptionError
from guda_core.held_files import remove_file, replace_file, replacing
from guda_core.machine import reserve
from guda_core.paths import cache_dir
from guda_core.unlearning.adapter_files import hash_file
from guda_core.work_queue import claimed

SETTINGS = "settings.json"
NOTED = "noted.json"  # in the folder aside: what `Store.note` was told last


def _lock_of(folder: Path) -> Path:
    """The file of a claim on it (`work_queue.claimed`)."""
    return folder.with_name(f"{folder.name}.lock")


def _noted(folder: Path) -> dict[str, float]:
    """What is noted in a folder aside; {} where nothing is."""
    try:
        return json.loads((folder / NOTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class Store:
    """The arrays of one kind and settings (anything that json can write). noted: what was noted (`note`) of the arrays
    by a process that was stopped, once they are created: they hold what it made. {} where there is nothing of it."""

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        self.settings = json.loads(json.dumps(dict(settings), sort_keys=True))
        key = hashlib.sha256(json.dumps([kind, self.settings], sort_keys=True).encode()).hexdigest()
        self.folder = cache_dir() / "features" / f"{kind}-{key[:24]}"
        self._aside = self.folder.with_name(f"{self.folder.name}.{uuid4().hex[:12]}")
        self._made: dict[str, np.memmap] = {}
        self._claim, self._mine = ExitStack(), False
        self.noted: dict[str, float] = {}

    @property
    def complete(self) -> bool:
        return (self.folder / SETTINGS).is_file()

    def create(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        """An array of float32 on disk, new or taken up, to be filled, and let go of, before `finish`.

        Raises:
            CacheError: there is no room on the disk, the cache cannot be written to, or what was left is damaged.
        """
        try:
            if not self._made:
                self._begin()
            path = self._aside / f"{name}.npy"
            mode = "r+" if self.noted else "w+"
            made = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)
            with path.open("r+b") as f:
                reserve(f.fileno(), path.stat().st_size)
        except (OSError, ValueError) as e:
            left = bool(self.noted)
            self.discard()
            if isinstance(e, OSError) and not (left and isinstance(e, FileNotFoundError)):
                raise self._no_room(e, 4 * math.prod(shape)) from e
            raise CacheError(
                f"The features that a stopped run left were damaged ({name}.npy), and are removed. Run the same "
                "command again: it begins anew."
            ) from e
        self._made[name] = made
        return made

    def _no_room(self, error: OSError, size: int) -> CacheError:
        return CacheError(
            f"{size / 2**30:.2f} GiB cannot be written to {self.folder.parent} ({error.strerror or error}). Free some "
            "disk space, or set GUDA_CACHE to a folder with more room."
        )

    def _begin(self) -> None:
        """Take up or remove what processes left that are no more, and claim a folder for this one."""
        for left in self.folder.parent.glob(f"{self.folder.name}.*"):
            if left.is_dir():
                with suppress(OptionError), ExitStack() as claim:
                    if claim.enter_context(claimed(left)):
                        if not self.noted and (noted := _noted(left)):
                            self.noted, self._aside = noted, left
                            self._claim, self._mine = claim.pop_all(), True
                        else:
                            shutil.rmtree(left, ignore_errors=True)
                if not left.exists():
                    with suppress(OSError):
                        remove_file(_lock_of(left))
        if self.noted:
            return
        with suppress(OptionError):  # a disk that knows no locks
            self._mine = self._claim.enter_context(claimed(self._aside))
        self._aside.mkdir(parents=True, exist_ok=True)

    def _let_go(self) -> None:
        self._claim.close()
        with suppress(OSError):
            remove_file(_lock_of(self._aside))

    def discard(self) -> None:
        """Remove what was made so far."""
        self._made.clear()
        self.noted = {}
        shutil.rmtree(self._aside, ignore_errors=True)
        self._let_go()

    def note(self, **said: float) -> None:
        """Note how far the arrays are, in numbers: who makes the same after this process was stopped goes on there."""
        if not self._mine:  # on a disk that knows no locks nobody could tell that it is free
            return
        with suppress(OSError):  # then from what was noted before
            for made in self._made.values():
                made.flush()
            with replacing(self._aside / NOTED, alone=True) as new:
                new.write_text(json.dumps(said), encoding="utf-8")

    @contextmanager
    def making(self) -> Iterator[None]:
        """The block ends with `finish`. Where it is stopped or an error ends it, what was made so far is removed,
        unless something was noted of it."""
        try:
            yield
        except BaseException:
            if _noted(self._aside):
                self._made.clear()
                self.noted = {}
                self._claim.close()
            else:
                self.discard()
            raise

    def finish(self) -> None:
        """Declare the created arrays complete. Nobody may hold one: Windows renames no folder with a mapped file."""
        names = list(self._made)
        for name in names:
            self._made.pop(name).flush()
        files = {f"{name}.npy": hash_file(self._aside / f"{name}.npy") for name in names}
        record = {"settings": self.settings, "files": files}
        try:
            (self._aside / SETTINGS).write_text(json.dumps(record, indent=1), encoding="utf-8")
        except OSError as e:
            raise self._no_room(e, 0) from e
        if self.complete:  # another process was faster; both made the same
            self.discard()
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            remove_file(self._aside / NOTED)
        replace_file(self._aside, self.folder)
        self._let_go()

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
            wrong = [n for n, digest in record["files"].items() if hash_file(self.folder / n) != digest]
            if wrong or record["settings"] != self.settings:
                raise CacheError(f"Stored features are damaged ({', '.join(wrong) or SETTINGS}). {mend}")
            return {n.removesuffix(".npy"): np.load(self.folder / n, mmap_mode="r") for n in record["files"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise CacheError(f"Stored features cannot be read ({type(e).__name__}: {e}). {mend}") from e
