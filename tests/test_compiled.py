"""Compiled trainings: asked for, never assumed, and the same numbers."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from torch import nn

from experiments.train import compiled


def test_the_module_itself_unless_asked_and_able(monkeypatch, caplog):
    module = nn.Linear(2, 3)
    monkeypatch.delenv("GUDA_COMPILE", raising=False)
    assert compiled.forward_of(module) is module
    monkeypatch.setenv("GUDA_COMPILE", "0")
    assert compiled.forward_of(module) is module
    monkeypatch.setenv("GUDA_COMPILE", "1")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert compiled.forward_of(module) is module
    assert "no C++ compiler" in caplog.text


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what it deprecates itself
def test_compiled_gives_the_same_loss_and_gradients(monkeypatch, tmp_path):
    monkeypatch.setenv("GUDA_COMPILE", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)), torch.randn(16, 4)
    module(x).square().mean().backward()
    plain = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    fast = compiled.forward_of(module)
    assert fast is not module
    fast(x).square().mean().backward()
    for p, g in zip(module.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, g)
