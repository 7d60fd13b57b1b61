"""What survives of an oracle's model that is too big to be committed: its values at the fixed queries, and samples.

    <folder>/oracle/<job>.npz    values (Q, K, M) float32 KL in nats, as `scores.values` makes them; samples, uint8
                                 (S, H, W, 3), from the same prompts and seeds for every model
    <folder>/oracle/<job>.json   weights' hash, settings, queries, the training's own record; written last

With them the table and every score made from values can be made again on any machine, and a queue of trainings that
takes longer than one machine lives can be gone on with on another: what is kept is not trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark.baseline_scores import keys_of
from experiments.benchmark.scores import ScoreConfig
from experiments.train.unet import UnetConfig
from guda_core.records import Query

FOLDER = "oracle"


def queries_sha256(of: Sequence[Query]) -> str:
    """Hash of the queries' pictures and prompts, in order."""
    return hashlib.sha256("\n".join(keys_of(of)).encode()).hexdigest()


def keep(
    folder: Path,
    name: str,
    values: np.ndarray,
    samples: np.ndarray,
    *,
    sha256: str,
    of: Sequence[Query],
    config: ScoreConfig,
    training: Mapping[str, Any],
) -> None:
    """Write the files of one model. sha256: of its weights; training: its `stage.json`."""
    where = folder / FOLDER
    where.mkdir(parents=True, exist_ok=True)
    (where / f"{name}.json").unlink(missing_ok=True)
    np.savez_compressed(where / f"{name}.npz", values=values.astype(np.float32), samples=samples)
    record = {
        "command": "python -m experiments.styles",
        "weights_sha256": sha256,
        "queries_sha256": queries_sha256(of),
        "config": config.plain(),
        "training": dict(training),
    }
    (where / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _record(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / FOLDER / f"{name}.json"
    if not path.is_file() or not path.with_suffix(".npz").is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def is_kept(folder: Path, name: str, *, sha256: str | None, of: Sequence[Query], config: ScoreConfig) -> bool:
    """Whether the values of just these weights (None: of any) at these queries with these settings are there."""
    record = _record(folder, name)
    return record is not None and sha256 in (None, record["weights_sha256"]) and _fits(record, of, config)


def _fits(record: Mapping[str, Any], of: Sequence[Query], config: ScoreConfig) -> bool:
    return record["queries_sha256"] == queries_sha256(of) and record["config"] == config.plain()


def read_values(folder: Path, name: str) -> np.ndarray:
    """(Q, K, M) float32 of a kept model, whatever it was made from."""
    with np.load(folder / FOLDER / f"{name}.npz", allow_pickle=False) as z:
        return z["values"]


def values_of(folder: Path, name: str, *, of: Sequence[Query], config: ScoreConfig) -> np.ndarray | None:
    """(Q, K, M) float32 of a kept model; None when it is not there or belongs to other queries or settings."""
    record = _record(folder, name)
    if record is None or not _fits(record, of, config):
        return None
    return read_values(folder, name)


def names(folder: Path, config: UnetConfig) -> set[str]:
    """Names of the kept trainings that were made with these settings (but for the seed, which is in the name)."""
    out = set()
    for path in sorted((folder / FOLDER).glob("*.json")):
        record = _record(folder, path.stem)
        if record is not None and _plain(record["training"].get("config")) == _plain(asdict(config)):
            out.add(path.stem)
    return out


def _plain(config: Any) -> Any:
    """Settings as JSON holds them, without what changes no weight."""
    plain = json.loads(json.dumps(config))
    if isinstance(plain, dict) and isinstance(plain.get("loop"), dict):
        plain["loop"] = {k: v for k, v in plain["loop"].items() if k not in ("seed", "checkpoint_s")}
    return plain
