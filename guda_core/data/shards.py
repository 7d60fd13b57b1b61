"""Tensors that are kept on disk by a key, so that they are computed once: encoded pictures, embedded prompts.

A folder holds files of some entries each, all safetensors. A file is written aside and renamed: what was interrupted
does not count, and what is damaged is dropped and made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from guda_core.errors import CacheError
from guda_core.held_files import advice, is_held, remove_file, replacing

log = logging.getLogger(__name__)

Entry = Mapping[str, Tensor]  # name -> tensor


class Shards:
    """The entries below `folder` in files that begin with `kind`."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def read(self, keys: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """key -> its tensors, of those keys that are there."""
        wanted, found = set(keys), {}
        for path in sorted(self.folder.glob(f"{self.kind}-*.safetensors")):
            if wanted:
                part = self.read_file(path, wanted)
                found |= part
                wanted -= set(part)
        return found

    def read_file(self, path: Path, wanted: Container[str]) -> dict[str, dict[str, Tensor]]:
        """As `read`, of one file alone."""
        out: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, framework="pt") as f:
                for full in f.keys():  # noqa: SIM118
                    key, _, name = full.partition("/")
                    if key in wanted:
                        out.setdefault(key, {})[name] = f.get_tensor(full)
        except SafetensorError as e:
            log.warning("%s is damaged and is made again: %s", path, e)
            out.clear()  # Windows removes no file that a tensor is mapped from
            with suppress(OSError):
                remove_file(path)
            return {}
        except OSError as e:  # such as another person's file, or a network disk that is away: it may be whole
            log.warning("%s cannot be opened now and stays; what it holds is made again: %s", path, e)
            return {}
        return out

    def write(self, entries: Mapping[str, Entry]) -> Path:
        """Keep these entries, in a file of their own, which is given.

        Raises:
            CacheError: they cannot be written, such as on a full disk.
        """
        name = hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()[:16]
        path = self.folder / f"{self.kind}-{name}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            flat = {f"{k}/{n}": t.detach().cpu().contiguous() for k, e in entries.items() for n, t in e.items()}
            try:
                with replacing(path) as aside:  # several processes may keep the same at once
                    save_file(flat, aside)
            except OSError as e:
                if not (is_held(e) and path.is_file()):  # another process reads the same: the name is their hash
                    raise
        except (OSError, SafetensorError) as e:
            what = advice(e, "Free some disk space")
            raise CacheError(
                f"{self.folder} cannot be written ({str(e).rstrip('.')}). {what} and run the same command again: what "
                "is there already is not made again."
            ) from e
        return path
