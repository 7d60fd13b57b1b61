"""The scripts for a GPU and for memory, tried on a CPU with tiny models."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from experiments import gpu_check, layouts
from experiments.memory import fake_step as memory
from guda_core.errors import GudaError, OptionError


@pytest.fixture
def tried(tmp_path, capsys):
    """The figures of some parts, and what is said at the end."""

    def call(parts):
        gpu_check.gpu_check(out=tmp_path / "gpu.json", tiny=True, parts=parts, deadline=1e9)
        found = json.loads((tmp_path / "gpu.json").read_text())
        assert found["failed"] == {} and found["not_reached"] == [] and found["device"] == "cpu" and found["tiny"]
        assert list(found["parts"]) == parts.split(",")
        said = capsys.readouterr().out
        assert "tiny models" in said and "FAILED" not in said
        return found["parts"], said

    return call


def test_rates_and_attributions(tried):
    parts, said = tried("bare,scoring")
    assert all(parts["bare"][d][b]["passes_s"] > 0 for d in ("float16", "bfloat16") for b in ("1", "2"))
    scored = parts["scoring"]
    assert scored["full"]["share_of_bare"] > 0 and scored["switch_ms"] > 0 and scored["quick"]["passes"] == 3 * 4 * 2
    assert "of the bare rate" in said


def test_number_types(tried):
    parts, _ = tried("types")
    assert parts["types"]["float16"]["largest_off_in_se"] < 1
    assert all(e["se"] > 0 for e in parts["types"]["float32"].values())


def test_unlearning(tried):
    own = tried("unlearning")[0]["unlearning"]
    assert own["plain LoRA step, checkpointing"]["ratio"] > 0
    for name in ("float16", "bfloat16"):
        assert max(own[f"{name} beside float32"].values()) < 0.05


def test_the_embedded_model(tried):
    own = tried("embedded")[0]["embedded"]
    assert own["same_ranks"] and own["largest_difference_nats"] == 0 and len(own["ranks"]) == 8


def test_the_xl_layout(tried):
    parts, _ = tried("sdxl_bare,sdxl_unlearning")
    assert parts["sdxl_bare"]["float16"]["1"]["passes_s"] > 0
    assert parts["sdxl_unlearning"]["float16, no checkpointing"]["largest_b"] > 0


def test_a_deadline_and_a_failure_lose_only_their_own_part(tmp_path, monkeypatch, capsys):
    record = gpu_check.Record(tmp_path / "gpu.json", device="cpu", tiny=True, deadline_s=1e9)
    with record.part("one") as figures:
        figures["a"] = 1
        raise RuntimeError("broke\nmore")
    record.deadline_s = -1.0
    with record.part("two") as figures:
        assert figures is None
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parts"]["one"]["a"] == 1 and found["failed"] == {"one": "RuntimeError: broke"}
    assert found["not_reached"] == ["two"]
    gpu_check.show(gpu_check.table(found))
    assert "one FAILED" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GudaError, match="There is no GPU here"):
        gpu_check.gpu_check(out=tmp_path / "gpu.json", tiny=False, parts="", deadline=1.0)
    with pytest.raises(OptionError, match="There is no part 'x'"):
        gpu_check.gpu_check(out=tmp_path / "gpu.json", tiny=True, parts="x", deadline=1.0)
    assert not (tmp_path / "gpu.json").exists()


def test_the_tracker_counts_every_storage_once_while_it_lives():
    with memory.FakeTensorMode(), memory.Tracker() as tracker:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        assert tracker.now == 4000
        with tracker.called("more"):
            c = torch.zeros(250, dtype=torch.float16)
        assert tracker.now == 4500 and tracker.by["more"] == 500
        del a
        assert tracker.now == 4500
        del b, c
        assert tracker.now == 0 and tracker.peak == 4500 and tracker.at_peak == {"other": 4000, "more": 500}


def test_the_peak_is_that_of_a_layer_counted_by_hand():
    """y = x W with x needing a gradient: W, x, y, then the gradients of y, x and W; sum() makes one number."""
    with memory.FakeTensorMode(), memory.Tracker() as tracker:
        layer = nn.Linear(256, 256, bias=False)
        x = torch.zeros(64, 256, requires_grad=True)
        weights, tracker.peak = tracker.now, 0
        layer(x).sum().backward()
        assert weights == 4 * (256 * 256 + 64 * 256)
        least, most = weights + 4 * (256 * 256 + 64 * 256), weights + 4 * (256 * 256 + 3 * 64 * 256) + 64
        assert least <= tracker.peak <= most


def test_checkpointing_needs_less_and_a_smaller_pass_too(monkeypatch):
    """Of a network of one level."""
    one = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    monkeypatch.setitem(layouts.TINY, "unet", {**layouts.TINY["unet"], **one, "block_out_channels": [8]})
    monkeypatch.setattr(memory, "GIB", 1)
    of = ((8, True), (8, False), (4, True))
    peaks = {(n, c): memory.peak_of("sd15", n, checkpointing=c, tiny=True)["peak_gib"] for n, c in of}
    assert peaks[4, True] < peaks[8, True] < peaks[8, False]
