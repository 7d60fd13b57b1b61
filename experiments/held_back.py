"""What holds GUDA's variation back: the noise of its draws, the oracle's draws, the oracle's seed, or the method?

`python -m experiments.held_back` answers from the values that `python -m experiments.styles --fresh` left in the cache,
and from the committed scores. No model is run.

Each group's correlation r with the oracle is lowered by whatever is random on either side. A side that is measured
twice, alike and independently, tells how much that is (Spearman 1904; Brown 1910):

    rho_1 = correlation of the two halves,     rho = 2 rho_1 / (1 + rho_1) of both together     its reliability
    r without noise = r / sqrt(rho of the method  rho of the oracle)

The halves are single draws of the same strata, of the method and of the oracle alike; a group whose halves correlate
too little to divide by makes the figure unknown. For the oracle's seed the two halves are two retrainings, on the first
draw's queries and the groups that were retrained twice. There the correction takes away the retrainings' own chance and
the noise of their draws together: it estimates the correlation with the mean over many seeds. It starts from the
correlation with the second seed: GUDA's full model is of the first seed, and may share some of that seed's chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.benchmark import result_tables, styles_run
from experiments.benchmark.models import ADAPTER_DRAWS, BASE
from experiments.benchmark.result_tables import GUDA, LIVE, ORACLE, SECOND, sets_of
from experiments.benchmark.variation import correlations
from experiments.commands import program, write_record
from guda_core.diffusion import likelihood
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import DataError
from guda_core.paths import BENCHMARKS, cache_dir

COMMAND = "python -m experiments.held_back"
TARGETS = {"generated": 0.80, "generated-blend": 0.75, "real": 0.70}
LEAST = 0.05  # a reliability below it is too small to divide by


def each(scores: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """(G,): each group's correlation over pictures, of (Q, G) scores that are centred over the groups first."""
    return correlations(scores, oracle, np.ones((1, len(scores))), np.ones(scores.shape, bool))[0]


def together(half: np.ndarray) -> np.ndarray:
    """The reliability of the mean of two halves, from their correlation."""
    return 2 * half / (1 + half)


def without_noise(r: np.ndarray, *reliabilities: np.ndarray) -> float | None:
    """The mean over groups of r / sqrt(product of the reliabilities), each (G,); None where one is below `LEAST`."""
    product = np.prod(reliabilities, axis=0)
    if any((rho < LEAST).any() for rho in reliabilities):
        return None
    return float((r / np.sqrt(product)).mean())


def draws_of(values: Mapping[str, np.ndarray], base: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(2, Q, G): the scores by each of two draws alone. values: group -> (Q, K, 2); base: (Q, K, 2) at the same draws;
    sizes: (K,) of the strata."""
    drops = np.stack([v.astype(float) - base for v in values.values()], axis=-1)  # (Q, K, 2, G)
    return np.einsum("k,qkmg->mqg", sizes.astype(float), drops)


def of_draws(method: np.ndarray, oracle: np.ndarray) -> dict[str, Any]:
    """The figures of one query set. method, oracle: (2, Q, G), scores by each draw alone."""
    r = each(method.mean(axis=0), oracle.mean(axis=0))
    own, its = (together(each(*side)) for side in (method, oracle))
    half = np.mean([each(m, oracle.mean(axis=0)).mean() for m in method])
    return {
        "variation": float(r.mean()),
        "half_of_the_draws": float(half),
        "reliability": float(own.mean()),
        "reliability_oracle": float(its.mean()),
        "without_own_noise": without_noise(r, own),
        "without_oracle_noise": without_noise(r, its),
        "without_both": without_noise(r, own, its),
    }


def of_seeds(method: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The figures of one query set on the groups that have two retrainings. All (Q, G')."""
    r, other, seeds = each(method, first), each(method, second), each(second, first)
    both = each(method, (first + second) / 2)
    return {
        "groups": method.shape[1],
        "variation": float(r.mean()),
        "variation_second": float(other.mean()),
        "second_seed": float(seeds.mean()),
        "against_the_mean_of_two": float(both.mean()),
        "against_many_seeds": without_noise(other, seeds),
        "a_perfect_method": float(np.sqrt(seeds.clip(0, 1)).mean()),
    }


def kept(folder: Path, names: Sequence[str], queries: int) -> dict[str, np.ndarray]:
    """name -> its values (Q, K, M) in a cache folder.

    Raises:
        DataError: some are not there, or not whole.
    """
    out = {}
    for name in names:
        path = folder / f"{name}.npy"
        if not path.is_file() or len(found := np.load(path)) != queries or np.isnan(found).any():
            raise DataError(f"There are no kept values of '{name}'. Run `python -m experiments.styles --fresh` first.")
        out[name] = found
    return out


def fresh_figures(groups: Sequence[str], schedule: Schedule, base_sha256: str) -> dict[str, Any]:
    """By query set, from the values of the fresh queries that are kept in the cache."""
    where = BENCHMARKS / "fresh"
    items = json.loads((where / "queries.json").read_text(encoding="utf-8"))["items"]
    folder = cache_dir() / "benchmarks" / f"styles-{base_sha256[:12]}-fresh"
    found = kept(folder, [BASE, *(f"{r}--{g}" for r in (GUDA, LIVE) for g in groups)], len(items))
    strata = likelihood.make_strata(schedule, found[BASE].shape[1])
    n = ADAPTER_DRAWS
    method, oracle = (
        draws_of({g: found[f"{role}--{g}"] for g in groups}, found[BASE][:, :, part], strata.sizes)
        for role, part in ((GUDA, slice(n)), (LIVE, slice(n, 2 * n)))
    )
    sets = [i["set"] for i in items]
    return {name: of_draws(method[:, mine], oracle[:, mine]) for name, mine in sets_of(sets, None)}


def seed_figures() -> dict[str, Any]:
    """By query set, from the committed scores of the first draw."""
    compared = styles_run.compared(BENCHMARKS)
    on_its = result_tables.on_its_groups(compared.scores)
    return {
        name: of_seeds(*(on_its[row][mine].astype(float) for row in (GUDA, ORACLE, SECOND)))
        for name, mine in sets_of(compared.sets, None)
    }


def held_back(
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = BENCHMARKS / "held-back.json",
) -> None:
    """Say how much of the gap to the targets of variation is noise of draws, the oracle's seed, or the method."""
    from guda_core.data.groups import load_group_set
    from guda_core.diffusion.cards import chosen_card, load_model

    model = load_model(chosen_card(None))
    groups = list(load_group_set("emoji").groups)
    record = {
        "command": COMMAND,
        "base_sha256": model.sha256,
        "targets": TARGETS,
        "fresh": fresh_figures(groups, model.schedule, model.sha256),
        "seeds": seed_figures(),
    }
    write_record(out, record)


main = program(held_back)

if __name__ == "__main__":
    main()
