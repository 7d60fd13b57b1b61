"""The pictures on the groups' screen: which ones, whose, only where they may be shown, and said plainly."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guda_core.attribution import nearest
from guda_core.data import SOURCES
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.sources.folder import Folder
from guda_core.data.sources.source import Source
from guda_core.errors import DataError
from guda_core.records import GroupSet
from guda_core.ui import build_ui, samples, seen
from guda_core.ui.samples import COUNT, NOT_HERE, NOT_SHOWN, SIDE, Samples
from tests.fakes import FakeService

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
GROUPS = load_group_set("emoji")
OBJECTS = ("airplane", "cat-face", "rocket", "umbrella", "violin", "zebra")


def pictures(names: dict[str, tuple[str, ...]], side: int = 32) -> Pictures:
    """One colour a picture; group id -> the names of its pictures."""
    every = [(g, n) for g, own in names.items() for n in own]
    pixels = np.stack([np.full((side, side, 3), 7 * i % 256, np.uint8) for i in range(len(every))])
    return Pictures(pixels, tuple(g for g, _ in every), tuple(n for _, n in every))


def same(group_set: GroupSet = GROUPS) -> Pictures:
    return pictures(dict.fromkeys(group_set.groups, OBJECTS))


def test_groups_that_share_objects_show_the_same_ones_those_of_the_examples_first():
    found = samples.chosen(same(), list(GROUPS.groups))
    assert {tuple(i.concept for i in some) for some in found.values()} == {("rocket", "cat-face", "umbrella", "zebra")}
    assert all(i.group == g for g, some in found.items() for i in some)


def test_groups_that_share_few_each_show_some_of_their_own():
    names = {"a": tuple(f"a{i}" for i in range(16)), "b": ("x", "y"), "c": ()}
    found = samples.chosen(pictures(names), list(names))
    assert [i.concept for i in found["a"]] == ["a2", "a6", "a10", "a14"] and len(found["a"]) == COUNT
    assert [i.concept for i in found["b"]] == ["x", "y"] and found["c"] == []


def test_each_group_has_its_pictures_a_text_for_them_and_its_credit():
    groups = dict(GROUPS.groups)
    groups["noto"] = replace(groups["noto"], author="<Noto>", name='The "Noto"')
    html = samples.training_html(same(), groups)
    assert "Four training pictures of each group, of the same objects: rocket, cat face, umbrella, zebra." in html
    assert 'alt="rocket, cat face, umbrella, zebra, by The &quot;Noto&quot;"' in html and "&lt;Noto&gt;" in html
    for g in groups.values():
        assert f'href="{g.licence_link}"' in html and f'href="{g.link}"' in html
    sheets = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    assert len(sheets) == len(groups) and len(html) < 30_000
    with Image.open(io.BytesIO(base64.b64decode(sheets[0]))) as image:
        seen_as = np.asarray(image.convert("RGB"))
    assert seen_as.shape == (SIDE, COUNT * SIDE, 3)
    assert [int(v) for v in seen_as[0, ::SIDE, 0]] == [7 * OBJECTS.index(n) for n in ("rocket", "cat-face", "umbrella",
                                                                                    "zebra")]  # fmt: skip


def test_a_group_without_pictures_leaves_all_to_what_the_model_drew():
    assert samples.training_html(pictures({"twemoji": OBJECTS}), GROUPS.groups) == ""
    assert samples.training_html((), GROUPS.groups) == ""


def test_what_was_fetched_is_read_when_it_is_shown_and_once(monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(samples, "fetched", lambda group_set: read.append(group_set.id) or same())
    build_ui(FakeService())
    assert read == []
    shown = Samples(FakeService())
    assert "training pictures of each group" in shown.html() and shown.html() is shown.html() and read == ["emoji"]


def own_set() -> GroupSet:
    source = {"folder": "ann", "package": "a", "version": "1"}  # the last two are nothing to a folder
    groups = {g: replace(v, source=source) for g, v in GROUPS.groups.items()}
    return replace(GROUPS, id="mine", source="folder", groups=groups)


def test_one_s_own_pictures_are_never_shown(monkeypatch):
    monkeypatch.setattr(Folder, "split", lambda self, name: same())
    assert [s for s in SOURCES if SOURCES[s].plan is not Source.plan] == ["npm-iconify"]
    service = FakeService(group_set=own_set())
    assert nearest.fetchable(GROUPS) and not nearest.fetchable(own_set()) and not nearest.fetched(own_set())
    assert NOT_SHOWN in Samples(service).html() and samples.FETCH not in Samples(service).html()


def test_the_command_names_a_set_that_is_not_the_included_one():
    assert "<code>guda groups fetch</code>" in samples.drawn_html(FakeService())
    other = FakeService(group_set=replace(GROUPS, id="icons"))
    assert "<code>guda groups fetch --set icons</code>" in samples.drawn_html(other)


def test_pictures_that_cannot_be_read_leave_all_to_what_the_model_drew(monkeypatch):
    def damaged(group_set):
        raise DataError("It is cut off.")

    monkeypatch.setattr(samples, "fetched", damaged)
    assert NOT_HERE in Samples(FakeService()).html()


@pytest.mark.parametrize(
    ("names", "said"),
    [([["a"], ["b"]], "One training picture of each group."),
     ([["a"], ["a"]], "One training picture of each group, of the same object: a."),
     ([["a"], ["b", "c"]], "Up to two training pictures of each group."),
     ([["a", "b"], ["c", "d"]], "Two training pictures of each group.")],
)  # fmt: skip
def test_the_count_is_said_as_it_is(names, said):
    assert samples._told(names) == said


def test_without_them_the_model_s_own_are_shown_and_called_so(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GUDA_HOME", str(tmp_path))
    service = FakeService()
    shown = Samples(service)
    assert NOT_HERE in shown.html() and samples.FETCH in shown.html() and "<img" not in shown.html()
    folder = tmp_path / "runs" / "fake" / "emoji" / "drawn"
    folder.mkdir(parents=True)
    Image.new("RGB", (96, 96), "teal").save(folder / seen.group_file("noto"))
    (folder / seen.group_file("twemoji")).write_bytes(b"no picture")
    (folder / seen.LIST).write_text(json.dumps({"base_sha256": service.provenance().sha256}))
    html = shown.html()
    assert html.count("<img") == 1 and 'alt="In the words of Noto Emoji, drawn by the model"' in html
    assert seen.DRAWN in html and NOT_HERE in html and "training pictures of each" not in html


@pytest.mark.browser
def test_one_narrow_group_does_not_narrow_the_others(browser):
    css = (Path(samples.__file__).parent / "page.css").read_text(encoding="utf-8")
    page = browser.new_page(viewport={"width": 1440, "height": 600})
    columns = []
    for counts in ((COUNT, COUNT), (COUNT, 1), (1, 1)):
        names = {g: OBJECTS[:n] for g, n in zip(GROUPS.groups, counts, strict=False)}
        groups = {g: GROUPS.groups[g] for g in names}
        page.set_content(f"<style>{css}</style>{samples.training_html(pictures(names), groups)}")
        wide = page.locator(".guda-samples").evaluate("e => getComputedStyle(e).gridTemplateColumns")
        columns.append(len(wide.split()))
    page.close()
    assert columns[0] == columns[1] < columns[2]
