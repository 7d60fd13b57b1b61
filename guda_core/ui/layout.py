"""What is on the screen, and the HTML of its parts. Everything that comes from outside is escaped here."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from guda_core.pipeline import EFFORTS, Service
from guda_core.records import Attribution, Group, GroupSet, Query
from guda_core.report import LIMITS
from guda_core.ui import words

SESSION = 1800  # seconds that a visitor's picture is kept

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.guda-title h1 { font-size: 1.6rem; line-height: 1.25; font-weight: 700; margin: 0 0 .3rem; }
.guda-title p { max-width: 46rem; }
.guda-title p, .guda-note, .guda-limits { opacity: .8; line-height: 1.5; }
.guda-banner { border-left: 4px solid #d08700; padding: .5rem .8rem; background: rgba(208, 135, 0, .12); }
.guda-says { font-size: 1.2rem; line-height: 1.45; font-weight: 600; max-width: 46rem; margin: .5rem 0 0; }
.guda-status progress { width: 100%; height: .5rem; margin-top: .3rem; accent-color: #2563eb; }
.guda-heading { font-size: 1.05rem; font-weight: 600; margin: .6rem 0 .2rem; }
.guda-note p { margin: 0 0 .3rem; }
.guda-scroll { overflow-x: auto; contain: inline-size; }
.guda-table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.guda-table th { font-weight: 600; }
.guda-table th, .guda-table td { text-align: left; padding: .35rem .6rem .35rem 0; vertical-align: top; }
.guda-table tr { border-bottom: 1px solid var(--border-color-primary); }
.guda-table .n { text-align: right; padding-right: 1.2rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.guda-scores td:nth-child(2) { white-space: nowrap; }
.guda-table th.n { white-space: normal; }
.guda-table a { text-decoration: underline; }
.guda-limits { margin: 0; padding-left: 1.1rem; list-style: disc; }
.guda-picture img { image-rendering: pixelated; }
.modebar-container { display: none; }
@media (max-width: 480px) {
  .guda-table { font-size: .8rem; }
  .guda-table .n { padding-right: .6rem; }
  .guda-scores td:nth-child(2) { white-space: normal; }
}
"""

METHOD_NOTES = {
    "guda": "Influence: how much worse the model explains the picture once it has unlearned the group. A pale bar's "
    "interval includes 0.",
    "clip": "Likeness: how similar the picture looks to the group's pictures. It does not ask what the model learned.",
}


def make_theme() -> gr.themes.Base:
    """The visitor's own fonts: the page asks no other host for anything."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(  # readable: at least 4.5 to 1
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
    )


@dataclass(frozen=True)
class MethodPanel:
    """One method's part of the right column, hidden until it has an answer."""

    box: gr.Column
    plot: gr.Plot
    table: gr.HTML


@dataclass(frozen=True)
class Screen:
    """The parts that events read or change."""

    object_name: gr.Dropdown
    style: gr.Dropdown
    prompt: gr.Textbox
    seed: gr.Number
    steps: gr.Slider
    guidance: gr.Slider
    upload: gr.Image
    caption: gr.Textbox
    tabs: tuple[gr.Tab, gr.Tab]
    methods: gr.CheckboxGroup
    effort: gr.Radio
    generate: gr.Button
    attribute: gr.Button
    again: gr.Button
    cancel: gr.Button
    query: gr.State
    says: gr.HTML
    status: gr.HTML
    scored: gr.Row
    picture: gr.Image
    notes: gr.HTML
    panels: dict[str, MethodPanel]


def draw(service: Service) -> Screen:
    """Draw everything inside the current Blocks."""
    _html(f'<div class="guda-title"><h1>{escape(words.TITLE)}</h1><p>{escape(words.PURPOSE)}</p></div>')
    if service.banner:
        _html(f'<div class="guda-banner" role="note">{escape(service.banner)}</div>')
    query = gr.State(None, time_to_live=SESSION)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            left = _controls(service)
        with gr.Column(scale=3, min_width=300):
            right = _answers(service)
            _html(makers(service.group_set))
            _html(limits())
    return Screen(query=query, **left, **right)


def first_caption(group_set: GroupSet, object_name: str, style: str) -> str:
    """The caption that an object and a group's first descriptors make, as in training."""
    descriptors = group_set.groups[style].descriptors[: group_set.descriptors_per_caption]
    return group_set.write_caption(object_name, descriptors)


def _html(value: str = "", **more: Any) -> gr.HTML:
    """HTML styled by our own CSS alone."""
    return gr.HTML(value, apply_default_css=False, **more)


def effort_choices(seconds: dict[str, float] | None = None) -> list[tuple[str, str]]:
    """(label, id) of every effort, with its expected time once that was measured."""
    known = seconds or {}
    return [(e.name + (f", {words.seconds(known[k])}" if k in known else ""), k) for k, e in EFFORTS.items()]


def _controls(service: Service) -> dict[str, Any]:
    sets, methods = service.group_set, service.methods()
    objects = [(o.replace("-", " "), o) for o in sets.train_objects]
    styles = [(g.name, k) for k, g in sets.groups.items()]
    with gr.Tabs():
        with gr.Tab("Generate") as generate_tab:
            with gr.Row():
                object_name = gr.Dropdown(objects, value=objects[0][1], label="Object", min_width=130)
                style = gr.Dropdown(styles, value=styles[0][1], label="Style", min_width=130)
            prompt = gr.Textbox(
                first_caption(sets, objects[0][1], styles[0][1]), label="Prompt", lines=3,
                info="Object and style fill it in with words, never with the group's name. Edit it freely.",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", precision=0, info="The same seed gives the same picture.")
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
                info="What the picture shows. Without one, the model is asked without a caption.",
            )  # fmt: skip
    shown = [(methods[m], m) for m in in_order(methods)]
    asked = gr.CheckboxGroup(shown, value=[m for _, m in shown], label="Methods")
    effort = gr.Radio(effort_choices(), value="quick", label="Effort", info="More effort, narrower intervals.")
    with gr.Row():
        generate = gr.Button("Generate and attribute", variant="primary", min_width=190, scale=3)
        attribute = gr.Button("Attribute", variant="primary", visible=False, min_width=190, scale=3)
        cancel = gr.Button("Cancel", interactive=False, min_width=90, scale=1)
    return {
        "object_name": object_name, "style": style, "prompt": prompt, "seed": seed, "steps": steps,
        "guidance": guidance, "upload": upload, "caption": caption, "tabs": (generate_tab, upload_tab),
        "methods": asked, "effort": effort, "generate": generate, "attribute": attribute, "cancel": cancel,
    }  # fmt: skip


def in_order(methods: dict[str, str]) -> list[str]:
    """Ids of the methods with the main one first, as on the screen."""
    return sorted(methods, key=lambda m: m != words.MAIN)


def _answers(service: Service) -> dict[str, Any]:
    methods = service.methods()
    says = _html(says_html(words.FIRST_VISIT))
    status = _html(status_html(""), elem_classes="guda-status")
    with gr.Row(visible=False) as scored:
        picture = gr.Image(
            label="The picture, as it is scored", interactive=False, format="png", height=220, buttons=["download"],
            elem_classes="guda-picture", min_width=220, scale=2,
        )  # fmt: skip
        with gr.Column(min_width=220, scale=3):
            notes = _html()
            again = gr.Button("Score it again with the chosen effort", visible=False, size="sm")
    panels = {}
    for m in in_order(methods):
        with gr.Column(visible=False) as box:
            note = METHOD_NOTES.get(m, "")
            _html(f'<h2 class="guda-heading">{escape(methods[m])}</h2><div class="guda-note">{escape(note)}</div>')
            plot = gr.Plot(show_label=False, container=False)
            table = _html()
        panels[m] = MethodPanel(box, plot, table)
    return {
        "says": says,
        "status": status,
        "scored": scored,
        "picture": picture,
        "notes": notes,
        "again": again,
        "panels": panels,
    }


def only_keep_the_path(image: gr.Image) -> None:
    """Make an Image hand over the path, address or data it was given, and neither open nor fetch it.

    As it comes, gradio downloads a web address, decodes data: and opens every file with Pillow before any code of ours
    runs. Here `guda_core.imaging` is the one loader, and `callbacks.uploaded` refuses what was not uploaded.
    """
    move = image.async_move_resource_to_block_cache

    async def move_own_files(path: str | None) -> str | None:
        return path if path is None or "://" in str(path) else await move(path)

    def preprocess(payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path or payload.url

    vars(image).update(async_move_resource_to_block_cache=move_own_files, preprocess=preprocess)


def says_html(text: str) -> str:
    """The plain sentence."""
    return f'<p class="guda-says" aria-live="polite">{escape(text)}</p>'


def status_html(text: str, progress: float | None = None) -> str:
    """What is going on, with a bar when progress (0 to 1) is known."""
    bar = "" if progress is None else f'<progress max="1" value="{progress:.3f}" aria-label="Progress"></progress>'
    return f'<div role="status"><span>{escape(text)}</span>{bar}</div>'


def notes_html(query: Query) -> str:
    """The caption a picture is scored with, and what was done to it."""
    caption = f"Scored with the caption: {query.prompt}" if query.prompt else "Scored without a caption."
    return '<div class="guda-note">' + "".join(f"<p>{escape(n)}</p>" for n in (caption, *query.preparation)) + "</div>"


def table_html(a: Attribution, group_set: GroupSet, name: str) -> str:
    """The same figures as the bars: rank, group, score, 95% interval, status."""
    head = ("Rank", "Group", f"Score ({a.unit})", "95% interval", "Status")
    classes = (' class="n"', "", ' class="n"', ' class="n"', "")
    top = "".join(f'<th scope="col"{c}>{escape(h)}</th>' for h, c in zip(head, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{escape(v)}</td>" for v, c in zip(row, classes, strict=True)) + "</tr>"
        for row in words.rows(a, group_set)
    )
    return (
        f'<div class="guda-scroll"><table class="guda-table guda-scores" aria-label="Scores by {escape(name)}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _link(url: str, text: str) -> str:
    if not url.startswith(("https://", "http://")):
        return escape(text)
    return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{escape(text)}</a>'


def makers(group_set: GroupSet) -> str:
    """Who drew each group, under which licence, with links."""

    def row(g: Group) -> str:
        cells = (_link(g.link, g.name), escape(g.author), _link(g.licence_link, g.licence))
        return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"

    head = "".join(f'<th scope="col">{h}</th>' for h in ("Group", "Drawn by", "Licence"))
    body = "".join(row(g) for g in group_set.groups.values())
    return (
        '<h2 class="guda-heading">Who drew what</h2><div class="guda-scroll"><table class="guda-table" '
        f'aria-label="Who drew each group"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def limits() -> str:
    """What a score does not say."""
    items = "".join(f"<li>{escape(s)}</li>" for s in LIMITS)
    return f'<h2 class="guda-heading">Limits</h2><ul class="guda-limits">{items}</ul>'
