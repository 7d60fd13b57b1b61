"""Every screen of the app in a real Chromium: what a newcomer, an auditor and someone without a mouse can do."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from guda_core.answers.look import RULES
from guda_core.answers.markup import caption_html, note
from guda_core.answers.plots import DROP, OFFSET
from guda_core.answers.sentences import ALL_THE_SAME
from guda_core.answers.shown import NOTHING
from guda_core.answers.verdict import OUT_OF_SCOPE
from guda_core.records import VERDICTS
from guda_core.reports.read import read_report
from guda_core.ui import samples, words
from guda_core.ui.inspect import CHOOSE
from guda_core.ui.panels import FIGURES
from tests.chromium import SLOW, Watched
from tests.fakes import REASON, FakeService
from tests.light import LightService, draw
from tests.stage import Stage, staged
from tests.test_contrast import faint_marks
from tests.test_report import made, opened
from tests.test_samples import same

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's use of pandas 3
]
TABS = ("Attribute", "Compare", "Evidence", "Benchmarks", "Style groups", "Limits")
OWNERSHIP = re.compile(r"\bowns \d|\d+ ?% (of|by|from)|percent|responsible for|infring", re.IGNORECASE)


def full() -> FakeService:
    """A service with every part that an answer can have, and one group that only GUDA cannot score."""
    service = FakeService(banner="The bundled model answers.")
    service.oracle, service.offset, service.missing = "agrees", True, ("noto",)
    return service


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "fetched", lambda group_set: same(group_set))
        yield from staged(full, tmp_path_factory.mktemp("screens"))


def finished(page: Page) -> None:
    expect(page.get_by_text(re.compile(f"^{re.escape(words.DONE)}")).first).to_be_visible(timeout=SLOW)


SETTLED = """() => document.getAnimations().every(
    a => a.playState !== 'running' || a.effect.getComputedTiming().iterations === Infinity)"""
ONLY = "{resultTypes: ['violations']}"  # nothing is written down of the thousands of elements that are sound


def violations(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the element, once nothing fades any more."""
    page.wait_for_function(SETTLED)
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate(f"axe.run({ONLY}).then(r => r.violations)")
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")
    ]  # fmt: skip


@pytest.mark.parametrize(("overflow", "fits"), [("hidden", False), ("auto", True)])
@pytest.mark.parametrize("title", ["<h1 style='width: 700px'>A long title</h1>", f"<h1>A{'_long_title' * 9}</h1>"])
def test_what_is_cut_off_is_found_and_what_can_be_scrolled_to_is_not(browser, overflow, fits, title):
    watched = Watched(browser, 390)
    block = f"<div style='width: 300px; overflow: {overflow}'>{title}</div>"
    watched.page.set_content(f"<div class='gradio-container'>{block}</div>")
    if fits:
        watched.fits()
    else:
        with pytest.raises(AssertionError, match=r"H1: A.long.title"):
            watched.fits()
    watched.page.close()


@pytest.mark.parametrize(("width", "most", "dark"), [(1440, 2500, False), (390, 4000, True)])
def test_every_screen_is_short_sound_and_accessible_with_an_answer(browser, stage, width, most, dark):
    watched = Watched(browser, width, dark)
    page = watched.open(stage.url)
    assert violations(page) == []
    style = page.get_by_label("Style", exact=True)
    assert style.evaluate("e => e.scrollWidth <= e.clientWidth")  # its name is read whole
    assert style.evaluate("e => parseFloat(getComputedStyle(e).paddingRight)") > 20  # and not below the arrow
    page.get_by_role("button", name="Rocket").click()
    finished(page)
    button = page.get_by_role("button", name="Generate and attribute")
    expect(button).to_be_enabled(timeout=SLOW)
    expect(button).to_have_css("opacity", "1", timeout=SLOW)  # it fades in when it can be pressed again
    assert watched.height() < most  # before anything is unfolded
    first, second = (page.locator(".guda-maps li").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]  # maps stand side by side, also on a phone
    assert violations(page) == []
    expect(page.get_by_text("This visit: 1 answer")).to_be_visible()
    assert faint_marks(page) == []
    for fold in page.locator(".guda-fold > summary").all():
        fold.click()
    for tab in TABS:
        watched.go(tab)
        expect(page.locator(".guda-table:visible, .guda-chart:visible").first).to_be_visible()
        if tab == "Style groups":
            shown = page.locator(".guda-samples img")
            expect(shown).to_have_count(len(stage.service.group_set.groups))
            assert all(i.evaluate("e => e.naturalWidth") == samples.COUNT * samples.SIDE for i in shown.all())
        assert violations(page) == [], tab
        assert not OWNERSHIP.search(page.locator("body").inner_text()), tab
        watched.fits()
    watched.check(f"screens-{width}")


def test_a_newcomer_gets_a_correct_first_answer_in_two_clicks_at_most(browser, stage):
    watched, service = Watched(browser, 1366, height=768), stage.service
    page = watched.open(stage.url)
    expect(page.get_by_text(words.STEPS[2])).to_be_visible()
    for name in ("Generate and attribute", "Cancel"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Rocket").click()
    finished(page)
    says = page.locator(".guda-says").first
    assert page.locator(".guda-verdict .guda-chip").all_inner_texts() == ["clear of the second", "oracle agrees"]
    expect(says).to_be_in_viewport(ratio=1)
    expect(page.locator(".guda-chart:visible")).to_have_count(1)
    expect(page.locator(".guda-chart:visible [role=img]")).to_be_in_viewport(ratio=1)
    expect(page.locator(".guda-chart:visible .guda-key").filter(has_text=OFFSET).locator(".added")).to_be_visible()
    expect(page.locator(".guda-chart:visible .guda-key").filter(has_text=DROP).locator(".measured")).to_be_visible()
    assert page.evaluate("scrollY") == 0
    expect(page.get_by_role("button", name="Rocket")).to_be_focused()  # it stays where it was
    expect(page.locator(".guda-figures")).to_contain_text("41 nats (95% interval 35 to 47)")
    first = page.locator(".guda-name").first.inner_text()
    expect(says).to_contain_text(f"Most needed: {first}")
    pictures_and_maps(page, service)
    scored_with = page.get_by_text("Scored with the caption").inner_text()
    asked = page.get_by_role("textbox", name="Prompt").input_value()  # the form holds what the example was made of
    assert asked.startswith("rocket") and scored_with == f"Scored with the caption: {asked}"
    page.get_by_role("tab", name="Upload").click()
    expect(page.get_by_role("button", name="Attribute", exact=True)).to_be_in_viewport(ratio=1)
    service.fault = RuntimeError("an example is computed once")
    page.reload()
    page.get_by_role("button", name="Rocket").click()
    expect(page.get_by_text(words.STORED)).to_be_visible()
    expect(says).to_contain_text(f"Most needed: {first}")
    pictures_and_maps(page, service)
    watched.check("two-clicks")


def pictures_and_maps(page: Page, service: FakeService) -> None:
    """Strip, maps and nearest pictures stand below the answer."""
    cells = page.locator(".guda-drawings:not(.guda-maps):not(.guda-near) li")
    expect(cells).to_have_count(1 + len(service.group_set.groups) - len(service.missing))
    expect(cells.nth(1)).to_contain_text("1.00")  # what differs most stands first
    expect(cells.nth(2)).to_contain_text("0.00")
    expect(page.locator(".guda-maps li")).to_have_count(3)
    expect(page.locator(".guda-maps li").nth(0)).to_contain_text("25 of 100 places")
    expect(page.locator(".guda-maps li").nth(1)).to_contain_text(NOTHING)
    near = page.locator(".guda-near li")
    expect(near).to_have_count(2)
    expect(near.first).to_contain_text("cat face: 0.75")
    expect(near.locator("img")).to_have_count(1)


SAID = {
    ("ahead", "differs"): ["clear of the second", "oracle: "],
    ("tied", "close"): ["close", "oracle: close"],
    ("nothing", "agrees"): ["no group", "oracle: no group"],
}


def test_chips_say_the_state_and_what_the_oracle_says(browser, stage):
    watched, service = Watched(browser), stage.service
    page = watched.open(stage.url)
    for (service.outcome, service.oracle), said in SAID.items():
        page.get_by_role("button", name="Generate and attribute").click()
        begins = [re.compile(f"^{re.escape(s)}") for s in said]
        expect(page.locator(".guda-verdict .guda-chip")).to_have_text(begins, use_inner_text=True)
        finished(page)
    watched.check("chips")


def ring(page: Page) -> str:
    """How what is focused is outlined."""
    return page.evaluate("getComputedStyle(document.activeElement).outlineStyle")


def test_by_keyboard_alone_and_what_is_focused_is_seen(browser, stage):
    watched = Watched(browser, dark=True)
    page = watched.open(stage.url)
    page.get_by_role("textbox", name="Prompt").focus()
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    expect(page.locator("[role=tabpanel] input[aria-expanded=true]")).to_have_count(0)  # lists that were only passed
    page.get_by_role("button", name="Advanced").click()
    seen = {}
    page.get_by_role("button", name="Rocket").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen[page.evaluate("document.activeElement.type || ''")] = ring(page)
    kinds = ("radio", "checkbox", "range")
    assert {k: seen.get(k) for k in kinds} == dict.fromkeys(kinds, "solid")
    page.get_by_role("tab", name="Attribute").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if "Rocket" in (page.evaluate("document.activeElement.innerText") or ""):
            break
    assert ring(page) == "solid"
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
    dark = "k => { dispatchEvent(new Event(k)); return document.body.classList.contains('dark'); }"
    assert [page.evaluate(dark, k) for k in ("beforeprint", "afterprint")] == [False, True]  # paper is white
    watched.check("keyboard")


def test_evidence_explains_downloads_and_replays(browser, stage, tmp_path):
    watched = Watched(browser)
    stage.service.offset = False
    page = watched.open(stage.url)
    watched.go("Evidence")
    expect(page.get_by_text(words.NO_ANSWER).first).to_be_visible()
    page.get_by_role("button", name="Download report").click()
    expect(page.get_by_text(f"No report. {words.NO_ANSWER}")).to_be_visible()
    page.get_by_role("button", name="Replay this report").click()
    expect(page.get_by_text(f"Not replayed. {words.NO_REPORT}")).to_be_visible()
    assert page.locator(".guda-says:visible").count() == 0  # that is no headline
    watched.go("Attribute")
    page.get_by_role("button", name="Generate and attribute").click()
    finished(page)
    watched.go("Evidence")
    expect(page.get_by_text(re.compile("timesteps 20-79 add most: 14 nats"))).to_be_visible()
    expect(page.get_by_role("region", name="What each range of timesteps adds")).to_contain_text("all: the score41")
    expect(page.locator(".guda-chart:visible")).to_have_count(2)
    page.get_by_label(words.WITH_FILE).check()
    with page.expect_download(timeout=SLOW) as download:
        page.get_by_role("button", name="Download report").click()
    expect(page.get_by_text(words.NO_FILE)).to_be_visible()
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
    expect(told).to_have_count(1)
    assert told.first.bounding_box()["width"] > 1000
    page.locator("input[type=file]").last.set_input_files(report)
    expect(page.get_by_text("Every score is the same to the last bit.")).to_be_visible()
    expect(told.filter(has_text="Most needed")).to_have_count(2)
    for which, of in zip(("First", "Second"), told.all(), strict=True):
        expect(of.get_by_role("heading", name=f"{which} report: report.zip")).to_be_visible()
        table = of.locator(".guda-scroll:has(.guda-scores)").first
        assert table.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert violations(page) == []
    watched.check("evidence")


def test_out_of_scope_names_no_group_until_somebody_unfolds_it(browser, stage, tmp_path):
    Image.new("RGB", (96, 96), "teal").save(tmp_path / "teal.png")
    watched, service = Watched(browser, dark=True), stage.service
    service.outcome, service.by_caption, service.scoped = "nothing", True, "out of scope"
    page = watched.open(stage.url)
    page.get_by_role("tab", name="Upload").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "teal.png")
    expect(page.get_by_label("Remove image").or_(page.get_by_label("Clear"))).to_be_visible()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label(words.TRY_CAPTIONS).check()
    page.get_by_label("LOGO (retrained; the oracle)").uncheck()
    expect(page.get_by_text("Quick, about 43 s")).to_be_visible()
    page.get_by_role("button", name="Attribute", exact=True).click()
    finished(page)
    says = page.locator(".guda-says").first
    expect(says).to_have_text(f"{OUT_OF_SCOPE} out of scope")
    names = [g.name for g in service.group_set.groups.values()]
    answer = page.locator(".guda-verdict, .guda-answered, .guda-other, .guda-out").all_inner_texts()
    assert not [n for n in names if any(n in part for part in answer)]  # folded away, whoever they are
    page.emulate_media(media="print")
    expect(page.locator(".guda-strip:visible, .guda-out:visible")).to_have_count(0)
    page.emulate_media(media="screen")
    expect(page.locator(".guda-strip:visible")).not_to_have_count(0)
    page.get_by_text(ALL_THE_SAME).click()
    expect(page.locator(".guda-chart:visible")).to_have_count(1)
    page.get_by_text(FIGURES).first.click()
    expect(page.locator(".guda-scores").first).to_contain_text(REASON)
    page.get_by_text("Other captions", exact=True).click()
    expect(page.get_by_role("region", name="The first group under each caption")).to_contain_text("no caption")
    watched.go("Evidence")
    expect(page.get_by_text(f"{VERDICTS['out of scope']} {CHOOSE}")).to_be_visible()
    group = page.get_by_role("combobox", name="Group")
    expect(group).to_have_value("")
    expect(page.get_by_text("timesteps")).to_have_count(0)
    group.click()
    page.get_by_role("option", name=names[0]).click()
    expect(page.get_by_text(f"{names[0]}: ").first).to_be_visible()
    assert violations(page) == []
    watched.check("scope")


def test_a_printed_report_that_is_out_of_scope_says_where_its_scores_are(browser, tmp_path):
    service = LightService()
    query = service.prepare(draw(tmp_path / "p.png", 0, side=32).read_bytes(), prompt="cat")
    scope = {"verdict": "out of scope", "reason": "It is a cat."}
    page = browser.new_page()
    page.set_content(opened(made(service, query, scope=scope))["report.html"].decode())
    summary = page.locator(".guda-two .guda-out > summary")
    for media, said in (("screen", "none"), ("print", '"The scores are in scores.csv."')):
        page.emulate_media(media=media)
        assert summary.is_visible() and summary.evaluate("e => getComputedStyle(e, '::after').content") == said
    page.close()


def test_a_long_caption_is_bounded_on_a_screen_and_whole_on_paper(browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content(f"<style>{RULES}</style>{note(caption_html('a cat ' * 330))}")
    heights = []
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        heights.append(page.locator("p").bounding_box()["height"])
    assert heights[0] < 150 < heights[1]
    page.close()


def test_the_expected_time_follows_the_last_answer(browser, stage):
    stage.service.estimate = lambda methods, effort: 0.01
    stage.service.delay = 0.2
    watched = Watched(browser)
    page = watched.open(stage.url)
    expect(page.get_by_text("Quick, about 1 s")).to_be_visible()
    page.get_by_role("button", name="Generate and attribute").click()
    finished(page)
    expect(page.get_by_text("Quick, about 1 s")).to_have_count(0)
    expect(page.get_by_text(re.compile(r"Quick, about \d+ s"))).to_be_visible()
    watched.check("learned")
