"""Whether a report's picture comes from where the report says: from the uploaded file, or drawn by the model.

    from a file   the file in the report is prepared again
    drawn         the model draws it again, from prompt, seed, steps and guidance

The pixels are compared with picture.png by the root mean square of their differences, of 255, as a whole and where it
is largest: nobody can paint a small thing in. It is 0 on the same machine and versions. Sums in another order move a
drawn picture by far less than 1, bfloat16 by a few; two pictures of two things are far more apart.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from guda_core.data.decoding import can_read, kind_of
from guda_core.errors import ImageError, OptionError, PromptError, ReportError
from guda_core.reports.bundle import ORIGINALS
from guda_core.reports.findings import MISSING, Change, Doing
from guda_core.reports.read import Report
from guda_core.reports.restore import pixels
from guda_core.service import Step
from guda_core.versions import versions

if TYPE_CHECKING:
    from guda_core.service import Service

NEAR, COARSE_NEAR = 2.0, 10.0  # of 255, what is within tolerance; and of a model in half precision
BLOCK, WORST = 8, 4  # side of a block of pixels; how many times further the worst of them may be than the whole
LEVELS = 8  # of 255, how far a pixel may be that was prepared from the same file by other versions
Found = tuple[tuple[Change, ...], tuple[Change, ...]]  # what is judged, what is told


def from_file(report: Report, service: Service) -> Found:
    """What differs where the uploaded file is in the report, and gives another picture, or other sentences about it."""
    picture = report.record["picture"]
    if report.original is None:
        named = set(report.record["files"]) & set(ORIGINALS.values())
        return (), tuple(Change(name, "in the report", "not there, so not looked at") for name in sorted(named))
    if kind_of(report.original) == "HEIC" and not can_read("HEIC"):
        return (), (Change("original file", "a HEIC picture", "not looked at: pillow-heif is not installed here"),)
    try:
        now = service.prepare(report.original, prompt=picture["prompt"])
    except ImageError:
        return (Change("original file", "the picture's file", "no picture that can be read"),), ()
    before = pixels(report)
    judged = _differ("picture made from the original file", before, now.pixels)
    off = 0 if judged and before.shape != now.pixels.shape else int(np.abs(before.astype(int) - now.pixels).max())
    judged = tuple(replace(c, within=off <= LEVELS) for c in judged) if off else judged
    lost = [s for s in now.preparation if s not in picture["preparation"]]
    more = [s for s in picture["preparation"] if s not in now.preparation]
    said = tuple(Change("what was done to the file", a, b) for a, b in [*((s, MISSING) for s in more),
                                                                        *((MISSING, s) for s in lost)])  # fmt: skip
    same = report.record["versions"].get("guda_core") == versions()["guda_core"]  # else the words may be others
    return (*judged, *(said if same else ())), () if same else said


def drawn_again(report: Report, service: Service, *, coarse: bool) -> Generator[Doing, None, tuple[Change, ...]]:
    """Draw the picture again where the report says how it was drawn; returns what differs. coarse: the model ran in
    half precision, then or now.

    Raises:
        ReportError: what it was drawn with is refused.
    """
    told = report.record["picture"].get("drawn")
    if told is None:
        return ()
    now = None
    try:
        made = service.generate(prompt=report.record["picture"]["prompt"], **told)
        with closing(cast(Generator, made)):
            for step in made:
                if isinstance(step, Step):
                    yield Doing("drawing", step.done / step.steps)
                else:
                    now = step.pixels
    except (OptionError, PromptError) as e:
        raise ReportError(f"What the report's picture was drawn with is refused. {e}") from e
    assert now is not None
    return _differ("picture drawn again", pixels(report), now, COARSE_NEAR if coarse else NEAR)


def _differ(where: str, before: np.ndarray, now: np.ndarray, near: float = 0.0) -> tuple[Change, ...]:
    """(H, W, 3) uint8 both. Within: no further than `near` as a whole, and nowhere much further."""
    if before.shape != now.shape:
        a, b = (f"{x.shape[1]} x {x.shape[0]} pixels" for x in (before, now))
        return (Change(where, a, b),)
    far, worst = _far(before, now)
    if not far:
        return ()
    said = f"{far:.2g} of 255 away from it (root mean square), {worst:.2g} where most"
    return (Change(where, "picture.png", said, far <= near and worst <= WORST * near),)


def _far(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Root mean square of the difference, of all pixels and of the block of pixels where it is largest."""
    d = ((a.astype(np.float64) - b) ** 2).mean(-1)
    height, width = (-(-n // BLOCK) * BLOCK for n in d.shape)
    sums, counts = np.zeros((2, height, width))
    sums[: d.shape[0], : d.shape[1]], counts[: d.shape[0], : d.shape[1]] = d, 1
    by_block = [x.reshape(height // BLOCK, BLOCK, -1, BLOCK).sum((1, 3)) for x in (sums, counts)]
    return math.sqrt(d.mean()), math.sqrt((by_block[0] / by_block[1]).max())
