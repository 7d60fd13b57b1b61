"""Several pictures at once: the table, its files, what is refused, and a real Chromium."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect

from guda_core.answers.markup import status_html
from guda_core.answers.verdict import OUT_OF_SCOPE
from guda_core.errors import ImageError, OptionError
from guda_core.reports.read import read_report
from guda_core.ui import build_ui, several, words
from guda_core.ui.several import Several, begun, csv_of, one, reports_of, rows_html
from guda_core.ui.several_screen import TAB, _Work, draw
from tests.chromium import SLOW, Watched, go, until
from tests.fakes import FakeService, serving
from tests.test_browser_screens import violations

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
FORMULA = "=1+1.png"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The upload cache."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


def picture(folder: Path, name: str, colour: str = "teal") -> str:
    Image.new("RGB", (64, 48), colour).save(folder / name)
    return str(folder / name)


def through(service: FakeService, files: list[str]) -> Several:
    """All pictures, one by one."""
    known = begun(service, files, "quick", None)
    while known.left:
        known = list(one(service, known))[-1][0]
    return known


def test_each_picture_is_a_row_and_a_refused_one_says_why(cache):
    service = FakeService()
    (cache / "none.png").write_bytes(b"no picture")
    known = through(service, [picture(cache, FORMULA), str(cache / "none.png"), picture(cache, "b.png", "red")])
    assert [i.answer is None for i in known.items] == [False, True, False]
    assert known.items[0].answer.shown.near  # as on the first screen
    html = rows_html(service, known)
    names = {g: group.name for g, group in service.group_set.groups.items()}
    for item in (known.items[0], known.items[2]):
        assert f"Most needed: {names[service.first(item.answer.query)]}" in html
    assert html.count("data-row=") == 2 and "Refused. Only PNG" in html and "It could have." in html
    rows = list(csv.DictReader(io.StringIO(csv_of(service, known).decode("utf-8-sig"))))
    assert [r["file"] for r in rows] == [f"'{FORMULA}", "none.png", "b.png"]
    assert (float(rows[0]["score"]), rows[0]["state"], rows[0]["unit"]) == (41.0, "clear", "nats")
    assert rows[1]["state"] == "refused" and rows[1]["refused"].startswith("Only PNG") and rows[1]["score"] == ""


def test_prompts_that_programs_wrote_into_the_files_are_not_used_and_counted(cache):
    service, info = FakeService(), PngInfo()
    files = [picture(cache, "a.png"), str(cache / "b.png")]
    info.add_text("parameters", "a house\nNegative prompt: photo\nSteps: 20, Sampler: DDIM")
    Image.new("RGB", (64, 48), "red").save(files[1], pnginfo=info)
    known = through(service, files)
    assert [i.answer.query.prompt for i in known.items] == ["", ""] and [i.written for i in known.items] == [
        False,
        True,
    ]
    assert words.NOT_USED.format(many=1, of=2) in rows_html(service, known)
    assert "wrote into them" not in rows_html(service, through(service, files[:1]))


def test_the_reports_are_those_of_single_answers(cache, tmp_path):
    service = FakeService()
    known = through(service, [picture(cache, "a.png"), picture(cache, "b.png", "red")])
    *shares, data = reports_of(service, known)
    assert shares == [0.0, 0.5]
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        reports = [n for n in z.namelist() if n.startswith("reports/")]
        assert len(reports) == 2 and set(z.namelist()) == {"pictures.csv", "scores.csv", *reports}
        assert len(list(csv.DictReader(io.StringIO(z.read("scores.csv").decode())))) == 2 * 2 * len(
            service.group_set.groups
        )
        z.extract(reports[1], tmp_path)
    record = read_report(tmp_path / reports[1]).record
    assert record["picture"]["pixels_sha256"] == known.items[1].answer.query.image_hash


def test_out_of_scope_names_no_group_in_the_table(cache):
    service = FakeService()
    service.scoped = "out of scope"
    known = through(service, [picture(cache, "a.png")])
    html, names = rows_html(service, known), [g.name for g in service.group_set.groups.values()]
    assert OUT_OF_SCOPE in html and not [n for n in names if n in html] and "41" not in html
    [row] = csv.DictReader(io.StringIO(csv_of(service, known).decode("utf-8-sig")))
    assert row["group"] == row["score"] == "" and row["scope"] == row["state"] == "out of scope"


def test_what_was_stopped_goes_on_and_other_pictures_begin_anew(cache):
    service = FakeService()
    files = [picture(cache, "a.png"), picture(cache, "b.png")]
    half = list(one(service, begun(service, files, "quick", None)))[-1][0]
    on = begun(service, files, "quick", half)
    assert on.items == half.items and on.left == 1
    assert begun(service, files[::-1], "quick", half).items == () == begun(service, files, "full", half).items
    working = one(service, on)
    next(working)
    working.close()
    assert service.at_work == 0


def test_names_are_told_apart_and_read_in_one_direction(cache):
    service, files = FakeService(), []
    for i, name in enumerate(
        ("same.png", "same.png", "same.png", "\u202egnp.exe.png", "é;=1+1.png", "x" * 90 + ".png")
    ):
        (cache / str(i)).mkdir()
        files.append(picture(cache / str(i), name))
    known = through(service, files)
    names = [i.name for i in known.items]
    assert names[:4] == ["same.png", "same.png (2)", "same.png (3)", "gnp.exe.png"]
    html, data = rows_html(service, known), csv_of(service, known)
    assert all(f"<td>{name}</td>" in html for name in names[:4])
    assert f"<td>{'x' * 40}...{'x' * 13}.png</td>" in html
    assert data.startswith(b"\xef\xbb\xbffile,")  # so that a spreadsheet reads UTF-8
    assert "é;'=1+1.png," in data.decode("utf-8-sig")  # also where ; parts the cells


def test_a_stop_when_nothing_is_left_says_that_all_is_done(cache):
    service = FakeService()
    files = [picture(cache, "a.png"), picture(cache, "b.png", "red")]
    with gr.Blocks():
        p = draw()
    work, half = _Work(p, service), list(one(service, begun(service, files, "quick", None)))[-1][0]
    assert words.GO_ON in work.stopped(half)[p.status] and work.failed(half, True) == work.stopped(half)
    said = work.stopped(list(one(service, half))[-1][0])
    assert said[p.status] == status_html(words.DONE) and said[p.start]["interactive"]


def test_too_many_none_and_strange_paths_are_refused(cache, tmp_path, monkeypatch):
    service = FakeService()
    picture(tmp_path, "outside.png")
    for files in ([], [str(cache / ".hidden.png")]):
        with pytest.raises(ImageError, match="no pictures yet"):
            begun(service, files, "quick", None)
    with pytest.raises(ImageError, match="Only what you upload"):
        begun(service, [str(tmp_path / "outside.png")], "quick", None)
    monkeypatch.setenv(several.VARIABLE, "1")
    with pytest.raises(OptionError, match=r"These are 2 pictures\. At most 1 can .* guda attribute FOLDER"):
        begun(service, [picture(cache, "a.png"), picture(cache, "b.png")], "quick", None)
    monkeypatch.setenv(several.VARIABLE, "none")
    with pytest.raises(OptionError, match="must be a whole number"):
        build_ui(service)


@pytest.mark.browser
def test_a_table_fills_stops_goes_on_and_opens_an_answer(browser, tmp_path):
    watched, service = Watched(browser, 1366, height=768), FakeService()
    (tmp_path / "none.png").write_bytes(b"no picture")
    files = [picture(tmp_path, "a.png"), str(tmp_path / "none.png"), picture(tmp_path, "c.png", "red")]
    with serving(service) as url:
        page = watched.open(url)
        go(page, TAB)
        page.get_by_role("button", name="Attribute all").click()
        expect(page.get_by_text(f"Not started. {words.NO_PICTURES}")).to_be_visible()
        page.locator("input[type=file]:not([webkitdirectory])").last.set_input_files(files)
        expect(page.get_by_role("cell", name="none.png", exact=True)).to_be_visible()
        service.delay, service.passes = 0.05, 4000
        page.get_by_role("button", name="Attribute all").click()
        until(page, lambda: service.at_work == 1)
        expect(page.get_by_text("Picture 1 of 3")).to_be_visible()
        expect(
            page.get_by_role("button", name="Download all reports")
        ).to_be_disabled()  # it would write into that line
        page.get_by_role("button", name="Stop", exact=True).click()
        until(page, lambda: service.at_work == 0)
        expect(page.get_by_text(words.STOPPED)).to_be_visible()
        service.delay, service.passes = 0.0, 2
        page.get_by_role("button", name="Attribute all").click()
        rows = page.locator(".guda-several tbody tr")
        expect(rows).to_have_count(3, timeout=SLOW)
        expect(page.locator(".guda-status:visible").get_by_text(words.DONE)).to_be_visible()
        expect(rows.nth(1)).to_contain_text("Refused. Only PNG")
        with page.expect_download(timeout=SLOW) as download:
            page.get_by_role("button", name="Download the table").click()
        download.value.save_as(tmp_path / "t.csv")
        written = csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text(encoding="utf-8-sig")))
        assert [r["file"] for r in written] == ["a.png", "none.png", "c.png"]
        with page.expect_download(timeout=SLOW) as download:
            page.get_by_role("button", name="Download all reports").click()
        download.value.save_as(tmp_path / "reports.zip")
        assert len(zipfile.ZipFile(tmp_path / "reports.zip").namelist()) == 4
        expect(page.get_by_role("button", name="Attribute all")).to_be_enabled()
        assert violations(page) == []
        page.emulate_media(media="print", reduced_motion="reduce")
        look = "e => { const s = getComputedStyle(e); return [s.printColorAdjust, s.transitionProperty]; }"
        assert rows.first.locator(".guda-chip").evaluate(look) == ["exact", "none"]
        expect(page.get_by_role("columnheader", name="Whole answer")).to_be_hidden()  # nothing is pressed on paper
        expect(page.locator(".gradio-container").first).to_have_css("overflow", "visible")  # nor is the end cut off
        expect(page.locator(".guda-several thead")).to_have_css("display", "table-row-group")
        page.emulate_media(media="screen", reduced_motion="no-preference")
        page.set_viewport_size({"width": 390, "height": 844})
        watched.fits()
        for column in (4, 5):  # score and interval
            expect(rows.nth(2).locator("td").nth(column)).to_be_visible()
        for part in (rows.nth(2).get_by_role("button"), rows.nth(2).locator(".guda-chip")):
            box = part.bounding_box()
            assert box["x"] + box["width"] <= 390  # a row is a card, with nothing to scroll for
        page.set_viewport_size({"width": 1366, "height": 768})
        said = rows.nth(2).locator("td").nth(2).inner_text()
        rows.nth(2).locator("td").nth(1).click()  # anywhere in the row
        expect(page.locator(".guda-says:visible").first).to_contain_text(said)
        expect(page.get_by_text(words.BROUGHT_BACK)).to_be_visible()
        expect(page.locator(".guda-chart:visible")).to_have_count(1)
        go(page, TAB)
        page.get_by_role("button", name="Open the answer of a.png").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#guda-answer")).to_be_focused()  # who came by keyboard goes on from there
        service.delay, service.passes = 0.05, 4000
        page.get_by_role("button", name="Generate and attribute").click()
        until(page, lambda: service.at_work == 1)
        go(page, TAB)
        rows.nth(2).locator("td").nth(1).click()
        expect(page.get_by_text(words.FIRST_BUSY)).to_be_visible()
        watched.check("opened")


@pytest.mark.browser
def test_whatever_finds_the_queue_full_says_so_and_the_page_stays_alive(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("guda_core.ui.QUEUE", 1)
    service, others = FakeService(), [Watched(browser), Watched(browser)]
    with serving(service) as url:
        watched = Watched(browser)
        page = watched.open(url)
        go(page, TAB)
        page.locator("input[type=file]:not([webkitdirectory])").last.set_input_files(picture(tmp_path, "a.png"))
        expect(page.get_by_role("cell", name="a.png", exact=True)).to_be_visible()
        page.get_by_role("button", name="Attribute all").click()
        expect(page.locator(".guda-several tbody tr")).to_have_count(1, timeout=SLOW)
        service.delay, service.passes = 0.2, 4000
        for other in others:
            with other.open(url).expect_response(re.compile("queue/join")):
                other.page.get_by_role("button", name="Generate and attribute").click()
            until(page, lambda: service.at_work == 1)
        page.get_by_role("button", name="Download all reports").click()
        expect(page.get_by_text(f"No reports. {words.NOT_STARTED}")).to_be_visible(timeout=SLOW)
        expect(page.get_by_role("button", name="Attribute all")).to_be_enabled()
        page.locator(".guda-several tbody td").nth(1).click()
        expect(page.get_by_text(words.BROUGHT_BACK)).to_be_visible()
        go(page, "Evidence")
        page.get_by_role("button", name="Download report").click()
        expect(page.get_by_text(f"No report. {words.NOT_STARTED}")).to_be_visible(timeout=SLOW)
        go(page, "Attribute")
        page.get_by_role("button", name="Generate and attribute").click()
        expect(page.get_by_role("heading", name="Not started")).to_be_visible(timeout=SLOW)
        expect(page.get_by_text(words.NOT_STARTED, exact=True)).to_be_visible()
        go(page, "Limits")  # the page stays alive
        expect(page.get_by_text("What a score means")).to_be_visible()
        for other in others:
            other.page.close()
        watched.check("full")
