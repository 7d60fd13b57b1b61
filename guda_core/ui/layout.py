"""The first screen: where a picture is made or uploaded, and where its answer appears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described
from guda_core.records import GroupSet
from guda_core.service import EFFORTS, Service, main_first
from guda_core.ui import words
from guda_core.ui.examples import EXAMPLES
from guda_core.ui.markup import block, heading, listed, makers, note, says_html, status_html
from guda_core.ui.uploads import only_keep_the_path

SESSION = 1800  # seconds that a visitor's picture and answer are kept


@dataclass(frozen=True)
class MethodPanel:
    """One method's part of the right column, hidden until it has an answer."""

    box: gr.Column
    plot: gr.Plot
    table: gr.HTML


@dataclass(frozen=True)
class Screen:
    """The parts that events read or change."""

    examples: list[gr.Button]
    object_name: gr.Dropdown
    style: gr.Dropdown
    prompt: gr.Textbox
    seed: gr.Number
    steps: gr.Slider
    guidance: gr.Slider
    upload: gr.Image
    caption: gr.Textbox
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
    scored: gr.Row
    picture: gr.HTML
    notes: gr.HTML
    captions: gr.HTML
    panels: dict[str, MethodPanel]

    def hidden(self) -> list[Any]:
        """What is out of sight until there is an answer."""
        return [self.scored, *(p.box for p in self.panels.values())]

    def empty(self) -> list[gr.HTML]:
        """What is empty until there is an answer. It is not hidden: a page that gets an instant answer may lose the
        update that would show it."""
        return [self.scope, self.captions]

    def outputs(self) -> list[Any]:
        """Everything that a run may change, in the order in which programs get it."""
        parts = [self.answer, self.says, self.status, self.welcome, self.scope, self.scored, self.picture, self.notes]
        panels = [part for p in self.panels.values() for part in (p.box, p.plot, p.table)]
        return [*parts, self.again, self.captions, *panels]


def draw(service: Service) -> Screen:
    """Draw the first screen inside the current Blocks."""
    answer = gr.State(None, time_to_live=SESSION)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            left = _controls(service)
        with gr.Column(scale=3, min_width=300):
            right = _answers(service)
            block(makers(service.group_set))
    return Screen(answer=answer, **left, **right)


def first_caption(group_set: GroupSet, object_name: str, style: str) -> str:
    """The caption of an object in a group's style, with nothing left to chance."""
    return captioner_of(group_set).prompt(described(style, object_name))


def effort_choices(seconds: dict[str, float] | None = None) -> list[tuple[str, str]]:
    """(label, id) of every effort, with its expected time once that was measured."""
    known = seconds or {}
    return [(e.name + (f", {words.seconds(known[k])}" if k in known else ""), k) for k, e in EFFORTS.items()]


def _controls(service: Service) -> dict[str, Any]:
    sets, methods = service.group_set, service.methods()
    objects = [(o.replace("-", " "), o) for o in sets.train_objects]
    styles = [(g.name, k) for k, g in sets.groups.items()]
    block(heading("Start with an example"))
    with gr.Row():
        examples = [gr.Button(e.name(sets), size="sm", min_width=90) for e in EXAMPLES if e.fits(sets)]
    with gr.Tabs():
        with gr.Tab("Generate") as generate_tab:
            with gr.Row():
                object_name = gr.Dropdown(objects, value=objects[0][1], label="Object", min_width=130)
                style = gr.Dropdown(styles, value=styles[0][1], label="Style", min_width=130)
            prompt = gr.Textbox(
                first_caption(sets, objects[0][1], styles[0][1]), label="Prompt", lines=3,
                info="Object and style fill it in, without the group's name. Edit it freely.",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", info="The same seed gives the same picture.")
            with gr.Row():
                steps = gr.Slider(5, 50, value=20, step=1, label="Steps", min_width=130)
                guidance = gr.Slider(1, 8, value=3, step=0.5, label="Guidance", min_width=130)
        with gr.Tab("Upload") as upload_tab:
            upload = gr.Image(
                label="Picture: PNG, JPEG or WebP", type="filepath", sources=["upload", "clipboard"], height=260,
                buttons=[],
            )  # fmt: skip
            only_keep_the_path(upload)
            caption = gr.Textbox(
                "", label="Caption (optional)", lines=2,
                info="What the picture shows. It may stay empty.",
            )  # fmt: skip
            more_captions = gr.Checkbox(False, label=words.TRY_CAPTIONS, info=words.CAPTIONS_INFO)
    shown = [(methods[m].name, m) for m in main_first(methods)]
    asked = gr.CheckboxGroup(shown, value=[m for _, m in shown], label="Methods")
    effort = gr.Radio(effort_choices(), value="quick", label="Effort", info="More effort, narrower intervals.")
    with gr.Row():
        generate = gr.Button("Generate and attribute", variant="primary", min_width=190, scale=3)
        attribute = gr.Button("Attribute", variant="primary", visible=False, min_width=190, scale=3)
        cancel = gr.Button("Cancel", interactive=False, min_width=90, scale=1)
    return {
        "examples": examples, "object_name": object_name, "style": style, "prompt": prompt, "seed": seed,
        "steps": steps, "guidance": guidance, "upload": upload, "caption": caption, "more_captions": more_captions,
        "tabs": (generate_tab, upload_tab), "methods": asked, "effort": effort, "generate": generate,
        "attribute": attribute, "cancel": cancel,
    }  # fmt: skip


def _answers(service: Service) -> dict[str, Any]:
    methods = service.methods()
    says = block(says_html(words.FIRST_VISIT), elem_id="guda-answer")
    status = block(status_html(""), elem_classes="guda-status")
    with gr.Column() as welcome:
        block(listed(words.STEPS, "ol", "guda-steps"))
    scope = block(elem_classes="guda-maybe")
    with gr.Row(visible=False) as scored:
        with gr.Column(min_width=180, scale=2):
            picture = block()
        with gr.Column(min_width=220, scale=3):
            notes = block()
            again = gr.Button("Score it again with the chosen effort", visible=False, size="sm")
    captions = block(elem_classes="guda-maybe")
    panels = {}
    for m in main_first(methods):
        with gr.Column(visible=False) as box:
            reading = (words.READING,) if methods[m].unit == "nats" else ()
            block(heading(methods[m].name) + note(methods[m].note, *reading))
            plot = gr.Plot(show_label=False, container=False)
            table = block()
        panels[m] = MethodPanel(box, plot, table)
    return {
        "welcome": welcome,
        "says": says,
        "status": status,
        "scope": scope,
        "scored": scored,
        "picture": picture,
        "notes": notes,
        "again": again,
        "captions": captions,
        "panels": panels,
    }
