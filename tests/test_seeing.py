"""Strip and maps on the page: who makes them, when they are left out, and that this is always said."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import typer.main
from gradio_client import handle_file
from PIL import Image

from guda_core.answers.shown import COMMAND, shown_html
from guda_core.attribution import counterfactual_pictures, maps
from guda_core.attribution.counterfactual import Counterfactual
from guda_core.cli import app
from guda_core.errors import ModelError
from guda_core.picture_records import Near, PlaceMap, Shown, Strip, Tile
from guda_core.records import Provenance, Query
from guda_core.service import ALONE, MAPPED, NO_NEAR, REDRAWN, map_passes, strip_passes
from guda_core.ui import seeing, words
from guda_core.ui.answer import Answer
from guda_core.ui.callbacks import Runs, explained
from guda_core.ui.more_maps import one_map
from guda_core.ui.progress import STRIP, WHERE, Pictures, Progress, plan
from tests.fakes import FakeService, serving
from tests.test_examples import answered
from tests.test_progress import value
from tests.test_ui_api import Visitor, text
from tests.tiny import tiny_service

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3


class Broken(FakeService):
    """Fails within the strip or the maps, after the first of them; or beside the scores."""

    strip_fault: Exception | None = None
    maps_fault: Exception | None = None
    near_fault: Exception | None = None
    caption_fault: Exception | None = None

    def nearest(self, query: Query) -> tuple[Near, ...]:
        if self.near_fault is not None:
            raise self.near_fault
        return super().nearest(query)

    def best_caption(self, query: Query) -> str:
        if self.caption_fault is not None:
            raise self.caption_fault
        return super().best_caption(query)

    def pictures(self, query: Query, *, method: str) -> Iterator[Strip]:
        for strip in super().pictures(query, method=method):
            yield strip
            if self.strip_fault is not None:
                raise self.strip_fault

    def maps(self, query: Query, *, method: str, groups) -> Iterator[PlaceMap | float]:
        for item in super().maps(query, method=method, groups=groups):
            yield item
            if self.maps_fault is not None and isinstance(item, PlaceMap):
                raise self.maps_fault


class Retrained(FakeService):
    """Has retrained models beside the unlearned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = "agrees"

    def provenance(self) -> Provenance:
        made = super().provenance()
        return replace(made, models={**made.models, "logo": made.models["guda"]})


def seen(service: FakeService, answer: Answer, progress: Progress) -> Shown:
    """What the pictures of an answer end with. The bar never falls, and ends where all of it is done."""
    shown, bars = answer.shown, []
    for m in answer.methods:
        progress.at(m, 1.0)
    for shown, status in seeing.seen_in_pictures(service, answer, progress, explained):  # noqa: B007
        bars.append(value(status))
    assert all(a <= b for a, b in pairwise(bars))
    assert shown.missing or bars[-1] == 1
    return shown


def planned(service: FakeService, effort: str = "quick", steps: int = 9) -> Progress:
    return plan(service, ["guda"], effort, pictures=seeing.pictures_of(service, ["guda"], effort, steps))


def html(service: FakeService, shown: Shown) -> str:
    return text(shown_html(shown, service.group_set, service.methods()))


def test_maps_say_how_many_draws_their_nats_are_from():
    service = FakeService()
    tile = Tile(next(iter(service.group_set.groups)), np.zeros((8, 8, 3), np.uint8), 0.5, 3.0)
    said = "Its nats are the drop at 4 draws in each range of timesteps, without the offset. So they are not the score."
    assert said in html(service, Shown(where=(tile,), draws=4)) and "draws" not in html(service, Shown(where=(tile,)))


def test_the_passes_are_those_that_are_made(tmp_path):
    assert REDRAWN == counterfactual_pictures.STEPS and MAPPED == maps.STRATA * maps.DRAWS
    service, made = tiny_service(tmp_path), []
    *_, drawn = service.generate(prompt="cup", seed=1, steps=3, guidance=2.5)
    assert isinstance(drawn, Query)
    data = io.BytesIO()
    Image.fromarray(drawn.pixels).save(data, format="PNG")
    service.model.network.register_forward_pre_hook(lambda _, inputs: made.append(len(inputs[0])))

    def passes(stream: Iterator[object]) -> int:
        made.clear()
        list(stream)
        return sum(made)

    upload = service.prepare(data.getvalue())
    method, two = service.offered["guda"], list(service.group_set.groups)[:2]
    assert isinstance(method, Counterfactual)
    assert passes(counterfactual_pictures.pictures_without(method, drawn, two)) == strip_passes(2, 3)
    assert passes(counterfactual_pictures.pictures_without(method, upload, two)) == strip_passes(2, 0)
    assert passes(service.maps(drawn, method="guda", groups=two[:1])) == map_passes(1)


def test_what_would_take_too_long_is_not_made_and_the_page_says_why(monkeypatch):
    service = FakeService()
    took = sum(seeing.pictures_of(service, ["guda"], "quick", 9).seconds.values())
    passes = ALONE * strip_passes(8, 9) + map_passes(3)  # a strip's are not in batches
    assert took == pytest.approx(passes * service.estimate(["guda"], "quick") / 432)
    monkeypatch.setattr(seeing, "LONGEST_S", took + 0.01)
    assert set(planned(service).parts) == {"guda", STRIP, WHERE}
    monkeypatch.setattr(seeing, "LONGEST_S", took - 0.01)
    assert set(planned(service).parts) == {"guda"}
    shown = seen(service, answered(service), planned(service))
    assert shown.strip is None and not shown.where
    assert f"that takes {words.seconds(took)} here, and the page allows {took - 0.01:.0f} s." in html(service, shown)
    assert COMMAND in html(service, shown)
    mapped = [*one_map(service, replace(answered(service), shown=shown), "noto")][-1][0].shown
    assert mapped.where and words.too_long(took, took - 0.01) in html(service, mapped)  # the first maps are not made
    with zipfile.ZipFile(io.BytesIO(replace(answered(service), shown=shown).report(service))) as z:
        absent = json.loads(z.read("report.json"))["absent"]
    assert absent["pictures/without"] == absent["pictures/where"] == words.too_long(took, took - 0.01)


def test_limit_and_bar_go_by_the_pace_of_the_method_that_draws():
    service = Retrained()
    alone, both = (
        plan(service, asked, "quick", pictures=seeing.pictures_of(service, asked, "quick", 9))
        for asked in (["guda"], ["guda", "clip", "logo"])
    )
    assert alone.pictures.seconds == both.pictures.seconds
    for k, s in both.pictures.seconds.items():
        assert alone.parts[k].seconds == both.parts[k].seconds == s


def test_the_command_that_makes_them_has_these_options():
    known = typer.main.get_command(app).commands["attribute"].params  # type: ignore[attr-defined]
    options = {o for p in known for o in p.opts}
    assert set(re.findall(r"--\w+", COMMAND)) == {"--prompt", "--report", "--pictures", "--maps"} <= options


@pytest.mark.parametrize(
    ("fault", "told"),
    [(ModelError("A value is not finite, so there is no picture."), "A value is not finite"), (MemoryError(), "memory"),
     (RuntimeError("secret"), words.FAULT)],
)  # fmt: skip
def test_an_error_is_told_below_what_is_there_and_the_scores_stay(fault, told):
    service = Broken()
    answer = answered(service)
    service.strip_fault = fault
    shown = seen(service, answer, planned(service))
    assert shown.strip is not None and len(shown.strip.pictures) == 1 and not shown.where
    said = html(service, shown)
    assert words.NO_STRIP in said and told in said and "secret" not in said and COMMAND not in said
    service.strip_fault, service.maps_fault = None, fault
    shown = seen(service, answer, planned(service))
    assert shown.strip is not None and shown.strip.progress == 1 and len(shown.where) == 1
    assert words.NO_WHERE in html(service, shown) and words.NO_STRIP not in html(service, shown)


def test_the_sentence_stands_on_the_page_and_a_whole_answer_has_none(monkeypatch):
    service = Broken()
    with serving(service) as url:
        visitor = Visitor(url)
        assert "guda attribute" not in text(visitor.generate()["shown"])
        service.strip_fault = ModelError("No finite picture.")
        out = visitor.generate()
        assert "No finite picture." in text(out["shown"]) and COMMAND not in text(out["shown"])
        assert text(out["says"]).startswith("Most needed") and text(out["status"]) == words.DONE
        monkeypatch.setattr(seeing, "LONGEST_S", 1.0)
        assert "the page allows 1 s" in text(visitor.generate()["shown"])


def test_what_fails_beside_the_scores_is_told_and_leaves_them(tmp_path):
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "teal.png")
    service = Broken()
    service.near_fault, service.caption_fault = ModelError("No features."), ModelError("No CLIP.")
    with serving(service) as url:
        visitor = Visitor(url)
        out = visitor.attribute(handle_file(tmp_path / "teal.png"), more_captions=True)
        assert f"{NO_NEAR} No features." in text(out["shown"])
        assert text(out["captions"]) == f"{words.NO_CAPTIONS} No CLIP."
        assert text(out["says"]).startswith("Most needed") and text(out["status"]) == words.DONE
        service.strip_fault = ModelError("No finite picture.")
        said = text(visitor.generate()["shown"])
        assert "No features." in said and "No finite picture." in said


def test_a_caption_that_fails_leaves_those_before_it(monkeypatch):
    service = Broken()
    real = service.attribute

    def attribute(query, **more):
        if not query.prompt:
            raise ModelError("No finite score.")
        yield from real(query, **more)

    answer = answered(service)
    answer = replace(answer, query=replace(answer.query, prompt="a cat"))
    monkeypatch.setattr(service, "attribute", attribute)
    names = ["answer", "says", "notes", "welcome", "picture", "again", "shown", "scope", "captions", "status"]
    screen = SimpleNamespace(empty=list, panels={"guda": "guda"}, **dict(zip(names, names, strict=True)))
    runs = Runs(service, screen)  # type: ignore[arg-type]
    steps, found = runs._other_captions(answer, "guda", plan(service, ["guda"], "quick", captions=True)), answer
    try:
        while True:
            next(steps)
    except StopIteration as e:
        found = e.value
    said = text(runs.restored(found)["captions"])
    assert [t.caption for t in found.tried] == ["a cat", (best := service.best_caption(answer.query))]
    assert best in said
    assert f"{words.NO_CAPTIONS} No finite score." in said


def test_an_example_with_a_passing_fault_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "cache"))
    service = Broken()
    kept = lambda: [*(tmp_path / "cache").glob("examples/*.zip")]  # noqa: E731
    with serving(service) as url:
        visitor = Visitor(url)
        for fault in ("strip_fault", "maps_fault", "near_fault"):
            setattr(service, fault, RuntimeError("The GPU was taken back."))
            assert words.FAULT in text(visitor.call("/page_example_1")["shown"]) and not kept()
            setattr(service, fault, None)
        monkeypatch.setattr(seeing, "LONGEST_S", 1.0)  # no fault: this machine is slow
        assert "the page allows 1 s" in text(visitor.call("/page_example_1")["shown"]) and len(kept()) == 1
        monkeypatch.undo()


def test_an_answer_that_comes_back_without_pictures_says_so(monkeypatch):
    service = FakeService()
    bare = answered(service)
    assert seeing.with_word(service, bare).shown.missing == words.WITHOUT_PICTURES
    whole = replace(bare, shown=seen(service, bare, planned(service)))
    assert seeing.with_word(service, whole) is whole
    strip, where = whole.shown.strip, whole.shown.where
    for part in (replace(whole.shown, where=where[:2]), replace(whole.shown, strip=replace(strip, progress=0.5))):
        assert seeing.with_word(service, replace(bare, shown=part)).shown.missing == words.WITHOUT_PICTURES
    assert COMMAND not in html(service, seeing.with_word(service, bare).shown)
    told = replace(bare, shown=Shown(missing="No finite picture."))
    assert seeing.with_word(service, told) is told
    with zipfile.ZipFile(io.BytesIO(told.report(service))) as z:  # the report says it of strip and maps
        assert z.read("report.html").count(b"No finite picture.") == 2 and b"Which pictures" in z.read("report.html")
    likeness = replace(bare, methods=("clip",))
    assert seeing.with_word(service, likeness) is likeness  # it has no models without a group
    away = replace(bare, scope=replace(service.scope(bare.query), verdict="out of scope"))
    assert seeing.with_word(service, away) is away
    monkeypatch.setattr(seeing, "LONGEST_S", 1.0)
    long = seeing.with_word(service, bare).shown
    assert "the page allows 1 s" in long.missing and COMMAND in html(service, long)


def test_the_main_methods_models_draw_and_those_of_another_where_it_is_not_asked():
    service = Retrained()
    assert seeing.pictures_of(service, ["logo", "guda"], "quick", 9).method == "guda"
    assert seeing.pictures_of(service, ["clip"], "quick", 9) == Pictures()
    asked = seeing.pictures_of(service, ["clip", "logo"], "quick", 9)
    assert asked.method == "logo" and asked.seconds
    query = answered(service).query
    found = {a.method: a for a in service.attribute(query, methods=["logo"], effort="quick")}
    shown = seen(service, Answer(query, ("logo",), "quick", found), plan(service, ["logo"], "quick", pictures=asked))
    assert shown.strip is not None and shown.strip.method == "logo" and len(shown.where) == seeing.FIRST
    said = "Made with the models of LOGO (retrained; the oracle)."
    assert html(service, shown).count(said) == 2  # of the strip, and of the maps


def test_a_strip_names_the_method_whose_models_drew_it():
    service, pixels = FakeService(), np.zeros((8, 8, 3), np.uint8)
    for method, name in (("guda", "GUDA (unlearning)"), ("a-strangers", "a-strangers")):
        for level in (None, 0.5):
            strip = Strip(method, pixels, {"noto": pixels}, {"noto": 0.0}, level)
            assert f"Made with the models of {name}." in html(service, Shown(strip))


def test_what_has_to_be_said_is_of_the_methods_that_were_asked():
    service = FakeService()
    told = replace(service.provenance(), caveats={"guda": "These models are drafts.", "clip": "Of an older bank."})
    service.provenance = lambda: told  # type: ignore[method-assign]
    screen = SimpleNamespace(answer="answer", says="says", panels={"clip": "clip", "guda": "guda"})
    runs = Runs(service, screen)  # type: ignore[arg-type]
    query = Query(np.zeros((64, 64, 3), np.uint8), None, "", "0" * 64)
    found = {a.method: a for a in service.attribute(query, methods=["clip", "guda"], effort="quick")}
    for asked, said in ((("clip",), [True, False]), (("clip", "guda"), [True, True])):
        answer = Answer(query, asked, "quick", {m: found[m] for m in asked})
        panel = runs._shown(found["clip"], answer)["clip"]  # type: ignore[index]
        assert ["Of an older bank." in panel, "These models are drafts." in panel] == said
