"""What `python -m experiments.engine` measures, part by part: here values, coverage and rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark import coverage
from experiments.benchmark.strata import OLD_RULE, make_strata
from experiments.engine import simulation, switches, timings
from experiments.engine.engine_bench import Bench, Parts
from guda_core import paths
from guda_core.attribution.counterfactual import Counterfactual
from guda_core.attribution.logo import Logo
from guda_core.diffusion import likelihood
from guda_core.diffusion.batches import fitting_batch
from guda_core.errors import DataError
from guda_core.records import Query
from guda_core.service import EFFORTS

VALUES, LOGO_VALUES, MADE_FROM = "engine-values.npz", "engine-values-logo.npz", "made_from"
PART = {VALUES: "values", LOGO_VALUES: "logo"}
DRAWS = 24  # of the sampled values, a stratum


def values(bench: Bench) -> Parts:
    """Every model's KL values at the sampled pictures, kept in `VALUES`, picture by picture; gone on with."""
    yield from _values(bench, VALUES, bench.sample().queries)


def logo(bench: Bench) -> Parts:
    """The same of the retrained models at every second of these pictures, in today's strata, kept in `LOGO_VALUES`."""
    yield from _values(bench, LOGO_VALUES, bench.sample().queries[::2])


def _method(bench: Bench, name: str) -> Counterfactual:
    """What the values of a file are of."""
    own, model = bench.methods[bench.fastest], bench.models[bench.fastest]
    return own if name == VALUES else Logo(model, own.group_set, paths.run(model.card.id, "emoji").oracle)


def _made_from(bench: Bench, name: str) -> dict[str, Any]:
    """What the values of a file depend on."""
    of = _method(bench, name)
    return {"base_sha256": of.model.sha256, "models": of.hashes, "draws": DRAWS, "dtype": bench.fastest}


def _read(bench: Bench, name: str, *, any_type: bool = False) -> dict[str, np.ndarray]:
    """Hash of a picture -> its values (1 + G, K, M), of those that were made with today's models, in today's type or
    any. Older files do not say what they are made from: the record beside them says it."""
    path, now = bench.folder / name, _made_from(bench, name)
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as z:
        kept = {k: z[k].astype(np.float64) for k in z if k != MADE_FROM}
        if MADE_FROM in z:
            told = json.loads(str(z[MADE_FROM]))
        else:
            settings, part = bench.before.get("settings", {}), bench.before.get("parts", {}).get(PART[name], {})
            told = {**now, "base_sha256": settings.get("base_sha256"), "dtype": part.get("dtype")}
            told |= {"models": settings.get("adapters")} if name == VALUES else {}
    return kept if told == now | ({"dtype": told["dtype"]} if any_type else {}) else {}


def _values(bench: Bench, name: str, queries: Sequence[Query]) -> Parts:
    method = _method(bench, name)
    model, kept, full, made = method.model, _read(bench, name), _read(bench, VALUES), _made_from(bench, name)
    strata, batch = likelihood.make_strata(model.schedule), fitting_batch(model)
    for i, q in enumerate(queries):
        if q.image_hash not in kept:
            times = likelihood.draw_times(q.image_hash, strata, DRAWS)
            inputs, condition = likelihood.noised(model, q.latent, times, range(DRAWS)), model.embed([q.prompt])
            own = full.get(q.image_hash)  # the full model's are the same for every method
            rows = [likelihood.kl_of(model, condition, inputs, batch) if own is None else own[0]]
            for g in bench.groups:
                with method.without(g):
                    rows.append(likelihood.kl_of(model, condition, inputs, batch))
            kept[q.image_hash] = np.stack(rows)
            arrays: dict[str, Any] = {k: v.astype(np.float32) for k, v in kept.items()}
            np.savez_compressed(bench.folder / name, **arrays, **{MADE_FROM: json.dumps(made)})
        yield (i + 1) / len(queries)
    yield {"pictures": len(kept), "draws": DRAWS, "strata": len(strata), "dtype": bench.fastest}


def sampled(bench: Bench, name: str = VALUES) -> tuple[list[int], np.ndarray]:
    """Places in the sample of the pictures whose values were made, and their values (N, 1 + G, K, M).

    Raises:
        DataError: there are none of today's models.
    """
    kept = _read(bench, name, any_type=True)
    if not kept:
        raise DataError(f"{bench.folder / name} holds no values of these models. Run the part '{PART[name]}' first.")
    made = [i for i, q in enumerate(bench.sample().queries) if q.image_hash in kept]
    return made, np.stack([kept[bench.sample().queries[i].image_hash] for i in made])


def coverages(bench: Bench) -> Parts:
    """How often intervals hold the value of all draws, with races, by effort; `full` needs more draws than there are,
    so its is of the simulation. Of GUDA, and of the retrained models where theirs are there."""
    strata = likelihood.make_strata(bench.models["float32"].schedule)
    out: dict[str, Any] = {}
    works = ((VALUES, "", bench.methods["float32"].offset), (LOGO_VALUES, "_logo", {}))
    works = [w for w in works if (bench.folder / w[0]).is_file()]
    for j, (file, ending, offset) in enumerate(works):
        made, found = sampled(bench, file)
        sets = [bench.sample().items[i].set for i in made]
        without = {g: found[:, 1 + i] for i, g in enumerate(bench.groups)}
        for i, name in enumerate(("quick", "standard")):
            effort = EFFORTS[name]
            rows = coverage.measure(found[:, 0], without, sets, strata, effort.draws, offset, effort.race)
            out |= {f"coverage_{name}{ending}": rows[-1]["held"]["value"], f"rows_{name}{ending}": rows}
            yield (j + (i + 1) / 2) / len(works)
        out[f"pictures{ending}"] = len(made)
    yield out


def rules(bench: Bench) -> Parts:
    """Every rule that was tried, at the 500 fixed queries. The noise: GUDA's and the retrained models' in today's
    strata (sampled pictures, moved to each query's score), and the retrained models' own in the old strata, which are
    harder."""
    schedule, groups = bench.models["float32"].schedule, bench.groups
    strata = likelihood.make_strata(schedule)
    with np.load(paths.BENCHMARKS / "styles-scores.npz", allow_pickle=False) as z:
        scores = z["guda"].astype(np.float64)
    rng = np.random.default_rng(1)
    of = simulation.moved(sampled(bench)[1], scores, strata.sizes, rng)
    old, cut = simulation.committed(paths.BENCHMARKS, groups), make_strata(schedule, len(strata), OLD_RULE)
    works = {"guda": (of, strata), "oracle": (old, cut)}
    if (bench.folder / LOGO_VALUES).is_file():
        truth = (old[:, 1:] - old[:, :1]).mean(axis=3) @ cut.sizes  # (Q, G), nats
        works["logo"] = (simulation.moved(sampled(bench, LOGO_VALUES)[1], truth, strata.sizes, rng), strata)
    out: dict[str, Any] = {}
    for i, (name, (queries, within)) in enumerate(works.items()):
        out[f"rules_{name}"] = {}
        for j, (rule, found) in enumerate(simulation.table(queries, groups, within)):
            out[f"rules_{name}"][rule] = found
            yield (i + (j + 1) / len(simulation.RULES)) / len(works)
    out["rules_many"] = dict(simulation.many(of[:: len(of) // 100], strata))
    full = out["rules_guda"]["full"]
    yield {**out, "same_first": full["same_first"], "coverage_full_simulated": full["held"]}


PARTS: Mapping[str, Callable[[Bench], Parts]] = {
    "values": values,
    "logo": logo,
    "coverage": coverages,
    "rules": rules,
    "speeds": timings.speeds,
    "sizes": timings.sizes,
    "switching": switches.switching,
    "types": timings.types,
    "start": switches.start,
}
