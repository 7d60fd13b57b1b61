"""The answer in ten seconds, in a real Chromium: what is in sight, what the chips say, and sets unlike the emoji."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect

from guda_core.data.images import read_file
from guda_core.records import Group, GroupSet
from guda_core.ui import words
from guda_core.ui.address import left_out
from tests.chromium import SLOW, Watched, until
from tests.fakes import FakeService, serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's use of pandas 3
]
PAINTERS = GroupSet(
    "painters",
    "Three painters",
    {i: Group(i, f"Painter {i.upper()}", phrase=f"by painter {i}") for i in ("a", "b", "c")},
    caption="{content}, {phrase}",
)
CAVEAT = "This model is distilled for guidance. It is no likelihood model."


SERVICE = FakeService


def finished(page: Page) -> None:
    expect(page.locator(".guda-status").get_by_text(words.DONE).first).to_be_visible(timeout=SLOW)


def test_a_kept_example_is_shown_while_another_visitor_computes_and_the_rest_waits(browser, stage):
    """The second waits and leaves its place, the first closes its tab."""
    service, first, second = stage.service, Watched(browser), Watched(browser)
    page, other = first.open(stage.url), second.open(stage.url)
    page.get_by_role("button", name="Rocket").click()
    finished(page)
    service.delay, service.passes = 0.1, 5000
    page.get_by_role("button", name="Generate and attribute").click()
    expect(page.get_by_text(re.compile(r"GUDA \(unlearning\): 2 of \d, about"))).to_be_visible(timeout=SLOW)
    other.get_by_role("button", name="Rocket").click()
    expect(other.get_by_text(words.STORED)).to_be_visible()
    assert service.at_work == 1
    expect(other.locator(".guda-says")).to_contain_text("Most needed")
    other.get_by_role("button", name="Generate and attribute").click()
    expect(other.get_by_text(words.WAITING)).to_be_visible()
    other.get_by_role("button", name="Cancel").click()
    expect(other.locator(".guda-says")).to_have_text("Cancelled cancelled")
    expect(other.get_by_role("button", name="Generate and attribute")).to_be_enabled()
    assert service.at_work == service.most_at_work == 1 and service.closed == 0
    page.close()
    until(other, lambda: service.at_work == 0)
    assert service.closed == 1
    second.check("waited")


def test_the_picture_is_scored_again_by_a_press_and_a_report_of_the_answer_before_is_gone(browser, stage, monkeypatch):
    watched = Watched(browser)
    page = watched.open(stage.url)
    page.get_by_role("button", name="Generate and attribute").click()
    finished(page)
    watched.go("Evidence")
    with page.expect_download(timeout=SLOW):
        page.get_by_role("button", name="Download report").click()
    expect(page.get_by_text("The report is ready.")).to_be_visible()
    watched.go("Attribute")
    stage.service.delay = 0.2
    page.get_by_role("button", name=re.compile("Score it again")).click()
    until(page, lambda: stage.service.at_work == 1)
    finished(page)
    expect(page.locator(".guda-says:visible").first).to_contain_text("Most needed")
    expect(page.locator(".guda-chart:visible").first).to_be_visible()
    watched.go("Evidence")
    expect(page.get_by_text("The report is ready.")).to_be_hidden()
    expect(page.get_by_role("button", name="Save the report")).to_be_hidden()
    watched.go("Attribute")
    again = page.get_by_role("button", name=re.compile("Score it again"))
    expect(again).to_be_visible()
    monkeypatch.setattr(stage.service, "generate", lambda **_: 1 / 0)
    page.get_by_role("button", name="Generate and attribute").click()
    expect(page.locator(".guda-says:visible").first).to_contain_text("Not done", timeout=SLOW)
    expect(again).to_be_hidden()  # there is no picture any more


def test_a_report_does_not_stand_beside_an_answer_that_looks_the_same(browser, stage, monkeypatch):
    watched = Watched(browser)
    page = watched.open(stage.url)
    ready = page.get_by_text("The report is ready.")
    for n, effort in enumerate(("Quick", "Standard"), 1):  # the fake's scores are the same
        page.get_by_role("radio", name=effort).check()
        page.get_by_role("button", name="Generate and attribute").click()
        expect(page.locator(".guda-past [data-row]")).to_have_count(n, timeout=SLOW)
        finished(page)
    watched.go("Evidence")
    with page.expect_download(timeout=SLOW):
        page.get_by_role("button", name="Download report").click()
    expect(ready).to_be_visible()
    watched.go("Attribute")
    page.get_by_text("This visit: 2 answers").click()
    page.locator(".guda-past [data-row]").last.click()
    expect(page.get_by_text(words.BROUGHT_BACK)).to_be_visible()
    watched.go("Evidence")
    expect(ready).to_be_hidden()
    reports, go = sys.modules["guda_core.ui.report_screens"], threading.Event()
    written = reports.made
    monkeypatch.setattr(reports, "made", lambda *a, **k: go.wait(60) and written(*a, **k))
    page.get_by_role("button", name="Download report").click()
    watched.go("Attribute")
    page.locator(".guda-past [data-row]").first.click()
    expect(page.get_by_text(words.BROUGHT_BACK)).to_be_visible()
    watched.go("Evidence")
    with page.expect_download(timeout=SLOW):  # it is what was asked for, and is of the answer of then
        go.set()
    expect(ready).to_be_hidden()
    expect(page.get_by_role("button", name="Save the report")).to_be_hidden()


def test_a_set_without_objects_has_a_free_prompt_and_the_models_caveat_stands_beside_its_scores(
    browser, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    long = {g: replace(v, name=f"{v.name}_{'without_a_space_' * 5}") for g, v in PAINTERS.groups.items()}
    service = FakeService(group_set=replace(PAINTERS, groups=long), caveat=CAVEAT)
    watched = Watched(browser, 390)
    with serving(service) as url:
        page = watched.open(url)
        expect(page.get_by_text("three groups of training pictures: Three painters")).to_be_visible()
        expect(page.get_by_role("combobox", name="Object")).to_be_hidden()
        expect(page.get_by_text("Start with an example")).to_have_count(0)
        page.get_by_role("textbox", name="Prompt").fill("a bridge, by painter b")
        page.get_by_role("button", name="Generate and attribute").click()
        finished(page)
        expect(page.get_by_text("Scored with the caption: a bridge, by painter b")).to_be_visible()
        expect(page.locator(".guda-answered").get_by_text(CAVEAT)).to_be_visible()
        page.get_by_text("Who drew what").click()
        expect(page.get_by_role("region", name="Who drew each group")).to_contain_text("not stated")
        page.locator(".guda-strip > summary").first.click()
        watched.check("painters")


def test_a_server_that_is_gone_is_told(browser, stage):
    watched = Watched(browser, apart=True)  # its clock is that of all pages that share anything with it
    watched.page.clock.install()
    page = watched.open(stage.url)
    page.clock.run_for(25_000)
    expect(page.locator(".guda-gone")).to_have_count(0)
    page.route("**/*", lambda route: route.abort())
    for _ in range(3):
        page.clock.run_for(10_000)
    expect(page.get_by_role("alert").get_by_text("The server does not answer.")).to_be_visible()
    page.unroute("**/*")
    page.clock.run_for(10_000)
    expect(page.locator(".guda-gone")).to_have_count(0)
    page.close()


def test_the_prompt_that_a_program_wrote_into_a_picture_is_offered_as_its_caption(browser, stage, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a (teal:1.2) square\nNegative prompt: photo\nSteps: 20, Sampler: DDIM")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "made.png", pnginfo=info)
    watched = Watched(browser)
    page = watched.open(stage.url)
    page.get_by_role("tab", name="Upload").click()
    caption, clear = page.get_by_role("textbox", name="Caption"), page.get_by_label("Remove image")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "made.png")
    expect(caption).to_have_value("a (teal:1.2) square")
    expect(page.get_by_text(words.FOUND_CAPTION.format(program="A1111"))).to_be_visible()
    unread = page.get_by_text("Weights and tags mean nothing here and are read as plain text: “(teal:1.2)”.")
    expect(unread).to_be_visible()  # with the offer, before anything is scored
    clear.or_(page.get_by_label("Clear")).click()
    expect(caption).to_have_value("")
    expect(unread).to_have_count(0)
    page.locator("input[type=file]").first.set_input_files(tmp_path / "made.png")
    expect(unread).to_be_visible()
    caption.press("End")
    caption.press("s")  # from here on the words are the visitor's own
    expect(unread).to_have_count(0)
    expect(page.get_by_text(words.FOUND_CAPTION.format(program="A1111"))).to_have_count(0)
    clear.or_(page.get_by_label("Clear")).click()
    caption.fill("my own words")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "made.png")
    expect(page.get_by_label("Remove image").or_(page.get_by_label("Clear"))).to_be_visible()
    page.get_by_role("button", name="Attribute", exact=True).click()
    finished(page)
    expect(page.get_by_text("Scored with the caption: my own words")).to_be_visible()
    watched.check("caption")


def test_words_that_are_written_while_the_file_is_read_stay(browser, stage, tmp_path, monkeypatch):
    info = PngInfo()
    info.add_text("parameters", "a teal square\nSteps: 20, Sampler: DDIM")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "made.png", pnginfo=info)
    reading, go = threading.Event(), threading.Event()

    def slow(file: Path) -> bytes:
        reading.set()
        assert go.wait(30)
        return read_file(file)

    monkeypatch.setattr(sys.modules["guda_core.ui.connect"], "read_file", slow)  # the package has such a function
    watched = Watched(browser)
    page = watched.open(stage.url)
    page.get_by_role("tab", name="Upload").click()
    caption = page.get_by_role("textbox", name="Caption")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "made.png")
    assert reading.wait(30)
    caption.fill("my own words")
    go.set()
    page.wait_for_timeout(1000)
    expect(caption).to_have_value("my own words")
    expect(page.get_by_text(words.FOUND_CAPTION.format(program="A1111"))).to_have_count(0)
    watched.check("written")


def test_a_link_brings_others_to_the_same_form(browser, stage):
    watched = Watched(browser)
    page = watched.open(stage.url)
    page.get_by_role("textbox", name="Prompt").fill("a teapot & a cup")
    page.get_by_role("radio", name="Standard").check()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label(words.TRY_CAPTIONS).check()
    page.get_by_label("CLIP similarity").uncheck()
    page.get_by_role("button", name="Generate and attribute").click()
    finished(page)
    address = page.url
    assert "methods=guda&captions=1" in address
    page.goto(address.replace("methods=guda", "methods=removed,guda"))
    expect(page.get_by_text(left_out({"methods": "removed,guda"}, ["guda"]))).to_be_visible()
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_label(words.TRY_CAPTIONS)).to_be_checked()
    expect(page.get_by_label("CLIP similarity")).not_to_be_checked()
    expect(page.get_by_label("GUDA (unlearning)")).to_be_checked()
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("a teapot & a cup")
    expect(page.get_by_role("radio", name="Standard")).to_be_checked()
    page.get_by_role("link", name="How to ask about your own artists").click()
    expect(page.get_by_role("heading", name="Make your own group set")).to_be_visible()
    watched.check("address")


def test_a_long_prompt_is_left_out_of_the_address(browser, stage):
    watched = Watched(browser)
    page = watched.open(stage.url)
    page.get_by_role("textbox", name="Prompt").fill("猫" * 500)  # nine characters each, in an address
    page.get_by_role("button", name="Generate and attribute").click()
    page.wait_for_function("location.search.includes('seed=')")
    assert "prompt=" not in page.url and "steps=" in page.url
