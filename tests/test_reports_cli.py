"""Reports of a tiny real model, from the command line: written, replayed, altered; a folder as a batch."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zipfile

import pytest
from jsonschema import Draft202012Validator

from guda_core import local
from guda_core.diffusion import likelihood
from guda_core.reports import bundle
from guda_core.reports.findings import Verdict
from guda_core.reports.read import SCHEMA, read_report
from guda_core.reports.replay import replay
from tests.light import draw, in_order
from tests.test_cli import run  # noqa: F401  (a fixture)
from tests.test_pipeline import MISSING, service  # noqa: F401  (a fixture)

PROMPT = "cat, flat colours"


@pytest.fixture
def path(run, tmp_path):  # noqa: F811
    """A report made by the command line."""
    draw(tmp_path / "p.png", side=32)
    done = run("attribute", tmp_path / "p.png", "--prompt", PROMPT, "--effort", "quick", "--report", tmp_path / "r.zip")
    assert done.exit_code == 0, done.output
    return tmp_path / "r.zip"


def test_a_report_of_a_real_model_replays_equal_and_its_change_is_found(run, path, service):  # noqa: F811
    report = read_report(path)
    record = json.loads(json.dumps(report.record))
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(record)
    guda, strata = record["methods"]["guda"], likelihood.Strata(tuple(record["methods"]["guda"]["sampling"]["edges"]))
    assert guda["groups"][MISSING]["status"] == "unavailable" and f"health/{MISSING}" in record["absent"]
    for g, s in guda["groups"].items():
        if g != MISSING:  # the values in the zip give the score in the record
            without = report.values[f"guda/kl_without/{g}"]
            e = likelihood.elbo_drop(full=report.values["guda/kl_full"], without=without, strata=strata)
            assert (e.value, e.low, e.high) == (s["score"], s["low"], s["high"])
    *_, verdict = replay(report, service)
    assert isinstance(verdict, Verdict) and verdict.outcome == "equal" and not verdict.environment

    done = run("replay", path, "--model", "tiny")
    assert done.exit_code == 0 and "Equal: every score" in done.output
    first = next(g for g in guda["groups"] if g != MISSING)
    record["methods"]["guda"]["groups"][first]["score"] += 5
    in_order(record["methods"]["guda"])
    record["adapters"][first] = "0" * 64
    with zipfile.ZipFile(path) as z:
        files = {n: z.read(n) for n in z.namelist()}
    files["scores.csv"] = bundle.csv_text(bundle.COLUMNS, bundle.score_rows(record)).encode()
    record["files"]["scores.csv"] = hashlib.sha256(files["scores.csv"]).hexdigest()
    path.write_bytes(bundle.zipped({**files, "report.json": json.dumps(record).encode()}))
    done = run("replay", path, "--model", "tiny")
    assert done.exit_code == 1 and "Different." in done.output
    assert f"guda/{first}/score" in done.output and f"adapters/{first}: 000000000000 in the report" in done.output
    path.write_bytes(path.read_bytes()[:-100])
    done = run("replay", path, "--model", "tiny")
    assert done.exit_code == 2 and "damaged or cut off" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("device", "dtype", "taken"),
    [("cpu", "bfloat16", "bfloat16"), ("cuda:0", "bfloat16", "float16"), ("cpu", "fastest", "float16"),
     ("cpu", "a\x1b[31m", "float16")],
)  # fmt: skip
def test_a_reports_own_type_is_taken_where_it_is_one(run, path, monkeypatch, device, dtype, taken):  # noqa: F811
    monkeypatch.setenv("GUDA_DTYPE", "float16")  # the user's own
    seen, load = [], local.load_service
    monkeypatch.setattr(local, "load_service", lambda *a, **k: seen.append(os.environ["GUDA_DTYPE"]) or load())
    with zipfile.ZipFile(path) as z:
        files = {n: z.read(n) for n in z.namelist()}
    record = json.loads(files["report.json"])
    record["model"]["dtype"], record["hardware"]["device"] = dtype, device
    path.write_bytes(bundle.zipped({**files, "report.json": json.dumps(record).encode()}))
    done = run("replay", path, "--model", "tiny")
    assert seen == [taken] and "model/dtype" in done.output and "\x1b" not in done.output


def test_a_folder_is_a_batch(run, tmp_path):  # noqa: F811
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(2):
        draw(folder / f"{i}.png", seed=i)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(f'file,prompt\n0.png,"{PROMPT}"\n')
    options = ("--out", out, "--prompts", prompts, "--effort", "quick")
    done = run("attribute", folder, *options)
    assert done.exit_code == 0, done.output
    with (out / "scores.csv").open(encoding="utf-8", newline="") as f:
        assert {r["file"] for r in csv.DictReader(f)} == {"0.png", "1.png"}
    (folder / "bad.png").write_bytes(b"bad")
    done = run("attribute", folder, *options)
    assert done.exit_code == 1 and "2 of them cached" in done.output and "bad.png: Only PNG" in done.output
    assert [r["file"] for r in json.loads((out / "batch.json").read_text())["refused"]] == ["bad.png"]
    done = run("attribute", tmp_path / "none", "--out", out)
    assert done.exit_code == 2 and "There is no file" in done.output
