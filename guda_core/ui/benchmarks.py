"""The screen with measured figures: read from assets/benchmarks, never invented; what is not there is said to be so."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from guda_core import paths
from guda_core.answers import plots
from guda_core.answers.markup import Html, code, folded, heading, note, safe, table, text
from guda_core.answers.sentences import called
from guda_core.paths import BENCHMARKS, SHIPPED_RUN
from guda_core.records import MethodInfo
from guda_core.reports.agreement_rows import is_ceiling, labelled, training_seconds
from guda_core.service import Service, main_method
from guda_core.stored_figures import FRESH
from guda_core.ui.blocks import block

MOST = 8_000_000  # bytes of one file
INTRO = "A score is worth as much as it agrees with the oracle: a model trained again without the group."
ROWS = (
    "1 means that a method always names the same first group as the oracle. The ceiling is the oracle against itself, "
    "trained from another seed: what one retraining tells about another (ceiling-again: from the same seed, earlier, "
    "on other machines), with the error of its few draws. Only what many retrainings have in common tells more. "
    "guda: the paper's score. guda + offset: as in the app; das + offset and others: the same constant, given to them. "
    "offset alone: that constant. label: who was asked for, or who drew the picture. "
    "guda-weighted: unlearned towards a style that is "
    "drawn by likeness of words. guda-removed: unlearned towards no style words. guda-esd: another forget loss. "
    "guda-whole: the whole network is fine-tuned, not an adapter. guda-draft: drafts, edited in seconds (UCE), "
    "in place of unlearned adapters. guda-retrack, on the digits: GUDA for a model "
    "without prompts. trak, dtrak, das: by gradients. instance: the picture itself is unlearned. clip-mean, clip-max, "
    "clip-prototype: likeness to a group's pictures (their mean likeness, the nearest picture, the mean of the "
    "pictures). clip-csls: the nearest picture, where those near to everything count less. classifier: likeness by a "
    "classifier's features. combined: GUDA and DAS together. random: scores drawn "
    "at random. In brackets: the number of groups, where a row is compared on fewer than all."
)
TABLES = {  # file -> (title, command)
    FRESH: ("Agreement with retraining: styles, fresh pictures", "python -m experiments.styles --fresh"),
    "styles.json": ("Agreement with retraining: styles", "python -m experiments.styles"),
    "digits.json": ("Agreement with retraining: handwritten digits", "python -m experiments.digits"),
}
MEASURES = {"top1": "Same first group", "mrr": "MRR", "ndcg3_exponential": "NDCG@3", "spearman": "Rank correlation"}
SETS = {
    "generated": "Generated pictures, one style's words",
    "generated-blend": "Generated pictures, two styles' words mixed",
    "real": "Real pictures that were held out, without a caption",
    "held_out": "Real pictures that were not trained on",
}
FIRST_SET, MIXED = "generated", "generated-blend"
DRAWN = "Pictures that the model drew"  # the first set, where there is no mixed one beside it
OFFSET = " + offset"  # ends the name of a row whose scores hold the offset
YARDSTICKS = {"random": "drawing lots", "label": "naming who was asked for"}
CEILING, CEILING_NAME = "ceiling-again", "The oracle, again"
ABLATIONS = "; ablations"
ABOUT_ABLATIONS = (
    "Ablations are not methods of their own. They use the same values as the oracle (logo) and GUDA (guda), but weight "
    "them in another way, or use fewer of them. All of GUDA's are without the offset."
)
CEILINGS = (
    "The ceiling was measured on some of the groups. It is easier to be right among few groups than among all. So "
    "compare the ceiling with these figures only."
)
NOMINAL = 0.95  # of the intervals
UNKNOWN = "Not measured yet."
NOT_MEASURED = (
    "Not measured for this model: nobody has trained it again without a group of its pictures. So how well its scores "
    "agree with retraining is not known."
)
NOT_COMPARED = (
    "This model was trained again without each group: the method {oracle} asks those models. How well the other "
    "methods agree with it was not measured yet. This makes the table, in a checkout of the repository; NAME is the "
    "model that was fine-tuned:"
)
OWN = "logo/logo.json", "python -m experiments.logo --model NAME --set {group_set}"  # file of the run, command
HALF = "Half of the queries are compared here: the weight of the offset is fitted to the other half."
SPEED = {"app_start_s": "The app answers after", "generate_25_steps_s": "Generate a picture, 25 steps"}
TRAINED = {
    "guda": "Unlearn one group",
    "logo": "Train the UNet once: what the oracle needs for each group",
}
SANITY = {
    "generated_with_prompt": "Generated pictures, with their caption: the style that was asked for",
    "real_held_out_empty_prompt": "Real pictures of held-out objects, without a caption: who drew it",
}


def read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of figures, None when there is none or it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def draw(service: Service, folder: Path = BENCHMARKS) -> None:
    """Draw the screen inside the current tab: one sentence and the methods of the app first, the rest folded. Only
    figures of this very model and group set are shown."""
    scope, foreign = _scope(*_of_run("scope.json", service)), "Does the warning about foreign pictures work?"
    methods = service.methods()
    if not is_measured(service):
        block(text(INTRO) + _own(service, methods) + folded(foreign, scope))
        return
    found = {name: read(folder / name) for name in TABLES}
    block(text(INTRO) + _first(found[FRESH] or found["styles.json"], methods))
    for name, (title, command) in TABLES.items():
        block(
            folded(
                f"{title}: every method and ablation",
                _all(found[name], title, _origin(f"assets/benchmarks/{name}", command)),
            )
        )
    block(folded("Are the intervals honest?", _intervals(read(folder / "intervals.json"))))
    block(folded("First checks on real input (not the oracle)", _sanity(read(folder / "sanity.json"))))
    block(folded(foreign, scope))
    block(folded("Waiting times and costs", _speed(read(folder / "speed.json"), read(folder / "costs.json"))))


def is_measured(service: Service) -> bool:
    """Whether the shipped figures are about this model and its group set."""
    made = service.provenance()
    return service.group_set.id == SHIPPED_RUN.name and any(isinstance(v, Mapping) for v in made.validation.values())


def has_figures(service: Service) -> bool:
    """Whether this screen says how often the methods agree with the oracle."""
    return is_measured(service) or bool((_of_run(OWN[0], service)[0] or {}).get("rows"))


def _of_run(name: str, service: Service) -> tuple[dict[str, Any] | None, str]:
    """The figures in a file of the model's run, None where they are of other weights or absent; where it lies."""
    made, sets = service.provenance(), service.group_set.id
    path = paths.run(made.model, sets).file(name)
    where = f"{'assets/' if path.is_relative_to(paths.ASSETS) else ''}runs/{made.model}/{sets}/{name}"
    found = read(path)
    return found if found is not None and found.get("base_sha256") == made.sha256 else None, where


def _own(service: Service, methods: Mapping[str, MethodInfo]) -> Html:
    """What `experiments.logo` measured of a model of one's own; else what is missing for that."""
    found, where = _of_run(OWN[0], service)
    command = OWN[1].format(group_set=service.group_set.id)
    if found is None or not found.get("rows"):
        oracle = next((info.name for info in methods.values() if info.oracle), None)
        return text(NOT_MEASURED) if oracle is None else text(NOT_COMPARED.format(oracle=oracle), code(command))
    found |= {k: found.get(f"{k}_report") or found.get(k) or [] for k in ("rows", "rows_ceiling")}
    said, of, known = [HALF] if found.get("rows_report") else [], found.get("groups", ()), service.group_set.groups
    if len(of) < len(known):
        said.append(
            f"Compared on these groups alone: {', '.join(called(service.group_set, g) for g in of if g in known)}."
        )
    title = "Agreement with retraining"
    return Html(
        _first(found, methods)
        + note(*said)
        + folded(f"{title}: every method and ablation", _all(found, title, _origin(where, command)))
    )


def _first(found: Mapping[str, Any] | None, methods: Mapping[str, MethodInfo]) -> Html:
    """The figures that are read first: how often each method of the app names the oracle's first group."""
    rows = [r for r in (found or {}).get("rows", []) if _is_row(r) and r["query_set"] == FIRST_SET]
    main = main_method(methods)
    by = {m: r for m in methods if (r := _row_of(m, rows, main=m == main)) is not None}
    if main not in by:
        return text(UNKNOWN)
    best = sorted(by, key=lambda m: (m != main, -by[m]["top1"]["value"]))
    shown = [(methods[m].name, by[m]) for m in best]
    shown += [(CEILING_NAME, r) for r in rows if r["method"] == CEILING]
    top = by[main]["top1"]
    said = (
        f"On {_pictures(by[main])} that the model drew, {methods[main].name} names the group that retraining names in "
        f"{_in_100(top['value'])} of 100 cases (95% interval {_in_100(top['low'])} to {_in_100(top['high'])})."
    )
    tops = [r["top1"] for _, r in shown]
    figure = plots.agreement([name for name, _ in shown], *([t[k] for t in tops] for k in ("value", "low", "high")))
    body = [(name, *[_cell(r.get(m)) for m in MEASURES]) for name, r in shown]
    figures = table(
        "Agreement with the oracle: the methods of this app", ("Method", *MEASURES.values()), body, numbers=".nnnn"
    )
    more = text(_beside(found or {}, main))
    if leads := _leads(found or {}, main):
        more += text(leads)
    whole = text(Html(f"<strong>{safe(said)}</strong>")) + more + figure
    return Html(whole + folded("The same figures as a table", figures))


def _beside(found: Mapping[str, Any], main: str) -> str:
    """What the first figure must be read beside: the other kinds of pictures, and those who only read the prompt."""
    rows = [r for r in found.get("rows", []) if _is_row(r)]
    by_set = {name: [r for r in rows if r["query_set"] == name] for name in SETS if name != FIRST_SET}
    others = {name: r for name, of in by_set.items() if (r := _row_of(main, of, main=True)) is not None}
    said = [f"{SETS[name]} ({_pictures(r)}): {_in_100(r['top1']['value'])} of 100." for name, r in others.items()]
    first = {r["method"]: r["top1"]["value"] for r in rows if r["query_set"] == FIRST_SET}
    beside = [f"{_in_100(first[m])} of 100 by {YARDSTICKS[m]}" for m in YARDSTICKS if m in first]
    if beside:
        said.append(f"For comparison, on the first: {', '.join(beside)}.")
    return " ".join(said)


def _leads(found: Mapping[str, Any], main: str) -> str:
    """How often the first group is the oracle's where it is clear of the second, and where it is not."""
    rows = {r["query_set"]: r for r in found.get("where_clear", []) if _of_both(r) and r["method"] == main + OFFSET}
    said = []
    for name in (n for n in SETS if n in rows):
        clear, not_clear = (_in_100(rows[name][k]["top1"]["value"]) for k in ("clear", "not"))
        said.append(
            f"{_title(name, rows)}: {clear} of 100 where the first group is clear of the second, {not_clear} where not."
        )
    return " ".join(said)


def _of_both(row: Any) -> bool:
    parts = [row.get(k) for k in ("clear", "not")] if isinstance(row, Mapping) else [None]
    known = all(isinstance(p, Mapping) and _is_measured(p.get("top1")) for p in parts)
    return known and {"method", "query_set"} <= set(row)


def _row_of(method: str, rows: Sequence[Mapping[str, Any]], *, main: bool) -> Mapping[str, Any] | None:
    """The row of a method as the app offers it: the main one with its offset; where there is no row of its own name,
    that of its first variant, named "<method>-..."."""
    named = {str(r["method"]): r for r in reversed(rows)}
    variant = next((str(r["method"]) for r in rows if str(r["method"]).startswith(f"{method}-")), "")
    wanted = [*([method + OFFSET] if main else []), method, variant]
    return next((named[n] for n in wanted if n in named), None)


def _pictures(row: Mapping[str, Any]) -> str:
    n = row.get("n", "?")
    return f"{n} picture{'s' * (n != 1)}"


def _in_100(value: float) -> str:
    return f"{100 * value:.0f}"


def _all(found: Mapping[str, Any] | None, title: str, origin: Html) -> Html:
    """Every row of a file of agreement with the oracle."""
    rows = [r for r in (found or {}).get("rows", []) if _is_row(r)]
    parts = [note(ROWS), origin, _sets(rows) if rows else text(UNKNOWN)]
    own = [r for r in (found or {}).get("rows_ceiling", []) if _is_row(r) and "/" not in str(r["method"])]
    if own:
        parts += [heading(f"{title}, the ceiling's groups alone"), text(CEILINGS), _sets(own)]
    return Html("".join(parts))


def _origin(name: str, command: str) -> Html:
    return note(Html(f"Written by {code(command)} into {code(name)}."))


def _is_row(row: Any) -> bool:
    return isinstance(row, Mapping) and {"method", "query_set", "top1"} <= set(row) and _is_measured(row["top1"])


def _is_measured(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(found.get(k), int | float) for k in ("value", "low", "high"))


def _strength(row: Mapping[str, Any]) -> tuple[bool, float]:
    """The ceilings first, then the best."""
    return (not is_ceiling(str(row["method"])), -row["top1"]["value"])


def _sets(rows: Sequence[Mapping[str, Any]]) -> Html:
    parts = []
    sets = dict.fromkeys(r["query_set"] for r in rows)
    for query_set in sets:
        of_set = labelled(sorted((r for r in rows if r["query_set"] == query_set), key=_strength))
        parts.append(_set(_title(query_set, sets), query_set, of_set))
    return Html("".join(parts))


def _title(query_set: str, sets: Collection[str]) -> str:
    """What pictures a set holds, beside these sets; "" for one that is not known."""
    return DRAWN if query_set == FIRST_SET and MIXED not in sets else SETS.get(query_set, "")


def _set(title: str, query_set: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    counted = ", ".join(dict.fromkeys(_pictures(r) for r in rows if "n" in r))
    parts = [text(Html(f"<strong>{title or code(query_set)}</strong> ({counted})."))]
    ablations = [r for r in rows if "/" in str(r["method"])]
    rows = [r for r in rows if r not in ablations]
    tops = [r["top1"] for r in rows]
    names = [str(r["method"]) for r in rows]
    parts.append(plots.agreement(names, *([t[k] for t in tops] for k in ("value", "low", "high"))))
    for part, caption, head in ((rows, "", "Method"), (ablations, ABLATIONS, "Values/scoring")):
        body = [(r["method"], *[_cell(r.get(m)) for m in MEASURES]) for r in part]
        if body:
            caption = f"Agreement with the oracle: {title or query_set}{caption}"
            parts.append(table(caption, (head, *MEASURES.values()), body, numbers=".nnnn"))
    if ablations:
        parts.append(note(ABOUT_ABLATIONS))
    return Html("".join(parts))


def _cell(found: Any) -> str:
    return f"{found['value']:z.2f} ({found['low']:z.2f} to {found['high']:z.2f})" if _is_measured(found) else "-"


def _intervals(found: dict[str, Any] | None) -> Html:
    title = _origin("assets/benchmarks/intervals.json", "python -m experiments.intervals")
    rows = [r for r in (found or {}).get("rows", []) if r.get("query_set") == "all" and _is_measured(r.get("held"))]
    if not rows:
        return Html(title + text(UNKNOWN))
    narrow = [r["effort"] for r in rows if r["held"]["high"] < NOMINAL]
    said = "A 95% interval should cover the value of a far larger computation in 95 of 100 cases."
    if narrow:
        said += f" These cover it less often, so they are too narrow ({', '.join(map(str, narrow))})."
    body = [(r["effort"], *[_cell(r.get(k)) for k in ("held", "told_apart", "told_apart_wrongly")]) for r in rows]
    head = ("Effort", "The interval covered it", "The first two were separable", "Of these, in the wrong order")
    return Html(title + text(said) + table("Are the intervals honest?", head, body, numbers=".nnn"))


def _sanity(found: dict[str, Any] | None) -> Html:
    title = _origin("assets/benchmarks/sanity.json", "python -m experiments.sanity")
    if found is None:
        return Html(title + text(UNKNOWN))
    rows = []
    for key, what in SANITY.items():
        part = found.get(key)
        part = part if isinstance(part, Mapping) else {}
        shown = [_counted(part.get(m)) for m in ("guda", "guda_when_separable", "clip")]
        rows.append((what, *shown))
    head = ("How often the first group is right", "GUDA", "GUDA, when the first two are separable", "CLIP similarity")
    return Html(title + table("First checks", head, rows))


def _counted(found: Any) -> str:
    if not _is_measured(found):
        return "not measured yet"
    n = found.get("n")
    return f"{found['value']:z.2f} ({found['low']:z.2f} to {found['high']:z.2f}){f', {n} pictures' if n else ''}"


def _scope(found: Mapping[str, Any] | None, name: str) -> Html:
    title = _origin(name, "python -m guda_core assets scope")
    kinds = (found or {}).get("kinds")
    if not isinstance(kinds, Mapping):
        return Html(title + text(UNKNOWN))
    rows = []
    for kind in kinds.values():
        rare = "seldom" if kind.get("belongs") else "often"
        rows.append((str(kind.get("about", "?")), rare, _counted(kind.get("out_of_scope"))))
    head = ("Pictures", "The warning should come", "It came for this fraction")
    body = table("How often pictures are called foreign to the model", head, rows)
    return Html(
        title + note("Kinds with a low fraction cannot be told apart well: for these the verdict says little.") + body
    )


def _speed(found: dict[str, Any] | None, costs: dict[str, Any] | None) -> Html:
    title = _origin("assets/benchmarks/speed.json", "python -m experiments.speed")
    if found is None:
        return Html(title + text(UNKNOWN))
    rows: list[tuple[str, str]] = []
    for key, what in SPEED.items():
        if isinstance(found.get(key), int | float):
            rows.append((what, f"{found[key]:g}"))
    for effort, v in (found.get("attribute") or {}).items():
        rows.append(
            (f"Attribute by all methods, {effort} (GUDA's first bars)", f"{v['seconds']:g} ({v['first_bars_s']:g})")
        )
    trained = training_seconds((costs or {}).get("costs", []))
    if trained:
        title = Html(title + _origin("assets/benchmarks/costs.json", "python -m experiments.costs"))
    rows += [(what, f"{trained[method]:.0f}") for method, what in TRAINED.items() if method in trained]
    threads = found.get("cpu_threads", "?")
    body = table("Waiting times in seconds", ("What", "Seconds"), rows, numbers=".n")
    return Html(title + note(f"Measured on {threads} CPU threads.") + body)
