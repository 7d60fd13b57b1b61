"""The screen with the details of an answer: noise levels, narrowing, health, what the oracle lost, hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from guda_core.answers import plots, sentences
from guda_core.answers.markup import Html, code, heading, note, table, text
from guda_core.answers.verdict import is_out
from guda_core.attribution import contributions
from guda_core.records import VERDICTS, Attribution, GroupModels, Provenance
from guda_core.reports.page_tables import sha256_in
from guda_core.service import Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.blocks import LATEST, QUICK, block

Z = 1.96  # standard errors of a 95% interval
STEPS = (
    "The ELBO drop is a sum over noise levels. At small timesteps the model is asked about fine texture, at large ones "
    "about the rough layout. A negative bar means that the model does better there without the group."
)
OFFSET = (
    "The score is that drop plus the group's offset. The offset is the same for every picture: a correction learned "
    "from the group's drops on held-out pictures of the other groups."
)
STEPS_TITLE, NARROW_TITLE = "Which noise levels the score comes from", "How the interval narrowed"
CHOOSE = "Scores say little then. Choose a group to see where its score comes from all the same."
NARROW = "Each point uses all noise draws up to it. So the last point is the score on the first tab."
HASHES = (
    "SHA-256 of everything that answers are computed from here. Offsets are not among them: a report gives those as "
    "numbers. A report names what its own answer used."
)


def figures(service: Service, provenance: Provenance) -> Html:
    """What was measured of the models without a group, a table for each method that has such; or why it was not."""
    return Html("".join(_figures_of(m, service) for m in provenance.models.values()))


def _figures_of(models: GroupModels, service: Service) -> Html:
    rows = []
    for g, group in service.group_set.groups.items():
        found = models.figures.get(g, "This was not measured.")
        if g in models.unavailable:
            found = f"unavailable: {models.unavailable[g]}"
        if isinstance(found, str):
            rows.append((group.name, found, *[""] * len(models.columns)))
        else:
            rows.append((group.name, "ok", *[_figure(found.get(k)) for k in models.columns]))
    head = ("Group", models.label, *models.columns.values())
    body = table(models.title, head, rows, numbers=".." + "n" * len(models.columns), css="guda-health")
    return Html(heading(models.title) + note(models.note) + body)


def _figure(found: Any) -> str:
    """A stored figure: a whole number, one with three digits, or a mean in nats with its 95% interval."""
    if isinstance(found, int | float):
        return f"{found:.3g}" if isinstance(found, float) else str(found)
    if not isinstance(found, dict) or not isinstance(found.get("mean"), int | float):
        return "-"
    se = found.get("se")
    width = 2 * Z * se if isinstance(se, int | float) else None
    spread = "" if width is None else f" ± {sentences.number(width / 2, 'nats', width)}"
    return f"{sentences.number(found['mean'], 'nats', width)}{spread}"


def hashes(service: Service, provenance: Provenance, answer: Answer | None) -> Html:
    """SHA-256 of the picture and of everything that scores it."""
    rows: list[tuple[str, Html]] = []
    if answer is not None:
        q = answer.query
        rows.append(("Prepared pixels", code(q.image_hash)))
        rows.append(("Uploaded file", code(q.file_hash) if q.file_hash else Html("none: the model made the picture")))
    p = provenance
    rows += [
        (f"Model ({p.name})", code(p.sha256)),
        ("Encoder of likeness", code(p.clip_sha256) if p.clip_sha256 else Html("none")),
        ("Its feature bank of the training pictures", code(p.bank_sha256) if p.bank_sha256 else Html("none")),
    ]
    names = {g: group.name for g, group in service.group_set.groups.items()}
    for models in p.models.values():
        rows += [(f"{models.label}: {names[g]}", code(sha)) for g, sha in models.hashes.items()]
    shown = {str(sha) for _, sha in rows}
    for m, made_from in p.made_from.items():  # what is not among the above
        found = [
            (f"{p.methods[m].name}: {where.removesuffix('_sha256').replace('_', ' ')}", code(sha))
            for where, sha in sha256_in(made_from, but="parts")  # parts are methods themselves
        ]
        rows += [row for row in found if row[1] not in shown]
        shown |= {str(sha) for _, sha in found}
    body = table("Hashes", ("What", "SHA-256"), rows)
    made = f"Computed in {p.dtype} on {p.device}, {p.threads} thread{'s' * (p.threads != 1)}."
    return Html(heading("Hashes") + note(HASHES, made) + body)


def steps(a: Attribution, group: str, name: str) -> tuple[Html, Html, Html]:
    """The sentence, plot and table of what each range of timesteps adds to a group's score."""
    assert a.kl is not None
    parts = contributions.contributions(a.kl, group)
    labels = [f"{c.first}-{c.last}" if c.last > c.first else str(c.first) for c in parts]
    halves = [c.half or 0.0 for c in parts]
    clear = [i for i, c in enumerate(parts) if c.half is not None and c.value > c.half]
    draws = f"{parts[0].draws} draw{'s' * (parts[0].draws != 1)} in each"
    said = f"{name}: with {draws}, no range of timesteps stands out: no interval lies above 0."
    if clear:
        top = max(clear, key=lambda i: parts[i].value)
        adds = f"timesteps {labels[top]} add" if "-" in labels[top] else f"timestep {labels[top]} adds"
        most = f"{sentences.number(parts[top].value, a.unit, 2 * halves[top])} {a.unit}"
        said = f"{name}: of the ranges whose interval lies above 0, {adds} most: {most}."
    rows = [
        (
            label,
            sentences.number(c.value, a.unit, 2 * h),
            "-" if c.se is None else f"± {sentences.number(h, a.unit, 2 * h)}",
        )
        for label, c, h in zip(labels, parts, halves, strict=True)
    ]
    offset, drop = a.offset(group), sum(c.value for c in parts)
    if offset:
        rows.append(("all: the drop", sentences.number(drop, a.unit), ""))
        rows.append(("the offset", sentences.number(offset, a.unit), ""))
    rows.append(("the score" if offset else "all: the score", sentences.number(drop + offset, a.unit), ""))
    body = table("What each range of timesteps adds", ("Timesteps", "Adds (nats)", "95%"), rows, numbers=".nn")
    return (
        Html(heading(STEPS_TITLE) + text(said, STEPS, *([OFFSET] if offset else []))),
        plots.steps(labels, [c.value for c in parts], halves),
        body,
    )


def narrowing(a: Attribution, group: str, name: str) -> tuple[Html, Html, Html]:
    """The sentence, plot and table of how a score's interval narrowed."""
    assert a.kl is not None
    found = contributions.narrowing(a.kl, group, a.offset(group), a.offset_se(group))
    if not found:
        return Html(heading(NARROW_TITLE) + text("There are too few draws to show this.")), Html(), Html()
    widths = (e.high - e.low for e in (found[0][1], found[-1][1]))
    first, last = (sentences.number(w, a.unit, w) for w in widths)
    if len(found) == 1:
        all_but = ", but not the part of the offset" if a.offset_se(group) else ""
        said = (
            f"{name}: with {found[0][0]} draws in each range of timesteps the 95% interval is {first} {a.unit} wide. "
            f"More effort makes more draws and narrows it{all_but}."
        )
    else:
        said = (
            f"{name}: with {found[0][0]} draws in each range of timesteps the 95% interval was {first} {a.unit} wide, "
            f"with {found[-1][0]} it is {last}."
        )
    rows = [
        (str(m), *(sentences.number(v, a.unit, e.high - e.low) for v in (e.value, e.low, e.high, e.high - e.low)))
        for m, e in found
    ]
    rows = [(m, value, f"{low} to {high}", wide) for m, value, low, high, wide in rows]
    plot = plots.narrowing(
        [m for m, _ in found], [e.value for _, e in found], [e.low for _, e in found], [e.high for _, e in found]
    )
    head = ("Draws", "Score (nats)", "95% interval", "Its width")
    body = table(NARROW_TITLE, head, rows, numbers="nnnn")
    return Html(heading(NARROW_TITLE) + text(said, NARROW)), plot, body


@dataclass(frozen=True)
class Inspect:
    """The parts of this screen."""

    tab: gr.Tab
    hint: gr.HTML
    box: gr.Column
    group: gr.Dropdown
    parts: list[Any]  # sentence, plot and table of the steps; then of the narrowing
    figures: gr.HTML
    hashes: gr.HTML


def draw(tab: gr.Tab) -> Inspect:
    """Draw the screen inside its tab."""
    hint = block(text(words.NO_ANSWER))
    parts: list[Any] = []
    with gr.Column(visible=False) as box:
        group = gr.Dropdown([], label="Group", info="The group whose score is explained.", interactive=True)
        for _ in (steps, narrowing):
            parts += [block(), block(), block()]
    return Inspect(tab, hint, box, group, parts, block(), block())


def connect(e: Inspect, service: Service, answer: gr.State, runs: list[Any]) -> None:
    """Fill the screen when it is opened, when a run is over, and when another group is chosen."""

    def main(a: Answer | None) -> tuple[Attribution | None, list[str]]:
        """The first answer whose values were kept, and the groups that can be looked into, best first."""
        for found in a.scored() if a is not None else []:
            groups = [g for g in found.ranked() if found.kl is not None and g in found.kl.without]
            if groups:
                return found, groups
        return None, []

    def details(a: Answer | None, group: str | None) -> list[Any]:
        found, groups = main(a)
        if found is None:
            return [gr.skip()] * len(e.parts)
        if group is None and a is not None and is_out(a.scope):
            return [Html()] * len(e.parts)
        chosen = group if group in groups else groups[0]
        name = sentences.called(service.group_set, chosen)
        return [*steps(found, chosen, name), *narrowing(found, chosen, name)]

    def opened(a: Answer | None) -> list[Any]:
        found, groups = main(a)
        provenance = service.provenance()
        choices = [(service.group_set.groups[g].name, g) for g in groups]
        out = found is not None and a is not None and is_out(a.scope)
        said = text(f"{VERDICTS['out of scope']} {CHOOSE}" if out else words.NO_ANSWER)
        return [
            gr.update(visible=found is None or out, value=said),
            gr.update(visible=found is not None),
            gr.update(choices=choices, value=groups[0] if groups and not out else None),
            *details(a, None),
            figures(service, provenance),
            hashes(service, provenance, a),
        ]

    outputs = [e.hint, e.box, e.group, *e.parts, e.figures, e.hashes]
    for event in (e.tab.select, *(r.then for r in runs)):
        event(opened, answer, outputs, **QUICK)
    e.group.input(details, [answer, e.group], e.parts, **LATEST)
