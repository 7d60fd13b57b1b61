"""Pictures as people have them: six procedural artists, with mixed sizes, formats and endings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from guda_core.cli import app
from guda_core.data.own.in_folder import find_in_folder
from guda_core.data.own.new_set import Draft, NewSet, draft

ARTISTS = ("Ann Lee", "Bo Chan", "José Núñez", "Dee", "葛飾北斎", "Fay_Wu")
IDS = ("ann-lee", "bo-chan", "dee", "fay-wu", "group-d76f9f", "jose-nunez")  # sorted, as in the set
SHAPES = ((60, 40), (40, 60), (48, 48), (96, 32))  # width, height
KINDS = ((".jpg", "JPEG"), (".PNG", "PNG"), (".webp", "WEBP"), (".JPEG", "JPEG"))


def waves(artist: int, number: int, width: int, height: int) -> np.ndarray:
    """A picture of an artist, (height, width, 3) uint8: each has waves of their own lengths."""
    y, x = np.mgrid[:height, :width] / 12
    across, down = 1 + artist, 1 + artist % 3
    channels = [128 + 127 * np.sin(across * x + number + c) * np.cos(down * y + c * number) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def paint(path: Path, artist: int = 0, number: int = 0, shape: tuple[int, int] = (60, 40)) -> Path:
    """Write a picture, in the kind that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    Image.fromarray(waves(artist, number, *shape)).save(path, format=kind)
    return path


def studio(root: Path, *, each: int = 8) -> Path:
    """A folder with a subfolder for each artist, `each` pictures in it; the first artist wrote captions."""
    for k, name in enumerate(ARTISTS):
        for i in range(each):
            paint(root / name / f"{i}{KINDS[i % 4][0]}", k, i, SHAPES[i % 4])
    for i in range(each):
        (root / ARTISTS[0] / f"{i}.txt").write_text(f"a wave,\n number {i}", encoding="utf-8")
    return root


def guda(*arguments: object, code: int = 0) -> str:
    """What the command says, its white space reduced."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def made(folder: Path, **asked: object) -> Draft:
    """The set of a folder, not written."""
    return draft(find_in_folder(folder), NewSet(name="x", **{"broken": 0.5, **asked}))  # type: ignore[arg-type]
