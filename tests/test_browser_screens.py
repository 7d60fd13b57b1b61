"""Every screen of the app in a real Chromium: what a newcomer, an auditor and someone without a mouse can do."""

from __future__ import annotations

import re
import zipfile

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from guda_core.answers.sentences import ALL_THE_SAME
from guda_core.answers.verdict import OUT_OF_SCOPE
from guda_core.reports.read import read_report
from guda_core.ui import words
from guda_core.ui.panels import FIGURES
from tests.chromium import SLOW, Watched, until
from tests.fakes import REASON, FakeService, serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's use of pandas 3
]
TABS = ("Attribute", "Compare", "Evidence", "Benchmarks", "Style groups", "Limits")
OWNERSHIP = re.compile(r"\bowns \d|\d+ ?% (of|by|from)|percent|responsible for|infring", re.IGNORECASE)


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


def finished(page: Page) -> None:
    expect(page.get_by_text(re.compile(f"^{re.escape(words.DONE)}")).first).to_be_visible(timeout=SLOW)


def go(page: Page, tab: str) -> None:
    """Open a tab, also one that a narrow screen keeps in its menu."""
    found = page.get_by_role("tab", name=tab, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").first.click()
        found = page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
    found.click()


SETTLED = """() => document.getAnimations().every(
    a => a.playState !== 'running' || a.effect.getComputedTiming().iterations === Infinity)"""


def violations(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the element, once nothing fades any more."""
    page.wait_for_function(SETTLED)
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_screen_is_sound_with_an_answer_and_accessible(browser, tmp_path, width, dark):
    watched, service = Watched(browser, width, dark), FakeService()
    service.missing = ("noto",)
    with serving(service) as url:
        page = watched.open(url)
        assert violations(page) == []
        page.get_by_role("button", name="Generate and attribute").click()
        finished(page)
        for tab in TABS:
            go(page, tab)
            expect(page.locator(".guda-table:visible, .guda-chart:visible").first).to_be_visible()
            assert violations(page) == [], tab
            assert not OWNERSHIP.search(page.locator("body").inner_text()), tab
            watched.fits()
        watched.check(tmp_path / "screens.png")


def test_a_newcomer_gets_a_correct_first_answer_in_two_clicks_at_most(browser, tmp_path):
    watched, service = Watched(browser), FakeService()
    with serving(service) as url:
        page = watched.open(url)
        expect(page.get_by_text(words.STEPS[2])).to_be_visible()
        page.get_by_role("button", name="Rocket").click()
        finished(page)
        says = page.locator(".guda-says").first
        expect(page.locator(".guda-figures")).to_contain_text("41 nats (95% interval 35 to 47)")
        first = page.locator(".guda-name").first.inner_text()
        expect(says).to_contain_text(f"Most needed: {first}")
        scored_with = page.get_by_text("Scored with the caption").inner_text()
        asked = page.get_by_role("textbox", name="Prompt").input_value()  # the form holds what the example was made of
        assert asked.startswith("rocket") and scored_with == f"Scored with the caption: {asked}"
        service.fault = RuntimeError("an example is computed once")
        page.reload()
        page.get_by_role("button", name="Rocket").click()
        expect(page.get_by_text(words.STORED)).to_be_visible()
        expect(says).to_contain_text(f"Most needed: {first}")
        watched.check(tmp_path / "two-clicks.png")


def test_by_keyboard_alone(browser, tmp_path):
    watched = Watched(browser)
    with serving(FakeService()) as url:
        page = watched.open(url)
        page.get_by_role("tab", name="Attribute").focus()
        for _ in range(40):
            page.keyboard.press("Tab")
            if "Rocket" in (page.evaluate("document.activeElement.innerText") or ""):
                break
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid"
        page.keyboard.press("Enter")
        finished(page)
        page.get_by_role("tab", name="Attribute").focus()
        page.keyboard.press("Tab")
        for _ in range(8):
            if "Limits" in (page.evaluate("document.activeElement.innerText") or ""):
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_text("What a score means")).to_be_visible()
        watched.check(tmp_path / "keyboard.png")


def test_evidence_explains_downloads_and_replays(browser, tmp_path):
    watched = Watched(browser)
    with serving(FakeService()) as url:
        page = watched.open(url)
        go(page, "Evidence")
        expect(page.get_by_text(words.NO_ANSWER).first).to_be_visible()
        page.get_by_role("button", name="Download report").click()
        expect(page.get_by_text(f"No report. {words.NO_ANSWER}")).to_be_visible()
        go(page, "Attribute")
        page.get_by_role("button", name="Generate and attribute").click()
        finished(page)
        go(page, "Evidence")
        expect(
            page.get_by_text(re.compile("the largest addition, 14 nats, comes from timesteps 20-79"))
        ).to_be_visible()
        expect(page.get_by_role("region", name="What each range of timesteps adds")).to_contain_text("all: the score41")
        expect(page.locator(".guda-chart:visible")).to_have_count(2)
        with page.expect_download(timeout=SLOW) as download:
            page.get_by_role("button", name="Download report").click()
        report = tmp_path / "report.zip"
        download.value.save_as(report)
        assert zipfile.ZipFile(report).testzip() is None
        assert read_report(report).record["settings"]["effort"] == "quick"
        page.locator("input[type=file]").first.set_input_files(report)
        expect(page.get_by_role("cell", name="report.zip")).to_be_visible()  # it is there, not only on its way
        page.get_by_role("button", name="Replay this report").click()
        expect(page.get_by_text(words.REPLAYED["equal"])).to_be_visible()
        told = page.locator(".block.guda-opened:visible")
        expect(told.first).to_contain_text("Most needed")  # the report stands there beside its replay
        expect(told.first.locator(".guda-picture img")).to_have_count(1)
        page.locator("input[type=file]").last.set_input_files(report)
        expect(page.get_by_text("Every score is the same to the last bit.")).to_be_visible()
        expect(told.filter(has_text="Most needed")).to_have_count(2)
        assert violations(page) == []
        watched.check(tmp_path / "evidence.png")


def test_out_of_scope_names_no_group_until_somebody_unfolds_it(browser, tmp_path):
    Image.new("RGB", (96, 96), "teal").save(tmp_path / "teal.png")
    watched, service = Watched(browser, dark=True), FakeService(outcome="nothing")
    service.scoped, service.by_caption, service.missing = "out of scope", True, ("noto",)
    with serving(service) as url:
        page = watched.open(url)
        page.get_by_role("tab", name="Upload").click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "teal.png")
        expect(page.get_by_label("Remove image").or_(page.get_by_label("Clear"))).to_be_visible()
        page.get_by_role("button", name="Advanced").click()
        page.get_by_label(words.TRY_CAPTIONS).check()
        expect(page.get_by_text("Quick, about 25 s")).to_be_visible()
        page.get_by_role("button", name="Attribute", exact=True).click()
        finished(page)
        says = page.locator(".guda-says").first
        expect(says).to_have_text(f"{OUT_OF_SCOPE} out of scope")
        names = [g.name for g in service.group_set.groups.values()]
        answer = page.locator(".guda-verdict, .guda-answered, .guda-other, .guda-out").all_inner_texts()
        assert not [n for n in names if any(n in part for part in answer)]  # folded away, whoever they are
        page.get_by_text(ALL_THE_SAME).click()
        expect(page.locator(".guda-chart:visible")).to_have_count(1)
        page.get_by_text(FIGURES).first.click()
        expect(page.locator(".guda-scores").first).to_contain_text(REASON)
        page.get_by_text("Other captions", exact=True).click()
        expect(page.get_by_role("region", name="The first group under each caption")).to_contain_text("no caption")
        assert violations(page) == []
        watched.check(tmp_path / "scope.png")


def test_a_full_queue_says_so_and_the_page_stays_alive(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("guda_core.ui.QUEUE", 1)
    service, visitors = FakeService(delay=0.2, passes=4000), [Watched(browser) for _ in range(3)]
    with serving(service) as url:
        for v in visitors:
            page = v.open(url)
            with page.expect_response(re.compile("queue/join")):  # asked for a place, or was refused one
                page.get_by_role("button", name="Generate and attribute").click()
            until(page, lambda: service.at_work == 1)
        last = visitors[-1].page
        expect(last.get_by_text(words.NOT_STARTED)).to_be_visible()
        go(last, "Limits")
        expect(last.get_by_text("What a score means")).to_be_visible()
        for v in visitors[:-1]:
            v.page.close()
        visitors[-1].check(tmp_path / "busy.png")
