"""All pictures of a group set in one file that may travel: each as lossless WebP, beside the manifest of its fetching.

Unpacked, they are the cache folder of their source again (`guda_core.data.sources.iconify`), so that everything that
reads the training pictures works on a machine without npm. Each picture is checked against the manifest's hash.

    pictures, ends   the pictures (`experiments.lossless`)
    note             JSON: the manifest, and the objects of each group, in order
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import lossless
from guda_core.data.groups import normal
from guda_core.data.sources.iconify import Iconify
from guda_core.errors import DataError
from guda_core.held_files import replacing
from guda_core.records import GroupSet

FORMAT = 1
NOT_OURS = "{path} is not what `python -m experiments.second pack` writes."


def _kept(group_set: GroupSet, whole: bool) -> Callable[[str], bool]:
    """Which objects: all, or those of the set alone, without what only the VAE and the CLIP learn from."""
    own = {normal(o) for o in (*group_set.train_objects, *group_set.held_out_objects)}
    return lambda name: whole or normal(name) in own


def _check_held_out(group_set: GroupSet, hashes: Mapping[str, Mapping[str, str]]) -> None:
    held = {normal(o) for o in group_set.held_out_objects}
    every = {
        sha256: f"{o} ({g})" for g, found in hashes.items() for o, sha256 in found.items() if normal(o) not in held
    }
    for g, found in hashes.items():
        if same := [(o, every[sha256]) for o, sha256 in found.items() if normal(o) in held and sha256 in every]:
            raise DataError(
                f"{same[0][0]} ({g}) is held out, but {same[0][1]}, which is trained on, is the same picture."
            )


def pack(group_set: GroupSet, path: Path, *, whole: bool = True) -> Iterator[float]:
    """Write the file; yields the fraction done. whole: with the pictures of other objects.

    Raises:
        DataError: the pictures were not fetched, or one that is held out is also trained on, under another name.
    """
    folder, keep = Iconify(group_set).folder, _kept(group_set, whole)
    if not (folder / "manifest.json").is_file():
        raise DataError(f"No pictures in {folder}. Run `python -m guda_core groups fetch` first (it needs npm).")
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    _check_held_out(group_set, manifest["pictures"])
    files: list[bytes] = []
    objects: dict[str, list[str]] = {}
    for i, gid in enumerate(group_set.groups):
        with np.load(folder / f"{gid}.npz") as z:
            pixels, names = z["pixels"], [str(o) for o in z["objects"]]
        at = [k for k, name in enumerate(names) if keep(name)]
        objects[gid] = [names[k] for k in at]
        manifest["pictures"][gid] = {o: manifest["pictures"][gid][o] for o in objects[gid]}
        for n, k in enumerate(at):
            files.append(lossless.coded(pixels[k]))
            yield (i + (n + 1) / len(at)) / len(group_set.groups)
    note = json.dumps({"format": FORMAT, "manifest": manifest, "objects": objects}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside, aside.open("wb") as f:
        np.savez_compressed(f, **lossless.joined(files), note=np.frombuffer(note, np.uint8))
    yield 1.0


def unpack(path: Path, group_set: GroupSet) -> Iterator[float]:
    """Put the pictures where their source looks for them (below `GUDA_CACHE`); what is there is left alone. Yields the
    fraction done.

    Raises:
        DataError: it is another file, or a picture is missing, damaged or not the one that was packed.
    """
    folder = Iconify(group_set).folder
    try:
        with np.load(path, allow_pickle=False) as z:
            packed, note = lossless.read(z), json.loads(z["note"].tobytes())
        known = note["format"] == FORMAT and note["manifest"]["group_set"] == group_set.id
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(NOT_OURS.format(path=path)) from e
    if not known:
        raise DataError(f"{path} was packed of another group set, or by another version. Pack it again.")
    manifest, text = folder / "manifest.json", json.dumps(note["manifest"], indent=1)
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == text:
        yield 1.0
        return
    folder.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)  # written last: its existence means "complete"
    done, whole = 0, sum(map(len, note["objects"].values()))
    for gid, names in note["objects"].items():
        pixels = []
        for name in names:
            try:
                picture = next(packed)
            except (StopIteration, OSError) as e:
                raise DataError(f"{path} does not hold the picture of {name} ({gid}). Pack it again.") from e
            if hashlib.sha256(picture.tobytes()).hexdigest() != note["manifest"]["pictures"][gid][name]:
                raise DataError(f"The picture of {name} ({gid}) in {path} is not the one that was packed.")
            pixels.append(picture)
            done += 1
            yield done / whole
        np.savez(folder / f"{gid}.npz", pixels=np.stack(pixels), objects=names)
    manifest.write_text(text, encoding="utf-8")
    yield 1.0
