"""Every mark stands out at least 3 to 1 from what is behind it, in light and in dark: on the page as the browser draws
it, and in the colours of the report's page and its pictures."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page

from guda_core.answers.look import COLOURS
from guda_core.reports import figures
from guda_core.reports.page import PAGE_COLOURS
from guda_core.reports.picture_files import HINDERED, NEEDED

LEAST = 3.0
RGB = tuple[float, float, float]


def luminance(colour: RGB) -> float:
    """Relative luminance as WCAG 2 defines it. colour: 0 to 255."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: RGB, b: RGB) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def of(code: str) -> RGB:
    r, g, b = (int(v, 16) for v in re.findall("..", code.lstrip("#")))
    return r, g, b


def test_the_measure_is_wcags():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast(of("#767676"), of("#ffffff")) == pytest.approx(4.54, abs=0.005)  # WebAIM's example


# What draws a mark: elements, and the colour that makes them out. It is compared with what lies behind the element.
MARKS = (
    (".guda-track .added", "backgroundColor"),
    (".guda-track .measured:not(.hollow)", "backgroundColor"),
    (".guda-track .measured.hollow", "borderTopColor"),
    (".guda-track .span", "backgroundColor"),
    (".guda-track .zero", "backgroundColor"),
    (".guda-axis .guda-track i", "backgroundColor"),
    (".guda-key i.added", "backgroundColor"),
    (".guda-key i.measured", "backgroundColor"),
    (".guda-key i.hollow", "borderTopColor"),
    (".guda-key i.span", "backgroundColor"),
    (".guda-key i.needed", "backgroundColor"),
    (".guda-key i.hindered", "backgroundColor"),
    (".guda-chip.good", "borderTopColor"),
    (".guda-drawings img", "borderTopColor"),
    (".guda-picture img", "borderTopColor"),
    (".guda-strip", "borderBottomColor"),
    (".guda-banner", "borderLeftColor"),
    (".guda-past .guda-open", "borderTopColor"),
)
# Marks that lie on other marks: each is edged in the page's own colour, which has to stand out from those.
EDGED = ((".guda-track .span", ".guda-track .added"), (".guda-track .span", ".guda-track .measured:not(.hollow)"),
         (".guda-track .measured:not(.hollow)", ".guda-track .added"))  # fmt: skip
COMPUTED = """([selector, property]) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    function on(back, colour) {  // a colour, which may be seen through, over another
        canvas.fillStyle = `rgb(${back.join(" ")})`;
        canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }
    function behind(element) {
        const up = [];
        for (let e = element.parentElement; e; e = e.parentElement) up.push(getComputedStyle(e).backgroundColor);
        return up.reverse().reduce(on, [255, 255, 255]);
    }
    return [...document.querySelectorAll(selector)].map((e) => {
        const back = behind(e);
        return [on(back, getComputedStyle(e)[property]), back];
    });
}"""


def faint_marks(page: Page) -> list[str]:
    """The marks on a page with a whole answer that do not stand out. `test_browser_screens` asks in light and dark."""

    def computed(selector: str, what: str) -> list[tuple[RGB, RGB]]:
        found = page.evaluate(COMPUTED, [selector, what])
        assert found, f"there is no {selector}"
        return found

    faint: list[str] = []
    for selector, what in MARKS:
        worst = min(contrast(*pair) for pair in computed(selector, what))
        faint += [f"{selector} {worst:.2f}"] * (worst < LEAST)
    for over, under in EDGED:
        edge, mark = computed(over, "outlineColor")[0][0], computed(under, "backgroundColor")[0][0]
        faint += [f"{over} on {under}"] * (contrast(edge, mark) < LEAST)
    return faint


def test_every_mark_on_the_page_of_a_report():
    for dark in (False, True):
        colours = {k: of(v[dark]) for k, v in (COLOURS | PAGE_COLOURS).items()}
        page = colours["body-background-fill"]
        for name in ("added", "measured", "edge", "warn", "needed", "hindered"):
            assert contrast(colours[name], page) >= LEAST, (name, dark)
        for name in ("body-text-color", "body-text-color-subdued", "link"):
            assert contrast(colours[name], page) >= 4.5, (name, dark)
        for chip in ("good", "unsure", "quiet"):
            assert contrast(colours[chip], colours[f"{chip}-back"]) >= 4.5, (chip, dark)


def test_the_legend_has_the_colours_of_the_maps_and_pictures_with_words_stand_out():
    assert of(COLOURS["needed"][0]) == NEEDED and of(COLOURS["hindered"][0]) == HINDERED
    for name in ("EDGE", "LINE", "GREY", "TICK"):
        assert contrast(of(getattr(figures, name)), (255, 255, 255)) >= LEAST, name
    assert contrast(of(figures.LINE), of(figures.BAR)) >= LEAST
