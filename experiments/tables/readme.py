"""Puts measured figures into the README, the model card and docs/: `python -m experiments.tables.readme` (`--check`
compares).

Text between `<!-- figures:NAME -->` and `<!-- /figures -->` is replaced by what NAME renders from the committed files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any

from experiments.tables import (
    agreement,
    averaged_table,
    baselines_table,
    engine_table,
    fuzz_table,
    gpu_table,
    held_back_table,
    maps_table,
    planted_table,
    scale_table,
    seeds_table,
    sizes_table,
    strip_table,
    timesteps_table,
)
from experiments.tables.committed import Lines, source, table, value, written
from guda_core.attribution.scope_fit import ABOUT
from guda_core.paths import ROOT, SHIPPED_RUN
from guda_core.reports.agreement_rows import training_seconds
from guda_core.unlearning.health import KINDS

FILES = (
    "README.md",
    "assets/MODEL_CARD.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")),
)


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def pct(s: Mapping[str, Any]) -> str:
    return f"{100 * s['value']:.1f}% ({100 * s['low']:.1f} to {100 * s['high']:.1f}, n = {s['n']})"


UNKNOWN = "not measured yet"


def sanity() -> str:
    r = read("assets/benchmarks/sanity.json")
    rec = r["recognition"]
    lines: list[Any] = [("how often the first group is right (95% interval)", "GUDA", "CLIP similarity")]
    sure = []
    for key, row in (
        ("generated_with_prompt", "generated pictures, with their prompt: the prompted style"),
        ("real_held_out_empty_prompt", "real pictures of held-out objects, empty prompt: who drew it"),
    ):
        found = r.get(key)
        lines.append([row, *(pct(found[m]) if found else UNKNOWN for m in ("guda", "clip"))])
        if found:
            sure.append(f"{pct(found['guda_separable'])} ({key.split('_')[0]})")
    note = (
        f"GUDA called the first two groups separable on {' and on '.join(sure) or UNKNOWN}. "
        f"Of {rec['style_top1']['n']} generated pictures, a classifier trained only on real ones recognises the "
        f"prompted style in {pct(rec['style_top1'])} and has the prompted object among its first five in "
        f"{pct(rec['object_top5'])}; of real pictures of held-out objects it recognises the style in "
        f"{pct(rec['real_held_out_style_top1'])}. (Effort: {r['config']['effort']}. "
        f"`python -m experiments.sanity`, {r['date'][:10]}, `assets/benchmarks/sanity.json`.)"
    )
    return written([*lines, note])


def speed() -> str:
    r = read("assets/benchmarks/speed.json")
    q = r["attribute"]
    lora = max(r["adapter_parameters"].values()) / r["unet_parameters"]
    costs = read("assets/benchmarks/costs.json")
    trained = training_seconds(costs["costs"])
    note = (
        f"An adapter has {100 * lora:.1f}% of the UNet's parameters. What requirements.txt brings takes "
        f"{r['installed_mb'] / 1e3:.1f} GB on the disk (torch {r['versions']['torch']}). This run, in which one "
        f"process used all methods at every effort, took at most {r['peak_memory_mb'] / 1e3:.1f} GB of memory. "
        f"{source(r, 'speed')} The trainings: the median step, times the steps. {source(costs, 'costs')}"
    )
    lines = [
        (f"on {r['cpu_threads']} CPU threads", "seconds"),
        ("`python app.py` answers", r["app_start_s"]),
        ("generate, 25 steps", r["generate_25_steps_s"]),
        *[
            (f"attribute by all methods, {e} (GUDA's first bars)", f"{q[e]['seconds']} ({q[e]['first_bars_s']})")
            for e in q
        ],
        ("unlearn one group", f"{trained['guda']:.0f}"),
        ("train the UNet once", f"{trained['logo']:.0f}"),
    ]
    return written([*lines, note])


def training() -> str:
    stages = read("assets/training.json")
    lines: list[Any] = [("stage", "seconds", "steps", "batch", "data (SHA-256)")]
    for name, s in stages.items():
        loop = s["config"]["loop"]
        lines.append((name, f"{s['seconds']:.0f}", loop["steps"], loop["batch"], s["data_sha256"][:12]))
    return written([*lines, f"VAE on pictures of held-out objects: {stages['vae']['held_out_psnr_db']} dB PSNR."])


def health() -> str:
    lines = [["group", *KINDS.values()]]
    for path in sorted((SHIPPED_RUN / "adapters").glob("*/health.json")):
        h = json.loads(path.read_text(encoding="utf-8"))
        lines.append([path.parent.name, *(f"{h[k]['mean']:.1f} ± {h[k]['se']:.1f}" for k in KINDS)])
    return written(lines)


@table("scope")
def scope(r: dict[str, Any]) -> Lines:
    away = r["left_out"]
    yield "pictures", "sources", "called out of scope", "AUROC", "called out of scope, kind not fitted on", "AUROC"
    for kind, v in r["kinds"].items():
        if "auroc" not in v:
            yield f"{ABOUT[kind]} (belong)", v["sources"], f"{pct(v['out_of_scope'])} | | |"
            continue
        seen = (pct(v["out_of_scope"]), value(v["auroc"])) if v["fitted"] else ("never fitted on", "")
        yield [kind, v["sources"], *seen, pct(away[kind]["out_of_scope"]), value(away[kind]["auroc"])]


@table("memory")
def memory(r: dict[str, Any]) -> Lines:
    yield "model", "pictures of a pass", "with checkpointing, GiB", "without, GiB"
    names = {"sd15": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL"}
    for layout, found in r["layouts"].items():
        peaks = {(row["pictures"], row["checkpointing"]): row["peak_gib"] for row in found["rows"]}
        for n in sorted({n for n, _ in peaks}, reverse=True):
            what = f"{names[layout]}, {found['resolution']} px"
            yield what, n, f"{peaks[n, True]:.1f}", f"{peaks[n, False]:.1f}"
    yield f"By torch's fake tensors, in {r['dtype']}; the CUDA context and its libraries' workspaces come on top."


@table("scope")
def scope_more(r: dict[str, Any]) -> Lines:
    yield "whole pictures, own area", "called out of scope"
    yield from ((name, pct(v)) for name, v in r["aspects"].items())
    yield from ["", ("strangers' emoji, each team left out of the fit", "called out of scope", "AUROC")]
    yield from ((team, pct(v["out_of_scope"]), value(v["auroc"])) for team, v in r["teams"].items())
    yield f"Kinds left out of the fit: mean AUROC {r['left_out_mean_auroc']:z.2f} over {len(r['left_out'])} kinds."


@table("scope", "sources")
def scope_sources(sources: list[dict[str, Any]]) -> Lines:
    yield "kind", "package", "licence", "used"
    for s in sources:
        used = "fitted on" if s["fit"] else "tried"
        yield s["kind"], f"{s['spec']} ({s['registry']})", s["licence"], used


RENDER = {
    "memory": memory,
    "scope": scope,
    "scope_more": scope_more,
    "scope_sources": scope_sources,
    "sanity": sanity,
    "speed": speed,
    "training": training,
    "health": health,
    **agreement.RENDER,
    **engine_table.RENDER,
    **maps_table.RENDER,
    **fuzz_table.RENDER,
    **gpu_table.RENDER,
    **scale_table.RENDER,
    **seeds_table.RENDER,
    **sizes_table.RENDER,
    **baselines_table.RENDER,
    **strip_table.RENDER,
    **held_back_table.RENDER,
    **timesteps_table.RENDER,
    **averaged_table.RENDER,
    **planted_table.RENDER,
}


def filled(text: str) -> str:
    """The text with every figures block rendered anew."""

    def render(m: re.Match[str]) -> str:
        return f"<!-- figures:{m[1]} -->\n{RENDER[m[1]]()}\n<!-- /figures -->"

    return re.sub(r"<!-- figures:(\w+) -->.*?<!-- /figures -->", render, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name in FILES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if check and new != old:
            raise SystemExit(f"{name} is out of date; run `python -m experiments.tables.readme`.")
        if not check:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
