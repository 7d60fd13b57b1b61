"""The screen of a table of scores: pages, filters, one picture's bars, texts from outside, and a real Chromium."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client
from playwright.sync_api import expect
from typer.testing import CliRunner

from guda_core.answers.sentences import ALL_THE_SAME
from guda_core.answers.verdict import lead_said, verdict
from guda_core.cli import app
from guda_core.errors import OptionError
from guda_core.records import MethodInfo
from guda_core.scoring.asking import Asked, Results
from guda_core.ui import build_ui, results_screen
from guda_core.ui.results_screen import ROWS, answer_of, asked_of, opened, page
from tests.chromium import SLOW, Watched, go
from tests.fakes import FakeService, serving
from tests.light import LightService, draw
from tests.table_works import folder_of
from tests.table_works import run as make_table
from tests.test_browser_screens import violations

ODD = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Twenty pictures, one of them with an odd name, and one that is none."""
    where = tmp_path_factory.mktemp("screen")
    folder = folder_of(where / "in", 18)
    draw(folder / ODD, seed=40)
    (folder / "zero.png").write_bytes(b"")
    make_table(folder, where / "out", LightService)
    return where / "out"


@pytest.fixture
def results(out) -> Results:
    return Results(str(out))


def test_what_is_said_of_the_first_group_is_what_the_first_screen_says():
    """Its lead, and whether its drop is above 0 at all; with the same bars."""
    of = [("a", "Ann", 30.0, 26.0, 34.0), ("b", "Bo", 5.0, 1.0, 9.0)]
    rows = [
        {"group_id": g, "group_name": n, "score": s, "low": low, "high": high, "status": "ok", "reason": "",
         "method": "guda", "unit": "nats", "told_apart": True}
        for g, n, s, low, high in of
    ]  # fmt: skip
    assert lead_said(*answer_of(rows)) == "Ann is ahead of Bo."
    a, groups = answer_of(rows, {"a": 28.0, "b": 2.0})
    v = verdict({"guda": a}, groups, ["guda"], {"guda": MethodInfo("guda", "GUDA", "nats", "", True)})
    assert lead_said(a, groups) == f"{v.headline}. {v.plain}" and v.headline == "No group stands out"
    a, groups = answer_of([{**r, "told_apart": False} for r in rows])
    assert lead_said(a, groups) == "Ann and Bo are not separable."
    a, groups = answer_of([{**r, "told_apart": None, "unit": "cosine"} for r in rows])
    assert lead_said(a, groups) == ""


def test_pages_hold_every_row_once(results):
    asked, start, seen = Asked(), 0, []
    count = results.count(asked)
    while start < count:
        at, where, html, *_ = page(results, asked, "picture", start)
        assert at == start and f"of {count:,}, scored by" in where
        seen += re.findall(r"<tr><td>(.*?)</td>", html)
        start += ROWS
    assert len(seen) == count and len(set(seen)) == 20
    assert page(results, asked, "picture", 10**9)[0] == (count - 1) // ROWS * ROWS
    assert page(results, asked, "picture", -ROWS)[0] == 0
    nothing = page(results, asked_of("no such name", "", "", "", "", False), "score", 0)
    assert "No rows" in nothing[1] and nothing[3] == []


def test_controls_filter_and_sort(results):
    _, _, html, names, all_rows = page(results, asked_of("00", "noto", "clip", "in scope", "ok", False), "score", 0)
    assert len(names) == all_rows == 10 and "guda" not in html.partition("<tbody>")[2]
    scores = [float(s) for s in re.findall(r'<td class="n">(0\.\d+) cosine</td>', html)]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    assert page(results, asked_of("", "", "", "", "refused", True), "picture", 0)[3] == ["zero.png"]


def test_a_picture_opens_with_the_bars_of_its_rows(results):
    html = opened(results, "003.png")
    rows = [r for r in results.rows(Asked(picture="003.png")) if r["method"] == "guda"]
    answer, groups = answer_of(rows)
    assert answer.ranked() == [r["group_id"] for r in sorted(rows, key=lambda r: r["rank"] or 99) if r["rank"]]
    assert html.count("guda-chart") == 2 and "are not separable" in html and groups.groups["noto"].name in html
    assert html.index(">guda<") < html.index(">clip<") and ALL_THE_SAME not in html
    firsts, whole = (page(away_results(results), Asked(first=f), "picture", 0)[2] for f in (True, False))
    assert '<td class="n">-</td><td>out of scope</td><td class="n">-</td>' in firsts  # rank, group, score
    assert groups.groups["noto"].name not in firsts and "nats" not in firsts
    assert groups.groups["noto"].name in whole and "nats" in whole  # for who asked for all groups
    away = opened(away_results(results), "003.png")
    assert ALL_THE_SAME in away and away.index(ALL_THE_SAME) < away.index("guda-chart")
    assert "0 bytes" in opened(results, "zero.png")
    assert "<img" not in opened(results, ODD) and "<img" not in page(results, Asked(), "picture", 0)[2]
    assert "<b>" not in opened(results, "<b>") and "no picture" in opened(results, "<b>")


def test_a_table_that_goes_on_or_is_made_anew_is_seen_at_the_next_press(tmp_path):
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    make_table(folder, out, LightService)
    found = Results(str(out))
    assert "Rows 1 to 4 of 4, scored by A fake" in page(found, Asked(first=True), "picture", 0)[1]
    draw(folder / "one more.png", 9)
    make_table(folder, out, LightService)
    assert "Rows 1 to 6 of 6" in page(found, Asked(first=True), "picture", 0)[1]
    shutil.rmtree(out)
    other = LightService()
    other.change(name="Another model", sha256="9" * 64)
    make_table(folder, out, lambda: other)
    where = page(found, Asked(), "picture", 0)[1]
    assert "scored by Another model" in where and "Another model" in results_screen._head(found)
    assert {r["model_sha256"] for r in found.rows(Asked())} == {"9" * 64}


def away_results(results: Results) -> Results:
    """The same, where every picture is out of scope."""

    class Away(Results):
        def __init__(self) -> None:
            pass

        def at_once(self):
            return results.at_once()

        def methods(self):
            return results.methods()

        def count(self, *asked):
            return results.count(*asked)

        def made_from(self):
            return results.made_from()

        def offsets(self):
            return results.offsets()

        def rows(self, *asked, **more):
            return [{**r, "scope": "out of scope"} for r in results.rows(*asked, **more)]

    return Away()


def test_the_tab_is_there_only_where_results_were_named_and_reads_in_a_queue(out, tmp_path, monkeypatch):
    def tabs(page: gr.Blocks) -> list[str]:
        return [c["props"]["label"] for c in page.config["components"] if c["type"] == "tabitem"]

    assert results_screen.TAB not in tabs(build_ui(FakeService()))
    monkeypatch.setenv("GUDA_RESULTS", str(out))
    with_results = build_ui(FakeService())
    assert results_screen.TAB in tabs(with_results)
    found = [f for f in with_results.fns.values() if getattr(f.fn, "__module__", "") == results_screen.__name__]
    reading = [f for f in found if f.fn.__name__ in ("fresh", "back", "on", "show", "entered")]
    assert len(reading) == 5 and all(f.queue and f.concurrency_limit == 2 for f in reading)
    assert {f.concurrency_id for f in reading} == {"results"}  # all of them together: the table is read in a queue
    monkeypatch.setenv("GUDA_RESULTS", str(tmp_path))
    with pytest.raises(OptionError, match="There are no results"):
        build_ui(FakeService())
    done = CliRunner().invoke(app, ["app", "--results", str(tmp_path / "none")])
    assert done.exit_code == 2 and "There are no results" in " ".join(done.output.split())


def test_no_program_reaches_the_screen_by_name(out, monkeypatch):
    monkeypatch.setenv("GUDA_RESULTS", str(out))
    with serving(FakeService()) as url:
        named = Client(url, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert not [n for n in named if n.strip("/") in ("fresh", "back", "on", "show", "turned", "entered")]


def test_whoever_opens_the_tab_sees_the_table_as_it_is_then(tmp_path, monkeypatch):
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    make_table(folder, out, LightService)
    monkeypatch.setenv("GUDA_RESULTS", str(out))
    (entered,) = (f.fn for f in build_ui(FakeService()).fns.values() if getattr(f.fn, "__name__", "") == "entered")
    asked = (0, "picture", "one more.png", "", "", "", "", "", True)
    before = entered(*asked)
    assert "2 pictures: 2 scored" in before[0] and "There is no picture" in before[-1]
    draw(folder / "one more.png", 9)
    make_table(folder, out, LightService)
    head, _, methods, start, where, _, picture, *turns, opened = entered(*asked)
    assert "3 pictures: 3 scored" in head and start == 0 and "Rows 1 to 6 of 6" in where
    assert not any(button["interactive"] for button in turns)  # there is one page
    assert (
        "SHA-256 of the file" in opened
        and "one more.png" in picture["choices"]
        and "value" not in picture
        and ("guda" in methods["choices"])
    )
    shutil.rmtree(out)
    assert "There are no results" in entered(*asked)[0]


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
def test_someone_filters_turns_the_page_and_opens_a_picture(browser, out, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GUDA_RESULTS", str(out))
    watched = Watched(browser, dark=True)
    with serving(FakeService()) as url:
        shown = watched.open(url)
        go(shown, results_screen.TAB)
        expect(shown.get_by_text("Rows 1 to 39 of 39, scored by ")).to_be_visible(timeout=SLOW)
        back, on = (shown.get_by_role("button", name=f"{name} page") for name in ("Previous", "Next"))
        for button in (back, on):
            expect(button).to_be_disabled()
        shown.get_by_label("Only the first group").uncheck()
        expect(shown.get_by_text("Rows 1 to 50 of 305, scored by ")).to_be_visible(timeout=SLOW)
        expect(back).to_be_disabled()
        on.click()
        expect(shown.get_by_text("Rows 51 to 100 of 305,")).to_be_visible(timeout=SLOW)
        expect(back).to_be_enabled()
        shown.get_by_label("Picture's name contains").fill("003")
        expect(shown.get_by_text("Rows 1 to 16 of 16, scored by ")).to_be_visible(timeout=SLOW)
        shown.get_by_label("Open a picture").fill("003.png")
        shown.keyboard.press("Enter")
        expect(shown.locator(".guda-chart:visible")).to_have_count(2, timeout=SLOW)
        assert violations(shown) == []
        watched.fits()
        shown.set_viewport_size({"width": 390, "height": 900})
        shown.evaluate("document.body.classList.remove('dark')")
        expect(shown.locator(".guda-chart:visible")).to_have_count(2)
        assert violations(shown) == []
        watched.check("results")
