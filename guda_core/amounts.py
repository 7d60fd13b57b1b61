"""Scores, times and sizes as people read them."""

from __future__ import annotations

FORMS = {"nats": ".1f", "cosine": ".3f"}  # of scores; others have three digits that count


def score_said(score: float, unit: str) -> str:
    """ "1234.5" nats, "0.712" cosine, "0.00112" in another unit."""
    return f"{score:{FORMS.get(unit, '.3g')}}"


def time_said(seconds: float) -> str:
    """ "90 s", "12 min", "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bytes_said(count: float) -> str:
    """ "12.0 MiB", "1.5 GiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
