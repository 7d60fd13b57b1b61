"""The Benchmarks screen says what the files of figures say, and that they say nothing where they are absent."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import pytest

from guda_core.reports.agreement_rows import labelled
from guda_core.ui import benchmarks, compare
from tests.fakes import FakeService, answered
from tests.light import METHODS


def row(effort: str, held: float) -> dict:
    share = {"value": held, "low": held - 0.02, "high": held + 0.02, "n": 100}
    return {"effort": effort, "query_set": "all", "held": share, "told_apart": share, "told_apart_wrongly": None}


@pytest.mark.parametrize(("held", "narrow"), [({"quick": 0.78, "full": 0.94}, "(quick)"), ({"quick": 0.95}, "")])
def test_intervals_that_are_too_narrow_are_called_so(held, narrow):
    said = benchmarks._intervals({"rows": [row(e, h) for e, h in held.items()]})
    assert ("they are too narrow" in said) == bool(narrow) and narrow in said
    assert all(f"{h:.2f} ({h - 0.02:.2f} to {h + 0.02:.2f})" in said for h in held.values())


@pytest.mark.parametrize("found", [None, {}, {"rows": [{"effort": "quick"}]}])
def test_intervals_that_were_not_measured_are_not_judged(found):
    said = benchmarks._intervals(found)
    assert benchmarks.UNKNOWN in said and "narrow" not in said


def test_a_method_on_fewer_groups_is_named_with_their_number():
    rows = [{"method": "ceiling", "groups": 4}, {"method": "guda", "groups": 8}]
    assert [r["method"] for r in labelled(rows)] == ["ceiling (4 groups)", "guda"]
    assert labelled(rows[:1]) == rows[:1] and labelled([{"method": "x"}]) == [{"method": "x"}] and labelled([]) == []


def test_ceilings_come_first_then_the_best():
    rows = [{"method": m, "top1": {"value": v}} for m, v in (("guda", 0.9), ("ceiling-again", 0.7), ("das", 0.95))]
    assert [r["method"] for r in sorted(rows, key=benchmarks._strength)] == ["ceiling-again", "das", "guda"]


def test_one_sentence_and_the_apps_methods_come_first():
    def agrees(method: str, value: float, query_set: str = "generated") -> dict:
        return {
            "method": method, "query_set": query_set, "n": 200,
            "top1": {"value": value, "low": value - 0.05, "high": value + 0.05},
        }  # fmt: skip

    rows = [agrees("guda", 0.67), agrees("clip-mean", 0.53), agrees("guda/mse", 0.9), agrees("guda", 0.2, "real")]
    said = benchmarks._first({"rows": rows}, METHODS)
    assert "names in 67 of 100" in said  # without an offset
    assert f"{benchmarks.SETS['real']} (200 pictures): 20 of 100." in said and "prompt" not in said
    rows += [agrees("guda + offset", 0.71), agrees("clip-mean + offset", 0.6), agrees("clip-max", 0.7)]
    said = benchmarks._first({"rows": rows}, METHODS)
    assert (
        "On 200 pictures that the model drew, GUDA (unlearning) names the group that retraining names in 71 of 100"
        in said
    )
    assert (
        "66 to 76" in said
        and "CLIP similarity" in said
        and not [n for n in ("mse", "0.20", "0.60", "0.70") if n in said]
    )
    rows += [agrees("label", 0.72), agrees("random", 0.13), agrees("label", 0.4, "real")]
    said = benchmarks._first({"rows": rows}, METHODS)
    beside = "13 of 100 by drawing lots, 72 of 100 by naming who was asked for."
    assert f"For comparison, on the first: {beside}" in said
    assert "clear of the second" not in said
    lead = {k: {"n": 9, "top1": {"value": v, "low": 0.0, "high": 1.0}} for k, v in (("clear", 0.8), ("not", 0.23))}
    known = {"method": "guda + offset", "query_set": "generated", **lead}
    broken = [{**known, "not": {"n": 0, "top1": None}}, "x", {"query_set": "real", **lead}, {**known, "method": "das"}]
    said = benchmarks._first({"rows": rows, "where_clear": [*broken, known]}, METHODS)
    assert ": 80 of 100 where the first group is clear of the second, 23 where not." in said
    assert benchmarks.DRAWN in said and "one style" not in said
    blend = {**known, "query_set": "generated-blend"}
    said = benchmarks._first({"rows": rows, "where_clear": [known, blend]}, METHODS)
    assert benchmarks.SETS["generated"] in html.unescape(said)
    assert "clear of the second" not in benchmarks._first({"rows": rows, "where_clear": broken}, METHODS)
    assert benchmarks.UNKNOWN in benchmarks._first(None, METHODS) and benchmarks.UNKNOWN in benchmarks._first(
        {"rows": []}, METHODS
    )


def test_every_method_of_the_app_stands_in_the_first_table():
    info = METHODS["clip"]
    methods = METHODS | {m: dataclasses.replace(info, id=m, name=m.upper()) for m in ("das", "trak", "x", "y", "z")}
    top = {"value": 0.5, "low": 0.4, "high": 0.6}
    found = {"rows": [{"method": m, "query_set": "generated", "n": 9, "top1": top} for m in methods]}
    assert not [info.name for info in methods.values() if info.name not in benchmarks._first(found, methods)]


def test_digits_are_not_said_to_have_words():
    digits, styles = (benchmarks.read(benchmarks.BENCHMARKS / f"{name}.json") for name in ("digits", "styles"))
    assert digits is not None and styles is not None
    said = benchmarks._sets(digits["rows"])
    assert benchmarks.DRAWN in said and "words" not in said
    assert benchmarks.SETS["generated"] in benchmarks._sets(styles["rows"])


def test_trainings_take_what_was_measured_side_by_side():
    before = {"unlearning_s": {"a": 90.0}, "training_s": {"unet-full-s3": 3551.0}}  # beside other work
    speed = {"app_start_s": 7.7, "cpu_threads": 2, **before}
    steps = {"before_s": 0.5, "step_s": 0.25}
    costs = {"costs": [{"method": "guda", **steps, "steps": 80}, {"method": "logo", **steps, "steps": 400}]}
    said = benchmarks._speed(speed, {"costs": [*costs["costs"], {"method": "clip", "precompute_s": 1.0}]})
    shown = re.sub(r"<[^>]*>", " ", said)
    assert "Unlearn one group" in said and re.search(r"group\s+20\b", shown) and re.search(r"each group\s+100\b", shown)
    assert "costs.json" in said and "3551" not in said
    assert "Unlearn" not in benchmarks._speed(speed, None) and benchmarks.UNKNOWN in benchmarks._speed(None, costs)


def test_what_was_measured_of_a_model_of_ones_own_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("GUDA_HOME", str(tmp_path))
    service = FakeService()
    made, sets = service.provenance(), service.group_set

    def said() -> str:
        return benchmarks._own(service, service.methods())

    answer = answered(service)
    assert compare.OVER_MANY in compare.shown(answer, service)  # of the shipped model
    monkeypatch.setattr(benchmarks, "is_measured", lambda service: False)
    assert benchmarks.NOT_MEASURED in said() and compare.NO_ORACLE in compare.shown(answer, service)
    assert compare.OVER_MANY not in compare.shown(answer, service)
    service.oracle = "agrees"
    assert "LOGO" in said() and f"experiments.logo --model NAME --set {sets.id}" in said() and "nobody" not in said()

    def row(value: float, n: int) -> dict:
        return {
            "method": "guda",
            "query_set": "generated",
            "n": n,
            "top1": dict.fromkeys(("value", "low", "high"), value),
        }

    file, groups = tmp_path / "runs" / made.model / sets.id / "logo" / "logo.json", list(sets.groups)
    file.parent.mkdir(parents=True)
    found = {"base_sha256": made.sha256, "groups": groups, "rows": [row(0.9, 60)], "rows_report": [row(0.7, 30)]}
    file.write_text(json.dumps(found))
    assert "On 30 pictures that the model drew" in said() and "names in 70 of 100" in said() and "0.90" not in said()
    assert compare.OVER_MANY in compare.shown(answer, FakeService())
    assert f"runs/fake/{sets.id}/logo/logo.json" in said() and benchmarks.HALF in said()
    assert "these groups alone" not in said()
    file.write_text(json.dumps({**found, "rows_report": [], "groups": groups[:2]}))
    assert "names in 90 of 100" in said() and benchmarks.HALF not in said()
    assert f"these groups alone: {', '.join(sets.groups[g].name for g in groups[:2])}." in said()
    file.write_text(json.dumps({**found, "base_sha256": "another"}))
    assert "70 of 100" not in said()
