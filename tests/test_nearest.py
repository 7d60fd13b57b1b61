"""The training pictures most alike: planted ones are found, and shown only where they are those of the bank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from guda_core.answers.shown import SMALL, near_html
from guda_core.attribution import nearest as module
from guda_core.attribution.nearest import fetched, nearest
from guda_core.attribution.similarity import Similarity
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.errors import DataError
from guda_core.picture_records import Near, Shown
from guda_core.records import Query
from guda_core.reports import bundle
from guda_core.reports.page import NO_TRAINING_PICTURES
from guda_core.reports.read import read_report
from guda_core.reports.restore import shown
from guda_core.ui.samples import why_not
from tests.light import LightService, draw
from tests.test_report import made, opened

GROUPS = load_group_set("emoji")
RNG = np.random.default_rng(0)
PICTURES = Pictures(
    RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), ("noto",) * 3 + ("twemoji",) * 3, ("a", "b", "c") * 2
)


class Pixels(Similarity):
    """Pixels as features."""

    id, missing = "pixels", ""

    def features(self, pixels):
        return F.normalize(torch.tensor(pixels, dtype=torch.float32).flatten(1) - 128, dim=1)

    @classmethod
    def load(cls, context):
        raise NotImplementedError

    def provenance(self):
        return {}


def method() -> Pixels:
    features = Pixels({}, [], "mean").features
    bank = {g: features(PICTURES.where(lambda x, _, g=g: x == g).pixels) for g in ("noto", "twemoji")}
    return Pixels(bank, ["noto", "twemoji", "openmoji"], "mean")


def query(pixels: np.ndarray) -> Query:
    return Query(pixels, None, "", "0" * 64)


def test_a_planted_picture_comes_first_with_its_name_and_pixels():
    found = nearest(method(), query(PICTURES.pixels[4]), PICTURES)
    assert len(found) == 3 and (found[0].group, found[0].name) == ("twemoji", "b")
    assert found[0].cosine == pytest.approx(1.0) and (found[0].pixels == PICTURES.pixels[4]).all()
    cosines = method().features(PICTURES.pixels) @ method().features(PICTURES.pixels[4:5])[0]
    assert [n.cosine for n in found] == pytest.approx(sorted(cosines.tolist(), reverse=True)[:3])


def test_without_the_pictures_or_with_others_only_the_likeness_is_told():
    q = query(PICTURES.pixels[4])
    others = replace(PICTURES, pixels=255 - PICTURES.pixels)
    for items in ((), PICTURES[:5], others):
        found = nearest(method(), q, items)
        assert found[0] == Near("twemoji", found[0].cosine) and found[0].cosine == pytest.approx(1.0)
    assert len(nearest(method(), q, (), count=99)) == 6
    assert nearest(Pixels({}, ["noto"], "mean"), q, ()) == ()


def test_ones_own_pictures_are_never_shown(monkeypatch):
    assert fetched(replace(GROUPS, source="not-published")) == () == fetched(replace(GROUPS, source="unknown"))

    class Missing:
        def plan(self):
            return ["a package"]

        def split(self, name):
            raise DataError("not fetched")

    monkeypatch.setattr(module, "open_dataset", lambda group_set: Missing())
    assert fetched(GROUPS) == ()


def test_they_are_credited_and_escaped():
    group = replace(GROUPS.groups["noto"], name="<i>", author="Ann & Bo")
    gs = replace(GROUPS, groups={**GROUPS.groups, "noto": group})
    html = near_html((Near("noto", 0.7, "<b>x", PICTURES.pixels[0]), Near("openmoji", 0.6)), gs)
    assert html.count("<img") == 1 and "<i>" not in html and "Ann &amp; Bo" in html and "&lt;b&gt;x: 0.70" in html
    assert "<li><span>0.60: <a" in html and "CC-BY-SA-4.0" in html and near_html((), gs) == ""
    assert SMALL in html and SMALL not in near_html((Near("noto", 0.7),), gs)
    assert "<code>guda groups fetch</code>" in why_not(GROUPS)
    assert why_not(GROUPS) in near_html((Near("noto", 0.7),), gs, why_not(GROUPS))


def test_a_report_names_them_and_holds_none(tmp_path):
    service = LightService()
    q = service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat")
    data = made(service, q, shown=Shown(near=(Near("noto", 0.7, "cat-face", PICTURES.pixels[0]),)))
    assert set(opened(data)) == {*bundle.FILES, "report.html"}
    page = opened(data)["report.html"].decode()
    assert "cat face: 0.70" in page and page.count("<img") == 1 and NO_TRAINING_PICTURES in page and SMALL not in page
    (tmp_path / "r.zip").write_bytes(data)
    assert shown(read_report(tmp_path / "r.zip")).near == (Near("noto", 0.7, "cat-face"),)
