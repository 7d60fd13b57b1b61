"""What holds GUDA's variation back: the noise of its draws, the oracle's draws, the oracle's seed, or the method?

`python -m experiments.held_back` answers from the values that `python -m experiments.styles --fresh` left in the cache,
and from the committed scores. No model is run.

Each group's correlation r with the oracle is lowered by whatever is random on either side. A side that is measured
twice, alike and independently, tells how much that is (Spearman 1904; Brown 1910):

    rho_1 = correlation of the two halves,     rho = 2 rho_1 / (1 + rho_1) of both together     its reliability
    r without noise = r / sqrt(rho of the method  rho of the oracle)

The halves are single draws of the same strata, of the method and of the oracle alike; a group whose halves correlate
too little to divide by makes the figure unknown.

For the oracle's seed, the second retraining is held against the first, on the first draw's queries. GUDA's values and
the live oracle's (the first seed) are nearly free of sampling noise. Of the second seed only values are kept, four
draws in the old strata (`strata.OLD_RULE`), and these are noisy. So correlations with it are freed of that noise, by
the reliability of those values over the three ways to halve four draws:

    ceiling             r(second, first) / sqrt(rho of the second)       what a retraining tells of another one
    a perfect method    sqrt(ceiling)                                    what the mean of many seeds tells of one
    GUDA, many seeds    r(GUDA, second) / sqrt(rho of the second) / sqrt(ceiling)

The last two take the chances of the two retrainings as independent and equally large. Each is made for each group, then
averaged. Intervals are over pictures, by the jackknife: everything, the reliability too, is made anew without each one.
That the correction is of the right size is checked on trainings of the first seed that were made before, with values of
the same kind: freed of noise they should agree with the live oracle nearly perfectly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from experiments.benchmark import styles_run
from experiments.benchmark import variation as v
from experiments.benchmark.models import ADAPTER_DRAWS, BASE
from experiments.benchmark.result_tables import BEFORE, GUDA, LIVE, ORACLE, SECOND, sets_of, tuning_half
from experiments.benchmark.scores import noted
from experiments.benchmark.strata import OLD_RULE, make_strata
from experiments.benchmark.variation import correlations
from experiments.commands import TableOption, program, write_record
from experiments.logo import oracle_values
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import DataError
from guda_core.paths import BENCHMARKS, cache_dir
from guda_core.versions import today

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
    """(M, Q, G): the scores by each draw alone. values: group -> (Q, K, M); base: (Q, K, M) at the same draws;
    sizes: (K,) of the strata."""
    drops = np.stack([x.astype(float) - base for x in values.values()], axis=-1)  # (Q, K, M, G)
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


def reliability(draws: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """(B, G): of the mean of all draws, from the mean correlation over all ways to halve them (Spearman-Brown).

    draws: (M, Q, G), M even, scores by each draw alone; pictures: (B, Q), how often each counts."""
    m, at = len(draws), np.ones(draws.shape[1:], bool)
    halves = [h for h in combinations(range(m), m // 2) if 0 in h]
    found = []
    for one in halves:
        other = [j for j in range(m) if j not in one]
        found.append(correlations(draws[list(one)].mean(axis=0), draws[other].mean(axis=0), pictures, at))
    return together(np.mean(found, axis=0))


class Seeds:
    """Statistics of one query set, as `variation` takes them, of a method and two retrainings.

    method, first: (Q, G) scores that are nearly free of noise; draws: (M, Q, G), the second retraining's by each draw.
    """

    def __init__(self, method: np.ndarray, first: np.ndarray, draws: np.ndarray) -> None:
        self.method, self.first, self.draws = method, first, draws

    def _free(self, scores: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        """(B, G): correlations with the second retraining, freed of the noise of its draws."""
        r = correlations(scores, self.draws.mean(axis=0), pictures, np.ones(scores.shape, bool))
        return r / np.sqrt(np.maximum(reliability(self.draws, pictures), LEAST))

    def reliability(self, pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return _mean(reliability(self.draws, pictures), groups)

    def ceiling(self, pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return _mean(self._free(self.first, pictures), groups)

    def second(self, pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return _mean(self._free(self.method, pictures), groups)

    def perfect(self, pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return _mean(np.sqrt(self._free(self.first, pictures).clip(0, 1)), groups)

    def many(self, pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        shared = np.maximum(self._free(self.first, pictures), LEAST)
        return _mean(self._free(self.method, pictures) / np.sqrt(shared), groups)


def _mean(of_groups: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(B,): the mean over the groups. of_groups, groups: (B, G), the figures and how often each group counts."""
    return (of_groups * groups).sum(axis=1) / groups.sum(axis=1)


def of_seeds(method: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The figures of one query set, each with its 95% interval over pictures. method, first: (Q, G); second: (M, Q, G),
    by each draw alone."""
    of, mean_second = Seeds(method, first, second), second.mean(axis=0)
    by_first, as_drawn = v.variation(method, first), v.variation(mean_second, first)
    figures: dict[str, v.Statistic] = {
        "variation": by_first,
        "second_seed": as_drawn,
        "less_second_seed": v.less(by_first, as_drawn),
        "reliability": of.reliability,
        "ceiling": of.ceiling,
        "less_ceiling": v.less(by_first, of.ceiling),
        "variation_second_drawn": v.variation(method, mean_second),
        "variation_second": of.second,
        "less_variation_second": v.less(by_first, of.second),
        "against_many_seeds": of.many,
        "a_perfect_method": of.perfect,
    }
    shape = method.shape
    return {"queries": shape[0], "groups": shape[1], **{k: v.over_pictures(f, *shape) for k, f in figures.items()}}


def of_check(first: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """What the correction makes of the same trainings scored before. first: (Q, G); before: (M, Q, G)."""
    of, shape = Seeds(first, first, before), first.shape
    drawn = v.variation(before.mean(axis=0), first)
    return {"again": v.over_pictures(drawn, *shape), "again_without_noise": v.over_pictures(of.ceiling, *shape)}


class Kept(NamedTuple):
    """values: name -> (Q, K, M). dtype: the number type that all were made in."""

    values: dict[str, np.ndarray]
    dtype: str


def kept(folder: Path, names: Sequence[str], queries: int, sha256: Mapping[str, str] | None = None) -> Kept:
    """The values of these names in a cache folder. sha256: name -> of the weights that they must be of.

    Raises:
        DataError: some are not there, not whole, of other weights, or of another number type than the others.
    """
    out, types = {}, set()
    for name in names:
        path = folder / f"{name}.npy"
        note = noted(path)
        fits = note and (sha256 is None or note["sha256"] == sha256.get(name))
        if not fits or len(found := np.load(path)) != queries or np.isnan(found).any():
            raise DataError(f"There are no kept values of '{name}'. Run `python -m experiments.styles --fresh` first.")
        out[name] = found
        types.add(note["dtype"].removeprefix("torch."))
    if len(types) > 1:
        raise DataError(
            f"The values in {folder} are of several number types ({', '.join(sorted(types))}). Make all in one: delete "
            "the folder, set GUDA_DTYPE and run `python -m experiments.styles --fresh`."
        )
    return Kept(out, *types)


def fresh_figures(groups: Sequence[str], schedule: Schedule, base_sha256: str) -> dict[str, Any]:
    """By query set, from the values of the fresh queries that are kept in the cache."""
    where = BENCHMARKS / "fresh"
    items = json.loads((where / "queries.json").read_text(encoding="utf-8"))["items"]
    folder = cache_dir() / "benchmarks" / f"styles-{base_sha256[:12]}-fresh"
    found = kept(folder, [BASE, *(f"{r}--{g}" for r in (GUDA, LIVE) for g in groups)], len(items)).values
    strata = likelihood.make_strata(schedule, found[BASE].shape[1])
    n = ADAPTER_DRAWS
    method, oracle = (
        draws_of({g: found[f"{role}--{g}"] for g in groups}, found[BASE][:, :, part], strata.sizes)
        for role, part in ((GUDA, slice(n)), (LIVE, slice(n, 2 * n)))
    )
    sets = [i["set"] for i in items]
    return {name: of_draws(method[:, mine], oracle[:, mine]) for name, mine in sets_of(sets, None)}


def drawn(groups: Sequence[str], schedule: Schedule, seed: int, full: str, scores: np.ndarray) -> np.ndarray:
    """(M, Q, G): the scores of kept trainings of a seed by each draw alone. full: the name of the full model; scores:
    (Q, G), what the committed arrays hold of them.

    Raises:
        DataError: the kept values are not those that the scores were made from.
    """
    names = (full, *(f"unet-without-{g}-s{seed}" for g in groups))
    found = {name: oracle_values.read_values(BENCHMARKS, name) for name in names}
    base = found.pop(full)
    draws = draws_of(found, base, make_strata(schedule, base.shape[1], OLD_RULE).sizes)
    if not np.allclose(draws.mean(axis=0), scores, rtol=1e-3, atol=0.5):
        raise DataError(f"The kept values of seed {seed} do not fit the scores. Run `python -m experiments.styles`.")
    return draws


def seed_figures(groups: Sequence[str], schedule: Schedule) -> dict[str, dict[str, Any]]:
    """By query set, from the committed scores and kept values of the first draw: over all queries ("seeds"), and over
    the half that GUDA was not tuned on ("seeds_report")."""
    compared = styles_run.compared(BENCHMARKS)
    method, first = (compared.scores[row].astype(float) for row in (GUDA, ORACLE))
    second = drawn(groups, schedule, 4, "unet-full-s4", compared.scores[SECOND])
    before = drawn(groups, schedule, 3, "full", compared.scores[BEFORE])
    out: dict[str, dict[str, Any]] = {"seeds": {}, "seeds_report": {}}
    for key, at in (("seeds", None), ("seeds_report", ~tuning_half(compared.sets))):
        for name, mine in sets_of(compared.sets, at):
            found = of_seeds(method[mine], first[mine], second[:, mine])
            out[key][name] = {**found, **of_check(first[mine], before[:, mine])}
    return out


def _fresh(groups: Sequence[str], model: BaseModel) -> dict[str, Any]:
    return {"fresh": fresh_figures(groups, model.schedule, model.sha256), "fresh_date": today()}


def _before(record: Path, base_sha256: str) -> dict[str, Any]:
    """The part of a record that is of kept values, as it was found before.

    Raises:
        DataError: there is none, or it is of another model.
    """
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["base_sha256"] != base_sha256:
            raise ValueError("it is of another model")
        return {"fresh": found["fresh"], "fresh_date": found.get("fresh_date", found["date"])}
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{record} holds no figures of the fresh queries ({e}). Run without --table.") from e


def held_back(
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = BENCHMARKS / "held-back.json",
    table_only: TableOption = False,
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
        **(_before(out, model.sha256) if table_only else _fresh(groups, model)),
        **seed_figures(groups, model.schedule),
    }
    write_record(out, record)


main = program(held_back)

if __name__ == "__main__":
    main()
