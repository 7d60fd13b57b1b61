"""A report that version 0.1 wrote (format 2) is read and computes to the same answer on the model of today."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from guda_core.errors import ReportError
from guda_core.local import load_service
from guda_core.reports.findings import Verdict
from guda_core.reports.read import parse_record, read_report
from guda_core.reports.replay import replay
from guda_core.reports.restore import attributions

OLD = (
    Path(__file__).with_name("data") / "report-0.1.zip"
)  # `guda_core attribute drawn.png --effort quick`, as 0.1 wrote


def test_a_report_of_0_1_computes_to_the_same_answer():
    read = read_report(OLD)
    *_, verdict = replay(read, load_service(fall_back=False))
    assert isinstance(verdict, Verdict)
    assert verdict.outcome in ("equal", "within tolerance"), [c.sentence() for c in (*verdict.scores, *verdict.inputs)]
    said = "narrower, without the offset's error (version 0.1) in the report, computed in the same way now."
    assert f"intervals: {said}" in [c.sentence() for c in verdict.environment]


def test_it_is_brought_to_todays_words_and_its_file_stays_what_it_was():
    with zipfile.ZipFile(OLD) as z:
        old = json.loads(z.read("report.json"))
    read = read_report(OLD)
    assert (old["format"], read.record["format"]) == (2, 3)
    before, now = (r["methods"]["guda"]["settings"] for r in (old, read.record))
    assert before.pop("general") == now["offset"] and "general" not in now
    guda = {a.method: a for a in attributions(read)}["guda"]
    assert guda.offset("openmoji") == now["offset"]["openmoji"] > 0
    assert read.sha256 == hashlib.sha256(OLD.read_bytes()).hexdigest()


def test_the_offset_within_a_combination_is_renamed_too():
    with zipfile.ZipFile(OLD) as z:
        old = json.loads(z.read("report.json"))
    old["methods"]["combined"] = {**old["methods"]["clip"], "settings": {"parts": {"guda": {"general": {"noto": 2.0}}}}}
    made = parse_record(json.dumps(old).encode())
    assert made["methods"]["combined"]["settings"] == {"parts": {"guda": {"offset": {"noto": 2.0}}}}
    assert made["methods"]["clip"] == old["methods"]["clip"]


@pytest.mark.parametrize(
    "methods", [None, [], {"guda": 1}, {"guda": {"settings": 1}}, {"guda": {"settings": {"parts": []}}}]
)
def test_damage_is_named_in_an_old_report_too(methods):
    with zipfile.ZipFile(OLD) as z:
        old = json.loads(z.read("report.json"))
    with pytest.raises(ReportError, match=r"does not follow the report's schema \(methods"):
        parse_record(json.dumps({**old, "methods": methods}).encode())
