"""The pages' tables and pictures of agreement, from planted scores."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.benchmark import result_tables
from guda_core.data.groups import load_group_set
from guda_core.reports import figures

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def page(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("agreement", ROOT / "experiments" / "tables" / "agreement.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    records = sys.modules["experiments.tables.committed"]
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    monkeypatch.setattr(records, "LIVE", tmp_path / "live")
    monkeypatch.setattr(records, "ADAPTERS", tmp_path / "adapters")
    return module


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 4))
    half = truth.copy()
    half[:, 3] = np.nan
    scores = {"logo": truth, "guda": truth + 0.1 * rng.normal(size=truth.shape), "logo-2": half, "random": -truth}
    made = result_tables.make(scores, ["a"] * 20 + ["b"] * 20, ("guda",))
    return {"command": "python -m x", "date": "2026-01-02T00:00:00", **json.loads(json.dumps(made))}


def test_what_is_not_measured_says_so(page):
    assert {render() for render in page.RENDER.values()} == {"Not measured yet."}


def test_tables_show_every_row_and_where_it_comes_from(page, record, tmp_path):
    (tmp_path / "styles.json").write_text(json.dumps(record))
    text = page.RENDER["styles"]()
    assert text.count("| guda |") == 2 and text.count("| ceiling (3 groups) |") == 2
    assert text.index("| ceiling") < text.index("| guda |") < text.index("| random |")
    top1 = next(r for r in record["rows"] if r["method"] == "guda")["top1"]["value"]
    assert f"| guda | {top1:.2f} (" in text and "`python -m x`, 2026-01-02" in text
    assert "20 queries" in text and "10 queries" in page.RENDER["styles_report"]()
    assert "| Top-1 of guda minus that of | a | b |" in page.RENDER["styles_differences"]()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.04, -0.003, "-0.04 to -0.003"), (0.0021, 0.1, "0.002 to 0.10"), (-1e-17, 0.0, "0.00 to 0.00")],
)
def test_an_interval_that_leaves_zero_out_does_not_read_as_if_it_touched_it(page, low, high, said):
    assert page.value({"value": 0.02, "low": low, "high": high}) == f"0.02 ({said})"
    assert page._close({"value": 0.02, "low": low, "high": high}) == f".02 ({said})".replace("0.", ".")


def test_costs_and_intervals(page, tmp_path):
    rows = [
        {"method": "logo", "precompute_s": 800.0, "query_s": 2.0, "stored_bytes": 4e6, "times_cheaper": 1.0},
        {"method": "clip", "precompute_s": 8.0, "query_s": 0.01, "times_cheaper": 100.0},
        {"method": "instance", "query_s": 1.0},
    ]
    head = {"command": "c", "date": "2026-01-02"}
    (tmp_path / "costs.json").write_text(json.dumps({**head, "costs": rows}))
    text = page.RENDER["costs"]()
    assert "| clip | 8 | 100 | 0.01 |  |" in text and "| instance |  |  | 1.00 |  |" in text and "4.0 MB" in text
    share = {"value": 0.95, "low": 0.93, "high": 0.97, "n": 100}
    row = {"effort": "quick", "query_set": "all", "queries": 24, "held": share, "told_apart": share}
    row["told_apart_wrongly"] = None
    (tmp_path / "intervals.json").write_text(json.dumps({**head, "config": {"draws": 24}, "rows": [row]}))
    said = page.RENDER["intervals_said"]()
    assert "Effort quick: a 95% interval covers the value of 24 draws a stratum in 95% (93 to 97) of cases." in said
    assert "| quick | all | 0.95 (0.93 to 0.97) | 0.95 (0.93 to 0.97) | - |" in page.RENDER["intervals"]()
    row["told_apart_wrongly"] = {"value": 0.0, "low": 0.0, "high": 0.018, "n": 212}
    (tmp_path / "intervals.json").write_text(json.dumps({**head, "config": {"draws": 24}, "rows": [row]}))
    said = page.RENDER["intervals_said"]()  # 24 pictures, scored many times: Wilson's z^2 / (24 + z^2)
    assert "Of 212 pairs that were called separable, 0% (up to 14) were in the wrong order. They come from 24" in said
    assert "| 0.00 (0.00 to 0.14) |" in page.RENDER["intervals"]()
    row["told_apart_wrongly"] = {"value": 0.004, "low": 0.001, "high": 0.022, "n": 250}  # one of 250 is not none
    (tmp_path / "intervals.json").write_text(json.dumps({**head, "config": {"draws": 24}, "rows": [row]}))
    assert "0.4% (up to 2) were in the wrong order" in page.RENDER["intervals_said"]()
    assert "| 0.004 (0.001 to 0.022) |" in page.RENDER["intervals"]()


def test_the_picture_has_a_panel_a_set(record):
    png = figures.agreement_png(record["rows"], "top1", "Top-1", ours="guda")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG" and picture.width > 800 and len(picture.convert("L").getcolors() or []) > 20
    assert png == figures.agreement_png(record["rows"], "top1", "Top-1", ours="guda")


def test_the_summary_has_both_benches_side_by_side_and_says_what_is_missing(page, record, tmp_path):
    sets = {"a": "generated", "b": "held_out"}
    rows = [{**r, "query_set": sets[r["query_set"]]} for r in record["rows"]]
    costs = [{"method": "logo", "times_cheaper": 1.0}, {"method": "guda", "times_cheaper": 123.4}]
    others = [{**rows[0], "method": "guda/mse"}, {**rows[0], "method": "guda-retrack", "query_set": "other"}]
    (tmp_path / "digits.json").write_text(json.dumps({**record, "rows": rows + others, "costs": costs}))
    text = page.RENDER["agreement"]()
    assert "guda/mse" not in text and "| guda-retrack |" not in text
    lines = text.splitlines()
    assert "digits, generated | digits, held_out | precompute" in lines[0] and "styles, real" not in lines[0]
    row = next(line for line in lines if line.startswith("| guda |"))
    top1 = next(r for r in rows if r["method"] == "guda" and r["query_set"] == "generated")["top1"]
    assert row.split("|")[2].strip() == page.value(top1) and "123x" in row
    assert lines[2].startswith("| ceiling |") and "Not measured yet: styles" in text and ", 3 groups |" in lines[2]
    renamed = [{**r, "method": "guda-retrack"} for r in rows if r["method"] == "guda"]
    (tmp_path / "digits.json").write_text(json.dumps({**record, "rows": renamed, "costs": costs}))
    assert "| guda | " + page.value(top1) in page.RENDER["agreement"]()
    styles = [{**rows[0], "method": "guda + offset", "query_set": "generated"}]
    (tmp_path / "styles.json").write_text(json.dumps({**record, "rows": styles}))
    (tmp_path / "costs.json").write_text(json.dumps({"costs": [{"method": "guda", "times_cheaper": 26.0}]}))
    (row,) = [x for x in page.RENDER["agreement"]().splitlines() if x.startswith("| guda + offset |")]
    assert row.endswith("|  | 26x |")  # no row on the digits, so no cost there


def test_a_row_with_the_offset_also_costs_gudas_adapters(page, record, tmp_path):
    seconds = {"logo": 10_000, "guda": 400, "das": 1200, "clip": 1}
    costs = [{"method": m, "times_cheaper": seconds["logo"] / s} for m, s in seconds.items()]
    (tmp_path / "costs.json").write_text(json.dumps({"costs": costs}))
    expected = {"das": 8, "das + offset": 10_000 / 1600, "guda + offset": 25, "clip-max": 10_000}
    expected |= {"clip-mean + offset": 10_000 / 401, "offset alone": 25, "label": None, "trak + offset": None}
    rows = [{**record["rows"][0], "method": m, "query_set": "generated"} for m in expected]
    (tmp_path / "styles.json").write_text(json.dumps({**record, "rows": rows}))
    lines = [line.split(" | ") for line in page.RENDER["agreement"]().splitlines()]
    shown = {line[0].removeprefix("| "): line[-1].removesuffix(" |").strip() for line in lines if len(line) > 2}
    assert {m: shown[m] for m in expected} == {m: f"{v:.0f}x" if v else "" for m, v in expected.items()}


def test_who_leads_is_the_sign_of_the_interval_and_of_mcnemars_test(page, tmp_path):
    def row(second, low, high, first="guda", metric="top1"):
        return {"first": first, "second": second, "query_set": "a", "metric": metric, "low": low, "high": high}

    found = [
        row("x", 0.1, 0.2),
        row("y", 0.0, 0.2),
        row("z", -0.2, -0.1),
        row("x", -1, -0.5, "both"),
        row("x/mse", 1, 2),
    ]
    found[0]["p"], found[2]["p"] = 0.01, 0.06
    found += [row("x", 0.1, 0.2, metric="variation"), row("x + offset", 0.1, 0.2, metric="variation")]
    found += [row("x + offset", 0.1, 0.2, metric="variation_standardised")]
    (tmp_path / "fresh").mkdir()
    made = {"differences": found, "command": "python -m x", "date": "2026-01-02T00:00:00"}
    (tmp_path / "fresh" / "styles.json").write_text(json.dumps(made))
    lines = page.RENDER["styles_fresh_leads"]().splitlines()
    assert [line for line in lines if line.startswith("| ")] == [
        "| Top-1, against | guda, a | both, a |", "| x | ahead | behind |", "| y | level |  |", "| z | level |  |",
        "| Variation, against | guda, a |", "| x | ahead |",
        "| Variation, standardised, against | guda, a |", "| x + offset | ahead |",
    ]  # fmt: skip


def test_where_methods_miss_is_shown_with_the_numbers_of_queries(page, record, tmp_path):
    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    row = {"method": "guda", "query_set": "a", "named": {"n": 3, "top1": share}, "other": {"n": 0, "top1": None}}
    (tmp_path / "styles.json").write_text(json.dumps({**record, "where_missed": [row]}))
    text = page.RENDER["styles_where_missed"]()
    assert "| a: the oracle names it (3) | a: another (0) |" in text and "| guda | 0.50 (0.25 to 0.75) | - |" in text


def test_what_was_tried_and_what_was_trained_is_listed(page, tmp_path):
    scores = {"n": 7, "top1": 0.5, "mrr": 0.625, "spearman": 0.25, "ndcg3_exponential": 0.5}
    tried = {"variant": "shift,steps=3", "times_cheaper": 99.6, "generated": scores}
    stamp = {"command": "python -m x", "date": "2026-01-02T00:00:00"}
    (tmp_path / "digits-tuning.json").write_text(json.dumps({**stamp, "rows": [tried]}))
    text = page.RENDER["digits_tuning"]()
    assert "| `shift,steps=3` | 100 | 0.500 | 0.625 | 0.250 |" in text and "7 generated" in text
    offset = {w: {"generated": {**scores, "top1": 0.8 + float(w) / 100}} for w in ("0.5", "1", "1.5", "2")}
    again = {**tried, "oracle": "live", "generated": {**scores, "top1": 0.75}, "with_offset": offset}
    (tmp_path / "styles-tuning.json").write_text(json.dumps({**stamp, "rows": [tried, again]}))
    live, before = page.RENDER["styles_tuning"]().split("| settings, against the earlier values |")
    assert "against the live oracle" in live and "| 0.750 |" in live and "| 0.500 |" in before
    assert "| and 1 x the offset |  | 0.810 | 0.625 | 0.250 |" in live and "offset" not in before
    targets = [
        {
            "group": g,
            "n": 4,
            "prompt": {"nothing": 700.0, "uniform": 400.0 + k},
            "way_prompt": {"uniform": 0.75 + k / 2},
            "empty": {"nothing": 500.0, "anchor: uniform": 300.0, "shift: uniform": 310.0, "between: uniform": 280.0},
        }
        for k, g in enumerate("ab")
    ]
    (tmp_path / "targets.json").write_text(json.dumps({**stamp, "rows": targets}))
    text = page.RENDER["styles_targets"]()
    assert "| none: as the full model | 700 |  | 500 |" in text and "means over 2 groups, 8 pictures" in text
    assert "| uniform | 400 | 1.00 | 300 | 310 | 280 |" in text
    (tmp_path / "oracle").mkdir()
    training = {"seconds": 12.3, "date": "2026-01-02T00:00:00"}
    kept = {"training": training, "weights_sha256": "abcdef0123456789"}
    (tmp_path / "oracle" / "unet-without-x-s3.json").write_text(json.dumps(kept))
    assert "| unet-without-x-s3 | 12 | 2026-01-02 | abcdef012345 |" in page.RENDER["styles_oracle"]()


def test_what_the_live_oracle_loses_is_shown_group_by_group(page, tmp_path):
    exact = {"noto": [3.0, 1.0, 5.0, 2.0], "twemoji": [2.0, 2.0, 1.0, 4.0]}
    coded = {"noto": [3.1, 1.0, 5.0, 2.0], "twemoji": [2.0, 0.5, 1.0, 4.0]}  # the second picture's order is another
    for g in exact:
        (tmp_path / "live" / g).mkdir(parents=True)
        (tmp_path / "live" / g / "adapter.safetensors").write_bytes(bytes(1_500_000))
        r = {"command": "python -m x", "date": "2026-01-02", "pictures": 4, "spearman": 0.98765, "bias": 0.5}
        own = {**r, "rms": 2.25, "sd": 100.0, "exact": exact[g], "live": coded[g]}
        (tmp_path / "live" / g / "health.json").write_text(json.dumps(own))
    ids = list(load_group_set("emoji").groups)
    before, second = np.zeros((10, len(ids))), np.full((10, len(ids)), np.nan)  # every third counts
    before[::3, ids.index("noto")], before[::3, ids.index("twemoji")] = [3, 1, 2, 5], [5, 5, 0, 9]
    second[::3, ids.index("noto")] = [-3, -1, -5, -2]
    errors = np.tile([[6.0], [0.0], [0.0]], (4, len(ids)))[:10]
    scores = {"logo": before, "logo-2": second}
    np.savez(tmp_path / "styles-scores.npz", **scores, **{"se/logo": errors})
    text = page.RENDER["styles_live"]()
    assert "| noto | 1.5 MB | 0.9877 | 0.5 | 2.2 | 100.0 | 0.200 | 2 | 6 | -1.000 | 3 |  |" in text
    assert "| twemoji | 1.5 MB | 0.9877 | 0.5 | 2.2 | 100.0 | 1.000 | 2 | 6 |  |  |  |" in text and "4 pictures" in text
    assert "the same first one on 0.750" in text and "Spearman of 0.500" in text and "`python -m x`" in text


def test_the_offset_part_stands_beside_what_the_oracle_says_of_others(page, tmp_path):
    ids = list(load_group_set("emoji").groups)
    items = [{"set": s, "groups": [g]} for s in ("generated", "real") for g in ids]
    (tmp_path / "queries.json").write_text(json.dumps({"items": items}))
    drop, oracle = np.full((16, 8), 900.0), np.full((16, 8), 900.0)  # of generated queries and of the groups' own
    for q in range(8):
        for k in range(8):
            if q != k:
                drop[8 + q, k], oracle[8 + q, k] = k + (q % 2), 10 * k
    np.savez(tmp_path / "styles-scores.npz", **{"guda/drop": drop, "logo-live": oracle})
    assert page.RENDER["styles_offset"]() == page.UNKNOWN
    for k, g in enumerate(ids):
        (tmp_path / "adapters" / g).mkdir(parents=True)
        health = {"held_out_others_empty": {"mean": 2.0 * k, "se": 0.5, "n": 320}}
        (tmp_path / "adapters" / g / "health.json").write_text(json.dumps(health))
    text = page.RENDER["styles_offset"]()
    assert f"| {ids[2]} | 4.0 ± 1.0 | 320 | 3 | 20 |" in text and "a Spearman of 1.00" in text
