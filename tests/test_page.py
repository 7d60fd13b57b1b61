"""The page in a report: what it says, that nothing in it runs or loads, and that it never gets in a report's way."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from guda_core import versions
from guda_core.answers.verdict import OUT_OF_SCOPE, verdict
from guda_core.attribution import METHODS
from guda_core.errors import ReportError
from guda_core.picture_records import Near, Shown, Strip, Tile
from guda_core.records import MethodInfo
from guda_core.reports import bundle
from guda_core.reports import replay as replay_module
from guda_core.reports.findings import Verdict
from guda_core.reports.opened import scope_of, tell
from guda_core.reports.page import IMAGE, fitting, page
from guda_core.reports.picture_files import png
from guda_core.reports.read import read_report
from guda_core.reports.replay import replay
from guda_core.reports.restore import attributions, pixels
from tests.light import SETTINGS, LightService, draw
from tests.test_report import answers, made, opened

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "img"}
ALLOWED = {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "h3", "p", "div"}
ALLOWED |= {"span", "figure", "figcaption", "img", "i", "b", "ul", "li", "a", "code", "pre", "details", "summary"}
ALLOWED |= {"table", "thead", "tbody", "tr", "th", "td"}


class Seen(HTMLParser):
    """Tags, attributes and words of a page; a tag that is not closed is a fault."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(data.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def service():
    return LightService()


@pytest.fixture
def query(service, tmp_path):
    return service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat, flat colours")


def of(data: bytes) -> Seen:
    return Seen(opened(data)["report.html"])


def test_it_says_the_apps_verdict_every_score_hash_author_and_limit(service, query):
    data = made(service, query, scope={"verdict": "in scope", "reason": "It needs 2 bits."})
    said, record = of(data).said, json.loads(opened(data)["report.json"])
    found = {a.method: a for a in answers(service, query)}
    v = verdict(found, service.group_set, SETTINGS["methods"], service.methods(), over=True)
    assert v.headline in said and v.figures in said and "It needs 2 bits." in said
    for wanted in (record["picture"]["pixels_sha256"], record["model"]["sha256"], record["files"]["values.npz"]):
        assert wanted in said
    assert all(sha in said for sha in record["adapters"].values() if sha)
    assert record["files"]["report.html"] not in said
    for g in service.group_set.groups.values():
        assert g.name in said and g.author in said and g.licence in said
    assert all(
        text in said
        for text in (
            *record["limits"],
            record["picture"]["prompt"],
            "guda replay",
            record["date"][:16].replace("T", " "),
        )
    )
    assert all(f"{k} {v}" in said for k, v in record["versions"].items())
    head = '<th scope="col" class="n">Rank</th><th scope="col">CLIP similarity (cosine)</th>'
    assert head in opened(data)["report.html"].decode() and "1. " not in said
    assert all(f"{path}: {why}" in said for path, why in record["absent"].items())


def test_nothing_in_it_runs_or_loads_whatever_the_texts_are(service, query):
    plain = of(made(service, query))
    groups = {g: replace(v, name=EVIL, author=EVIL, licence=EVIL) for g, v in service.group_set.groups.items()}
    groups["twemoji"] = replace(groups["twemoji"], link="javascript:alert(1)", licence_link="data:text/html,x")
    service.group_set = replace(service.group_set, name=EVIL, groups=groups)
    methods = {m: replace(i, name=EVIL, note=EVIL) for m, i in service.methods().items()}
    service.change(name=EVIL, caveats={"": EVIL}, methods=methods)
    service.change_models(unavailable={"noto": EVIL})
    evil = of(made(service, replace(query, prompt=EVIL, preparation=(EVIL,))))
    assert EVIL in evil.said.replace(" <", "<") and set(evil.tags) <= ALLOWED
    for tag in ("img", "section", "table", "a", "b"):
        less = 2 if tag == "a" else 0  # the two addresses that are none
        assert evil.tags.count(tag) == plain.tags.count(tag) - less
    policy = [v for _, k, v in evil.values if k == "content" and v.startswith("default-src")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, k, v in evil.values:
        assert not k.startswith("on") and k not in ("srcset", "action", "background")
        assert k != "src" or v.startswith("data:image/png;base64,")
        assert k != "href" or (tag == "a" and v.startswith("https://"))
        assert k != "style" or set(v) <= set("leftwidh:;%.-0123456789")


def test_the_same_record_gives_the_same_page_and_it_is_that_of_the_zip(service, query, tmp_path):
    (tmp_path / "r.zip").write_bytes(made(service, query))
    read = read_report(tmp_path / "r.zip")
    again = page(tell(read.record, attributions(read), service.methods()), pixels(read))
    assert again == read.more["report.html"]
    ids = page(tell(read.record, attributions(read), {}), pixels(read))  # a service without these methods
    assert b"guda: what each group gives" in ids


def test_out_of_scope_is_no_attribution_and_folds_the_bars_away(service, query):
    seen = of(made(service, query, scope={"verdict": "out of scope", "reason": "It is a cat."}))
    assert OUT_OF_SCOPE in seen.said and "Most needed" not in seen.said
    assert seen.tags.index("details") < seen.tags.index("figure", seen.tags.index("img"))
    assert seen.said.count("It is a cat.") == 1
    assert seen.tags.count("details") == 2 and ("details", "open", "") not in seen.values


def test_a_long_caption_is_cut_beside_the_picture_and_whole_in_the_table(service, query):
    caption = "a cat " * 330
    seen = of(made(service, replace(query, prompt=caption)))
    told = re.search("Scored with the caption: [a-z .]*", seen.said)[0]
    assert len(told) < 400 and "..." in told and caption.strip() in seen.said.split("How it was computed")[1]


def test_strip_and_maps_are_on_it_and_it_stays_small_whatever_their_size(service, query):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (700, 700, 3), dtype=np.uint8)
    ids = list(service.group_set.groups)
    strip = Strip("guda", noise, dict.fromkeys(ids, noise), {g: 1.0 + i for i, g in enumerate(ids)}, 0.5)
    seen = of(
        made(service, replace(query, pixels=noise), shown=Shown(strip, (Tile("noto", noise, 0.5, -3.0),), 4, 2.0))
    )
    images = [v for _, k, v in seen.values if k == "src"]
    assert len(images) == 1 + 1 + len(ids) + 1 and sum(map(len, images)) < 3_000_000
    assert "Without Noto Emoji" in seen.said and "-3.0 nats, 50 of 100 places" in seen.said


def test_a_picture_is_made_smaller_and_never_larger():
    wide = np.zeros((100, 400, 3), np.uint8)
    assert fitting(wide, 40).shape == (10, 40, 3) and fitting(wide, 400) is wide


def test_a_zip_with_no_room_for_it_goes_without_and_says_so(service, query, tmp_path, monkeypatch):
    whole = made(service, query)
    monkeypatch.setattr(bundle, "MAX_ZIP", len(whole) + bundle.SPARE - 1000)
    data = made(service, query)
    record = json.loads(opened(data)["report.json"])
    assert "report.html" not in opened(data) and "too large" in record["absent"]["files/report.html"]
    (tmp_path / "r.zip").write_bytes(data)
    *_, v = replay(read_report(tmp_path / "r.zip"), service)
    assert isinstance(v, Verdict) and v.outcome == "equal"


def test_reports_without_it_are_read_and_an_altered_one_is_refused(service, query, tmp_path):
    files = opened(made(service, query))
    record = json.loads(files["report.json"])
    del record["files"]["report.html"]
    old = {k: v for k, v in files.items() if k != "report.html"} | {"report.json": json.dumps(record).encode()}
    place = tmp_path / "r.zip"
    place.write_bytes(bundle.zipped(old))
    assert read_report(place).more == {}
    place.write_bytes(bundle.zipped({**files, "report.html": b"<p>Most needed: me</p>"}))
    with pytest.raises(ReportError, match=r"report\.html is not the file"):
        read_report(place)
    place.write_bytes(bundle.zipped({k: v for k, v in files.items() if k != "report.html"}))
    with pytest.raises(ReportError, match=r"holds no report\.html"):
        read_report(place)
    place.write_bytes(bundle.zipped({**old, "report.html": files["report.html"]}))  # one that the record does not name
    with pytest.raises(ReportError, match=r"report\.html is not the file"):
        read_report(place)


def packed(found: re.Match[bytes]) -> bytes:
    """A picture of a page as another library packs it."""
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(found[0]))).save(out, format="PNG", compress_level=0)
    return base64.b64encode(out.getvalue())


def test_a_page_that_says_another_thing_than_its_record_is_found(service, query, tmp_path, monkeypatch):
    for module in (versions, replay_module):
        monkeypatch.setattr(module, "__version__", "0.2.0")
    strip = Strip("guda", query.pixels, {"noto": query.pixels}, {"noto": 1.0}, 0.5)
    shown = Shown(strip, (Tile("noto", query.pixels, 0.5, -3.0),), 4, 2.0, (Near("noto", 0.5, "cat"),))
    files = opened(made(service, query, shown=shown))
    own, name = files["report.html"], "report.html"
    other = base64.b64encode(png(255 - query.pixels))
    for forged, outcome in (
        (own, "equal"),
        (IMAGE.sub(packed, own), "equal"),
        (own.replace(b"Noto Emoji", b"Somebody"), "different"),
        (IMAGE.sub(other, own, count=1), "different"),
        (IMAGE.sub(b"no picture", own, count=1), "different"),
        (b"<p>Most needed: me</p>", "different"),
    ):
        record = json.loads(files["report.json"])
        record["files"][name] = hashlib.sha256(forged).hexdigest()
        put = {**files, "report.json": json.dumps(record).encode(), name: forged}
        (tmp_path / "r.zip").write_bytes(bundle.zipped(put))
        *_, v = replay(read_report(tmp_path / "r.zip"), service)
        assert isinstance(v, Verdict) and v.outcome == outcome
        assert [c.where for c in v.scores] == [name] * (outcome == "different")
    record["versions"]["guda_core"] = "0.2.0.later"
    put["report.json"] = json.dumps(record).encode()
    (tmp_path / "r.zip").write_bytes(bundle.zipped(put))
    *_, v = replay(read_report(tmp_path / "r.zip"), service)
    assert isinstance(v, Verdict) and v.outcome == "equal"
    said = [c.sentence() for c in v.environment if c.where == name]
    assert said == ["report.html: a page of guda_core 0.2.0.later in the report, not checked now."]


@pytest.mark.parametrize("why", ["a version in the making", "a method of another package"])
def test_a_page_that_may_say_the_same_in_other_words_is_told_and_not_judged(service, query, tmp_path, monkeypatch, why):
    if why == "a method of another package":
        monkeypatch.setattr(METHODS, "own", METHODS.own - {"clip"})
    for module in (versions, replay_module):
        monkeypatch.setattr(module, "__version__", "0.2.0" if "package" in why else "0.2.0.dev0")
    (tmp_path / "r.zip").write_bytes(made(service, query))
    known = {m: replace(i, name=f"{i.name} (new)") for m, i in service.methods().items()}
    monkeypatch.setattr(type(service), "methods", lambda self: known)
    *_, v = replay(read_report(tmp_path / "r.zip"), service)
    assert isinstance(v, Verdict) and v.outcome == "equal"
    assert [c.before for c in v.environment if c.where == "report.html"] == ["not what report.json says"]


def test_what_does_not_belong_together_is_left_out(service, query, tmp_path):
    (tmp_path / "r.zip").write_bytes(made(service, query))
    read = read_report(tmp_path / "r.zip")
    tile, strip = (
        Tile("stranger", query.pixels, 0.1, 1.0),
        Strip("guda", query.pixels, {"stranger": query.pixels}, {"stranger": 1.0}),
    )
    found = [replace(a, runner_up="stranger") for a in attributions(read)]
    told = tell(read.record, found, {"guda": MethodInfo("guda", "GUDA", "nats", "", main=True)}, Shown(strip, (tile,)))
    assert not told.shown and told.main is not None and told.main.runner_up is None and told.main.method == "guda"
    page(told, pixels(read))


@pytest.mark.parametrize("told", [None, [], {}, {"verdict": "fine"}, {"verdict": ["in scope"]}])
def test_a_scope_that_is_none_counts_as_none(told):
    assert scope_of(told) is None


def test_kinds_of_a_scope_are_read_only_where_they_are_whole():
    good = {"about": "photographs", "belongs": False, "out_of_scope": {"value": 0.2}}
    kinds = {"a": good, "b": 1, "c": {**good, "out_of_scope": {"value": "x"}}, "d": {**good, "out_of_scope": 3}}
    found = scope_of({"verdict": "in scope", "value": "2", "settings": {"kinds": kinds}})
    assert found is not None and found.value is None and dict(found.settings["kinds"]) == {"a": good}


@pytest.mark.parametrize("change", ["other size", "no picture", "huge"])
def test_a_picture_that_is_not_the_records_is_refused(service, query, tmp_path, change):
    (tmp_path / "r.zip").write_bytes(made(service, query))
    read = read_report(tmp_path / "r.zip")
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (17, 16) if change == "other size" else (6000, 6000)).save(out, "PNG")
    data = b"\x89PNG no" if change == "no picture" else out.getvalue()
    with pytest.raises(ReportError, match=r"picture\.png"):
        pixels(replace(read, picture=data))
    assert hashlib.sha256(pixels(read).tobytes()).hexdigest() == read.record["picture"]["pixels_sha256"]
