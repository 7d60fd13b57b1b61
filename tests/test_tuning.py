"""Settings that are tried: what their names mean, and what is compared."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from experiments.ablations import tuning, tuning_styles
from experiments.benchmark.result_tables import tuning_half
from guda_core.errors import OptionError
from guda_core.paths import ROOT
from guda_core.unlearning.config import NOT_ADOPTED, UnlearnConfig


def test_a_variants_name_is_its_operator_and_the_changes():
    default = UnlearnConfig(selection="weighted")
    assert tuning_styles.parsed("guda_c") == default
    tried = tuning_styles.parsed("guda_c,steps=160,lr=5e-4,batch=8,rank=12,selection=uniform,empty_share=0.25")
    loop = dataclasses.replace(default.loop, steps=160, lr=5e-4, batch=8)
    assert tried.loop == loop and (tried.selection, tried.empty_share) == ("uniform", 0.25)
    assert tried.lora is not None and (tried.lora.rank, tried.lora.alpha) == (12, 12)
    assert tuning_styles.parsed("esd,whole").lora is None and tuning_styles.parsed("esd").operator == "esd"
    with pytest.raises(OptionError, match="no setting stepz"):
        tuning_styles.parsed("guda_c,stepz=3")
    for parse in (tuning_styles.parsed, tuning.parsed):
        with pytest.raises(OptionError, match="VARIANT names nothing"):
            parse(" ,")


@pytest.mark.parametrize(
    ("file", "parse"), [("styles", tuning_styles.parsed), ("digits", lambda t: tuning.parsed(t)[1])]
)
def test_every_published_variant_is_still_known_and_means_what_it_meant(file, parse):
    """But for the id of its forget loss."""
    for row in json.loads((ROOT / "assets" / "benchmarks" / f"{file}-tuning.json").read_text())["rows"]:
        now, then = dataclasses.asdict(parse(row["variant"])), row["config"]
        gone = {k: v for k, v in then.items() if k not in now}
        assert all(NOT_ADOPTED[k] == v for k, v in gone.items()), row["variant"]
        for k in set(then) - set(gone) - {"operator", "loop", "lora"}:
            assert now[k] == then[k], (row["variant"], k)
        for part in ("loop", "lora"):
            a, b = (json.loads(json.dumps(c[part])) for c in (now, then))
            assert {**(a or {}), "checkpoint_s": 0} == {**(b or {}), "checkpoint_s": 0}, row["variant"]


def test_scores_are_compared_by_query_and_by_group():
    rng = np.random.default_rng(0)
    truth = rng.normal(100.0, 30.0, (40, 8))
    sets = ["generated"] * 24 + ["real"] * 16
    offset = 50.0 * np.arange(8)  # changes the ranks within a query, not those over queries
    out = tuning_styles.compared(0.25 * truth + offset, truth, sets)
    assert {k: v["n"] for k, v in out.items()} == {"generated": 24, "real": 16}
    assert np.allclose([v["slope"] for v in out.values()], 0.25)
    assert np.allclose([v["spearman_over_queries"] for v in out.values()], 1.0)
    assert out["real"]["top1"] < 0.5
    assert tuning_styles.compared(0.25 * truth, truth, sets)["real"]["top1"] == 1.0


def test_only_the_tuning_half_is_looked_at():
    sets = ["generated"] * 9 + ["real"] * 6
    places = tuning_styles.some(sets, 4)
    assert [sets[i] for i in places] == ["generated"] * 4 + ["real"] * 3
    assert tuning_half(sets)[places].all()


def test_rows_of_other_variants_are_kept_and_of_the_same_replaced(tmp_path):
    path = tmp_path / "styles-tuning.json"
    for row in ({"variant": "a", "x": 1}, {"variant": "b", "x": 2}, {"variant": "a", "x": 3}):
        tuning_styles.written(path, row)
    record = json.loads(path.read_text())
    assert {r["variant"]: r["x"] for r in record["rows"]} == {"a": 3, "b": 2} and "tuning_styles" in record["command"]
    tuning_styles.written(path, {"variant": "a", "oracle": "live", "x": 4})  # another truth: no row of before goes
    assert [r["x"] for r in json.loads(path.read_text())["rows"]] == [2, 3, 4]


def test_the_offset_part_is_the_mean_over_other_groups_real_pictures_and_helps_where_it_is_missing():
    rng = np.random.default_rng(0)
    ids, sets = list("abc"), ["generated"] * 60 + ["real"] * 60
    groups = [ids[i % 3] for i in range(120)]
    base = np.array([90.0, 0.0, 30.0])
    truth = rng.normal(0, 5, (120, 3)) + base
    own = rng.normal(0, 1, (120, 3)) + base / 3
    for i, g in enumerate(groups):
        truth[i, ids.index(g)] += 70
        own[i, ids.index(g)] += 40
    offset = tuning_styles.offset_part(own, sets, groups, ids)
    assert offset == pytest.approx(base / 3, abs=1)
    found = tuning_styles.with_offset(own, truth, sets, offset)
    assert list(found) == ["0.5", "1", "1.5", "2", "3"] and set(found["1"]) == {"generated", "real"}
    plain = tuning_styles.compared(own, truth, sets)
    assert found["1"]["real"]["spearman"] > plain["real"]["spearman"] + 0.1
    assert found["1"]["generated"]["top1"] > plain["generated"]["top1"]
