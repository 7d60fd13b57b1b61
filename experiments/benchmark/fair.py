"""Rows that make the comparison fair: what a constant gives, what the label gives, and the offset for all or none.

    guda              the paper's score, the drop of the ELBO alone
    guda + offset     as the app shows it: the offset, a constant for each group, is added
    das + offset ...  other methods with the same constant, times the weight that fits the oracle best (least squares on
                      the tuning half of all query sets; the centred scores and the constant are the two regressors)
    offset alone      the constant: one ranking for all pictures
    label             who was asked for: each group's descriptors in the prompt, counted, for the groups that it was
                      made of (not for others that share words with them, so this is more than the words tell); 1 for
                      a real picture's artist, and for a group that has a phrase in place of descriptors

In the arrays that are committed, GUDA's row with the offset is "guda" and the paper's is "guda/drop".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.offset_tables import weight_of
from experiments.benchmark.result_tables import DROP, GUDA, ORACLE, WITH_OFFSET, tuning_half
from guda_core.errors import DataError

ALSO = ("das", "dtrak", "clip-mean")  # which get the offset too
OFFSET_ALONE, LABEL = "offset alone", "label"
FEATURING = "featuring "  # what the descriptors follow in a prompt of the queries


def words(items: Sequence[Mapping[str, Any]], descriptors: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(Q, G) int: how many of each group's descriptors a prompt holds. descriptors: group id -> its own, in the
    columns' order."""
    said = [item["prompt"].partition(FEATURING)[2].split(", ") for item in items]
    return np.array([[sum(d in own for d in row) for own in descriptors.values()] for row in said])


def asked_for(items: Sequence[Mapping[str, Any]], descriptors: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(Q, G) bool: the groups that a prompt was made of, or the artist."""
    return np.array([[group in item["groups"] for group in descriptors] for item in items])


def label(items: Sequence[Mapping[str, Any]], descriptors: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(Q, G) float32: who was asked for. descriptors: as of `words`."""
    told = np.array([[bool(item["prompt"] and own) for own in descriptors.values()] for item in items])
    return np.where(asked_for(items, descriptors), np.where(told, words(items, descriptors), 1), 0).astype(np.float32)


def others(items: Sequence[Mapping[str, Any]], descriptors: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(Q, G) bool: the pictures that are not a group's own: it was not asked for, and none of its words are in the
    prompt. descriptors: as of `words`."""
    return ~asked_for(items, descriptors) & (words(items, descriptors) == 0)


def weights_of(
    scores: Mapping[str, np.ndarray], offset: np.ndarray, oracle: np.ndarray, tuning: np.ndarray
) -> dict[str, float]:
    """The weight of the offset for each method, fitted to the queries of the tuning half; methods for which the fit
    gives none are not in it. scores: method -> (Q, G); offset: (G,); oracle: (Q, G); tuning: (Q,) bool."""
    out = {}
    for name, s in scores.items():
        try:
            out[name] = weight_of(s[tuning], offset, oracle[tuning])
        except DataError:
            continue
    return out


def with_fair_rows(
    scores: Mapping[str, np.ndarray],
    items: Sequence[Mapping[str, Any]],
    descriptors: Mapping[str, Sequence[str]],
    weights: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """The rows as the tables show them. items: {set, groups, prompt} of each query. weights: of the offset in other
    methods' rows, fitted elsewhere; None: fitted on the tuning half of these queries.

    Scores that hold no offset are left without its rows, and so is a method for which the fit gives no weight.
    """
    out = {n: s for n, s in scores.items() if n not in (GUDA, DROP)}
    out[LABEL] = label(items, descriptors)
    if DROP not in scores or GUDA not in scores:
        return out | ({GUDA: scores[GUDA]} if GUDA in scores else {})
    offset = (scores[GUDA].astype(float) - scores[DROP]).mean(axis=0)  # (G,), the same for all queries
    alone = np.tile(offset.astype(np.float32), (len(items), 1))
    out |= {GUDA: scores[DROP], WITH_OFFSET: scores[GUDA], OFFSET_ALONE: alone}
    tuning = tuning_half([i["set"] for i in items])
    for name in ALSO:
        if name in scores and np.isfinite(offset).all() and not np.isnan(scores[name]).any():
            fitted = weights_of({name: scores[name]}, offset, scores[ORACLE], tuning) if weights is None else weights
            if name in fitted:
                out[f"{name} + offset"] = (scores[name] + fitted[name] * offset).astype(np.float32)
    return out
