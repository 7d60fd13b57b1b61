"""Decodes a picture from outside where it can do no harm.

PNG, JPEG and WebP of ordinary size are decoded here, in this process. All others, that is AVIF, TIFF and HEIC, whose
headers do not bound what their decoders take, large pictures, and those of very many parts or passes, are decoded by
`apart_worker` in a process of their own: it may not take more than `Limits.memory` (where the system has such a bound)
nor more than `SECONDS`, and when it dies, only that picture is refused. One at a time, so that many visitors need no
more memory than one.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from guda_core.data.containers import is_crowded, needed
from guda_core.data.decoding import Damaged, Limits, Raw, check_kind, kind_of, raw, size_of
from guda_core.errors import ImageError

HERE = ("PNG", "JPEG", "WEBP")  # decoded in this process, unless they are large
SECONDS = 30.0
TOO_MUCH = "Reading this {kind} picture takes too much memory. Save a smaller version."
WORKER = Path(__file__).with_name("apart_worker.py")
ENVIRON = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}  # threads' own heaps would count as memory
MODES = ("L", "LA", "RGB", "RGBA", "CMYK")
_one = threading.Lock()


def decoded(data: bytes, limits: Limits) -> Raw:
    """The picture in a file's bytes. Raises ImageError."""
    kind = kind_of(data)
    check_kind(kind)
    if kind not in HERE or is_crowded(data, kind) or _is_large(data, kind, limits):
        return _in_a_process(data, kind, limits)
    try:
        return raw(data, limits)
    except MemoryError as e:
        raise ImageError(TOO_MUCH.format(kind=kind)) from e


def _is_large(data: bytes, kind: str, limits: Limits) -> bool:
    """Whether a picture has more pixels than are kept whole, with or without the parts that it does not need. Also one
    whose needed parts, which are read where others are broken, take much to be read."""
    try:
        width, height = size_of(data, limits)
    except Damaged:
        bare = needed(data, kind)
        if is_crowded(bare, kind):
            return True
        try:
            width, height = size_of(bare, limits)
        except Damaged:
            return False
    return width * height > limits.whole


def _in_a_process(data: bytes, kind: str, limits: Limits) -> Raw:
    """What the worker says of a picture. Raises ImageError."""
    asked = [limits.bytes, limits.pixels, limits.whole, limits.memory]
    command = [sys.executable, "-P", str(WORKER), *map(str, asked)]
    with _one:
        try:
            done = subprocess.run(
                command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False,
                env={**os.environ, **ENVIRON},
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise ImageError(f"Reading this {kind} picture took too long. Save it anew, as PNG or JPEG.") from e
    head, _, body = done.stdout.partition(b"\n") if done.returncode == 0 else (b"", b"", b"")
    try:
        told: dict[str, Any] = json.loads(head)
    except ValueError:
        told = {}
    if "refused" in told:
        raise ImageError(told["refused"])
    if told.get("memory"):
        raise ImageError(TOO_MUCH.format(kind=kind))
    if told.get("mode") not in MODES or not _is_whole(told, body):  # damaged, or the decoder died of it
        raise Damaged(kind)
    image = Image.frombytes(told["mode"], tuple(told["size"]), body)
    turn = None if told["turn"] is None else Image.Transpose(told["turn"])
    profile = base64.b64decode(told["profile"]) if told["profile"] else None
    return Raw(image, kind, told["metadata"], turn, profile, told["notes"])


def _is_whole(told: dict[str, Any], body: bytes) -> bool:
    """Whether all pixels came."""
    width, height = told["size"]
    return len(body) == width * height * len(told["mode"])
