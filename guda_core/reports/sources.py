"""Whether a report's picture comes from where the report says: from the uploaded file, or drawn by the model.

    from a file   the file in the report is prepared again
    drawn         the model draws it again, from prompt, seed, steps and guidance

The pixels are compared with picture.png by the root mean square of their differences, of 255. It is 0 on the same
machine and versions. Sums in another order move a drawn picture by far less than 1, bfloat16 moves it by some 2; two
pictures of two things are many tens apart.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, cast

import numpy as np

from guda_core.errors import ImageError, OptionError, PromptError, ReportError
from guda_core.reports.findings import Change, Doing
from guda_core.reports.read import Report
from guda_core.reports.restore import pixels
from guda_core.service import Step

if TYPE_CHECKING:
    from guda_core.service import Service

NEAR, COARSE_NEAR = 2.0, 10.0  # of 255, what is within tolerance; and of a model in half precision


def from_file(report: Report, service: Service) -> tuple[Change, ...]:
    """What differs where the uploaded file is in the report, and gives another picture."""
    if report.original is None:
        return ()
    try:
        now = service.prepare(report.original).pixels
    except ImageError as e:
        return (Change("original file", "a picture", f"refused here: {e}"),)
    return _differ("picture made from the original file", pixels(report), now, NEAR)


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


def _differ(where: str, before: np.ndarray, now: np.ndarray, near: float) -> tuple[Change, ...]:
    if before.shape != now.shape:
        sizes = (f"{a.shape[1]} x {a.shape[0]} pixels" for a in (before, now))
        return (Change(where, *sizes),)
    far = float(np.sqrt(np.mean((before.astype(np.float64) - now) ** 2)))
    if not far:
        return ()
    return (Change(where, "picture.png", f"{far:.2g} of 255 away from it (root mean square)", far <= near),)
