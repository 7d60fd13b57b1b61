"""What was measured of maps and strips, as a table (for `readme.py`)."""

from __future__ import annotations

from experiments.tables.committed import UNKNOWN, read, source, value
from guda_core.attribution.metrics import of_equal


def maps() -> str:
    """AUROC of the maps by kind of collage, and how often the strip names the prompted group."""
    record = read("maps")
    if record is None:
        return UNKNOWN
    found = record["maps"]
    lines = ["| collage | n | AUROC | without smoothing | the oracle's map |", "|---|---|---|---|---|"]
    for r in found["rows"]:
        oracle = value(r["oracle"]) if "oracle" in r else ""
        lines.append(f"| {r['kind']} | {r['n']} | {value(r['auroc'])} | {value(r['raw'])} | {oracle} |")
    widest = ", the widest that was tried" * (record["width"] == max(map(float, record["tried_on_tuning"])))
    said = [f"The smoothing chosen on other collages: a Gaussian of {record['width']:g} places{widest}."]
    if "correlation" in found:
        said.append(f"Rank correlation with the oracle's map: {value(found['correlation'])}.")
    collages = sum(r["n"] for r in found["rows"])
    said.append(f"Share of maps that say nothing: {value(of_equal(found['say_nothing'], collages))}.")
    return "\n".join([*lines, "", *said, source(record, "maps")])


RENDER = {"maps": maps}
