"""The answer in ten seconds, in a real Chromium: what is in sight, what the chips say, and sets unlike the emoji."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect

from guda_core.records import Group, GroupSet
from guda_core.ui import words
from guda_core.ui.address import left_out
from tests.chromium import SLOW, Watched, until
from tests.fakes import FakeService, serving
from tests.test_browser_screens import violations

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


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


def finished(page: Page) -> None:
    expect(page.locator(".guda-status").get_by_text(words.DONE).first).to_be_visible(timeout=SLOW)


def chips(page: Page) -> list[str]:
    return page.locator(".guda-verdict .guda-chip").all_inner_texts()


def full() -> FakeService:
    """A service with every part that an answer can have."""
    service = FakeService()
    service.oracle, service.offset = "agrees", True
    return service


def test_two_clicks_bring_headline_and_bars_into_sight_without_scrolling(browser, tmp_path):
    watched, service = Watched(browser, 1366, height=768), full()
    with serving(service) as url:
        page = watched.open(url)
        for name in ("Generate and attribute", "Cancel"):
            expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Rocket").click()
        finished(page)
        assert chips(page) == ["clear of the second", "oracle agrees"]
        expect(page.locator(".guda-says")).to_be_in_viewport(ratio=1)
        expect(page.locator(".guda-chart:visible")).to_have_count(1)
        expect(page.locator(".guda-chart:visible [role=img]")).to_be_in_viewport(ratio=1)
        expect(page.locator(".guda-chart:visible figcaption")).to_contain_text("to any picture")
        assert page.evaluate("scrollY") == 0
        expect(page.get_by_role("button", name="Rocket")).to_be_focused()  # it stays where it was
        page.get_by_role("tab", name="Upload").click()
        expect(page.get_by_role("button", name="Attribute", exact=True)).to_be_in_viewport(ratio=1)
        watched.check(tmp_path / "sight.png")


@pytest.mark.parametrize(("width", "most", "dark"), [(1440, 2500, False), (390, 4000, True)])
def test_the_page_is_short_and_accessible_before_anything_is_unfolded(browser, tmp_path, width, most, dark):
    watched = Watched(browser, width, dark)
    with serving(full()) as url:
        page = watched.open(url)
        page.get_by_role("button", name="Rocket").click()
        finished(page)
        button = page.get_by_role("button", name="Generate and attribute")
        expect(button).to_be_enabled(timeout=SLOW)
        expect(button).to_have_css("opacity", "1", timeout=SLOW)  # it fades in when it can be pressed again
        assert watched.height() < most
        first, second = (page.locator(".guda-maps li").nth(i).bounding_box() for i in (0, 1))
        assert first["y"] == second["y"]  # maps stand side by side, also on a phone
        assert violations(page) == []
        for fold in page.locator(".guda-fold > summary").all():
            fold.click()
        assert violations(page) == []
        watched.check(tmp_path / "height.png")


SAID = {
    ("ahead", "differs"): ["clear of the second", "oracle: "],
    ("tied", "close"): ["close", "oracle: close"],
    ("nothing", "agrees"): ["none", "oracle: none"],
}


def test_chips_say_the_state_and_what_the_oracle_says(browser):
    watched, service = Watched(browser), full()
    with serving(service) as url:
        page = watched.open(url)
        for (service.outcome, service.oracle), said in SAID.items():
            page.get_by_role("button", name="Generate and attribute").click()
            begins = [re.compile(f"^{re.escape(s)}") for s in said]
            expect(page.locator(".guda-verdict .guda-chip")).to_have_text(begins, use_inner_text=True)
            finished(page)
        page.close()


def test_a_kept_example_does_not_wait_behind_the_run_of_another(browser, tmp_path):
    service = FakeService()
    first, second = Watched(browser), Watched(browser)
    with serving(service) as url:
        page = first.open(url)
        page.get_by_role("button", name="Rocket").click()
        finished(page)
        service.delay, service.passes = 0.1, 5000
        page.get_by_role("button", name="Generate and attribute").click()
        until(page, lambda: service.at_work == 1)
        other = second.open(url)
        other.get_by_role("button", name="Rocket").click()
        expect(other.get_by_text(words.STORED)).to_be_visible()
        assert service.at_work == 1
        expect(other.locator(".guda-says")).to_contain_text("Most needed")
        page.get_by_role("button", name="Cancel").click()
        until(page, lambda: service.at_work == 0)
        first.page.close()
        second.check(tmp_path / "kept.png")


def test_a_set_without_objects_has_a_free_prompt_and_the_models_caveat_stands_beside_its_scores(browser, tmp_path):
    watched, service = Watched(browser), FakeService(group_set=PAINTERS, caveat=CAVEAT)
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
        watched.check(tmp_path / "painters.png")


def test_what_is_focused_by_keyboard_is_seen(browser, tmp_path):
    watched = Watched(browser, dark=True)
    with serving(FakeService()) as url:
        page = watched.open(url)
        page.get_by_role("button", name="Advanced").click()
        seen = {}
        page.get_by_role("button", name="Rocket").focus()
        for _ in range(30):
            page.keyboard.press("Tab")
            kind = page.evaluate("document.activeElement.type || ''")
            seen[kind] = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert {k: seen.get(k) for k in ("radio", "checkbox", "range")} == dict.fromkeys(
            ("radio", "checkbox", "range"), "solid"
        )
        dark = "k => { dispatchEvent(new Event(k)); return document.body.classList.contains('dark'); }"
        assert [page.evaluate(dark, k) for k in ("beforeprint", "afterprint")] == [False, True]  # paper is white
        watched.check(tmp_path / "focus.png")


def test_a_server_that_is_gone_is_told(browser):
    watched = Watched(browser)
    watched.page.clock.install()
    with serving(FakeService()) as url:
        page = watched.open(url)
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


def test_the_prompt_that_a_program_wrote_into_a_picture_is_offered_as_its_caption(browser, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a (teal:1.2) square\nNegative prompt: photo\nSteps: 20, Sampler: DDIM")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "made.png", pnginfo=info)
    watched = Watched(browser)
    with serving(FakeService()) as url:
        page = watched.open(url)
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
        watched.check(tmp_path / "caption.png")


def test_a_link_brings_others_to_the_same_form(browser, tmp_path):
    first, second = Watched(browser), Watched(browser)
    with serving(FakeService()) as url:
        page = first.open(url)
        page.get_by_role("textbox", name="Prompt").fill("a teapot & a cup")
        page.get_by_role("radio", name="Standard").check()
        page.get_by_role("button", name="Advanced").click()
        page.get_by_label(words.TRY_CAPTIONS).check()
        page.get_by_label("CLIP similarity").uncheck()
        page.get_by_role("button", name="Generate and attribute").click()
        finished(page)
        address = page.url
        assert "methods=guda&captions=1" in address
        second.page.goto(address.replace("methods=guda", "methods=removed,guda"))
        expect(second.page.get_by_text(left_out({"methods": "removed,guda"}, ["guda"]))).to_be_visible()
        second.page.get_by_role("button", name="Advanced").click()
        expect(second.page.get_by_label(words.TRY_CAPTIONS)).to_be_checked()
        expect(second.page.get_by_label("CLIP similarity")).not_to_be_checked()
        expect(second.page.get_by_label("GUDA (unlearning)")).to_be_checked()
        expect(second.page.get_by_role("textbox", name="Prompt")).to_have_value("a teapot & a cup")
        expect(second.page.get_by_role("radio", name="Standard")).to_be_checked()
        first.page.close()
        second.page.get_by_role("link", name="How to ask about your own artists").click()
        expect(second.page.get_by_role("heading", name="Make your own group set")).to_be_visible()
        second.check(tmp_path / "address.png")
