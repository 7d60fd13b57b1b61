"""The sizes of pictures that keep their shape: a short list for each resolution ("aspect buckets", NovelAI 2022).

    h = R - s, R - 2 s, ...     w = floor(R^2 / (h s)) s, while w / h <= 2.5         and the same upright

R: the resolution. s: 64 pixels, as the networks of Stable Diffusion and FLUX want them; below 512 an eighth of R. A
size has about the pixels of a square, and never more, so that it takes no more memory, and scores mean the same.
"""

from __future__ import annotations

import math
from functools import cache

STEP, LARGE = 64, 512  # pixels
LONGEST = 2.5  # the long side over the short one
Size = tuple[int, int]  # width, height


def step(resolution: int) -> int:
    """s, in pixels."""
    if resolution >= LARGE:
        return STEP
    return resolution // 64 * 8 if resolution >= 64 else max(2, resolution // 8)


@cache
def sizes(resolution: int) -> tuple[Size, ...]:
    """(width, height) of every size, the square first."""
    s, out = step(resolution), [(resolution, resolution)]
    for h in range((resolution - 1) // s * s, 0, -s):
        w = resolution * resolution // h // s * s
        if w > LONGEST * h:
            break
        if w > h:
            out += [(w, h), (h, w)]
    return tuple(out)


def nearest(width: int, height: int, resolution: int) -> Size:
    """The size whose shape is most like a picture's: the one with the least |log(w / h) - log(width / height)|."""
    shape = math.log(width / height)
    return min(sizes(resolution), key=lambda size: abs(math.log(size[0] / size[1]) - shape))
