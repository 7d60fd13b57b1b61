"""Strip and maps on the page, in a real Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from guda_core.answers.shown import NOTHING
from guda_core.ui import words
from tests.chromium import SLOW, Watched
from tests.fakes import FakeService, serving
from tests.test_browser_screens import violations

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's use of pandas 3
]


def test_strip_and_maps_stand_below_the_answer_and_come_back_with_a_kept_example(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "cache"))
    watched, service = Watched(browser, 1440), FakeService()
    with serving(service) as url:
        page = watched.open(url)
        for end in (words.DONE, words.STORED):
            page.get_by_role("button", name="Rocket").click()
            expect(page.locator(".guda-status").get_by_text(end).first).to_be_visible(timeout=SLOW)
            cells = page.locator(".guda-drawings:not(.guda-maps):not(.guda-near) li")
            expect(cells).to_have_count(1 + len(service.group_set.groups))
            expect(cells.nth(1)).to_contain_text("1.00")  # what differs most stands first
            expect(cells.nth(2)).to_contain_text("0.00")
            expect(page.locator(".guda-maps li")).to_have_count(3)
            expect(page.locator(".guda-maps li").nth(0)).to_contain_text("25 of 100 places")
            expect(page.locator(".guda-maps li").nth(1)).to_contain_text(NOTHING)
        near = page.locator(".guda-near li")
        expect(near).to_have_count(2)
        expect(near.first).to_contain_text("cat face: 0.75")
        expect(near.locator("img")).to_have_count(1)
        page.screenshot(path=tmp_path / "pictures.png", full_page=True)
        assert watched.height() < 2500 and violations(page) == []
