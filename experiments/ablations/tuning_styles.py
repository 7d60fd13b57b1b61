"""Settings of unlearning, tried on the styles' tuning half: `python -m experiments.ablations.tuning_styles VARIANT
...`.

A variant is a forget loss and changes of its settings, e.g. guda_c,steps=160,lr=5e-4,rank=12
(`members.config_of`). Every variant unlearns all groups and is scored at every second query of each set, with
--draws draws in a stratum. These are the queries that the tables "held for the report" leave out, at most --most of
them. The variant becomes one row of assets/benchmarks/styles-tuning.json: its settings, its agreement with the
committed scores of the oracle, how far its scores lie from those, and its CPU seconds beside those of retraining. Rows
of other variants stay, and so do rows scored against an earlier oracle. Adapters and values are stored below
GUDA_CACHE, so a stopped run goes on. Processes started side by side with the same variants share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from experiments.ablations.members import config_of
from experiments.ablations.tuning import SHOWN, some
from experiments.benchmark import (
    models,
    queries,
    result_tables,
    scores,
    styles_run,
    variation,
)
from experiments.commands import keep_record
from experiments.logo import oracle_values
from guda_core import paths
from guda_core.attribution import metrics
from guda_core.attribution.guda import Guda
from guda_core.cli.terminal import listed
from guda_core.local import LocalService, load_service
from guda_core.paths import ROOT
from guda_core.unlearning import adapters
from guda_core.unlearning.config import Settings
from guda_core.unlearning.forget import read_config
from guda_core.unlearning.run import Forgetting
from guda_core.work_queue import claimed, shared_out

FILE = "styles-tuning.json"
WEIGHTS = (0.5, 1.0, 1.5, 2.0, 3.0)  # of the offset of GUDA's scores (`guda_core.attribution.guda`)


def parsed(text: str) -> Settings:
    """ "guda_c,steps=160,lr=5e-4" -> settings; "whole" among the changes: the whole denoiser.
    Without a selection it is the paper's, "weighted"."""
    operator, *changes = listed("VARIANT", text)
    given: dict[str, Any] = {"selection": "weighted"}
    for change in changes:
        name, _, value = change.partition("=")
        given[name] = True if not value else value if name in ("selection", "empty_target") else json.loads(value)
    return config_of(operator, **given)


def adapters_of(service: LocalService, own: Settings) -> paths.Folder:
    """Where adapters with these settings are or will be: the committed ones, where the settings are theirs."""
    committed, groups = service.method(Guda).folder, service.group_set.groups
    if all(read_config(adapters.read_meta(committed / g)["config"]) == own for g in groups):
        return committed
    return paths.cache_dir() / "tuning" / f"styles-{own.sha256()[:12]}"


def unlearned(service: LocalService, own: Settings, folder: Path) -> float:
    """Unlearn what is not there yet; gives the CPU seconds of all groups (where they were not noted: at most)."""
    job = Forgetting(service.group_set, folder=folder)
    pending = job.pending([], config=own)
    job.check_others(pending)
    for g in shared_out(pending, lambda g: folder / g):
        for p in job.unlearn(g, own) if job.pending([g], config=own) else ():
            if p.step % 20 == 0:
                print(f"{folder.name} {g} {p.step}/{p.steps} loss {p.loss:.4f}", flush=True)
    timings = [json.loads((folder / g / "timing.json").read_text()) for g in service.group_set.groups]
    return sum(t.get("cpu_seconds", t["seconds"] * t["torch_threads"]) for t in timings)


def values_of(
    service: LocalService, of: list[Any], folder: Path, config: scores.ScoreConfig
) -> dict[str | None, np.ndarray]:
    """group -> (Q, K, M) of the folder's adapters at the queries; None -> of the full model."""
    of_group: dict[str | None, Any] = {None: (service.model.sha256, nullcontext)}
    of_group |= {g: models.without_group(service.model, folder / g, g) for g in service.group_set.groups}

    def path(g: str | None) -> Path:
        name = f"{of_group[g][0][:16]}-{len(of)}-{config.draws}-{config.rule}"
        return paths.cache_dir() / "tuning" / "values" / f"{name}.npy"

    for g in shared_out(of_group, path):
        sha256, within = of_group[g]
        for _ in scores.values(service.model, of, within, config, path(g), sha256):
            pass
    return {g: np.load(path(g)) for g in of_group}


def retraining_seconds(folder: Path) -> float:
    """Mean CPU seconds of the oracle's trainings that are kept."""
    paths = sorted((folder / oracle_values.FOLDER).glob("unet-*.json"))  # the full model's training is no retraining
    return float(np.mean([json.loads(p.read_text(encoding="utf-8"))["training"]["cpu_seconds"] for p in paths]))


def compared(own: np.ndarray, truth: np.ndarray, sets: list[str]) -> dict[str, Any]:
    """Agreement by query set of (Q, G) scores with the oracle's; and of each group's scores over the queries."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(sets):
        mine = [i for i, s in enumerate(sets) if s == name]
        a, b = own[mine], truth[mine]
        mean = {m: float(metrics.METRICS[m](a, b).mean()) for m in SHOWN}
        along = [float(np.asarray(stats.spearmanr(a[:, k], b[:, k]))[0]) for k in range(a.shape[1])]
        slope = [float(np.polyfit(b[:, k], a[:, k], 1)[0]) for k in range(a.shape[1])]
        mean["variation"] = variation.of_all(variation.variation(a, b), *a.shape)
        out[name] = {"n": len(mine), **mean, "spearman_over_queries": along, "slope": slope}
    return out


def offset_part(own: np.ndarray, sets: list[str], groups: list[str], ids: list[str]) -> np.ndarray:
    """(G,) nats: the mean of each group's scores over the real pictures of other groups, which are held out.

    own: (Q, G) drops. groups: whose each query is (of a blend: the first)."""
    real = np.array([s == "real" for s in sets])
    return np.array([own[real & np.array([g != k for g in groups]), i].mean() for i, k in enumerate(ids)])


def with_offset(
    own: np.ndarray, truth: np.ndarray, sets: list[str], offset: np.ndarray
) -> dict[str, dict[str, dict[str, float]]]:
    """weight -> query set -> agreement, with so much of the offset added to the drops."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for weight in WEIGHTS:
        found = compared(own + weight * offset, truth, sets)
        out[f"{weight:g}"] = {s: {m: v[m] for m in SHOWN} for s, v in found.items()}
    return out


def measure(
    service: LocalService, made: queries.Queries, folder: Path, variant: str, most: int, draws: int
) -> dict[str, Any]:
    """One row: {variant, oracle, config, scored, groups, cpu_s, logo_cpu_s, times_cheaper, <query set>: {...}}.

    oracle: "live", or "kept" while the live oracle lacks groups. The sets' figures are of the drops alone; with_offset
    has them with the offset, which is made here from the real queries of the half itself, in nats: "offset"."""
    own, config = parsed(variant), scores.ScoreConfig(draws=draws)
    sets = [i.set for i in made.items]
    places = some(sets, most)
    of = [made.queries[i] for i in places]
    where = adapters_of(service, own)
    seconds = unlearned(service, own, where)
    with np.load(folder / styles_run.ARRAYS, allow_pickle=False) as z:
        committed = result_tables.with_the_live_oracle({k: z[k] for k in z.files})
    truth = committed[result_tables.ORACLE][places]
    has = [g for g, there in zip(service.group_set.groups, ~np.isnan(truth).any(axis=0), strict=True) if there]
    theirs = values_of(service, of, where, config)
    a = scores.score(theirs[None], {g: theirs[g] for g in has}, scores.Plan.of(service.model, of, config))
    row = {"variant": variant, "oracle": "live" if result_tables.BEFORE in committed else "kept"}
    row |= {"config": dataclasses.asdict(own), "scored": dataclasses.asdict(config), "groups": has}
    row |= {"cpu_s": seconds, "logo_cpu_s": retraining_seconds(folder) * len(service.group_set.groups)}
    row["times_cheaper"] = retraining_seconds(folder) * len(service.group_set.groups) / seconds
    truth, of_sets = truth[:, ~np.isnan(truth).any(axis=0)], [sets[i] for i in places]
    if own.operator.startswith("guda_c") and "real" in of_sets:
        offset = offset_part(a, of_sets, [made.items[i].groups[0] for i in places], has)
        row |= {"offset": offset.tolist(), "with_offset": with_offset(a, truth, of_sets, offset)}
    return row | compared(a, truth, of_sets)


def _tried(row: dict[str, Any]) -> tuple[str, str]:
    return row["variant"], row.get("oracle", "kept")


def written(path: Path, row: dict[str, Any]) -> None:
    """Put one row into the file; processes started side by side take turns."""
    with claimed(path, wait=True):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        rows = [r for r in rows if _tried(r) != _tried(row)] + [row]
        keep_record(path, {"command": "python -m experiments.ablations.tuning_styles VARIANT ...", "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="+", help="for example guda_c,steps=160,lr=5e-4")
    parser.add_argument("--most", type=int, default=100, help="queries of each set")
    parser.add_argument("--draws", type=int, default=1, help="in each stratum of timesteps")
    parser.add_argument("--folder", type=Path, default=ROOT / "assets" / "benchmarks")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    service = load_service(fall_back=False)
    made = queries.read(args.folder, service.group_set, service.model)
    for variant in args.variants:
        row = measure(service, made, args.folder, variant, args.most, args.draws)
        written(args.folder / FILE, row)
        shown = {
            k: {m: round(s[m], 3) for m in (*SHOWN, "variation")}
            for k, s in row.items()
            if isinstance(s, dict) and "n" in s
        }
        print(variant, f"{row['times_cheaper']:.0f}x cheaper", shown, flush=True)


if __name__ == "__main__":
    main()
