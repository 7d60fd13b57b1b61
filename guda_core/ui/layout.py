"""The first screen: where a picture is made or uploaded, and where its answer appears."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from guda_core.answers.markup import heading, listed, makers, note, status_html, verdict_html
from guda_core.answers.verdict import FIRST_VISIT, NO_EXAMPLES
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described
from guda_core.records import GroupSet
from guda_core.service import EFFORTS, Service, main_first, main_method
from guda_core.ui import words
from guda_core.ui.blocks import block, rows_block
from guda_core.ui.examples import EXAMPLES, FIRST
from guda_core.ui.seen import folder, seen, thumbnail
from guda_core.ui.uploads import only_keep_the_path

SESSION = 1800  # seconds that a visitor's picture and answer are kept


@dataclass(frozen=True)
class Screen:
    """The parts that events read or change."""

    examples: list[gr.Button]
    object_name: gr.Dropdown
    style: gr.Dropdown
    prompt: gr.Textbox
    made_of: gr.State  # object and style that the prompt was last filled in from
    seed: gr.Number
    steps: gr.Slider
    guidance: gr.Slider
    upload: gr.Image
    caption: gr.Textbox
    offered: gr.HTML
    not_read: gr.HTML
    more_captions: gr.Checkbox
    tabs: tuple[gr.Tab, gr.Tab]
    methods: gr.CheckboxGroup
    effort: gr.Radio
    generate: gr.Button
    attribute: gr.Button
    again: gr.Button
    cancel: gr.Button
    answer: gr.State
    welcome: gr.Column
    says: gr.HTML
    status: gr.HTML
    scope: gr.HTML
    picture: gr.HTML
    notes: gr.HTML
    shown: gr.HTML
    captions: gr.HTML
    panels: dict[str, gr.HTML]
    group: gr.Dropdown  # whose map is wanted
    map_wanted: gr.Textbox  # out of sight: changes when a map has to be made, to "TURN GROUP"
    turn: (
        gr.Textbox
    )  # hidden: another one with each answer and map, so that the same choice told twice asks for one map
    mapped: gr.HTML
    past: gr.State
    past_rows: gr.HTML
    wanted: list[gr.Textbox]  # one an example, out of sight: changes when that has to be computed

    def empty(self) -> list[gr.HTML]:
        """What is empty until there is an answer. It is not hidden: a page that gets an instant answer may lose the
        update that would show it."""
        return [self.scope, self.picture, self.notes, self.captions, *self.panels.values(), self.shown]

    def outputs(self) -> list[Any]:
        """Everything that a run may change, in the order in which programs get it."""
        parts = [self.answer, self.says, self.status, self.welcome, self.scope, self.picture, self.notes]
        return [*parts, self.again, self.captions, *self.panels.values(), self.shown]


def draw(service: Service) -> Screen:
    """Draw the first screen inside the current Blocks."""
    answer, where = gr.State(None, time_to_live=SESSION), folder(service)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            left = _controls(service, where)
        with gr.Column(scale=3, min_width=300):
            right = _answers(service, where)
            block(makers(service.group_set))
    return Screen(answer=answer, **left, **right)


def first_caption(group_set: GroupSet, object_name: str, style: str) -> str:
    """The caption of an object in a group's style, with nothing left to chance."""
    return captioner_of(group_set).prompt(described(style, object_name))


def effort_choices(seconds: dict[str, float] | None = None) -> list[tuple[str, str]]:
    """(label, id) of every effort, with its expected time once that was measured; "up to" where a race may end it."""
    times = {k: f", {'up to ' * bool(EFFORTS[k].race)}{words.seconds(v)}" for k, v in (seconds or {}).items()}
    return [(e.name + times.get(k, ""), k) for k, e in EFFORTS.items()]


def _controls(service: Service, where: Path | None) -> dict[str, Any]:
    shown = [e for e in EXAMPLES if e.fits(service.group_set)]
    examples = []
    if shown:
        block(heading("Start with an example"), elem_classes="guda-lead")
        with gr.Row(elem_classes="guda-examples"):
            for e in shown:
                picture = thumbnail(where, e.file())
                examples.append(gr.Button(e.name(service.group_set), size="sm", min_width=90, icon=picture))
    with gr.Tabs():
        with gr.Tab("Generate") as generate_tab:
            made_of = _made_of(service)
        with gr.Tab("Upload") as upload_tab:
            upload = gr.Image(
                label="Picture: PNG, JPEG, WebP, AVIF, TIFF or HEIC", type="filepath",
                sources=["upload", "clipboard"], height=150, buttons=[], elem_classes="guda-upload",
            )  # fmt: skip
            only_keep_the_path(upload)
            block(note(f"{words.LIMITS} {words.PRIVACY}"), elem_classes="guda-small")
            caption = gr.Textbox("", label="Caption: what the picture shows (optional)", lines=1)
            offered, not_read = (block(elem_classes="guda-maybe guda-small") for _ in range(2))
    with gr.Row():
        generate = gr.Button("Generate and attribute", variant="primary", min_width=190, scale=3)
        attribute = gr.Button("Attribute", variant="primary", visible=False, min_width=190, scale=3)
        cancel = gr.Button("Cancel", interactive=False, min_width=90, scale=1, elem_id="guda-cancel")
    wanted = [gr.Textbox(visible="hidden", container=False) for _ in shown]
    effort = gr.Radio(effort_choices(), value="quick", label="Effort: more of it, narrower intervals")
    return {
        "examples": examples, **made_of, **_advanced(service), "upload": upload, "caption": caption, "offered": offered,
        "not_read": not_read, "tabs": (generate_tab, upload_tab), "effort": effort, "generate": generate,
        "attribute": attribute, "cancel": cancel, "wanted": wanted,
    }  # fmt: skip


def _made_of(service: Service) -> dict[str, Any]:
    """What a prompt is made of. Without objects or words of the groups' own there is a free prompt alone."""
    sets = service.group_set
    objects = [(o.replace("-", " "), o) for o in sets.train_objects]
    styles = [(g.name, k) for k, g in sets.groups.items()]
    first = FIRST if FIRST.fits(sets) else None
    drawn = first.object_name if first else objects[0][1] if objects else None
    style = first.style if first else styles[0][1]
    named = bool(objects)
    with gr.Row(visible=named, elem_classes="guda-made-of"):
        object_name = gr.Dropdown(objects, value=drawn, label="Object", min_width=130)
        styled = gr.Dropdown(styles, value=style, label="Style", min_width=130)
    prompt = gr.Textbox(
        first_caption(sets, drawn or "", style), label="Prompt", lines=2,
        info=words.PROMPT_FILLED if named else words.PROMPT_FREE,
    )  # fmt: skip
    made_of = gr.State((drawn, style))
    return {"object_name": object_name, "style": styled, "prompt": prompt, "made_of": made_of}


def _advanced(service: Service) -> dict[str, Any]:
    methods = service.methods()
    shown = [(methods[m].name, m) for m in main_first(methods)]
    first = FIRST if FIRST.fits(service.group_set) else None
    with gr.Accordion("Advanced: seed, steps, guidance, captions, methods", open=False):
        seed = gr.Number(first.seed if first else 0, label="Seed", info="The same seed gives the same picture.")
        with gr.Row():
            steps = gr.Slider(5, 50, value=25, step=1, label="Steps", min_width=130)
            guidance = gr.Slider(1, 8, value=2.5, step=0.5, label="Guidance", min_width=130)
        more_captions = gr.Checkbox(False, label=words.TRY_CAPTIONS, info=words.CAPTIONS_INFO)
        asked = gr.CheckboxGroup(shown, value=[m for _, m in shown], label="Methods")
    return {"seed": seed, "steps": steps, "guidance": guidance, "more_captions": more_captions, "methods": asked}


def _maps(service: Service) -> dict[str, Any]:
    """The drop-down for the map of any group. The style sheet shows it beside bars that stand open."""
    models = service.provenance().models.get(main_method(service.methods()))
    groups = [(group.name, g) for g, group in service.group_set.groups.items() if models and g in models.hashes]
    with gr.Column(visible=bool(groups), elem_classes="guda-more-maps"):
        group = gr.Dropdown(groups, value=None, label=words.MAP_OF, interactive=True)
        wanted, mapped = gr.Textbox(visible="hidden", container=False), block(elem_classes="guda-maybe")
    return {
        "group": group,
        "map_wanted": wanted,
        "turn": gr.Textbox("first", visible="hidden", container=False),
        "mapped": mapped,
    }


def _answers(service: Service, where: Path | None) -> dict[str, Any]:
    methods = main_first(service.methods())
    shown = any(e.fits(service.group_set) for e in EXAMPLES)
    says = block(verdict_html(FIRST_VISIT if shown else NO_EXAMPLES), elem_id="guda-answer")
    status = block(status_html(""), elem_classes="guda-status")
    with gr.Column() as welcome:
        block(seen(service, where))
        block(listed(words.STEPS if shown else (words.FIRST_STEP, *words.STEPS[1:]), "ol", "guda-steps"))
    scope = block(elem_classes="guda-maybe")
    with gr.Row(elem_classes="guda-answered"):
        with gr.Column(min_width=150, scale=1):
            picture, notes = block(elem_classes="guda-maybe"), block(elem_classes="guda-maybe")
            again = gr.Button("Score it again with the chosen effort", visible=False, size="sm", elem_id="guda-again")
        with gr.Column(min_width=280, scale=4):
            panels = {m: block(elem_classes="guda-maybe") for m in methods[:1]}
    shown = block(elem_classes="guda-maybe")
    maps = _maps(service)
    captions = block(elem_classes="guda-maybe")
    panels |= {m: block(elem_classes="guda-maybe guda-other") for m in methods[1:]}
    return {
        **maps,
        "past": gr.State((), time_to_live=SESSION),
        "past_rows": rows_block(),
        "welcome": welcome,
        "says": says,
        "status": status,
        "scope": scope,
        "picture": picture,
        "notes": notes,
        "again": again,
        "shown": shown,
        "captions": captions,
        "panels": panels,
    }
