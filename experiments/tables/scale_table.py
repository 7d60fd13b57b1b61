"""What was measured of scale, and the plan on paper that is made from it, as tables (for `readme.py`).

    scoring, hours   = (list + load + pictures * passes * seconds of a pass / workers + half a part) / 3600
    passes           = timestep draws * (groups + 1), at effort quick
    unlearning       = ceil(groups / workers) rounds, a group a worker; hours = rounds * steps * s of a step / 3600

Half a part is what the last workers wait for, on average. The seconds of a pass are those of a whole attribution on the
card that was measured, and those of a step are of unlearning there (`gpu_table`). Before any card was, a pass is
assumed, and said to be.
"""

from __future__ import annotations

import math
from typing import Any

from experiments.tables.committed import Lines, table
from experiments.tables.gpu_table import pass_seconds, unlearning_seconds
from guda_core.scoring.listing import LARGEST, parts_for
from guda_core.service import EFFORTS

GROUPS, PICTURES, GPUS = 60, 10**6, (1, 8, 64)
STRATA = 24
PASS_S = 0.010  # where none was measured: a pass of Stable Diffusion 1.5 for one picture of 512 pixels, in batches
METHODS = 2
KEYS = ("overhead_200", "pictures_per_hour", "lost", "twice", "equal_to_single", "measured")


def passes(groups: int = GROUPS, effort: str = "quick") -> int:
    """Forward passes of one picture's GUDA scores, at most."""
    return STRATA * EFFORTS[effort].draws * (groups + 1)


def plan(record: dict[str, Any]) -> list[dict[str, float]]:
    """Rows of the plan: gpus, unlearn_rounds, score_h (hours), waits_h (of them, what more GPUs do not shorten)."""
    measured, one = record["measured"], passes() * (pass_seconds() or PASS_S)
    listed = measured["listing_s"] * PICTURES / measured["names"]
    waits = listed + measured["model_load_s"] + LARGEST * one / 2
    return [
        {
            "gpus": n,
            "unlearn_rounds": math.ceil(GROUPS / n),
            "score_h": (waits + PICTURES * one / n) / 3600,
            "waits_h": waits / 3600,
        }
        for n in GPUS
    ]


@table("scale")
def scale(record: dict[str, Any]) -> Lines:
    """Overhead, pace, what was lost, and large tables."""
    if not set(KEYS) <= set(record):
        return
    over, pace, made = record["overhead_200"], record["pictures_per_hour"], record["measured"]["made_up"]
    held, killed = over["resident_mb"], record["chaos"]
    lost = f"{record['lost']}, {record['twice']}"
    same = "bit by bit the same" if record["equal_to_single"] else "DIFFERENT"
    found = record["measured"]
    yield "measured", ""
    yield f"a table beside a plain loop, {over['pictures']} pictures", f"{100 * over['table']:+.1f}% time"
    yield "the same on Ray, one worker, start and loading included", f"{100 * over['ray']:+.1f}% time"
    yield "memory after the first block of pictures and after the last", f"{held[0]:.0f} MB, {held[-1]:.0f} MB"
    for workers, p in pace.items():
        what = f"{workers} worker{'s' * (workers != '1')}"
        yield f"pictures an hour, {what} of one CPU thread", f"{p['pictures_per_hour']:,.0f}"
    yield f"{killed['pictures']} pictures on two Ray nodes, a node and the driver killed: lost, twice", lost
    yield "their rows beside those of one process", same
    yield f"a made-up table of {made['rows']:,} rows: summary and page", f"{made['summary_s']:z.2f} s"
    yield "search in it, sorted, one screen", f"{made['search_s']:z.2f} s"
    yield "one picture's rows in it", f"{made['one_picture_s']:z.2f} s"
    yield "a row of it", f"{made['bytes_per_row']:.0f} bytes"
    yield f"read and write the list of {found['names']:,} pictures", f"{found['listing_s']:.1f} s"
    yield "load the embedded model", f"{found['model_load_s']:.1f} s"
    yield f"{record['cpus']} CPUs."


@table("scale")
def on_paper(record: dict[str, Any]) -> Lines:
    """The plan for 60 groups and a million pictures."""
    if "measured" not in record:
        return
    yield ("GPUs", "unlearning, rounds of one group a GPU", "its steps, hours", "scoring, hours", "of them waiting",
           "speed-up")  # fmt: skip
    found, of_group = plan(record), unlearning_seconds()
    for row in found:
        yield (
            f"{row['gpus']:.0f}",
            f"{row['unlearn_rounds']:.0f}",
            "not measured" if of_group is None else f"{row['unlearn_rounds'] * of_group / 3600:.2g}",
            f"{row['score_h']:,.0f}",
            f"{row['waits_h']:.1f}",
            f"{found[0]['score_h'] / row['score_h']:.1f}",
        )
    rows = PICTURES * METHODS * GROUPS
    size = rows * record["measured"]["made_up"]["bytes_per_row"] / 1e9
    took = pass_seconds()
    told = f"One pass is **assumed** to take {1000 * PASS_S:.0f} ms; no GPU was measured."
    if took is not None:
        told = (
            f"One pass takes {1000 * took:.1f} ms in a whole attribution of that effort on the card that was measured, "
            "with random weights (`assets/benchmarks/gpu.json`). Not counted: adapters' health, and encoding pictures."
        )
    yield (
        f"{passes():,} passes a picture (effort quick). {told} The table: {rows / 1e6:,.0f} million rows in "
        f"{parts_for(PICTURES):,} parts, about {size:.1f} GB."
    )


RENDER = {"scale": scale, "scale_plan": on_paper}
