"""Settings of unlearning, tried on a classes benchmark's tuning half: `python -m experiments.ablations.tuning digits
VARIANT ...`.

Every variant unlearns all classes, is scored at every second query of each set (the half that the tables "held for the
report" leave out), and becomes one row of assets/benchmarks/<bench>-tuning.json: its settings, agreement with the
oracle on those queries, and its CPU seconds beside those of retraining. Rows of other variants are kept. The
benchmark's trainings must be finished (`python -m experiments.digits --quick`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from experiments.ablations.members import register
from experiments.benchmark import classes_run as bench
from experiments.benchmark import result_tables
from experiments.benchmark.benches import BenchConfig, find
from experiments.benchmark.clock import Clock
from experiments.commands import keep_record
from experiments.train import stages
from guda_core.attribution import metrics
from guda_core.cli.terminal import listed
from guda_core.paths import ROOT
from guda_core.unlearning.config import UnconditionalConfig
from guda_core.unlearning.forget import FORGET_LOSSES

OLD_IDS = {"esd": "esd_fine_tuned"}  # of forget losses, in the names of published rows
SHOWN = ("top1", "mrr", "ndcg3_exponential", "spearman")


def parsed(text: str) -> tuple[str, UnconditionalConfig]:
    """ "shift,steps=40,lr=1e-3,bandwidth=0.3" -> the same text and the settings."""
    operator, *changes = listed("VARIANT", text)
    given = {k: None if v == "all" else json.loads(v) for k, v in (c.split("=") for c in changes)}
    loop = {k: given.pop(k) for k in ("steps", "batch", "lr", "warmup", "seed", "ema") if k in given}
    register()
    kind = FORGET_LOSSES.find(OLD_IDS.get(operator, operator))
    base = kind.settings(operator=OLD_IDS.get(operator, operator), **given)
    return text, dataclasses.replace(base, loop=dataclasses.replace(base.loop, **loop))


def some(sets: list[str], most: int) -> list[int]:
    """Places of at most `most` queries of each set, all from the tuning half."""
    half, seen, out = result_tables.tuning_half(sets), dict.fromkeys(sets, 0), []
    for i, name in enumerate(sets):
        if half[i] and seen[name] < most:
            seen[name] += 1
            out.append(i)
    return out


def measure(config: BenchConfig, variant: str, own: UnconditionalConfig, most: int, draws: int) -> dict[str, Any]:
    """One row: {variant, config, cpu_s, logo_cpu_s, times_cheaper, <query set>: {metric: mean}}."""
    scoring = dataclasses.replace(config.scores, draws=draws)
    name = f"{config.name}-tuning-{most}"
    config = dataclasses.replace(config, name=name, unlearning={variant: own}, second_seed=None, scores=scoring)
    model = bench.full_model(config)
    clock = Clock(bench.cache(config, model) / "costs.json")
    shutil.rmtree(bench.cache(config, model) / variant, ignore_errors=True)
    for _ in bench.unlearn_all(model, config, clock):
        pass
    every, sets = bench.queries(model, config)
    places = some(sets, most)
    of = [every[i] for i in places]
    for _ in bench.collect(model, of, config, clock):
        pass
    scores = bench.arrays(model, of, config)
    shutil.rmtree(bench.cache(config, model) / variant)
    logo = [j for j in bench.queue(config) if j.exclude is not None]
    retrained = sum(stages.record_of(j.name)["cpu_seconds"] for j in logo)
    cpu = clock.cpu(f"unlearn/{variant}/")
    row: dict[str, Any] = {"variant": variant, "config": dataclasses.asdict(own), "cpu_s": cpu, "logo_cpu_s": retrained}
    row |= {"draws": draws}
    row["times_cheaper"] = retrained / cpu
    at = [sets[i] for i in places]
    for name in dict.fromkeys(at):
        mine = [i for i, s in enumerate(at) if s == name]
        mean = {
            m: float(metrics.METRICS[m](scores[variant][mine], scores[result_tables.ORACLE][mine]).mean())
            for m in SHOWN
        }
        row[name] = {"n": len(mine), **mean}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench")
    parser.add_argument("variants", nargs="+", help="for example shift,steps=40,lr=1e-3,batch=16,bandwidth=0.3")
    parser.add_argument("--most", type=int, default=100, help="queries of each set")
    parser.add_argument("--draws", type=int, default=2, help="in each stratum of timesteps")
    parser.add_argument("--folder", type=Path, default=ROOT / "assets" / "benchmarks")
    args = parser.parse_args()
    path = args.folder / f"{args.bench}-tuning.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    for variant, own in map(parsed, args.variants):
        row = measure(find(args.bench), variant, own, args.most, args.draws)
        rows = [r for r in rows if r["variant"] != variant] + [row]
        command = f"python -m experiments.ablations.tuning {args.bench} VARIANT ..."
        keep_record(path, {"command": command, "rows": rows})
        shown = {k: {m: round(v, 3) for m, v in s.items()} for k, s in row.items() if isinstance(s, dict) and "n" in s}
        print(variant, f"{row['times_cheaper']:.0f}x cheaper", shown, flush=True)


if __name__ == "__main__":
    main()
