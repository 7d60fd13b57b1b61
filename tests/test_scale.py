"""The measurement of scale, in small: every key is there, and its figures are those of what it ran."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from experiments.scale import __main__ as scale
from experiments.scale import chaos, hourly, large_tables
from experiments.tables import committed, gpu_table, scale_table
from guda_core.scoring.asking import Results
from guda_core.scoring.table_run import Options
from tests.light import LightService
from tests.table_works import QUICK, Made


class Slow(LightService):
    """Takes its time, so that the table's own share is small."""

    def scope(self, query):
        time.sleep(0.05)
        return super().scope(query)


def test_the_overhead_is_what_a_table_takes_longer(tmp_path):
    found = scale.measured_overhead(Slow, Options("quick", ("guda", "clip")), 8, tmp_path, ray=False)  # one block
    assert found["pictures"] == 8 and len(found["plain_s"]) == len(found["table_s"]) == len(found["resident_mb"]) == 1
    assert found["table"] == pytest.approx(sum(found["table_s"]) / sum(found["plain_s"]) - 1, abs=1e-2)
    assert sum(found["plain_s"]) > 8 * 0.05


def test_the_pace_leaves_the_start_out(tmp_path):
    moments = [(30.0, 0), (31.0, 1), (32.0, 3), (36.0, 6), (42.0, 8)]
    found = hourly.pace(moments, 2)
    assert found == {"pictures": 8, "start_s": 32.0, "seconds": 10.0, "pictures_per_hour": 3600 * 5 / 10}
    folder = scale.draw(tmp_path / "in", 8)
    found = hourly.measure(folder, tmp_path, Made(tmp_path, slow=0.1), QUICK, 2)
    assert found["pictures"] == 8 and found["start_s"] > 0 and found["pictures_per_hour"] > 100


def test_lost_and_double_rows_are_counted():
    a, b = ({"picture": p, "method": "guda", "group_id": "noto", "score": 1.0} for p in "ab")
    assert chaos.compare([a, b], [a, b]) == {"lost": 0, "twice": 0, "equal_to_single": True}
    assert chaos.compare([a, b], [a, a]) == {"lost": 1, "twice": 1, "equal_to_single": False}
    assert chaos.compare([a], [{**a, "score": 1.0 + 1e-15}])["equal_to_single"] is False


def test_a_made_up_table_says_so_and_is_measured(tmp_path):
    found = large_tables.measure(tmp_path, 10_000)
    assert found["rows"] >= 10_000 and found["summary_s"] > 0 and found["bytes_per_row"] > 0
    results = Results(str(tmp_path / "made-up"))
    assert "made up" in results.made_from()["model"]["name"] and results.summary().pictures == found["pictures"]
    assert large_tables.listing(tmp_path, 1000) > 0


def test_the_command_keeps_what_is_done(tmp_path, monkeypatch):
    out, asked = tmp_path / "scale.json", []
    monkeypatch.setattr(scale, "Named", lambda *a: LightService)
    for name in ("measured_overhead", "measured_pace", "measured_chaos"):
        monkeypatch.setattr(scale, name, lambda *a, name=name: asked.append(name) or {"equal_to_single": True})
    scale.run(rows=1000, names=100, only="parts", out=out)
    assert asked == [] and json.loads(out.read_text())["measured"]["made_up"]["rows"] >= 1000
    scale.run(rows=1000, names=100, out=out)
    assert len(asked) == 3 and set(json.loads(out.read_text())) >= {"overhead_200", "pictures_per_hour", "measured"}
    scale.run(rows=1000, names=100, out=out)
    assert len(asked) == 3
    out.write_text(json.dumps({**json.loads(out.read_text()), "cpus": 999}))  # of another machine
    scale.run(rows=1000, names=100, only="parts", out=out)
    found = json.loads(out.read_text())
    assert found["cpus"] == os.cpu_count() and "measured" in found and "overhead_200" not in found


MEASURED = {
    "command": "python -m experiments.scale", "date": "2030-01-01T00:00:00+00:00", "cpus": 2, "threads": 1,
    "overhead_200": {
        "pictures": 200, "plain_s": [100.0, 100.0], "table_s": [102.0, 102.0], "table": 0.02, "ray": 0.05,
        "ray_s": 210.0, "resident_mb": [900.0, 901.0],
    },
    "pictures_per_hour": {
        str(w): {"pictures": 60, "start_s": 5.0, "seconds": 100.0 / w, "pictures_per_hour": 1e3 * w} for w in (1, 2)
    },
    "lost": 0, "twice": 0, "equal_to_single": True,
    "chaos": {"pictures": 24, "node_killed_at": 6, "driver_killed_at": 12},
    "measured": {"model_load_s": 5.0, "names": 10**6, "listing_s": 2.0, "made_up": {
        "rows": 10**6, "pictures": 56000, "summary_s": 0.5, "search_s": 0.1, "one_picture_s": 0.05,
        "bytes_per_row": 30.0, "page_bytes": 9000}},
}  # fmt: skip


def test_the_page_copes_with_no_figures_and_plans_from_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    assert {render() for render in scale_table.RENDER.values()} == {committed.UNKNOWN}
    some = {k: v for k, v in MEASURED.items() if k != "overhead_200"}
    Path(tmp_path / "scale.json").write_text(json.dumps(some))
    assert scale_table.scale() == committed.UNKNOWN != scale_table.on_paper()
    Path(tmp_path / "scale.json").write_text(json.dumps(MEASURED))
    said = {name: render() for name, render in scale_table.RENDER.items()}
    assert "2.0%" in said["scale"] and "5.0%" in said["scale"] and "bit by bit" in said["scale"]
    by_gpus = scale_table.plan(MEASURED)
    assert [row["gpus"] for row in by_gpus] == [1, 8, 64]
    assert by_gpus[0]["score_h"] == pytest.approx(8 * by_gpus[1]["score_h"], rel=0.05)
    assert by_gpus[2]["score_h"] > by_gpus[0]["score_h"] / 64  # what does not shrink


def test_a_measured_card_takes_the_place_of_what_was_assumed(tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    assert gpu_table.gpu() == committed.UNKNOWN and gpu_table.pass_seconds() is None
    (tmp_path / "scale.json").write_text(json.dumps(MEASURED))
    assumed = scale_table.plan(MEASURED)[0]["score_h"]
    assert "**assumed**" in scale_table.on_paper()
    rates = {d: {"8": {"passes_s": 100.0}, "64": {"passes_s": 250.0}} for d in ("float16", "bfloat16")}
    scored = {"seconds": 4.0, "passes_s": 200.0, "share_of_bare": 0.6, "peak_gib": 20.0}
    step = {"step_s": 0.5, "peak_gib": 4.0}
    parts = {
        "bare": {**rates, "part_s": 1.0}, "sdxl_bare": {**rates, "part_s": 1.0},
        "scoring": {"groups": 16, "switch_ms": 3.0, "quick": scored, "full": scored},
        "types": {d: {"largest_off_in_se": 1.5} for d in ("float16", "bfloat16")},
        "embedded": {"same_ranks": True, "largest_difference_nats": 0.06},
        "unlearning": {
            "float16, checkpointing": step, "float16, no checkpointing": step,
            "plain LoRA step, checkpointing": {"step_s": 0.3, "ratio": 1.5},
            "float16 beside float32": {"largest_b_off": 0.01, "loss_off": 0.002},
        },
    }  # fmt: skip
    record = {"command": "c", "date": "2026-01-02", "device": "a card", "parts": parts}
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    assert gpu_table.pass_seconds() == 1 / 200  # of a whole attribution, not of the bare network
    assert scale_table.plan(MEASURED)[0]["score_h"] == pytest.approx(0.5 * assumed, rel=0.01)
    paper = scale_table.on_paper()
    assert "takes 5.0 ms in a whole attribution" in paper
    assert "| 1 | 60 | 1.7 |" in paper and "| 8 | 8 | 0.22 |" in paper  # 200 steps of half a second a group
    said = gpu_table.gpu()
    assert "on a card" in said and "| the UNet" not in said and "250 passes a second" in said
    assert "the same ranks, at most 0.06 nats off" in said and "1.0%, 0.2% off" in said
