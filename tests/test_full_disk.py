"""A disk that is full while features, rules and weights are written: a sentence, and what was there before stays."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guda_core import machine
from guda_core.attribution import calibration, introstyle, scope_fit
from guda_core.attribution.gradient import features as features_of
from guda_core.attribution.gradient import quantised
from guda_core.attribution.gradient.features import FeatureBank, FeatureConfig, Features
from guda_core.attribution.gradient.quantised import QuantisedBank
from guda_core.attribution.gradient.store import Store
from guda_core.data import dataset
from guda_core.errors import CacheError, DataError, ScoreError
from guda_core.paths import cache_dir
from guda_core.work_queue import claimed
from tests.linear import linear_world
from tests.test_unlearn_memory import small_disk


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def features(seed: int) -> Features:
    rng = np.random.default_rng(seed)
    return Features(rng.normal(size=(9, 4096)).astype(np.float32), np.ones(9, np.float32), {})


def write_features(folder, seed, model):
    config = {**vars(FeatureConfig(timesteps=3, dim=4096)), "parts": []}
    quantised.write(folder / "trak", features(seed), ("a",) * 9, {"base_sha256": model.sha256, "config": config})


def write_rule(folder, seed, model):
    scope_fit.write(folder, {"numbers": list(range(9000 + seed))})


def write_weight(folder, seed, model):
    how = "h" * 20_000
    calibration.write_weight(folder / calibration.FILE, float(seed), base_sha256="a", group_set="s", fitted=how)


def write_styles(folder, seed, model):
    world = linear_world()
    list(introstyle.write(folder / introstyle.FILE, world.model, world.examples))


@pytest.mark.parametrize("write", [write_features, write_rule, write_weight, write_styles])
def test_what_was_there_before_outlives_a_full_disk(write, tmp_path, monkeypatch):
    model = linear_world().model
    monkeypatch.setattr(introstyle, "at_most", lambda batch, model: batch)  # this model has no size
    monkeypatch.setattr(introstyle, "styles", lambda m, z, c: torch.randn(len(z), 8192))
    write(tmp_path, 1, model)
    before = contents(tmp_path)
    assert before
    with small_disk(8192), pytest.raises(CacheError, match=r"cannot be written.*what was there before is still there"):
        write(tmp_path, 2, model)
    assert contents(tmp_path) == before
    write(tmp_path, 2, model)
    assert contents(tmp_path) != before and contents(tmp_path).keys() == before.keys()


def test_features_that_were_exchanged_since_they_were_opened_are_not_used(tmp_path):
    model = linear_world().model
    write_features(tmp_path, 1, model)
    bank = QuantisedBank(model, tmp_path / "trak")
    assert np.allclose(bank.load().phi, features(1).phi, atol=0.05)
    write_features(tmp_path, 2, model)
    with pytest.raises(CacheError, match="were changed since"):
        bank.load()
    assert np.allclose(QuantisedBank(model, tmp_path / "trak").load().phi, features(2).phi, atol=0.05)


def test_a_cache_that_is_full_is_told_before_anything_is_computed_and_nothing_is_left():
    """Without the room being reserved, the process would end at the first write into it."""
    store = Store("x", {"n": 1})
    with small_disk(2**16), pytest.raises(CacheError, match=r"0.01 GiB cannot be written to .*GUDA_CACHE"):
        store.create("phi", (2000, 2000))
    assert not list((cache_dir() / "features").iterdir())
    store.create("phi", (200, 200))[:] = 1
    place = store._aside / "phi.npy"
    assert place.stat().st_blocks * 512 >= 4 * 200 * 200
    store.finish()
    assert store.open()["phi"].sum() == 200 * 200
    assert [p.name for p in (cache_dir() / "features").iterdir()] == [store.folder.name]


def test_a_mac_is_asked_for_room_before_a_file_is_mapped(monkeypatch):
    """There a file so long takes no room yet, and a full disk would end the process later."""
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform="darwin"))
    for free, fits in ((100_000, False), (200_000, True)):  # 160,128 are needed
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda file, free=free: SimpleNamespace(free=free))
        with nullcontext() if fits else pytest.raises(CacheError, match=r"0.00 GiB cannot be written .*No space left"):
            Store("x", {"n": 1}).create("phi", (200, 200))
    monkeypatch.setattr(dataset, "LARGE", 0)
    assert dataset._room(2, 32).shape == (2, 32, 32, 3)
    with pytest.raises(DataError, match="No space left"):
        dataset._room(200, 32)


def test_a_computation_that_breaks_off_leaves_nothing(monkeypatch):
    world = linear_world()
    bank = FeatureBank(world.model, world.examples, FeatureConfig(timesteps=3, dim=0))
    real = bank._at

    def breaks(i):
        if i == 4:
            raise ScoreError("A gradient is not finite.")
        return real(i)

    monkeypatch.setattr(bank, "_at", breaks)
    with pytest.raises(ScoreError):
        list(bank.prepare())
    assert not list((cache_dir() / "features").iterdir())


@pytest.mark.parametrize("end", ["stopped", "an error", "killed", "killed before a row was made"])
def test_a_computation_that_was_stopped_goes_on_from_there(monkeypatch, end):
    world, made = linear_world(), []
    monkeypatch.setattr(features_of, "at_once", lambda size: 2)

    def begun():
        bank = FeatureBank(world.model, world.examples, FeatureConfig(timesteps=3, dim=16))
        real = bank._at
        monkeypatch.setattr(bank, "_at", lambda i: made.append(i) or real(i))
        return bank, bank.prepare()

    whole, steps = begun()
    list(steps)
    expected = {name: array.copy() for name, array in whole.store.open().items()}
    shutil.rmtree(whole.store.folder)
    first, steps = begun()
    first._scale = 4.0  # as where a gradient overflowed
    if end == "killed before a row was made":
        first.store.create("phi", (9, 16))[:] = 7
    else:
        assert [next(steps), next(steps)] == [2 / 9, 4 / 9]
        first.store._made["phi"][4:6] = 7  # half of what comes next
    if end == "stopped":
        steps.close()
    elif end == "an error":
        with pytest.raises(RuntimeError, match="CUDA error"):
            steps.throw(RuntimeError("CUDA error: unspecified launch failure"))
    else:
        first.store._claim.close()  # as the system does
    made.clear()
    second, again = begun()
    list(again)
    assert made == list(range(0 if end.endswith("made") else 4, 9))
    assert second._scale == (1.0 if end.endswith("made") else 4.0)
    for name, array in second.store.open().items():
        np.testing.assert_array_equal(array, expected[name])
    assert [p.name for p in second.store.folder.parent.iterdir()] == [second.store.folder.name]
    assert sorted(p.name for p in second.store.folder.iterdir()) == ["phi.npy", "residual.npy", "settings.json"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"torn" * 99)])
def test_what_a_stopped_run_left_damaged_is_removed(damage):
    first, second = (Store("x", {"n": 1}) for _ in "ab")
    first.create("phi", (2,))
    first.note(rows=1)
    first._claim.close()  # as the system does
    damage(first._aside / "phi.npy")
    with pytest.raises(CacheError, match=r"damaged \(phi.npy\), and are removed. Run the same"), second.making():
        second.create("phi", (2,))
    assert not list((cache_dir() / "features").iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_makes_is_not():
    dead, live, now, other = (Store("x", {"n": n}) for n in (1, 1, 1, 2))
    for store in (dead, other):
        store._aside.mkdir(parents=True)
        (store._aside / "phi.npy").write_bytes(b"half")
    live.create("phi", (2,))
    now.create("phi", (2,))[:] = [1, 2]
    assert [s._aside.is_dir() for s in (dead, live, now, other)] == [False, True, True, True]
    now.finish()
    live.discard()
    with claimed(other._aside) as free:
        assert free
    assert json.loads((now.folder / "settings.json").read_text())["settings"] == {"n": 1}
