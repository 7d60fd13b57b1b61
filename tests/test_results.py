"""Questions to a table of scores: counts that were planted, a page that holds odd texts, and many rows."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import duckdb
import fsspec
import gradio as gr
import pytest
import typer

import guda_core
from experiments.scale import made_up
from guda_core import api, held_files
from guda_core.cli import table_lines
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import resolve_card
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.errors import LACKS, GudaError, OptionError, ReportError
from guda_core.records import GroupScore, Scope
from guda_core.reports.read import read_report
from guda_core.scoring import again, asking, caveats, parts, places, summary
from guda_core.scoring.asking import Asked, Results
from guda_core.scoring.part_jobs import here
from guda_core.scoring.summary import Silent
from guda_core.scoring.summary_page import page
from guda_core.scoring.table_run import Table, Total
from guda_core.ui import results_screen
from tests.light import LightService, draw
from tests.own_pictures import guda
from tests.own_workspace import own_workspace
from tests.table_works import QUICK, Made, folder_of, rows
from tests.table_works import run as make_table
from tests.test_cli import run  # noqa: F401  (a fixture)
from tests.test_pipeline import service  # noqa: F401  (a fixture)

LEVELLED = "twemoji"


class Scoped(LightService):
    """Pictures whose hash begins with a digit are out of scope. The first group is ahead, of most pictures, and below 0
    with all others, of some. One group has an offset above all scores."""

    def __init__(self):
        super().__init__()
        guda = {**self.made_with.made_from["guda"], "offset": {LEVELLED: 1e9, "openmoji": None}}
        self.change(made_from={**self.made_with.made_from, "guda": guda})

    def _guda(self, query, progress):
        a, (_, ahead, level) = super()._guda(query, progress), (int(c, 16) for c in query.image_hash[:3])
        by = -1e4 if level < 6 else 0.0
        groups = {
            g: s if s.score is None else dataclasses.replace(s, score=s.score + by, low=s.low + by, high=s.high + by)
            for g, s in a.groups.items()
        }
        return dataclasses.replace(a, groups=groups, separable=ahead > 3)

    def scope(self, query):
        verdict = "out of scope" if query.image_hash[0].isdigit() else "in scope"
        return Scope(verdict, 2.0, 3.0, "bits", "It needs 2 bits.", p_value=0.25)


class Kernels(Scoped):
    """Its scores have another unit: below 0 says nothing there."""

    def _guda(self, query, progress):
        return dataclasses.replace(super()._guda(query, progress), unit="kernel")


MANY = 200_000  # rows
SECONDS = 4.0  # that no machine needs for them; how long a million takes: `python -m experiments.scale`


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Twelve pictures, of which two are none; some are out of scope."""
    where = tmp_path_factory.mktemp("table")
    folder = folder_of(where / "in", 10)
    (folder / "empty.png").write_bytes(b"")
    (folder / "<b>.doc").write_text("no picture")
    make_table(folder, where / "out", Scoped)
    return where / "out"


def test_the_summary_counts_what_the_rows_say(table):
    all_rows, s = rows(table), Results(str(table)).summary()
    good = {r["picture"]: r["scope"] for r in all_rows if r["method"]}
    assert (s.pictures, s.scored, s.refused, s.failed, s.rows) == (12, 10, 2, 0, len(all_rows))
    assert s.scopes == {v: list(good.values()).count(v) for v in set(good.values())} and len(s.scopes) == 2
    seen = []
    for m in ("guda", "clip"):
        counted = [r for r in all_rows if r["method"] == m and r["scope"] == "in scope" and r["status"] == "ok"]
        firsts = [r for r in counted if r["rank"] == 1]
        for f in s.firsts[m]:
            mine = [r for r in firsts if r["group_id"] == f.group_id]
            assert f.pictures == len(mine)
            sure = [r for r in mine if r["told_apart"] and r["low"] > 0 and r["group_id"] != LEVELLED]
            assert f.apart == (len(sure) if m == "guda" else None)
            seen += [(f.group_id, any(r["told_apart"] for r in mine), f.apart)]
        assert sum(f.pictures for f in s.firsts[m]) == s.scopes["in scope"]
    assert (LEVELLED, True, 0) in seen and any(apart for _, _, apart in seen)
    assert {n for _, n in [*s.reasons.items()]} == {1} and len(s.reasons) == 2
    assert list(s.unavailable) == ["Noto Emoji"]


NO_OFFSETS = [None, [], {"guda": None}, {"guda": {"offset": 3}}, {"guda": {"offset": {"noto": "x"}}},
              {"\ud800": {"offset": {"\ud800": 10**400, "noto": 1}}}]  # fmt: skip


@pytest.mark.parametrize("made", NO_OFFSETS)
def test_offsets_that_are_none_do_not_stop_a_summary(table, monkeypatch, made):
    found = Results(str(table))
    wanted, real = found.summary().firsts["clip"], found.made_from()
    monkeypatch.setattr(Results, "made_from", lambda self: {**real, "made_from": made})
    s = found.summary()
    assert s.firsts["clip"] == wanted and any(f.apart for f in s.firsts["guda"])


def test_in_other_units_than_nats_whoever_is_clear_of_the_second_is_clearly_first(tmp_path):
    make_table(folder_of(tmp_path / "in", 10), tmp_path / "out", Kernels)
    first = [r for r in rows(tmp_path / "out") if r["method"] == "guda" and r["rank"] == 1 and r["scope"] == "in scope"]
    clear = [r for r in first if r["told_apart"]]
    found = Results(str(tmp_path / "out")).summary().firsts["guda"]
    assert sum(f.apart for f in found) == len(clear) and any(r["low"] < 0 for r in clear)


def test_first_names_no_group_of_a_picture_that_is_out_of_scope(table, tmp_path):
    asked, found = ("results", table, "--first", "--scope", "out of scope"), Results(str(table))
    names = {r["group_name"] for r in found.rows(Asked(first=True, scope="out of scope")) if r["group_name"]}
    said, whole = guda(*asked), guda(*asked, "--json", tmp_path / "r.json")
    assert names and not any(n in said + whole for n in names) and "scope: out of scope" in said
    assert all(n in (tmp_path / "r.json").read_text(encoding="utf-8") for n in names)
    assert any(n in guda(*asked[:2], "--scope", "out of scope") for n in names)


def test_rows_are_found_sorted_and_paged(table):
    all_rows, found = rows(table), Results(str(table))
    for asked, mine in (
        (Asked(group="noto"), lambda r: r["group_id"] == "noto"),
        (Asked(group="Noto Emoji", method="guda"), lambda r: r["group_id"] == "noto" and r["method"] == "guda"),
        (Asked(status="refused"), lambda r: r["status"] == "refused"),
        (Asked(scope="out of scope", first=True), lambda r: r["scope"] == "out of scope" and r["rank"] == 1),
        (Asked(picture="003.png"), lambda r: r["picture"] == "003.png"),
        (Asked(text="<B>"), lambda r: r["picture"] == "<b>.doc"),
        (Asked(group=None, text=None), lambda r: True),
        (Asked(picture="' OR 1=1 --"), lambda r: False),
    ):
        wanted = [r for r in all_rows if mine(r)]
        assert found.count(asked) == len(wanted)
        got = found.rows(asked)
        assert sorted(got, key=repr) == sorted(wanted, key=repr)
        paged = [r for start in range(0, len(wanted), 4) for r in found.rows(asked, limit=4, start=start)]
        assert found.rows(asked, start=3) == got[3:]
        assert paged == got == [r for chunk in found.all_rows(asked, chunk=3) for r in chunk]
    scores = [r["score"] for r in found.rows(Asked(method="guda", status="ok"), order="score")]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(OptionError, match="no order 'random'"):
        found.rows(Asked(), order="random")


def test_rows_are_found_by_names_that_the_table_has(table):
    found = Results(str(table))
    by_score = found.find(group="Noto Emoji", method="clip", limit=3)
    assert by_score == found.rows(Asked(group="Noto Emoji", method="clip"), order="score", limit=3)
    assert found.find(picture="003.png", first=True) == found.rows(Asked(picture="003.png", first=True))
    assert found.find() == found.rows(Asked())
    for wrong, sentence in (
        ({"group": "nobody"}, "no group 'nobody' in these results. Known: emojione-monotone"),
        ({"method": "magic"}, "no method 'magic' in these results. Known: guda, clip."),
        ({"picture": "x.png"}, "no picture 'x.png' in these results."),
        ({"status": "odd"}, "no status 'odd' in these results. Known: ok"),
        ({"scope": "odd"}, "no scope 'odd' in these results. Known: in scope"),
        ({"order": "odd"}, "no order 'odd'"),
        ({"picture": Path("003.png")}, "picture must be a text; got "),
        ({"text": 3}, "text must be a text; got int"),
        ({"limit": -1}, "limit must be at least 0; got -1"),
        ({"limit": "x"}, "limit must be a whole number"),
    ):
        with pytest.raises(OptionError, match=sentence):
            found.find(**wrong)


def test_a_method_that_is_named_twice_is_asked_once(tmp_path):
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    make_table(folder, out, LightService, options=dataclasses.replace(QUICK, methods=("clip", "clip")))
    assert len(rows(out)) == 2 * len(LightService().group_set.groups)


def test_pictures_without_any_score_are_no_scored_ones_and_are_said(tmp_path, capsys):
    class Mute(LightService):
        """Whose models are all of another model; the first picture by name has a cosine all the same."""

        def _guda(self, query, progress):
            a = super()._guda(query, progress)
            none = GroupScore(None, None, None, "unavailable", "It was made for another model.")
            return dataclasses.replace(a, groups=dict.fromkeys(a.groups, none), runner_up=None)

    folder, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
    asked = dataclasses.replace(QUICK, methods=("guda",))
    with pytest.raises(typer.Exit):  # with 1: no picture has a score
        table_lines.make_table([str(folder)], str(out), Mute, asked, workers=None, ray=None)
    sentence = "No picture has a score by guda. It was made for another model."
    assert sentence in " ".join(capsys.readouterr().err.split())
    results = Results(str(out))
    s = results.summary()
    assert (s.pictures, s.scored, s.no_score, s.refused, s.failed) == (3, 0, 3, 0, 0)
    assert results.silent() == {"guda": Silent(3, 3, 0, False, "It was made for another model.")}
    assert s.plain()["no_score"] == 3
    assert {r["picture"] for r in results.find(first=True)} == {"000.png", "001.png", "002.png"}
    assert "3 of them have no score by any method." in guda("results", out)
    assert "3 of them have no score" in (out / "summary.html").read_text()
    for made, found in ((Mute, Total(3, no_score=3)), (LightService, Total(3, scored=3))):
        other = dataclasses.replace(asked, methods=("guda", "clip")) if made is LightService else asked
        assert make_table(folder, tmp_path / made.__name__, made, options=other) == found
    assert make_table(folder, out, Mute, options=asked) == Total(3, no_score=3)
    with pytest.raises(typer.Exit):  # with 1: no picture has a score
        table_lines.make_table([str(folder)], str(out), Mute, asked, workers=None, ray=None)
    assert "Scored: 0. Without scores: 3." in capsys.readouterr().out


def test_rows_that_a_shared_disk_shows_late_are_waited_for_and_what_lacks_is_said(tmp_path, caplog, monkeypatch):
    out, late = tmp_path / "out", []
    make_table(folder_of(tmp_path / "in", 9), out, LightService)
    for path in (out / "parts").iterdir():
        late.append(path.rename(tmp_path / path.name))
    monkeypatch.setattr(asking.time, "sleep", lambda s: late and late[0].rename(out / "parts" / late.pop(0).name))
    assert asking.all_there(str(out), 9).summary().pictures == 9 and not late and not caplog.text
    monkeypatch.setattr(asking, "LATE_S", 0.0)
    assert asking.all_there(str(out), 10).summary().pictures == 9
    assert "Rows of 9 pictures are seen, of 10 that were made." in caplog.text


def test_a_run_waits_for_no_damaged_table_and_lets_go_of_what_it_cannot_ask(tmp_path, monkeypatch):
    def refuses(self, *asked):
        raise ReportError("Not now.")

    out, closed = tmp_path / "out", []
    make_table(folder_of(tmp_path / "in", 2), out, LightService)
    monkeypatch.setattr(asking.time, "sleep", lambda s: pytest.fail("it waits"))
    with monkeypatch.context() as patch:
        patch.setattr(asking, "LATE_S", 0.0)
        patch.setattr(Results, "query", refuses)
        patch.setattr(Results, "close", lambda self: closed.append(self))
        with pytest.raises(ReportError, match="Not now"):
            asking.all_there(str(out), 2)
        assert len(closed) == 1
    (out / "table.json").write_text("{")
    with pytest.raises(OptionError, match="is damaged"):
        asking.all_there(str(out), 2)


def test_a_run_asks_once_which_scores_lack(tmp_path, monkeypatch):
    asked, real = [], summary.silent_of
    for module in (asking, summary):
        monkeypatch.setattr(module, "silent_of", lambda query: asked.append(1) or real(query))
    table_lines.make_table(
        [str(folder_of(tmp_path / "in", 2))], str(tmp_path / "out"), LightService, QUICK, workers=None, ray=None
    )
    assert len(asked) == 1 and "2 pictures" in (tmp_path / "out" / "summary.html").read_text()


@pytest.mark.parametrize("every", [True, False])
def test_a_table_whose_pictures_lack_scores_for_memory_is_no_whole_one(tmp_path, capsys, every):
    """From the second picture on, of all groups or of one, as where another program fills the GPU."""

    class Short(LightService):
        def _guda(self, query, progress):
            a = super()._guda(query, progress)
            if query.image_hash == self.scored[0]:
                return a
            lacking = GroupScore(None, None, None, "no_score", NO_MEMORY)
            groups = list(a.groups) if every else list(a.groups)[-1:]
            return dataclasses.replace(a, groups={**a.groups, **dict.fromkeys(groups, lacking)}, runner_up=None)

    folder, out, made = folder_of(tmp_path / "in", 4), tmp_path / "out", Short()
    with pytest.raises(typer.Exit):  # with 1
        table_lines.make_table([str(folder)], str(out), lambda: made, QUICK, workers=None, ray=None)
    sentence = f"3 of 4 pictures lack scores by guda. {LACKS}"
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert Results(out).summary().silent == {"guda": Silent(3, 4, 1 if every else 4, True, LACKS)}
    told, page = " ".join(guda("results", out).split()), (out / "summary.html").read_text()
    first = "1 picture" if every else "4 pictures"
    assert sentence in told and sentence in page and f"First group by guda, of {first} that it has scored" in told
    assert f"Of {first} that it has scored" in page and "Of 4 pictures that it has scored" in page


def test_what_has_to_be_said_beside_scores_stays_with_their_table(tmp_path, capsys, caplog, monkeypatch):
    made, sentence = LightService(), "The adapters of <a> are older than the pictures."
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    make_table(folder, out, lambda: made)
    first = Results(str(out))
    assert first.caveats() == first.summary().caveats == [] and not (out / caveats.CAVEATS).exists()
    draw(folder / "one more.png", 7)
    made.change(caveats={"guda": sentence, "das": "It is not asked for."})
    for _ in range(2):  # a run that goes on; it is said once
        table_lines.make_table([str(folder)], str(out), lambda: made, QUICK, workers=None, ray=None)
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert (
        json.loads((out / caveats.CAVEATS).read_text()) == Results(str(out)).summary().plain()["caveats"] == [sentence]
    )
    assert "<b>The adapters of &lt;a&gt; are older" in (out / "summary.html").read_text()
    assert guda("results", out).count("are older than") == 1
    with gr.Blocks() as drawn:
        results_screen.draw(Results(str(out)))
    shown = [b.value for b in drawn.blocks.values() if isinstance(b, gr.HTML)]
    assert any('class="guda-banner"' in v and "of &lt;a&gt; are" in v for v in shown)
    monkeypatch.setattr(api, "_service", lambda model, groups: made)
    guda_core.attribute_many(folder, out, groups=made.group_set, effort="quick")
    assert sentence in caplog.text
    for damaged in (b"{", b"3", b"[3]"):
        (out / caveats.CAVEATS).write_bytes(damaged)
        assert Results(str(out)).caveats() == []


def test_a_table_takes_paths_of_any_kind(tmp_path, monkeypatch):
    class Place:
        def __init__(self, path):
            self.path = path

        def __fspath__(self):
            return os.fsencode(self.path)

    made = LightService()
    monkeypatch.setattr(api, "_service", lambda model, groups: made)
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    asked = {"groups": made.group_set, "effort": "quick"}
    assert guda_core.attribute_many(Place(folder), Place(out), **asked).summary().pictures == 2


def test_a_url_in_a_path_is_refused_and_closed_results_say_so(tmp_path, monkeypatch):
    made = LightService()
    monkeypatch.setattr(api, "_service", lambda model, groups: made)
    folder, asked = folder_of(tmp_path / "in", 1), {"groups": made.group_set, "effort": "quick"}
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: guda_core.attribute_many(folder, Path("s3://bucket/out"), **asked),
        lambda: guda_core.attribute_many(Path("https://example.org/a.png"), tmp_path / "out", **asked),
        lambda: Results(Path("file:///out")),
    ):
        with pytest.raises(OptionError, match=r"is a URL in a \w*Path\. Give it as a text"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    found = guda_core.attribute_many(folder, tmp_path / "out", **asked)
    found.close()
    for question in (found.summary, found.find):
        with pytest.raises(OptionError, match=r"These results are closed. Open them again: Results\('.*out'\)"):
            question()


def test_captions_of_pictures_come_from_a_table_whatever_its_column_is_called(tmp_path, monkeypatch, caplog):
    made = LightService()
    monkeypatch.setattr(api, "_service", lambda model, groups: made)
    folder, asked = folder_of(tmp_path / "in", 2), {"groups": made.group_set, "effort": "quick"}
    names = sorted(p.name for p in folder.iterdir())
    for column in ("prompt", "caption", "text"):
        table = folder / f"{column}.csv"
        table.write_text(f"file,{column}\n{names[0]},a cat\n{names[1]},\n", encoding="utf-8")
        found = guda_core.attribute_many(table, tmp_path / column, prompt="a dog", **asked)
        assert f"The column '{column}' is used in place of the prompt." in caplog.text
        assert [r["prompt"] for r in found.find(method="guda", first=True)] == ["a cat", ""]
        as_parquet = folder / f"{column}.parquet"
        duckdb.sql(f"COPY (SELECT * FROM read_csv('{table}')) TO '{as_parquet}'")
        again = guda_core.attribute_many(as_parquet, tmp_path / column, prompt="a dog", **asked)
        assert again.rows(Asked()) == found.rows(Asked())
    for held in ({str(folder / names[0]): "a cat"}, SimpleNamespace(__dataframe__=None)):
        with pytest.raises(OptionError, match="Captions of single pictures come from a table"):
            guda_core.attribute_many(held, tmp_path / "other", **asked)
    caplog.clear()
    guda_core.attribute_many([folder / n for n in names], tmp_path / "prompt", prompt="a cow", **asked)
    assert "2 pictures have rows under another prompt. Scored again, these rows are replaced." in caplog.text
    caplog.clear()
    guda_core.attribute_many([folder / n for n in names], tmp_path / "prompt", prompt="a cow", **asked)
    assert "under another prompt" not in caplog.text
    with pytest.raises(OptionError, match="were begun with something else"):
        guda_core.attribute_many([folder / n for n in names], tmp_path / "prompt", prompt="a hen", effort="standard")
    guda_core.attribute_many([folder / n for n in names], tmp_path / "prompt", prompt="a cow", **asked)
    assert caplog.text.count("under another prompt") == 1  # before the refusal
    draw(tmp_path / "else.png", 3)
    guda_core.attribute_many(tmp_path / "else.png", tmp_path / "prompt", prompt="a cow", **asked)
    guda_core.attribute_many([folder / n for n in names], tmp_path / "prompt", prompt="a hen", **asked)
    assert caplog.text.count("2 pictures have rows under another prompt") == 2


def test_wrong_names_are_refused_before_a_folder_is_made(tmp_path, home):
    folder, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
    one = load_group_set("emoji")
    for wrong in (
        {"model": "nomodel"},
        {"groups": "noset"},
        {"methods": ["nomethod"]},
        {"model": "nomodel", "groups": one},
    ):
        with pytest.raises(GudaError, match=r"no(model|set|method)"):
            guda_core.attribute_many(folder, out, **wrong)
        assert not out.exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match=r"file' is a file, and the results need a folder\. Name one with `out`\."):
        guda_core.attribute_many(folder, tmp_path / "file")
    with pytest.raises(OptionError, match="Patterns are not read"):
        guda_core.attribute_many(f"{folder}/*.png", out)
    twin = tmp_path / "twin" / next(folder.iterdir()).name
    twin.parent.mkdir()
    draw(twin, 3)
    with pytest.raises(OptionError) as said:
        guda_core.attribute_many([next(folder.iterdir()), twin], out)
    assert str(twin) in str(said.value) and str(next(folder.iterdir())) in str(said.value)


def test_a_picture_that_is_refused_is_a_warning(tmp_path, monkeypatch, caplog):
    made = LightService()
    monkeypatch.setattr(api, "_service", lambda model, groups: made)
    folder, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    (folder / "broken.png").write_bytes(b"")
    results = guda_core.attribute_many(folder, out, groups=made.group_set, effort="quick")
    assert "1 of 3 pictures could not be scored, such as 'broken.png': This file is empty" in caplog.text
    assert repr(results) == f"Results({str(out)!r})" and "licence" not in repr(results.summary())
    assert Results(out).summary() == results.summary()
    for wrong in (None, "", 3):
        with pytest.raises(OptionError, match="folder must be a path"):
            Results(wrong)  # type: ignore[arg-type]


def test_a_query_of_ones_own_is_of_the_rows_and_what_is_none_is_an_error_of_the_query(tmp_path):
    make_table(folder_of(tmp_path / "in", 2), tmp_path / "out", LightService)
    results = Results(str(tmp_path / "out"))
    asked = "SELECT picture, count(*) FROM scores WHERE group_id = ? GROUP BY 1 ORDER BY 1"
    names = sorted({r["picture"] for r in results.rows(Asked())})
    assert results.query(asked, ["noto"]) == [(n, len(results.methods())) for n in names]
    assert results.query(asked.replace("?", "$g"), {"g": "noto"}) == results.query(asked, ["noto"])
    assert results.query("DESCRIBE scores") and results.query("PIVOT scores ON method IN ('clip') USING max(score);")
    frame = results.frame("SELECT picture, score FROM scores WHERE method = $m", {"m": "guda"})
    assert list(frame.columns) == ["picture", "score"] and set(frame["picture"]) == set(names)
    assert len(results.frame()) == results.count(Asked())
    for wrong in (
        "SELEC picture FROM scores", "SELECT colour FROM scores", "SELECT * FROM score",
        "SELECT mean_(score) FROM scores", "SELECT CAST(picture AS INT) FROM scores",
        "SELECT * FROM scores WHERE picture = ?", "FROM 'none.parquet'",
        "SELECT regexp_matches(picture, '(') FROM scores", "SELECT 9223372036854775807 + rank FROM scores",
    ):  # fmt: skip
        with pytest.raises(OptionError, match="This cannot be asked of a table of scores"):
            results.query(wrong)
    file = tmp_path / "file"
    for wrong in (
        "", " ; ", "-- nothing", "DROP VIEW scores", "EXPLAIN ANALYZE DROP VIEW scores", "SELECT 1; SELECT 2",
        f"COPY (SELECT 1) TO '{file}'", f"COPY (PIVOT scores ON method) TO '{file}'",
    ):  # fmt: skip
        with pytest.raises(OptionError, match="asked by one SELECT"):
            results.frame(wrong)
    for more, why in (
        ((None,), "A query is a text; got NoneType"), ((asked, "noto"), "values must be a list"),
        ((asked, 5), "values must be a list"), ((asked, [object()]), "This cannot be asked"),
        ((asked, {"g": "noto"}), "This cannot be asked"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=why):
            results.query(*more)
    assert results.summary().scored == 2 and not file.exists()
    with results as same:
        assert same is results
    with pytest.raises(OptionError, match="These results are closed"):
        results.frame()


def test_a_part_that_is_damaged_after_the_look_is_no_fault_of_the_query(tmp_path):
    make_table(folder_of(tmp_path / "in", 1), tmp_path / "out", LightService)
    results = Results(str(tmp_path / "out"))
    (part,) = (tmp_path / "out" / parts.FOLDER).iterdir()
    with results.at_once():
        for spoil in (lambda: part.write_bytes(b"no parquet at all"), part.unlink):
            spoil()
            with pytest.raises(ReportError, match="run the command that made them again"):
                results.query("SELECT sum(score) FROM scores")


def test_all_that_one_question_says_is_of_the_same_parts(tmp_path, monkeypatch):
    """Also while the table goes on."""
    folder, out = folder_of(tmp_path / "in", 12), tmp_path / "out"
    make_table(folder, out, LightService)
    there = sorted((out / parts.FOLDER).iterdir())
    assert len(there) > 2
    held, later = [p.rename(tmp_path / p.name) for p in there[1:]], Results(str(out))
    first, real = later.summary(), Results.query

    def asked(self, *more):  # a part comes after each look at the table
        found = real(self, *more)
        if held:
            part = held.pop()
            part.rename(out / parts.FOLDER / part.name)
        return found

    monkeypatch.setattr(Results, "query", asked)
    assert later.summary().plain() == first.plain() and len(held) < len(there) - 1
    with later.at_once():
        assert later.count(Asked()) == len(later.rows(Asked()))
    while held:
        later.count(Asked())
    assert later.summary().pictures == 12 == Results(str(out)).summary().pictures
    (out / "table.json").unlink()
    with pytest.raises(OptionError, match="There are no results in"):
        later.summary()


def test_the_numbers_of_a_summary_add_up_while_a_part_is_written_anew(tmp_path, monkeypatch):
    made, again = tmp_path / "out", tmp_path / "again"
    folder = folder_of(tmp_path / "in", 3)
    make_table(folder, made, LightService)
    (folder / "broken.png").write_bytes(b"")
    make_table(folder, again, LightService)
    fuller = {p.name: p.read_bytes() for p in (again / parts.FOLDER).iterdir()}
    results, real = Results(str(made)), Results.query

    def asked(self, sql, *more):
        found = real(self, sql, *more)
        for name, data in fuller.items() if "count(" in sql else ():
            (made / parts.FOLDER / name).write_bytes(data)
        return found

    monkeypatch.setattr(Results, "query", asked)
    s = results.summary()
    assert (s.pictures, s.scored, s.no_score, s.refused, s.failed) == (3, 3, 0, 0, 0)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(duckdb.Error("It cannot be opened."), ReportError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["damaged", "stopped"],
)
def test_a_table_that_could_not_be_opened_anew_is_not_answered_from_what_it_was(tmp_path, monkeypatch, error, raised):
    out = tmp_path / "out"
    make_table(folder_of(tmp_path / "in", 9), out, LightService)
    last = max((out / parts.FOLDER).iterdir()).rename(tmp_path / "away")
    results = Results(str(out))
    assert results.summary().pictures < 9
    last.rename(out / parts.FOLDER / "000002.parquet")

    def fails():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(results, "_connection", SimpleNamespace(cursor=fails))
        with pytest.raises(raised):
            results.summary()
    assert results.summary().pictures == 9


def test_a_part_that_could_not_be_read_in_passing_is_looked_at_again(tmp_path, monkeypatch):
    folder, out = folder_of(tmp_path / "in", 9), tmp_path / "out"
    make_table(folder, out, LightService)
    first, real = min((out / parts.FOLDER).iterdir()), places.read_tail

    def fails(place, n):
        if place == str(first):
            raise OSError(24, "Too many open files")
        return real(place, n)

    with monkeypatch.context() as patch:
        patch.setattr(places, "read_tail", fails)
        results = Results(str(out))
        assert results.summary().cut == 1 and results.summary().pictures < 9
    assert results.summary().pictures == 9 and results.cut == 0
    away = out.with_name("away")
    (out / parts.FOLDER).rename(away)
    with pytest.raises(OptionError, match="is finished yet"):
        results.summary()
    away.rename(out / parts.FOLDER)
    first.write_bytes(b"cut short")
    assert results.summary().pictures < 9 and results.cut == 1


def test_only_parts_that_changed_are_read_again(tmp_path, monkeypatch):
    folder, out = folder_of(tmp_path / "in", 12), tmp_path / "out"
    make_table(folder, out, LightService)
    results, read, real = Results(str(out)), [], parts.whole
    monkeypatch.setattr(parts, "whole", lambda some: read.append(list(some)) or real(some))
    last = max((out / parts.FOLDER).iterdir())
    for _ in range(2):
        last.write_bytes(last.read_bytes())
        assert results.summary().pictures == 12
    assert read == [[str(last)]] * 2
    last.write_bytes(b"cut short")
    assert results.summary().pictures < 12 and results.cut == 1


def test_results_at_a_url_are_as_they_are_when_asked(tmp_path, monkeypatch):
    folder, memory = folder_of(tmp_path / "in", 3), fsspec.filesystem("memory")
    try:
        make_table(folder, "memory://asked/out", LightService)
        results = Results("memory://asked/out")
        assert results.summary().pictures == 3
        draw(folder / "one more.png", 7)
        make_table(folder, "memory://asked/out", LightService)
        assert results.summary().pictures == 4 and results.count(Asked(picture="one more.png"))

        def lost(*_, **__):
            raise ConnectionError("The line is dead.")

        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "ls", lost)
            with pytest.raises(ReportError, match=r"cannot be read now \(The line is dead\.\)"):
                results.summary()
        assert results.summary().pictures == 4
    finally:
        memory.rm("/asked", recursive=True)


def test_the_page_is_whole_and_safe(table):
    text = page(Results(str(table)).summary(), "<script>alert(1)</script>")
    assert "<script" not in text and "&lt;script&gt;" in text and "prefers-color-scheme: dark" in text
    assert "http" not in text and "src=" not in text  # nothing from another host
    assert "This file is empty (0 bytes)" in text and "out of scope" in text and 'role="img"' in text


def test_parts_that_are_cut_short_are_left_out_and_said(table, tmp_path):
    out = tmp_path / "out"
    make_table(folder_of(tmp_path / "in", 9), out, LightService)
    first = Path(places.files(str(out / "parts"), ".parquet")[0])
    lost = {r["picture"] for r in parts.read(str(first))}
    first.write_bytes(first.read_bytes()[:-9])
    (out / "parts" / ".part-1234").write_bytes(b"stray")
    summary = Results(str(out)).summary()
    assert summary.cut == 1 and summary.pictures == 9 - len(lost) and "1 part is left out" in page(summary, "x")
    whole = first.with_name(places.files(str(out / "parts"), ".parquet")[1].rpartition("/")[2])
    data = whole.read_bytes()
    (footer,) = struct.unpack("<I", data[-8:-4])
    whole.write_bytes(data[:4] + bytes(len(data) - 12 - footer) + data[-8 - footer :])
    for ask in (lambda r: r.summary(), lambda r: list(r.all_rows(Asked()))):
        with pytest.raises(ReportError, match="run the command that made them again"):
            ask(Results(str(out)))
    whole.write_bytes(data[:4] + bytes(len(data) - 8) + data[-4:])
    assert Results(str(out)).summary().cut == 2
    for p in (out / "parts").iterdir():
        p.unlink()
    with pytest.raises(OptionError, match=r"Nothing .* is finished yet"):
        Results(str(out))
    with pytest.raises(OptionError, match="guda attribute FOLDER --table"):
        Results(str(tmp_path))


def test_a_picture_is_computed_again_and_compared(table, monkeypatch):
    found = Results(str(table))
    mine = again.rows_of(found, "003.png")
    done = again.again(Scoped(), found.made_from(), mine)
    assert done.outcome == "equal" and not done.changes
    other = Scoped()
    other.nudge = 1.0001
    near = again.again(other, found.made_from(), mine)
    assert near.outcome == "within tolerance" and "in the table" in near.changes[0]
    other.salt = "x"
    assert again.again(other, found.made_from(), mine).outcome == "different"
    assert again.compare(mine, mine[1:])[0] == "different"
    assert again.compare(mine[1:], mine)[0] == "different"
    with pytest.raises(OptionError, match=r"has no scores\. This file is empty"):
        again.rows_of(found, "empty.png")
    with pytest.raises(OptionError, match="no picture 'none'"):
        again.rows_of(found, "none")
    monkeypatch.setattr(Scoped, "scope", lambda self, query: 1 / 0)
    assert all("/scope" in c for c in again.again(Scoped(), found.made_from(), mine).changes)
    gone = [{**r, "place": "/nowhere/x.png"} for r in mine]
    with pytest.raises(ReportError, match="not at /nowhere"):
        again.again(other, found.made_from(), gone)
    with pytest.raises(ReportError, match="another picture"):
        again.again(other, found.made_from(), [{**r, "file_sha256": "0"} for r in mine])


def test_rows_in_half_precision_may_move_by_a_sixth_of_their_interval():
    def row(group: str, score: float, rank: int, unit: str = "nats", **more: object) -> dict[str, object]:
        found = {"method": "guda", "group_id": group, "unit": unit, "score": score, "low": 4.0, "high": 16.0}
        return {**dict.fromkeys(again.SAME), **found, "rank": rank, "status": "ok", "told_apart": False, **more}

    before = [row("a", 10.0, 1), row("b", 9.0, 2)]
    near, far = [row("a", 8.5, 2), row("b", 9.0, 1)], [row("a", 7.5, 2), row("b", 9.0, 1)]
    assert again.compare(before, near)[0] == again.compare(before, far, coarse=True)[0] == "different"
    assert again.compare(before, near, coarse=True)[0] == "within tolerance"
    assert again.compare(before, [row("a", 10.0, 2), row("b", 9.0, 1)], coarse=True)[0] == "different"  # ranks alone
    assert again.compare(before, [row("a", 8.5, 1, status="no_score"), before[1]], coarse=True)[0] == "different"
    cosine = [row("a", 10.0, 1, "cosine")], [row("a", 8.5, 1, "cosine")]
    assert again.compare(*cosine, coarse=True)[0] == "different" and again.compare(before, before)[0] == "equal"


def test_the_commands_make_ask_and_replay_a_table(run, tmp_path):  # noqa: F811
    folder, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
    (folder / "[red]x.doc").write_text("no picture")
    (folder / "000.txt").write_text("a caption")
    done = run("attribute", folder, "--out", out, "--table", "--effort", "quick")
    assert done.exit_code == 1 and "Scored: 3. Without scores: 1." in done.output, done.output
    assert "1 file is left out" in done.output
    assert (out / "summary.html").is_file() and "[red]x.doc" in done.output
    done = run("attribute", folder, "--out", out, "--table", "--effort", "quick")
    assert "Scored: 3 (3 of them kept from an earlier run)" in done.output
    done = run("results", out, "--json", tmp_path / "s.json", "--page", tmp_path / "p.html")
    assert done.exit_code == 0 and "4 pictures: 3 scored, 1 refused, 0 failed." in done.output, done.output
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["pictures"] == 4 and set(told["first"]) == {"guda", "clip"} and (tmp_path / "p.html").is_file()
    done = run("results", out, "--group", "noto", "--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json")
    assert done.exit_code == 0 and "6 rows" in done.output
    listed = list(csv.DictReader((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()))
    assert len(listed) == len(json.loads((tmp_path / "r.json").read_text())) == 6
    assert {r["group_id"] for r in listed} == {"noto"}
    of = ("--model", "tiny")
    done = run("results", out, "--report", "001.png", tmp_path / "r.zip", *of)
    assert done.exit_code == 0 and "Equal: every score is bitwise" in done.output, done.output
    assert run("replay", tmp_path / "r.zip", *of).exit_code == 0
    record = read_report(tmp_path / "r.zip").record
    assert record["settings"] == {"effort": "quick", "methods": ["guda", "clip"]}
    draw(folder / "001.png", seed=77)
    assert "another picture" in run("results", out, "--report", "001.png", tmp_path / "r.zip", *of).output


def test_a_row_is_computed_again_by_a_model_that_has_no_card(home, tmp_path):
    runs, model = own_workspace(home) / "runs", home / "models" / "brush"
    (home / "models" / "brush.yaml").unlink()
    (runs / "brush").rename(runs / resolve_card(str(model)).id)
    model = model.rename(home / "brush")
    folder, out, report = folder_of(tmp_path / "in", 1), tmp_path / "out", tmp_path / "r.zip"
    guda("attribute", folder, "--out", out, "--table", "--effort", "quick", "--set", "artists", "--model", model)
    said = guda("results", out, "--report", "000.png", report, code=2)
    assert "of the model 'brush', which has no card here. If you trust that model, name it with --model" in said
    said = guda("results", out, "--report", "000.png", report, "--model", model)
    assert "Equal: every score is bitwise" in said and report.is_file() and "is not the one" not in said
    said = guda("replay", report, code=2)
    assert "This report is of the model 'brush', which has no card here. If you trust that model, name it" in said
    assert "Equal: every score is bitwise" in guda("replay", report, "--model", model)
    lora = runs / "brush" / "artists" / "adapters" / "dee" / "adapter_model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUDA_LORA", "")  # `--lora` sets it
        again = guda("replay", report, "--model", model, "--lora", lora, code=1)
        said = guda("results", out, "--report", "000.png", report, "--model", model, "--lora", lora, code=1)
    assert "model/sha256" in again and "Different." in again
    assert "This model is not the one of the results" in said and "Different." in said


@pytest.mark.parametrize("name", ["attacker/any-repo", r"\\10.0.0.66\share\m", "/etc"])
def test_results_lead_to_no_model_that_the_user_did_not_name(tmp_path, monkeypatch, name):
    asked, forger, out = [], LightService(), tmp_path / "out"
    monkeypatch.setattr("guda_core.cli.loading.service_of", lambda model, *a: asked.append(model) or forger)
    forger.change(model=name)
    make_table(folder_of(tmp_path / "in", 1), out, lambda: forger)
    said = guda("results", out, "--report", "000.png", tmp_path / "r.zip", code=2)
    assert f"These results are of the model '{name}', which has no card here. If you trust" in said and not asked
    guda("results", out, "--report", "000.png", tmp_path / "r.zip", "--model", name)
    assert asked == [name]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("attribute", "x", "--table"), "--table goes with --out"),
        (("attribute", "x", "--workers", "2"), "go with --table"),
        (("attribute", "x", "--ray", "auto"), "go with --table"),
        (("attribute", "nowhere", "--table", "--out", "out"), "no folder or picture 'nowhere'"),
        (("results", "nowhere"), "There are no results in 'nowhere'"),
        (("results", "nowhere", "--status", "odd"), "--status must be one of ok"),
        (("results", "nowhere", "--model", "emoji"), "--model and --lora go with --report"),
        (
            ("results", "nowhere", "--report", "a.png", "r.zip", "--json", "s.json"),
            "--report names its picture, and stands",
        ),
    ],
)
def test_wrong_options_are_one_sentence(run, arguments, sentence):  # noqa: F811
    done = run(*arguments)
    assert done.exit_code == 2 and sentence in " ".join(done.output.split()), done.output


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Rows that are made up."""
    out = tmp_path_factory.mktemp("many") / "out"
    made_up.make(out, MANY)
    return out


def test_many_rows_are_summarised_and_searched_in_seconds(many):
    began = time.process_time(), time.perf_counter()
    found = Results(str(many))
    summary = found.summary()
    text = page(summary, "made up")
    page_of = found.rows(Asked(group="group-3", method="guda", text="77"), order="score", limit=50, start=100)
    one = found.rows(Asked(picture="made/0002345.png"))
    wall = time.perf_counter() - began[1]
    assert summary.rows >= MANY and len(page_of) == 50 and len(one) in (1, 18) and "made up" in text
    assert sum(f.pictures for f in summary.firsts["guda"]) == summary.scopes["in scope"]
    assert min(wall, time.process_time() - began[0]) < SECONDS


@pytest.mark.parametrize(
    ("asked", "order", "start"),
    [
        (Asked(), "picture", 180_000),
        (Asked(first=True), "score", 5_000),
        (Asked(text="77", group="group-3"), "lowest score", 0),
    ],
)
def test_the_apps_page_of_many_rows_takes_seconds(many, asked, order, start):
    results = Results(str(many))
    began = time.process_time(), time.perf_counter()
    found = results_screen.page(results, asked, order, start)
    took = min(time.perf_counter() - began[1], time.process_time() - began[0])
    assert found[0] == start and found[3] and took < SECONDS


def test_what_a_table_will_take_is_said_once_its_pace_is_known(tmp_path, capsys, monkeypatch):
    table = Table([str(folder_of(tmp_path / "in", 9))], str(tmp_path / "out"), Made(tmp_path, slow=0.05), QUICK)
    assert table_lines._followed(table, here).done == 9
    said = " ".join(capsys.readouterr().err.split())
    pace, left, took = re.findall(r"\(([\d.]+) s each\), the other (\d) will take about (\d+) s\. Ctrl-C", said)[0]
    assert float(pace) >= 0.05 and left == "5" and abs(int(took) - 5 * float(pace)) <= 0.6
    again = Table([str(tmp_path / "in")], str(tmp_path / "out"), Made(tmp_path), QUICK)
    assert table_lines._followed(again, here).kept == 9 and "pace" not in capsys.readouterr().err  # nothing to do
    clock = iter([0.0, 40.0])
    slow = table_lines._Expected()
    with monkeypatch.context() as patch:
        patch.setattr(table_lines.time, "monotonic", lambda: next(clock))
        for scored in (0, 1, 2, 3):
            slow.hear(Total(1001, scored=scored))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("will take") == 1 and "(40 s each), the other 999 will take about 11.1 h" in said
    clock = iter([0.0, 15.0])
    grown = table_lines._Expected()  # most of its pictures have rows already
    with monkeypatch.context() as patch:
        patch.setattr(table_lines.time, "monotonic", lambda: next(clock))
        for total in (Total(400, kept=100), Total(400, scored=1, kept=100), Total(400, scored=4, kept=247)):
            grown.hear(total)
    assert "of the first pictures, the other 149 will take about 15 s." in " ".join(capsys.readouterr().err.split())


def test_rows_go_into_a_pipe_as_they_are_and_leave_nothing_beside_it(tmp_path):
    out = tmp_path / "out"
    make_table(folder_of(tmp_path / "in", 2), out, LightService)
    pipe = tmp_path / "to" / "pipe"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        text = reader.submit(pipe.read_text, encoding="utf-8")
        guda("results", out, "--group", "noto", "--csv", pipe)
        got = list(csv.DictReader(text.result(timeout=60).splitlines()))
    assert pipe.is_fifo() and list(pipe.parent.iterdir()) == [pipe]
    wanted = Results(str(out)).rows(Asked(group="noto"), order="score")
    assert [(r["picture"], r["method"]) for r in got] == [(r["picture"], r["method"]) for r in wanted] != []
    assert {r["group_id"] for r in got} == {"noto"}


@pytest.mark.skipif(os.name == "nt", reason="no /dev/stdout")
def test_rows_written_to_stdout_are_all_that_stands_there_and_follow_what_stood_there(tmp_path):
    out, to = tmp_path / "out", tmp_path / "rows.csv"
    make_table(folder_of(tmp_path / "in", 2), out, LightService)
    asked = [sys.executable, "-m", "guda_core", "results", str(out), "--group", "noto", "--csv", "/dev/stdout"]
    to.write_text("before\n")
    with to.open("ab") as f:
        told = subprocess.run(asked, stdout=f, stderr=subprocess.PIPE, text=True, timeout=60, check=True).stderr
    before, *rows = to.read_text(encoding="utf-8").splitlines()
    assert before == "before" and "Written: /dev/stdout" in told and "noto" in told.lower()
    assert [r["group_id"] for r in csv.DictReader(rows)] == ["noto"] * 4
    assert Path("/dev/stdout").is_symlink()
    reader, writer = os.pipe()
    os.close(reader)  # as `head` leaves it
    cut = subprocess.run(asked, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=True).stderr
    os.close(writer)
    assert "Broken pipe" not in cut and "Exception" not in cut


def test_a_link_goes_on_leading_where_it_leads(tmp_path):
    (tmp_path / "far").mkdir()
    for name, old in (("there", b"old"), ("not yet", None)):
        target, link = tmp_path / "far" / name, tmp_path / f"to {name}"
        if old:
            target.write_bytes(old)
        link.symlink_to(target)
        held_files.write_anywhere(link, [b"n", b"ew"])
        assert link.is_symlink() and target.read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["not yet", "there"]
