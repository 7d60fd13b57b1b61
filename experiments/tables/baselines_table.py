"""Settings of the gradient baselines and of instance unlearning, read from what the fresh scores were made of."""

from __future__ import annotations

import json

from experiments.benchmark import rows
from experiments.benchmark.fresh import COMMAND
from experiments.benchmark.styles_arrays import ARRAYS, INSTANCE_EXAMPLES
from experiments.tables.committed import FOLDER, UNKNOWN, written
from guda_core.attribution.gradient.das import Das
from guda_core.attribution.gradient.dtrak import Dtrak
from guda_core.attribution.gradient.trak import Trak
from guda_core.paths import ROOT, SHIPPED_RUN

WHERE = "fresh"
METHODS = {m.id: m for m in (Trak, Dtrak, Das)}


def settings() -> str:
    """A row a method."""
    note = rows.note(FOLDER / WHERE / ARRAYS)
    if not note.is_file():
        return UNKNOWN
    made = json.loads(note.read_text(encoding="utf-8"))["made"]
    heads = ("row", "gradient of", "timesteps, one draw of noise each", "projected to", "the authors'", "ridge",
             "a group's score")  # fmt: skip
    lines = [heads]
    for name, method in METHODS.items():
        own = made[name]["from"]["config"]
        of = own["features"]
        output = f"`{of['output']}`" + (", normalised" if of["normalise"] else "")
        cells = (name, output, of["timesteps"], f"{of['dim']:,}", f"{method.dim:,}", own["ridge"], own["aggregate"])
        lines.append(cells)
    own = made["instance"]["from"]["config"]
    record = json.loads((SHIPPED_RUN / "features" / Trak.id / "features.json").read_text(encoding="utf-8"))
    said = (
        f"There are {len(record['groups']):,} training pictures. Their features are stored in 8 bits. The ridge is "
        f"times the mean eigenvalue. Instance unlearning was asked of {INSTANCE_EXAMPLES} pictures a group at "
        f"{own['timesteps']} timesteps, with damping {own['damping']}."
    )
    return written([*lines, f"{said} (`{COMMAND}`, `{note.relative_to(ROOT).as_posix()}`.)"])


RENDER = {"baseline_settings": settings}
