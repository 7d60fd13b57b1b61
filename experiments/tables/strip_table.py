"""What was measured of strips, in two sentences (for `readme.py`)."""

from __future__ import annotations

from experiments.tables.committed import UNKNOWN, read, source, value


def strip() -> str:
    """Seconds of a strip, and how often it points at the prompted group."""
    record = read("strip")
    if record is None:
        return UNKNOWN
    s, seconds, machine = record["settings"], record["seconds"], record["machine"]
    took = (
        f"A strip of {s['groups']} pictures takes {seconds['median']:.1f} s (median of {s['pictures']}; "
        f"{seconds['most']:.1f} s at most; {100 * seconds['within_limit']:.0f}% within {s['limit_s']:g} s) on "
        f"{machine['threads']} threads ({machine['device']})."
    )
    points = f"The picture that differs most is the one without the prompted group: {value(record['prompted_first'])}."
    return "\n".join([took, points, source(record, "strip")])


RENDER = {"strip": strip}
