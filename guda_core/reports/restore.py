"""Turns a report that was read back into the answers it was made from, so that they can be shown without computing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from guda_core.data.images import hash_pixels
from guda_core.errors import ReportError
from guda_core.picture_records import Shown
from guda_core.records import Attribution, KLValues
from guda_core.reports import picture_files
from guda_core.reports.bundle import PICTURE
from guda_core.reports.opened import Told, answer_of, tell
from guda_core.reports.read import Report

MOST = 24_000_000  # pixels of a picture that is shown


def attributions(report: Report) -> list[Attribution]:
    """The answers of a report, in its order, with the values behind them."""
    out = []
    for method, found in report.record["methods"].items():
        arrays = report.arrays(method)
        sampled = found["sampling"] is not None and bool(arrays)
        kl = KLValues.from_arrays(arrays) if sampled else None
        out.append(replace(answer_of(method, found), kl=kl, values={} if sampled else arrays))
    return out


def pixels(report: Report) -> np.ndarray:
    """The prepared picture, (H, W, 3) uint8. Raises ReportError when it is not of the size and hash that the record
    says, or when a viewer may show it otherwise."""
    told = report.record["picture"]
    try:
        found = picture_files.pixels_of(report.picture, MOST)
        if [found.shape[1], found.shape[0]] != told["size"] or hash_pixels(found) != told["pixels_sha256"]:
            raise ValueError("another picture")
        return found
    except Exception as e:  # Pillow raises a dozen kinds of error for damaged files
        raise ReportError(f"{PICTURE} is not the picture that the report names. It was altered or damaged.") from e


def told(report: Report) -> Told:
    """What a report says, without its pictures; methods go by their ids."""
    return tell(report.record, attributions(report), {})


def shown(report: Report) -> Shown:
    """The pictures of a report; empty where it has none. Raises ReportError when they are not what it says."""
    return picture_files.restored(report.record.get("pictures", {}), report.more)
