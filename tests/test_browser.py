"""The app as a visitor sees it, in a real Chromium: what appears, what stops, and that nothing leaves this machine."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from guda_core.answers.verdict import FIRST_VISIT
from guda_core.ui import words
from tests.chromium import SLOW, Watched, until
from tests.fakes import FakeService

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's use of pandas 3
]


SERVICE = FakeService


def run(page: Page, name: str = "Generate and attribute") -> None:
    page.get_by_role("button", name=name, exact=True).click()


def done(page: Page) -> None:
    expect(page.get_by_text(words.DONE, exact=True)).to_be_visible(timeout=SLOW)


def test_generate_and_attribute_shows_the_sentence_and_bars_of_both_methods(browser, stage):
    watched = Watched(browser)
    page = watched.open(stage.url)
    expect(page.get_by_text(FIRST_VISIT.headline)).to_be_visible()
    run(page)
    done(page)
    expect(page.locator(".guda-says")).to_contain_text(re.compile("^Most needed: .* clear of the second$"))
    expect(page.locator(".guda-figures")).to_contain_text("41 nats (95% interval 35 to 47). Next: ")
    expect(page.locator(".guda-chart")).to_have_count(2)
    expect(page.locator(".guda-chart:visible")).to_have_count(1)  # GUDA's; the others are folded
    expect(page.locator(".guda-chart").first.locator(".measured")).to_have_count(8)
    page.get_by_text("CLIP similarity 1 ").click()
    expect(page.get_by_role("img", name="Scores by CLIP similarity")).to_be_visible()
    expect(page.locator(".guda-scores").first.locator("tbody tr")).to_have_count(8)
    page.get_by_text("Who drew what").click()
    expect(page.get_by_role("link", name="CC-BY-SA-4.0")).to_have_attribute("href", re.compile("^https://"))
    stage.service.missing = tuple(stage.service.group_set.groups)  # no adapters: likeness, and why there is no more
    run(page)
    expect(page.locator(".guda-says")).to_contain_text("No group could be scored")
    done(page)
    expect(page.locator(".guda-word:visible")).to_have_text(["unavailable"] * 8)
    watched.check("done")


def test_cancel_stops_the_work_says_so_and_leaves_the_page_usable(browser, stage):
    watched, service = Watched(browser), stage.service
    service.delay, service.passes = 0.1, 5000
    page = watched.open(stage.url)
    cancel = page.get_by_role("button", name="Cancel")
    expect(cancel).to_be_disabled()
    run(page)
    expect(page.get_by_text(re.compile(r"GUDA \(unlearning\): 2 of \d, about"))).to_be_visible(timeout=SLOW)
    expect(page.locator(".guda-bar").first).to_be_visible()
    expect(page.locator(".guda-more-maps")).to_be_hidden()  # of an answer that is whole
    expect(page.locator(".guda-says")).to_have_text("Computing working")
    cancel.click()
    expect(page.locator(".guda-says")).to_have_text("Cancelled before the answer was done cancelled")
    expect(page.locator(".guda-plain")).to_contain_text("So far: ")
    until(page, lambda: service.at_work == 0)
    assert service.closed == 1
    expect(page.get_by_text(words.CANCELLED)).to_be_visible()
    expect(page.get_by_role("button", name="Generate and attribute")).to_be_enabled()
    expect(cancel).to_be_disabled()
    service.passes = 2
    run(page)
    done(page)
    watched.check("cancelled")


def test_an_upload_is_attributed_and_a_refused_one_says_why(browser, stage, tmp_path):
    Image.new("RGB", (128, 96), "teal").save(tmp_path / "teal.png")
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    watched, service = Watched(browser), stage.service
    service.outcome, service.unavailable = "tied", ("noto",)
    page = watched.open(stage.url)
    page.get_by_role("tab", name="Upload").click()
    expect(page.get_by_role("button", name="Generate and attribute")).to_be_hidden()
    run(page, "Attribute")
    expect(page.locator(".guda-says")).to_have_text("Not done")
    expect(page.get_by_text(words.NO_PICTURE)).to_be_in_viewport()
    page.locator("input[type=file]").set_input_files(tmp_path / "teal.png")
    expect(page.get_by_label("Remove image").or_(page.get_by_label("Clear"))).to_be_visible()
    run(page, "Attribute")
    done(page)
    expect(page.locator(".guda-says")).to_contain_text("Two groups cannot be told apart: ")
    expect(page.get_by_text("It was resized from 128 x 96")).to_be_visible()
    expect(page.locator(".guda-word").first).to_have_text("unavailable")
    page.get_by_label("Remove image").or_(page.get_by_label("Clear")).click()
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_label("Remove image").or_(page.get_by_label("Clear"))).to_be_visible()
    expect(page.locator(".guda-broken")).to_have_count(1)  # no mark of a broken picture, but a sentence
    look = "e => { const s = getComputedStyle(e, '::after'); return [s.position, parseFloat(s.top) < e.clientHeight]; }"
    assert page.locator(".guda-upload").evaluate(look) == ["absolute", True]  # within the box, which cuts off the rest
    run(page, "Attribute")
    expect(page.get_by_text("Only PNG, JPEG, WebP, AVIF, TIFF and HEIC")).to_be_visible()
    watched.check("refused")
