"""The process that decodes one picture for `apart`: a file comes on stdin, a line of JSON and pixels go to stdout.

    python -P apart_worker.py BYTES PIXELS WHOLE MEMORY

The limits are those of `decoding.Limits`. Nothing else is read or written.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any


def bounded(memory: int) -> None:
    """From here on this process gets no more memory than that, where the system has such a bound."""
    if sys.platform == "win32":
        return
    import resource

    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def answer(data: bytes, limits: Any) -> tuple[dict[str, Any], bytes]:
    """What is said of a picture, and its pixels."""
    from guda_core.data.decoding import Damaged, raw
    from guda_core.errors import ImageError

    try:
        found = raw(data, limits)
        pixels = found.image.tobytes()
    except Damaged:
        return {"damaged": True}, b""
    except ImageError as e:
        return {"refused": str(e)}, b""
    except MemoryError:
        return {"memory": True}, b""
    told = {"mode": found.image.mode, "size": found.image.size, "metadata": found.metadata, "notes": found.notes,
            "turn": None if found.turn is None else int(found.turn),
            "profile": base64.b64encode(found.profile).decode() if found.profile else None}  # fmt: skip
    return told, pixels


def main() -> None:
    """Read, decode, write."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this very package, wherever it lies
    warnings.simplefilter("ignore")
    from guda_core.data.decoding import Limits

    limits = Limits(*map(int, sys.argv[1:5]))
    with contextlib.suppress(ImportError):  # it is loaded before the bound, which its library alone would eat into
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1
    bounded(limits.memory)
    told, pixels = answer(sys.stdin.buffer.read(), limits)
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:  # buffered, so whole: not so stdout's own, where Python
        out.write(json.dumps(told).encode() + b"\n")  # was asked for none (`PYTHONUNBUFFERED`): a signal cuts it short
        out.write(pixels)


if __name__ == "__main__":
    main()
