"""A Space of somebody's own model, started by one variable from the hub, in a real Chromium: its name, groups, credits
and limits, and nothing of the included model."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from guda_core.answers.verdict import NO_EXAMPLES
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import find_card
from guda_core.local import load_service
from guda_core.publishing.published import publish
from guda_core.ui import benchmarks, words
from tests.chromium import SLOW, Watched
from tests.fakes import serving
from tests.loopback_hub import loopback_hub
from tests.own_pictures import guda
from tests.own_workspace import own_workspace

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's use of pandas 3
]
TABS = ("Compare", "Evidence", "Benchmarks", "Style groups", "Limits")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch, loopback_hub(root) as hub:
        patch.setenv("GUDA_HOME", str(root / "home"))
        patch.setenv("GUDA_CACHE", str(root / "cache"))
        own_workspace(root / "home")
        guda("assets", "bank")
        hub.upload("ann/brush", publish(find_card("brush"), load_group_set("artists"), with_model=True).folder)
        patch.setenv("GUDA_HOME", "hub:ann/brush")
        yield load_service()


def test_the_page_is_about_that_model_and_has_no_word_of_the_emoji(browser, tmp_path, monkeypatch, service):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GUDA_HOME", "hub:ann/brush")
    watched = Watched(browser, 1440)
    page, said = watched.page, []
    with serving(service) as url:
        page.goto(url)
        expect(page.get_by_text(NO_EXAMPLES.plain)).to_be_visible(timeout=SLOW)
        expect(page).to_have_title(f"The brush: {words.TITLE}")
        expect(page.locator(".guda-title")).to_contain_text("Here: The brush.")
        expect(page.locator(".guda-seen")).to_contain_text("three groups of training pictures, at 16 by 16 pixels")
        assert page.locator(".guda-examples").count() == 0
        page.get_by_role("button", name="Generate and attribute", exact=True).click()
        expect(page.get_by_text(words.DONE, exact=True)).to_be_visible(timeout=SLOW)
        expect(page.locator(".guda-chart").first.locator(".measured")).to_have_count(3)
        page.get_by_text("Who drew what").click()
        expect(page.get_by_role("region", name="Who drew each group")).to_contain_text("CC-BY-4.0")
        for name in TABS:
            watched.go(name)
            page.wait_for_timeout(200)
            said.append(page.locator("body").inner_text())
            for width in (390, 1440):
                page.set_viewport_size({"width": width, "height": 900})
                watched.fits()
            if name == "Benchmarks":
                expect(page.get_by_text(benchmarks.NOT_MEASURED)).to_be_visible()
            if name == "Style groups":
                table = page.get_by_role("region", name="Groups, authors and licences")
                expect(table).to_contain_text("by Bo Chan")
                assert "0 objects" not in said[-1] and "guda groups new" in said[-1] and "secret" not in said[-1]
        assert "emoji" not in (page.content() + "".join(said)).lower()
        watched.check("done")
