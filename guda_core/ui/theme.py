"""How the page looks: colours that read on light and dark, the visitor's own fonts, nothing from another host."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from guda_core.answers.look import COLOURED, COLOURS, RULES, variables

CSS = (  # a rule for each part: of several selectors, gradio takes the first one's .dark alone
    "".join(
        f"{theme}.guda-{part} {{{variables(COLOURS, dark=dark)}}}\n"
        for theme, dark in (("", False), (".dark ", True))
        for part in COLOURED
    )
    + RULES
    + Path(__file__).with_name("page.css").read_text(encoding="utf-8")
)
PRINT = (  # in the head, where the container can be named
    ".gradio-container { overflow: visible !important; }"  # else the end of a long page is cut off
    " .guda-table thead { display: table-row-group; }"  # a head on every page would cut rows off
    " .guda-out:not([open]), .gradio-container:has(.guda-answered .guda-out:not([open])) .guda-strip:not([open])"
    " { display: none; }"
)
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
HEAD = f'<style media="print">{PRINT}</style><script>{_SCRIPT}</script>'


def make_theme() -> gr.themes.Base:
    """The visitor's own fonts: the page asks no other host for anything. Texts contrast at least 4.5 to 1."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        checkbox_border_color="*neutral_500",  # what can be pressed stands out at least 3 to 1
        checkbox_border_color_dark="*neutral_400",
        input_border_color="*neutral_500",
        input_border_color_dark="*neutral_500",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
