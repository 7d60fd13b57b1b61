"""`python -m experiments.gpu_check`: speed, memory and number types on a GPU, in one script of a few minutes.

Full-size layouts with random weights, made on the spot (`experiments.layouts`): nothing is read but the embedded model,
and nothing is downloaded. Each part's figures are written as soon as they are there, so that a deadline loses only what
was not reached. Timings are of this one run and card; compare them with each other, not with other machines.

    bare       forward passes a second of the UNet alone, by type and batch
    scoring    quick and full attribution with 16 LoRAs, their share of the bare rate, and switching a LoRA
    types      scores in float16 and bfloat16 beside float32, in standard errors
    unlearning a step's seconds and peak memory, with and without checkpointing, beside a plain LoRA training step;
               largest |B| and loss beside the float32 run
    sdxl       bare and unlearning of the XL layout
    embedded   the embedded model: ranks and scores as on the CPU
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from experiments.commands import program
from experiments.gpu_parts import Setup, fresh, peak_gib, unlearning_figures, wait
from experiments.gpu_record import Record, table
from experiments.layouts import group_set
from guda_core.attribution.guda import Guda
from guda_core.attribution.method import Budget
from guda_core.cli.terminal import listed, say, show
from guda_core.data.groups import load_group_set
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import find_card, load_model
from guda_core.errors import GudaError, OptionError
from guda_core.paths import BENCHMARKS, cache_dir, run
from guda_core.records import Query
from guda_core.service import EFFORTS
from guda_core.unlearning import adapters, lora

FILE = "gpu.json"
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
GROUPS = 16
SIZE = 0.02  # of the change of weights, as a share of them; the embedded model's adapters have 0.015 to 0.021


def rate(call: Callable[[], Any], pictures: int, setup: Setup) -> float:
    """Pictures a second of a call, after one to warm up."""
    call()
    wait(setup.device)
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < setup.seconds:
        call()
        done += pictures
        wait(setup.device)
    return done / (time.perf_counter() - began)


@torch.no_grad()
def bare_rate(model: BaseModel, batch: int, setup: Setup) -> dict[str, Any]:
    """Forward passes a second of the network, without anything around it."""
    fresh(setup.device)
    x = torch.randn(batch, *model.latent_shape, device=model.device)
    t, condition = torch.full((batch,), 500, device=model.device), model.embed(["a cat"]).expand(batch)
    try:
        found = rate(lambda: model.predict(x, t, condition), batch, setup)
    except torch.OutOfMemoryError:
        return {"passes_s": None, "peak_gib": None}
    return {"passes_s": round(found, 2), "peak_gib": peak_gib(setup.device)}


def bare(setup: Setup, layout: str = "sd15") -> dict[str, Any]:
    """By type and batch."""
    out: dict[str, Any] = {}
    for name, dtype in HALF.items():
        model = setup.model(layout, dtype)
        out[name] = {str(b): bare_rate(model, b, setup) for b in setup.batches}
        del model
    return out


def save_random(model: BaseModel, folder: Path, groups: int) -> None:
    """A random LoRA for each of so many groups, as large against the weights as those of the embedded model are."""
    spec = adapters.LoraSpec(rank=8, alpha=8, targets=model.lora_targets)
    for i in range(groups):
        meta = {"group": f"g{i}", "base_sha256": model.sha256, "group_set": "random"}
        with lora.attached(model.network, spec, seed=i) as params, torch.no_grad():
            g = torch.Generator().manual_seed(i)
            for p in params[1::2]:  # B, after its A
                p.copy_(torch.randn(p.shape, generator=g))
            size = lora.relative_size(model.network)
            for p in params[1::2]:
                p.mul_(SIZE / size)
            adapters.save(model.network, folder / f"g{i}", spec=spec, meta=meta)


def query_of(model: BaseModel, seed: int = 0) -> Query:
    """A random latent as a picture."""
    g = torch.Generator().manual_seed(seed)
    return Query(np.zeros(1), torch.randn(1, *model.latent_shape, generator=g), "a cat", f"random {seed}")


def budget_of(effort: str, setup: Setup, batch: int) -> Budget:
    """As the product scores; tiny: fewer draws."""
    e = EFFORTS[effort]
    if setup.tiny:
        return Budget(draws=2, per_pass=1, strata=4, batch=batch)
    return Budget(draws=e.draws, per_pass=e.per_pass, batch=batch)


def scoring(setup: Setup, folder: Path, bare_at: dict[str, Any]) -> dict[str, Any]:
    """Whole attributions with many LoRAs, in float16."""
    model = setup.model("sd15", torch.float16)
    save_random(model, folder, setup.groups)
    guda, best = Guda(model, group_set(setup.groups), folder), _best(bare_at)
    if guda.unavailable:
        raise GudaError(f"A random adapter is refused: {next(iter(guda.unavailable.values()))}")
    out: dict[str, Any] = {"groups": setup.groups, "batch": best[0], "switch_ms": switch_ms(guda, setup)}
    for effort in ("quick", "full"):
        budget = budget_of(effort, setup, best[0])
        fresh(setup.device)
        began = time.perf_counter()
        for _ in guda.attribute(query_of(model), budget):
            pass
        wait(setup.device)
        seconds, passes = time.perf_counter() - began, guda.cost(budget).forward
        out[effort] = {
            "seconds": round(seconds, 2), "passes": passes, "passes_s": round(passes / seconds, 2),
            "share_of_bare": round(passes / seconds / best[1], 3), "peak_gib": peak_gib(setup.device),
        }  # fmt: skip
    return out


def _best(bare_at: dict[str, Any]) -> tuple[int, float]:
    """(batch, passes a second) of the fastest bare rate in float16."""
    rates = {int(b): r["passes_s"] for b, r in bare_at["float16"].items() if r["passes_s"]}
    batch = max(rates, key=lambda b: rates[b])
    return batch, rates[batch]


def switch_ms(guda: Guda, setup: Setup) -> float:
    """Milliseconds of switching a model without a group on and off again."""
    gid = next(iter(guda.adapters))

    def switched() -> None:
        with guda.without(gid):
            pass

    return round(1000 / rate(switched, 1, setup), 1)


def types(setup: Setup, folder: Path) -> dict[str, Any]:
    """The same picture's scores in three types: (half - float32) / standard error of the float32 score."""
    gs, few = group_set(2), Budget(draws=2, per_pass=2, strata=4 if setup.tiny else 24)
    found: dict[str, Any] = {}
    for name, dtype in {"float32": torch.float32, **HALF}.items():
        model = setup.model("sd15", dtype)
        if name == "float32":
            save_random(model, folder, 2)
        strata = likelihood.make_strata(model.schedule, few.strata)
        guda = Guda(model, gs, folder)
        *_, last = guda.attribute(query_of(model), few)
        assert last.kl is not None
        found[name] = {
            g: likelihood.elbo_drop(full=last.kl.full, without=w, strata=strata) for g, w in last.kl.without.items()
        }
        del model, guda
        fresh(setup.device)
    full = found["float32"]
    out: dict[str, Any] = {"float32": {g: {"nats": e.value, "se": e.se} for g, e in full.items()}}
    for name in HALF:
        off = {g: abs(found[name][g].value - e.value) / e.se for g, e in full.items()}
        out[name] = {"nats": {g: e.value for g, e in found[name].items()}, "largest_off_in_se": max(off.values())}
    return out


def embedded(setup: Setup) -> dict[str, Any]:
    """The shipped model and adapters on the device and on the CPU: ranks and scores."""
    card, gs = find_card("emoji"), load_group_set("emoji")
    folder = run(card.id, gs.id).adapters
    few = Budget(draws=2, per_pass=2, strata=4) if setup.tiny else Budget(draws=4, per_pass=4)
    scores, ranks = {}, {}
    for device in ("cpu", setup.device):
        model = load_model(card, device=device)
        guda = Guda(model, gs, folder)
        *_, last = guda.attribute(query_of(model), few)
        scores[device] = {g: s.score for g, s in last.groups.items()}
        ranks[device] = list(last.ranked())
        del model, guda
    cpu, other = scores["cpu"], scores[setup.device]
    return {
        "same_ranks": ranks["cpu"] == ranks[setup.device],
        "largest_difference_nats": max(abs(cpu[g] - other[g]) for g in cpu),
        "tolerance_nats": 0.05 * max(abs(v) for v in cpu.values()),
        "ranks": ranks[setup.device],
    }


def _scoring(setup: Setup, figures: dict[str, Any], found: dict[str, Any]) -> None:
    before = found["bare"] if found.get("bare", {}).get("float16") else bare(setup)
    figures |= scoring(setup, cache_dir() / "gpu_check" / "scoring", before)


def _bare_xl(setup: Setup, figures: dict[str, Any], found: dict[str, Any]) -> None:
    figures |= bare(replace(setup, batches=(1,) if setup.tiny else (4, 8)), "sdxl")


PARTS: dict[str, Callable[[Setup, dict[str, Any], dict[str, Any]], None]] = {
    "bare": lambda setup, figures, _: figures.update(bare(setup)),
    "unlearning": lambda setup, figures, _: unlearning_figures(setup, "sd15", figures),
    "embedded": lambda setup, figures, _: figures.update(embedded(setup)),
    "types": lambda setup, figures, _: figures.update(types(setup, cache_dir() / "gpu_check" / "types")),
    "scoring": _scoring,
    "sdxl_bare": _bare_xl,
    "sdxl_unlearning": lambda setup, figures, _: unlearning_figures(setup, "sdxl", figures),
}
NAMES = tuple(PARTS)


def gpu_check(
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = BENCHMARKS / FILE,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny models, on any device: to try the command.")] = False,
    parts: Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(NAMES)}. Default: all.")] = None,
    deadline: Annotated[float, typer.Option(help="Begin no part after so many seconds.")] = 400.0,
) -> None:
    """Measure speed, memory and number types on a GPU, with full-size random models."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        raise GudaError("There is no GPU here. `--tiny` tries the command with small models on the CPU.")
    wanted = listed("--parts", parts) or list(PARTS)
    if unknown := [p for p in wanted if p not in PARTS]:
        raise OptionError(f"There is no part '{unknown[0]}'. Known: {', '.join(PARTS)}.")
    setup = Setup(device, tiny, (1, 2) if tiny else (8, 16, 32, 64), 2 if tiny else GROUPS, 0.0 if tiny else 2.0)
    record = Record(out, device=device, tiny=tiny, deadline_s=deadline)
    for name in wanted:
        with record.part(name) as figures:
            if figures is not None:
                PARTS[name](setup, figures, record.found["parts"])
    show(table(record.found))
    say(f"Written: {out}")


main = program(gpu_check)

if __name__ == "__main__":
    main()
