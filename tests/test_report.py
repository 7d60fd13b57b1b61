"""The report: schema, table, bars, values, determinism, what is absent."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from guda_core import stored_figures
from guda_core.errors import ReportError
from guda_core.records import Attribution, GroupScore, KLValues, Query
from guda_core.reports import bundle, figures
from guda_core.reports import record as report
from guda_core.reports.read import SCHEMA, parse_record, read_report
from tests.light import MISSING, SETTINGS, LightService, draw

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def drawn_once() -> None:
    """Here bars are drawn each time."""


@pytest.fixture
def service():
    return LightService()


@pytest.fixture
def query(service, tmp_path) -> Query:
    return service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat, flat colours")


def answers(service, query) -> list[Attribution]:
    return list({a.method: a for a in service.attribute(query, **SETTINGS)}.values())


def made(service, query, **more) -> bytes:
    about = {"provenance": service.provenance(), "settings": SETTINGS, **more}
    return bundle.make(query, answers(service, query), service.group_set, **about)


def opened(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return {n: z.read(n) for n in z.namelist()}


def test_the_schema_is_one_and_knows_this_format():
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["format"]["const"] == report.FORMAT


def test_a_report_holds_its_files_and_their_hashes(service, query, tmp_path):
    files = opened(made(service, query))
    assert tuple(files) == (*bundle.FILES, "report.html")
    record = parse_record(files["report.json"])
    assert record["files"] == {n: hashlib.sha256(files[n]).hexdigest() for n in files if n != "report.json"}
    assert record["picture"]["file_sha256"] == hashlib.sha256((tmp_path / "p.png").read_bytes()).hexdigest()
    with Image.open(io.BytesIO(files["picture.png"])) as im:
        assert (np.asarray(im) == query.pixels).all() and not im.info
    with np.load(io.BytesIO(files["values.npz"]), allow_pickle=False) as z:
        guda = next(a for a in answers(service, query) if a.method == "guda")
        assert set(z.files) == {f"guda/{k}" for k in guda.arrays()}
        for k, v in guda.arrays().items():
            np.testing.assert_array_equal(z[f"guda/{k}"], v)
    (tmp_path / "r.zip").write_bytes(made(service, query))
    assert set(read_report(tmp_path / "r.zip").values) == {f"guda/{k}" for k in guda.arrays()}


def test_every_method_and_group_is_in_the_record_and_the_table(service, query):
    files = opened(made(service, query))
    record = json.loads(files["report.json"])
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"].decode())))
    assert len(rows) == 2 * len(service.group_set.groups) and tuple(rows[0]) == bundle.COLUMNS
    for row in rows:
        s = record["methods"][row["method"]]["groups"][row["group"]]
        for key in ("rank", "score", "low", "high"):
            assert (float(row[key]) if row[key] else None) == s[key]  # exact, not rounded
        assert (row["status"], row["reason"]) == (s["status"], s["reason"])
    assert [r["rank"] for r in rows if r["method"] == "guda"] == [*map(str, range(1, 8)), ""]


def test_what_is_absent_is_said(service, query):
    record = json.loads(opened(made(service, query))["report.json"])
    absent = record["absent"]
    assert record["scope"] is None and "Not assessed" in absent["scope"]
    assert record["adapters"][MISSING] is None and MISSING in absent[f"adapters/{MISSING}"]
    assert record["health"][MISSING] is None and f"health/{MISSING}" in absent
    assert record["health"]["twemoji"]["unit"] == "nats" and "health/twemoji" not in absent
    assert absent["health/openmoji"] == "Its health was not measured."
    assert record["validation"].keys() == {"sanity.json"} and absent["validation/styles.json"] == "It is damaged."
    assert record["methods"]["clip"]["sampling"] is None and "methods/clip/sampling" in absent
    assert "files" not in absent
    service.change(validation={})
    record = report.to_json(
        replace(query, file_hash=None, prompt=""),
        [],
        service.group_set,
        provenance=service.provenance(),
        settings=SETTINGS,
    )
    parse_record(json.dumps(record).encode())
    keys = ("validation", "picture/file_sha256", "picture/prompt", "methods/guda", "methods/clip", "files")
    assert all(record["absent"][k].endswith(".") for k in keys)


def test_a_scope_verdict_is_kept(service, query):
    record = json.loads(opened(made(service, query, scope={"verdict": "out of scope"}))["report.json"])
    assert record["scope"] == {"verdict": "out of scope"} and "scope" not in record["absent"]


def test_the_same_answer_gives_the_same_bytes_apart_from_the_date(service, query, monkeypatch):
    monkeypatch.setattr(report, "today", lambda: "2030-01-01T00:00:00+00:00")
    first = made(service, query)
    assert made(service, query) == first
    monkeypatch.setattr(report, "today", lambda: "2031-12-31T23:59:59+00:00")
    later = made(service, query)
    assert len(later) == len(first) and later != first
    dated = ("report.json", "report.html")
    assert {k: v for k, v in opened(later).items() if k not in dated} == {
        k: v for k, v in opened(first).items() if k not in dated
    }
    page = opened(first)["report.html"]
    assert opened(later)["report.html"] == page.replace(b"2030-01-01 00:00", b"2031-12-31 23:59")
    a, b = (json.loads(opened(x)["report.json"]) for x in (first, later))
    assert a["files"].pop("report.html") != b["files"].pop("report.html")
    assert {**a, "date": ""} == {**b, "date": ""}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", " ="])
def test_spreadsheets_run_no_cell(service, query, start):
    evil = f"{start}HYPERLINK(1,2)"
    groups = dict(service.group_set.groups)
    groups["twemoji"] = replace(groups["twemoji"], name=evil)
    service.group_set = replace(service.group_set, groups=groups)
    service.change_models(unavailable={MISSING: evil})
    rows = list(csv.DictReader(io.StringIO(opened(made(service, query))["scores.csv"].decode(), newline="")))
    assert {r["name"] for r in rows if r["group"] == "twemoji"} == {f"'{evil}"}
    assert {r["reason"] for r in rows if r["group"] == MISSING and r["method"] == "guda"} == {f"'{evil}"}
    numbers = [r["score"] for r in rows if r["score"].startswith("-")]
    assert numbers and all(float(n) < 0 for n in numbers)  # numbers stay numbers


def test_quotes_commas_and_odd_bytes_survive_in_cells():
    odd = os.fsdecode(b'\xff, "x".png')
    text = bundle.csv_text(("a",), [{"a": odd}, {"a": -0.1}, {"a": None}, {"a": 3}])
    assert [r[0] if r else "" for r in csv.reader(io.StringIO(text))] == ["a", '\\udcff, "x".png', "-0.1", "", "3"]


def test_no_page_says_that_all_values_are_in_a_report(service, query):
    with np.load(io.BytesIO(opened(made(service, query))["values.npz"])) as z:
        assert {name.partition("/")[0] for name in z} == {"guda"}  # none of CLIP's
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "guda_core" / "ui").glob("*.py")]
    claims = re.compile(r"(all|every) values? behind")
    assert [p.name for p in pages if claims.search(p.read_text(encoding="utf-8"))] == []


def test_a_score_that_is_not_finite_gives_no_report(service, query):
    bad = Attribution("guda", "nats", {"twemoji": GroupScore(float("nan"), 0.0, 0.0)})
    about = {"provenance": service.provenance(), "settings": SETTINGS}
    with pytest.raises(ReportError, match="not finite"):
        bundle.make(query, [bad], service.group_set, **about)


@pytest.mark.parametrize("name", ["日本", "$x$ é, a very long name that goes on and on and on", "Łódź"])
def test_bars_are_drawn_for_every_kind_of_group(service, query, name):
    groups = dict(service.group_set.groups)
    groups["twemoji"] = replace(groups["twemoji"], name=name)
    gs = replace(service.group_set, groups=groups)
    none = Attribution("logo", "nats", {g: GroupScore(None, None, None, "no_score", "x") for g in gs.groups})
    data = figures.bars_png([*answers(service, query), none], gs)
    assert data == figures.bars_png([*answers(service, query), none], gs)
    with Image.open(io.BytesIO(data)) as im:
        pixels = np.asarray(im.convert("RGB"))
    assert (pixels[0, 0] == 255).all() and (pixels != 255).any(axis=2).mean() > 0.01
    with Image.open(io.BytesIO(figures.bars_png([], gs))) as im:
        assert im.width == pixels.shape[1]


def test_figures_of_other_models_and_damaged_ones_are_said(tmp_path):
    (tmp_path / "a.json").write_text('{"base_sha256": "x", "top1": NaN}')
    (tmp_path / "b.json").write_text('{"base_sha256": "other"}')
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_text('{"base_sha256": "x", "x": "' + "y" * stored_figures.MAX_FIGURES + '"}')
    (tmp_path / "e.json").write_text("")
    (tmp_path / "g.json").write_text('{"seconds": 1}')  # of no model
    (tmp_path / "queries.json").write_text('{"base_sha256": "x"}')
    rows = [{"method": "guda", "query_set": "s", "top1": {"value": 0.5}, "rbo": 1}]
    table = {"base_sha256": "x", "rows_report": rows, "rows": ["y" * stored_figures.MAX_FIGURES], "date": "today"}
    (tmp_path / "h.json").write_text(json.dumps(table))
    (tmp_path / "fresh").mkdir()
    fresh = {"base_sha256": "x", "rows": [{**rows[0], "variation": 1}], "differences": ["y"], "where_missed": ["y"]}
    (tmp_path / stored_figures.FRESH).write_text(json.dumps(fresh))
    found = stored_figures.read_validation(tmp_path, base_sha256="x")
    told = found.pop(stored_figures.FRESH)
    del told["sha256"]
    assert told == {"base_sha256": "x", "rows": [{"variation": 1, **{k: v for k, v in rows[0].items() if k != "rbo"}}]}
    assert set(found) == {f"{n}.json" for n in "abcdeh"}
    sha256 = hashlib.sha256((tmp_path / "h.json").read_bytes()).hexdigest()
    digest = [{k: v for k, v in rows[0].items() if k != "rbo"}]
    assert found["h.json"] == {"base_sha256": "x", "date": "today", "rows_report": digest, "sha256": sha256}
    assert found["a.json"]["top1"] is None
    assert found["a.json"]["sha256"] == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    assert "another base model" in found["b.json"] and "damaged" in found["c.json"] and "too large" in found["d.json"]
    assert "no e.json" in found["e.json"] and "no f.json" in stored_figures.read_figures(tmp_path / "f.json")
    found["a.json"]["top1"] = "changed by whoever got it"
    (tmp_path / "c.json").write_text('{"base_sha256": "x", "seconds": 2}')  # measured anew, while the app runs
    (tmp_path / "b.json").unlink()
    again = stored_figures.read_validation(tmp_path, base_sha256="x")
    assert again["c.json"]["seconds"] == 2 and "b.json" not in again and again["a.json"]["top1"] is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "r.zip"
    bundle.write(path, b"old")

    def full(*a: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ReportError, match="No space left on device"):
        bundle.write(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    with pytest.raises(ReportError, match="cannot be written"):
        bundle.write(path / "below", b"")


def test_kl_values_keep_their_names_on_disk_and_come_back_whole():
    rng = np.random.default_rng(0)
    t, edges = np.array([[1, 2], [5, 9]]), np.array([1, 4, 10])
    kl = KLValues(t, edges, rng.normal(size=(2, 2)), {"a": rng.normal(size=(2, 2)), "b": rng.normal(size=(2, 2))})
    arrays = kl.to_arrays()
    assert list(arrays) == ["t", "edges", "kl_full", "kl_without/a", "kl_without/b"]
    again = KLValues.from_arrays({**arrays, "pictures": np.zeros(3)})
    assert list(again.without) == ["a", "b"] and again.full is kl.full and again.without["b"] is kl.without["b"]
    for broken in (
        {k: v for k, v in arrays.items() if k != "edges"},
        {**arrays, "edges": edges[:2]},
        {**arrays, "kl_without/b": t[:1]},
    ):
        with pytest.raises(ReportError):
            KLValues.from_arrays(broken)
