"""The answers of a visit and the map of any group: what is kept, what is refused, and a real Chromium."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect

from guda_core.answers.shown import NOTHING
from guda_core.errors import OptionError
from guda_core.picture_records import PlaceMap
from guda_core.records import Query
from guda_core.ui import past, words
from guda_core.ui.answer import Answer
from guda_core.ui.callbacks import Runs
from guda_core.ui.examples import FIRST
from guda_core.ui.layout import first_caption
from guda_core.ui.more_maps import mappable, one_map
from guda_core.ui.past import added, past_html, size_of
from guda_core.ui.several import said_of
from tests.chromium import SLOW, Watched, until
from tests.fakes import REASON, FakeService
from tests.test_browser_screens import violations

after = import_module("guda_core.ui.after")

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
NOW = datetime(2026, 11, 27, 9, 5, tzinfo=UTC)


def answer_of(service: FakeService, seed: int = 0, prompt: str = "a cup", effort: str = "quick") -> Answer:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    query = Query(pixels, None, prompt, f"{seed:064x}")
    found = {a.method: a for a in service.attribute(query, methods=["guda"], effort=effort)}
    return Answer(query, ("guda",), effort, found)


def test_of_an_answer_that_is_over_nobody_is_asked_next():
    service = FakeService()
    service.oracle = "agrees"
    answer = replace(answer_of(service), methods=("guda", "logo"))  # stopped before the oracle
    said = said_of(service, answer)
    assert said.headline.startswith("Most needed") and "asked next" not in str(said)
    screen = SimpleNamespace(**{k: k for k in ("says", "answer", "notes", "welcome", "picture", "again", "shown")})
    screen.panels = {"guda": "guda"}
    shown = Runs(service, screen)._whole_answer(answer)  # type: ignore[arg-type]
    assert "Most needed" in shown["says"] and "asked next" not in shown["says"]


def test_the_newest_comes_first_and_the_same_question_is_kept_once():
    service, kept = FakeService(), ()
    for seed in (1, 2, 1):
        kept = added(kept, answer_of(service, seed), NOW)
    assert [p.answer.query.image_hash[-1] for p in kept] == ["1", "2"] and kept[0].when == "09:05"
    assert len(added(kept, answer_of(service, 1, effort="full"), NOW)) == 3
    uploaded = answer_of(service, 1)
    uploaded = replace(uploaded, query=replace(uploaded.query, file_hash="f"))  # the same pixels, from a file
    assert added(kept, uploaded, NOW)[0].answer is uploaded and len(added(kept, uploaded, NOW)) == 3
    assert [p.number for p in kept] == [3, 2]  # none is given twice, so that an older list opens what it shows
    html = past_html(service, added(kept, answer_of(service, 3, prompt="<b>"), NOW))
    assert [int(n) for n in re.findall(r'data-row="(\d+)"', html)] == [4, 3, 2]
    assert html.count("data-row=") == 3 and "&lt;b&gt;" in html and "<b>&lt;" not in html
    assert "09:05 UTC, effort Quick" in html and past_html(service, ()) == ""


def test_what_was_stopped_does_not_take_the_place_of_the_whole_answer():
    service = FakeService()
    whole = answer_of(service)
    both = replace(whole, methods=("guda", "clip"))
    found = {a.method: a for a in service.attribute(both.query, methods=["guda", "clip"], effort="quick")}
    whole, stopped = replace(both, found=found), both  # stopped before the second method had answered
    kept = added(added(added((), whole, NOW), answer_of(service, 1), NOW), stopped, NOW)
    assert kept[0].answer is whole and len(kept) == 2
    assert added(added((), stopped, NOW), whole, NOW)[0].answer is whole
    strip = list(service.pictures(whole.query, method="guda"))[-1]
    drawn = replace(whole, shown=replace(whole.shown, strip=strip))
    assert added(added((), drawn, NOW), whole, NOW)[0].answer is drawn


def test_an_answer_that_is_not_whole_is_not_kept():
    service = FakeService()
    whole = answer_of(service)
    half = replace(whole, found={"guda": replace(whole.found["guda"], progress=0.5)})
    for answer in (None, half, replace(whole, found={}), replace(whole, methods=())):
        assert added((), answer) == ()


def test_number_and_memory_are_bounded(monkeypatch):
    service, kept = FakeService(), ()
    for seed in range(past.MOST + 3):
        kept = added(kept, answer_of(service, seed), NOW)
    assert len(kept) == past.MOST and kept[-1].answer.query.image_hash == f"{3:064x}"
    kl = kept[0].answer.found["guda"].kl
    arrays = [kl.t, kl.edges, kl.full, *kl.without.values()]
    assert kept[0].size == 64 * 64 * 3 + sum(a.nbytes for a in arrays)
    assert size_of({"a": [np.zeros(3), "text", 1.0, None]}) == 24
    monkeypatch.setattr(past, "MOST_BYTES", int(2.5 * kept[0].size))
    assert len(added(kept, answer_of(service, 50), NOW)) == 2
    monkeypatch.setattr(past, "MOST_BYTES", 1)
    assert len(added(kept, answer_of(service, 51), NOW)) == 1  # the one that stands there


def test_the_map_of_any_group_is_made_once_and_says_when_it_says_nothing():
    service = FakeService()
    answer = answer_of(service)
    ids = list(service.group_set.groups)
    last = next(g for g in reversed(ids) if g != service.first(answer.query))
    *shares, (found, said) = one_map(service, answer, last)
    assert shares == [0.0] and [t.group for t in found.shown.where] == [last]
    assert said == words.MAP_NOTHING.format(name=service.group_set.groups[last].name)
    *_, (more, said) = one_map(service, found, service.first(answer.query))
    assert [t.group for t in more.shown.where] == [service.first(answer.query), last] and "25 of 100" in said
    [(same, said)] = one_map(service, more, last)
    assert same is more and words.MAP_THERE in said
    assert more.report(service)  # the maps go into the report


def test_a_map_that_cannot_be_made_is_refused_in_a_sentence():
    service = FakeService()
    answer = answer_of(service)
    away = replace(answer, scope=replace(service.scope(answer.query), verdict="out of scope"))
    for given in (None, replace(answer, found={}), away):
        assert not mappable(service, given)
        with pytest.raises(OptionError, match="No map can be made here"):
            list(one_map(service, given, "noto"))
    for group in ("nobody", None, 3):
        with pytest.raises(OptionError, match="no such group"):
            list(one_map(service, answer, group))
    service.maps = lambda query, *, method, groups: (v for v in [0.0])  # its model cannot be used
    with pytest.raises(OptionError, match="There is no map of Noto Emoji"):
        list(one_map(service, answer, "noto"))


class Counted(FakeService):
    """Counts how often maps were asked for; one group has no model. slow: seconds before each of them."""

    slow = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.mapped: list[list[str]] = []
        self.unavailable = ("noto",)

    def maps(self, query: Query, *, method: str, groups: Sequence[str]) -> Iterator[PlaceMap | float]:
        self.mapped.append(list(groups))
        for _ in range(round(100 * self.slow)):
            time.sleep(0.01)
            yield 0.0
        yield from super().maps(query, method=method, groups=groups)


SERVICE = Counted


@pytest.mark.browser
def test_answers_come_back_and_any_group_has_a_map(browser, stage, monkeypatch):
    def slowly(*args):
        time.sleep(1.5)  # as on a busy server: the next press must not take an answer away before it is kept
        return added(*args)

    def done() -> None:
        expect(page.locator(".guda-status:visible").get_by_text(words.DONE, exact=True)).to_be_visible(timeout=SLOW)
        expect(page.get_by_role("button", name="Generate and attribute")).to_be_enabled()

    monkeypatch.setattr(after, "added", slowly)
    watched, service = Watched(browser, 1366, height=768), stage.service
    page = watched.open(stage.url)
    expect(page.locator(".guda-more-maps")).to_be_hidden()
    says = []
    for seed in ("1", "2"):
        page.get_by_role("textbox", name="Prompt").fill(f"cup {seed}")
        page.get_by_role("button", name="Generate and attribute").click()
        expect(page.get_by_text(f"Scored with the caption: cup {seed}")).to_be_visible()
        done()
        says.append(page.locator(".guda-says").first.inner_text())
    expect(page.get_by_text("This visit: 2 answers")).to_be_visible()
    chosen = page.get_by_role("combobox", name=words.MAP_OF)
    chosen.click()
    options = page.get_by_role("option")
    expect(options).to_have_count(len(service.group_set.groups) - 1)  # one has no model
    options.last.click()
    expect(page.get_by_text("the map says nothing. No place")).to_be_visible()
    expect(page.locator(".guda-maps li")).to_have_count(4)
    expect(page.locator(".guda-maps li").first).to_contain_text(NOTHING)
    done()
    service.fault = RuntimeError("nothing is computed again")
    page.get_by_text("This visit: 2 answers").click()
    assert violations(page) == []
    page.locator(".guda-past button").nth(1).click()
    expect(page.get_by_text("Scored with the caption: cup 1")).to_be_visible()
    expect(page.get_by_text(words.BROUGHT_BACK)).to_be_visible()
    assert page.locator(".guda-says").first.inner_text() == says[0]
    expect(page.locator(".guda-maps li")).to_have_count(3)
    assert REASON not in page.locator("body").inner_text()
    page.locator(".guda-past button").first.click()  # the list stays open
    expect(page.locator(".guda-maps li")).to_have_count(4)  # with the map that was made
    watched.check("past")


def told(response) -> bool:
    return response.request.method == "POST" and "gradio_api" in response.url


@pytest.mark.browser
def test_only_a_choice_makes_a_map_and_makes_it_once(browser, stage):
    watched, service = Watched(browser, 1366, height=768), stage.service
    page = watched.open(stage.url)
    generate = page.get_by_role("button", name="Generate and attribute")
    status = page.locator(".guda-status:visible")
    generate.click()
    expect(status.get_by_text(words.DONE, exact=True)).to_be_visible(timeout=SLOW)
    chosen, options = page.get_by_role("combobox", name=words.MAP_OF), page.get_by_role("option")
    with page.expect_response(told):
        chosen.click()
        expect(options.first).to_be_visible()
        page.keyboard.press("Tab")
    page.wait_for_timeout(700)
    expect(status.get_by_text(words.DONE, exact=True)).to_be_visible()
    expect(generate).to_be_enabled()
    assert len(service.mapped) == 1 and "no such group" not in page.locator("body").inner_text()
    service.slow = 60.0
    chosen.click()
    options.last.click()
    until(page, lambda: len(service.mapped) == 2)
    expect(generate).to_be_disabled()
    page.get_by_role("button", name="Cancel").click()
    expect(generate).to_be_enabled()
    expect(chosen).to_have_value("")  # else passing it would ask again
    service.slow = 0.0
    chosen.click()
    options.last.click()
    expect(page.get_by_text("the map says nothing. No place")).to_be_visible()
    expect(generate).to_be_enabled()
    page.wait_for_timeout(700)
    assert len(service.mapped) == 3 and service.mapped[1] == service.mapped[2]
    service.delay = 0.5  # a run that goes on while the drop-down is left for its button
    chosen.click()
    expect(options.first).to_be_visible()
    generate.click()
    expect(status.get_by_text("GUDA (unlearning):").first).to_be_visible()
    page.wait_for_timeout(700)
    expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    expect(generate).to_be_disabled()
    page.get_by_role("button", name="Cancel").click()
    expect(generate).to_be_enabled()
    assert len(service.mapped) == 3
    watched.check("map")


@pytest.mark.browser
def test_a_prompt_of_ones_own_stays_when_object_and_style_are_passed(browser, stage):
    watched = Watched(browser, 1366, height=768)
    page = watched.open(stage.url)
    prompt, style = page.get_by_role("textbox", name="Prompt"), page.get_by_role("combobox", name="Style")
    done = page.locator(".guda-status:visible").get_by_text("Done.")

    def passed() -> None:
        prompt.fill("a cup of my own")
        for name in ("Object", "Style"):
            with page.expect_response(told):
                page.get_by_role("combobox", name=name).focus()
                page.keyboard.press("Tab")
        page.wait_for_timeout(500)
        expect(prompt).to_have_value("a cup of my own")

    passed()
    style.click()
    page.get_by_role("option", name="OpenMoji").click()
    expect(prompt).to_have_value(first_caption(FakeService().group_set, FIRST.object_name, "openmoji"))
    filled = prompt.input_value()
    assert "artistic style featuring thick black outline" in filled and "OpenMoji" not in filled  # no group is named
    passed()
    page.locator(".guda-examples button").nth(1).click()  # which fills in another object and style
    expect(done).to_be_visible(timeout=SLOW)
    passed()
    watched.check("prompt")


@pytest.mark.browser
def test_far_from_the_server_the_last_choice_counts(browser, stage, tmp_path, monkeypatch):
    real = gr.Blocks.process_api

    async def late(*args, **more):
        await asyncio.sleep(0.5)
        return await real(*args, **more)

    watched, sets = Watched(browser, 1366, height=768), stage.service.group_set
    page = watched.open(stage.url)
    monkeypatch.setattr(gr.Blocks, "process_api", late)
    prompt, style = page.get_by_role("textbox", name="Prompt"), page.get_by_role("combobox", name="Style")
    for name in ("OpenMoji", "Twemoji"):
        style.click()
        page.get_by_role("option", name=name).click()
    expect(prompt).to_have_value(first_caption(sets, FIRST.object_name, "openmoji"))  # comes first, and does not stay
    expect(prompt).to_have_value(first_caption(sets, FIRST.object_name, "twemoji"))
    for name in ("Upload", "Generate", "Upload"):
        page.get_by_role("tab", name=name).click()
    generate = page.get_by_role("button", name="Generate and attribute")
    expect(generate).to_be_hidden()
    expect(page.get_by_role("button", name="Attribute", exact=True)).to_be_visible()
    info = PngInfo()
    info.add_text("parameters", "a (teal:1.2) square\nNegative prompt: photo\nSteps: 20, Sampler: DDIM")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "made.png", pnginfo=info)
    caption, unread = page.get_by_role("textbox", name="Caption"), page.get_by_text("Weights and tags mean nothing")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "made.png")
    expect(unread).to_be_visible()
    page.get_by_label("Remove image").or_(page.get_by_label("Clear")).click()
    expect(caption).to_have_value("")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "made.png")
    expect(caption).to_have_value("a (teal:1.2) square")
    caption.press("End")
    caption.press("s")  # while it is read: from here on the words are the visitor's own
    page.wait_for_timeout(2500)
    expect(unread).to_have_count(0)
    page.get_by_role("tab", name="Generate").click()
    expect(generate).to_be_visible()
    watched.check("late")
