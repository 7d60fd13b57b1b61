"""Pictures in a few arrays: each as lossless WebP, which is about half as large as compressed pixels.

pictures   all files, one after the other          ends   where each ends, (N,) int64
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
from PIL import Image


def coded(pixels: np.ndarray) -> bytes:
    """A picture, (H, W, 3) uint8, as lossless WebP."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="WEBP", lossless=True, quality=80, method=4)
    return out.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """What `coded` coded."""
    with Image.open(io.BytesIO(data)) as im:
        return np.asarray(im.convert("RGB"))


def joined(files: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The arrays of coded pictures."""
    files = list(files)
    ends = np.cumsum([len(b) for b in files], dtype=np.int64)
    return {"pictures": np.frombuffer(b"".join(files), np.uint8), "ends": ends}


def read(arrays: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures of these arrays, one by one. Raises KeyError: an array is missing."""
    files, ends = arrays["pictures"].tobytes(), arrays["ends"].tolist()
    return (decoded(files[a:b]) for a, b in pairwise([0, *ends]))
