"""Two reports side by side: what is the same, who changed place, and the intervals of differences."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from guda_core.cli import app
from guda_core.errors import ReportError
from guda_core.records import GroupScore, Scope
from guda_core.reports import bundle, restore
from guda_core.reports.opened import Told, tell
from guda_core.reports.read import read_report
from guda_core.reports.restore import attributions
from guda_core.reports.two_reports import compare
from guda_core.ui import report_screens
from guda_core.ui.report_screens import comparison, opened
from tests.light import LightService, draw
from tests.test_report import made
from tests.test_report_sources import altered


@pytest.fixture
def service():
    return LightService()


@pytest.fixture
def write(service, tmp_path):
    """Writes the report of a picture of that seed, and gives its path."""

    def written(name: str, seed: int = 0, prompt: str = "cat"):
        query = service.prepare(draw(tmp_path / "p.png", seed, side=32).read_bytes(), prompt=prompt)
        (tmp_path / name).write_bytes(made(service, query))
        return tmp_path / name

    return written


def told(path) -> Told:
    report = read_report(path)
    return tell(report.record, attributions(report), LightService().methods())


def test_a_report_beside_itself_is_the_same_in_everything(write):
    a = told(write("a.zip"))
    found = compare(a, a)
    assert all(found.same.values()) and found.only == {} and set(found.methods) == {"guda", "clip"}
    assert "No group changed place." in found.said and "Every score is the same to the last bit." in found.said
    assert "about the same picture" in found.said[0]
    guda = found.methods["guda"]
    assert [r.rank_a for r in guda] == [*range(1, 8), None] and guda[0].rank_b == 1
    assert {r.difference for r in guda if r.rank_a} == {0.0} and guda[-1].difference is None


def test_a_score_that_moved_is_told_with_the_interval_of_its_difference(write):
    a = told(write("a.zip"))
    x = a.answers["guda"]
    last = x.ranked()[-1]
    s, top = x.groups[last], x.groups[x.ranked()[0]]
    up = replace(s, score=top.score + 100.0, low=top.score + 97.0, high=top.score + 103.0)
    groups = {**x.groups, last: up}
    b = replace(a, answers={**a.answers, "guda": replace(x, groups=groups)})
    found = compare(a, b)
    r = next(r for r in found.methods["guda"] if r.group == last)
    half = math.sqrt(((s.high - s.low) / 2) ** 2 + 3.0**2)  # of independent errors
    assert (r.rank_a, r.rank_b, r.clear) == (7, 1, True) and r.difference == pytest.approx(up.score - s.score)
    assert r.high - r.difference == pytest.approx(half) == pytest.approx(r.difference - r.low)
    name = a.group_set.groups[last].name
    assert f"{name} (7th to 1st)" in " ".join(found.said)
    assert "GUDA (unlearning): scores that differ clearly" in found.said[-2] and name in found.said[-2]
    assert found.said[-1] == "Every score by CLIP similarity is the same to the last bit."
    assert f"the second {name}" in " ".join(found.said)
    near = replace(s, score=s.score + 0.5, low=s.low + 0.5, high=s.high + 0.5)
    b = replace(a, answers={**a.answers, "guda": replace(x, groups={**x.groups, last: near})})
    assert "no score differs clearly: each difference's 95% interval includes 0." in compare(a, b).said[-2]
    none = replace(near, low=near.score, high=near.score)  # as of a group of one picture
    b = replace(a, answers={**a.answers, "guda": replace(x, groups={**x.groups, last: none})})
    r = next(r for r in compare(a, b).methods["guda"] if r.group == last)
    assert (r.low, r.high) == (None, None) and not r.clear and r.difference == pytest.approx(0.5)
    assert "where a difference has a 95% interval, it includes 0." in compare(a, b).said[-2]


def test_nothing_is_called_the_same_that_another_method_or_a_lost_score_denies(write):
    a = told(write("a.zip"))

    def changed(method: str, **more):
        x = a.answers[method]
        first = x.ranked()[0]
        groups = {**x.groups, first: replace(x.groups[first], **more)}
        return list(compare(a, replace(a, answers={**a.answers, method: replace(x, groups=groups)})).said[-2:])

    gone = {"score": None, "low": None, "high": None, "status": "unavailable"}
    guda, clip = "GUDA (unlearning): every score", "Scores by CLIP similarity differ."
    same = "is the same to the last bit."
    assert changed("clip", score=0.9) == changed("clip", **gone) == [f"{guda} {same}", clip]
    assert changed("guda", **gone) == [
        f"{guda} that both reports have {same}",
        f"Every score by CLIP similarity {same}",
    ]
    alone = compare(a, replace(a, answers={"guda": a.answers["guda"]}))
    assert alone.said[-1] == f"{guda} {same}" and alone.only == {"clip": "a"}


def test_intervals_and_what_the_first_two_say_are_compared_too(write):
    a = told(write("a.zip"))
    x, same = a.answers["guda"], "every score is the same to the last bit"

    def said(**more) -> list[str]:
        return list(compare(a, replace(a, answers={**a.answers, "guda": replace(x, **more)})).said)

    wide = {g: s if s.score is None else replace(s, low=s.low - 1, high=s.high + 1) for g, s in x.groups.items()}
    assert f"GUDA (unlearning): {same}, but intervals differ." in said(groups=wide)
    assert "Every score is the same to the last bit." not in said(groups=wide)
    clip = a.answers["clip"]
    groups = {g: s if s.score is None else replace(s, low=s.low - 1, high=s.high + 1) for g, s in clip.groups.items()}
    b = replace(a, answers={**a.answers, "clip": replace(clip, groups=groups)})
    assert compare(a, b).said[-1] == "Every score by CLIP similarity is the same to the last bit, but intervals differ."
    words = {g: replace(s, reason="in other words") for g, s in x.groups.items()}
    assert "Every score is the same to the last bit." in said(groups=words)
    assert any("the first two groups are" in s for s in said(separable=not x.separable))
    ended = "GUDA (unlearning): no rule ended its draws in the first report, the width reached in the second."
    assert ended in said(reached="width") and not any("draws ended" in s or "first two" in s for s in said())


def test_another_name_author_or_licence_of_a_group_is_told(write):
    a = told(write("a.zip"))
    first = a.answers["guda"].ranked()[0]
    groups = {**a.record["group_set"]["groups"]}
    groups[first] = {**groups[first], "name": "Mine", "author": "Me"}
    record = {**a.record, "group_set": {**a.record["group_set"], "groups": groups}}
    b = tell(record, list(a.answers.values()), LightService().methods())
    found, name = compare(a, b), a.group_set.groups[first].name
    assert [p for p, same in found.same.items() if not same] == ["names"]
    assert f"Not with the same name, author or licence: {name}." in found.said
    assert f"GUDA (unlearning): both put {name} first, which the second report calls Mine." in found.said
    assert "Every score is the same to the last bit." in found.said  # a name moves none
    other = a.answers["guda"].ranked()[1]
    twin = replace(b, group_set=replace(b.group_set, groups={**b.group_set.groups, other: replace(
        b.group_set.groups[other], name=name)}))  # fmt: skip
    scores = a.answers["guda"].groups
    turned = {**scores, first: scores[other], other: scores[first]}
    twin = replace(twin, answers={**a.answers, "guda": replace(a.answers["guda"], groups=turned)})
    assert f"GUDA (unlearning): the first report puts {name} first, the second {name}." in compare(a, twin).said


def test_other_numbers_behind_one_verdict_on_scope_are_told(write):
    a = told(write("a.zip"))
    scope = {"verdict": "in scope", "value": 1.0, "settings": {"sha256": "0" * 64}}
    one, other = ({**a.record, "scope": {**scope, "value": v}} for v in (1.0, 1.5))
    seen = Scope("in scope", 1.0, 3.0, "log-odds", "")
    found = compare(replace(a, record=one, scope=seen), replace(a, record=other, scope=seen)).said
    assert "Could the model have made it? Both reports: in scope, but with other numbers, words or rules." in found


def test_another_verdict_on_scope_is_told(write):
    a = told(write("a.zip"))
    one = replace(a, scope=Scope("in scope", 1.0, 3.0, "log-odds", ""))
    for scope, said in ((Scope("out of scope", 9.0, 3.0, "log-odds", ""), "out of scope"), (None, "not assessed")):
        told_of = f"Could the model have made it? First report: in scope. Second: {said}."
        assert told_of in compare(one, replace(a, scope=scope)).said
    assert not any("Could the model" in s for s in compare(one, one).said)


@pytest.mark.parametrize("both", [True, False])
def test_a_picture_that_is_out_of_scope_names_no_group_unasked(both, service, write, monkeypatch):
    a = told(write("a.zip"))
    names = [g.name for g in a.group_set.groups.values()]
    x, out = a.answers["guda"], Scope("out of scope", 9.0, 3.0, "log-odds", "")
    last = x.ranked()[-1]
    up = replace(x, groups={**x.groups, last: GroupScore(900.0, 890.0, 910.0)})
    pair = replace(a, scope=out), replace(a, scope=out if both else None, answers={**a.answers, "guda": up})
    said = list(compare(*pair).said)
    assert ("Could the model have made it? Both reports: out of scope." in said) is both
    assert said[-2:] == [
        "Every score by CLIP similarity is the same to the last bit.",
        "Scores by GUDA (unlearning) differ.",
    ]
    unasked, _, inside = comparison(*pair).partition("<details")
    shown = iter(pair)
    monkeypatch.setattr(restore, "told", lambda _: next(shown))
    done = CliRunner().invoke(app, ["compare", str(write("a.zip")), str(write("a.zip"))], env={"COLUMNS": "160"})
    assert done.exit_code == 0 and "The scores are in --json." in done.output
    for text in (" ".join(said), unasked, done.output):
        assert not any(n in text for n in names)
    assert all(n in inside for n in names) and inside.count("<table") == 2


def test_names_from_right_to_left_are_set_apart_in_sentences_and_not_on_the_terminal(write, monkeypatch):
    a = told(write("a.zip"))
    first, second = a.answers["guda"].ranked()[:2]
    groups = {**a.group_set.groups, first: replace(a.group_set.groups[first], name="رسوم ١")}
    scores = a.answers["guda"].groups
    turned = {**scores, first: scores[second], second: scores[first]}
    a = replace(a, group_set=replace(a.group_set, groups=groups))
    pair = a, replace(a, answers={**a.answers, "guda": replace(a.answers["guda"], groups=turned)})
    assert " ".join(compare(*pair).said).count("\u2068رسوم ١\u2069") >= 2  # who is first, and who changed place
    shown = iter(pair)
    monkeypatch.setattr(restore, "told", lambda _: next(shown))
    done = CliRunner().invoke(app, ["compare", str(write("a.zip")), str(write("a.zip"))], env={"COLUMNS": "160"})
    assert "first report puts رسوم ١ first" in done.output
    assert "\\u20" not in done.output and "\u2068" not in done.output


def test_two_pictures_are_compared_by_ranks_alone(write):
    found = compare(told(write("a.zip")), told(write("b.zip", seed=5)))
    assert not found.same["picture"] and "two pictures" in found.said[0]
    assert {r.difference for rows in found.methods.values() for r in rows} == {None}
    assert not any("Every score" in s or "differ clearly" in s for s in found.said)


def test_what_was_computed_with_is_named_where_it_differs(service, write):
    a = told(write("a.zip"))
    service.change(sha256="0" * 64, clip_sha256="1" * 64, threads=9)
    b = told(write("b.zip", prompt="dog"))
    found = compare(a, b)
    differ = {part for part, same in found.same.items() if not same}
    assert differ == {"caption", "model", "likeness", "settings", "hardware"}
    assert "Not the same: caption, model, likeness, settings." in found.said[1]


def test_units_of_one_models_own_scale_are_not_subtracted(service, write):
    a = told(write("a.zip"))
    kernel = replace(a.answers["clip"], unit="kernel")
    a = replace(a, answers={**a.answers, "clip": kernel})
    other = replace(a, record={**a.record, "model": {**a.record["model"], "sha256": "0" * 64}})
    assert {r.difference for r in compare(a, other).methods["clip"]} == {None}
    assert {r.difference for r in compare(a, a).methods["clip"]} == {0.0}
    assert {r.difference for r in compare(a, other).methods["guda"]} == {0.0, None}  # nats are
    mixed = compare(a, told(write("b.zip")))
    assert "clip" not in mixed.units and {r.difference for r in mixed.methods["clip"]} == {None}


def test_the_command_tells_and_writes_it(service, write, tmp_path):
    a, b = write("a.zip"), write("b.zip", seed=1)
    out = tmp_path / "c.json"
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--json", str(out)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "The reports are about two pictures." in done.output and "Written:" in done.output
    found = json.loads(out.read_text())
    assert found["same"]["model"] is True and found["same"]["picture"] is False
    rows = found["methods"]["guda"]
    assert {r["group"] for r in rows} == set(service.group_set.groups)
    for r in rows[:-1]:  # as `guda attribute` says them: one digit after the point, in nats
        line = next(x for x in done.output.splitlines() if r["name"] in x and "│" in x)
        assert f"{r['score_a']:.1f}" in line and f"{r['score_b']:.1f}" in line
    b.write_bytes(b"PK no zip")
    done = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert done.exit_code == 2 and "damaged or cut off" in done.output and "Traceback" not in done.output


def test_the_screen_shows_a_report_and_sets_two_side_by_side(service, write):
    known = service.methods()
    a, b = opened(write("a.zip"), known), opened(write("b.zip", seed=1), known)
    assert a.html.count("<img") == 1 and "guda-chart" in a.html and "guda-verdict" in a.html
    shown = comparison(a.told, b.told)
    assert "two pictures" in shown and shown.count("<table") == 2 and shown.count(" open>") == 1


def test_half_characters_of_a_report_are_shown_as_their_codes(service, write):
    """UTF-8 has none: the app's stream of events would break off."""
    path = write("a.zip")

    def odd(record):
        record["model"]["name"] = "Emoji \udcff"
        for group in record["group_set"]["groups"].values():
            group |= {"name": f"{group['name']} \ud800", "link": "https://x.example/\udcff"}
        record["limits"].append("\udfff.")

    altered(path, odd, {"scores.csv": b""})
    with zipfile.ZipFile(path) as z:
        rows = bundle.score_rows(json.loads(z.read("report.json")))
    altered(path, lambda record: None, {"scores.csv": bundle.csv_text(bundle.COLUMNS, rows).encode()})
    a = opened(path, service.methods())
    for html in (a.html, comparison(a.told, a.told)):
        assert "\\ud800" in html.encode().decode()
    assert "Emoji \\udcff" in a.html


def test_texts_of_strangers_are_shown_cut_and_a_report_that_is_still_too_long_is_not_shown(service, write, monkeypatch):
    """A name that comes in each of many lines would make a page of hundreds of megabytes."""
    path = write("a.zip")
    first = next(iter(service.group_set.groups))

    def grown(record):
        group = record["group_set"]["groups"][first]
        group |= {"author": "'" * 190_000, "licence": "&" * 190_000, "link": "https://x.example/" + "'" * 190_000}
        record["pictures"] = {"near": [{"group": first, "name": "cat", "cosine": 0.5}] * 20}

    altered(path, grown)
    known = service.methods()
    html = opened(path, known).html
    assert len(html) < 3_000_000 and html.count("cat: 0.50") == 20
    whole = opened(write("b.zip"), known)
    monkeypatch.setattr(report_screens, "MOST_HTML", len(whole.html) - 1)
    with pytest.raises(ReportError, match="too large to be shown"):
        opened(write("b.zip"), known)
    monkeypatch.setattr(report_screens, "MOST_HTML", 1_000)
    with pytest.raises(ReportError, match="too large to be shown"):
        comparison(whole.told, whole.told)
