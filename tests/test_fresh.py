"""The fresh queries: nothing of the first draw or of the offset is in them, and nothing is fitted to them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.benchmark import fair, fresh, models, rows, styles_run
from experiments.benchmark import queries as q
from experiments.benchmark import result_tables as tables
from guda_core.attribution.guda import Guda
from guda_core.data.groups import load_group_set
from guda_core.errors import DataError
from guda_core.paths import BENCHMARKS
from guda_core.unlearning.health import HealthConfig, held_out_of_all
from tests.test_styles_run import GROUPS, SCORES, SMALL, begun, full, pictures, service  # noqa: F401  (fixtures)

EMOJI = load_group_set("emoji")
SETS = ("generated", "generated-blend", "real")


def test_a_real_picture_that_was_looked_at_is_never_asked_about_again():
    config = dataclasses.replace(q.FRESH, real=5)
    used = {(g, o) for g in EMOJI.groups for o in EMOJI.held_out_objects[:100]}
    real = [(i.groups[0], i.object) for i in q.plan(EMOJI, config, used) if i.set == "real"]
    assert len(real) == 5 * len(EMOJI.groups) and not set(real) & used
    with pytest.raises(DataError, match="has 11 held-out pictures left, and 12 are asked for"):
        q.plan(EMOJI, dataclasses.replace(config, real=12), used)


def test_what_the_offset_is_made_of_counts_as_looked_at(pictures, tmp_path):  # noqa: F811
    from guda_core.data.sources.source import load_pictures

    asked = {("twemoji", GROUPS.held_out_objects[0])}
    note = {"group_set": GROUPS.id, "items": [{"set": "real", "groups": ["twemoji"], "object": o} for _, o in asked]}
    (tmp_path / "queries.json").write_text(json.dumps(note))
    found, held = fresh.looked_at(GROUPS, tmp_path / "queries.json"), load_pictures(GROUPS, "held_out")
    places = held_out_of_all(held, list(GROUPS.groups), HealthConfig(), asked)
    assert len(places) == len(set(places)) > 0
    assert found == asked | {(held.groups[i], held.names[i]) for i in places}
    assert not asked & {(held.groups[i], held.names[i]) for i in places}


def test_given_weights_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    truth, offset = rng.normal(size=(9, 2)), np.array([3.0, -1.0])
    scores = {"logo": truth, "guda/drop": truth, "guda": truth + offset, "das": -truth}
    items = [{"set": "real", "groups": ["ab"[i % 2]], "prompt": ""} for i in range(9)]
    found = fair.with_fair_rows(scores, items, {"a": (), "b": ()}, {"das": 2.5})
    np.testing.assert_allclose(found["das + offset"], -truth + 2.5 * offset, rtol=1e-5)


def test_the_fresh_run_scores_methods_against_the_live_oracle_alone(full, tmp_path, monkeypatch):  # noqa: F811
    for g in GROUPS.groups:
        source = full.method(Guda).folder / "twemoji"
        for where in ("live", "adapters"):
            shutil.copytree(source, tmp_path / where / g, dirs_exist_ok=True)
            meta = json.loads((source / "guda.json").read_text())
            (tmp_path / where / g / "guda.json").write_text(json.dumps({**meta, "group": g}))
    monkeypatch.setitem(full.offered, "logo", SimpleNamespace(folder=tmp_path / "live"))
    monkeypatch.setattr(full.method(Guda), "folder", tmp_path / "adapters")
    monkeypatch.setattr(fresh, "looked_at", lambda group_set: {("noto", o) for o in GROUPS.held_out_objects[1:]})
    monkeypatch.setattr(fresh, "weights", lambda: {"das": 1.0, "dtrak": 1.0, "clip-mean": 1.0})
    folder = tmp_path / "fresh"
    names = [what for what, _ in styles_run.run(full, folder, queries=SMALL, config=SCORES, draw="fresh")]
    assert not any(n.startswith(("unet", "full", "keep")) for n in names) and "trak" in names
    record = json.loads((folder / "queries.json").read_text())
    assert record["name"] == "fresh" and [i["object"] for i in record["items"] if i["groups"] == ["noto"]][-1:] == [
        GROUPS.held_out_objects[0]
    ]
    table = json.loads((folder / styles_run.TABLE).read_text())
    assert {"guda", "label", "trak", "clip-mean"} <= {r["method"] for r in table["rows"]}
    assert "rows_report" not in table and table["command"] == fresh.COMMAND
    assert table["dtypes"] == {"base": ["float32"], "guda": ["float32"], "logo-live": ["float32"]}
    assert models.cache(full, "fresh").is_dir() and not models.cache(full).exists()
    shutil.rmtree(models.cache(full, "fresh"))
    again = json.loads(styles_run.write_table(folder).read_text())  # from the committed files alone
    assert {**again, "date": ""} == {**table, "date": ""}

    note = rows.note(folder / styles_run.ARRAYS)  # rows that were scored in another type stand, and are named so
    made = json.loads(note.read_text())
    made["dtypes"] = {role: ["bfloat16"] for role in ("base", "guda", "logo-live")}
    made["made"]["trak"]["from"] = "of other settings"
    note.write_text(json.dumps(made))
    run = styles_run.run(full, folder, queries=SMALL, config=SCORES, draw="fresh")
    assert {what for what, _ in run} == {"trak"}
    assert json.loads(note.read_text())["made"]["trak"]["from"] != "of other settings"
    assert json.loads((folder / styles_run.TABLE).read_text())["dtypes"] == made["dtypes"]
    made["made"]["guda"]["from"]["weights_sha256"]["noto"] = "other"
    note.write_text(json.dumps(made))
    list(styles_run.run(full, folder, queries=SMALL, config=SCORES, draw="fresh"))
    found = json.loads((folder / styles_run.TABLE).read_text())["dtypes"]
    assert found == {"base": ["float32"], "guda": ["float32"], "logo-live": ["bfloat16"]}


@pytest.fixture(scope="module")
def committed():
    path = BENCHMARKS / "fresh" / "styles.json"
    if not path.is_file():
        pytest.skip("the fresh queries are not scored yet")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_committed_fresh_queries_share_no_picture_with_the_first(committed):
    first, second = (
        json.loads((BENCHMARKS / p / "queries.json").read_text(encoding="utf-8"))["items"] for p in ("", "fresh")
    )
    assert not {i["pixels_sha256"] for i in first} & {i["pixels_sha256"] for i in second}
    counts = {s: sum(i["set"] == s for i in second) for s in SETS}
    assert counts == {"generated": 240, "generated-blend": 280, "real": 200}
    assert (
        committed["base_sha256"] == json.loads((BENCHMARKS / "styles.json").read_text(encoding="utf-8"))["base_sha256"]
    )
    assert tables.GUDA in {r["method"] for r in committed["rows"]}


def test_health_is_never_measured_on_a_query_of_either_draw(committed):
    from guda_core.data.reserved import reserved
    from guda_core.unlearning.group_jobs import kept_apart

    later = reserved(BENCHMARKS / "fresh" / "queries.json", EMOJI)
    assert len(later) == 200 and later <= kept_apart(EMOJI, "emoji")
    assert not later & reserved(BENCHMARKS / "queries.json", EMOJI)
