"""A folder of pictures: one table, one record, a report each; it goes on where it stopped, and refuses by name."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from guda_core.data.images import hash_pixels, read_picture
from guda_core.data.left_behind import PassedOver
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.errors import OptionError, ReportError, ScoreError
from guda_core.records import GroupScore, Scope
from guda_core.reports import batch, bundle
from guda_core.reports import record as report
from guda_core.reports.batch import Batch, BatchConfig, Progress, Summary, pictures, read_prompts, report_path
from guda_core.reports.read import read_report
from guda_core.scoring.listing import Listing
from tests.light import LightService, draw

QUICK = BatchConfig(effort="quick")


@pytest.fixture(autouse=True)
def one_day(monkeypatch):
    """All reports bear one date, so that whole folders can be compared byte for byte."""
    for place in (report, batch):
        monkeypatch.setattr(place, "today", lambda: "2030-01-01T00:00:00+00:00")


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for i, name in enumerate(("b.png", "a.png", "c.png")):
        draw(path / name, seed=i)
    return path


def run(folder: Path, out: Path, config: BatchConfig = QUICK, service: LightService | None = None) -> Summary:
    *steps, summary = Batch(service or LightService(), folder, out, config).run()
    assert all(isinstance(s, Progress) and 0 <= s.fraction <= 1 and s.done <= s.files for s in steps)
    assert isinstance(summary, Summary)
    return summary


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "scores.csv").read_text(encoding="utf-8"))))


def everything(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_a_folder_becomes_a_table_a_record_and_reports(folder, tmp_path):
    out = tmp_path / "out"
    assert run(folder, out) == Summary(3, 0, {})
    rows = table(out)
    assert len(rows) == 3 * 2 * len(LightService().group_set.groups)
    assert list(dict.fromkeys(r["file"] for r in rows)) == ["a.png", "b.png", "c.png"]
    told = json.loads((out / "batch.json").read_text())
    assert told["settings"] == {"effort": "quick", "methods": ["guda", "clip"]} and told["refused"] == []
    assert told["files"]["scores.csv"] == hashlib.sha256((out / "scores.csv").read_bytes()).hexdigest()
    for entry in told["pictures"]:
        record = read_report(out / entry["report"]).record
        assert record["scope"]["verdict"] == "in scope" and record["scope"]["value"] == 2.0
        assert hashlib.sha256((out / entry["report"]).read_bytes()).hexdigest() == entry["report_sha256"]
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["file_sha256"]
        mine = [r for r in rows if r["file"] == entry["file"] and r["score"]]
        assert (
            all(float(r["score"]) == record["methods"][r["method"]]["groups"][r["group"]]["score"] for r in mine)
            and len(mine) == 15
        )
    assert {k for k in told if k not in ("pictures", "refused", "folder")} >= {
        "format", "date", "model", "clip", "adapters", "group_set", "versions", "hardware", "limits", "prompts_sha256"
    }  # fmt: skip


def test_a_report_that_lacked_memory_for_a_group_is_made_again(tmp_path):
    class Short(LightService):
        def _clip(self, query):
            a = super()._clip(query)
            return replace(a, groups={**a.groups, "twemoji": GroupScore(None, None, None, "no_score", NO_MEMORY)})

    (tmp_path / "one").mkdir()
    draw(tmp_path / "one" / "p.png")
    folder, (first, again) = tmp_path / "one", (Short(), LightService())
    assert run(folder, tmp_path / "out", service=first) == Summary(1, 0, {}) and len(first.scored) == 1
    assert run(folder, tmp_path / "out", service=again) == Summary(1, 0, {}) and len(again.scored) == 1
    assert run(folder, tmp_path / "out", service=again) == Summary(1, 1, {}) and len(again.scored) == 1


def test_what_has_to_be_said_of_the_model_stands_in_the_folders_record_too(folder, tmp_path):
    class Drafted(LightService):
        def provenance(self):
            return replace(super().provenance(), caveats={"": "These adapters are drafts."})

    run(folder, tmp_path / "out", service=Drafted())
    told = json.loads((tmp_path / "out" / "batch.json").read_text())
    record = read_report(tmp_path / "out" / told["pictures"][0]["report"]).record
    assert told["limits"][0] == record["limits"][0] == "These adapters are drafts."


def test_an_interrupted_batch_goes_on_and_ends_as_an_uninterrupted_one(folder, tmp_path):
    run(folder, tmp_path / "whole")
    service = LightService()
    stream = Batch(service, folder, tmp_path / "out", QUICK).run()
    for p in stream:
        if p.file == "b.png" and p.fraction == 0.5:
            break
    stream.close()
    assert len(service.scored) == 2 and not (tmp_path / "out" / "batch.json").exists()
    again = LightService()
    assert run(folder, tmp_path / "out", service=again) == Summary(3, 1, {})
    assert len(again.scored) == 2
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    third = LightService()
    assert run(folder, tmp_path / "out", service=third) == Summary(3, 3, {}) and third.scored == []
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


@pytest.mark.parametrize("tear", [lambda b: b"", lambda b: b[:-20], lambda b: b[:500] + b"x" + b[501:]])
def test_a_torn_report_is_made_again(folder, tmp_path, tear):
    run(folder, tmp_path / "out")
    before = everything(tmp_path / "out")
    torn = report_path(tmp_path / "out", "a.png")
    torn.write_bytes(tear(torn.read_bytes()))
    service = LightService()
    assert run(folder, tmp_path / "out", service=service) == Summary(3, 2, {})
    assert everything(tmp_path / "out") == before and len(service.scored) == 1


def test_another_picture_prompt_setting_or_model_is_scored_again(folder, tmp_path):
    out, prompts = tmp_path / "out", tmp_path / "p.csv"
    run(folder, out)
    draw(folder / "a.png", seed=99)
    assert run(folder, out).kept == 2
    prompts.write_text("file,prompt\nb.png,cat\n")
    assert run(folder, out, BatchConfig(effort="quick", prompts=prompts)).kept == 2
    assert run(folder, out).kept == 2
    assert run(folder, out, BatchConfig(effort="standard")).kept == 0
    assert run(folder, out, BatchConfig(effort="standard", methods=("clip",))).kept == 0
    service = LightService()
    service.change_models(hashes={**service.made_with.unlearned.hashes, "twemoji": "0" * 64})
    assert run(folder, out, service=service).kept == 0
    assert run(folder, out, service=service).kept == 3


def test_a_picture_that_was_judged_by_another_rule_is_scored_again(folder, tmp_path, monkeypatch):
    def judged(rule):
        service, settings = LightService(), {"sha256": rule} if rule else {}
        service.change(scope_sha256=rule)
        verdict = dataclasses.replace(service.scope(None), settings=settings)
        monkeypatch.setattr(service, "scope", lambda query: verdict)
        return run(folder, tmp_path / "out", service=service).kept

    assert [judged(rule) for rule in ("", "a", "a", "b", "b", "")] == [0, 0, 3, 0, 3, 0]


def test_a_picture_that_the_rule_cannot_judge_is_kept_until_it_can(folder, tmp_path, monkeypatch):
    def kept(scope):
        service = LightService()
        service.change(scope_sha256="a")
        monkeypatch.setattr(service, "scope", lambda query: scope)
        return run(folder, tmp_path / "out", service=service).kept

    unable = Scope("not assessed", None, None, "", "The rule is of another CLIP.")
    able = dataclasses.replace(LightService().scope(None), settings={"sha256": "a"})
    assert [kept(scope) for scope in (unable, unable, able, able)] == [0, 3, 0, 3]


def test_a_verdict_on_scope_that_cannot_be_made_takes_no_score_away(folder, tmp_path, monkeypatch):
    def broken(query):
        raise RuntimeError("no kernel image")

    service = LightService()
    monkeypatch.setattr(service, "scope", broken)
    found = run(folder, tmp_path / "out", service=service)
    assert (found.finished, found.refused) == (3, {}) and {r["method"] for r in table(tmp_path / "out")} >= {"guda"}
    assert read_report(next((tmp_path / "out" / "reports").glob("a.png-*"))).record["scope"] is None


def test_a_report_made_with_other_features_or_another_oracle_is_made_again():
    das, logo, guda = {"sha256": "f"}, {"adapters": {"noto": "r"}}, {"adapters": {"noto": "a"}}
    used = {"das": {**das, "parts": []}, "logo": logo, "combined": {"parts": {"guda": guda, "das": das}}}
    record = {"methods": {m: {"settings": settings} for m, settings in used.items()}}

    def here(guda, das, logo):
        made_from = {"das": das, "logo": logo, "guda": guda, "combined": {"parts": {"guda": guda, "das": das}}}
        return dataclasses.replace(LightService().provenance(), made_from=made_from)

    def is_used(method, provenance):
        return batch._used({"methods": {method: record["methods"][method]}}, provenance)

    same, no_offset = here(guda, das, logo), {**guda, "offset": {}}
    assert batch._used(record, same) and batch._used(record, here(no_offset, das, logo))
    assert not batch._used(record, here(guda, das, {"adapters": {"noto": "other"}}))
    for m, settled in (("das", False), ("combined", False), ("logo", True)):
        assert is_used(m, here(guda, {"sha256": "other"}, logo)) == settled
    for m, settled in (("das", True), ("combined", False), ("logo", True)):
        assert is_used(m, here({**guda, "offset": {"noto": 3.0}}, das, logo)) == settled
    record["methods"] = {"guda": {"settings": {**guda, "offset": {"noto": 3.0}}}}
    assert batch._used(record, here({**guda, "offset": {"noto": 3.0}}, das, logo))
    assert not batch._used(record, here(no_offset, das, logo))


def test_bad_pictures_are_refused_by_name_and_the_rest_goes_on(folder, tmp_path, caplog):
    (folder / "0.png").write_bytes(b"")
    (folder / "notes.doc").write_text("no picture")
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:200])
    draw(folder / "small.png", side=8)
    (folder / ".hidden").write_text("x")
    (folder / "below").mkdir()
    os.mkfifo(folder / "pipe")
    bad = LightService()
    bad.bad_hash = hash_pixels(read_picture((folder / "b.png").read_bytes(), size=16).pixels)
    bad.fault = ScoreError("A value is not finite.")
    summary = run(folder, tmp_path / "out", service=bad)
    assert summary.finished == 2
    assert set(summary.refused) == {"0.png", "notes.doc", "torn.png", "small.png", "b.png"}
    assert "0 bytes" in summary.refused["0.png"] and "not finite" in summary.refused["b.png"]
    told = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert {r["file"]: r["reason"] for r in told["refused"]} == summary.refused
    digest = hashlib.sha256((folder / "notes.doc").read_bytes()).hexdigest()
    assert next(r for r in told["refused"] if r["file"] == "notes.doc")["file_sha256"] == digest
    bad.fault = RuntimeError("out of memory: secret")
    summary = run(folder, tmp_path / "out", service=bad)
    assert summary.finished == 2 and "RuntimeError" in summary.refused["b.png"]
    assert "secret" not in summary.refused["b.png"] and "secret" in caplog.text


def test_what_is_plainly_no_picture_is_left_out_of_a_folder_and_refused_where_it_is_named(folder, tmp_path):
    for name in ("a.txt", "B.JSONL", "a.safetensors", "list.csv"):
        (folder / name).write_text("no picture")
    (folder / "below").mkdir()
    (folder / ".hidden.txt").write_text("x")
    (tmp_path / "here.txt").write_text("no picture")
    (folder / "list.csv").write_text("file,prompt\na.png,a cat\n")
    config = BatchConfig(effort="quick", prompts=folder / "list.csv")
    job = Batch(LightService(), [folder, tmp_path / "here.txt"], tmp_path / "out", config)
    assert [p.name for p in job.files] == ["a.png", "b.png", "c.png", "here.txt"]
    assert "3 files are left out" in str(job.passed) and "1 subfolder is not read" in str(job.passed)
    *_, summary = job.run()
    assert set(summary.refused) == {"here.txt"}
    assert not str(Batch(LightService(), folder / "a.png", tmp_path / "out", QUICK).passed)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a cat")
    with pytest.raises(OptionError, match="no pictures"):
        Batch(LightService(), tmp_path / "texts", tmp_path / "out", QUICK)


def test_only_refused_pictures_still_make_a_table(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(b"x")
    assert run(tmp_path / "in", tmp_path / "out").finished == 0
    assert (tmp_path / "out" / "scores.csv").read_text() == "file," + ",".join(bundle.COLUMNS) + "\n"


def test_odd_names_are_kept_apart_and_harmless(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = ["=cmd.png", "a b\n.png", os.fsdecode(b"\xff.png"), "x" * 250 + ".png", "A.png", "a.png", "é.png"]
    for i, name in enumerate(names):
        draw(folder / name, seed=i)
    assert run(folder, out) == Summary(7, 0, {})
    rows = table(out)
    assert len({r["file"] for r in rows}) == 7 and "'=cmd.png" in {r["file"] for r in rows}
    assert len({p.name.lower() for p in (out / "reports").iterdir()}) == 7
    assert run(folder, out).kept == 7


def test_prompts_come_from_the_csv(folder, tmp_path):
    prompts = folder / "prompts.csv"
    prompts.write_bytes('\ufefffile,prompt\r\na.png,"cat, flat colours"\r\nb.png,\r\n'.encode())
    assert run(folder, tmp_path / "out", BatchConfig("quick", ("clip",), prompts)) == Summary(3, 0, {})
    told = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert {p["file"]: p["prompt"] for p in told["pictures"]} == {
        "a.png": "cat, flat colours", "b.png": "", "c.png": ""
    }  # fmt: skip
    assert told["prompts_sha256"] == hashlib.sha256(prompts.read_bytes()).hexdigest()
    prompts.write_text('sep=;\nfile;prompt\na.png;"two\nlines; of it"\n\nb.png;x\n')
    assert read_prompts(prompts, [folder / "a.png", folder / "b.png"]) == {"a.png": "two\nlines; of it", "b.png": "x"}
    prompts.write_text("file,prompt\na.png," + "x" * 2400 + "\n")
    summary = run(folder, tmp_path / "out", BatchConfig("quick", ("clip",), prompts))
    assert summary.finished == 2 and "this one has 2,400" in summary.refused["a.png"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"name,prompt\na.png,x\n", "columns file and prompt"),
        (b"", "columns file and prompt"),
        (b"file,prompt,prompt\na.png,x,y\n", "columns file and prompt, once each"),
        (
            b"file,prompt\na.png,cat, flat colours\n",
            "line 2 has more columns than the first line. Put a prompt that holds ','",
        ),
        (b"file,prompt\nz.png,x\n", "line 2: 'z.png' is not in the folder"),
        (b"file,prompt\na.png,x\na.png,y\n", "line 3: 'a.png' is named twice"),
        (b"file,prompt\na.png\n", "line 2: a file and a prompt are needed"),
        (b"file,prompt\n\xff\xfe\n", "no CSV in UTF-8"),
        (b'file,prompt\na.png,"x\n', r"p\.csv, line 2 is not readable as CSV: unexpected end"),
        (b'sep=;\r\nfile;prompt\r\na.png;"x" y\r\n', r"p\.csv, line 3 is not readable as CSV: ';' expected"),
        (
            b"sep=;\nfile;prompt\na.png;x;y\n",
            "line 3 has more columns than the first line. Put a prompt that holds ';'",
        ),
        (None, "cannot be read"),
    ],
)
def test_wrong_prompts_stop_the_batch_before_it_starts(folder, tmp_path, text, sentence):
    path = tmp_path / "p.csv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(OptionError, match=sentence):
        Batch(LightService(), folder, tmp_path / "out", BatchConfig("quick", ("clip",), path))
    assert not (tmp_path / "out").exists()


def test_what_is_asked_wrongly_stops_the_batch_before_it_starts(folder, tmp_path, monkeypatch):
    service, out = LightService(), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for where, config, sentence in (
        (folder, BatchConfig(effort="huge"), "huge"),
        (folder, BatchConfig(methods=("magic",)), "clip, guda; got magic"),
        (tmp_path / "none", QUICK, "no folder"),
        (tmp_path / "empty", QUICK, "no pictures"),
    ):
        with pytest.raises(OptionError, match=sentence):
            Batch(service, where, out, config)
    with pytest.raises(OptionError, match="another folder"):
        Batch(service, folder, folder, QUICK)
    why = {"logo": "There are no retrained models."}
    made = dataclasses.replace(service.provenance(), not_offered=why)
    monkeypatch.setattr(service, "provenance", lambda: made)
    with pytest.raises(OptionError, match=r"got logo\. There are no retrained models\."):
        Batch(service, folder, out, BatchConfig(methods=("logo",)))


def test_a_place_that_cannot_be_written_to_is_said_before_anything_is_scored(folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    service = LightService()
    with pytest.raises(ReportError, match="cannot be written"):
        list(Batch(service, folder, tmp_path / "out", QUICK).run())
    assert service.scored == []


def test_a_folder_of_captions_alone_says_what_was_left_out(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.json").write_text("{}")
    with pytest.raises(
        OptionError, match=r"no pictures in .*1 file is left out: .*1 subfolder is not read\. With --table"
    ):
        pictures([tmp_path / "in"], None, PassedOver())
    (tmp_path / "in" / "sub" / "b.txt").write_text("cat")
    with pytest.raises(OptionError, match=r"no pictures in .*2 files are left out"):
        Listing([str(tmp_path / "in")])
