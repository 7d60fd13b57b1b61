"""Scores of methods that answer a query at a time, kept in the cache: (Q, G) a method, resumable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments.benchmark.clock import Clock
from guda_core.held_files import replacing
from guda_core.records import Attribution, Query


class Scorer(Protocol):
    """An attribution method, as far as a benchmark needs it."""

    id: str

    def prepare(self) -> Iterator[float]: ...

    def attribute(self, query: Query) -> Iterator[Attribution]: ...


def keys_of(of: Sequence[Query]) -> list[str]:
    """What tells queries apart: the picture's hash and the prompt."""
    return [q.image_hash[:16] + q.prompt for q in of]


def score_baseline(
    name: str, method: Scorer, made_from: Any, of: Sequence[Query], ids: Sequence[str], path: Path, clock: Clock
) -> Iterator[float]:
    """Write (Q, G) float32 scores to `path`, NaN where there is none; an unfinished file is gone on with.

    made_from: all that the scores depend on beside the model and the queries, plain data; a file made from other things
    or of other queries is begun anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    out, note = np.full((len(of), len(ids)), np.nan, np.float32), path.with_suffix(".json")
    done, key = 0, json.loads(json.dumps({"made_from": made_from, "queries": keys_of(of)}))
    if path.is_file() and note.is_file():
        old = json.loads(note.read_text(encoding="utf-8"))
        if {k: old.get(k) for k in key} == key:
            done, out = old["done"], np.load(path)
        else:
            clock.forget(f"score/{name}")
    if done < len(of):
        for fraction in clock.timed(f"prepare/{name}", method.prepare()):
            yield 0.5 * fraction
    settings: Mapping[str, Any] = {}
    for i in range(done, len(of)):
        for a in clock.timed(f"score/{name}", method.attribute(of[i])):
            settings = a.settings
            if a.groups:
                out[i] = [np.nan if (s := a.groups[g].score) is None else s for g in ids]
        if (i + 1) % 20 == 0 or i + 1 == len(of):
            with replacing(path) as aside, aside.open("wb") as f:
                np.save(f, out)
            note.write_text(json.dumps({**key, "done": i + 1, "settings": dict(settings)}), encoding="utf-8")
        yield 0.5 + 0.5 * (i + 1) / len(of)


def read_scores(folder: Path, of: Sequence[Query], made_from: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Row name -> (Q, G) scores of every method of `made_from` that has answered all these queries from just that."""
    out = {}
    for name, made in made_from.items():
        note = folder / f"{name}.json"
        wanted = json.loads(json.dumps({"made_from": made, "queries": keys_of(of), "done": len(of)}))
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if {k: found.get(k) for k in wanted} == wanted:
            out[name] = np.load(note.with_suffix(".npy"))
    return out
