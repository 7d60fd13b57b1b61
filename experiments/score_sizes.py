"""How large are the scores? `python -m experiments.score_sizes` answers from committed scores and values.

No model is run.

sizes    the mean score of the oracle and of GUDA's drop by query set, and how often the oracle's is positive
nothing  the same for a retraining from another seed that left nothing out: what of a retraining's score is not the
         group's. Of the first draw alone, whose values are kept.
artists  the mean drop of each group's adapter on the real queries of each artist (both draws), and the standard
         error of its mean over the other artists' pictures, once over pictures and once over artists; and the same of
         the oracle's models (`oracle_artists`)
ways     what if the offset were another mean than that over all pictures of the others? Made of the first draw's
         artists, its weight fitted on the tuning half, held against the oracle at the fresh queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.benchmark import styles_run
from experiments.benchmark.offset_tables import weight_of
from experiments.benchmark.result_tables import GUDA, ORACLE, sets_of, tuning_half
from experiments.benchmark.strata import OLD_RULE, make_strata
from experiments.commands import program, write_record
from experiments.logo import oracle_values
from guda_core.attribution import metrics
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import DataError
from guda_core.paths import BENCHMARKS

COMMAND = "python -m experiments.score_sizes"
DRAWS = {"first": BENCHMARKS, "fresh": BENCHMARKS / "fresh"}
FULL, AGAIN = "full", "unet-full-s4"  # the model and its retraining from another seed with every group


def sizes(compared: styles_run.Compared) -> list[dict[str, Any]]:
    """By query set: {query_set, n, oracle, guda, times, oracle_positive}, means over pictures and groups in nats."""
    out = []
    for name, mine in sets_of(compared.sets, None):
        oracle, guda = (compared.scores[row][mine].astype(float) for row in (ORACLE, GUDA))
        row: dict[str, Any] = {"query_set": name, "n": int(mine.sum()), "oracle": oracle.mean(), "guda": guda.mean()}
        out.append(row | {"times": oracle.mean() / guda.mean(), "oracle_positive": float((oracle > 0).mean())})
    return out


def nothing(schedule: Schedule, sets: Sequence[str]) -> list[dict[str, Any]]:
    """By query set of the first draw: {query_set, n, drop, positive} of the retraining that left nothing out."""
    full, again = (oracle_values.read_values(BENCHMARKS, name).astype(float) for name in (FULL, AGAIN))
    drops = (again - full).mean(axis=2) @ make_strata(schedule, full.shape[1], OLD_RULE).sizes.astype(float)
    return [
        {"query_set": s, "n": int(at.sum()), "drop": drops[at].mean(), "positive": float((drops[at] > 0).mean())}
        for s, at in sets_of(sets, None)
    ]


def by_artist(drops: np.ndarray, artist: np.ndarray, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Of each group {group, n, mean, positive, se_pictures, se_artists, of: artist -> mean drop on its pictures};
    positive: the share of the others' pictures with a drop above 0.

    drops: (Q, G) nats; artist: (Q,) index. Mean and errors are over the pictures of the others: errors over pictures
    take all as independent, errors over artists take each artist's mean as one draw, so far as their numbers are equal.
    """
    out = []
    for k, group in enumerate(ids):
        means = {a: drops[artist == i, k].mean() for i, a in enumerate(ids)}
        others, own = drops[artist != k, k], [m for a, m in means.items() if a != group]
        row = {"group": group, "n": len(others), "mean": others.mean(), "positive": (others > 0).mean(), "of": means}
        row["se_pictures"] = others.std(ddof=1) / np.sqrt(len(others))
        out.append(row | {"se_artists": np.std(own, ddof=1) / np.sqrt(len(own))})
    return out


def artists(of: Sequence[styles_run.Compared], row: str = GUDA) -> list[dict[str, Any]]:
    """`by_artist`, from the real queries of several draws."""
    ids = list(dict.fromkeys(g for made in of[0].made_of for g in made))
    real = [[i for i, s in enumerate(c.sets) if s == "real"] for c in of]
    drops = np.concatenate([c.scores[row][at].astype(float) for c, at in zip(of, real, strict=True)])
    artist = np.array([ids.index(c.made_of[i][0]) for c, at in zip(of, real, strict=True) for i in at])
    return by_artist(drops, artist, ids)


def trimmed(means: Sequence[float]) -> float:
    """The mean without the largest and the smallest."""
    return float(np.mean(sorted(means)[1:-1]))


WAYS = {"mean": np.mean, "trimmed mean": trimmed, "median": np.median}  # over the other artists' means


def ways(first: styles_run.Compared, fresh: styles_run.Compared) -> list[dict[str, Any]]:
    """{way, query_set, weight, top1, spearman} at the fresh queries."""
    tuning, out = tuning_half(first.sets), []
    means = [[m for a, m in row["of"].items() if a != row["group"]] for row in artists([first])]
    for name, way in WAYS.items():
        offset = np.array([way(m) for m in means])
        weight = weight_of(first.scores[GUDA][tuning], offset, first.scores[ORACLE][tuning])
        for query_set, mine in sets_of(fresh.sets, None):
            own, truth = fresh.scores[GUDA][mine] + weight * offset, fresh.scores[ORACLE][mine]
            found = {m: float(metrics.METRICS[m](own, truth).mean()) for m in ("top1", "spearman")}
            out.append({"way": name, "query_set": query_set, "weight": weight, **found})
    return out


def of_scores(
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = BENCHMARKS / "sizes.json",
) -> None:
    """Say how large the scores are, and on whose pictures."""
    from guda_core.diffusion.cards import chosen_card, load_model

    model = load_model(chosen_card(None))
    compared = {name: styles_run.compared(folder) for name, folder in DRAWS.items()}
    if any(c.base_sha256 != model.sha256 for c in compared.values()):
        raise DataError("The committed scores are of another model. Run `python -m experiments.styles`.")
    record = {
        "command": COMMAND,
        "base_sha256": model.sha256,
        "sizes": {name: sizes(c) for name, c in compared.items()},
        "nothing": nothing(model.schedule, compared["first"].sets),
        "artists": artists(list(compared.values())),
        "oracle_artists": artists(list(compared.values()), ORACLE),
        "ways": ways(compared["first"], compared["fresh"]),
    }
    write_record(out, json.loads(json.dumps(record, default=float)))


main = program(of_scores)

if __name__ == "__main__":
    main()
