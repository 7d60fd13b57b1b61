"""How the page looks: colours that read on light and dark, the visitor's own fonts, nothing from another host."""

from __future__ import annotations

import gradio as gr

CSS = """
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container button:focus-visible, .gradio-container a:focus-visible, .gradio-container summary:focus-visible,
.gradio-container [role=tab]:focus-visible, .guda-scroll:focus-visible {
  outline: 3px solid #2563eb !important; outline-offset: 2px; }
.gradio-container .html-container { padding: 0; }
.guda-title h1 { font-size: 1.6rem; line-height: 1.25; font-weight: 700; margin: 0 0 .3rem; }
.guda-title p, .guda-text p, .guda-note p, .guda-text ul, .guda-text ol { max-width: 46rem; }
.guda-title p, .guda-note, .guda-text { line-height: 1.55; }
.guda-note { color: var(--body-text-color-subdued); }
.guda-note p, .guda-text p { margin: 0 0 .4rem; }
.guda-text ul, .guda-text ol { margin: 0 0 .6rem; padding-left: 1.3rem; }
.guda-text ul { list-style: disc; }
.guda-text ol { list-style: decimal; }
.guda-text li { margin: 0 0 .3rem; }
.guda-text code, .guda-table code { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; }
.guda-text pre { overflow-x: auto; padding: .6rem .8rem; margin: 0 0 .6rem; border-radius: 6px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.guda-banner { border-left: 4px solid #d08700; padding: .6rem .9rem; background: rgba(208, 135, 0, .12);
  border-radius: 0 6px 6px 0; line-height: 1.5; }
.guda-banner p { margin: 0; }
.guda-maybe:not(:has(p, table)) { display: none !important; }
.guda-says { font-size: 1.2rem; line-height: 1.45; font-weight: 600; max-width: 46rem; margin: .3rem 0 0; }
.guda-status progress { width: 100%; height: .5rem; margin-top: .3rem; accent-color: #2563eb; }
.guda-heading { font-size: 1.1rem; font-weight: 600; margin: 1rem 0 .3rem; }
.guda-scroll { overflow-x: auto; contain: inline-size; }
.guda-table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.guda-table caption { text-align: left; padding: 0 0 .2rem; color: var(--body-text-color-subdued); }
.guda-table th { font-weight: 600; }
.guda-table th, .guda-table td { text-align: left; padding: .35rem .8rem .35rem 0; vertical-align: top; }
.guda-table tr { border-bottom: 1px solid var(--border-color-primary); }
.guda-table .n { text-align: right; padding-right: 1.2rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.guda-table th.n { white-space: normal; }
.guda-table a, .guda-text a { text-decoration: underline; }
.guda-scores td:nth-child(2), .guda-ranks td { white-space: nowrap; }
.guda-ranks th { max-width: 9rem; }
.guda-health td:nth-child(2) { min-width: 9rem; }
.guda-groups td:nth-child(4) { min-width: 15rem; }
.guda-picture { margin: 0; max-width: 240px; }
.guda-picture img { image-rendering: pixelated; width: 100%; margin: 0; border-radius: 8px;
  border: 1px solid var(--border-color-primary); }
.guda-picture figcaption { color: var(--body-text-color-subdued); font-size: .85rem; margin-top: .2rem; }
.js-plotly-plot .plotly text { fill: var(--body-text-color-subdued) !important; }
.guda-text ol.guda-steps { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .8rem;
  margin: .6rem 0; padding: 0; max-width: none; list-style: none; counter-reset: step; }
.guda-steps li { counter-increment: step; border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: .8rem .9rem; line-height: 1.5; }
.guda-steps li::before { content: counter(step); display: block; font-weight: 700; font-size: 1.1rem; color: #2563eb; }
.dark .guda-steps li::before { color: #93c5fd; }
.gradio-container [role=tab].selected { color: var(--primary-700) !important; }
.dark .gradio-container [role=tab].selected, .gradio-container.dark [role=tab].selected {
  color: var(--primary-300) !important; }
.modebar-container { display: none; }
@media (max-width: 480px) {
  .guda-table { font-size: .8rem; }
  .guda-table .n { padding-right: .6rem; }
  .guda-scores td:nth-child(2), .guda-ranks td:first-child { white-space: normal; }
  .guda-says { font-size: 1.1rem; }
}
@media (prefers-reduced-motion: reduce) {
  .gradio-container * { animation: none !important; transition: none !important; }
}
"""


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
