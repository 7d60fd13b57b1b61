"""The scope's rule of the embedded model, and how well it tells: `python -m experiments.scope`.

Fitted on pictures of the model, of its teams, and on the foreign kinds and sources in `foreign/fit`
(`experiments.foreign`); tried on others: other objects, other packages, kinds that no fit saw. Writes the rule into
assets/runs/emoji/emoji/scope.json and the figures into assets/benchmarks/scope.json:

kinds      each kind, from sources that the rule was not made on: called out of scope, AUROC, and `fitted`: whether
           other sources of that kind were
left_out   the same for a rule that was fitted without any picture of that kind
aspects    whole photographs, illustrations, paintings, pages and screenshots by their aspect ratio
teams      strangers' emoji, each team left out of the fit in turn
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments import foreign
from experiments.benchmark import queries
from experiments.commands import program, write_record
from guda_core.attribution import scope_fit, scope_material, scope_signals
from guda_core.attribution.scope import Rule, fit_of
from guda_core.attribution.scope_fit import Measured, ScopeConfig, Signals, rounded
from guda_core.attribution.scope_material import Material, split
from guda_core.attribution.scope_pictures import Kind, made_up, read_folder
from guda_core.cli.loading import service_of
from guda_core.cli.terminal import follow
from guda_core.local import LocalService
from guda_core.paths import BENCHMARKS, SHIPPED_RUN

COMMAND = "python -m experiments.scope"
PARTS = ("inside", "outside", "calibration", "tried")
WHOLE = ("photographs", "paintings", "illustrations", "printed pages", "screenshots", "maps", "plots")
EMOJI = "emoji by strangers"


def drawn() -> Kind:
    """The pictures that the model drew for the benchmark, of one style and of two, each with its seed."""
    found = json.loads((BENCHMARKS / "queries.json").read_text(encoding="utf-8"))["items"]
    names = [f"{i['set']} {i['object']}" for i in found if i["set"].startswith("generated")]
    return Kind(np.stack(list(queries.pictures(BENCHMARKS))), tuple(names))


def material(service: LocalService, c: ScopeConfig) -> Material:
    """All pictures, fetched and drawn."""
    size, gs = service.model.card.resolution, service.group_set
    own, held = split(drawn(), 3), split(scope_material.real(gs, "held_out", 10_000, size=size, seed=c.seed), 3)
    trained = split(scope_material.real(gs, "train", 10_000, size=size, seed=c.seed), 3)
    shown, tried = (read_folder(foreign.root() / part, size, fit_of(gs)) for part in ("fit", "tried"))
    for name, kind in made_up(c.pictures, size, c.seed, fit_of(gs)).items():
        shown[name] = kind if name not in shown else scope_material.joined(shown[name], kind)
    return Material(
        {"own": own[0], "train": trained[0], "held-out": held[0]},
        shown,
        {"own": own[1], "train": trained[1], "held-out": held[1]},
        {"own": own[2], "train": trained[2], "held-out": held[2], **tried},
    )


def measured(service: LocalService, parts: Material, c: ScopeConfig, into: Signals) -> Iterator[tuple[str, float]]:
    """Fill in the signals of everything; what was measured before is read from the cache."""
    model, seen_by = service.model, service.encoder().sha256
    path = foreign.root() / f"signals-{model.sha256[:12]}-{seen_by[:12]}-{str(model.dtype).removeprefix('torch.')}.npz"
    known: dict[str, np.ndarray] = {}
    if path.is_file():
        with np.load(path) as z:
            known = dict(zip(z["names"].tolist(), np.split(z["values"], np.cumsum(z["lengths"])[:-1]), strict=True))
    for part in PARTS:
        into[part] = {}
        for kind, pictures in getattr(parts, part).items():
            before = len(known)
            most = c.measured if kind == EMOJI else c.most(part)  # the teams are tried one by one
            for step in scope_fit.measure(service.model, service.encoder(), pictures, most, c.seed, known):
                if isinstance(step, Measured):
                    into[part][kind] = step
                else:
                    yield f"{part}: {kind}", step
            if len(known) > before:
                lengths, values = [len(v) for v in known.values()], np.concatenate(list(known.values()))
                np.savez(path, names=list(known), lengths=lengths, values=values)


def aspects(rule: Rule, parts: Material, found: Signals) -> dict[str, Any]:
    """How often pictures that people upload whole are called out of scope, by the aspect ratio of their own area."""
    hits: dict[str, list[bool]] = {}
    at: dict[str, list[str]] = {}
    for k in WHOLE:
        m, pixels = found["tried"][k], parts.tried[k].pixels
        for i, score in zip(np.flatnonzero(m.full), scope_fit.scores(rule, m), strict=True):
            top, bottom, left, right = scope_signals.own_area(pixels[i])
            ratio = (right - left) / (bottom - top)
            name = "square (within 1.25:1)"
            if not 0.8 <= ratio <= 1.25:
                long = max(ratio, 1 / ratio)
                name = f"{'wide' if ratio > 1 else 'tall'}, {'up to 2:1' if long <= 2 else 'over 2:1'}"
            hits.setdefault(name, []).append(bool(score >= rule.threshold))
            at.setdefault(name, []).append(f"{k} {m.sources[i]}")
    return {k: scope_fit.share(v, [sorted(set(at[k])).index(s) for s in at[k]]) for k, v in sorted(hits.items())}


def teams(found: Signals, c: ScopeConfig) -> dict[str, Any]:
    """Strangers' emoji: each team tried by a rule that saw the other teams alone."""
    shown, tried = found["outside"][EMOJI], found["tried"][EMOJI]
    out = {}
    for team in sorted({*shown.sources, *tried.sources}):
        fits = [_of(m, team, same=False) for m in (shown, tried)]
        both = Measured(
            *(np.concatenate([getattr(m, k) for m in fits]) for k in ("look", "model")),
            fits[0].sources + fits[1].sources,
        )
        rule = scope_fit.make_rule({**found, "outside": {**found["outside"], EMOJI: both}}, c)
        of = _of(tried if team in tried.sources else shown, team, same=True)
        inside = {k: found["tried"][k] for k in scope_fit.ABOUT}
        out[team] = scope_fit.figures_of(rule, {**inside, EMOJI: of}, c)[EMOJI]
    return out


def _of(m: Measured, source: str, *, same: bool) -> Measured:
    at = np.flatnonzero((np.array(m.sources) == source) == same)
    return Measured(m.look[at], m.model[at], tuple(m.sources[i] for i in at))


def left_out(found: Signals, c: ScopeConfig) -> dict[str, Any]:
    """Each foreign kind tried by a rule that saw no picture of that kind; kinds that no rule saw as they are."""
    out = {}
    for kind in found["tried"]:
        if kind in scope_fit.ABOUT:
            continue
        rule = scope_fit.make_rule(found, c, without=kind)
        tried = {k: m for k, m in found["tried"].items() if k in scope_fit.ABOUT or k == kind}
        out[kind] = scope_fit.figures_of(rule, tried, c)[kind]
    return out


def run(
    strength: Annotated[
        float, typer.Option(help="Of the penalty on the weights (its inverse).")
    ] = ScopeConfig.strength,
    folder: Annotated[Path | None, typer.Option(help="Where the figures go. Default: assets/benchmarks.")] = None,
) -> None:
    """Fit the rule of the embedded model and measure it."""
    if not foreign.are_made():
        foreign.run()
    service, c = service_of(None, None), ScopeConfig(strength=strength)
    parts, found = material(service, c), Signals()
    follow(measured(service, parts, c, found))
    rule = scope_fit.make_rule(found, c)
    kinds = scope_fit.figures_of(rule, found["tried"], c)
    base = {"base_sha256": service.model.sha256, "group_set": service.group_set.id, "command": COMMAND}
    scope_fit.write(SHIPPED_RUN, scope_fit.record(rule, kinds, c, **base))
    write(folder or BENCHMARKS, service, c, parts, found, rule, kinds)


def write(
    folder: Path,
    service: LocalService,
    c: ScopeConfig,
    parts: Material,
    found: Signals,
    rule: Rule,
    kinds: Mapping[str, Any],
) -> None:
    """The file of figures."""
    about = {k: {"fitted": k in found["outside"] or k in found["inside"], **v} for k, v in kinds.items()}
    away = left_out(found, c)
    values = [v["auroc"]["value"] for v in away.values()]
    made = {
        "command": COMMAND,
        "config": asdict(c),
        "model_sha256": service.model.sha256,
        "alarms": c.alarms,
        "kinds": about,
        "left_out": away,
        "left_out_mean_auroc": float(np.mean(values)),
        "teams": teams(found, c),
        "aspects": aspects(rule, parts, found),
        "fitted_on": {
            k: {"pictures": len(m.sources), "sources": len(set(m.sources))} for k, m in found["outside"].items()
        },
        "sources": [asdict(s) | {"files": list(s.files)} for s in foreign.SOURCES],
    }
    write_record(folder / "scope.json", rounded(made))


main = program(run)
if __name__ == "__main__":
    main()
