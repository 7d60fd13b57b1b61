"""The strip's own measurement, in miniature: a tiny real model, and a planted answer."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import strip
from experiments.benchmark.queries import QueryConfig
from experiments.maps import measuring
from experiments.strip import Bench, first_of, run, summary
from experiments.tables import strip_table
from guda_core.attribution import maps
from guda_core.attribution.guda import Guda
from guda_core.data.dataset import Pictures
from guda_core.picture_records import Strip
from tests.tiny import tiny_service


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return tiny_service(tmp_path_factory.mktemp("strip"))


def test_a_call_that_was_stopped_goes_on_and_measures_each_picture_once(service, tmp_path, monkeypatch):
    bench = Bench(service, QueryConfig(steps=2), tmp_path / "kept")
    assert not run(bench, 3, until=time.monotonic() - 1) and not bench.folder.exists()
    bench.measured(1)
    kept = bench.path(1).read_text()
    assert run(bench, 3, until=float("inf")) and bench.path(1).read_text() == kept
    groups, each = list(service.group_set.groups), [bench.measured(n) for n in range(3)]
    assert [f["group"] for f in each] == groups[:3] and all(f["pictures"] == len(groups) for f in each)
    group, thing, query = bench.query(2)
    assert (group, thing, query.drawn.seed) == (each[2]["group"], each[2]["object"], each[2]["seed"])
    again = service.strip(query, "guda")
    assert again.distances == pytest.approx(each[2]["distances"], abs=1e-6)
    assert first_of(each[2]) == again.ranked()[0]
    monkeypatch.setattr(service, "strip", None)  # all is kept
    assert run(bench, 3, until=float("inf")) and len(summary(bench, 3)["each"]) == 3
    assert summary(bench, 3)["adapters"] == service.method(Guda).hashes


def test_what_was_measured_with_other_adapters_settings_or_groups_is_not_taken_up(service, monkeypatch):
    def folders():
        return Bench.load(service).folder, measuring.Bench.load(service).folder

    def changes():
        yield lambda p: p.setitem(service.method(Guda).adapters["twemoji"].meta, "sha256", "of another")
        yield lambda p: p.setattr(service, "group_set", replace(service.group_set, id="other"))
        yield lambda p: p.setattr(service, "group_set", replace(service.group_set, caption="{object}, {descriptors}"))
        yield lambda p: (p.setattr(strip, "SEED", 1), p.setattr(measuring, "SEEDS", (1, 2, 3)))
        yield lambda p: (p.setattr(torch, "get_num_threads", lambda: 99), p.setattr(maps, "STRATA", 2))
        yield lambda p: p.setattr(service.model, "dtype", torch.bfloat16)

    pictures = Pictures(np.zeros((1, 4, 4, 3), np.uint8), ("twemoji",), ("cat",))
    monkeypatch.setattr(measuring, "load_pictures", lambda *_: pictures)
    found = [folders(), folders()]
    assert found[0] == found[1]
    for change in changes():
        with monkeypatch.context() as patch:
            change(patch)
            found.append(folders())
    assert len({f[0] for f in found}) == len({f[1] for f in found}) == len(found) - 1


def test_the_share_and_the_seconds_are_those_of_the_planted_strips(service, tmp_path, monkeypatch):
    clock = iter(float(v) for v in (0, 2, 10, 17, 20, 24, 30, 31))  # begin and end: 2, 7, 4 and 1 seconds
    bench, asked = Bench(service, QueryConfig(steps=1), tmp_path / "kept"), []

    def planted(query, method):
        ids = list(service.group_set.groups)
        asked.append(query)
        far = ids[(len(asked) - 1) % len(ids)] if len(asked) < 4 else ids[0]  # right but for the last one
        return Strip(method, query.pixels, dict.fromkeys(ids, query.pixels), {g: float(g == far) for g in ids})

    monkeypatch.setattr(service, "strip", planted)
    monkeypatch.setattr("experiments.strip.perf_counter", lambda: next(clock))
    for n in range(4):
        bench.measured(n)
    monkeypatch.undo()
    found = {**summary(bench, 4), "date": "2026-01-01"}
    assert found["prompted_first"]["value"] == 0.75 and found["prompted_first"]["low"] < 0.75
    seconds = found["seconds"]
    assert (seconds["mean"]["value"], seconds["median"], seconds["most"]) == (3.5, 3.0, 7.0)
    assert seconds["within_limit"] == 0.75 and found["settings"]["base_sha256"] == service.model.sha256
    monkeypatch.setattr("experiments.tables.committed.FOLDER", tmp_path)
    assert strip_table.strip() == "Not measured yet."
    (tmp_path / "strip.json").write_text(json.dumps(found))
    said = strip_table.strip()
    assert "takes 3.0 s (median of 4; 7.0 s at most; 75% within 6 s)" in said and "0.75 (" in said
