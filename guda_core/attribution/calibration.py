"""The weight of GUDA's offset for one model and group set: `calibration.json`, fitted to retrained models.

    {"offset_weight": 1.04, "fitted": how, "command": ..., "date": ..., "base_sha256": ..., "group_set": ...,
     "unlearning": settings, "health": settings}

It holds for that model and that set alone, and for adapters that were unlearned and measured with the settings of those
that it was fitted with. Where there is none, or it is of others, the score is the paper's, without an offset.
`python -m experiments.offset` fits it and writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from guda_core.attribution import run_files
from guda_core.data.own.found import some
from guda_core.errors import DataError
from guda_core.paths import Folder
from guda_core.unlearning import adapters
from guda_core.unlearning.forget import told_apart

FILE = "calibration.json"
MEND = "Fit it again with `python -m experiments.offset`, or remove the file: the score is then the paper's."


class Calibration(run_files.RunFile):
    """offset_weight: >= 0. fitted, command, date: where it comes from. queries: that it was fitted to. unlearning,
    health: settings of the adapters that it was fitted with; a file that was made before does not say them."""

    offset_weight: Annotated[float, Field(ge=0)]
    fitted: str = ""
    command: str = ""
    date: str = ""
    queries: Annotated[int, Field(ge=0)] | None = None
    unrounded: float | None = None
    unlearning: dict[str, Any] | None = None
    health: dict[str, Any] | None = None

    def why_not(self, folder: Folder, metas: Mapping[str, Mapping[str, Any]]) -> str:
        """Why the weight is not for these adapters, group id -> metadata, in a folder each; "" where it is."""
        if self.unlearning is None or self.health is None:
            return f"The scores hold no offset: {FILE} does not say which adapters its weight was fitted with. {MEND}"
        if unmeasured := [g for g, meta in metas.items() if _measured(folder, g, meta) is None]:
            which = some(unmeasured)
            return f"The scores hold no offset: the health of {which} was not measured. `guda unlearn` measures it."
        mine = told_apart({"config": self.unlearning}), self.health
        differing = [g for g, meta in metas.items() if (told_apart(meta), _measured(folder, g, meta)) != mine]
        if not differing:
            return ""
        return (
            f"The scores hold no offset: the weight in {FILE} was fitted with adapters that were unlearned or measured "
            f"with other settings than those of {some(differing)}. {MEND}"
        )


def _measured(folder: Folder, group: str, meta: Mapping[str, Any]) -> Any:
    """The settings of an adapter's health; None where it tells none."""
    return adapters.read_health(folder / group, str(meta.get("sha256"))).get("config")


def fitted_with(folder: Folder, groups: Iterable[str]) -> dict[str, Any]:
    """What `write_weight` should write of the adapters that a weight is fitted with: their settings.

    Raises:
        DataError: they were not all made in one way. AdapterError: there is no adapter.
    """
    metas = {g: adapters.read_meta(folder / g) for g in groups}
    first, *others = [(told_apart(meta), _measured(folder, g, meta)) for g, meta in metas.items()]
    if any(made != first for made in others):
        raise DataError(
            "The adapters were unlearned or measured with different settings, so that no one weight is for all. Make "
            "them alike with `guda unlearn`."
        )
    return {"unlearning": next(iter(metas.values())).get("config"), "health": first[1]}


def read_calibration(path: Path | None, *, base_sha256: str, group_set: str) -> Calibration | None:
    """The file, checked; None where there is none.

    Raises:
        CacheError: it is damaged, or of another model or group set.
    """
    if path is None or not path.is_file():
        return None
    found = run_files.read_object(path, MEND)
    return run_files.checked(Calibration, path.name, found, base_sha256=base_sha256, group_set=group_set, mend=MEND)


def write_weight(path: Path, weight: float, *, base_sha256: str, group_set: str, **how: Any) -> None:
    """Write the file. how: `fitted_with`, `fitted`, `command`, `date` and what else tells where the weight
    comes from.

    Raises:
        CacheError: it cannot be written; the one of before stays.
    """
    record = {"offset_weight": weight, **how, "base_sha256": base_sha256, "group_set": group_set}
    with run_files.in_place_of(path) as aside:
        aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
